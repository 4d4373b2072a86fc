//! A small database in MaxMind's format, for an example or a test: IPv4 networks with their autonomous
//! system and region (<https://maxmind.github.io/MaxMind-DB/>).

use ipnet::Ipv4Net;

/// A network and what is known of it.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The network. None lies in another's.
    pub network: Ipv4Net,
    /// Number of its autonomous system.
    pub asn: Option<u32>,
    /// ISO 3166-1 country and ISO 3166-2 subdivision.
    pub region: Option<(&'static str, &'static str)>,
}

/// Bytes between the tree and the data.
const SEPARATOR: [u8; 16] = [0; 16];
const MARKER: &[u8] = b"\xab\xcd\xefMaxMind.com";
const RECORD_BITS: u16 = 32;

/// Where a branch of the tree leads.
#[derive(Clone, Copy)]
enum Branch {
    Nothing,
    Node(usize),
    Data(usize),
}

/// The database of `entries`, built at `build` (seconds since the epoch).
#[must_use]
pub fn database(entries: &[Entry], build: u64) -> Vec<u8> {
    let mut tree = vec![[Branch::Nothing; 2]];
    let mut data = Vec::new();
    for entry in entries {
        let offset = data.len();
        record(&mut data, entry);
        insert(&mut tree, entry.network, offset);
    }
    let nodes = tree.len();
    let number = |branch: &Branch| match branch {
        Branch::Nothing => nodes,
        Branch::Node(index) => *index,
        Branch::Data(offset) => nodes + SEPARATOR.len() + offset,
    };
    let mut file = Vec::new();
    for branch in tree.iter().flatten() {
        let value = u32::try_from(number(branch)).unwrap_or(u32::MAX);
        file.extend_from_slice(&value.to_be_bytes());
    }
    file.extend_from_slice(&SEPARATOR);
    file.extend_from_slice(&data);
    file.extend_from_slice(MARKER);
    metadata(&mut file, nodes, build);
    file
}

fn insert(tree: &mut Vec<[Branch; 2]>, network: Ipv4Net, offset: usize) {
    let (bits, length) = (network.network().to_bits(), u32::from(network.prefix_len()));
    let mut node = 0;
    for depth in 0..length {
        let side = usize::from(bits >> (31 - depth) & 1 == 1);
        let next = tree.len();
        let Some(branch) = tree.get_mut(node).and_then(|node| node.get_mut(side)) else { return };
        if depth + 1 == length {
            *branch = Branch::Data(offset);
            return;
        }
        match branch {
            Branch::Node(index) => node = *index,
            Branch::Nothing | Branch::Data(_) => {
                *branch = Branch::Node(next);
                tree.push([Branch::Nothing; 2]);
                node = next;
            }
        }
    }
}

fn record(out: &mut Vec<u8>, entry: &Entry) {
    map(out, usize::from(entry.asn.is_some()) + 2 * usize::from(entry.region.is_some()));
    if let Some(asn) = entry.asn {
        text(out, "autonomous_system_number");
        number(out, 6, &asn.to_be_bytes());
    }
    if let Some((country, subdivision)) = entry.region {
        text(out, "country");
        map(out, 1);
        text(out, "iso_code");
        text(out, country);
        text(out, "subdivisions");
        array(out, 1);
        map(out, 1);
        text(out, "iso_code");
        text(out, subdivision);
    }
}

fn metadata(out: &mut Vec<u8>, nodes: usize, build: u64) {
    map(out, 9);
    text(out, "node_count");
    number(out, 6, &u32::try_from(nodes).unwrap_or(u32::MAX).to_be_bytes());
    for (name, value) in [
        ("record_size", RECORD_BITS),
        ("ip_version", 4),
        ("binary_format_major_version", 2),
        ("binary_format_minor_version", 0),
    ] {
        text(out, name);
        number(out, 5, &value.to_be_bytes());
    }
    text(out, "database_type");
    text(out, "Holdfast-Sample");
    text(out, "languages");
    array(out, 0);
    text(out, "description");
    map(out, 0);
    text(out, "build_epoch");
    number(out, 9, &build.to_be_bytes());
}

/// The byte before a value: its type and how long it is. Nothing here is longer than 28.
fn control(out: &mut Vec<u8>, kind: u8, length: usize) {
    let length = u8::try_from(length).unwrap_or(u8::MAX) & 0b1_1111;
    match kind.checked_sub(7) {
        // A type past 7 is told in a byte of its own.
        Some(more @ 1..) => out.extend_from_slice(&[length, more]),
        Some(0) | None => out.push(kind << 5 | length),
    }
}

fn map(out: &mut Vec<u8>, pairs: usize) {
    control(out, 7, pairs);
}

fn array(out: &mut Vec<u8>, items: usize) {
    control(out, 11, items);
}

fn text(out: &mut Vec<u8>, text: &str) {
    control(out, 2, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn number(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    control(out, kind, bytes.len());
    out.extend_from_slice(bytes);
}
