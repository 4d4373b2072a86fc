//! What is written of a token, each part by itself, and taken back where another part fails.

use redis::{Pipeline, Value};

use super::super::BindFault;
use super::super::scripts::{self, Last, Place};
use super::{Inner, Standing, edges, kept_until};
use crate::policy::certificate::{LONGEST_GRACE, SenderCertificate};
use crate::policy::digest::Sha256;
use crate::policy::grant::{BindingRecord, RecordKey};
use crate::policy::time::UnixTime;
use crate::store::redis as connection;

/// How often a record is compared and swapped because somebody else was first.
const TRIES: usize = 8;

/// A write that can be taken back.
pub(super) struct Written {
    place: Place,
    now: Vec<u8>,
    pub(super) before: Vec<u8>,
}

impl Inner {
    /// Goes on from a grant, or begins it.
    pub(super) async fn go_on(
        &self,
        grant: Sha256,
        ends: UnixTime,
        known: bool,
    ) -> Result<Option<Written>, BindFault> {
        let period = self.period().map_err(|_| BindFault::Down)?;
        let place = Place::grant(self.redis.keys(), &grant);
        let (own, ends) = (Last::of(&period).text(), kept_until(ends));
        let flag = |set: bool| if set { &b"1"[..] } else { &b"0"[..] };
        let roll = self.roll(period.epoch);
        let given_up = roll.as_ref().and_then(|roll| roll.given_up);
        let (before, but) = edges::texts(given_up.as_ref());
        let arguments = [
            own.as_bytes(),
            ends.as_bytes(),
            flag(known),
            flag(self.is_settled(&period, roll.as_deref())),
            before.as_bytes(),
            but.as_bytes(),
        ];
        let script = &self.scripts.go_on;
        let names = [place.name];
        match self.redis.script_in(period.epoch, place.tag, script, &names, &arguments).await {
            Ok(Value::Int(1)) => Ok(None),
            Ok(Value::Int(0)) => Err(BindFault::Revoked),
            Ok(_) | Err(connection::Fault::Down | connection::Fault::Full) => Err(BindFault::Down),
        }
    }

    /// Puts a record where none is, or one that it may replace.
    pub(super) async fn put(
        &self,
        key: RecordKey,
        mut record: BindingRecord,
        now: UnixTime,
    ) -> Result<Option<Written>, BindFault> {
        let keys = self.redis.keys();
        let (place, tombstone) = (Place::record(keys, key), Place::tombstone(keys, key));
        let names = [place.name.clone(), tombstone.name];
        let grant = scripts::grant_of(&record);
        let least = record.expires;
        let mut before = Vec::new();
        for _ in 0..TRIES {
            let text = scripts::text_of(&record).ok_or(BindFault::Down)?;
            let ends = kept_until(record.expires);
            let arguments = [before.as_slice(), &text, ends.as_bytes()];
            match self.redis.script(place.tag, &self.scripts.put, &names, &arguments).await {
                Ok(Value::Int(1)) => {
                    self.guesses.put(key, grant);
                    return Ok(Some(Written { place, now: text, before }));
                }
                // Nothing takes the place of what was revoked.
                Ok(Value::Int(0)) => return Err(BindFault::Conflict),
                Ok(Value::BulkString(found)) => before = found,
                Ok(_) | Err(connection::Fault::Down | connection::Fault::Full) => {
                    return Err(BindFault::Down);
                }
            }
            record.expires = least;
            if before.is_empty() {
                continue;
            }
            let mut kept = scripts::record_of(&before).ok_or(BindFault::Down)?;
            if now < kept.expires {
                let other = scripts::grant_of(&kept);
                // Its own grant is gone on from at this moment, or is not.
                kept.revoked = other != grant && self.is_revoked(&other).await?;
                if !record.may_replace(&kept) {
                    return Err(BindFault::Conflict);
                }
            }
            record.expires = least.max(kept.expires);
        }
        Err(BindFault::Down)
    }

    async fn is_revoked(&self, grant: &Sha256) -> Result<bool, BindFault> {
        let period = self.period().map_err(|_| BindFault::Down)?;
        match self.standing(&period, grant).await.map_err(|_| BindFault::Down)? {
            Standing::Good => Ok(false),
            Standing::Revoked => Ok(true),
            Standing::Unsure => Err(BindFault::Down),
        }
    }

    pub(super) async fn put_certificate(
        &self,
        certificate: &SenderCertificate,
    ) -> Result<Option<Written>, BindFault> {
        let place = Place::certificate(self.redis.keys(), certificate.x5t());
        // A successor begins before this one ends.
        let ends = kept_until(certificate.not_after().plus(LONGEST_GRACE));
        let mut pipeline = Pipeline::new();
        pipeline.cmd("SET").arg(&place.name).arg(certificate.der()).arg("PXAT").arg(ends);
        match self.redis.commit(place.tag, &pipeline).await.as_deref() {
            Ok([Value::Okay]) => Ok(None),
            Ok(_) | Err(_) => Err(BindFault::Down),
        }
    }

    pub(super) async fn undo(&self, written: Written) {
        let Written { place, now, before } = written;
        let (names, texts) = ([place.name], [now.as_slice(), before.as_slice()]);
        let undone = self.redis.script(place.tag, &self.scripts.undo, &names, &texts).await;
        if undone.is_err() {
            tracing::warn!(
                "a record of a token that was not issued is left in redis until its end"
            );
        }
    }
}
