//! Drives a load: warms up, keeps the generator awake, and reads what CPU time the edge took.

use std::time::Duration;

use crate::Outcome;
use crate::cpu::Used;
use crate::load::{Client, Load, send};

/// Requests of each client before the clock starts: they fill pools and caches, and take what TLS
/// sends late.
pub(crate) const WARM_UP: usize = 16;
/// After the last answer, until the edge has done what it does afterwards and rests.
const REST: Duration = Duration::from_millis(50);

/// Clients that have sent some requests, before an edge that rests.
pub(crate) struct Warm<C> {
    clients: Vec<C>,
    /// What that came to.
    pub(crate) before: Load,
}

/// Sends what comes before the clock.
pub(crate) async fn warm_up<C: Client>(
    clients: Vec<C>,
    requests: Vec<C::Request>,
) -> Outcome<Warm<C>> {
    let (clients, before) = drive(clients, requests).await?;
    tokio::time::sleep(REST).await;
    Ok(Warm { clients, before })
}

impl<C: Client> Warm<C> {
    /// Sends what is measured; `edge`: its process. Failures before the clock count, too.
    pub(crate) async fn measure(self, edge: u32, requests: Vec<C::Request>) -> Outcome<Load> {
        let used = Used::of(edge)?;
        // The connections stay open until the edge has been looked at.
        let (_clients, mut load) = drive(self.clients, requests).await?;
        tokio::time::sleep(REST).await;
        load.cpu = Used::of(edge)?.since(&used);
        load.failures.splice(0..0, self.before.failures);
        Ok(load)
    }
}

/// Deals the requests out and waits until each client has sent its share.
async fn drive<C: Client>(clients: Vec<C>, requests: Vec<C::Request>) -> Outcome<(Vec<C>, Load)> {
    let count = clients.len();
    let mut shares: Vec<_> = clients.into_iter().map(|client| (client, Vec::new())).collect();
    for (number, request) in requests.into_iter().enumerate() {
        if let Some((_, share)) = shares.get_mut(number % count) {
            share.push(request);
        }
    }
    // While this runs the generator never sleeps: waking it, which a peer on another machine would
    // not need, is not on the edge's bill.
    let awake = tokio::spawn(async {
        loop {
            tokio::task::yield_now().await;
        }
    });
    let sent = send(shares).await;
    awake.abort();
    sent
}
