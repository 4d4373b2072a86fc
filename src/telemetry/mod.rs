//! What the edge tells about itself: log lines on stdout, metrics for a scrape.
//!
//! Both have bounded memory, and neither ever sees a token, a proof or a whole header.

pub mod log;
pub mod metrics;
