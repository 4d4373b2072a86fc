//! Load at three edges that share a Redis, and what must hold of every answer, whatever becomes of it.
//!
//! Each proof is shown five times at once, and again later. Tokens are issued, used and revoked, nodes ask
//! for capsules. What an edge has acknowledged is remembered here, and each answer is held against that.

use std::fmt::Write as _;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};

use super::authority::{Form, Site, TOKEN, form, grant, issued};
use super::client::{Client, H2, Message, Outcome, Request};
use super::node::{Node, told, with_capsules};
use super::proof::Proof;
use super::sharing::{Edge, key_file, share};
use super::token::{ALGORITHMS, AUDIENCE};
use super::world::get;

/// Whose tokens bind themselves, so that proofs need no record.
const NATIVE: &str = "https://native.example";
/// Edges.
const EDGES: usize = 3;
/// Of what is remembered so much is looked at again in the end.
const LOOKED_AT: usize = 40;

/// What is left, after a fault, of what was acknowledged before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// All of it.
    Kept,
    /// Nothing of it.
    Lost,
    /// Nothing of the nodes, and some of the tokens.
    Parts,
    /// What was there before [`Drill::enrolled`].
    Older,
}

/// What becomes of Redis.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    /// Whether somebody must have been refused because of it (503), or nobody.
    pub(crate) refuses: bool,
    pub(crate) memory: Memory,
}

/// A proof, and how often it was admitted.
struct Shown {
    request: Request,
    taken: AtomicUsize,
}

/// How a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    Active,
    /// A command is at work on it.
    Changing,
    /// It must be refused with this word.
    Refused(&'static str),
}

#[derive(Clone)]
struct Enrolled {
    node: Node,
    stands: Stands,
}

/// Requests and what became of them.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    sent: usize,
    admitted: usize,
    refused: usize,
    /// 503, which are among the refused.
    unavailable: usize,
}

struct State {
    memory: Memory,
    count: Count,
    wrong: Vec<String>,
    nonce: String,
    proofs: Vec<Arc<Shown>>,
    /// Tokens that were issued.
    good: Vec<String>,
    /// Tokens that were issued before something was lost.
    lost: Vec<String>,
    revoked: Vec<String>,
    nodes: Vec<Enrolled>,
}

/// Three edges, and what they have said.
pub(crate) struct Drill {
    pub(crate) site: Site,
    others: [Edge; EDGES - 1],
    /// Proofs that are shown before, during and after each fault, at least.
    rounds: usize,
    round: AtomicUsize,
    state: Mutex<State>,
}

impl Drill {
    /// `redis` is `store.redis` of each edge. `HOLDFAST_ROUNDS` says how many proofs are shown in each part
    /// of each fault; default 25.
    pub(crate) async fn start(
        redis: [Value; EDGES],
        change: impl FnOnce(&std::path::Path),
    ) -> Self {
        let rounds = std::env::var("HOLDFAST_ROUNDS");
        let rounds = rounds.map_or(25, |it| it.parse().expect("a number"));
        let [first, second, third] = redis;
        let site = Site::retrofit_in(Form::Opaque, |directory, _, config| {
            with_capsules(directory, config);
            key_file(directory);
            change(directory);
            config["edge"]["limits"]["tokenProofsPerMinute"] = json!(100_000);
            let native = json!({"issuer": NATIVE, "audiences": [AUDIENCE],
                                "jwks": {"file": "jwks.json"}, "algorithms": ALGORITHMS});
            config["issuers"].as_array_mut().expect("a list").push(native);
            share(config, first);
        });
        let site = site.await;
        let beside = |redis| Edge::beside_with(&site.world, |it| it["store"]["redis"] = redis);
        let others = [beside(second).await, beside(third).await];
        let state = State {
            memory: Memory::Kept,
            count: Count::default(),
            wrong: Vec::new(),
            nonce: "none".to_owned(),
            proofs: Vec::new(),
            good: Vec::new(),
            lost: Vec::new(),
            revoked: Vec::new(),
            nodes: Vec::new(),
        };
        let drill =
            Self { site, others, rounds, round: AtomicUsize::new(0), state: Mutex::new(state) };
        drill.enrol("served", Stands::Active);
        println!("| Fault | Sent | Admitted | Refused | of these 503 | Wrong |");
        drill
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a whole state")
    }

    fn client(&self, at: usize) -> &Client {
        match at % EDGES {
            0 => &self.site.world.client,
            at => &self.others[at - 1].client,
        }
    }

    /// Has a fault come under load: `work` brings it about, and undoes it where it does not end by itself.
    pub(crate) async fn under(&self, fault: Fault, work: impl Future<Output = ()>) {
        self.enrolled().await;
        self.suffers(fault, work).await;
    }

