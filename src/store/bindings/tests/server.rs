//! Real servers for tests of what is kept in them.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::runtime::Handle;

use crate::policy::reach::Reach;
use crate::store::redis::{Address, Login, Redis, Settings, Topology, Wait};

/// A `redis-server` of a test. It ends with it.
pub(crate) struct Server {
    directory: PathBuf,
    /// Arguments beside the usual.
    more: Vec<String>,
    pub(crate) port: u16,
    pub(crate) process: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Server {
    /// `None`, with a word, where there is no `redis-server`; in CI that is a failure.
    pub(crate) fn start(directory: &Path) -> Option<Self> {
        Self::start_with(directory, &[])
    }

    /// The same, with more arguments.
    pub(crate) fn start_with(directory: &Path, more: &[&str]) -> Option<Self> {
        let there = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
        if there.is_err() {
            assert!(std::env::var_os("CI").is_none(), "no redis-server in CI");
            eprintln!("SKIPPED: there is no redis-server on this machine");
            return None;
        }
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let directory = directory.to_owned();
        let more: Vec<_> = more.iter().map(|word| (*word).to_owned()).collect();
        let process = Self::spawn(&directory, port, &more);
        Some(Self { directory, more, port, process })
    }

    fn spawn(directory: &Path, port: u16, more: &[String]) -> Child {
        let mut server = Command::new("redis-server");
        server.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        server.args(["--port", &port.to_string()]).arg("--dir").arg(directory).args(more);
        let server = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }

    pub(crate) fn stop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Starts again from what was saved last.
    pub(crate) fn roll_back(&mut self) {
        self.stop();
        self.process = Self::spawn(&self.directory, self.port, &self.more);
    }

    /// The way to it, as every edge has its own.
    pub(crate) async fn connect(&self) -> Redis {
        self.connect_as(Login::default()).await
    }

    /// The way to it of another user.
    pub(crate) async fn connect_as(&self, login: Login) -> Redis {
        let topology = Topology::Standalone(vec![address(self.port)]);
        connected(Settings { login, ..settings(topology) }).await
    }

    /// Sends one command past everything; its answer, as it comes.
    pub(crate) fn raw(&self, words: &[&str]) -> String {
        raw(self.port, words)
    }

    /// All keys with `:<letter>:` in them.
    pub(super) fn keys(&self, letter: char) -> Vec<String> {
        let found = self.raw(&["KEYS", &format!("*:{letter}:*")]);
        found.lines().filter(|line| line.starts_with('{')).map(str::to_owned).collect()
    }
}

/// Where a server of a test is.
pub(crate) fn address(port: u16) -> Address {
    Address { host: "127.0.0.1".to_owned(), port }
}

/// How servers of a test are used.
pub(crate) fn settings(topology: Topology) -> Settings {
    Settings {
        lookup: Reach::of(false).lookup(),
        topology,
        login: Login::default(),
        tls: None,
        prefix: "test".to_owned(),
        connect_timeout: Duration::from_secs(5),
        timeout: Duration::from_secs(5),
        wait: Wait { replicas: 0, within: Duration::from_secs(1) },
        require_persistence: false,
    }
}

/// What is used so, once it can be.
pub(crate) async fn connected(settings: Settings) -> Redis {
    let redis = Redis::start(settings, &Handle::current());
    assert!(redis.ready(Duration::from_secs(30)).await, "{:?}", redis.status());
    redis
}

/// Sends one command to the server at `port`, past everything; its answer, as it comes.
pub(crate) fn raw(port: u16, words: &[&str]) -> String {
    let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    let mut text = format!("*{}\r\n", words.len());
    words.iter().for_each(|word| text.push_str(&format!("${}\r\n{word}\r\n", word.len())));
    socket.write_all(text.as_bytes()).unwrap();
    let mut answer = vec![0; 65536];
    let count = socket.read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..count]).into_owned()
}
