//! The chain, followed from its first line.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use super::{PAGE, Site, is_watched};
use crate::cli::site::{self, CommandError};
use crate::policy::audit::{CHECKPOINT_TYPE, Checkpoint, Head, Kind, Line};
use crate::policy::digest::Sha256;
use crate::policy::jose::{CompactJws, PublicKey};
use crate::policy::json::{self, Object};
use crate::store::keys::KeyRing;
use crate::store::sqlite::reader::{Reader, Stored};

/// What is asked.
pub(super) struct Asked<'a> {
    pub(super) site: &'a Site,
    pub(super) seen: &'a [(u64, Sha256)],
    pub(super) jwks: Option<&'a Path>,
    pub(super) json: bool,
}

/// What was found.
#[derive(Debug, Default)]
struct Found {
    chain: String,
    head: Head,
    checkpoints: u64,
    /// The last line that a checkpoint covers.
    signed: u64,
    /// Checkpoints whose signature was not looked at.
    unchecked: u64,
    unseen: Vec<u64>,
    /// How many lines there may be without a checkpoint.
    most_unsigned: u64,
}

/// Whether the log is whole.
pub(super) fn run(
    asked: &Asked<'_>,
    out: &mut dyn Write,
    errors: &mut dyn Write,
) -> Result<bool, CommandError> {
    let reader = asked.site.open()?;
    let keys = keys(asked)?;
    let mut found =
        Found { chain: reader.chain()?, most_unsigned: most_unsigned(asked)?, ..Found::default() };
    found.unseen = asked.seen.iter().map(|(seq, _)| *seq).collect();
    let broken = follow(&reader, asked, keys.as_deref(), &mut found, errors)?;
    let broken = broken.or_else(|| unsigned(&found, keys.is_some()));
    let broken = broken.or_else(|| {
        let seq = found.unseen.first()?;
        Some(format!("line {seq} is not there any more: the log was cut off or is another one"))
    });
    report(asked, &found, broken.as_deref(), out)?;
    Ok(broken.is_none())
}

fn follow(
    reader: &Reader,
    asked: &Asked<'_>,
    keys: Option<&[Value]>,
    found: &mut Found,
    errors: &mut dyn Write,
) -> Result<Option<String>, CommandError> {
    let (began, last) = (Instant::now(), reader.last()?);
    let mut told = 0;
    loop {
        let page = reader.lines(found.head.seq + 1, PAGE)?;
        if page.is_empty() {
            return Ok(None);
        }
        for stored in &page {
            let before = found.head;
            let (head, line) = match before.follow(&stored.line) {
                Ok(followed) => followed,
                Err(broken) => return Ok(Some(broken.to_string())),
            };
            found.head = head;
            if !is_found_by(stored, &line, &head.hash) {
                let seq = line.seq;
                let wrong = format!("line {seq} is not what it is found by: a column was changed");
                return Ok(Some(wrong));
            }
            if let Some(wrong) = look(&line, before, keys, found) {
                return Ok(Some(wrong));
            }
            for (seq, hash) in asked.seen.iter().filter(|(seq, _)| *seq == head.seq) {
                if *hash != head.hash {
                    return Ok(Some(format!("line {seq} is not the one that was seen")));
                }
                found.unseen.retain(|unseen| unseen != seq);
            }
        }
        let seconds = began.elapsed().as_secs();
        if is_watched() && seconds > told {
            told = seconds;
            write!(errors, "\r{} of {last} lines", found.head.seq)?;
            errors.flush()?;
        }
    }
}

/// Whether the columns say what the line does.
fn is_found_by(stored: &Stored, line: &Line, hash: &Sha256) -> bool {
    stored.hash == hash.0
        && stored.at == line.at.millis()
        && stored.kind == line.kind.name()
        && stored.id == line.id
        && stored.node == line.node
}

/// How many lines the edge leaves without a checkpoint, and some that a command may have added
/// meanwhile.
fn most_unsigned(asked: &Asked<'_>) -> Result<u64, CommandError> {
    const DEFAULT: u64 = 1000;
    const MEANWHILE: u64 = 2000;
    let lines = match &asked.site.config {
        Some(config) => site::load(config)?.audit.checkpoint_lines,
        None => DEFAULT,
    };
    Ok(lines.saturating_add(MEANWHILE))
}

/// What keeps a log from vouching for itself: whoever can write the file can write all of it anew, but
/// for the signatures.
fn unsigned(found: &Found, keys: bool) -> Option<String> {
    if found.head.seq == 0 {
        return Some("it has no line at all".to_owned());
    }
    if !keys {
        let text = "no keys are at hand (--jwks): its lines follow each other, and all of them could \
                    have been written anew";
        return Some(text.to_owned());
    }
    if found.checkpoints == 0 {
        let text = "it has no checkpoint: the edge signs one as soon as it runs";
        return Some(text.to_owned());
    }
    let after = found.head.seq - found.signed;
    (after > found.most_unsigned).then(|| {
        format!("the last {after} lines have no checkpoint: the edge would have signed them")
    })
}

