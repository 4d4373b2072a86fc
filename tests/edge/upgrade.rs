//! One process takes another's place while it serves: no request is lost, no proof is good at both,
//! and whatever goes wrong leaves one of the two serving.

use std::os::unix::net::UnixListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use h2::Reason;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::support::Table;
use super::support::authority::{Form, Site, TOKEN, form, grant};
use super::support::client::{Client, Connection, H2, Message, Request, patiently};
use super::support::keys::Key;
use super::support::process::{Process, write_config};
use super::support::proof::Proof;
use super::support::sharing::key_file;
use super::support::world::{Expect, World, expect_eq, get};

use Expect::{Admitted, Public, Refused};

/// Requests of the long run, at least.
const REQUESTS: usize = 10_000;
const RELOADS: usize = 20;
const UPGRADES: usize = 5;
/// What one answer may take on a busy machine.
const STEP: Duration = Duration::from_millis(20);

const HANDED_OVER: &str = "sockets handed over: draining";
pub(crate) const NOT_HANDED_OVER: &str = "sockets not handed over: this process goes on";
const TAKEN_OVER: &str = "sockets taken over";

fn said(process: &Process, message: &str) -> usize {
    process.records(|record| record["message"] == message).len()
}

pub(crate) async fn says(process: &Process, message: &str, times: usize) {
    for _ in 0..3000 {
        if said(process, message) >= times {
            return;
        }
        tokio::time::sleep(STEP).await;
    }
    panic!("it did not say {message:?} {times} times:\n{}", process.output());
}

impl World {
    /// Has the process that serves started once more by itself, and gives the one before.
    pub(crate) async fn upgrade(&mut self) -> Process {
        let before = said(&self.process, HANDED_OVER);
        self.process.signal("QUIT");
        says(&self.process, HANDED_OVER, before + 1).await;
        let handed = self.process.records(|record| record["message"] == HANDED_OVER);
        let pid = handed.last().and_then(|record| record["to"].as_str()).expect("a process");
        let next = self.process.started_by(pid.parse().expect("an id"));
        // A service manager sees the end of its own children alone, and waits for no other.
        assert_ne!(next.parent(), self.process.pid(), "the process before is its parent");
        std::mem::replace(&mut self.process, next)
    }

    /// The same by a process that was started beside it.
    async fn upgrade_to(&mut self, next: Process) -> Process {
        says(&next, "prepared, and waiting for sockets: SIGQUIT to who serves", 1).await;
        self.process.signal("QUIT");
        says(&next, TAKEN_OVER, 1).await;
        says(&self.process, HANDED_OVER, 1).await;
        std::mem::replace(&mut self.process, next)
    }
}

fn drain(config: &mut Value, time: &str) {
    config["edge"]["drainTimeout"] = json!(time);
}

/// What became of the requests of all clients.
#[derive(Default)]
struct Score {
    sent: AtomicUsize,
    succeeded: AtomicUsize,
    /// Sent once more with the nonce that was asked for.
    challenged: AtomicUsize,
    /// Sent once more because the server had said by GOAWAY that it did not touch them.
    untouched: AtomicUsize,
    failed: std::sync::Mutex<Vec<String>>,
    done: AtomicBool,
}

/// A client that sends proofs and keeps its connection.
struct Steady {
    client: Client,
    key: Key,
    token: String,
    nonce: Option<String>,
}

/// How one attempt went.
enum Sent {
    Answered(Message),
    /// The server has not touched it and says so, or it was never sent.
    Again,
    Lost(String),
}

impl Steady {
    fn request(&self) -> Request {
        let url = "https://api.example/orders/1";
        let mut proof = Proof::new(&self.key, "GET", url).token(&self.token);
        if let Some(nonce) = &self.nonce {
            proof = proof.nonce(nonce);
        }
        get("/orders/1", &self.token, &proof.sign())
    }

