//! Work that goes on beside requests.

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// A task that ends with whoever holds this.
#[derive(Debug)]
pub struct Task(JoinHandle<()>);

impl Task {
    /// Begins `work` on a runtime.
    #[must_use]
    pub fn start(runtime: &Handle, work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(runtime.spawn(work))
    }

    /// Whether it has ended by itself.
    pub(super) fn ended(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
