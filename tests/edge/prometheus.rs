//! Rules, dashboards and runbook: held against each other, and against a real Prometheus that scrapes a
//! real edge.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::support::Table;
use super::support::node::{told, with_capsules};
use super::support::prometheus::{Alertmanager, Prometheus, RULES, RUNBOOK, program};
use super::support::redis::{Server, there_is_none};
use super::support::sharing::{key_file, ready_is, share, standalone};
use super::support::world::{World, bearer, expect_eq, get};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");

/// A YAML file of `deploy/prometheus`.
fn yaml(name: &str) -> Value {
    let text = fs::read_to_string(Path::new(RULES).join(name)).expect("a file");
    serde_yaml::from_str(&text).expect("YAML")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// The alerting rules, by name.
fn alerts() -> BTreeMap<String, Value> {
    let rules = yaml("holdfast.rules.yaml");
    let all = list(&rules["groups"]).iter().flat_map(|group| list(&group["rules"]));
    let alerts: Vec<_> = all.filter(|rule| !rule["alert"].is_null()).collect();
    let by_name: BTreeMap<_, _> =
        alerts.iter().map(|rule| (text(rule, "alert").to_owned(), (*rule).clone())).collect();
    assert_eq!(by_name.len(), alerts.len(), "two alerts have one name");
    by_name
}

/// The anchors of the runbook, as its headings make them.
fn anchors() -> Vec<String> {
    let runbook = fs::read_to_string(Path::new(DEPLOY).join("RUNBOOK.md")).expect("the runbook");
    let headings = runbook.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let kept = |c: &char| c.is_alphanumeric() || [' ', '-', '_'].contains(c);
        let name = heading.trim_start_matches('#').trim().to_lowercase();
        name.chars().filter(kept).collect::<String>().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

#[test]
fn each_alert_has_its_section_and_each_section_its_alert() {
    let (alerts, anchors) = (alerts(), anchors());
    let unique: BTreeSet<_> = anchors.iter().collect();
    assert_eq!(unique.len(), anchors.len(), "two sections have one anchor");
    let mut table = Table::default();
    for (name, rule) in &alerts {
        let (labels, said) = (&rule["labels"], &rule["annotations"]);
        let severity = text(labels, "severity");
        table.row(name, expect_eq("severity", &["page", "ticket"].contains(&severity), &true));
        for key in ["summary", "description"] {
            table.row(name, expect_eq(key, &text(said, key).is_empty(), &false));
        }
        let url = format!("{{{{ $externalLabels.runbooks }}}}#{}", name.to_lowercase());
        table.row(name, expect_eq("runbook_url", &text(said, "runbook_url"), &url.as_str()));
        let there = anchors.contains(&name.to_lowercase());
        table.row(name, expect_eq("its section", &there, &true));
    }
    for anchor in anchors.iter().filter(|anchor| anchor.starts_with("holdfast")) {
        let known = alerts.keys().any(|name| name.to_lowercase() == *anchor);
        table.row(anchor, expect_eq("its alert", &known, &true));
    }
    let runbook = fs::read_to_string(Path::new(DEPLOY).join("RUNBOOK.md")).expect("the runbook");
    for link in runbook.split("](#").skip(1).filter_map(|rest| rest.split(')').next()) {
        let there = anchors.iter().any(|anchor| anchor == link);
        table.row(link, expect_eq("linked to", &there, &true));
    }
}

#[test]
fn each_alert_has_a_case_that_fires_and_one_that_does_not() {
    let tests = yaml("holdfast.test.yaml");
    let cases: Vec<_> = list(&tests["tests"]).iter().collect();
    let mut table = Table::default();
    for name in alerts().keys() {
        let own = cases.iter().filter(|case| text(case, "name") == name);
        let checks: Vec<_> = own.flat_map(|case| list(&case["alert_rule_test"])).collect();
        let fires: Vec<_> = checks.iter().flat_map(|check| list(&check["exp_alerts"])).collect();
        table.row(name, expect_eq("fires", &fires.is_empty(), &false));
        // A moment at which it does not, or a cluster in which it never does.
        let silent = checks.iter().any(|check| list(&check["exp_alerts"]).is_empty());
        let own = cases.iter().filter(|case| text(case, "name") == name);
        let series = own.flat_map(|case| list(&case["input_series"]));
        let clusters: BTreeSet<_> = series
            .filter_map(|one| text(one, "series").split("cluster=\"").nth(1)?.split('"').next())
            .collect();
        let loud: BTreeSet<_> =
            fires.iter().map(|alert| text(&alert["exp_labels"], "cluster")).collect();
        let near = clusters.iter().any(|cluster| !loud.contains(cluster));
        table.row(name, expect_eq("does not fire", &(silent || near), &true));
    }
}

#[test]
fn the_tools_take_rules_tests_and_examples() {
    for (tool, arguments) in [
        ("promtool", ["check", "rules", "holdfast.rules.yaml"].as_slice()),
        ("promtool", ["test", "rules", "holdfast.test.yaml"].as_slice()),
        ("promtool", ["check", "config", "prometheus.yml"].as_slice()),
        ("amtool", ["check-config", "alertmanager.yml"].as_slice()),
    ] {
        let Some(program) = program(tool) else { return };
        let made = Command::new(program).args(arguments).current_dir(RULES).output();
        let made = made.expect("a program that ends");
        let said = [made.stdout, made.stderr].concat();
        assert!(made.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said));
    }
}

/// The dashboards, by file.
fn dashboards() -> Vec<(PathBuf, Value)> {
    let files = fs::read_dir(Path::new(DEPLOY).join("grafana")).expect("the dashboards");
    let mut files: Vec<_> = files.map(|file| file.expect("an entry").path()).collect();
    files.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a file");
        let value = serde_json::from_str(&text);
        (path.clone(), value.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    };
    files.into_iter().map(read).collect()
}

/// Every panel that shows something.
fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    list(&dashboard["panels"]).iter().filter(|panel| panel["type"] != "row")
}

