//! Whose trace a request belongs to: W3C Trace Context, as it comes in and as it goes on.
//!
//! A trace's id is a label: whoever names one can at most have a request shown beside others that it has
//! nothing to do with. That it is sampled costs something, so that is believed of those in front alone.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};

/// `traceparent` (W3C Trace Context section 3.2).
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// `tracestate` (W3C Trace Context section 3.3).
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The flag of a trace that is recorded.
const SAMPLED: u8 = 1;
/// The flag of a trace whose id is random (level 2), which goes on as it came.
const RANDOM: u8 = 2;
/// Members of `tracestate`, at most.
const MAX_MEMBERS: usize = 32;
/// Bytes of `tracestate` that are passed on, as many as everyone must be able to.
const MAX_STATE: usize = 512;

/// A trace: 16 bytes, not all of them 0.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceId([u8; 16]);

/// A span of a trace: 8 bytes, not all of them 0.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SpanId([u8; 8]);

/// What a request says of the trace that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The trace.
    pub trace: TraceId,
    /// The sender's span.
    pub span: SpanId,
    flags: u8,
}

/// A request's place in a trace, of which the edge has two spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The trace.
    pub id: TraceId,
    /// The span of what sent the request; `None` where it begins here.
    pub parent: Option<SpanId>,
    /// The span of the request at the edge.
    pub own: SpanId,
    /// The span of the request to the service, the parent of the service's.
    pub onward: SpanId,
    /// Whether it is recorded.
    pub sampled: bool,
    flags: u8,
}

/// What a trace is made of besides the request.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// For a trace that begins here.
    pub trace: [u8; 16],
    /// For the edge's spans.
    pub spans: [[u8; 8]; 2],
    /// Decides whether a trace is recorded of which nobody believed says so.
    pub chance: u32,
}

