//! What a store keeps, whichever kind it is: one record a line, and what all of them come to.
//!
//! A record is the same text in both kinds of store, so that a store that was moved, there and back again,
//! has the same checksum. What only one kind has is not in it: the audit log, which stays with its edge;
//! the ledger and epochs of a shared store; counts that end by themselves (proofs, nonces, rate limits).

mod embedded;
mod servers;
#[cfg(test)]
mod tests;
pub mod transfer;

use std::collections::BTreeMap;

use async_trait::async_trait;
use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

pub use embedded::Embedded;
pub use servers::Servers;

use super::sqlite::Fault;
use crate::policy::bypass::Seen;
use crate::policy::capsule::node::{Node, NodeId};
use crate::policy::digest::{Jkt, Sha256, X5tS256};
use crate::policy::grant::{BindingRecord, RecordKey, TokenKind};
use crate::policy::time::UnixTime;

/// One record.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Record {
    /// A node.
    Node {
        /// What its next change is compared with.
        revision: i64,
        /// The record, with the hash of its secret.
        node: Box<Node>,
    },
    /// An id whose node was taken out.
    Removed {
        /// The id.
        id: NodeId,
        /// The last version of its key.
        key_version: u32,
    },
    /// A quarantine, for the fleet brake.
    Quarantine {
        /// When.
        at: UnixTime,
        /// The node.
        node: NodeId,
        /// Which of those of this node at this time, from 0.
        nth: u32,
    },
    /// What a token is bound to.
    Token(Box<Token>),
    /// A certificate that tokens are bound to: DER, in hexadecimal.
    Certificate {
        /// The certificate.
        der: String,
    },
    /// When the temporary bypass's flag was first seen. The earliest counts, wherever it is from: it is
    /// carried, and not counted.
    Bypass(Seen),
}

/// A record of a token.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Token {
    /// What it is found by.
    pub key: Sha256,
    kind: String,
    tenant: Option<String>,
    client: Option<String>,
    cnf_jkt: Option<Sha256>,
    sender_certificate: Option<Sha256>,
    scope: Option<String>,
    /// From when on it is of no use.
    pub expires: UnixTime,
    family: String,
    bypass: Option<String>,
    /// Whether it was revoked alone.
    pub revoked: bool,
    /// Whether its grant was, or is not known any more.
    pub grant_revoked: bool,
}

impl Token {
    /// That of a record; whether it was revoked stands beside it.
    #[must_use]
    pub fn of(key: RecordKey, record: BindingRecord, revoked: bool, grant_revoked: bool) -> Self {
        Self {
            key: key.0,
            kind: record.kind.name().to_owned(),
            tenant: record.tenant,
            client: record.client,
            cnf_jkt: record.cnf_jkt.map(|it| it.0),
            sender_certificate: record.sender_certificate.map(|it| it.0),
            scope: record.scope,
            expires: record.expires,
            family: record.family,
            bypass: record.bypass,
            revoked,
            grant_revoked,
        }
    }

    /// The record, revoked if the token was alone.
    ///
    /// # Errors
    /// [`Fault::Malformed`] for a kind that is none.
    pub fn record(&self) -> Result<BindingRecord, Fault> {
        Ok(BindingRecord {
            kind: TokenKind::from_name(&self.kind).ok_or(Fault::Malformed)?,
            tenant: self.tenant.clone(),
            client: self.client.clone(),
            cnf_jkt: self.cnf_jkt.map(Jkt),
            sender_certificate: self.sender_certificate.map(X5tS256),
            scope: self.scope.clone(),
            expires: self.expires,
            family: self.family.clone(),
            bypass: self.bypass.clone(),
            revoked: self.revoked,
        })
    }
}

impl Record {
    /// The kind's name where records are counted; `None` for what is not.
    #[must_use]
    pub fn kind(&self) -> Option<&'static str> {
        match self {
            Self::Node { .. } => Some("nodes"),
            Self::Removed { .. } => Some("removed"),
            Self::Quarantine { .. } => Some("quarantines"),
            Self::Token(_) => Some("tokens"),
            Self::Certificate { .. } => Some("certificates"),
            Self::Bypass(_) => None,
        }
    }

    /// That of a certificate in DER.
    #[must_use]
    pub fn certificate(der: &[u8]) -> Self {
        Self::Certificate { der: hex(der) }
    }

    /// The certificate in DER.
    ///
    /// # Errors
    /// [`Fault::Malformed`] for what is none.
    pub fn certificate_der(&self) -> Result<Vec<u8>, Fault> {
        match self {
            Self::Certificate { der } => unhex(der),
            Self::Node { .. }
            | Self::Removed { .. }
            | Self::Quarantine { .. }
            | Self::Token(_)
            | Self::Bypass(_) => Err(Fault::Malformed),
        }
    }

    /// The record as a line, without its end.
    ///
    /// # Errors
    /// [`Fault::Malformed`], which does not happen.
    pub fn line(&self) -> Result<String, Fault> {
        serde_json::to_string(self).map_err(|_| Fault::Malformed)
    }

    /// Reads a line.
    ///
    /// # Errors
    /// [`Fault::Malformed`].
    pub fn read(line: &str) -> Result<Self, Fault> {
        serde_json::from_str(line).map_err(|_| Fault::Malformed)
    }
}

