//! A master, two replicas and three sentinels as `deploy/redis` has them: every file as it is delivered, each
//! who comes by their own user, over TLS alone.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::pki::Issuer;
use super::support::process::free_port;
use super::support::redis::{Server, there_is_none};
use super::support::sharing::{
    Asked, admitted, another_nonce, down, nonce_of, ready_is, request, standalone, verdict, world,
};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/redis");
const POLLS: usize = 1500;

fn deployed(name: &str) -> String {
    fs::read_to_string(Path::new(DEPLOY).join(name)).expect("a file of deploy/redis")
}

/// What a machine has: the files that the delivered ones name.
struct Machines {
    directory: TempDir,
    ca: String,
    cert: String,
    key: String,
    users: String,
}

impl Machines {
    fn new() -> Self {
        let directory = TempDir::new().expect("a directory");
        let issuer = Issuer::new("Redis authority");
        let own = issuer.sign(&["redis.internal"], 0);
        let put = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).expect("a writable directory");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its owner");
            path.display().to_string()
        };
        let (ca, cert) = (put("ca.pem", &issuer.pem()), put("own.pem", &own.certificate_pem));
        let (key, users) = (put("own.key", &own.key_pem), put("users.acl", &deployed("users.acl")));
        put("redis.password", "CHANGE-ME\n");
        Self { directory, ca, cert, key, users }
    }

    /// One more server or sentinel of a delivered file, with what a machine decides in `more`.
    async fn begin(&self, text: &str, more: &[(&str, &str)], user: &[&str]) -> Server {
        let (directory, port) = (TempDir::new().expect("a directory"), free_port());
        let (home, at) = (directory.path().display().to_string(), port.to_string());
        let own = [
            ("--tls-port", at.as_str()),
            ("--dir", &home),
            ("--tls-cert-file", &self.cert),
            ("--tls-key-file", &self.key),
            ("--tls-ca-cert-file", &self.ca),
        ];
        let sentinel = text.contains("sentinel monitor").then_some("--sentinel");
        let pairs = own.iter().chain(more).flat_map(|(name, value)| [*name, *value]);
        let arguments: Vec<_> = sentinel.into_iter().chain(pairs).collect();
        let tls = ["--tls", "--insecure", "--cacert", &self.ca, "--cert", &self.cert, "--key"];
        let cli = [&tls[..], &[&self.key, "--no-auth-warning"], user].concat();
        Server::begin(directory, port, &cli, text, &arguments).await
    }

    async fn server(&self, text: &str, master: Option<u16>) -> Server {
        let follow = master.map(|port| format!("127.0.0.1 {port}"));
        let mut more = vec![("--aclfile", self.users.as_str())];
        more.extend(follow.as_deref().map(|follow| ("--replicaof", follow)));
        self.begin(text, &more, &["--user", "holdfast", "--pass", "CHANGE-ME"]).await
    }

    fn settings(&self, nodes: &[String]) -> Value {
        let mut told = standalone(0);
        told["mode"] = json!("sentinel");
        told["nodes"] = json!(nodes);
        told["sentinelMaster"] = json!("holdfast");
        told["user"] = json!("holdfast");
        told["passwordFile"] = json!(self.directory.path().join("redis.password"));
        told["requirePersistence"] = json!(true);
        told["tls"] = json!({"authorities": [self.ca], "serverName": "redis.internal",
                             "certificate": self.cert, "key": self.key});
        told
    }
}

async fn says(server: &Server, words: &[&str], expected: &str) {
    for _ in 0..POLLS {
        if server.cli(words).contains(expected) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{words:?} never says {expected}: {}", server.cli(words));
}

/// A setting, as `SENTINEL MASTER` prints it.
fn field<'a>(said: &'a str, name: &str) -> Option<&'a str> {
    said.lines().skip_while(|line| *line != name).nth(1)
}

