//! What the edge tells about itself: log lines on stdout, metrics for a scrape, spans for a collector.
//!
//! All have bounded memory, and none ever sees a token, a proof or a whole header.

pub mod log;
pub mod metrics;
pub mod spans;
