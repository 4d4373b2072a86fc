//! The roll-out of deploy/RUNBOOK.md from its first stage to its last, then the drill of the bypass with its
//! reset, at one edge that a real Prometheus watches: who passes, what the report says, and what fires.
//! `tests/drill` runs it and shows what it prints.

use std::time::Duration;

use serde_json::{Value, json};

use super::rollout::report;
use super::support::authority::{Site, TOKEN, form, grant};
use super::support::client::{Outcome, Request};
use super::support::prometheus::Prometheus;
use super::support::world::{Expect, World, bearer, expect_eq, get};
use super::support::{Table, now};

use Expect::{Admitted, Refused};

const TARGET: &str = "/orders/1";

/// Requests of one client in a day. In all there are fewer than the hundred from which on misses of nonces are
/// worth a page: some of these clients miss them on purpose.
const ROUNDS: usize = 3;

/// What a client does.
#[derive(Clone, Copy, Debug)]
enum Habit {
    /// All that the edge asks for.
    Right,
    /// Its token is bound to nothing.
    Unbound,
    /// Its token is bound and goes without a proof.
    Bare,
}

/// The clients of two tenants, before any of them is mended.
const CLIENTS: [(&str, &str, Habit); 4] = [
    ("acme", "acme-web", Habit::Right),
    ("acme", "acme-batch", Habit::Unbound),
    ("globex", "globex-web", Habit::Right),
    ("globex", "globex-app", Habit::Bare),
];

/// The edge, Prometheus, and what came of it so far.
struct Drill {
    site: Site,
    prometheus: Prometheus,
    /// Clients that stay keep their nonce.
    nonce: String,
    table: Table,
    stage: &'static str,
}

impl Drill {
    fn world(&self) -> &World {
        &self.site.world
    }

    fn constraints(&mut self) -> &mut Value {
        &mut self.site.world.config["security"]["senderConstraints"]
    }

    /// Takes the configuration as it is now for a stage.
    async fn enter(&mut self, stage: &'static str) {
        self.stage = stage;
        let taken = self.world().reload().await;
        self.table.row(stage, expect_eq("taken", &taken, &true));
    }

    fn request(&self, tenant: &str, client: &str, habit: Habit) -> Request {
        let world = self.world();
        let token = world.token().claim("tenant", tenant).claim("client_id", client);
        match habit {
            Habit::Unbound => bearer(TARGET, &token.sign()),
            Habit::Bare => get(TARGET, &token.jkt(&world.key.jkt()).sign(), "").without("DPoP"),
            Habit::Right => {
                let token = token.jkt(&world.key.jkt()).sign();
                let proof = world.proof("GET", TARGET).token(&token).nonce(&self.nonce);
                get(TARGET, &token, &proof.sign())
            }
        }
    }

    /// A day's traffic: each of `clients` as it is used to, and what becomes of it.
    async fn day(
        &mut self,
        clients: &[(&str, &str, Habit)],
        expect: impl Fn(&str, Habit) -> Expect,
    ) {
        let (mut passed, mut refused) = (0, 0);
        for (tenant, client, habit) in clients {
            for _ in 0..ROUNDS {
                let answer = self.world().send(&self.request(tenant, client, *habit)).await;
                match answer.as_ref().map(|answer| answer.status()) {
                    Ok(200) => passed += 1,
                    Ok(_) | Err(_) => refused += 1,
                }
                let judged = self.world().judge(answer, expect(tenant, *habit)).await;
                self.table.row(&format!("{}: {client}", self.stage), judged);
            }
        }
        println!("{}: {passed} passed, {refused} refused", self.stage);
    }

    /// That the report calls the tenant ready, or does not, by what was recorded since.
    fn ready(&mut self, tenant: &str, since: &str, expected: bool) {
        let options = ["--tenant", tenant, "--since", since, "--require-ready"];
        let (status, text) = report(self.world(), &options);
        println!(
            "{}: report: {tenant} is {}ready",
            self.stage,
            if status == Some(0) { "" } else { "not " }
        );
        let found = status == Some(0);
        self.table
            .row(&format!("{}: {tenant} ready", self.stage), expect_eq(&text, &found, &expected));
    }

    /// That exactly these alerts fire, once Prometheus has seen what was.
    async fn fires(&mut self, alerts: &[&str]) {
        // Two scrapes and two rounds of the rules, so that what must not fire had its chance.
        tokio::time::sleep(Duration::from_secs(3)).await;
        self.prometheus.fires(alerts).await;
        println!("{}: firing: {alerts:?}", self.stage);
    }

    /// Asks for a token without a proof.
    async fn asks(&self, client: &str) -> Outcome {
        let body = grant("client_credentials").replace("client-1", client);
        self.world().send(&form(TOKEN, &body)).await
    }

    fn row(&mut self, name: &str, found: Option<u16>, expected: u16) {
        self.table
            .row(&format!("{}: {name}", self.stage), expect_eq("status", &found, &Some(expected)));
    }
}

fn status(answer: Outcome) -> Option<u16> {
    answer.ok().map(|answer| answer.status())
}

/// A moment that all that was recorded so far lies before.
async fn from_now() -> String {
    tokio::time::sleep(Duration::from_millis(1100)).await;
    holdfast::policy::time::UnixTime::from_secs(now()).rfc3339().to_string()
}