    /// Enrols the nodes that the next fault is about.
    pub(crate) async fn enrolled(&self) {
        for id in ["revoked", "quarantined"] {
            let count = self.state().nodes.len();
            self.enrol(&format!("{id}-{count}"), Stands::Active);
        }
        {
            let mut state = self.state();
            (state.count, state.memory) = (Count::default(), Memory::Kept);
        }
        self.recovered(Memory::Kept).await;
    }

    /// The fault, after [`Drill::enrolled`].
    pub(crate) async fn suffers(&self, fault: Fault, work: impl Future<Output = ()>) {
        let mut parts = vec![self.state().count];
        self.load(self.goes_on()).await;
        parts.push(self.state().count);
        self.take_away();
        {
            let mut state = self.state();
            state.memory = fault.memory;
            if fault.memory != Memory::Kept {
                state.lost = std::mem::take(&mut state.good);
            }
        }
        self.load(work).await;
        self.recovered(fault.memory).await;
        parts.push(self.state().count);
        if fault.memory != Memory::Kept {
            // What was issued meanwhile may be lost or not.
            self.state().good.clear();
        }
        self.load(self.goes_on()).await;
        self.look_again().await;
        parts.push(self.state().count);
        self.report(fault, &parts);
    }

    fn report(&self, fault: Fault, parts: &[Count]) {
        let state = self.state();
        let Count { sent, admitted, refused, unavailable } = state.count;
        let wrong = state.wrong.len();
        let mut row = String::new();
        write!(
            row,
            "| {} | {sent} | {admitted} | {refused} | {unavailable} | {wrong} |",
            fault.name
        )
        .expect("a text");
        println!("{row}");
        let about = |record: &Value| record.to_string().contains("redis");
        let log = || {
            let records = self.site.world.process.records(about);
            records.iter().map(|record| format!("{record}\n")).collect::<String>()
        };
        assert!(state.wrong.is_empty(), "{row}\n{}\n{}", state.wrong.join("\n"), log());
        let of =
            |part: usize, what: fn(&Count) -> usize| what(&parts[part]) - what(&parts[part - 1]);
        assert!(of(1, |it| it.admitted) > 0, "nothing was admitted before\n{row}");
        assert!(of(3, |it| it.admitted) > 0, "nothing was admitted afterwards\n{row}");
        let during = of(2, |it| it.unavailable);
        assert_eq!(fault.refuses, during > 0, "{during} were refused meanwhile\n{row}");
    }

    /// Shows proofs and so on until `work` is done.
    async fn load(&self, work: impl Future<Output = ()>) {
        let done = AtomicBool::new(false);
        let work = async {
            work.await;
            done.store(true, Ordering::Release);
        };
        tokio::join!(
            work,
            self.show(0, &done),
            self.show(1, &done),
            self.issue(&done),
            self.ask(&done)
        );
    }

