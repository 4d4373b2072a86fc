//! What nodes send and what the store holds: telemetry, records, lines of the audit log.

use holdfast::policy::audit::Head;
use holdfast::policy::capsule::key::KeyVersion;
use holdfast::policy::capsule::node::{Node, NodeId, is_label};
use holdfast::policy::capsule::telemetry::Report;
use serde_json::Value;

pub(super) fn telemetry(input: &[u8]) {
    if let Some(report) = Report::read(input) {
        assert!(is_label(&report.boot) && report.version.as_deref().is_none_or(is_label));
        // Another reader finds the same in it, and nothing else.
        let read: Value = serde_json::from_slice(input).expect("JSON");
        let members = read.as_object().expect("an object");
        assert_eq!(members["bootId"], report.boot.as_str());
        assert_eq!(members["seq"], report.seq);
        assert_eq!(members.len(), 3 + usize::from(report.version.is_some()));
    }
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(version) = KeyVersion::parse(text) {
        assert_eq!(version.to_string(), text);
    }
    if let Ok(id) = NodeId::parse(text) {
        assert_eq!(id.as_str(), text);
        assert!(!text.contains(['/', '%', '\\', ' ']) && !text.starts_with('.'));
    }
}

pub(super) fn node(input: &[u8]) {
    let Ok(node) = serde_json::from_slice::<Node>(input) else { return };
    let written = serde_json::to_vec(&node).expect("a record is written");
    let again: Node = serde_json::from_slice(&written).expect("what is written is read");
    assert_eq!(again, node);
    let without = serde_json::to_string(&node.without_secret()).expect("a record is written");
    assert!(!without.contains("\"secret\""));
}

pub(super) fn audit(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut head = Head::default();
    for line in text.lines() {
        let Ok((next, read)) = head.follow(line) else { return };
        assert_eq!((next.seq, read.prev), (head.seq + 1, head.hash));
        head = next;
    }
}