/// What `mode: observe` answers.
fn observed(_: &str, habit: Habit) -> Expect {
    Admitted(match habit {
        Habit::Right => "dpop",
        Habit::Unbound | Habit::Bare => "observe",
    })
}

fn enforced(habit: Habit) -> Expect {
    match habit {
        Habit::Right => Admitted("dpop"),
        Habit::Unbound => Refused("binding_too_weak"),
        Habit::Bare => Refused("proof_missing"),
    }
}

async fn begin() -> Option<Drill> {
    let site = Site::native(|config| {
        let rules = &mut config["security"]["senderConstraints"];
        rules["mode"] = json!("observe");
        rules["require"] = json!("none");
        config["tenancy"] = json!({"claim": "tenant", "unknown": "default"});
        config["tenants"] =
            json!({"acme": {"clients": ["client-1"]}, "globex": {"clients": ["client-2"]}});
        config["routes"][0]["allowUnbound"] = json!(true);
    })
    .await;
    let prometheus = Prometheus::start(site.world.admin).await?;
    let nonce = site.world.nonce().await;
    Some(Drill { site, prometheus, nonce, table: Table::default(), stage: "1 telemetry" })
}

#[tokio::test(flavor = "multi_thread")]
async fn from_telemetry_to_enforcement_and_through_the_bypass() {
    let Some(mut drill) = begin().await else { return };
    let unbound = |_: &str, habit| match habit {
        Habit::Unbound => Admitted("unbound"),
        Habit::Right | Habit::Bare => observed("", habit),
    };
    drill.day(&CLIENTS, unbound).await;
    drill.fires(&[]).await;

    let since = from_now().await;
    drill.constraints()["require"] = json!("any");
    drill.site.world.config["routes"][0].as_object_mut().expect("a route").remove("allowUnbound");
    drill.enter("2 observe").await;
    drill.day(&CLIENTS, observed).await;
    drill.ready("acme", &since, false);
    drill.ready("globex", &since, false);
    drill.fires(&[]).await;

    // The tenant's batch has been mended.
    let since = from_now().await;
    let mended: Vec<_> = CLIENTS
        .into_iter()
        .map(|(tenant, client, habit)| match tenant {
            "acme" => (tenant, client, Habit::Right),
            _ => (tenant, client, habit),
        })
        .collect();
    drill.day(&mended, observed).await;
    drill.ready("acme", &since, true);
    drill.ready("globex", &since, false);
    drill.site.world.config["tenants"]["acme"]["mode"] = json!("enforce");
    drill.enter("3 tenant by tenant").await;
    // Whoever in it goes back to what he did is refused; the other tenant is not touched.
    let by_tenant = |tenant: &str, habit| match tenant {
        "acme" => enforced(habit),
        _ => observed(tenant, habit),
    };
    drill.day(&CLIENTS, by_tenant).await;
    drill.fires(&[]).await;

    let since = from_now().await;
    let all_right = CLIENTS.map(|(tenant, client, _)| (tenant, client, Habit::Right));
    drill.day(&all_right, by_tenant).await;
    drill.ready("globex", &since, true);
    drill.constraints()["mode"] = json!("enforce");
    drill.site.world.config["tenants"]["acme"].as_object_mut().expect("a tenant").remove("mode");
    drill.enter("4 enforce").await;
    drill.day(&CLIENTS, |_, habit| enforced(habit)).await;
    drill.fires(&[]).await;
    // A token that was stolen together with nothing: that pages.
    let token = drill.world().token().x5t(&drill.world().pki.alice.x5t()).sign();
    let stolen = drill.world().send(&bearer(TARGET, &token)).await;
    let judged = drill.world().judge(stolen, Refused("missing-certificate")).await;
    drill.table.row("4 enforce: stolen", judged);
    drill.fires(&["HoldfastCertificateMismatch"]).await;

    bypass(&mut drill).await;
}

/// The door is opened for one tenant, and shut.
async fn bypass(drill: &mut Drill) {
    drill.stage = "5 bypass";
    drill.row("before", status(drill.asks("client-1").await), 400);
    let dpop = &mut drill.constraints()["dpop"];
    dpop["allowTemporaryBypass"] = json!(true);
    dpop["temporaryBypass"] = json!({"tenants": ["acme"]});
    drill.enter("5 bypass").await;
    drill.row("its tenant", status(drill.asks("client-1").await), 200);
    drill.row("another tenant", status(drill.asks("client-2").await), 400);
    let acme = &CLIENTS[..2];
    let by_bypass = |_: &str, habit| match habit {
        Habit::Unbound => Admitted("bypass"),
        Habit::Right | Habit::Bare => enforced(habit),
    };
    drill.day(acme, by_bypass).await;
    drill.day(&CLIENTS[2..], |_, habit| enforced(habit)).await;
    drill.fires(&["HoldfastBypassActive", "HoldfastCertificateMismatch"]).await;

    let dpop = drill.constraints()["dpop"].as_object_mut().expect("a block");
    dpop.remove("allowTemporaryBypass");
    dpop.remove("temporaryBypass");
    drill.enter("6 reset").await;
    drill.row("its tenant", status(drill.asks("client-1").await), 400);
    drill.day(acme, |_, habit| enforced(habit)).await;
    drill.fires(&["HoldfastCertificateMismatch"]).await;
}
