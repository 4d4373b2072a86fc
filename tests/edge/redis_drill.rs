//! Everything that becomes of a Redis, one fault after another, under load from three edges: no proof is
//! admitted twice, no revoked token, no revoked or quarantined node is served, no acknowledged binding is
//! lost where a copy survives, and none that was lost is admitted. Each fault prints a row of figures.
//!
//! `HOLDFAST_ROUNDS` says how many proofs are shown before, during and after each fault.

use std::time::Duration;

use serde_json::{Value, json};

use super::support::drill::{Drill, Fault, Memory};
use super::support::process::free_port;
use super::support::redis::{Cluster, Disk, Server, Tls, Watched, pair, there_is_none};
use super::support::relay::{Relay, Way};
use super::support::sharing::{own_file, ready_is, standalone};

/// Where nodes are: the tag of everything that there is once.
const NODES: &str = "{holdfast:0}:nodes:lineage";
/// Its slot.
const SLOT: u32 = 12262;

fn kept(name: &'static str) -> Fault {
    Fault { name, refuses: true, memory: Memory::Kept }
}

fn with_replicas(mut told: Value) -> Value {
    told["waitReplicas"] = json!(1);
    told
}

/// With a time that is soon over: whoever is refused meanwhile is counted.
fn hasty(mut told: Value) -> Value {
    told["timeout"] = json!("300ms");
    told
}

async fn everywhere(told: Value) -> Drill {
    let told = hasty(told);
    Drill::start([told.clone(), told.clone(), told], |_| {}).await
}

