//! `store`: the file of this edge, and the servers that edges share.

use std::net::IpAddr;

use crate::config::item::{Text, Words};
use crate::config::section::Section;
use crate::config::{NonceStore, ReplayStore, Store, files};
use crate::policy::reach::Reach;
use crate::policy::target::split_authority;
use crate::store::redis::{Address, Login, Settings, Tls, Topology, Wait};

use super::security::Security;
use super::upstream_tls;

/// The store's file where none is named.
const STORE_FILE: &str = "holdfast.db";

const KINDS: Words<Kind> = &[("embedded", Kind::Embedded), ("redis", Kind::Redis)];
const MODES: Words<Mode> =
    &[("standalone", Mode::Standalone), ("sentinel", Mode::Sentinel), ("cluster", Mode::Cluster)];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Embedded,
    Redis,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Standalone,
    Sentinel,
    Cluster,
}

/// Resolves `store`, which is `None` where nothing needs one. `binds` is whether some issuer's tokens are
/// recorded.
pub(super) fn resolve(
    root: &Section<'_>,
    security: &Security<'_>,
    binds: bool,
    reach: &Reach,
) -> Option<Store> {
    let keeps = binds || security.bypass.allowed || !security.rotation_grace.is_zero();
    let needed = keeps || root.has("capsules");
    let asked = root.has("store") || root.has("audit");
    let section = root.section("store");
    let kind = section.word("kind", KINDS).unwrap_or(Kind::Embedded);
    let path = section.text("path").map(Text::path).map(|(path, _)| path);
    let path = path.unwrap_or_else(|| root.sink().base().join(STORE_FILE));
    let given = section.has("redis");
    let servers = redis(&section.section("redis"), kind == Kind::Redis || given, reach);
    if kind == Kind::Embedded && given {
        let message = "has no effect but for `holdfast store migrate`: `store.kind` is not `redis`";
        section.warn("redis", message);
    }
    check_use(&section, kind == Kind::Redis, security);
    let servers = servers.filter(|_| kind == Kind::Redis || given);
    let (redis, other) = if kind == Kind::Redis { (servers, None) } else { (None, servers) };
    (asked || needed).then_some(Store { path, redis, other })
}

/// Whether what is to be remembered at servers has any, and is of use there.
fn check_use(section: &Section<'_>, shares: bool, security: &Security<'_>) {
    let proofs = security.replay_store == ReplayStore::Redis;
    let nonces = security.nonce_store == NonceStore::Redis;
    if proofs && !shares {
        security.replay.error("store", "`redis` needs `store.kind: redis`");
    }
    if nonces && !shares {
        security.nonce.error("store", "`redis` needs `store.kind: redis`");
    }
    if shares && !proofs {
        let message = "`redis`, and yet `security.senderConstraints.dpop.replay.store` is `memory`: \
                       a proof can be used once at each edge";
        section.warn("kind", message);
    }
}

fn redis(section: &Section<'_>, needed: bool, reach: &Reach) -> Option<Settings> {
    let mode = section.word("mode", MODES).unwrap_or(Mode::Standalone);
    let nodes = section.texts("nodes", 64).unwrap_or_default();
    if needed && section.lacks("nodes") {
        section.error("nodes", "is required: the servers, each as `host:port`");
    }
    let nodes: Vec<_> = nodes.iter().filter_map(|text| node(text, reach)).collect();
    let login = login(section, "user", "passwordFile");
    let topology = topology(section, mode, nodes, needed);
    let tls = section.has("tls").then(|| tls(&section.section("tls"))).flatten();
    // Known, whether it is there or not.
    let _ = section.item("tls");
    let replicas = section.count("waitReplicas", 0, 0..=16);
    let wait = Wait { replicas, within: section.duration("waitTimeout", "200ms", ["1ms", "10s"]) };
    if replicas == 0 && section.has("waitTimeout") {
        section.warn("waitTimeout", "has no effect: `waitReplicas` is 0");
    }
    Some(Settings {
        lookup: reach.lookup(),
        topology,
        login,
        tls,
        prefix: prefix(section),
        connect_timeout: section.duration("connectTimeout", "2s", ["10ms", "30s"]),
        timeout: section.duration("timeout", "500ms", ["10ms", "30s"]),
        wait,
        require_persistence: section.flag("requirePersistence").unwrap_or(false),
    })
}

fn topology(section: &Section<'_>, mode: Mode, nodes: Vec<Address>, needed: bool) -> Topology {
    let master = section.text("sentinelMaster").map(|text| text.value);
    let sentinels = login(section, "sentinelUser", "sentinelPasswordFile");
    if mode != Mode::Sentinel {
        for key in ["sentinelMaster", "sentinelUser", "sentinelPasswordFile"] {
            if section.has(key) {
                section.error(key, "has no effect: `mode` is not `sentinel`");
            }
        }
    } else if needed && !section.has("sentinelMaster") {
        section.error("sentinelMaster", "is required: what the sentinels call the master");
    }
    match mode {
        Mode::Standalone => Topology::Standalone(nodes),
        Mode::Cluster => Topology::Cluster(nodes),
        Mode::Sentinel => {
            let master = master.unwrap_or_default();
            Topology::Sentinel { sentinels: nodes, master, login: sentinels }
        }
    }
}

fn node(text: &Text<'_>, reach: &Reach) -> Option<Address> {
    match split_authority(&text.value) {
        Some((host, Some(port))) => {
            let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            if reach.is_sealed() && host.parse::<IpAddr>().is_err() {
                text.error(format!(
                    "`edge.sealed`: `{}` is a name, which would be looked up over the network; give its \
                     address, and where there is `tls`, the name as `serverName`",
                    text.written
                ));
            }
            Some(Address { host, port })
        }
        Some(_) | None => {
            text.error("a host and a port are expected, as in `127.0.0.1:6379`");
            None
        }
    }
}

fn login(section: &Section<'_>, user: &'static str, password: &'static str) -> Login {
    let name = section.text(user);
    let file = section.text(password).and_then(|text| {
        let (path, text) = text.path();
        files::secret(text).map(|_| path)
    });
    if name.is_some() && !section.has(password) {
        section.error(password, format!("is required with `{user}`"));
    }
    Login { user: name.map(|text| text.value), password_file: file }
}

fn tls(section: &Section<'_>) -> Option<Tls> {
    if section.lacks("authorities") {
        let message = "is required: PEM files of the authorities that sign the servers' \
                       certificates, or `system`";
        section.error("authorities", message);
    }
    let authorities = upstream_tls::authority_files(section);
    let server_name = section.text("serverName");
    if let Some(text) = &server_name
        && !upstream_tls::is_certifiable(&text.value)
    {
        text.error(format!("`{}` is no name that a certificate can have", text.written));
    }
    let client = upstream_tls::client(section).map(|files| (files.certificate, files.key));
    Some(Tls { authorities, server_name: server_name.map(|text| text.value), client })
}

fn prefix(section: &Section<'_>) -> String {
    let Some(text) = section.text("prefix") else { return "holdfast".to_owned() };
    if !crate::config::value::is_name(&text.value) {
        text.error("1 to 64 letters, digits, `_`, `-` and `.` are expected");
    }
    text.value
}
