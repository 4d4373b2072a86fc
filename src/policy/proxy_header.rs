//! The PROXY protocol, versions 1 and 2: what a proxy says of the connection that it passes on.
//!
//! The header's own bytes are read by `ppp`; where it ends, how long it may be, and what becomes of
//! what it does not say is decided here. Source: "The PROXY protocol, versions 1 & 2" by Willy Tarreau.

use std::net::IpAddr;

use ppp::{v1, v2};

/// Bytes of the longest header of version 1, line end included (section 2.1).
const V1_BYTES: usize = 107;
const V1_BEGIN: &[u8] = b"PROXY ";
/// Bytes of a header of version 2 before its addresses (section 2.2).
const V2_FIXED: usize = 16;
/// Where its version and command stand, and what stands there for version 2 and `LOCAL`.
const V2_COMMAND: usize = 12;
const V2_LOCAL: u8 = 0x20;
/// Bytes of a header of version 2 that are taken, of the 64 KiB that it could have: addresses are 216
/// at most, the rest are notes (TLVs) that nothing here reads.
const V2_BYTES: usize = 4096;

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From the socket's other end: no PROXY protocol.
    Socket,
    /// From this address, as the proxy says.
    Told(IpAddr),
    /// From somewhere: the proxy passes it on and does not say from where (`UNKNOWN`, `AF_UNSPEC`,
    /// `AF_UNIX`).
    Unknown,
    /// From the proxy itself (`LOCAL`), such as a health check.
    Local,
}

/// What the first bytes of a connection come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The header is not complete.
    More,
    /// The header is this many bytes long; what follows is the connection's.
    Done(usize, Source),
}

/// These bytes begin no PROXY header, or one that says what it cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no PROXY header")]
pub struct Malformed;

/// Reads a header at the beginning of `bytes`. It is complete as early as it can be, and refused no
/// later than after 4096 bytes.
///
/// # Errors
/// [`Malformed`]: more bytes do not help.
pub fn read(bytes: &[u8]) -> Result<Progress, Malformed> {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(one, other)| one == other);
    if begins(v2::PROTOCOL_PREFIX) {
        return version_2(bytes);
    }
    if begins(V1_BEGIN) {
        return version_1(bytes);
    }
    Err(Malformed)
}

fn version_1(bytes: &[u8]) -> Result<Progress, Malformed> {
    let line = bytes.get(..V1_BYTES.min(bytes.len())).unwrap_or_default();
    let Some(end) = line.windows(2).position(|two| two == b"\r\n") else {
        return if bytes.len() < V1_BYTES { Ok(Progress::More) } else { Err(Malformed) };
    };
    let length = end + 2;
    let header = bytes.get(..length).ok_or(Malformed)?;
    // ppp ends at the first CR, and takes a line feed between blanks for the end.
    if !line.iter().take(end).all(|byte| (b' '..=b'~').contains(byte)) {
        return Err(Malformed);
    }
    let header = v1::Header::try_from(header).map_err(|_| Malformed)?;
    let source = match header.addresses {
        v1::Addresses::Unknown => Source::Unknown,
        v1::Addresses::Tcp4(addresses) => told(addresses.source_address),
        v1::Addresses::Tcp6(addresses) => told(addresses.source_address),
    };
    Ok(Progress::Done(length, source))
}

fn version_2(bytes: &[u8]) -> Result<Progress, Malformed> {
    let Some(fixed) = bytes.get(..V2_FIXED) else { return Ok(Progress::More) };
    let length = match fixed {
        [.., high, low] => V2_FIXED + usize::from(u16::from_be_bytes([*high, *low])),
        _ => return Err(Malformed),
    };
    if length > V2_BYTES {
        return Err(Malformed);
    }
    let Some(header) = bytes.get(..length) else { return Ok(Progress::More) };
    if bytes.get(V2_COMMAND) == Some(&V2_LOCAL) {
        // Whatever it says of addresses is to be ignored.
        return Ok(Progress::Done(length, Source::Local));
    }
    let header = v2::Header::try_from(header).map_err(|_| Malformed)?;
    let source = match header.addresses {
        // A datagram is no connection of ours.
        _ if header.protocol == v2::Protocol::Datagram => return Err(Malformed),
        v2::Addresses::IPv4(addresses) => told(addresses.source_address),
        v2::Addresses::IPv6(addresses) => told(addresses.source_address),
        v2::Addresses::Unspecified | v2::Addresses::Unix(_) => Source::Unknown,
    };
    Ok(Progress::Done(length, source))
}

