//! What a server is and how it keeps what it is given, as it says itself.

use redis::{Pipeline, Value};

/// Which process holds which data set. Another one of either is another store: what the one before had
/// acknowledged may not be there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Identity {
    /// `run_id`: another at each start of the server.
    pub(super) run: String,
    /// `master_replid`: another where a replica was made master.
    pub(super) replication: String,
    /// `evicted_keys`: how many keys the process has dropped to make room. Which they were nobody knows.
    pub(super) evicted: String,
}

/// What `INFO` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Info {
    pub(super) identity: Identity,
    /// Whether it takes writes as a master.
    pub(super) master: bool,
    /// Whether it is reading its data set and does not answer for it yet.
    pub(super) loading: bool,
    /// `maxmemory_policy`.
    pub(super) eviction: Option<String>,
    /// `aof_enabled`.
    pub(super) appends: bool,
    /// `cluster_enabled`.
    pub(super) clustered: bool,
}

/// Asks for [`Info`]; the answers go to [`info`].
pub(super) fn ask_info(pipeline: &mut Pipeline) {
    for section in ["server", "replication", "stats", "memory", "persistence", "cluster"] {
        pipeline.cmd("INFO").arg(section);
    }
}

/// How many answers [`ask_info`] gets.
pub(super) const INFO_ANSWERS: usize = 6;

/// Reads them.
///
/// # Errors
/// In words, where the server does not say who it is: then nobody could tell it from another.
pub(super) fn info(answers: &[Value]) -> Result<Info, String> {
    let mut text = String::new();
    for answer in answers {
        match answer {
            Value::BulkString(bytes) => text.push_str(&String::from_utf8_lossy(bytes)),
            Value::VerbatimString { text: found, .. } => text.push_str(found),
            Value::ServerError(error) if error.code() == "NOPERM" => {
                return Err(
                    "the user may not call INFO, by which a wiped or failed-over store is \
                            noticed: add +info to its ACL"
                        .to_owned(),
                );
            }
            Value::ServerError(error) => return Err(format!("INFO: {}", error.code())),
            other => return Err(format!("INFO: {other:?} is no answer")),
        }
        text.push('\n');
    }
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    };
    let needed = |name: &str| field(name).ok_or(format!("INFO has no {name}"));
    let yes = |name: &str| field(name).as_deref() == Some("1");
    Ok(Info {
        identity: Identity {
            run: needed("run_id")?,
            replication: needed("master_replid")?,
            evicted: needed("evicted_keys")?,
        },
        master: needed("role")? == "master",
        loading: yes("loading"),
        eviction: field("maxmemory_policy"),
        appends: yes("aof_enabled"),
        clustered: yes("cluster_enabled"),
    })
}

/// Asks for what only `CONFIG` says; the answers go to [`keeping`]. One parameter each: servers before
/// 7.0 take no more.
pub(super) fn ask_keeping(pipeline: &mut Pipeline) {
    for name in KEEPING {
        pipeline.cmd("CONFIG").arg("GET").arg(name);
    }
}

const KEEPING: [&str; 3] = ["maxmemory-policy", "appendfsync", "save"];

/// What of a server must be refused, and what must be said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Keeping {
    /// Why the server must not be used at all.
    pub(super) refused: Option<String>,
    /// Why it would not have everything after a restart.
    pub(super) forgets: Option<String>,
    /// What could not be seen.
    pub(super) unseen: Option<String>,
}

/// Judges how a server keeps what it is given.
pub(super) fn keeping(info: &Info, answers: &[Value]) -> Keeping {
    let mut found = answers.iter().map(parameter);
    let [eviction, fsync, save] = [(); 3].map(|()| found.next().flatten());
    let mut keeping = Keeping::default();
    if fsync.is_none() || save.is_none() {
        keeping.unseen = Some(
            "the user may not call CONFIG GET: appendfsync and save were not seen; add \
             +config|get to its ACL"
                .to_owned(),
        );
    }
    match eviction.or_else(|| info.eviction.clone()).as_deref() {
        Some("noeviction") => {}
        Some(other) => {
            keeping.refused = Some(format!(
                "maxmemory-policy is {other}: a server that drops keys to make room lets proofs be \
                 replayed; set it to noeviction"
            ));
        }
        None => keeping.refused = Some("does not say its maxmemory-policy".to_owned()),
    }
    keeping.forgets = match (info.appends, fsync.as_deref(), save.as_deref()) {
        (true, Some("no"), _) => Some(
            "appendfsync is no: what was written in the last half minute is gone after a crash"
                .to_owned(),
        ),
        // Seen or not, the append-only file is there.
        (true, _, _) => None,
        (false, _, Some("")) => Some(
            "appendonly is no and there is no save: everything is gone after a restart".to_owned(),
        ),
        (false, _, Some(_)) => Some(
            "appendonly is no: what was written since the last save is gone after a crash"
                .to_owned(),
        ),
        (false, _, None) => Some("appendonly is no".to_owned()),
    };
    keeping
}

/// The value in `CONFIG GET`'s answer.
fn parameter(answer: &Value) -> Option<String> {
    let pair: Option<&Value> = match answer {
        Value::Array(items) => items.get(1),
        Value::Map(items) => items.first().map(|(_, value)| value),
        _ => None,
    };
    match pair? {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn told(policy: &str, appends: u8) -> Info {
        info(&[
            bulk("# Server\r\nrun_id:abc\r\n"),
            bulk("role:master\r\nmaster_replid:def\r\n"),
            bulk("evicted_keys:0\r\n"),
            bulk(&format!("maxmemory_policy:{policy}\r\n")),
            bulk(&format!("loading:0\r\naof_enabled:{appends}\r\n")),
            bulk("cluster_enabled:0\r\n"),
        ])
        .unwrap()
    }

    fn get(values: [&str; 3]) -> Vec<Value> {
        values.map(|value| Value::Array(vec![bulk("name"), bulk(value)])).to_vec()
    }

    #[test]
    fn reads_who_it_is() {
        let info = told("noeviction", 1);
        let of = |text: &str| text.to_owned();
        let expect = Identity { run: of("abc"), replication: of("def"), evicted: of("0") };
        assert_eq!(info.identity, expect);
        assert!(info.master && info.appends && !info.loading && !info.clustered);
        assert!(super::info(&[bulk("role:master\r\nmaster_replid:def\r\n")]).is_err());
    }

    #[test]
    fn judges_how_it_keeps() {
        let judge = |policy, appends, answers: [&str; 3]| {
            let keeping = keeping(&told(policy, appends), &get(answers));
            (keeping.refused.is_some(), keeping.forgets.is_some(), keeping.unseen.is_some())
        };
        let noeviction = "noeviction";
        assert_eq!(judge(noeviction, 1, [noeviction, "everysec", ""]), (false, false, false));
        assert_eq!(judge(noeviction, 1, [noeviction, "always", "1 1"]), (false, false, false));
        assert_eq!(judge(noeviction, 1, [noeviction, "no", ""]), (false, true, false));
        assert_eq!(judge(noeviction, 0, [noeviction, "everysec", ""]), (false, true, false));
        assert_eq!(judge(noeviction, 0, [noeviction, "everysec", "1 1"]), (false, true, false));
        assert_eq!(judge("allkeys-lru", 1, ["allkeys-lru", "always", ""]), (true, false, false));
        // What CONFIG does not say, INFO does, for the most part.
        let keeping = keeping(&told("volatile-ttl", 1), &[Value::Nil, Value::Nil, Value::Nil]);
        assert!(keeping.refused.is_some() && keeping.unseen.is_some());
    }
}