    /// One request by HTTP/1.1. `connection` is what is left of it: a server closes after saying so.
    async fn http1(&self, connection: &mut Option<Connection>) -> Sent {
        if connection.is_none() {
            match self.client.connect(None).await {
                Ok(made) => *connection = Some(made),
                Err(error) => return Sent::Lost(format!("no connection: {error}")),
            }
        }
        let open = connection.as_mut().expect("a connection");
        match open.send(&self.request().bytes()).await {
            Ok(answer) => {
                if answer.all("connection").iter().any(|it| it.eq_ignore_ascii_case("close")) {
                    *connection = None;
                }
                Sent::Answered(answer)
            }
            Err(error) => {
                *connection = None;
                Sent::Lost(format!("HTTP/1.1: {error}"))
            }
        }
    }

    async fn http2(&self, connection: &mut Option<H2>) -> Sent {
        if connection.is_none() {
            match self.client.connect_h2(None).await {
                Ok(made) => *connection = Some(made),
                Err(error) => return Sent::Lost(format!("no connection: {error}")),
            }
        }
        let open = connection.clone().expect("a connection");
        // Nothing was sent on a connection that is going away.
        let Ok((answer, _)) = open.open(&self.request(), true).await else {
            *connection = None;
            return Sent::Again;
        };
        match whole(answer).await {
            Ok(answer) => Sent::Answered(answer),
            // RFC 9113 section 6.8: a stream past the last that the server names was not processed.
            Err(error) if error.is_go_away() && error.reason() == Some(Reason::NO_ERROR) => {
                *connection = None;
                Sent::Again
            }
            Err(error) => {
                *connection = None;
                Sent::Lost(format!("HTTP/2: {error}"))
            }
        }
    }
}

async fn whole(answer: h2::client::ResponseFuture) -> Result<Message, h2::Error> {
    let (head, mut stream) = answer.await?.into_parts();
    let mut body = Vec::new();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk?;
        let _ = stream.flow_control().release_capacity(chunk.len());
        body.extend_from_slice(&chunk);
    }
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let fields = head.headers.iter().map(|(name, value)| (name.to_string(), text(value)));
    let start = format!("HTTP/2 {}", head.status.as_u16());
    Ok(Message { start, fields: fields.collect(), body })
}