#[test]
fn dashboards_are_whole() {
    let (all, anchors) = (dashboards(), anchors());
    assert_eq!(all.len(), 5);
    for key in ["uid", "title"] {
        let names: BTreeSet<_> = all.iter().map(|(_, it)| text(it, key)).collect();
        assert!(names.len() == all.len() && !names.contains(""), "{key}: {names:?}");
    }
    let mut table = Table::default();
    for (path, dashboard) in &all {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let variables: Vec<_> =
            list(&dashboard["templating"]["list"]).iter().map(|it| text(it, "name")).collect();
        let expected = ["datasource", "job", "instance", "runbook"];
        table.row(&file, expect_eq("variables", &variables, &expected.to_vec()));
        let ids: BTreeSet<_> =
            list(&dashboard["panels"]).iter().map(|panel| panel["id"].as_u64()).collect();
        table.row(&file, expect_eq("ids", &ids.len(), &list(&dashboard["panels"]).len()));
        for panel in panels(dashboard) {
            let name = format!("{file}: {}", text(panel, "title"));
            for key in ["title", "description"] {
                table.row(&name, expect_eq(key, &text(panel, key).is_empty(), &false));
            }
            let unit = &panel["fieldConfig"]["defaults"]["unit"];
            table.row(&name, expect_eq("a unit", &unit.is_string(), &true));
            let source = &panel["datasource"]["uid"];
            table.row(&name, expect_eq("datasource", source, &json!("${datasource}")));
            table.row(&name, expect_eq("queries", &list(&panel["targets"]).is_empty(), &false));
            for link in list(&panel["links"]) {
                let anchor = text(link, "url").strip_prefix("${runbook}#").unwrap_or("none");
                let there = anchors.iter().any(|known| known == anchor);
                table.row(&name, expect_eq(anchor, &there, &true));
            }
        }
        let places: Vec<_> = list(&dashboard["panels"]).iter().map(place).collect();
        for (index, one) in places.iter().enumerate() {
            let clear = places.iter().skip(index + 1).all(|other| !overlap(*one, *other));
            table.row(&file, expect_eq(&format!("place {index}"), &clear, &true));
        }
    }
}

/// Left, top, right, bottom.
fn place(panel: &Value) -> [u64; 4] {
    let at = |key: &str| panel["gridPos"][key].as_u64().unwrap_or_default();
    [at("x"), at("y"), at("x") + at("w"), at("y") + at("h")]
}

fn overlap(one: [u64; 4], other: [u64; 4]) -> bool {
    let beside = one[2] <= other[0] || other[2] <= one[0];
    let below = one[3] <= other[1] || other[3] <= one[1];
    one[2] > 24 || !(beside || below)
}

/// An edge that has all that can be watched: proofs and nodes in Redis, capsules.
async fn whole_world(redis: &Server) -> World {
    World::start_in(|directory, _, config| {
        key_file(directory);
        with_capsules(directory, config);
        share(config, standalone(redis.port));
    })
    .await
}

/// Requests of every kind that a quiet day has.
async fn traffic(world: &World) {
    let token = world.bound();
    for _ in 0..5 {
        let nonce = world.nonce().await;
        let proof = world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
        for request in [
            get("/orders/1", &token, &proof),
            get("/orders/1", &token, &proof),
            get("/orders/1", &token, "").without("DPoP"),
            bearer("/orders/1", "nonsense"),
        ] {
            world.send(&request).await.expect("an answer");
        }
    }
}