/// What a user may not do, of those who need no key.
fn kept_out(server: &Server, user: &str, password: &str) {
    let may = |words: &[&str]| {
        let login = ["--user", user, "--pass", password];
        !server.cli(&[&login, words].concat()).contains("NOPERM")
    };
    assert!(may(&["PING"]), "{user} is not let in");
    for words in [
        &["GET", "{holdfast:0}:mark"][..],
        &["SET", "{holdfast:0}:mark", "x"],
        &["KEYS", "*"],
        &["FLUSHALL"],
        &["CONFIG", "SET", "appendonly", "no"],
        &["ACL", "SETUSER", user, "+@all"],
        &["EVAL", "return 1", "0"],
    ] {
        assert!(!may(words), "{user} may {words:?}");
    }
    let publishes = server.cli(&["--user", user, "--pass", password, "PUBLISH", "other", "x"]);
    assert!(publishes.contains("NOPERM"), "{user} speaks on any channel");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_and_sentinels_of_deploy_replicate_and_fail_over() {
    if there_is_none() {
        return;
    }
    let machines = Machines::new();
    let text = deployed("redis.conf");
    // As the file says to do with replicas.
    let lone = ["# min-replicas-to-write 1", "# min-replicas-max-lag 10"];
    let text = lone.iter().fold(text, |text, line| {
        assert!(text.contains(line), "{line} is not to be had");
        text.replace(line, line.trim_start_matches("# "))
    });
    let mut master = machines.server(&text, None).await;
    let mut replicas = Vec::new();
    for _ in 0..2 {
        replicas.push(machines.server(&text, Some(master.port)).await);
    }
    says(&master, &["INFO", "replication"], "connected_slaves:2").await;
    for replica in &replicas {
        says(replica, &["INFO", "replication"], "master_link_status:up").await;
        kept_out(replica, "replication", "CHANGE-ME-REPLICATION");
    }
    kept_out(&master, "sentinel", "CHANGE-ME-SENTINEL");
    let (text, line) = (deployed("sentinel.conf"), "sentinel monitor holdfast 127.0.0.1 6379 2");
    assert!(text.contains(line), "another master is watched");
    let text = text.replace(line, &line.replace("6379", &master.port.to_string()));
    let mut sentinels = Vec::new();
    for _ in 0..3 {
        sentinels.push(machines.begin(&text, &[], &[]).await);
    }
    for sentinel in &sentinels {
        let words = ["SENTINEL", "CKQUORUM", "holdfast"];
        says(sentinel, &words, "OK 3 usable").await;
        let said = sentinel.cli(&["SENTINEL", "MASTER", "holdfast"]);
        for (name, expected) in [
            ("quorum", "2"),
            ("down-after-milliseconds", "2000"),
            ("failover-timeout", "10000"),
            ("parallel-syncs", "1"),
            ("num-slaves", "2"),
        ] {
            assert_eq!(field(&said, name), Some(expected), "{name}");
        }
    }
    let nodes: Vec<_> = sentinels.iter().map(|it| format!("127.0.0.1:{}", it.port)).collect();
    let world = world(machines.settings(&nodes)).await;
    let nonce = nonce_of(&world, &world).await;
    let used = request(&world, Some(&nonce));
    assert_eq!(verdict(world.serve(&used).await), admitted());
    let kept = ready_is(world.admin, true).await["redis"]["epoch"].clone();
    master.kill();
    ready_is(world.admin, false).await;
    assert_eq!(verdict(world.serve(&used).await), down());
    let taken = ready_is(world.admin, true).await["redis"]["epoch"].clone();
    assert_ne!(kept, taken, "another server is another memory");
    assert_eq!(verdict(world.serve(&used).await), another_nonce());
    let fresh = nonce_of(&world, &world).await;
    assert_eq!(verdict(world.serve(&request(&world, Some(&fresh))).await), admitted());
    // Who took over has whom the others follow, and the old one comes back as one of them.
    master.again().await;
    says(&master, &["INFO", "replication"], "master_link_status:up").await;
    let masters = replicas.iter().filter(|it| {
        let said = it.cli(&["INFO", "replication"]);
        said.contains("role:master") && said.contains("connected_slaves:2")
    });
    assert_eq!(masters.count(), 1);
    assert_eq!(verdict(world.serve(&request(&world, Some(&fresh))).await), admitted());
}