    /// Waits until so many more proofs were shown.
    pub(crate) async fn goes_on(&self) {
        let enough = self.round.load(Ordering::Relaxed) + self.rounds;
        for _ in 0..60_000 {
            if self.round.load(Ordering::Relaxed) >= enough {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no proofs are shown");
    }

    /// Takes note of an answer: its status.
    fn count(&self, outcome: &Outcome) -> u16 {
        let mut state = self.state();
        state.count.sent += 1;
        let answer = match outcome {
            Ok(answer) => answer,
            Err(error) => {
                state.wrong.push(format!("no answer: {error}"));
                return 0;
            }
        };
        if let Some(nonce) = answer.one("dpop-nonce") {
            nonce.clone_into(&mut state.nonce);
        }
        match answer.status() {
            200 => state.count.admitted += 1,
            400 | 401 | 403 => state.count.refused += 1,
            503 => {
                state.count.refused += 1;
                state.count.unavailable += 1;
                if answer.one("retry-after").is_none() {
                    state.wrong.push("503 without Retry-After".to_owned());
                }
            }
            _ => state.wrong.push(format!("{}: {}", answer.start, answer.json())),
        }
        answer.status()
    }

    fn is_wrong(&self, what: String) {
        self.state().wrong.push(what);
    }

    async fn send(&self, at: usize, request: &Request) -> Message {
        let outcome = self.client(at).send(None, request).await;
        self.count(&outcome);
        outcome.unwrap_or_default()
    }

    async fn lines(&self) -> [H2; EDGES] {
        let [one, two, three] = [0, 1, 2].map(|at| self.client(at).connect_h2(None));
        tokio::try_join!(one, two, three).expect("three connections").into()
    }

    /// Shows proofs: each to three edges, five times at once, and another that was shown before.
    async fn show(&self, worker: usize, done: &AtomicBool) {
        let world = &self.site.world;
        let token = world.token().claim("iss", NATIVE).jkt(&world.key.jkt()).sign();
        let mut lines = self.lines().await;
        for round in 1.. {
            if done.load(Ordering::Acquire) {
                break;
            }
            if round % 500 == 0 {
                lines = self.lines().await;
            }
            let nonce = self.state().nonce.clone();
            let proof = world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
            let shown = Arc::new(Shown {
                request: get("/orders/1", &token, &proof),
                taken: AtomicUsize::new(0),
            });
            let old = {
                let mut state = self.state();
                state.proofs.push(Arc::clone(&shown));
                // Recent ones for the most part, and every so often any.
                let back = if round % 4 == 0 { state.proofs.len() } else { 20 };
                let back = 1 + (round * 7 + worker) % back;
                Arc::clone(&state.proofs[state.proofs.len().saturating_sub(back)])
            };
            let [one, two, three] = &lines;
            let request = &shown.request;
            let (a, b, c, d, e, f) = tokio::join!(
                one.send(request),
                two.send(request),
                three.send(request),
                one.send(request),
                two.send(request),
                lines[round % EDGES].send(&old.request),
            );
            for answer in [a, b, c, d, e] {
                self.took(&shown, &answer);
            }
            self.took(&old, &f);
            self.round.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn took(&self, shown: &Shown, outcome: &Outcome) {
        if self.count(outcome) == 200 && shown.taken.fetch_add(1, Ordering::AcqRel) > 0 {
            self.is_wrong("a proof was admitted twice".to_owned());
        }
    }

    fn proof(&self, method: &str, path: &str) -> Proof {
        let nonce = self.state().nonce.clone();
        self.site.world.proof(method, path).nonce(&nonce)
    }

    /// Issues tokens, uses them, and revokes some.
    async fn issue(&self, done: &AtomicBool) {
        for round in 0.. {
            if done.load(Ordering::Acquire) {
                break;
            }
            self.issue_at(round).await;
            for revoked in [false, true] {
                let token = {
                    let state = self.state();
                    let tokens = if revoked { &state.revoked } else { &state.good };
                    let place = (round * 7) % tokens.len().max(1);
                    tokens.get(place).cloned()
                };
                if let Some(token) = token {
                    self.consume(round + 1, &token, revoked).await;
                }
            }
        }
    }

    /// Whether a token was issued at this edge; one of three is revoked at once, at the next.
    async fn issue_at(&self, at: usize) -> bool {
        let body = grant("client_credentials");
        let request = form(TOKEN, &body).field("DPoP", self.proof("POST", TOKEN).sign());
        let answer = self.send(at, &request).await;
        if answer.status() != 200 {
            return false;
        }
        let token = issued(&answer).access;
        if !at.is_multiple_of(3) {
            self.state().good.push(token);
            return true;
        }
        let body = format!("token={token}&client_id={}", super::authority::CLIENT);
        if self.send(at + 1, &form("/revoke", &body)).await.status() == 200 {
            self.state().revoked.push(token);
        }
        true
    }

    /// Uses a token that was revoked, or one that must be good unless something was lost.
    async fn consume(&self, at: usize, token: &str, revoked: bool) -> u16 {
        let proof = self.proof("GET", "/orders/1").token(token).sign();
        let answer = self.send(at, &get("/orders/1", token, &proof)).await;
        let error = answer.json()["error"].clone();
        if revoked && answer.status() == 200 {
            self.is_wrong("a revoked token was served".to_owned());
        }
        let kept = self.state().memory == Memory::Kept;
        if !revoked && kept && error == "invalid_token" {
            self.is_wrong("an acknowledged binding was lost".to_owned());
        }
        answer.status()
    }

    /// Enrols a node at the first edge.
    fn enrol(&self, id: &str, stands: Stands) {
        let node = tokio::task::block_in_place(|| self.site.world.enrol(id, &[]));
        self.state().nodes.push(Enrolled { node, stands });
    }

    /// Revokes one of the last two nodes, and quarantines the other.
    fn take_away(&self) {
        let count = self.state().nodes.len();
        for (place, command, word) in [
            (count - 2, "revoke", "403 NODE_REVOKED"),
            (count - 1, "quarantine", "403 NODE_QUARANTINED"),
        ] {
            let id = self.state().nodes[place].node.id.clone();
            self.state().nodes[place].stands = Stands::Changing;
            tokio::task::block_in_place(|| self.site.world.change(&[command, &id]));
            self.state().nodes[place].stands = Stands::Refused(word);
        }
    }

    /// Has nodes ask for capsules.
    async fn ask(&self, done: &AtomicBool) {
        for round in 0.. {
            if done.load(Ordering::Acquire) {
                break;
            }
            let place = round % self.state().nodes.len();
            self.ask_one(place, round).await;
        }
    }

    /// Has one ask at one edge, and holds what it is told against how it stands.
    async fn ask_one(&self, place: usize, at: usize) -> String {
        let Enrolled { node, stands } = self.state().nodes[place].clone();
        let nonce = self.state().nonce.clone();
        let answer = match stands {
            Stands::Active => self.send(at, &node.request(&nonce)).await,
            Stands::Changing | Stands::Refused(_) => self.send(at, &node.bearer()).await,
        };
        let (said, challenged) = (told(&answer), answer.one("dpop-nonce").is_some());
        let kept = {
            let state = self.state();
            if state.nodes[place].stands != stands {
                return said;
            }
            state.memory == Memory::Kept
        };
        let well = match stands {
            Stands::Changing => true,
            Stands::Active => answer.status() == 200 || challenged || !kept,
            Stands::Refused(word) => said == word || (!kept && answer.status() != 200),
        };
        if !well && said != "503 UNAVAILABLE" {
            self.is_wrong(format!("{} ({stands:?}) is told {said}", node.id));
        }
        said
    }

    /// Waits until each edge issues tokens again, and serves nodes where none was lost.
    async fn recovered(&self, memory: Memory) {
        for at in 0..EDGES {
            let mut last = String::new();
            let mut well = false;
            for _ in 0..1500 {
                well = self.issue_at(at).await;
                if well && memory == Memory::Kept {
                    last = self.ask_one(0, at).await;
                    well = last.starts_with("200");
                }
                if well {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert!(well, "edge {at} does not recover: {last}");
        }
    }

    /// Holds every edge against what was acknowledged.
    async fn look_again(&self) {
        let (proofs, good, lost, revoked, nodes, memory) = {
            let state = self.state();
            let last =
                |tokens: &[String]| tokens[tokens.len().saturating_sub(LOOKED_AT)..].to_vec();
            let proofs = &state.proofs[state.proofs.len().saturating_sub(3 * LOOKED_AT)..];
            (
                proofs.to_vec(),
                last(&state.good),
                last(&state.lost),
                last(&state.revoked),
                state.nodes.len(),
                state.memory,
            )
        };
        let lines = self.lines().await;
        for shown in &proofs {
            let [one, two, three] = lines.each_ref().map(|line| line.send(&shown.request));
            let (a, b, c) = tokio::join!(one, two, three);
            for answer in [a, b, c] {
                self.took(shown, &answer);
            }
        }
        for (at, token) in good.iter().enumerate() {
            // A replica that comes may make it another epoch, and with it 503 for a while.
            let mut served = false;
            for _ in 0..500 {
                served = self.consume(at, token, false).await == 200;
                if served {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if !served {
                self.is_wrong("an acknowledged binding is not served".to_owned());
            }
        }
        for (at, token) in lost.iter().enumerate() {
            let admitted = self.consume(at, token, false).await == 200;
            if admitted && [Memory::Lost, Memory::Older].contains(&memory) {
                self.is_wrong("a binding that was lost was admitted".to_owned());
            }
        }
        for (at, token) in revoked.iter().enumerate() {
            self.consume(at, token, true).await;
        }
        let ask_all = async |expected: &[&str]| {
            for (place, at) in (0..nodes).flat_map(|place| (0..EDGES).map(move |at| (place, at))) {
                let mut said = self.ask_one(place, at).await;
                for _ in 0..500 {
                    if expected.iter().any(|word| said.starts_with(word)) {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    said = self.ask_one(place, at).await;
                }
                if !expected.iter().any(|word| said.starts_with(word)) {
                    self.is_wrong(format!("a node is told {said}, not one of {expected:?}"));
                }
            }
        };
        if memory == Memory::Kept {
            return ask_all(&["200", "403"]).await;
        }
        // No node is served before somebody has looked.
        ask_all(&["503 UNAVAILABLE"]).await;
        if memory == Memory::Older {
            // What was lost is done again.
            self.take_away();
        }
        tokio::task::block_in_place(|| self.site.world.change(&["confirm"]));
        if memory == Memory::Older {
            self.state().memory = Memory::Kept;
            self.recovered(Memory::Kept).await;
            return ask_all(&["200", "403"]).await;
        }
        tokio::time::sleep(Duration::from_millis(1200)).await;
        ask_all(&["503 UNAVAILABLE", "401"]).await;
    }
}
