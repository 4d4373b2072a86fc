//! Networks by MaxMind's own test databases, which `tests/run` puts into target/maxmind: found as
//! they say, the broken ones among them survived, and a node's moves weighed by them end to end.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holdfast::store::networks::Networks;
use serde_json::{Value, json};

use super::support::Table;
use super::support::client::Outcome;
use super::support::node::{Node, told, with_capsules};
use super::support::server::skip;
use super::support::world::{World, expect_eq};

const ASN: &str = "GeoLite2-ASN-Test.mmdb";
const ISP: &str = "GeoIP2-ISP-Test.mmdb";
const CITY: &str = "GeoIP2-City-Test.mmdb";
const COUNTRY: &str = "GeoIP2-Country-Test.mmdb";

/// Why the edge looks at its files again by itself.
const NOTICED: &str = "a file has changed";

/// Where the databases are; `None` where they are not.
fn databases() -> Option<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/maxmind");
    if !directory.join(ASN).exists() {
        skip("MaxMind's test databases: not in target/maxmind");
        return None;
    }
    Some(directory)
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn addresses_are_where_the_databases_say() {
    let Some(directory) = databases() else { return };
    let open = |asn: &str, region: &str| {
        Networks::open(Some(&directory.join(asn)), Some(&directory.join(region)))
    };
    let mut table = Table::default();
    for (asn, region, rows) in [
        (
            ASN,
            CITY,
            &[
                ("216.160.83.57", Some(209), Some("US-WA")),
                ("89.160.20.113", Some(29_518), Some("SE-E")),
                ("214.0.1.7", Some(721), Some("AU-VIC")),
                ("81.2.69.160", None, Some("GB-ENG")),
                ("2.125.160.217", None, Some("GB-ENG")),
                ("175.16.199.255", None, Some("CN-22")),
                ("67.43.156.1", Some(35_908), Some("BT")),
                ("149.101.100.15", Some(6167), Some("US")),
                // There is a record, without a country.
                ("214.1.1.1", Some(721), None),
                ("65.116.0.1", Some(209), None),
                ("1.128.0.0", Some(1221), None),
                ("1.159.255.255", Some(1221), None),
                ("1.160.0.0", None, None),
                ("::ffff:216.160.83.57", Some(209), Some("US-WA")),
                ("2001:218::1", None, Some("JP")),
                ("2001:480:10:ffff::1", None, Some("US-CA")),
                ("2001:480:11::1", None, None),
                ("2001:1700::1", Some(6730), None),
                ("2600:7000::1", Some(6939), None),
                ("10.0.0.1", None, None),
                ("127.0.0.1", None, None),
                ("0.0.0.0", None, None),
                ("255.255.255.255", None, None),
                ("::", None, None),
                ("::1", None, None),
                ("2001:db8::1", None, None),
                ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", None, None),
            ][..],
        ),
        (
            ISP,
            COUNTRY,
            &[
                ("216.160.83.57", Some(209), Some("US")),
                ("89.160.20.113", Some(29_518), Some("SE")),
                ("23.32.32.0", Some(35_994), None),
                ("23.32.32.1", Some(262_589), None),
                ("::ffff:23.32.32.1", Some(262_589), None),
                ("74.209.16.1", None, Some("US")),
                ("2001:220::", None, Some("SE")),
                ("2001:220::1", None, Some("KR")),
                ("214.1.1.1", Some(721), None),
            ],
        ),
    ] {
        let networks = open(asn, region).expect("a database");
        for &(text, asn, region) in rows {
            let found = networks.locate(address(text));
            table.row(text, expect_eq("asn", &found.asn, &asn));
            table.row(text, expect_eq("region", &found.region.as_deref(), &region));
            let plain = text.strip_prefix("::ffff:").map_or_else(|| address(text), address);
            table.row(text, expect_eq("address", &found.address, &plain));
        }
    }
    // A database in the place of another knows nothing.
    let crossed = open(CITY, ASN).expect("databases");
    let found = crossed.locate(address("216.160.83.57"));
    table.row("crossed", expect_eq("asn", &found.asn, &None));
    table.row("crossed", expect_eq("region", &found.region, &None));
}

