//! What is written into Redis of a token: names of keys, texts of records, and the scripts that change
//! them.

#![expect(clippy::disallowed_methods, reason = "each write has a random id")]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use redis::Value;
use serde::{Deserialize, Serialize};

use crate::policy::digest::{Jkt, Sha256, X5tS256};
use crate::policy::epoch::Epoch;
use crate::policy::grant::{BindingRecord, RecordKey, TokenKind};
use crate::policy::time::UnixTime;
use crate::store::redis::{Guarded, Keys, Period, Script, Tag};
use crate::store::sqlite::tombstones::Tombstone;

/// What stands in the place of a grant's epoch, and at a token's tombstone.
pub(super) const REVOKED: &[u8] = b"revoked";

/// `KEYS`: record, tombstone. `ARGV`: the text that must be there, empty for none; the new text; when it
/// ends. 1: done; 0: the token is revoked; a text: that one is there instead, empty for none.
const PUT: &str = "
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
local kept = redis.call('GET', KEYS[1]) or ''
if kept ~= ARGV[1] then return kept end
redis.call('SET', KEYS[1], ARGV[2], 'PXAT', ARGV[3])
return 1
";

/// `KEYS`: record. `ARGV`: the text that must be there, which says whose write it is; the text to be there
/// again, empty for none.
const UNDO: &str = "
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1])
else redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL') end
return 1
";

/// `KEYS`: grant. `ARGV`: epoch and its begin; when the longest of its records ends; whether it must be
/// there; whether one of an earlier epoch is to be trusted; until when epochs are given up, empty for none,
/// and which one is not. 1: done; 0: it is revoked, given up, or not there; 2: nobody knows.
const GO_ON: &str = "
local kept = redis.call('GET', KEYS[1])
if kept == 'revoked' or (not kept and ARGV[3] == '1') then return 0 end
if kept then
  local epoch, since = string.match(kept, '^(%S+) (%d+)$')
  if not epoch then return 2 end
  if epoch ~= string.match(ARGV[1], '^%S+') then
    if ARGV[5] ~= '' and epoch ~= ARGV[6] and tonumber(since) < tonumber(ARGV[5]) then return 0 end
    if ARGV[4] ~= '1' then return 2 end
  end
end
local ends, left, now = tonumber(ARGV[2]), redis.call('PTTL', KEYS[1]), redis.call('TIME')
if left > 0 then
  ends = math.max(ends, tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000) + left)
end
redis.call('SET', KEYS[1], ARGV[1], 'PXAT', string.format('%.0f', ends))
return 1
";

/// `KEYS`: grants and tombstones of tokens. `ARGV`: the earliest that each may end. When the last of them
/// ends.
const REVOKE: &str = "
local last, now = 0, redis.call('TIME')
for at, key in ipairs(KEYS) do
  local ends, left = tonumber(ARGV[at]), redis.call('PTTL', key)
  if left > 0 then
    ends = math.max(ends, tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000) + left)
  end
  redis.call('SET', key, 'revoked', 'PXAT', string.format('%.0f', ends))
  last = math.max(last, ends)
end
return string.format('%.0f', last)
";

/// All of them.
#[derive(Debug)]
pub(super) struct Scripts {
    pub(super) put: Script,
    pub(super) undo: Script,
    pub(super) go_on: Guarded,
    pub(super) revoke: Script,
}

impl Default for Scripts {
    fn default() -> Self {
        Self {
            put: Script::new(PUT),
            undo: Script::new(UNDO),
            go_on: Guarded::new(GO_ON),
            revoke: Script::new(REVOKE),
        }
    }
}

/// Where something lies, and what it is called there.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) tag: Tag,
    pub(super) name: String,
}

impl Place {
    fn of(keys: &Keys, letter: char, hash: &Sha256) -> Self {
        let tag = Tag::of(hash);
        Self { tag, name: keys.named(tag, &format!("{letter}:{hash}")) }
    }

    /// Of a token's record.
    pub(super) fn record(keys: &Keys, key: RecordKey) -> Self {
        Self::of(keys, 't', &key.0)
    }

    /// Of a token's tombstone: where its record is.
    pub(super) fn tombstone(keys: &Keys, key: RecordKey) -> Self {
        Self::of(keys, 'x', &key.0)
    }

