//! Whether a store that others share is still the one that it was.
//!
//! A shared store keeps a ledger: each change that matters to who is served (a revocation, a quarantine,
//! another secret, a first capsule) has a number and a random id in it. Whoever has seen the ledger
//! remembers the last of its entries. A store in which that entry is not there, or another one, has lost
//! what happened since: it was restored, wiped, or a replica took over that had not heard of it. Nobody
//! can tell which nodes were revoked in what is lost, so that none is served until an operator has looked
//! and said that the store is to be gone on from. That is an entry too, with a time that only goes up.
//!
//! Whoever remembers nothing can tell nothing. It goes by the word of somebody who could, and who has held
//! the store against that since it could last have lost something: who has *vouched* for it.

use serde::{Deserialize, Serialize};

use super::capsule::node::Node;
use super::epoch::Epoch;

/// An entry of the ledger, as whoever has seen it remembers it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mark {
    /// When an operator last said that the store is to be gone on from, milliseconds since the epoch; 0:
    /// never.
    pub confirmed: i64,
    /// The entry's number; 0 before the first.
    pub seq: u64,
    /// Its id.
    pub id: String,
}

impl Mark {
    /// Whether it was made after `other`.
    #[must_use]
    pub fn is_after(&self, other: &Self) -> bool {
        (self.confirmed, self.seq) > (other.confirmed, other.seq)
    }
}

/// The ledger as the store has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Its last entry.
    pub last: Mark,
    /// Whether somebody has found something missing.
    pub doubted: bool,
    /// The epoch in which somebody who remembers an entry has last found nothing missing.
    pub vouched: Option<Epoch>,
    /// The id of the entry that has the number of the mark that it is held against.
    pub at_mark: Option<String>,
}

/// What a ledger is to whoever remembers a mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The store goes on from the mark. What is to be remembered from now on, where that is another.
    Follows(Option<Mark>),
    /// Somebody else has found something missing.
    Doubted,
    /// It does not go on from the mark.
    Behind,
    /// Nothing is remembered that it could be held against, and nobody vouches for it.
    Unknown,
}

impl Ledger {
    /// Holds it against what is remembered. `whole` is whether somebody has vouched for it in this epoch, or
    /// it was known from its first entry on.
    #[must_use]
    pub fn against(&self, mark: &Mark, whole: bool) -> Standing {
        // Confirmed since: the operator has seen more than whoever remembers this mark.
        let newer = self.last.confirmed > mark.confirmed;
        let same = self.last.confirmed == mark.confirmed;
        let there = mark.seq == 0 || self.at_mark.as_ref() == Some(&mark.id);
        let follows = same && there && self.last.seq >= mark.seq;
        if !newer && !follows {
            return Standing::Behind;
        }
        if self.doubted {
            return Standing::Doubted;
        }
        if *mark == Mark::default() && self.last != *mark && !whole {
            return Standing::Unknown;
        }
        Standing::Follows((self.last != *mark).then(|| self.last.clone()))
    }
}

/// Whether a change matters to who is served, and with what: everything but what each contact changes.
#[must_use]
pub fn matters(before: Option<&Node>, after: Option<&Node>) -> bool {
    let (Some(before), Some(after)) = (before, after) else {
        return before.is_some() || after.is_some();
    };
    let passing = Node {
        candidate: after.candidate.clone(),
        last: after.last.clone(),
        heard: after.heard.clone(),
        granted_boot: after.granted_boot.clone(),
        issued: after.issued.clone(),
        versions: after.versions.clone(),
        counters: after.counters,
        ..before.clone()
    };
    passing != *after
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::capsule::node::{Counters, Expectations, NodeId, Status};
    use crate::policy::digest::Sha256;
    use crate::policy::time::UnixTime;

    fn mark(confirmed: i64, seq: u64, id: &str) -> Mark {
        Mark { confirmed, seq, id: id.to_owned() }
    }

    #[test]
    fn a_store_follows_or_is_behind() {
        let mine = mark(7, 3, "c");
        let ledger = |last: Mark, at_mark: Option<&str>| Ledger {
            last,
            doubted: false,
            vouched: None,
            at_mark: at_mark.map(str::to_owned),
        };
        for (name, ledger, expect) in [
            ("the same", ledger(mine.clone(), Some("c")), Standing::Follows(None)),
            (
                "further",
                ledger(mark(7, 4, "d"), Some("c")),
                Standing::Follows(Some(mark(7, 4, "d"))),
            ),
            ("shorter", ledger(mark(7, 2, "b"), None), Standing::Behind),
            ("shorter, with its entry", ledger(mark(7, 2, "b"), Some("c")), Standing::Behind),
            ("another entry", ledger(mark(7, 3, "x"), Some("x")), Standing::Behind),
            ("longer, another entry", ledger(mark(7, 9, "y"), Some("x")), Standing::Behind),
            ("empty", ledger(Mark::default(), None), Standing::Behind),
            ("confirmed earlier", ledger(mark(6, 9, "y"), Some("c")), Standing::Behind),
            (
                "confirmed since",
                ledger(mark(8, 2, "z"), None),
                Standing::Follows(Some(mark(8, 2, "z"))),
            ),
        ] {
            assert_eq!(ledger.against(&mine, false), expect, "{name}");
        }
        // Whoever has seen nothing yet takes what is there by the word of somebody who has.
        let (first, nothing) = (ledger(mark(7, 3, "c"), None), Mark::default());
        assert_eq!(first.against(&nothing, true), Standing::Follows(Some(mine.clone())));
        assert_eq!(first.against(&nothing, false), Standing::Unknown);
        let new = ledger(Mark::default(), None);
        assert_eq!(new.against(&nothing, false), Standing::Follows(None));
        let doubted = Ledger { doubted: true, ..ledger(mine.clone(), Some("c")) };
        assert_eq!(doubted.against(&mine, true), Standing::Doubted);
        assert_eq!(doubted.against(&nothing, false), Standing::Doubted);
    }

    #[test]
    fn what_matters() {
        let now = UnixTime::from_secs(1_800_000_000);
        let id = NodeId::parse("node-1").unwrap();
        let node = Node::new(id, Sha256::of(b"secret"), Expectations::default(), now);
        assert!(matters(None, Some(&node)) && matters(Some(&node), None));
        assert!(!matters(None, None) && !matters(Some(&node), Some(&node)));
        let counted = Node {
            counters: Counters { granted: 1, ..Counters::default() },
            granted_boot: Some("boot".to_owned()),
            ..node.clone()
        };
        assert!(!matters(Some(&node), Some(&counted)));
        for after in [
            Node { status: Status::Revoked, ..counted.clone() },
            Node { secret: Some(Sha256::of(b"another")), ..counted.clone() },
            Node { fingerprint: Some(Sha256::of(b"machine")), ..counted.clone() },
            Node { key_version: 2, ..counted.clone() },
        ] {
            assert!(matters(Some(&node), Some(&after)));
        }
    }
}