/// What is broken, or made to cost much: refused when it is opened, or it knows nothing. Never a
/// panic, and never long.
#[test]
fn no_database_brings_the_edge_down() {
    const PATIENCE: Duration = Duration::from_secs(20);
    let Some(directory) = databases() else { return };
    let files = fs::read_dir(&directory).expect("a directory");
    let mut paths: Vec<PathBuf> = files.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|it| it == "mmdb"));
    paths.sort();
    let mut addresses: Vec<IpAddr> = [
        "0.0.0.0",
        "1.1.1.1",
        "1.1.1.32",
        "1.128.0.0",
        "2.125.160.216",
        "81.2.69.142",
        "216.160.83.56",
        "255.255.255.255",
        "::",
        "::1",
        "::1.1.1.1",
        "::1:ffff:ffff",
        "::2:0:40",
        "2001:218::1",
        "2001:220::1",
        "2002:5102:45a0::1",
        "abcd::",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ]
    .map(address)
    .to_vec();
    addresses.extend((0..=255).map(|first| IpAddr::from([first, 0, 0, 1])));
    let mut table = Table::default();
    let (mut refused, mut opened) = (Vec::new(), 0);
    for path in &paths {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let began = Instant::now();
        let outcome = std::panic::catch_unwind(|| {
            let networks = Networks::open(Some(path), Some(path))?;
            let _ = networks.builds();
            for address in &addresses {
                let found = networks.locate(*address);
                let short = found.region.is_none_or(|region| region.len() <= 16);
                assert!(short, "a long region");
            }
            Ok::<_, String>(())
        });
        match outcome {
            Ok(Ok(())) => opened += 1,
            Ok(Err(reason)) => {
                let told = !reason.is_empty() && !reason.contains('\n');
                table.row(&name, expect_eq(&reason, &told, &true));
                refused.push(name.clone());
            }
            Err(_) => table.row(&name, Err("it panics".to_owned())),
        }
        let took = began.elapsed();
        table.row(&name, expect_eq(&format!("{took:?}"), &(took < PATIENCE), &true));
    }
    table.row("files", expect_eq("many", &(paths.len() > 60), &true));
    table.row("files", expect_eq("most are good", &(opened > refused.len()), &true));
    // The broken ones are among them.
    for part in [
        "broken-pointers",
        "Broken-Double",
        "no-ipv4-search-tree",
        "pointer-decoder",
        "string-value-entries",
        "cyclic-data-structure",
        "Invalid-Node-Count",
        "dos",
    ] {
        let there = paths.iter().any(|path| path.to_string_lossy().contains(part));
        table.row(part, expect_eq("there", &there, &true));
    }
}

/// A world that finds its nodes by these databases, and believes a proxy on this machine.
async fn world(directory: &Path, asn: &str, region: &str) -> World {
    World::start_in(|here, _, config| {
        with_capsules(here, config);
        fs::copy(directory.join(asn), here.join("asn.mmdb")).expect("a copy");
        fs::copy(directory.join(region), here.join("region.mmdb")).expect("a copy");
        let networks = json!({"asnDatabase": "asn.mmdb", "regionDatabase": "region.mmdb"});
        config["capsules"]["networks"] = networks;
        config["capsules"]["fleetBrake"] = json!({"maxQuarantines": 1000});
        config["edge"]["listeners"][0]["trustedProxies"] = json!([{"cidr": "127.0.0.1"}]);
    })
    .await
}

/// Asks as one whom the proxy saw at `from`.
async fn ask(world: &World, node: &Node, from: &str) -> Outcome {
    let challenged = world.send(&node.request("x").field("X-Forwarded-For", from)).await?;
    let nonce = challenged.one("dpop-nonce").unwrap_or_default();
    world.send(&node.request(nonce).field("X-Forwarded-For", from)).await
}

async fn is(world: &World, node: &Node, from: &str, expect: &str) -> Result<(), String> {
    let answer = ask(world, node, from).await?;
    expect_eq("answer", &told(&answer).as_str(), &expect)
}