/// Looks at what is in a line. What is wrong with it.
fn look(line: &Line, before: Head, keys: Option<&[Value]>, found: &mut Found) -> Option<String> {
    let seq = line.seq;
    let begins = line.kind == Kind::Begin;
    if begins != (seq == 1) {
        return Some(format!("line {seq}: a chain begins with its id, and only it does"));
    }
    let chain = line.data.get("chain").and_then(Value::as_str);
    if begins && chain != Some(&found.chain) {
        return Some(format!("line {seq}: it is the beginning of another chain"));
    }
    if line.kind != Kind::Checkpoint {
        return None;
    }
    let checkpoint: Option<Checkpoint> =
        line.data.get("checkpoint").cloned().and_then(|it| serde_json::from_value(it).ok());
    let Some(checkpoint) = checkpoint else {
        return Some(format!("line {seq}: a checkpoint that cannot be read"));
    };
    if checkpoint.chain != found.chain
        || checkpoint.seq != before.seq
        || checkpoint.hash != before.hash
    {
        return Some(format!("line {seq}: a checkpoint of something else"));
    }
    let jws = line.data.get("jws").and_then(Value::as_str).unwrap_or_default();
    match keys {
        None => found.unchecked += 1,
        Some(keys) if is_signed(jws, &checkpoint, keys) => {}
        Some(_) => return Some(format!("line {seq}: a checkpoint that none of the keys signed")),
    }
    let between = before.seq.saturating_sub(found.signed);
    if between > found.most_unsigned {
        return Some(format!("line {seq}: {between} lines before it have no checkpoint"));
    }
    found.checkpoints += 1;
    found.signed = before.seq;
    None
}

/// Whether `jws` is a signature over `checkpoint` by the key of the set that it names.
fn is_signed(jws: &str, checkpoint: &Checkpoint, keys: &[Value]) -> bool {
    let signed = || {
        let jws = CompactJws::parse(jws)?;
        let typ = json::string(&jws.header, "typ").ok()??;
        let kid = json::string(&jws.header, "kid").ok()??;
        let payload: Value = serde_json::to_value(&jws.payload).ok()?;
        let jwk = keys.iter().find(|jwk| jwk.get("kid").and_then(Value::as_str) == Some(kid))?;
        let key = PublicKey::from_jwk(&Object::from(jwk.as_object()?)).ok()?;
        let algorithm = jws.algorithm().filter(|algorithm| key.fits(*algorithm))?;
        let same = serde_json::from_value::<Checkpoint>(payload).ok()? == *checkpoint;
        Some(typ == CHECKPOINT_TYPE && same && jws.verified_by(&key, algorithm))
    };
    signed().unwrap_or(false)
}

/// The keys that checkpoints are verified with; `None` where none are at hand.
fn keys(asked: &Asked<'_>) -> Result<Option<Vec<Value>>, CommandError> {
    let other = |text: String| CommandError::Other(text);
    let set: Value = match (asked.jwks, &asked.site.config) {
        (Some(path), _) => {
            let named =
                |error: &dyn std::fmt::Display| other(format!("{}: {error}", path.display()));
            let text = std::fs::read(path).map_err(|error| named(&error))?;
            serde_json::from_slice(&text).map_err(|error| named(&error))?
        }
        (None, Some(config)) => match site::load(config)?.capsules {
            Some(capsules) => {
                let ring =
                    KeyRing::load(&capsules.keys).map_err(|error| other(error.to_string()))?;
                ring.audit_jwks()
            }
            None => return Ok(None),
        },
        (None, None) => return Ok(None),
    };
    let keys = set.get("keys").and_then(Value::as_array).cloned();
    keys.map(Some).ok_or_else(|| other("a JWK set is expected".to_owned()))
}

fn report(
    asked: &Asked<'_>,
    found: &Found,
    broken: Option<&str>,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let (seq, after) = (found.head.seq, found.head.seq.saturating_sub(found.signed));
    // The last checkpoint's own line is covered by nothing but the next one.
    let after = if found.checkpoints > 0 { after.saturating_sub(1) } else { after };
    if asked.json {
        let told = json!({
            "ok": broken.is_none(),
            "error": broken,
            "chain": found.chain,
            "lines": seq,
            "head": found.head.hash.to_string(),
            "checkpoints": found.checkpoints,
            "signaturesNotChecked": found.unchecked,
            "linesAfterTheLastCheckpoint": after,
        });
        writeln!(out, "{told:#}")?;
        return Ok(());
    }
    writeln!(out, "chain {}: {seq} lines follow each other", found.chain)?;
    let signatures = match (found.checkpoints, found.unchecked) {
        (0, _) => "no checkpoints".to_owned(),
        (count, 0) => format!("{count} checkpoints, each with a good signature"),
        (count, _) => format!("{count} checkpoints, whose signatures were not checked: say --jwks"),
    };
    writeln!(out, "{signatures}; {after} lines after the last one")?;
    writeln!(out, "head: {seq}:{}", found.head.hash)?;
    match broken {
        None => writeln!(out, "the log is whole")?,
        Some(broken) => writeln!(out, "THE LOG IS NOT WHOLE: {broken}")?,
    }
    Ok(())
}
