//! What is registered, kept by name, so that another configuration goes on with it.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use prometheus::Registry;
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::MetricFamily;

/// The registry, and what is registered by name.
#[derive(Default)]
pub(super) struct Families {
    registry: Registry,
    known: Mutex<HashMap<String, Box<dyn Any + Send>>>,
}

impl fmt::Debug for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Families")
    }
}

impl Families {
    /// Registers what the system tells of the process: processor time, memory, descriptors, its start.
    pub(super) fn of_process(&self) -> prometheus::Result<()> {
        self.registry.register(Box::new(ProcessCollector::for_self()))
    }

    /// Every series as it stands.
    pub(super) fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }

    /// What is registered under `name`, or else `make`, which is then.
    pub(super) fn family<T: Collector + Clone + 'static>(
        &self,
        name: &str,
        make: impl FnOnce() -> prometheus::Result<T>,
    ) -> prometheus::Result<T> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(family) = known.get(name).and_then(|family| family.downcast_ref::<T>()) {
            return Ok(family.clone());
        }
        let family = make()?;
        self.registry.register(Box::new(family.clone()))?;
        known.insert(name.to_owned(), Box::new(family.clone()));
        Ok(family)
    }
}