/// The network that a node's record is compared with.
fn baseline(world: &World, id: &str) -> Value {
    world.node(id)["baseline"]["network"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn moves_are_weighed_by_them() {
    let Some(directory) = databases() else { return };
    let mut table = Table::default();
    let mut count = 0;
    for (region, moves) in [
        (
            CITY,
            &[
                ("216.160.83.57", json!([209, "US-WA"]), "216.160.83.57", "200 risk 0"),
                ("216.160.83.57", json!([209, "US-WA"]), "::ffff:216.160.83.57", "200 risk 0"),
                ("216.160.83.57", json!([209, "US-WA"]), "216.160.83.66", "200 risk 20"),
                // A region that is not known any more counts as another one.
                ("216.160.83.57", json!([209, "US-WA"]), "65.116.0.1", "200 risk 70"),
                ("216.160.83.57", json!([209, "US-WA"]), "89.160.20.113", "110"),
                ("216.160.83.57", json!([209, "US-WA"]), "10.0.0.1", "110"),
                // The rightmost hop that is not ours counts, whatever the client wrote before it.
                (
                    "216.160.83.57",
                    json!([209, "US-WA"]),
                    "89.160.20.113, 216.160.83.57",
                    "200 risk 0",
                ),
                ("216.160.83.57", json!([209, "US-WA"]), "216.160.83.57, 89.160.20.113", "110"),
                ("214.78.120.1", json!([721, "US-CA"]), "214.78.124.1", "200 risk 20"),
                ("214.78.120.1", json!([721, "US-CA"]), "214.0.1.1", "200 risk 70"),
                ("214.78.120.1", json!([721, "US-CA"]), "149.101.100.1", "110"),
                // What was never known cannot be missed.
                ("81.2.69.160", json!([null, "GB-ENG"]), "2.125.160.217", "200 risk 20"),
                ("81.2.69.160", json!([null, "GB-ENG"]), "175.16.199.1", "200 risk 70"),
                ("2001:218::1", json!([null, "JP"]), "2001:218::ffff:2", "200 risk 0"),
                ("2001:218::1", json!([null, "JP"]), "2001:218:0:1::1", "200 risk 20"),
                ("2001:218::1", json!([null, "JP"]), "2001:220::1", "200 risk 70"),
            ][..],
        ),
        (
            COUNTRY,
            &[
                ("216.160.83.57", json!([209, "US"]), "216.160.83.58", "200 risk 20"),
                ("216.160.83.57", json!([209, "US"]), "214.78.120.1", "200 risk 60"),
                ("216.160.83.57", json!([209, "US"]), "89.160.20.113", "110"),
            ],
        ),
    ] {
        let world = world(&directory, ASN, region).await;
        for (first, found, second, expect) in moves {
            count += 1;
            let node = world.enrol(&format!("node-{count}"), &[]);
            let name = format!("{first} → {second}");
            table.row(&name, is(&world, &node, first, "200 risk 0").await);
            let network = baseline(&world, &node.id);
            let known = json!([network["asn"], network["region"]]);
            table.row(&name, expect_eq("baseline", &known, found));
            table.row(&name, expect_eq("address", &network["address"], &json!(first)));
            let violation = format!("403 NETWORK_POLICY_VIOLATION risk {expect}");
            let expect = if expect.starts_with("200") { expect } else { violation.as_str() };
            table.row(&name, is(&world, &node, second, expect).await);
            // Whatever it scored, it moved nothing.
            let after = baseline(&world, &node.id);
            table.row(&name, expect_eq("baseline", &after, &network));
        }
        // Only whom the edge trusts says where somebody is.
        let node = world.enrol("elsewhere", &[]);
        let claimed = node.request("x").field("X-Forwarded-For", "216.160.83.57");
        let challenged = world.send_from("127.0.0.2", None, &claimed).await.expect("an answer");
        let nonce = challenged.one("dpop-nonce").expect("a nonce").to_owned();
        let claimed = node.request(&nonce).field("X-Forwarded-For", "216.160.83.57");
        let answer = world.send_from("127.0.0.2", None, &claimed).await.expect("an answer");
        table.row("claimed", expect_eq("answer", &told(&answer).as_str(), &"200 risk 0"));
        let network = baseline(&world, "elsewhere");
        table.row("claimed", expect_eq("address", &network["address"], &json!("127.0.0.2")));
        table.row("claimed", expect_eq("asn", &network["asn"], &Value::Null));
    }
}

/// Waits until the edge has looked at its files again by itself, and says how that went.
async fn looked(world: &World, before: usize) -> Option<bool> {
    for _ in 0..500 {
        if let Some(taken) = world.reloads(NOTICED).get(before) {
            return Some(*taken);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_replaced_while_the_edge_runs() {
    const HERE: &str = "23.32.32.1";
    let Some(directory) = databases() else { return };
    let world = world(&directory, ASN, CITY).await;
    let mut table = Table::default();
    let first = world.enrol("node-1", &[]);
    table.row("ok/before", is(&world, &first, HERE, "200 risk 0").await);
    let asn = |id: &str| baseline(&world, id)["asn"].clone();
    table.row("ok/before", expect_eq("asn", &asn("node-1"), &json!(35_994)));
    let target = world.directory.path().join("asn.mmdb");
    let replace = |content: &[u8]| {
        let beside = world.directory.path().join("asn.new");
        fs::write(&beside, content).expect("a file");
        fs::rename(&beside, &target).expect("it is replaced");
    };
    let better = fs::read(directory.join(ISP)).expect("a database");
    let before = world.reloads(NOTICED).len();
    replace(&better);
    table.row("ok/replaced", expect_eq("taken", &looked(&world, before).await, &Some(true)));
    let second = world.enrol("node-2", &[]);
    table.row("ok/replaced", is(&world, &second, HERE, "200 risk 0").await);
    table.row("ok/replaced", expect_eq("asn", &asn("node-2"), &json!(262_589)));
    // Who was there before has not moved: both addresses are looked up in the same build.
    table.row("ok/same build", is(&world, &first, HERE, "200 risk 0").await);
    // Commands read the same configuration, and would stop at a broken file: enrolled beforehand.
    let damages = [
        ("cut", Some(&better[..better.len() / 2])),
        ("empty", Some(&b""[..])),
        ("nonsense", Some(b"not a database")),
        ("gone", None),
    ];
    let nodes: Vec<Node> = damages.iter().map(|(name, _)| world.enrol(name, &[])).collect();
    for ((name, content), node) in damages.iter().zip(&nodes) {
        let before = world.reloads(NOTICED).len();
        match content {
            Some(content) => replace(content),
            None => fs::remove_file(&target).expect("a file"),
        }
        let name = format!("fail/{name}");
        table.row(&name, expect_eq("taken", &looked(&world, before).await, &Some(false)));
        table.row(&name, is(&world, node, HERE, "200 risk 0").await);
    }
    let before = world.reloads(NOTICED).len();
    replace(&better);
    table.row("ok/back", expect_eq("taken", &looked(&world, before).await, &Some(true)));
    for node in &nodes {
        table.row(&node.id, expect_eq("asn", &asn(&node.id), &json!(262_589)));
    }
}
