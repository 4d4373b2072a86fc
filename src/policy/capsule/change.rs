//! What an operator may change of a node.

use std::time::Duration;

use serde::Serialize;

use super::node::{Baseline, Network, Node, Quarantine, Status};
use crate::policy::digest::{Jkt, Sha256, X5tS256};
use crate::policy::time::UnixTime;

/// A change. Its name and what it brings are in the audit record; a secret's hash is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "camelCase", tag = "action")]
pub enum Change {
    /// Another secret.
    RotateSecret {
        /// SHA-256 of its text.
        #[serde(skip)]
        secret: Sha256,
    },
    /// The next version of the node's key.
    RotateKey {
        /// Whether those before are derived no more.
        retire_old: bool,
    },
    /// A disabled node may have capsules again.
    Enable,
    /// No capsules, until it is enabled.
    Disable,
    /// No capsules, for good.
    Revoke,
    /// No capsules, until it is released.
    Quarantine,
    /// A quarantined node may have capsules again; how it stopped is forgotten.
    Release,
    /// The record, which was taken from a backup, is still right.
    Confirm,
    /// This network is the one that it is compared with from now on.
    AcceptNetwork {
        /// The network.
        network: Network,
    },
    /// The next capsule is a first one again: fingerprint, sender and baseline are forgotten.
    Rejoin {
        /// The key that its proofs must have.
        jkt: Option<Jkt>,
        /// The certificate that it must show.
        x5t: Option<X5tS256>,
        /// How long it may take.
        within_ms: Option<u64>,
    },
}

/// Why a change is not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is not for a node of this status.
    #[error("the node is {}: {hint}", .status.name())]
    Status {
        /// The status.
        status: Status,
        /// What would do.
        hint: &'static str,
    },
    /// There are as many versions as there can be.
    #[error("the node's key has no version left")]
    NoVersion,
    /// It has had no capsule yet.
    #[error("the node has had no capsule yet: its first one sets the network")]
    NotJoined,
    /// It is not from a backup, or was confirmed since.
    #[error("there is nothing to confirm: the node is not from a backup, or was confirmed since")]
    NotRestored,
}

impl Change {
    /// Whether it may give somebody what they could not have before. What cannot is done to a record even
    /// if nobody knows whether that is the last one.
    #[must_use]
    pub fn loosens(&self) -> bool {
        match self {
            Self::Enable
            | Self::Release
            | Self::Confirm
            | Self::AcceptNetwork { .. }
            | Self::Rejoin { .. } => true,
            Self::RotateSecret { .. }
            | Self::RotateKey { .. }
            | Self::Disable
            | Self::Revoke
            | Self::Quarantine => false,
        }
    }

    /// The record with the change.
    ///
    /// # Errors
    /// [`Refused`]; then nothing is changed.
    pub fn apply(&self, node: &Node, now: UnixTime) -> Result<Node, Refused> {
        let mut after = node.clone();
        // While it is off its contacts are not seen: no row of them goes on across a change.
        if !matches!(self, Self::RotateSecret { .. } | Self::RotateKey { .. }) {
            after.candidate = None;
        }
        let refused = |hint| Err(Refused::Status { status: node.status, hint });
        match self {
            Self::RotateSecret { secret } => after.secret = Some(*secret),
            Self::RotateKey { retire_old } => {
                after.key_version = node.key_version.checked_add(1).ok_or(Refused::NoVersion)?;
                if *retire_old {
                    after.oldest_key_version = after.key_version;
                }
            }
            Self::Enable if node.status != Status::Disabled => {
                return refused("only a disabled node is enabled; a quarantined one is released");
            }
            Self::Disable if node.status != Status::Active => {
                return refused("only an active node is disabled");
            }
            Self::Quarantine if !matches!(node.status, Status::Active | Status::Disabled) => {
                return refused("only an active or disabled node is quarantined");
            }
            Self::Release if node.status != Status::Quarantined => {
                return refused("only a quarantined node is released");
            }
            Self::Revoke if node.status == Status::Revoked => return refused("that is for good"),
            Self::Enable => after.status = Status::Active,
            Self::Disable => after.status = Status::Disabled,
            Self::Revoke => after.status = Status::Revoked,
            Self::Quarantine => {
                after.status = Status::Quarantined;
                let quarantine = Quarantine { at: now, decision: None, score: 0, network: None };
                after.quarantine = Some(quarantine);
            }
            Self::Release => {
                after.status = Status::Active;
                after.quarantine = None;
                // Or the abrupt stop that it is released from would quarantine it once more.
                after.heard = None;
            }
            Self::Confirm if node.restored.is_none() => return Err(Refused::NotRestored),
            Self::Confirm => after.restored = None,
            Self::AcceptNetwork { network } => {
                if !node.has_joined() {
                    return Err(Refused::NotJoined);
                }
                let network = network.clone();
                after.baseline = Some(Baseline { network, confirmed: now, by_time: false });
            }
            Self::Rejoin { jkt, x5t, within_ms } => {
                after.fingerprint = None;
                (after.jkt, after.x5t) = (*jkt, *x5t);
                after.baseline = None;
                (after.heard, after.granted_boot) = (None, None);
                let within = within_ms.map(Duration::from_millis);
                after.expected.join_before = within.map(|within| now.plus(within));
            }
        }
        Ok(after)
    }
}

