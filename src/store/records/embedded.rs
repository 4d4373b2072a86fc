//! The records of an embedded store.

use async_trait::async_trait;

use super::{Read, Record, Records};
use crate::policy::time::UnixTime;
use crate::store::registry::Registry;
use crate::store::sqlite::Fault;
use crate::store::sqlite::rows::Place;

/// Records that are read at once.
const PAGE: usize = 1000;

/// An embedded store.
#[derive(Clone, Debug)]
pub struct Embedded(pub Registry);

struct Reading {
    registry: Registry,
    place: Option<Place>,
    now: UnixTime,
}

#[async_trait]
impl Read for Reading {
    async fn next(&mut self) -> Result<Vec<Record>, Fault> {
        while let Some(place) = self.place.take() {
            let now = self.now;
            let page = self.registry.read(move |reader| reader.records(&place, now, PAGE)).await?;
            let (records, next) = page;
            self.place = next;
            if !records.is_empty() {
                return Ok(records);
            }
        }
        Ok(Vec::new())
    }
}

#[async_trait]
impl Records for Embedded {
    async fn read(&self, now: UnixTime) -> Result<Box<dyn Read>, Fault> {
        let place = Some(Place::default());
        Ok(Box::new(Reading { registry: self.0.clone(), place, now }))
    }

    async fn put(&self, records: Vec<Record>) -> Result<(), Fault> {
        self.0.transact(move |batch| records.iter().try_for_each(|it| batch.put(it))).await
    }

    async fn clear(&self) -> Result<(), Fault> {
        self.0.transact(|batch| batch.clear()).await
    }
}