/// Sends until all is done, one request after another.
async fn steadily(mut steady: Steady, h2: bool, score: Arc<Score>) {
    let (mut one, mut two) = (None, None);
    while !score.done.load(Ordering::SeqCst) {
        score.sent.fetch_add(1, Ordering::SeqCst);
        let mut challenged = false;
        loop {
            let sent = if h2 { steady.http2(&mut two).await } else { steady.http1(&mut one).await };
            let answer = match sent {
                Sent::Answered(answer) => answer,
                Sent::Again => {
                    score.untouched.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                Sent::Lost(error) => {
                    score.failed.lock().expect("whole").push(error);
                    break;
                }
            };
            if let Some(nonce) = answer.one("dpop-nonce") {
                steady.nonce = Some(nonce.to_owned());
            }
            let asked = answer.all("www-authenticate").join(" ").contains("use_dpop_nonce");
            if answer.status() == 401 && asked && !challenged {
                // As after a restart: another process, another nonce.
                challenged = true;
                score.challenged.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            let admitted =
                answer.status() == 200 && answer.seen().all("x-holdfast-result") == ["dpop"];
            if admitted {
                score.succeeded.fetch_add(1, Ordering::SeqCst);
            } else {
                let text = String::from_utf8_lossy(&answer.body).into_owned();
                score.failed.lock().expect("whole").push(format!("{} {text}", answer.start));
            }
            break;
        }
        // A second client has its turn.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A configuration that differs from the one before, every fourth time one that is no good.
async fn reload(world: &mut World, index: usize) {
    let good = world.config.clone();
    if index % 4 == 3 {
        world.config["edge"]["lsteners"] = json!(1);
        assert!(!world.reload().await, "a bad file was taken");
        world.config = good;
        write_config(world.directory.path(), &world.config);
        return;
    }
    world.config["routes"][1]["path"] = json!(format!("/public-{index}/*"));
    assert!(world.reload().await, "{}", world.process.output());
}

/// The whole of it: requests over HTTP/1.1 and HTTP/2 with proofs, while configurations are reloaded and
/// processes take each other's place.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_over_reloads_and_upgrades() {
    let mut world = World::start_with(|config| drain(config, "20s")).await;
    let score = Arc::new(Score::default());
    let mut clients = Vec::new();
    for index in 0..12 {
        let (client, key) = (world.client.clone(), Key::new("ES256"));
        let token = world.token().jkt(&key.jkt()).sign();
        let steady = Steady { client, key, token, nonce: None };
        clients.push(tokio::spawn(steadily(steady, index % 3 == 0, Arc::clone(&score))));
    }
    let steps = RELOADS + UPGRADES;
    let mut before = Vec::new();
    let (mut reloads, mut upgrades) = (0, 0);
    for step in 1..=steps {
        while score.sent.load(Ordering::SeqCst) < step * REQUESTS / (steps + 1) {
            tokio::time::sleep(STEP).await;
        }
        if step % (steps / UPGRADES) == 0 {
            upgrades += 1;
            let old = if upgrades % 2 == 0 {
                world.upgrade().await
            } else {
                let next = Process::upgrade(world.directory.path());
                world.upgrade_to(next).await
            };
            before.push(old);
            // Nobody of the admin listener's is answered by a process that has gone, or by none.
            for _ in 0..5 {
                assert_eq!(world.admin("/healthz").await.status(), 200);
            }
        } else {
            reload(&mut world, reloads).await;
            reloads += 1;
        }
    }
    while score.sent.load(Ordering::SeqCst) < REQUESTS {
        tokio::time::sleep(STEP).await;
    }
    score.done.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.expect("a client");
    }
    let count = |it: &AtomicUsize| it.load(Ordering::SeqCst);
    let failed = score.failed.lock().expect("whole").clone();
    println!(
        "{} requests over {reloads} reloads and {upgrades} upgrades: {} succeeded, {} failed \
         ({} sent again with a new nonce, {} not touched and said so by GOAWAY)",
        count(&score.sent),
        count(&score.succeeded),
        failed.len(),
        count(&score.challenged),
        count(&score.untouched),
    );
    assert_eq!((reloads, upgrades), (RELOADS, UPGRADES));
    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!(count(&score.sent), count(&score.succeeded));
    for old in &mut before {
        assert!(old.ended().await.is_some(), "a process before did not end:\n{}", old.output());
    }
}

/// Neither with nonces, which each process has for itself, nor without, where the line that is drawn parts
/// them.
#[tokio::test(flavor = "multi_thread")]
async fn a_proof_that_one_admitted_is_not_admitted_by_the_next() {
    let mut table = Table::default();
    let mut world = World::start_with(|config| drain(config, "60s")).await;
    let token = world.bound();
    let nonce = world.nonce().await;
    let sign = |world: &World| world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
    let (used, unused) = (sign(&world), sign(&world));
    let mut kept = world.client.connect(None).await.expect("a connection");
    let request = get("/orders/1", &token, &used);
    let answer = kept.send(&request.bytes()).await;
    table.row("ok/before", world.judge(answer, Admitted("dpop")).await);
    let _old = world.upgrade().await;
    for (name, proof) in [("fail/used", &used), ("fail/of the nonce before", &unused)] {
        let answer = world.send(&get("/orders/1", &token, proof)).await;
        table.row(name, world.judge(answer, Refused("nonce_unknown")).await);
    }
    // The one before still answers on what it has, for the last time.
    let answer = kept.send(&get("/orders/1", &token, &unused).bytes()).await;
    let close = answer.as_ref().ok().and_then(|answer| answer.one("connection")) == Some("close");
    table.row("close", expect_eq("said", &close, &true));
    table.row("ok/on what is kept", world.judge(answer, Admitted("dpop")).await);
    let nonce = world.nonce().await;
    let fresh = world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
    let answer = world.send(&get("/orders/1", &token, &fresh)).await;
    table.row("ok/its own nonce", world.judge(answer, Admitted("dpop")).await);
}

/// Whoever is asked for a nonce by the one before comes again at the next with that very nonce: nobody is
/// asked twice.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_asked_for_a_nonce_by_the_one_before_has_the_next_one_s() {
    for keys in ["of each process", "in a file"] {
        let mut table = Table::default();
        let mut world = World::start_in(|directory, _, config| {
            if keys == "in a file" {
                key_file(directory);
                config["security"]["senderConstraints"]["dpop"]["nonce"]["keyFiles"] =
                    json!(["nonce.key"]);
            }
            drain(config, "60s");
        })
        .await;
        let token = world.bound();
        let before = world.nonce().await;
        let proof = |world: &World, nonce: &str| {
            world.proof("GET", "/orders/1").token(&token).nonce(nonce).sign()
        };
        let mut kept = Vec::new();
        for _ in 0..3 {
            let mut connection = world.client.connect(None).await.expect("a connection");
            let answer = connection.send(&Request::new("GET", "/public/1").bytes()).await;
            table.row("ok/before", world.judge(answer, Public).await);
            kept.push(connection);
        }
        let _old = world.upgrade().await;
        let of_the_next = world.nonce().await;
        let bare = get("/orders/1", &token, &world.proof("GET", "/orders/1").token(&token).sign());
        let of_next = get("/orders/1", &token, &proof(&world, &of_the_next));
        for (name, request) in [("no nonce", &bare), ("the next one's", &of_next)] {
            let mut connection = kept.pop().expect("a connection");
            let answer = connection.send(&request.bytes()).await.expect("an answer");
            let challenge = answer.all("www-authenticate").join(", ");
            let asked = (answer.status(), challenge.contains("use_dpop_nonce"));
            table.row(&format!("fail/{name}"), expect_eq("asked", &asked, &(401, true)));
            let nonce = answer.one("dpop-nonce").expect("a nonce").to_owned();
            let again = world.send(&get("/orders/1", &token, &proof(&world, &nonce))).await;
            table.row(&format!("ok/{name}, again"), world.judge(again, Admitted("dpop")).await);
        }
        // Its own it takes as ever, once.
        let own = proof(&world, &before);
        let mut connection = kept.pop().expect("a connection");
        let answer = connection.send(&get("/orders/1", &token, &own).bytes()).await;
        table.row("ok/its own", world.judge(answer, Admitted("dpop")).await);
        let again = world.send(&get("/orders/1", &token, &own)).await;
        table.row("fail/again", world.judge(again, Refused("nonce_unknown")).await);
    }
}

/// The same where a request was under way already, and its answer is decided late: the connection is of no
/// use for the nonce that it brings.
#[tokio::test(flavor = "multi_thread")]
async fn a_form_that_comes_late_is_sent_for_the_next_ones_nonce_on_another_connection() {
    let mut site = Site::retrofit(Form::Opaque, |config| drain(config, "20s")).await;
    let mut kept = site.world.client.connect(None).await.expect("a connection");
    let key = Key::new("ES256");
    let asking = |nonce: Option<&str>| {
        let proof = Proof::new(&key, "POST", "https://api.example/token");
        let proof = nonce.map_or_else(|| proof.clone(), |nonce| proof.clone().nonce(nonce)).sign();
        form(TOKEN, &grant("client_credentials")).field("DPoP", proof).bytes()
    };
    let request = asking(None);
    let (begun, rest) = request.split_at(request.len() - 5);
    kept.write(begun).await.expect("most of it");
    // It is at the edge before the end, which reads as far as it can.
    tokio::time::sleep(STEP * 10).await;
    let _old = site.world.upgrade().await;
    kept.write(rest).await.expect("the rest");
    let answer = kept.answer(false).await.expect("an answer");
    assert_eq!(answer.json()["error"], "use_dpop_nonce", "{}", answer.start);
    assert_eq!(answer.one("connection"), Some("close"));
    let nonce = answer.one("dpop-nonce").expect("a nonce");
    let again = site.world.client.send_bytes(None, &asking(Some(nonce))).await;
    assert_eq!(again.expect("an answer").status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_nonces_a_line_parts_the_proofs() {
    let mut table = Table::default();
    let mut world = World::start_with(|config| {
        config["security"]["senderConstraints"]["dpop"]["nonce"]["enabled"] = json!(false);
        drain(config, "60s");
    })
    .await;
    let token = world.bound();
    let sign = |world: &World, ahead: i64| {
        let issued = super::support::now() + ahead;
        world.proof("GET", "/orders/1").token(&token).claim("iat", issued).sign()
    };
    let mut kept = world.client.connect(None).await.expect("a connection");
    let mut also = world.client.connect(None).await.expect("a connection");
    // Dated ahead: later than the moment at which the next process takes over.
    let ahead = get("/orders/1", &token, &sign(&world, 8));
    let answer = kept.send(&ahead.bytes()).await;
    table.row("ok/before", world.judge(answer, Admitted("dpop")).await);
    let answer = also.send(&get("/orders/1", &token, &sign(&world, 1)).bytes()).await;
    table.row("ok/before", world.judge(answer, Admitted("dpop")).await);
    let _old = world.upgrade().await;
    let answer = world.send(&ahead).await;
    table.row("fail/used before", world.judge(answer, Refused("proof_before_start")).await);
    // What is dated past the line is the next one's, whoever is shown it first.
    let late = get("/orders/1", &token, &sign(&world, 20));
    let answer = kept.send(&late.bytes()).await;
    let status = answer.as_ref().map(Message::status);
    table.row("fail/at the one before", expect_eq("status", &status, &Ok(401)));
    let answer = world.send(&late).await;
    table.row("ok/at the next", world.judge(answer, Admitted("dpop")).await);
    let answer = also.send(&late.bytes()).await;
    table.row("fail/and back", expect_eq("status", &answer.map(|it| it.status()), &Ok(401)));
    let after = |record: &Value| record["reason"] == "proof_after_handover";
    for _ in 0..1500 {
        if world.process.records(after).len() >= 2 {
            break;
        }
        tokio::time::sleep(STEP).await;
    }
    let count = world.process.records(after).len();
    table.row("reason", expect_eq("records", &count, &2));
}

/// Whatever keeps the next one from starting, the one that serves goes on, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_cannot_start_changes_nothing() {
    let mut world = World::start_with(|config| drain(config, "2s")).await;
    let mut table = Table::default();
    let good = world.config.clone();
    let socket = world.directory.path().join("upgrade.sock");
    let request = Request::new("GET", "/public/1");
    let mut refused = 0;
    for (name, bend) in [
        ("a bad configuration", (|config| config["edge"]["lsteners"] = json!(1)) as fn(&mut Value)),
        ("an address that is taken", |config| {
            let port = config["routes"][1]["taken"].take();
            config["routes"][1].as_object_mut().expect("a route").remove("taken");
            let mut other = config["edge"]["listeners"][0].clone();
            other["name"] = json!("other");
            other["address"] = port;
            config["edge"]["listeners"].as_array_mut().expect("listeners").push(other);
        }),
    ] {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut config = good.clone();
        config["routes"][1]["taken"] = json!(taken.local_addr().expect("one").to_string());
        if name == "a bad configuration" {
            config["routes"][1].as_object_mut().expect("a route").remove("taken");
        }
        bend(&mut config);
        write_config(world.directory.path(), &config);
        world.process.signal("QUIT");
        refused += 1;
        says(&world.process, NOT_HANDED_OVER, refused).await;
        table.row(name, world.judge(world.send(&request).await, Public).await);
    }
    // Somebody's file in the way.
    write_config(world.directory.path(), &good);
    std::fs::write(&socket, "precious").expect("a file");
    let mut next = Process::upgrade(world.directory.path());
    let status = next.ended().await.expect("an end");
    table.row("in the way", expect_eq("ended well", &status.success(), &false));
    world.process.signal("QUIT");
    says(&world.process, NOT_HANDED_OVER, refused + 1).await;
    table.row("in the way", world.judge(world.send(&request).await, Public).await);
    std::fs::remove_file(&socket).expect("the file");

    // One that was left by a process that is gone is not in the way, and SIGQUIT twice is once.
    drop(UnixListener::bind(&socket).expect("a socket"));
    let next = Process::upgrade(world.directory.path());
    says(&next, "prepared, and waiting for sockets: SIGQUIT to who serves", 1).await;
    let mut third = Process::upgrade(world.directory.path());
    let status = third.ended().await.expect("an end");
    table.row("two wait", expect_eq("the second ended well", &status.success(), &false));
    world.process.signal("QUIT");
    world.process.signal("QUIT");
    says(&next, TAKEN_OVER, 1).await;
    let mut old = std::mem::replace(&mut world.process, next);
    table.row("ok/taken over", world.judge(world.send(&request).await, Public).await);
    let status = old.ended().await.expect("an end");
    table.row("the one before", expect_eq("ended well", &status.success(), &true));
    table.row("once", expect_eq("handed over", &said(&old, HANDED_OVER), &1));
    table.row("ok/after", world.judge(world.send(&request).await, Public).await);
    let admin = world.admin("/readyz").await;
    table.row("admin", expect_eq("status", &admin.status(), &200));
    // And the next one again, which has its sockets from a process that was given them.
    let _before = world.upgrade().await;
    table.row("ok/again", world.judge(world.send(&request).await, Public).await);
}

/// One that was given the sockets and is not ready yet ends when it is told to, and not a minute later.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_ready_to_take_over_can_be_ended() {
    let world = World::start().await;
    let mut config = world.config.clone();
    // Nobody answers there.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("an address");
    config["issuers"][0]["jwks"] = json!({"url": format!("http://{address}/jwks")});
    write_config(world.directory.path(), &config);
    let mut next = Process::upgrade(world.directory.path());
    says(&next, "prepared, and waiting for sockets: SIGQUIT to who serves", 1).await;
    world.process.signal("QUIT");
    says(&world.process, "handing sockets over", 1).await;
    says(&next, "JWK set not fetched", 1).await;
    next.signal("TERM");
    let ended = tokio::time::timeout(Duration::from_secs(30), next.ended()).await;
    assert!(ended.is_ok_and(|status| status.is_some()), "{}", next.output());
    says(&world.process, NOT_HANDED_OVER, 1).await;
    let answer = world.send(&Request::new("GET", "/public/1")).await;
    assert_eq!(answer.map(|answer| answer.status()), Ok(200));
}

/// What is there by the program's name is asked to take over, and nothing else: it may be a version of before.
#[tokio::test(flavor = "multi_thread")]
async fn the_version_before_is_asked_no_more_than_it_knows() {
    let mut world = World::start().await;
    world.process.terminate();
    assert!(world.process.ended().await.is_some());
    let directory = world.directory.path();
    let (program, other) = (directory.join("program"), directory.join("other"));
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_holdfast"), &program).expect("a link");
    let file = directory.join("authority.yaml");
    let mut command = Command::new(&program);
    command.args(["run", "--config"]).arg(&file);
    let process = Process::of(command);
    says(&process, "started", 1).await;
    // In its place, as a package does it: one that says what it is told.
    std::os::unix::fs::symlink("/bin/echo", &other).expect("a link");
    std::fs::rename(&other, &program).expect("another program");
    process.signal("QUIT");
    says(&process, NOT_HANDED_OVER, 1).await;
    let asked = format!("run --upgrade --config {}", file.display());
    assert!(process.output().lines().any(|line| line == asked), "{}", process.output());
}

/// How many processes have something of `directory` in their command line.
fn processes_of(directory: &std::path::Path) -> usize {
    let name = directory.to_str().expect("a path");
    let processes = std::fs::read_dir("/proc").expect("processes").flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(name)).count()
}