#[cfg(test)]
mod tests {
    use super::super::node::{Expectations, NodeId};
    use super::*;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn node(status: Status) -> Node {
        let id = NodeId::parse("node-1").unwrap();
        Node { status, ..Node::new(id, Sha256::of(b"s"), Expectations::default(), NOW) }
    }

    #[test]
    fn each_status_has_the_changes_that_are_for_it() {
        use Status::{Active, Disabled, Quarantined, Revoked};
        for (change, allowed, to) in [
            (Change::Enable, &[Disabled][..], Active),
            (Change::Disable, &[Active], Disabled),
            (Change::Quarantine, &[Active, Disabled], Quarantined),
            (Change::Release, &[Quarantined], Active),
            (Change::Revoke, &[Active, Disabled, Quarantined], Revoked),
        ] {
            for status in Status::ALL {
                let after = change.apply(&node(status), NOW).map(|node| node.status).ok();
                let expect = allowed.contains(&status).then_some(to);
                assert_eq!(after, expect, "{change:?} {status:?}");
            }
        }
    }

    #[test]
    fn what_is_from_a_backup_is_confirmed_once_and_stays_what_it_was() {
        for status in Status::ALL {
            let restored = Node { restored: Some(NOW), ..node(status) };
            let after = Change::Confirm.apply(&restored, NOW).unwrap();
            assert_eq!((after.restored, after.status), (None, status));
            assert_eq!(Change::Confirm.apply(&after, NOW), Err(Refused::NotRestored));
        }
        // Nothing else confirms it.
        let restored = Node { restored: Some(NOW), ..node(Status::Quarantined) };
        assert_eq!(Change::Release.apply(&restored, NOW).unwrap().restored, Some(NOW));
        assert!(Change::Confirm.loosens());
    }

    #[test]
    fn a_secret_is_not_told() {
        let change = Change::RotateSecret { secret: Sha256::of(b"new") };
        assert_eq!(serde_json::to_string(&change).unwrap(), r#"{"action":"rotate-secret"}"#);
        let after = change.apply(&node(Status::Active), NOW).unwrap();
        assert!(Node::knows(Some(&after), &Sha256::of(b"new")));
        assert!(!Node::knows(Some(&after), &Sha256::of(b"s")));
    }

    #[test]
    fn keys_go_up_and_old_ones_stay_unless_they_are_retired() {
        let versions = |change: Change, node: &Node| {
            let after = change.apply(node, NOW).unwrap();
            (after.oldest_key_version, after.key_version)
        };
        let mut node = node(Status::Active);
        assert_eq!(versions(Change::RotateKey { retire_old: false }, &node), (1, 2));
        node.key_version = 5;
        assert_eq!(versions(Change::RotateKey { retire_old: true }, &node), (6, 6));
        node.key_version = u32::MAX;
        let last = Change::RotateKey { retire_old: false }.apply(&node, NOW);
        assert_eq!(last, Err(Refused::NoVersion));
    }

    #[test]
    fn a_network_is_accepted_of_a_node_that_has_one() {
        let network = Network { address: [192, 0, 2, 1].into(), asn: Some(1), region: None };
        let change = Change::AcceptNetwork { network: network.clone() };
        assert_eq!(change.apply(&node(Status::Active), NOW), Err(Refused::NotJoined));
        let joined = Node { fingerprint: Some(Sha256::of(b"f")), ..node(Status::Active) };
        let after = change.apply(&joined, NOW).unwrap();
        assert_eq!(after.baseline, Some(Baseline { network, confirmed: NOW, by_time: false }));
        let rejoin = Change::Rejoin { jkt: None, x5t: None, within_ms: Some(1000) };
        let again = rejoin.apply(&after, NOW).unwrap();
        assert!(!again.has_joined() && again.baseline.is_none());
        assert_eq!(again.expected.join_before, Some(NOW.plus(Duration::from_secs(1))));
    }
}
