//! The edge's records: kept in a file, and asked for the reason of a decision.
//!
//! An answer tells a stranger little; the operator finds the rest under its `X-Request-Id`.
#![expect(clippy::disallowed_methods, reason = "writes a log file")]

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

/// Bytes of the file; later records are not written.
const FILE_LIMIT: usize = 64 << 20;
/// Reasons remembered; enough for the cases.
const REASONS: usize = 256;
/// Bytes of a line that is looked into.
const LINE_LIMIT: usize = 16 << 10;
/// How long a record may take from the decision to its line.
const PATIENCE: Duration = Duration::from_millis(500);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// Where the edge writes its lines.
pub(super) struct Records {
    file: File,
    room: usize,
    line: Vec<u8>,
    reasons: Reasons,
}

/// The reasons so far, by decision.
#[derive(Clone, Default)]
pub(super) struct Reasons(Arc<Mutex<HashMap<String, Option<String>>>>);

impl Records {
    /// An empty file at `path`, and the reasons that will come by.
    pub(super) fn create(path: &Path) -> io::Result<(Self, Reasons)> {
        let reasons = Reasons::default();
        let file = File::create(path)?;
        let records = Self { file, room: FILE_LIMIT, line: Vec::new(), reasons: reasons.clone() };
        Ok((records, reasons))
    }

    fn note(&mut self) {
        let line = std::mem::take(&mut self.line);
        let Ok(record) = serde_json::from_slice::<Value>(&line) else { return };
        let text = |name| record.get(name).and_then(Value::as_str).map(str::to_owned);
        let Some(decision) = text("decision_id") else { return };
        let mut reasons = self.reasons.0.lock().unwrap_or_else(PoisonError::into_inner);
        if reasons.len() < REASONS {
            reasons.insert(decision, text("reason"));
        }
    }
}

impl Write for Records {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() <= self.room {
            self.file.write_all(bytes)?;
            self.room -= bytes.len();
        }
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() + piece.len() <= LINE_LIMIT {
                self.line.extend_from_slice(piece);
            }
            if piece.ends_with(b"\n") {
                self.note();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Reasons {
    /// The reason of a refusal; `None` when no record of it comes.
    pub(super) async fn of(&self, decision: &str) -> Option<String> {
        let look = || {
            let reasons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            reasons.get(decision).map(|reason| reason.clone().unwrap_or_default())
        };
        let wait = async {
            loop {
                if let Some(reason) = look() {
                    return reason;
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reasons_are_found_by_decision() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("records");
        let (mut records, reasons) = Records::create(&path).unwrap();
        // Lines come in pieces, and not every line is a record.
        let pieces = [
            "{\"decision_id\":\"a\",\"rea",
            "son\":\"proof_htu\"}\nnot json\n{\"decision_id\":\"b\",\"reason\":null}\n",
            "{\"level\":\"info\"}\n",
        ];
        for piece in pieces {
            records.write_all(piece.as_bytes()).unwrap();
        }
        assert_eq!(reasons.of("a").await.as_deref(), Some("proof_htu"));
        assert_eq!(reasons.of("b").await.as_deref(), Some(""));
        assert_eq!(reasons.of("c").await, None);
        records.flush().unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), pieces.concat());
    }
}