/// Two of the three edges are behind links.
async fn behind_links(redis: &Server) -> (Drill, [Relay; 2]) {
    let links = [Relay::to(redis.port).await, Relay::to(redis.port).await];
    let [one, two] = links.each_ref().map(|link| hasty(standalone(link.port)));
    (Drill::start([hasty(standalone(redis.port)), one, two], |_| {}).await, links)
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_parted_and_slow() {
    if there_is_none() {
        return;
    }
    let redis = Server::start(&[]).await;
    let (drill, links) = behind_links(&redis).await;
    let paused = async {
        redis.signal("STOP");
        drill.goes_on().await;
        redis.signal("CONT");
    };
    drill.under(kept("paused (SIGSTOP)"), paused).await;
    for (name, way) in
        [("partitioned", Way::Cut), ("slower than its timeout", Way::Slow(Duration::from_secs(1)))]
    {
        let parted = async {
            links.iter().for_each(|link| link.is(way));
            drill.goes_on().await;
            links.iter().for_each(|link| link.is(Way::Open));
        };
        drill.under(kept(name), parted).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_forgetful_and_wiped() {
    if there_is_none() {
        return;
    }
    let mut redis = Server::start(&["appendonly yes", "appendfsync always"]).await;
    // One fault is to refuse nobody, not even on a busy machine.
    let told = standalone(redis.port);
    let drill = Drill::start([told.clone(), told.clone(), told], |_| {}).await;
    let killed = async {
        redis.kill();
        drill.goes_on().await;
        redis.again().await;
    };
    drill.under(kept("killed, started anew from its file"), killed).await;
    let flushed = async {
        for _ in 0..20 {
            assert_eq!(redis.cli(&["SCRIPT", "FLUSH"]), "OK\n");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drill.goes_on().await;
    };
    let fault = Fault { refuses: false, ..kept("SCRIPT FLUSH, twenty times") };
    drill.under(fault, flushed).await;
    let wiped = async {
        assert_eq!(redis.cli(&["FLUSHALL"]), "OK\n");
        drill.goes_on().await;
    };
    drill.under(Fault { memory: Memory::Lost, ..kept("FLUSHALL") }, wiped).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strange_and_out_of_date() {
    if there_is_none() {
        return;
    }
    let (tls, port) = (Tls::new(), free_port());
    let mut settings = tls.settings(port, "server");
    // The server's own, by which `redis-cli` looks, needs no password.
    settings.push("user edge on >first-password ~* &* +@all".to_owned());
    let cli = tls.cli();
    let cli: Vec<_> = cli.iter().map(String::as_str).collect();
    let redis = Server::start_at(port, &cli, settings.iter().map(String::as_str)).await;
    let mut told = standalone(port);
    (told["user"], told["passwordFile"]) = (json!("edge"), json!(tls.file("password")));
    told["tls"] = tls.told();
    let write = |password: &str| {
        own_file(std::path::Path::new(&tls.file("password")), format!("{password}\n").as_bytes());
    };
    write("first-password");
    let drill = everywhere(told).await;
    let end_all = || redis.cli(&["CLIENT", "KILL", "USER", "edge"]);
    let changed = async {
        redis.cli(&["ACL", "SETUSER", "edge", "resetpass", ">second-password"]);
        end_all();
        drill.goes_on().await;
        write("second-password");
    };
    drill.under(kept("wrong password"), changed).await;
    let expired = async {
        for certificate in ["expired", "server"] {
            let files = ["tls-cert-file", "tls-key-file"];
            let [cert, key] = ["pem", "key"].map(|it| tls.file(&format!("{certificate}.{it}")));
            let said = redis.cli(&["CONFIG", "SET", files[0], &cert, files[1], &key]);
            assert_eq!(said, "OK\n");
            end_all();
            drill.goes_on().await;
        }
    };
    drill.under(kept("TLS certificate expired"), expired).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_on_the_disk() {
    if there_is_none() {
        return;
    }
    let Some(disk) = Disk::mount(8) else { return };
    let port = free_port();
    let settings = [
        format!("port {port}"),
        "appendonly yes".to_owned(),
        "appendfsync everysec".to_owned(),
        "stop-writes-on-bgsave-error yes".to_owned(),
    ];
    let settings = settings.iter().map(String::as_str);
    let mut redis = Server::start_on(&disk, port, &[], settings).await;
    let drill = everywhere(standalone(port)).await;
    let full = async {
        disk.fill();
        redis.says(&["SET", "full", "yes"], "MISCONF").await;
        drill.goes_on().await;
        disk.clear();
    };
    drill.under(kept("disk full, append-only file each second"), full).await;
    let set =
        |name: &str, value: &str| assert_eq!(redis.cli(&["CONFIG", "SET", name, value]), "OK\n");
    set("appendonly", "no");
    set("save", "1 1");
    let full = async {
        disk.fill();
        redis.says(&["SET", "full", "yes"], "MISCONF").await;
        drill.goes_on().await;
        disk.clear();
    };
    drill.under(kept("disk full, snapshots"), full).await;
    set("save", "");
    set("appendfsync", "always");
    set("appendonly", "yes");
    for done in ["aof_rewrite_scheduled:0", "aof_rewrite_in_progress:0"] {
        redis.says(&["INFO", "persistence"], done).await;
    }
    let full = async {
        disk.fill();
        // It cannot take back what it has done, and so it ends.
        redis.ended().await;
        drill.goes_on().await;
        disk.clear();
        redis.again().await;
    };
    drill.under(kept("disk full, append-only file always"), full).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_fail_over_with_a_replica_that_was_waited_for() {
    if there_is_none() {
        return;
    }
    let mut redis = Watched::start(2, &[]).await;
    let drill = everywhere(with_replicas(redis.told())).await;
    let lost = async {
        redis.master.kill();
        drill.goes_on().await;
        redis.promoted().await;
    };
    drill.under(kept("Sentinel: master killed"), lost).await;
}

/// The old master is back before the sentinels have told its replicas, and an edge may be sent to it: what
/// it is told then is acknowledged only where one replica is enough.
#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_is_back_in_the_middle_of_a_failover_has_too_few_replicas() {
    if there_is_none() {
        return;
    }
    let redis = Watched::start(2, &[]).await;
    let mut told = redis.told();
    told["waitReplicas"] = json!(2);
    let drill = everywhere(told).await;
    let stopped = async {
        redis.master.signal("STOP");
        drill.goes_on().await;
        let master = redis.replicas[redis.promoted().await].port.to_string();
        redis.master.signal("CONT");
        drill.goes_on().await;
        // Sentinels would do so, after ten seconds.
        assert_eq!(redis.master.cli(&["REPLICAOF", "127.0.0.1", &master]), "OK\n");
    };
    drill.under(kept("Sentinel: master paused and back"), stopped).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_comes_back_empty_empties_its_replicas() {
    if there_is_none() {
        return;
    }
    let mut redis = Watched::start(1, &[]).await;
    redis.does_not_fail_over();
    let drill = everywhere(with_replicas(redis.told())).await;
    let empty = async {
        redis.master.kill();
        redis.master.again().await;
        drill.goes_on().await;
    };
    let fault = Fault { memory: Memory::Lost, ..kept("Sentinel: master back with nothing") };
    drill.under(fault, empty).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_promoted_by_hand() {
    if there_is_none() {
        return;
    }
    let mut master = Server::start(&[]).await;
    let replicas =
        [Server::following(master.port, &[]).await, Server::following(master.port, &[]).await];
    let nodes = [master.address(), replicas[0].address(), replicas[1].address()];
    let told = json!({"nodes": nodes, "waitReplicas": 1});
    let drill = everywhere(told).await;
    let promoted = async {
        master.kill();
        let has = |place: usize| {
            replicas[place].info("slave_repl_offset").parse::<u64>().expect("a number")
        };
        let (first, second) = if has(0) >= has(1) { (0, 1) } else { (1, 0) };
        replicas[first].cli(&["REPLICAOF", "NO", "ONE"]);
        // Nobody has a copy of what this one is told.
        drill.goes_on().await;
        replicas[second].cli(&["REPLICAOF", "127.0.0.1", &replicas[first].port.to_string()]);
    };
    drill.under(kept("replica promoted by hand"), promoted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_has_not_heard_is_promoted() {
    if there_is_none() {
        return;
    }
    let (mut master, link, replica) = pair(&[]).await;
    let nodes = [master.address(), replica.address()];
    let drill = everywhere(json!({"nodes": nodes})).await;
    drill.enrolled().await;
    while master.info("master_repl_offset") != replica.info("slave_repl_offset") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    link.is(Way::Cut);
    let promoted = async {
        master.kill();
        drill.goes_on().await;
        replica.cli(&["REPLICAOF", "NO", "ONE"]);
    };
    let fault = Fault { memory: Memory::Older, ..kept("replica promoted that had not heard") };
    drill.suffers(fault, promoted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_loses_masters() {
    if there_is_none() {
        return;
    }
    let mut redis = Cluster::start().await;
    let drill = everywhere(with_replicas(redis.told())).await;
    let lost = async {
        let master = redis.master_of(NODES);
        let replica = redis.replica_of(master);
        redis.servers[master].kill();
        redis.servers[replica].says(&["INFO", "replication"], "role:master").await;
        drill.goes_on().await;
        // Its place is taken. As a replica it is what the new master waits for.
        redis.servers[master].again().await;
        redis.is_whole().await;
    };
    drill.under(kept("Cluster: master killed"), lost).await;
    let both = async {
        let master = redis.master_of(NODES);
        let replica = redis.replica_of(master);
        redis.servers[replica].kill();
        redis.servers[master].kill();
        drill.goes_on().await;
        redis.servers[master].again().await;
        redis.servers[replica].again().await;
        redis.is_whole().await;
    };
    let fault = Fault { memory: Memory::Parts, ..kept("Cluster: a master and its replica lost") };
    drill.under(fault, both).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_resharded() {
    if there_is_none() {
        return;
    }
    let redis = Cluster::start().await;
    let drill = everywhere(with_replicas(redis.told())).await;
    let moved = async {
        let from = redis.master_of(NODES);
        let to = redis.another_master(from);
        // One key after another, while they are asked for.
        redis.opens(SLOT, from, to);
        drill.goes_on().await;
        redis.moves_some(SLOT, from, to, 2);
        drill.goes_on().await;
        while redis.moves_some(SLOT, from, to, 100) {}
        drill.goes_on().await;
        redis.closes(SLOT, from, to);
        drill.goes_on().await;
        // As an operator does it, back and forth.
        for (from, to) in [(to, from), (from, to)] {
            redis.agrees().await;
            tokio::task::block_in_place(|| redis.reshards(from, to, 200));
        }
    };
    drill.under(kept("Cluster: slots moved"), moved).await;
    ready_is(drill.site.world.admin, true).await;
}