/// Bytes in hexadecimal.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Result<Vec<u8>, Fault> {
    let digits = text.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).map_err(|_| Fault::Malformed)?;
        u8::from_str_radix(pair, 16).map_err(|_| Fault::Malformed)
    });
    digits.collect()
}

/// Records on their way into a count and a checksum: 32 bytes of each.
#[derive(Debug, Default)]
pub struct Tally(BTreeMap<&'static str, Vec<[u8; 32]>>);

/// How many there are of a kind, and the SHA-256 over the SHA-256 of each line, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Count {
    /// How many.
    pub count: u64,
    /// The checksum.
    pub checksum: Sha256,
}

/// By kind.
pub type Counts = BTreeMap<&'static str, Count>;

impl Tally {
    /// Takes in a record.
    ///
    /// # Errors
    /// [`Fault::Malformed`].
    pub fn add(&mut self, record: &Record) -> Result<(), Fault> {
        if let Some(kind) = record.kind() {
            let hash = Sha256::of(record.line()?.as_bytes()).0;
            self.0.entry(kind).or_default().push(hash);
        }
        Ok(())
    }

    /// Puts them in order. What was shown twice counts once.
    pub fn sort(&mut self) {
        for hashes in self.0.values_mut() {
            hashes.sort_unstable();
            hashes.dedup();
        }
    }

    /// What they come to, once they are sorted.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let counted = self.0.iter().map(|(kind, hashes)| {
            let mut context = digest::Context::new(&digest::SHA256);
            hashes.iter().for_each(|hash| context.update(hash));
            let mut checksum = [0; 32];
            checksum.copy_from_slice(context.finish().as_ref());
            (*kind, Count { count: hashes.len() as u64, checksum: Sha256(checksum) })
        });
        counted.collect()
    }

    /// How many of `other` are not among these, by kind. Both are sorted.
    #[must_use]
    pub fn strangers(&self, other: &Self) -> BTreeMap<&'static str, u64> {
        let of = |kind: &&'static str, hashes: &Vec<[u8; 32]>| {
            let own = self.0.get(kind);
            let is_own = |hash| own.is_some_and(|own| own.binary_search(hash).is_ok());
            hashes.iter().filter(|hash| !is_own(hash)).count() as u64
        };
        let strange = other.0.iter().map(|(kind, hashes)| (*kind, of(kind, hashes)));
        strange.filter(|(_, count)| *count > 0).collect()
    }

    /// How many there are, and how many of `now` there are.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.values().map(|hashes| hashes.len() as u64).sum()
    }
}

/// A store that is read from its beginning to its end.
#[async_trait]
pub trait Read: Send {
    /// Some more records; none when there are no more. One may come twice.
    ///
    /// # Errors
    /// [`Fault`]; a record that cannot be read is one.
    async fn next(&mut self) -> Result<Vec<Record>, Fault>;
}

/// A store of either kind, which nobody else uses meanwhile.
#[async_trait]
pub trait Records: Send + Sync {
    /// Reads it: what is good at `now`.
    ///
    /// # Errors
    /// [`Fault`].
    async fn read(&self, now: UnixTime) -> Result<Box<dyn Read>, Fault>;

    /// Puts records. Those that are there already must be the same. Durable when this returns `Ok`.
    ///
    /// # Errors
    /// [`Fault`]; then some of them may be there.
    async fn put(&self, records: Vec<Record>) -> Result<(), Fault>;

    /// Takes all records out.
    ///
    /// # Errors
    /// [`Fault`]; then some of them may be gone.
    async fn clear(&self) -> Result<(), Fault>;
}

/// What is in a store.
///
/// # Errors
/// [`Fault`].
pub async fn tally(
    store: &dyn Records,
    now: UnixTime,
    mut seen: impl FnMut(u64) + Send,
) -> Result<Tally, Fault> {
    let (mut tally, mut reader) = (Tally::default(), store.read(now).await?);
    loop {
        let records = reader.next().await?;
        if records.is_empty() {
            break;
        }
        records.iter().try_for_each(|record| tally.add(record))?;
        seen(records.len() as u64);
    }
    tally.sort();
    Ok(tally)
}
