//! Failures that are counted once for all edges, in Redis.
//!
//! A limit is no admission: where Redis does not answer, what this edge has counted by itself is the
//! limit, as if it were alone. Nobody gets in by it, and nobody is kept out.
//!
//! The limit is the one that is kept in memory: so many at once, and then evenly over the minute (GCRA).
//! What is kept is when the next would be due, for a minute at most; the server's clock is the clock.
//! An edge asks about those alone for whom it has a place of its own, so that keys are bounded as places
//! are. A key has a hash in its name, keyed by the store's epoch: no address stands there in the clear,
//! though who reads the whole store can find one by trying all.
//!
//! A failure is counted in one round trip, before its answer. Proofs at token endpoints, which are no
//! failures, cost none: they are counted behind their answers, and who has had too many waits from then
//! on. What an edge lets by until it knows is counted too, so that it is taken from what comes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::Value;
use tokio::runtime::Handle;

use crate::policy::digest::Sha256;
use crate::policy::epoch::Epoch;
use crate::store::epoch::Epochs as _;
use crate::store::redis::{Redis, Script, Tag};

/// `KEYS`: places. `ARGV`: how many a minute at each, and at last whether it is counted all the same.
/// Milliseconds to wait, `0` for none; the first place that is full ends it.
const COUNT: &str = "
local time, force = redis.call('TIME'), ARGV[#KEYS + 1] == '1'
local now = tonumber(time[1]) * 1000 + tonumber(time[2]) / 1000
for at, key in ipairs(KEYS) do
  local step = 60000 / tonumber(ARGV[at])
  local due = math.max(tonumber(redis.call('GET', key) or '0'), now)
  local wait = due + step - now - 60000
  if wait > 0.5 and not force then return string.format('%.0f', math.ceil(wait)) end
  due = math.min(due + step, now + 120000)
  redis.call('SET', key, string.format('%.3f', due), 'PX', string.format('%.0f', math.ceil(due - now)))
  wait = due + step - now - 60000
  if wait > 0.5 and force then return string.format('%.0f', math.ceil(wait)) end
end
return '0'
";

/// Counts that are under way behind their answers; past them this edge's own limit is all that holds.
const UNDER_WAY: usize = 1024;
/// Places whose waiting is remembered.
const WAITING: usize = 10_000;

/// What edges share of a limit.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    redis: Redis,
    /// What keeps this limit's places apart from another's.
    name: &'static str,
    script: Arc<Script>,
    runtime: Handle,
    pub(super) under_way: Arc<AtomicUsize>,
    /// Until when whom is to wait.
    waiting: Arc<Mutex<HashMap<[u8; 8], Instant>>>,
}

impl Shared {
    pub(super) fn new(redis: Redis, name: &'static str, runtime: Handle) -> Self {
        let script = Arc::new(Script::new(COUNT));
        let (under_way, waiting) = (Arc::default(), Arc::default());
        Self { redis, name, script, runtime, under_way, waiting }
    }

    /// Counts at a network, and at a node from there where one is named.
    ///
    /// # Errors
    /// How long to wait.
    pub(super) async fn count(
        &self,
        network: [u8; 8],
        per_minute: u32,
        node: Option<(&str, u32)>,
    ) -> Result<(), Duration> {
        let pair = node.map(|(name, limit)| (name.as_bytes(), limit));
        let wait = self.ask(network, per_minute, pair, false).await.unwrap_or_default();
        if wait.is_zero() { Ok(()) } else { Err(wait) }
    }

    /// Counts at a network, some time soon.
    ///
    /// # Errors
    /// How long to wait, as far as is known.
    pub(super) fn count_behind(&self, network: [u8; 8], per_minute: u32) -> Result<(), Duration> {
        let now = Instant::now();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(until) = waiting.get(&network) {
            if *until > now {
                return Err(until.duration_since(now));
            }
            waiting.remove(&network);
        }
        drop(waiting);
        if self.under_way.fetch_add(1, Ordering::Relaxed) >= UNDER_WAY || !self.redis.is_up() {
            self.under_way.fetch_sub(1, Ordering::Relaxed);
            return Ok(());
        }
        let own = self.clone();
        self.runtime.spawn(async move {
            let wait = own.ask(network, per_minute, None, true).await;
            if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
                own.have_wait(network, wait);
            }
            own.under_way.fetch_sub(1, Ordering::Release);
        });
        Ok(())
    }

    fn have_wait(&self, network: [u8; 8], wait: Duration) {
        let now = Instant::now();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= WAITING {
            waiting.retain(|_, until| *until > now);
        }
        if waiting.len() < WAITING {
            waiting.insert(network, now + wait);
        }
    }

    /// How long to wait; `None` where nobody says.
    async fn ask(
        &self,
        network: [u8; 8],
        per_minute: u32,
        pair: Option<(&[u8], u32)>,
        force: bool,
    ) -> Option<Duration> {
        let epoch = self.redis.current()?.epoch;
        let place = self.place(epoch, network, None);
        let tag = Tag::of(&place);
        let key = |place: &Sha256| self.redis.keys().named(tag, &format!("l:{place}"));
        let (mut keys, mut limits) = (vec![key(&place)], vec![per_minute.to_string()]);
        if let Some((node, limit)) = pair {
            keys.push(key(&self.place(epoch, network, Some(node))));
            limits.push(limit.to_string());
        }
        limits.push(if force { "1" } else { "0" }.to_owned());
        let limits: Vec<_> = limits.iter().map(String::as_bytes).collect();
        let Ok(Value::BulkString(wait)) =
            self.redis.script(tag, &self.script, &keys, &limits).await
        else {
            return None;
        };
        let wait = std::str::from_utf8(&wait).ok()?.parse().ok()?;
        Some(Duration::from_millis(wait))
    }

    fn place(&self, epoch: Epoch, network: [u8; 8], node: Option<&[u8]>) -> Sha256 {
        let mut text = epoch.0.0.to_vec();
        // The name has no zero in it, and what follows has a length of its own.
        text.extend_from_slice(self.name.as_bytes());
        text.push(0);
        text.extend_from_slice(&network);
        text.push(u8::from(node.is_some()));
        text.extend_from_slice(node.unwrap_or_default());
        Sha256::of(&text)
    }
}
