//! Clients of the edge over either protocol.

use crate::cases::{Case, Protocol};
use crate::drive::{WARM_UP, warm_up};
use crate::load::{Client, Load};
use crate::stage::Stage;
use crate::{Outcome, h2, http1};

/// How much is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub(crate) clients: usize,
    /// On one connection.
    pub(crate) streams: usize,
    /// Of all clients together.
    pub(crate) requests: usize,
}

/// Opens connections, warms them up, and measures.
pub(crate) async fn run(stage: &Stage, case: Case, work: &Work) -> Outcome<Load> {
    let fields = stage.fields(case, WARM_UP * work.clients + work.requests).await?;
    let (path, tls) = (case.kind.path(), stage.tls(case)?);
    match case.protocol {
        Protocol::Http1 => {
            let requests = fields.iter().map(|fields| http1::request(path, fields)).collect();
            let mut clients = Vec::with_capacity(work.clients);
            while clients.len() < work.clients {
                clients.push(http1::Client::open(stage.port, tls.clone()).await?);
            }
            measure(stage, clients, requests).await
        }
        Protocol::H2 => {
            let requests = fields.iter().map(|fields| h2::request(path, fields));
            let requests = requests.collect::<Outcome<_>>()?;
            let clients = h2::open(stage.port, &tls, work.clients, work.streams).await?;
            measure(stage, clients, requests).await
        }
    }
}

async fn measure<C: Client>(
    stage: &Stage,
    clients: Vec<C>,
    mut requests: Vec<C::Request>,
) -> Outcome<Load> {
    let measured = requests.split_off(WARM_UP * clients.len());
    warm_up(clients, requests).await?.measure(stage.edge.id(), measured).await
}
