//! When an exchange ends though neither side ends it: with its token, with the certificate that it
//! rests on, or at its route's `streamMaxAge`.
//!
//! [`Bounded`] stands between the listener and pingora's proxy. It runs each exchange and drops it
//! at its end, which closes an HTTP/1.1 connection and resets an HTTP/2 stream on both sides, so
//! that nothing passes any more in either direction.
//!
//! Most exchanges are over long before. A timer is made only for one that is not known to be short:
//! the phases say so by [`Term::watch`].

#![expect(clippy::disallowed_methods, reason = "an exchange ends by the clock")]

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::header::CONTENT_LENGTH;
use http::{Method, StatusCode};
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::H2Options;
use pingora::proxy::{HttpProxy, Session};
use pingora::server::ShutdownWatch;
use tokio::time::Sleep;

use super::proxy::Edge;
use crate::policy::lifetime::Ending;
use crate::policy::time::UnixTime;

/// The longest time that an exchange is timed for: what ends later is cut here.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

tokio::task_local! {
    /// The exchange whose phases run.
    static CURRENT: Arc<Exchange>;
}

/// It may end at any time and nobody waits for that.
const UNWATCHED: u8 = 0;
/// Its task waits for its end.
const WATCHED: u8 = 1;
/// It is over, by the [`Ending`] at this place and beyond.
const ENDED: u8 = 2;

/// One request with its answer, as something that can be ended from outside.
#[derive(Debug, Default)]
pub struct Exchange {
    state: AtomicU8,
    wait: Mutex<Wait>,
}

#[derive(Debug, Default)]
struct Wait {
    /// When it ends, and why.
    end: Option<(Instant, Ending)>,
    waker: Option<Waker>,
}

