//! Real Redis servers: started with a directory of their own, and ended by their own ids.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::{Client, Outcome, Request, plain_get};
use super::process::{Process, free_port};
use super::world::World;

/// Polls of 20 ms before a wait is given up: 30 s.
const POLLS: usize = 1500;

/// Whether there is a server to test with; in CI there must be.
pub(crate) fn there_is_none() -> bool {
    let found = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    assert!(found || std::env::var("CI").as_deref() != Ok("true"), "there is no redis-server");
    if !found {
        eprintln!("SKIPPED: there is no redis-server");
    }
    !found
}

/// A server, or a sentinel.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    pub(crate) directory: TempDir,
    /// What it is started with.
    arguments: Vec<String>,
    /// What `redis-cli` needs beside the port.
    cli: Vec<String>,
}

impl Server {
    /// A server that keeps nothing on the disk; `settings` are lines of its configuration.
    pub(crate) async fn start(settings: &[&str]) -> Self {
        let port = free_port();
        let own = [format!("port {port}")];
        Self::start_at(port, &[], own.iter().map(String::as_str).chain(settings.iter().copied()))
            .await
    }

    /// A server whose port is among the settings; `cli` is what `redis-cli` needs to reach it.
    pub(crate) async fn start_at(
        port: u16,
        cli: &[&str],
        settings: impl Iterator<Item = &str>,
    ) -> Self {
        let directory = TempDir::new().expect("a directory");
        let mut text = format!(
            "bind 127.0.0.1\ndir {}\nsave \"\"\nappendonly no\ndaemonize no\n",
            directory.path().display()
        );
        for line in settings {
            text.push_str(line);
            text.push('\n');
        }
        Self::begin(directory, port, cli, &text, &[]).await
    }

    /// A sentinel that watches the master at `master`.
    pub(crate) async fn sentinel(master: u16, quorum: u32) -> Self {
        let (directory, port) = (TempDir::new().expect("a directory"), free_port());
        let text = format!(
            "bind 127.0.0.1\nport {port}\ndir {}\n\
             sentinel monitor holdfast 127.0.0.1 {master} {quorum}\n\
             sentinel down-after-milliseconds holdfast 500\n\
             sentinel failover-timeout holdfast 3000\n",
            directory.path().display()
        );
        Self::begin(directory, port, &[], &text, &["--sentinel"]).await
    }

    /// One whose file has this `text`; `arguments` count for more than what is in it. `directory` is its
    /// own, and `cli` what `redis-cli` needs beside the port.
    pub(crate) async fn begin(
        directory: TempDir,
        port: u16,
        cli: &[&str],
        text: &str,
        arguments: &[&str],
    ) -> Self {
        let file = directory.path().join("redis.conf");
        fs::write(&file, text).expect("a writable directory");
        let file = file.display().to_string();
        let arguments: Vec<_> = [&[file.as_str()], arguments].concat();
        let arguments: Vec<_> = arguments.into_iter().map(str::to_owned).collect();
        let child = spawn(&arguments);
        let cli = cli.iter().map(|part| (*part).to_owned()).collect();
        let mut server = Self { child, port, directory, arguments, cli };
        server.answers().await;
        server
    }

    async fn answers(&mut self) {
        for _ in 0..POLLS {
            if let Some(status) = self.child.try_wait().expect("a child") {
                panic!("redis ended at start with {status}");
            }
            // With or without a password, and whatever the user may do, it is there.
            let said = self.cli(&["PING"]);
            if ["PONG", "NOAUTH", "NOPERM"].iter().any(|word| said.contains(word)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("redis does not answer at {}: {}", self.port, self.cli(&["PING"]));
    }

    /// What `redis-cli` prints, errors included.
    pub(crate) fn cli(&self, arguments: &[&str]) -> String {
        let made = Command::new("redis-cli")
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(&self.cli)
            .args(arguments)
            .output()
            .expect("redis-cli");
        String::from_utf8_lossy(&made.stdout).into_owned() + &String::from_utf8_lossy(&made.stderr)
    }

    pub(crate) fn signal(&self, name: &str) {
        let command = format!("kill -{name} {}", self.child.id());
        let status = Command::new("sh").args(["-c", &command]).status().expect("a shell");
        assert!(status.success(), "SIG{name} could not be sent");
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("a child");
        self.child.wait().expect("its end");
    }

    /// Starts it anew after its end, with what is on its disk.
    pub(crate) async fn again(&mut self) {
        self.child = spawn(&self.arguments);
        self.answers().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(arguments: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    command.args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("redis-server")
}

/// Has a configuration remember proofs at the servers that `redis` says.
pub(crate) fn share(config: &mut Value, redis: Value) {
    config["store"] = json!({"kind": "redis", "path": "edge.db", "redis": redis});
    let dpop = &mut config["security"]["senderConstraints"]["dpop"];
    dpop["replay"] = json!({"store": "redis"});
    if dpop["nonce"]["enabled"] != json!(false) {
        dpop["nonce"]["keyFiles"] = json!(["nonce.key"]);
        dpop["nonce"]["sharedKeys"] = json!(true);
    }
}

/// Another edge beside the one of a [`World`], with the same keys, upstream and servers.
pub(crate) struct Edge {
    pub(crate) client: Client,
    pub(crate) admin: u16,
    _process: Process,
    _directory: TempDir,
}

impl Edge {
    pub(crate) async fn beside(world: &World) -> Self {
        Self::beside_with(world, |_| {}).await
    }

    /// The same; `change` bends its configuration first.
    pub(crate) async fn beside_with(world: &World, change: impl FnOnce(&mut Value)) -> Self {
        let directory = TempDir::new().expect("a directory");
        for file in fs::read_dir(world.directory.path()).expect("a directory") {
            let file = file.expect("an entry").path();
            let name = file.file_name().expect("a name");
            // Every edge has an audit log of its own.
            if file.is_file() && !name.to_string_lossy().contains(".db") {
                fs::copy(&file, directory.path().join(name)).expect("a copy");
            }
        }
        let (port, admin) = (free_port(), free_port());
        let mut config = world.config.clone();
        config["edge"]["listeners"][0]["address"] = json!(format!("127.0.0.1:{port}"));
        config["edge"]["admin"]["address"] = json!(format!("127.0.0.1:{admin}"));
        change(&mut config);
        let process = Process::start(directory.path(), &config, admin).await;
        let client = Client::new(port, &world.pki.authority_der);
        Self { client, admin, _process: process, _directory: directory }
    }
}

/// Whatever sends requests to one edge.
pub(crate) trait Asked {
    async fn serve(&self, request: &Request) -> Outcome;
}

impl Asked for World {
    async fn serve(&self, request: &Request) -> Outcome {
        self.client.send(None, request).await
    }
}

impl Asked for Edge {
    async fn serve(&self, request: &Request) -> Outcome {
        self.client.send(None, request).await
    }
}

/// Waits until `/readyz` says what is expected.
pub(crate) async fn ready_is(admin: u16, expected: bool) -> Value {
    let mut last = Value::Null;
    for _ in 0..POLLS {
        if let Ok(answer) = plain_get(admin, "/readyz").await {
            last = answer.json();
            if last["redis"]["ready"] == json!(expected) {
                return last;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("redis.ready does not become {expected}: {last:#}");
}