/// Whoever is told to end, or is killed, leaves nobody behind that was to take its place.
#[tokio::test(flavor = "multi_thread")]
async fn who_ends_takes_the_next_one_along() {
    for signal in ["TERM", "KILL"] {
        let mut world = World::start().await;
        assert_eq!(processes_of(world.directory.path()), 1);
        world.process.signal("QUIT");
        says(&world.process, "another process started, to be handed the sockets", 1).await;
        world.process.signal(signal);
        assert!(world.process.ended().await.is_some(), "{}", world.process.output());
        let mut left = usize::MAX;
        // Less than what the next one would wait for sockets.
        for _ in 0..1000 {
            left = processes_of(world.directory.path());
            if left == 0 {
                break;
            }
            tokio::time::sleep(STEP).await;
        }
        assert_eq!(left, 0, "after SIG{signal}:\n{}", world.process.output());
    }
}

/// A service that sends for ever, or echoes what it gets after `101`.
async fn endless() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket));
        }
    });
    port
}

async fn serve(mut socket: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if socket.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    if Message::parse(&head).one("upgrade").is_some() {
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
                       Upgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n";
        socket.write_all(answer).await?;
        let (mut from, mut to) = socket.split();
        tokio::io::copy(&mut from, &mut to).await?;
        return Ok(());
    }
    socket.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
    loop {
        tokio::time::sleep(STEP).await;
        socket.write_all(b"1\r\nx\r\n").await?;
    }
}