/// A node that gets its capsule.
async fn capsule(world: &World) {
    let node = world.enrol("node-1", &[]);
    for _ in 0..300 {
        let answer = world.send(&node.request("none")).await.expect("an answer");
        // Redis has just been found, and is not trusted with nodes for some seconds.
        if let Some(nonce) = answer.one("dpop-nonce") {
            let answer = world.send(&node.request(nonce)).await.expect("an answer");
            if told(&answer) == "200 risk 0" {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the node gets no capsule");
}

/// Those whom `deploy/prometheus/alertmanager.yml` has told, to the letter of its labels: each once.
async fn are_told(alertmanager: &Alertmanager, alert: &str, whom: &[&str]) {
    let mut table = Table::default();
    for receiver in whom {
        let told = alertmanager.told(receiver, alert, "firing").await;
        let told = told.map(|told| told["annotations"]["runbook_url"].clone());
        let section = format!("{RUNBOOK}#{}", alert.to_lowercase());
        table.row(alert, told.and_then(|it| expect_eq(receiver, &it, &json!(section))));
    }
    for other in ["pager", "tickets", "security"] {
        let told = alertmanager.tells(other, alert);
        table.row(alert, expect_eq(other, &told, &whom.contains(&other)));
    }
}

/// Queries of panels with what Grafana fills in filled in.
fn queries() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (_, dashboard) in dashboards() {
        let title = text(&dashboard, "title").to_owned();
        let of_panels = panels(&dashboard).flat_map(|panel| {
            list(&panel["targets"])
                .iter()
                .map(|target| (text(panel, "title"), text(target, "expr")))
        });
        let notes = list(&dashboard["annotations"]["list"]).iter();
        let notes = notes.map(|note| (text(note, "name"), text(note, "expr")));
        all.extend(of_panels.chain(notes).map(|(name, query)| {
            let query = query.replace("$job", "holdfast").replace("$instance", ".+");
            (format!("{title} / {name}"), query.replace("$__rate_interval", "1m"))
        }));
    }
    all
}

/// Those that are empty as long as all is well: what they mark are events.
const EVENTS: [&str; 2] = [" / Configuration", " / Alerts"];

#[tokio::test(flavor = "multi_thread")]
async fn every_panel_shows_what_a_real_edge_says() {
    if there_is_none() {
        return;
    }
    let redis = Server::start(&[]).await;
    let world = whole_world(&redis).await;
    let Some(prometheus) = Prometheus::start(world.admin).await else { return };
    capsule(&world).await;
    let mut left = queries();
    let mut faults = Vec::new();
    // A rate needs requests between two scrapes, and what is recorded a few rounds.
    for _ in 0..100 {
        traffic(&world).await;
        faults.clear();
        let mut still = Vec::new();
        for (name, query) in left {
            let empty = EVENTS.iter().any(|event| name.ends_with(event));
            match prometheus.query(&query).await {
                Ok(series) if empty || !series.is_empty() => {}
                Ok(_) => {
                    faults.push(format!("{name}: nothing: {query}"));
                    still.push((name, query));
                }
                Err(error) => panic!("{name}: {error}: {query}"),
            }
        }
        left = still;
        if left.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_fire_and_end_in_a_real_prometheus() {
    if there_is_none() {
        return;
    }
    let mut redis = Server::start(&[]).await;
    let mut world = whole_world(&redis).await;
    let Some(alertmanager) = Alertmanager::start().await else { return };
    let prometheus = Prometheus::start_with(world.admin, &alertmanager.settings()).await;
    let Some(prometheus) = prometheus else { return };
    let rules = prometheus.get("/api/v1/rules").await.expect("its rules");
    let groups = list(&rules["data"]["groups"]);
    let loaded = groups.iter().flat_map(|group| list(&group["rules"]));
    assert_eq!(loaded.filter(|rule| rule["type"] == "alerting").count(), alerts().len());
    traffic(&world).await;
    prometheus.fires(&[]).await;

    redis.kill();
    ready_is(world.admin, false).await;
    prometheus.fires(&["HoldfastStoreDown"]).await;
    are_told(&alertmanager, "HoldfastStoreDown", &["pager"]).await;
    // The edge's own file has nothing to do with it.
    for (store, up) in [("redis", 0.0), ("embedded", 1.0)] {
        let label = format!("store=\"{store}\"");
        assert_eq!(world.metric("holdfast_store_up", &[&label]).await, up, "{store}");
    }
    redis.again().await;
    ready_is(world.admin, true).await;
    prometheus.fires(&[]).await;
    alertmanager.told("pager", "HoldfastStoreDown", "resolved").await.expect("its end");

    let good = world.config.clone();
    world.config["nonsense"] = json!(1);
    assert!(!world.reload().await, "a configuration that is wrong was taken");
    prometheus.fires(&["HoldfastReloadFailed"]).await;
    are_told(&alertmanager, "HoldfastReloadFailed", &["tickets"]).await;
    world.config = good;
    world.config["security"]["senderConstraints"]["dpop"]["allowTemporaryBypass"] = json!(true);
    assert!(world.reload().await, "{}", world.process.output());
    prometheus.fires(&["HoldfastBypassActive"]).await;
    are_told(&alertmanager, "HoldfastBypassActive", &["pager", "security"]).await;

    world.process.kill();
    prometheus.fires(&["HoldfastDown"]).await;
    are_told(&alertmanager, "HoldfastDown", &["pager"]).await;
}