impl Exchange {
    /// Ends it, once: the first reason counts. One that is not watched ends with its next step.
    pub fn end(&self, why: Ending) {
        let over = ENDED + why as u8;
        let first = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
            (state < ENDED).then_some(over)
        });
        if first.is_ok()
            && let Some(waker) = self.wait().waker.take()
        {
            waker.wake();
        }
    }

    /// Why it is over; `None` while it goes on.
    #[must_use]
    pub fn ended(&self) -> Option<Ending> {
        let place = self.state.load(Ordering::Acquire).checked_sub(ENDED)?;
        Ending::ALL.get(usize::from(place)).copied()
    }

    fn watch(&self, end: Option<(Instant, Ending)>) {
        self.wait().end = end;
        let _ =
            self.state.compare_exchange(UNWATCHED, WATCHED, Ordering::AcqRel, Ordering::Acquire);
    }

    fn wait(&self) -> std::sync::MutexGuard<'_, Wait> {
        self.wait.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is over; if not, and it is watched, wakes the task when it will be.
    fn is_over(&self, cx: &mut Context<'_>, alarm: &mut Option<Pin<Box<Sleep>>>) -> bool {
        match self.state.load(Ordering::Acquire) {
            UNWATCHED => return false,
            WATCHED => {}
            _ => return true,
        }
        let end = {
            let mut wait = self.wait();
            if wait.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                wait.waker = Some(cx.waker().clone());
            }
            wait.end
        };
        if let Some((at, why)) = end {
            let alarm = alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at.into())));
            // A timer tells of its time up to a millisecond late.
            if Instant::now() >= at || alarm.as_mut().poll(cx).is_ready() {
                self.end(why);
            }
        }
        // It may have been ended before the waker was there.
        self.state.load(Ordering::Acquire) >= ENDED
    }

    /// Runs `served` until it is done or this exchange is over; then `None`, and `served` is dropped.
    async fn bound<F: Future>(&self, served: F) -> Option<F::Output> {
        let mut served = pin!(served);
        let mut alarm = None;
        // The end is looked for first, so that nothing passes after it; and again afterwards,
        // because the step may have been the one that made it watched.
        poll_fn(|cx| {
            if self.is_over(cx, &mut alarm) {
                return Poll::Ready(None);
            }
            match served.as_mut().poll(cx) {
                Poll::Ready(done) => Poll::Ready(Some(done)),
                Poll::Pending if self.is_over(cx, &mut alarm) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }
}

/// The watched exchanges of one connection that rest on its client certificate.
#[derive(Debug, Default)]
pub struct Exchanges {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    withdrawn: bool,
    exchanges: Vec<Weak<Exchange>>,
}

impl Exchanges {
    /// The certificate no longer counts: ends every exchange that rests on it, and each that comes.
    pub fn withdraw(&self) {
        let ending = {
            let mut open = self.open();
            open.withdrawn = true;
            std::mem::take(&mut open.exchanges)
        };
        for exchange in ending.iter().filter_map(Weak::upgrade) {
            exchange.end(Ending::Certificate);
        }
    }

    fn add(&self, exchange: &Arc<Exchange>) {
        let mut open = self.open();
        if open.withdrawn {
            drop(open);
            exchange.end(Ending::Certificate);
            return;
        }
        // No more than the connection has streams.
        open.exchanges.retain(|exchange| exchange.strong_count() > 0);
        open.exchanges.push(Arc::downgrade(exchange));
    }

    fn open(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long one exchange may go on, kept in its context.
#[derive(Debug, Default)]
pub struct Term {
    exchange: Arc<Exchange>,
    end: Option<(Instant, Ending)>,
    certificate: bool,
    watched: bool,
}

impl Term {
    /// The term of the exchange whose phases run; nothing bounds it yet.
    #[must_use]
    pub fn current() -> Self {
        let exchange = CURRENT.try_with(Arc::clone).unwrap_or_default();
        Self { exchange, ..Self::default() }
    }

    /// Sets its end: from `now` on to `end`. With `certificate` it rests on the connection's.
    pub fn set(&mut self, end: Option<(UnixTime, Ending)>, now: UnixTime, certificate: bool) {
        self.certificate = certificate;
        self.end = end.map(|(end, why)| {
            let left = u64::try_from(end.millis_since(now)).unwrap_or(0);
            (Instant::now() + Duration::from_millis(left).min(LONGEST), why)
        });
    }

    /// Whether it ends within `time`.
    #[must_use]
    pub fn ends_within(&self, time: Duration) -> bool {
        self.end.is_some_and(|(at, _)| at.saturating_duration_since(Instant::now()) <= time)
    }

    /// The exchange is not known to be short: from now on its end cuts it. `exchanges` are those of
    /// its connection.
    pub fn watch(&mut self, exchanges: Option<&Exchanges>) {
        if self.watched || (self.end.is_none() && !self.certificate) {
            return;
        }
        self.watched = true;
        self.exchange.watch(self.end);
        if let Some(exchanges) = exchanges.filter(|_| self.certificate) {
            exchanges.add(&self.exchange);
        }
    }

    /// Why it is over, by the clock too where it is not watched.
    #[must_use]
    pub fn over(&self) -> Option<Ending> {
        if let Some((at, why)) = self.end
            && Instant::now() >= at
        {
            self.exchange.end(why);
        }
        self.exchange.ended()
    }

    /// Why it was cut.
    #[must_use]
    pub fn cut(&self) -> Option<Ending> {
        self.exchange.ended()
    }
}

/// Whether a request may go on for long: it becomes another protocol, or its body has no length.
pub(super) fn is_open_ended(session: &mut Session) -> bool {
    session.is_upgrade_req()
        || (!session.is_body_empty() && !session.req_header().headers.contains_key(CONTENT_LENGTH))
}

/// Whether the body that follows an answer's head may go on for long.
pub(super) fn is_unbounded(method: &Method, answer: &ResponseHeader) -> bool {
    let none = *method == Method::HEAD
        || matches!(answer.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    !none && !answer.headers.contains_key(CONTENT_LENGTH)
}

/// pingora's proxy, with an end to each exchange.
pub struct Bounded {
    proxy: Arc<HttpProxy<Edge>>,
}

impl Bounded {
    /// Puts ends to the exchanges of `proxy`.
    #[must_use]
    pub fn new(proxy: HttpProxy<Edge>) -> Self {
        Self { proxy: Arc::new(proxy) }
    }
}

#[async_trait]
impl HttpServerApp for Bounded {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let exchange = Arc::new(Exchange::default());
        let served = self.proxy.process_new_http(session, shutdown);
        exchange.bound(CURRENT.scope(Arc::clone(&exchange), served)).await.flatten()
    }

    fn h2_options(&self) -> Option<H2Options> {
        self.proxy.h2_options()
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        self.proxy.server_options()
    }

    async fn http_cleanup(&self) {
        self.proxy.http_cleanup().await;
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    const SOON: Duration = Duration::from_millis(30);

    fn soon() -> Option<(UnixTime, Ending)> {
        Some((UnixTime::from_millis(30), Ending::Token))
    }

    fn term(end: Option<(UnixTime, Ending)>, certificate: bool) -> Term {
        let mut term = Term::current();
        term.set(end, UnixTime::from_millis(0), certificate);
        term
    }

    /// What becomes of an exchange that never ends by itself, within ten times [`SOON`].
    async fn outcome(term: &Term) -> Option<Ending> {
        let served = term.exchange.bound(pending::<()>());
        let cut = tokio::time::timeout(SOON * 10, served).await;
        assert_eq!(cut.is_ok(), term.cut().is_some());
        term.cut()
    }

    #[tokio::test]
    async fn a_watched_exchange_is_cut_at_its_end() {
        let mut watched = term(soon(), false);
        watched.watch(None);
        assert_eq!(outcome(&watched).await, Some(Ending::Token));
        let mut endless = term(None, false);
        endless.watch(None);
        assert_eq!(outcome(&endless).await, None);
    }

    #[tokio::test]
    async fn an_unwatched_one_makes_no_timer_and_knows_its_end() {
        let term = term(soon(), false);
        assert_eq!(outcome(&term).await, None);
        assert_eq!(term.over(), Some(Ending::Token));
    }

    #[tokio::test]
    async fn it_can_become_watched_while_it_runs() {
        let mut term = term(soon(), false);
        let exchange = Arc::clone(&term.exchange);
        let served = exchange.bound(async {
            tokio::task::yield_now().await;
            term.watch(None);
            pending::<()>().await;
        });
        assert_eq!(tokio::time::timeout(SOON * 10, served).await, Ok(None));
    }

    #[tokio::test]
    async fn an_end_in_the_past_lets_nothing_run() {
        let mut past = term(Some((UnixTime::from_millis(-1), Ending::Token)), false);
        past.watch(None);
        assert_eq!(past.exchange.bound(async { panic!("it ran") }).await, None::<()>);
    }

    #[tokio::test]
    async fn a_withdrawn_certificate_ends_what_rests_on_it() {
        let exchanges = Arc::new(Exchanges::default());
        let (mut on_it, mut beside) = (term(None, true), term(None, false));
        on_it.watch(Some(&exchanges));
        beside.watch(Some(&exchanges));
        let withdrawing = Arc::clone(&exchanges);
        tokio::spawn(async move {
            tokio::time::sleep(SOON).await;
            withdrawing.withdraw();
        });
        assert_eq!(outcome(&on_it).await, Some(Ending::Certificate));
        assert_eq!(outcome(&beside).await, None);
        let mut late = term(None, true);
        late.watch(Some(&exchanges));
        assert_eq!(outcome(&late).await, Some(Ending::Certificate));
    }

    #[test]
    fn the_first_reason_counts() {
        let exchange = Exchange::default();
        for ending in [Ending::MaxAge, Ending::Token] {
            exchange.end(ending);
            assert_eq!(exchange.ended(), Some(Ending::MaxAge));
        }
    }

    #[test]
    fn closed_exchanges_are_forgotten() {
        let exchanges = Exchanges::default();
        for _ in 0..1000 {
            term(None, true).watch(Some(&exchanges));
        }
        assert_eq!(exchanges.open().exchanges.len(), 1);
    }
}
