//! Which store it is: marks that it keeps, and who its masters are.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use redis::{Pipeline, Value};

use super::inspect::Identity;
use super::keys::{Keys, Tag};
use crate::policy::digest::{Sha256, lp};
use crate::policy::epoch::Epoch;
use crate::policy::time::UnixTime;

/// A tag's mark: a random text that is there as long as nobody wiped the server.
pub(super) type Mark = Vec<u8>;

/// Sets a tag's mark where there is none, and asks for it: two answers.
///
/// It has no TTL: a mark that ended would be taken for a store that was wiped.
pub(super) fn ask_mark(pipeline: &mut Pipeline, keys: &Keys, tag: Tag, random: &[u8; 16]) {
    let key = keys.named(tag, "mark");
    let fresh = URL_SAFE_NO_PAD.encode(random);
    pipeline.cmd("SET").arg(&key).arg(fresh).arg("NX");
    pipeline.cmd("GET").arg(key);
}

/// Reads one tag's mark.
///
/// # Errors
/// In words, where the server has none after all.
pub(super) fn mark(set: &Value, got: &Value) -> Result<Mark, String> {
    match (set, got) {
        (Value::ServerError(error), _) | (_, Value::ServerError(error)) => {
            let detail = error.details().unwrap_or_default();
            Err(format!("its mark cannot be kept: {} {detail}", error.code()))
        }
        (_, Value::BulkString(mark)) if !mark.is_empty() => Ok(mark.clone()),
        (_, _) => Err("keeps no mark".to_owned()),
    }
}

/// SHA-256 over `lp("holdfast-epoch/v1")`, every tag's mark in order, and every master's identity,
/// sorted.
pub(super) fn of(marks: &[Mark], masters: &[Identity]) -> Epoch {
    let mut text = Vec::new();
    lp(&mut text, b"holdfast-epoch/v1");
    for mark in marks {
        lp(&mut text, mark);
    }
    let mut masters: Vec<_> = masters.iter().collect();
    masters.sort();
    for master in masters {
        lp(&mut text, master.run.as_bytes());
        lp(&mut text, master.replication.as_bytes());
    }
    Epoch(Sha256::of(&text))
}

/// What the store remembers of its epoch's begin: `<epoch> <milliseconds>`.
pub(super) fn begun(epoch: Epoch, at: UnixTime) -> String {
    format!("{} {}", epoch.0, at.millis())
}

/// Since when this epoch is one; `None` where what is kept is another's.
pub(super) fn since(epoch: Epoch, kept: &Value) -> Option<UnixTime> {
    let Value::BulkString(kept) = kept else { return None };
    let (name, at) = std::str::from_utf8(kept).ok()?.split_once(' ')?;
    let at = at.parse().ok().map(UnixTime::from_millis)?;
    (Sha256::from_base64url(name) == Some(epoch.0)).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn master(run: &str, replication: &str) -> Identity {
        Identity { run: run.to_owned(), replication: replication.to_owned() }
    }

    #[test]
    fn another_mark_or_master_is_another_epoch() {
        let marks = |first: &str| vec![first.as_bytes().to_vec(), b"two".to_vec()];
        let (a, b) = (master("a", "r"), master("b", "s"));
        let epoch = of(&marks("one"), &[a.clone(), b.clone()]);
        assert_eq!(epoch, of(&marks("one"), &[b.clone(), a.clone()]));
        for other in [
            of(&marks("won"), &[a.clone(), b.clone()]),
            of(&marks("one"), std::slice::from_ref(&a)),
            of(&marks("one"), &[master("a", "t"), b.clone()]),
            of(&marks("one"), &[master("c", "r"), b.clone()]),
        ] {
            assert_ne!(epoch, other);
        }
    }

    #[test]
    fn remembers_its_begin_and_no_other_s() {
        let epoch = of(&[], &[master("a", "r")]);
        let at = UnixTime::from_millis(1_800_000_000_123);
        let kept = Value::BulkString(begun(epoch, at).into_bytes());
        assert_eq!(since(epoch, &kept), Some(at));
        assert_eq!(since(of(&[], &[]), &kept), None);
        assert_eq!(since(epoch, &Value::Nil), None);
    }
}