/// They go on at the process before, until its time is over.
#[tokio::test(flavor = "multi_thread")]
async fn streams_and_websockets_outlive_an_upgrade() {
    let port = endless().await;
    let mut world = World::start_with(|config| {
        config["upstreams"]["echo"] = json!({"servers": [format!("127.0.0.1:{port}")]});
        drain(config, "15s");
    })
    .await;
    let mut stream = world.client.connect(None).await.expect("a connection");
    stream.write(&Request::new("GET", "/public/stream").bytes()).await.expect("a request");
    stream.until(b"x\r\n").await.expect("a chunk");
    let mut socket = world.client.connect(None).await.expect("a connection");
    let upgrade = Request::new("GET", "/public/socket")
        .field("Connection", "Upgrade")
        .field("Upgrade", "websocket")
        .field("Sec-WebSocket-Version", "13")
        .field("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
    socket.write(&upgrade.bytes()).await.expect("a request");
    let head = socket.until(b"\r\n\r\n").await.expect("an answer");
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    let h2 = world.client.connect_h2(None).await.expect("a connection");
    let (answer, _sender) =
        h2.open(&Request::new("GET", "/public/stream"), true).await.expect("a stream");
    let mut body = patiently(answer).await.expect("an answer").into_body();

    let mut old = world.upgrade().await;
    for round in 0..20 {
        stream.until(b"x\r\n").await.expect("a chunk");
        let text = format!("round {round}\n");
        socket.write(text.as_bytes()).await.expect("a socket");
        assert_eq!(socket.exactly(text.len()).await.expect("an echo"), text.as_bytes());
        let chunk = body.data().await.expect("a chunk").expect("no reset");
        let _ = body.flow_control().release_capacity(chunk.len());
    }
    assert!(old.ended().await.is_some_and(|status| status.success()), "{}", old.output());
    let cut = said(&old, "connections are cut off: drainTimeout has passed");
    assert_eq!(cut, 1, "{}", old.output());
    assert!(socket.is_closed().await);
}

/// What was sent before a client could know of the end is answered: a connection that was just made, and
/// the next request on one that is kept.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_its_way_when_the_end_comes_is_answered() {
    for _ in 0..10 {
        if the_end_comes().await {
            return;
        }
    }
    panic!("ten times it took longer to send than the edge waits");
}