    /// Of a grant, by the SHA-256 of its name.
    pub(super) fn grant(keys: &Keys, hash: &Sha256) -> Self {
        Self::of(keys, 'f', hash)
    }

    /// Of a certificate.
    pub(super) fn certificate(keys: &Keys, x5t: X5tS256) -> Self {
        Self::of(keys, 'k', &x5t.0)
    }

    /// Of what is revoked.
    pub(super) fn revoked(keys: &Keys, tombstone: &Tombstone) -> Self {
        match tombstone {
            Tombstone::Token(key) => Self::tombstone(keys, *key),
            Tombstone::Grant(hash) => Self::grant(keys, hash),
        }
    }
}

/// The epoch in which a grant was gone on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Last {
    pub(super) epoch: Epoch,
    /// When it began, by the servers' clock.
    pub(super) begun: UnixTime,
}

impl Last {
    /// That of now.
    pub(super) fn of(period: &Period) -> Self {
        Self { epoch: period.epoch, begun: period.begun }
    }

    /// The text of a grant that was gone on from in it.
    pub(super) fn text(&self) -> String {
        format!("{} {}", self.epoch.0, self.begun.millis())
    }

    /// From a grant's text; `None` for one that nobody here has written.
    pub(super) fn read(text: &[u8]) -> Option<Self> {
        let (epoch, begun) = std::str::from_utf8(text).ok()?.split_once(' ')?;
        let epoch = Epoch(Sha256::from_base64url(epoch)?);
        Some(Self { epoch, begun: UnixTime::from_millis(begun.parse().ok()?) })
    }
}

/// A grant, as it is found by.
pub(super) fn grant_of(record: &BindingRecord) -> Sha256 {
    Sha256::of(record.family.as_bytes())
}

/// A record as it is kept.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Text {
    kind: String,
    tenant: Option<String>,
    client: Option<String>,
    cnf_jkt: Option<Sha256>,
    sender_certificate: Option<Sha256>,
    scope: Option<String>,
    expires: UnixTime,
    family: String,
    bypass: Option<String>,
    /// Whose write it is, at random: what is taken back is that one, and no equal one of somebody else.
    #[serde(default)]
    write: String,
}

/// The text of a record, another one each time. Whether it is revoked stands elsewhere.
pub(super) fn text_of(record: &BindingRecord) -> Option<Vec<u8>> {
    let text = Text {
        kind: record.kind.name().to_owned(),
        tenant: record.tenant.clone(),
        client: record.client.clone(),
        cnf_jkt: record.cnf_jkt.map(|it| it.0),
        sender_certificate: record.sender_certificate.map(|it| it.0),
        scope: record.scope.clone(),
        expires: record.expires,
        family: record.family.clone(),
        bypass: record.bypass.clone(),
        write: write_id()?,
    };
    serde_json::to_vec(&text).ok()
}

fn write_id() -> Option<String> {
    let mut bytes = [0; 12];
    aws_lc_rs::rand::fill(&mut bytes).ok()?;
    Some(URL_SAFE_NO_PAD.encode(bytes))
}

/// The record of a text; `None` for one that nobody here has written.
pub(super) fn record_of(text: &[u8]) -> Option<BindingRecord> {
    let text: Text = serde_json::from_slice(text).ok()?;
    Some(BindingRecord {
        kind: TokenKind::from_name(&text.kind)?,
        tenant: text.tenant,
        client: text.client,
        cnf_jkt: text.cnf_jkt.map(Jkt),
        sender_certificate: text.sender_certificate.map(X5tS256),
        scope: text.scope,
        expires: text.expires,
        family: text.family,
        bypass: text.bypass,
        revoked: false,
    })
}

/// A text, or that there is none.
///
/// # Errors
/// `()` for any other answer.
#[expect(clippy::wildcard_enum_match_arm, reason = "every other kind of answer is none to this")]
pub(super) fn found(value: Value) -> Result<Option<Vec<u8>>, ()> {
    match value {
        Value::Nil => Ok(None),
        Value::BulkString(text) => Ok(Some(text)),
        _ => Err(()),
    }
}