fn told(address: impl Into<IpAddr>) -> Source {
    Source::Told(address.into().to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of version 2 from its 13th to 14th byte, its length and what follows.
    fn v2(command: u8, family: u8, length: u16, rest: &[u8]) -> Vec<u8> {
        let mut bytes = v2::PROTOCOL_PREFIX.to_vec();
        bytes.extend([command, family]);
        bytes.extend(length.to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    const V4: [u8; 12] = [203, 0, 113, 9, 10, 0, 0, 1, 0xd4, 0x31, 0x01, 0xbb];

    fn address(text: &str) -> Source {
        Source::Told(text.parse().unwrap())
    }

    #[test]
    fn headers() {
        let mut v6 = vec![0; 36];
        v6[..16].copy_from_slice(&"2001:db8::9".parse::<std::net::Ipv6Addr>().unwrap().octets());
        let mut mapped = vec![0; 36];
        mapped[10..16].copy_from_slice(&[0xff, 0xff, 203, 0, 113, 9]);
        let with_notes = [&V4[..], &[0x04, 0, 3, 1, 2, 3]].concat();
        for (name, bytes, expect) in [
            (
                "v1",
                b"PROXY TCP4 203.0.113.9 10.0.0.1 54321 443\r\n".to_vec(),
                address("203.0.113.9"),
            ),
            (
                "v1 of 6",
                b"PROXY TCP6 2001:db8::9 ::1 54321 443\r\n".to_vec(),
                address("2001:db8::9"),
            ),
            ("v1 unknown", b"PROXY UNKNOWN\r\n".to_vec(), Source::Unknown),
            ("v1 unknown and more", b"PROXY UNKNOWN ffff::1 ::1 1 2\r\n".to_vec(), Source::Unknown),
            ("v2", v2(0x21, 0x11, 12, &V4), address("203.0.113.9")),
            ("v2 of 6", v2(0x21, 0x21, 36, &v6), address("2001:db8::9")),
            ("v2 of 4 in 6", v2(0x21, 0x21, 36, &mapped), address("203.0.113.9")),
            ("v2 with notes", v2(0x21, 0x11, 18, &with_notes), address("203.0.113.9")),
            ("v2 local", v2(0x20, 0x00, 0, &[]), Source::Local),
            ("v2 local with addresses", v2(0x20, 0x11, 12, &V4), Source::Local),
            ("v2 local with half of them", v2(0x20, 0x11, 2, &[1, 2]), Source::Local),
            ("v2 unspecified", v2(0x21, 0x00, 0, &[]), Source::Unknown),
            ("v2 of a Unix socket", v2(0x21, 0x31, 216, &[b'/'; 216]), Source::Unknown),
        ] {
            let long = [bytes.as_slice(), b"\x16\x03\x01"].concat();
            let expect = Ok(Progress::Done(bytes.len(), expect));
            assert_eq!(read(&bytes), expect, "{name}");
            assert_eq!(read(&long), expect, "{name}, with what follows");
            for end in 0..bytes.len() {
                assert_eq!(read(&bytes[..end]), Ok(Progress::More), "{name}, {end} bytes");
            }
        }
    }

    #[test]
    fn hostile_headers() {
        let long = format!("PROXY UNKNOWN {}\r\n", "a".repeat(V1_BYTES));
        for (name, bytes) in [
            ("a request", b"GET / HTTP/1.1\r\n".to_vec()),
            ("a ClientHello", vec![0x16, 0x03, 0x01]),
            ("another case", b"proxy TCP4 203.0.113.9 10.0.0.1 1 2\r\n".to_vec()),
            ("a name", b"PROXY TCP4 localhost 10.0.0.1 1 2\r\n".to_vec()),
            ("the other family", b"PROXY TCP4 ::1 ::1 1 2\r\n".to_vec()),
            ("a port too large", b"PROXY TCP4 203.0.113.9 10.0.0.1 65536 2\r\n".to_vec()),
            ("a port with a zero", b"PROXY TCP4 203.0.113.9 10.0.0.1 01 2\r\n".to_vec()),
            ("an octet with a zero", b"PROXY TCP4 203.0.113.09 10.0.0.1 1 2\r\n".to_vec()),
            ("two spaces", b"PROXY TCP4  203.0.113.9 10.0.0.1 1 2\r\n".to_vec()),
            ("no addresses", b"PROXY TCP4\r\n".to_vec()),
            ("more than addresses", b"PROXY TCP4 203.0.113.9 10.0.0.1 1 2 3\r\n".to_vec()),
            ("another protocol", b"PROXY UDP4 203.0.113.9 10.0.0.1 1 2\r\n".to_vec()),
            ("a line that does not end", long.into_bytes()),
            ("a line feed inside", b"PROXY UNKNOWN a \n b \rc\r\n".to_vec()),
            ("a bare CR inside", b"PROXY UNKNOWN \ra\r\n".to_vec()),
            ("a control byte inside", b"PROXY UNKNOWN a\0b\r\n".to_vec()),
            ("a byte outside ASCII", b"PROXY TCP4 203.0.113.9\xff 10.0.0.1 1 2\r\n".to_vec()),
            ("version 1 in binary", v2(0x11, 0x11, 12, &V4)),
            ("version 3", v2(0x31, 0x11, 12, &V4)),
            ("another command", v2(0x22, 0x11, 12, &V4)),
            ("another family", v2(0x21, 0x41, 12, &V4)),
            ("another transport", v2(0x21, 0x13, 12, &V4)),
            ("datagrams", v2(0x21, 0x12, 12, &V4)),
            ("too short for its addresses", v2(0x21, 0x11, 11, &V4[..11])),
            ("too short for those of 6", v2(0x21, 0x21, 12, &V4)),
            ("too long", v2(0x21, 0x11, 4081, &[0; 4081])),
            ("as long as it can say", v2(0x21, 0x11, u16::MAX, &[])),
        ] {
            assert_eq!(read(&bytes), Err(Malformed), "{name}");
        }
    }
}
