//! Nodes in a real server.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::store::bindings::tests as server;
use crate::store::nodes::Nodes;
use crate::store::nodes::shared::SharedNodes;
use crate::store::redis::Login;
use crate::store::registry::Registry;

pub(super) use server::Server;

impl Server {
    /// Another edge, or another command.
    pub(super) async fn nodes(&self, registry: &Registry, settle: Duration) -> Arc<dyn Nodes> {
        self.nodes_as(Login::default(), registry, settle).await
    }

    pub(super) async fn nodes_as(
        &self,
        login: Login,
        registry: &Registry,
        settle: Duration,
    ) -> Arc<dyn Nodes> {
        let (redis, handle) = (self.connect_as(login).await, Handle::current());
        Arc::new(SharedNodes::start(redis, registry.clone(), settle, &handle).unwrap())
    }
}

/// Sends one command past everything; the first line of the answer.
pub(super) fn raw(port: u16, words: &[&str]) -> String {
    server::raw(port, words).lines().next().unwrap_or_default().to_owned()
}
