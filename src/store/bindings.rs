//! What the edge binds: records of tokens, and the certificates among them.

pub mod moved;
mod scripts;
mod shared;
#[cfg(test)]
pub(crate) mod tests;

use async_trait::async_trait;

pub use shared::{SharedBindings, Unsettled, Waits};

use super::registry::Registry;
use super::sqlite::Fault;
use super::sqlite::writer::Announced;
use crate::policy::audit::Draft;
use crate::policy::certificate::SenderCertificate;
use crate::policy::digest::X5tS256;
use crate::policy::grant::{BindingRecord, RecordKey, Records};
use crate::policy::time::UnixTime;

/// What was issued, to be kept as a whole.
#[derive(Clone, Debug, Default)]
pub struct Issued {
    /// The tokens.
    pub records: Records,
    /// The certificate that they are bound to.
    pub certificate: Option<SenderCertificate>,
    /// A line for the audit log.
    pub line: Option<Draft>,
    /// What was redeemed for them: with its grant revoked meanwhile they are not kept.
    pub redeemed: Option<RecordKey>,
    /// Whether their grant was known before: it must still be, then.
    pub goes_on: bool,
}

impl Issued {
    /// Whether there is nothing to keep.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.certificate.is_none() && self.line.is_none()
    }
}

/// Why it is not kept. Nothing of it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindFault {
    /// One of the tokens is another sender's already.
    Conflict,
    /// The grant that they came from was revoked while they were issued.
    Revoked,
    /// The store is down.
    Down,
}

/// Knows what tokens are bound to.
#[async_trait]
pub trait Bindings: std::fmt::Debug + Send + Sync {
    /// Whether something could be kept now, as far as is known.
    fn is_up(&self) -> bool;

    /// Why some tokens are not served though it is up, in words.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// The record of a token, revoked and outlived ones too.
    ///
    /// # Errors
    /// [`Fault`]; then nothing is known.
    async fn record(&self, key: RecordKey) -> Result<Option<BindingRecord>, Fault>;

    /// A certificate that a token was bound to.
    ///
    /// # Errors
    /// [`Fault`].
    async fn certificate(&self, x5t: X5tS256) -> Result<Option<SenderCertificate>, Fault>;

    /// Says that something will have to be kept soon, so that it goes with what others want kept. To be
    /// dropped when it is handed over, or comes to nothing.
    fn announce(&self) -> Option<Announced>;

    /// Keeps what was issued. It is durable when this returns `Ok`.
    ///
    /// # Errors
    /// [`BindFault`]; then none of it is kept.
    async fn keep(&self, issued: Issued, now: UnixTime) -> Result<(), BindFault>;

    /// Revokes the token with one of `keys`, if it is `client`'s: a refresh token with all that came from
    /// its grant. Whether there was one.
    ///
    /// # Errors
    /// [`Fault`]; then nothing is revoked.
    async fn revoke(&self, keys: Vec<RecordKey>, client: Option<String>) -> Result<bool, Fault>;
}

#[async_trait]
impl Bindings for Registry {
    fn is_up(&self) -> bool {
        Self::is_up(self)
    }

    async fn record(&self, key: RecordKey) -> Result<Option<BindingRecord>, Fault> {
        self.read(move |reader| reader.record(key)).await
    }

    async fn certificate(&self, x5t: X5tS256) -> Result<Option<SenderCertificate>, Fault> {
        self.read(move |reader| reader.sender_certificate(x5t)).await
    }

    fn announce(&self) -> Option<Announced> {
        Some(Self::announce(self))
    }

    async fn keep(&self, issued: Issued, now: UnixTime) -> Result<(), BindFault> {
        let kept = self.transact(move |batch| {
            let Issued { records, certificate, line, redeemed, goes_on: _ } = issued;
            // What is refused must not be half there.
            if let Some(redeemed) = redeemed
                && batch.is_revoked(redeemed)?
            {
                return Ok(false);
            }
            for (key, record) in &records {
                batch.may_bind(*key, record, now)?;
            }
            for (key, record) in &records {
                batch.bind(*key, record)?;
            }
            if let Some(certificate) = &certificate {
                batch.keep_certificate(certificate)?;
            }
            if let Some(line) = &line {
                batch.append(line)?;
            }
            Ok(true)
        });
        let kept = kept.await.map_err(|fault| match fault {
            Fault::Conflict => BindFault::Conflict,
            Fault::Busy
            | Fault::Late
            | Fault::Failed(_)
            | Fault::Malformed
            | Fault::Replaced
            | Fault::Closed
            | Fault::Down
            | Fault::Behind
            | Fault::Unvouched => BindFault::Down,
        })?;
        if kept { Ok(()) } else { Err(BindFault::Revoked) }
    }

    async fn revoke(&self, keys: Vec<RecordKey>, client: Option<String>) -> Result<bool, Fault> {
        self.transact(move |batch| {
            let mut any = false;
            for key in keys {
                any |= batch.revoke(key, client.as_deref())?;
            }
            Ok(any)
        })
        .await
    }
}
