//! Real Redis servers: started with a directory of their own, and ended by their own ids.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::pki::Issuer;
use super::process::free_port;
use super::relay::Relay;
use super::sharing::own_file;

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
    /// What it is started by.
    command: Vec<String>,
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
        let text = configured(&directory.path().display().to_string(), settings);
        Self::begin(directory, port, cli, &text, &[]).await
    }

    /// The same, with its data on `disk`.
    pub(crate) async fn start_on(
        disk: &Disk,
        port: u16,
        cli: &[&str],
        settings: impl Iterator<Item = &str>,
    ) -> Self {
        let directory = TempDir::new().expect("a directory");
        let text = configured(&disk.mounted.path().display().to_string(), settings);
        Self::begin_as(disk.program(), directory, port, cli, &text, &[]).await
    }

    /// A replica, once it follows the server at `master`.
    pub(crate) async fn following(master: u16, settings: &[&str]) -> Self {
        let follow = format!("replicaof 127.0.0.1 {master}");
        let replica = Self::start(&[settings, &[follow.as_str()]].concat()).await;
        replica.says(&["INFO", "replication"], "master_link_status:up").await;
        replica
    }

    /// A sentinel that watches the master at `master`.
    pub(crate) async fn sentinel(master: u16, quorum: u32) -> Self {
        let (directory, port) = (TempDir::new().expect("a directory"), free_port());
        let text = format!(
            "bind 127.0.0.1\nport {port}\ndir {}\n\
             sentinel monitor holdfast 127.0.0.1 {master} {quorum}\n\
             sentinel down-after-milliseconds holdfast 3000\n\
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
        let program = vec!["redis-server".to_owned()];
        Self::begin_as(program, directory, port, cli, text, arguments).await
    }

    async fn begin_as(
        mut command: Vec<String>,
        directory: TempDir,
        port: u16,
        cli: &[&str],
        text: &str,
        arguments: &[&str],
    ) -> Self {
        let file = directory.path().join("redis.conf");
        fs::write(&file, text).expect("a writable directory");
        command.push(file.display().to_string());
        command.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        let child = spawn(&command);
        let cli = cli.iter().map(|part| (*part).to_owned()).collect();
        let mut server = Self { child, port, directory, command, cli };
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

    /// A field of `INFO`.
    pub(crate) fn info(&self, name: &str) -> String {
        let text = self.cli(&["INFO"]);
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.unwrap_or_else(|| panic!("INFO has no {name}: {text}")).trim().to_owned()
    }

    /// Whether it says that it is a master. A Sentinel that turns it over ends who asks.
    pub(crate) fn leads(&self) -> bool {
        self.cli(&["INFO", "replication"]).contains("role:master")
    }

    /// Waits until it answers with a text that has this in it.
    pub(crate) async fn says(&self, arguments: &[&str], text: &str) {
        let mut said = String::new();
        for _ in 0..POLLS {
            said = self.cli(arguments);
            if said.contains(text) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{arguments:?} never says {text}: {said}");
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
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

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) {
        for _ in 0..POLLS {
            if self.child.try_wait().expect("a child").is_some() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("redis does not end");
    }

    /// Starts it anew after its end, with what is on its disk.
    pub(crate) async fn again(&mut self) {
        self.child = spawn(&self.command);
        self.answers().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(command: &[String]) -> Child {
    let (program, arguments) = command.split_first().expect("a program");
    let mut command = Command::new(program);
    command.args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("redis-server")
}

/// The configuration of a server that keeps nothing in `directory` unless the settings say so.
fn configured<'a>(directory: &str, settings: impl Iterator<Item = &'a str>) -> String {
    // Replicas are not kept waiting for others that might come.
    let mut text = format!(
        "bind 127.0.0.1\ndir {directory}\nsave \"\"\nappendonly no\ndaemonize no\n\
         repl-diskless-sync-delay 0\n"
    );
    for line in settings {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// A disk with little room, for who is started by [`Disk::program`]: a file system in memory, in a mount
/// namespace that a process holds, so that it outlives a server and is gone with the test.
pub(crate) struct Disk {
    mounted: TempDir,
    holder: Child,
}

impl Disk {
    /// `None`, with a word, where no user may mount in a namespace; in CI that is a failure.
    pub(crate) fn mount(megabytes: u32) -> Option<Self> {
        let mounted = TempDir::new().expect("a directory");
        let script =
            format!("mount -t tmpfs -o size={megabytes}m tmpfs \"$0\" && echo held && exec cat");
        let mut holder = Command::new("unshare");
        holder.args(["--map-root-user", "--mount", "sh", "-c", &script]).arg(mounted.path());
        // The pipe ends with this process, however that ends, and the holder with the pipe.
        let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
        let mut line = String::new();
        let said = BufReader::new(holder.stdout.take()?).read_line(&mut line);
        let disk = Self { mounted, holder };
        if said.is_ok() && line == "held\n" {
            return Some(disk);
        }
        assert!(std::env::var("CI").as_deref() != Ok("true"), "no small disk can be mounted");
        eprintln!("SKIPPED: no small disk can be mounted");
        None
    }

    fn program(&self) -> Vec<String> {
        let target = self.holder.id().to_string();
        let enter = ["nsenter", "--user", "--mount", "--preserve-credentials", "--target", &target];
        enter.into_iter().chain(["redis-server"]).map(str::to_owned).collect()
    }

    /// A file there, as it is seen from outside.
    fn file(&self, name: &str) -> PathBuf {
        let root = format!("/proc/{}/root{}", self.holder.id(), self.mounted.path().display());
        PathBuf::from(root).join(name)
    }

    /// Writes until there is no room.
    pub(crate) fn fill(&self) {
        let filled = fs::write(self.file("filling"), vec![0; 256 << 20]);
        let why = filled.expect_err("a disk without an end").kind();
        assert_eq!(why, std::io::ErrorKind::StorageFull);
    }

    /// Makes room.
    pub(crate) fn clear(&self) {
        fs::remove_file(self.file("filling")).expect("what fills it");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// What servers and edges need to speak TLS with each other.
pub(crate) struct Tls {
    directory: TempDir,
}

impl Tls {
    /// An authority `ca.pem`, and by it certificates with their keys: `server`, `expired` (a server's)
    /// and `edge`.
    pub(crate) fn new() -> Self {
        let issuer = Issuer::new("Redis authority");
        let tls = Self { directory: TempDir::new().expect("a directory") };
        tls.put("ca.pem", &issuer.pem());
        let (server, edge) = ("redis.internal", "edge.internal");
        for (file, name, ended) in
            [("server", server, 0), ("expired", server, 2020), ("edge", edge, 0)]
        {
            let own = issuer.sign(&[name], ended);
            tls.put(&format!("{file}.pem"), &own.certificate_pem);
            tls.put(&format!("{file}.key"), &own.key_pem);
        }
        tls
    }

    fn put(&self, name: &str, text: &str) {
        own_file(&self.directory.path().join(name), text.as_bytes());
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// A server's settings: it speaks nothing but TLS at `port`, and shows this certificate.
    pub(crate) fn settings(&self, port: u16, certificate: &str) -> Vec<String> {
        vec![
            "port 0".to_owned(),
            format!("tls-port {port}"),
            format!("tls-cert-file {}", self.file(&format!("{certificate}.pem"))),
            format!("tls-key-file {}", self.file(&format!("{certificate}.key"))),
            format!("tls-ca-cert-file {}", self.file("ca.pem")),
            "tls-auth-clients yes".to_owned(),
        ]
    }

    /// What `redis-cli` needs.
    pub(crate) fn cli(&self) -> Vec<String> {
        let files = [("--cacert", "ca.pem"), ("--cert", "edge.pem"), ("--key", "edge.key")];
        let files = files.into_iter().flat_map(|(what, name)| [what.to_owned(), self.file(name)]);
        ["--tls", "--insecure"].into_iter().map(str::to_owned).chain(files).collect()
    }

    /// `store.redis.tls` of an edge.
    pub(crate) fn told(&self) -> Value {
        json!({"authorities": [self.file("ca.pem")], "serverName": "redis.internal",
               "certificate": self.file("edge.pem"), "key": self.file("edge.key")})
    }
}

/// A master, and a replica that follows it by a link.
pub(crate) async fn pair(settings: &[&str]) -> (Server, Relay, Server) {
    let master = Server::start(settings).await;
    let link = Relay::to(master.port).await;
    let replica = Server::following(link.port, &[]).await;
    (master, link, replica)
}

/// A master with replicas, and three sentinels.
pub(crate) struct Watched {
    pub(crate) master: Server,
    pub(crate) replicas: Vec<Server>,
    sentinels: Vec<Server>,
}

impl Watched {
    pub(crate) async fn start(replicas: usize, settings: &[&str]) -> Self {
        let master = Server::start(settings).await;
        let mut following = Vec::new();
        for _ in 0..replicas {
            following.push(Server::following(master.port, settings).await);
        }
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            sentinels.push(Server::sentinel(master.port, 2).await);
        }
        let watched = Self { master, replicas: following, sentinels };
        // They find one another, and the replicas, through the master.
        for _ in 0..POLLS {
            if watched.sentinels.iter().all(|it| watched.is_known_to(it)) {
                return watched;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the sentinels do not find one another");
    }

    fn is_known_to(&self, sentinel: &Server) -> bool {
        let text = sentinel.cli(&["SENTINEL", "master", "holdfast"]);
        let value = |name: &str| {
            let mut lines = text.lines().skip_while(|line| *line != name).skip(1);
            lines.next().and_then(|line| line.parse::<usize>().ok())
        };
        value("num-other-sentinels") == Some(2) && value("num-slaves") == Some(self.replicas.len())
    }

    /// Waits until one of the replicas is the master: which.
    pub(crate) async fn promoted(&self) -> usize {
        for _ in 0..POLLS {
            if let Some(found) = self.replicas.iter().position(Server::leads) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("there is no master");
    }

    /// Has the sentinels wait for a master that is gone for a moment.
    pub(crate) fn does_not_fail_over(&self) {
        for sentinel in &self.sentinels {
            let patience = ["SENTINEL", "SET", "holdfast", "down-after-milliseconds", "60000"];
            assert_eq!(sentinel.cli(&patience), "OK\n");
        }
    }

    /// `store.redis` of an edge.
    pub(crate) fn told(&self) -> Value {
        let nodes: Vec<_> = self.sentinels.iter().map(Server::address).collect();
        json!({"mode": "sentinel", "nodes": nodes, "sentinelMaster": "holdfast",
               "timeout": "5s"})
    }
}

/// A Cluster of three masters, with a replica each.
pub(crate) struct Cluster {
    pub(crate) servers: Vec<Server>,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let mut servers = Vec::new();
        for _ in 0..6 {
            // The default is the port and 10,000, which may be somebody's.
            let bus = format!("cluster-port {}", free_port());
            let settings = ["cluster-enabled yes", "cluster-node-timeout 1000", bus.as_str()];
            servers.push(Server::start(&settings).await);
        }
        let cluster = Self { servers };
        let nodes = cluster.addresses();
        let mut make = vec!["--cluster", "create"];
        make.extend(nodes.iter().map(String::as_str));
        make.extend(["--cluster-replicas", "1", "--cluster-yes"]);
        let said = cluster.servers[0].cli(&make);
        assert!(said.contains("All 16384 slots covered"), "{said}");
        cluster.is_whole().await;
        cluster
    }

    /// Waits until all servers find it well, and three of them follow another.
    pub(crate) async fn is_whole(&self) {
        for _ in 0..POLLS {
            let has = |it: &Server, what: &[&str], text: &str| it.cli(what).contains(text);
            let following =
                |it: &&Server| has(it, &["INFO", "replication"], "master_link_status:up");
            if self.servers.iter().filter(following).count() == 3
                && self.servers.iter().all(|it| has(it, &["CLUSTER", "INFO"], "cluster_state:ok"))
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the Cluster is not whole");
    }

    fn addresses(&self) -> Vec<String> {
        self.servers.iter().map(Server::address).collect()
    }

    /// The place of the master of a key's slot.
    pub(crate) fn master_of(&self, key: &str) -> usize {
        let found = self.servers.iter().position(|it| {
            let said = it.cli(&["INFO", "replication"]);
            said.contains("role:master") && !it.cli(&["EXISTS", key]).contains("MOVED")
        });
        found.expect("a master")
    }

    /// The place of a master other than that at `place`.
    pub(crate) fn another_master(&self, place: usize) -> usize {
        let mut masters = (0..self.servers.len()).filter(|it| *it != place);
        let found = masters.find(|it| self.servers[*it].leads());
        found.expect("another master")
    }

    /// The place of the replica of the master at `place`.
    pub(crate) fn replica_of(&self, place: usize) -> usize {
        let follows = format!("master_port:{}", self.servers[place].port);
        let found = |it: &Server| it.cli(&["INFO", "replication"]).contains(&follows);
        self.servers.iter().position(found).expect("a replica")
    }

    fn id(&self, place: usize) -> String {
        self.servers[place].cli(&["CLUSTER", "MYID"]).trim().to_owned()
    }

    fn set_slot(&self, at: usize, slot: u32, words: [&str; 2]) {
        let slot = slot.to_string();
        let said =
            self.servers[at].cli(&[&["CLUSTER", "SETSLOT", slot.as_str()], &words[..]].concat());
        assert_eq!(said, "OK\n", "{words:?}");
    }

    /// Begins to move a slot.
    pub(crate) fn opens(&self, slot: u32, from: usize, to: usize) {
        self.set_slot(to, slot, ["IMPORTING", &self.id(from)]);
        self.set_slot(from, slot, ["MIGRATING", &self.id(to)]);
    }

    /// Moves at most so many keys of a slot: whether there were any.
    pub(crate) fn moves_some(&self, slot: u32, from: usize, to: usize, count: u32) -> bool {
        let (slot, count) = (slot.to_string(), count.to_string());
        let keys = self.servers[from].cli(&["CLUSTER", "GETKEYSINSLOT", &slot, &count]);
        let keys: Vec<_> = keys.lines().filter(|key| !key.is_empty()).collect();
        if keys.is_empty() {
            return false;
        }
        let port = self.servers[to].port.to_string();
        let words = ["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
        let said = self.servers[from].cli(&[&words[..], &keys[..]].concat());
        assert!(["OK\n", "NOKEY\n"].contains(&said.as_str()), "{said}");
        true
    }

    /// Ends the move of a slot.
    pub(crate) fn closes(&self, slot: u32, from: usize, to: usize) {
        for at in [to, from] {
            self.set_slot(at, slot, ["NODE", &self.id(to)]);
        }
    }

    /// Waits until no server has an older view than another.
    pub(crate) async fn agrees(&self) {
        let check = ["--cluster", "check", &self.servers[0].address()];
        self.servers[0].says(&check, "All nodes agree about slots configuration").await;
    }

    /// Moves so many slots as an operator does.
    pub(crate) fn reshards(&self, from: usize, to: usize, slots: u32) {
        let said = self.servers[from].cli(&[
            "--cluster",
            "reshard",
            &self.servers[from].address(),
            "--cluster-from",
            &self.id(from),
            "--cluster-to",
            &self.id(to),
            "--cluster-slots",
            &slots.to_string(),
            "--cluster-yes",
        ]);
        assert!(!said.contains("ERR") && said.contains("Moving slot"), "{said}");
    }

    /// `store.redis` of an edge.
    pub(crate) fn told(&self) -> Value {
        json!({"mode": "cluster", "nodes": self.addresses(), "timeout": "5s"})
    }
}