/// Whether it was sent in time: who is silent is closed after a second, as is right.
async fn the_end_comes() -> bool {
    let mut world = World::start().await;
    let request = Request::new("GET", "/public/1");
    let mut kept = world.client.connect(None).await.expect("a connection");
    let before = kept.send(&request.bytes()).await;
    // A connection that says nothing yet, accepted before the end.
    let address = ("127.0.0.1", world.client.port);
    let mut silent = TcpStream::connect(address).await.expect("a connection");
    let open = world.metric_once("holdfast_connections", &["listener=\"main\""], 2.0).await;
    let start = Instant::now();
    world.process.terminate();
    says(&world.process, "draining", 1).await;
    tokio::time::sleep(STEP * 5).await;
    let answer = kept.send(&request.bytes()).await;
    // Not a TLS handshake: answered by an alert, where a connection that was given up is closed.
    let _ = silent.write_all(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00").await;
    if start.elapsed() > Duration::from_millis(900) {
        return false;
    }
    let mut table = Table::default();
    table.row("ok/before", world.judge(before, Public).await);
    table.row("open", expect_eq("connections", &open, &2.0));
    let close = answer.as_ref().ok().and_then(|answer| answer.one("connection")) == Some("close");
    table.row("kept", expect_eq("close", &close, &true));
    table.row("ok/kept", world.judge(answer, Public).await);
    let mut alert = [0; 1];
    let read = patiently(silent.read(&mut alert)).await;
    table.row("silent", expect_eq("alert", &(read, alert), &(Ok(1), [0x15])));
    let status = world.process.ended().await;
    table.row("ended", expect_eq("well", &status.is_some_and(|status| status.success()), &true));
    true
}

/// The program under a service manager's eyes, and with its sockets.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_manager_is_told_who_serves() {
    let mut world = World::start_with(|config| drain(config, "2s")).await;
    world.process.terminate();
    assert!(world.process.ended().await.is_some());
    let path = world.directory.path().join("notify.sock");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    command.args(["run", "--config"]).arg(world.directory.path().join("authority.yaml"));
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "2000000");
    world.process = Process::of(command);
    let mut messages = Vec::new();
    let mut until = |wanted: &str| loop {
        let mut buffer = [0; 4096];
        let read = manager.recv(&mut buffer).expect("a message");
        let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
        messages.push(text.clone());
        if text.lines().any(|line| line.starts_with(wanted)) {
            return text;
        }
    };
    let ready = until("READY=1");
    assert!(ready.contains("STATUS=serving"), "{ready}");
    until("WATCHDOG=1");
    assert!(world.told_to_reload().await);
    let reloading = until("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    until("READY=1");
    world.config["edge"]["lsteners"] = json!(1);
    assert!(!world.reload().await);
    until("RELOADING=1");
    let ready = until("READY=1");
    assert!(ready.contains("was not reloaded"), "{ready}");
    world.config["edge"].as_object_mut().expect("edge").remove("lsteners");
    write_config(world.directory.path(), &world.config);
    let mut old = world.upgrade().await;
    let main = until("MAINPID=");
    assert!(main.contains(&format!("MAINPID={}\n", world.process.pid())), "{main}");
    // Of the next one: nothing of it came before it was the main process.
    until("READY=1");
    until("WATCHDOG=1");
    assert!(old.ended().await.is_some());
    world.process.terminate();
    until("STOPPING=1");
    assert!(world.process.ended().await.is_some());
    let stopping = messages.iter().filter(|text| text.contains("STOPPING=1")).count();
    assert_eq!(stopping, 1, "the one before said so too: {messages:?}");
}