impl TraceId {
    /// `None` for nothing but zeros.
    #[must_use]
    pub fn new(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(Self(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl SpanId {
    /// `None` for nothing but zeros.
    #[must_use]
    pub fn new(bytes: [u8; 8]) -> Option<Self> {
        (bytes != [0; 8]).then_some(Self(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

/// As `traceparent` and logs write it.
impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Parent {
    /// What the request's fields say; `None` where they say nothing, or nothing that can be read
    /// (section 3.2.2): then a new trace begins.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let value = values.next()?.as_bytes();
        if values.next().is_some() {
            return None;
        }
        let (version, rest) = (hexadecimal::<1>(value.get(..2)?)?, value.get(2..)?);
        let [version] = version;
        let (trace, span, flags) = (rest.get(1..33)?, rest.get(34..50)?, rest.get(51..53)?);
        let dashes = [0, 33, 50].iter().all(|place| rest.get(*place) == Some(&b'-'));
        // Of a later version what is known is read; more may follow it.
        let ends = match (version, rest.get(53)) {
            (0xff, _) => false,
            (_, None) => true,
            (0, Some(_)) => false,
            (_, Some(next)) => *next == b'-',
        };
        if !dashes || !ends {
            return None;
        }
        let [flags] = hexadecimal::<1>(flags)?;
        let (trace, span) = (hexadecimal(trace)?, hexadecimal(span)?);
        Some(Self { trace: TraceId::new(trace)?, span: SpanId::new(span)?, flags })
    }
}

/// Whether `tracestate` may be passed on.
#[must_use]
pub fn state_is_good(headers: &HeaderMap) -> bool {
    let values: Vec<_> = headers.get_all(TRACESTATE).iter().map(HeaderValue::as_bytes).collect();
    let length = values.iter().map(|value| value.len() + 1).sum::<usize>();
    let members = values.iter().flat_map(|value| value.split(|byte| *byte == b','));
    let members: Vec<_> = members.map(<[u8]>::trim_ascii).filter(|it| !it.is_empty()).collect();
    let keys: Option<Vec<_>> = members.iter().map(|member| key(member)).collect();
    let Some(mut keys) = keys else { return false };
    keys.sort_unstable();
    let twice = keys.windows(2).any(|pair| matches!(pair, [one, other] if one == other));
    length <= MAX_STATE && members.len() <= MAX_MEMBERS && !twice
}

/// The key of a member, where it is one (section 3.3.1.3).
fn key(member: &[u8]) -> Option<&[u8]> {
    let equals = member.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (member.get(..equals)?, member.get(equals + 1..)?);
    let first = key.first()?;
    let simple =
        |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/@".contains(byte);
    let begins = first.is_ascii_lowercase() || first.is_ascii_digit();
    let one_system = key.iter().filter(|byte| **byte == b'@').count() <= 1;
    let visible = |byte: &u8| (b' '..=b'~').contains(byte) && *byte != b'=';
    let good = begins && one_system && key.len() <= 256 && key.iter().all(simple);
    let good = good && (1..=256).contains(&value.len()) && value.iter().all(visible);
    good.then_some(key)
}

impl Trace {
    /// The place of a request that came with `parent`. `believed`: from somebody whose word on sampling
    /// counts; of all others `share` of the requests is recorded, by chance, whatever they say: a trace's
    /// id could be one that is chosen to be.
    ///
    /// `None` where what was drawn is nothing but zeros, which chance rules out.
    #[must_use]
    pub fn begin(parent: Option<Parent>, believed: bool, share: f64, draw: &Draw) -> Option<Self> {
        let by_chance = f64::from(draw.chance) < share * (f64::from(u32::MAX) + 1.0);
        let [own, onward] = draw.spans;
        let sampled = match parent {
            Some(parent) if believed => parent.flags & SAMPLED != 0,
            Some(_) | None => by_chance,
        };
        Some(Self {
            id: parent.map(|parent| parent.trace).or_else(|| TraceId::new(draw.trace))?,
            parent: parent.map(|parent| parent.span),
            own: SpanId::new(own)?,
            onward: SpanId::new(onward)?,
            sampled,
            flags: parent.map_or(RANDOM, |parent| parent.flags & RANDOM),
        })
    }

    /// The flags of the edge's spans.
    #[must_use]
    pub fn flags(&self) -> u8 {
        self.flags | if self.sampled { SAMPLED } else { 0 }
    }

    /// What the service is told: the edge's span to it as parent.
    #[must_use]
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-{:02x}", self.id, self.onward, self.flags())
    }
}

/// Bytes of lower-case hexadecimal digits.
fn hexadecimal<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if digits.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const DRAW: Draw = Draw { trace: [1; 16], spans: [[2; 8], [3; 8]], chance: 1 << 31 };

    fn headers(name: HeaderName, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(&name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    #[test]
    fn one_parent_in_its_form_is_read() {
        let id = "0af7651916cd43dd8448eb211c80319c";
        let with = |version: &str, rest: &str| format!("{version}-{id}-b7ad6b7169203331-01{rest}");
        for (values, expect) in [
            (vec![GOOD.to_owned()], Some(true)),
            (vec![GOOD.replace("-01", "-00")], Some(false)),
            (vec![GOOD.replace("-01", "-ff")], Some(true)),
            (vec![GOOD.replace("-01", "-02")], Some(false)),
            (vec![with("cc", "")], Some(true)),
            (vec![with("cc", "-what-comes-later")], Some(true)),
            (vec![], None),
            (vec![String::new()], None),
            (vec![GOOD.to_owned(), GOOD.to_owned()], None),
            (vec![format!("{GOOD},{GOOD}")], None),
            (vec![with("00", "-more")], None),
            (vec![with("cc", "more")], None),
            (vec![with("ff", "")], None),
            (vec![GOOD.to_uppercase()], None),
            (vec![GOOD.replace("-01", "-1")], None),
            (vec![GOOD.replace("-01", "-0g")], None),
            (vec![GOOD.replace("00-", "0-")], None),
            (vec![GOOD.replace('-', "_")], None),
            (vec![GOOD.replace(id, &"0".repeat(32))], None),
            (vec![GOOD.replace("b7ad6b7169203331", &"0".repeat(16))], None),
            (vec![format!(" {GOOD}")], None),
        ] {
            let texts: Vec<&str> = values.iter().map(String::as_str).collect();
            let found = Parent::of(&headers(TRACEPARENT, &texts));
            assert_eq!(found.map(|parent| parent.flags & SAMPLED != 0), expect, "{values:?}");
            if let Some(parent) = found {
                assert_eq!(parent.trace.to_string(), id);
                assert_eq!(parent.span.to_string(), "b7ad6b7169203331");
            }
        }
    }

    #[test]
    fn states() {
        let many = |count: usize| {
            let members: Vec<_> = (0..count).map(|n| format!("k{n}=v")).collect();
            members.join(",")
        };
        for (values, expect) in [
            (vec!["congo=t61rcWkgMzE".to_owned()], true),
            (vec!["a=1,b=2".to_owned(), "c=3".to_owned()], true),
            (vec!["fw529a3039@dt=FfAAAA, a=1".to_owned()], true),
            (vec!["a=1,,b=2".to_owned()], true),
            (vec![many(32)], true),
            (vec![], true),
            (vec![many(33)], false),
            (vec![format!("a={}", "x".repeat(520))], false),
            (vec!["a=1,a=2".to_owned()], false),
            (vec!["A=1".to_owned()], false),
            (vec!["a".to_owned()], false),
            (vec!["=1".to_owned()], false),
            (vec!["a=".to_owned()], false),
            (vec!["a=1=2".to_owned()], false),
            (vec!["a=é".to_owned()], false),
            (vec!["a@b@c=1".to_owned()], false),
        ] {
            let texts: Vec<&str> = values.iter().map(String::as_str).collect();
            assert_eq!(state_is_good(&headers(TRACESTATE, &texts)), expect, "{values:?}");
        }
    }

    #[test]
    fn who_is_believed_decides_and_else_chance() {
        let parent = |flags| Parent { trace: TraceId([9; 16]), span: SpanId([8; 8]), flags };
        for (name, parent, believed, share, expect) in [
            ("ok/begins", None, false, 0.6, true),
            ("ok/begins, not drawn", None, false, 0.5, false),
            ("ok/all", None, false, 1.0, true),
            ("ok/none", None, true, 0.0, false),
            ("ok/believed", Some(parent(1)), true, 0.0, true),
            ("ok/believed, not", Some(parent(0)), true, 1.0, false),
            ("fail/a stranger's flag", Some(parent(1)), false, 0.0, false),
            ("ok/a stranger's lack of one", Some(parent(0)), false, 1.0, true),
        ] {
            let trace = Trace::begin(parent, believed, share, &DRAW).unwrap();
            assert_eq!(trace.sampled, expect, "{name}");
            let id = parent.map_or([1; 16], |_| [9; 16]);
            assert_eq!((trace.id, trace.parent), (TraceId(id), parent.map(|it| it.span)), "{name}");
        }
        let told = |flags| Trace::begin(Some(parent(flags)), true, 0.0, &DRAW).unwrap();
        let (id, span) = ("09".repeat(16), "03".repeat(8));
        assert_eq!(told(1).traceparent(), format!("00-{id}-{span}-01"));
        assert_eq!(told(0xfe).traceparent(), format!("00-{id}-{span}-02"));
        let zeros = Draw { trace: [0; 16], ..DRAW };
        assert_eq!(Trace::begin(None, false, 1.0, &zeros), None);
    }
}
