//! The body of a request to an authorization server: `application/x-www-form-urlencoded`.
//!
//! It is read strictly, and what is sent on is written anew from what was read: whatever the server's
//! own reader makes of odd bodies, it reads the fields that the decision was about.

use zeroize::Zeroizing;

use super::introspection::form_encoded;

/// The most fields.
const MAX_FIELDS: usize = 128;
/// Parameters that may be given more than once (RFC 8707 section 2, RFC 8693 section 2.1). All others
/// may not (RFC 6749 section 3.2).
const REPEATABLE: [&str; 2] = ["resource", "audience"];
/// Parameters that decide who asks for what. In a query they would be a second word on it.
const DECISIVE: [&str; 25] = [
    "access_token",
    "actor_token",
    "assertion",
    "audience",
    "client_assertion",
    "client_assertion_type",
    "client_id",
    "client_secret",
    "code",
    "code_challenge",
    "code_challenge_method",
    "code_verifier",
    "dpop_jkt",
    "grant_type",
    "redirect_uri",
    "refresh_token",
    "request",
    "request_uri",
    "resource",
    "response_type",
    "scope",
    "subject_token",
    "subject_token_type",
    "token",
    "token_type_hint",
];

/// Why a body is no form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormFault {
    /// `Content-Type` is another, or there is a `Content-Encoding`.
    Type,
    /// A broken escape, bytes that are not UTF-8, a NUL, more fields than any server needs, or a name
    /// that some servers take for one that decides.
    Malformed,
    /// A parameter is given more than once.
    Repeated,
}

/// The fields of a form, in their order. Secrets are among them, so it has no `Debug`.
#[derive(Clone, Default)]
pub struct Form(Vec<(String, Zeroizing<String>)>);

impl Form {
    /// Reads a body.
    ///
    /// # Errors
    /// [`FormFault`].
    pub fn parse(content_type: Option<&str>, body: &[u8]) -> Result<Self, FormFault> {
        let media = content_type.and_then(|it| it.split(';').next()).map(str::trim);
        if !media.is_some_and(|it| it.eq_ignore_ascii_case("application/x-www-form-urlencoded")) {
            return Err(FormFault::Type);
        }
        let mut form = Self::default();
        for pair in body.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
            let at = pair.iter().position(|byte| *byte == b'=');
            let (name, value) = at.map_or((pair, &[][..]), |at| {
                let (name, value) = pair.split_at(at);
                (name, value.get(1..).unwrap_or_default())
            });
            let (name, value) = (decoded(name)?, decoded(value)?);
            let read = folded(&name);
            let doubtful = read != *name && DECISIVE.contains(&read.as_str());
            if doubtful || form.0.len() == MAX_FIELDS {
                return Err(FormFault::Malformed);
            }
            let repeats = !REPEATABLE.contains(&name.as_str());
            if repeats && form.0.iter().any(|(known, _)| *known == *name) {
                return Err(FormFault::Repeated);
            }
            form.0.push((name.to_string(), value));
        }
        Ok(form)
    }

    /// The value of a parameter; without a value it counts as omitted (RFC 6749 section 3.2).
    #[must_use]
    pub fn get<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.values(name).next()
    }

    /// The values of a parameter that may be given more than once.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let own = self.0.iter().filter(move |(known, value)| known == name && !value.is_empty());
        own.map(|(_, value)| value.as_str())
    }

    /// The body as it is sent on.
    #[must_use]
    pub fn encoded(&self) -> Zeroizing<String> {
        let mut body = Zeroizing::new(String::with_capacity(1024));
        for (name, value) in &self.0 {
            if !body.is_empty() {
                body.push('&');
            }
            body.push_str(&form_encoded(name));
            body.push('=');
            body.push_str(&Zeroizing::new(form_encoded(value)));
        }
        body
    }
}

/// Whether a query names a parameter that has its place in the body (RFC 6749 section 2.3.1: not in the
/// request URI).
#[must_use]
pub fn query_decides(query: &str) -> bool {
    query.split(['&', ';']).any(|pair| {
        let name = pair.split('=').next().unwrap_or_default();
        // What cannot be read could be anything.
        decoded(name.as_bytes()).map_or(true, |name| DECISIVE.contains(&folded(&name).as_str()))
    })
}

/// The name that the most lenient of servers reads: some look at no case and at no space before or
/// behind it, some take `.` and a space for `_`, and what is in brackets for an index.
fn folded(name: &str) -> String {
    let nothing = |char: char| char.is_whitespace() || char.is_control() || char == '\u{feff}';
    let name = name.split('[').next().unwrap_or_default().trim_matches(nothing);
    name.to_ascii_lowercase().replace(['.', ' '], "_")
}

/// One name or value (WHATWG URL section 5.1), strictly.
pub(super) fn decoded(text: &[u8]) -> Result<Zeroizing<String>, FormFault> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut hex = || rest.next().and_then(|digit| char::from(*digit).to_digit(16));
                let (high, low) = (hex(), hex());
                let value = high.zip(low).map(|(high, low)| high * 16 + low);
                value.and_then(|value| u8::try_from(value).ok()).ok_or(FormFault::Malformed)?
            }
            byte => *byte,
        });
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| FormFault::Malformed)?;
    if text.contains('\0') {
        return Err(FormFault::Malformed);
    }
    Ok(Zeroizing::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: Option<&str> = Some("application/x-www-form-urlencoded");

    fn fault(content_type: Option<&str>, body: &[u8]) -> Option<FormFault> {
        Form::parse(content_type, body).err()
    }

    #[test]
    fn reads_and_writes_the_same_fields() {
        for (body, written) in [
            ("a=b&c=d", "a=b&c=d"),
            ("a=b+c%20d", "a=b+c+d"),
            ("client%5Fid=x", "client_id=x"),
            ("a=%C3%A4", "a=%C3%A4"),
            ("a=1%26b%3D2", "a=1%26b%3D2"),
            ("a=b;c=d", "a=b%3Bc%3Dd"),
            ("a", "a="),
            ("a=b=c", "a=b%3Dc"),
            ("&&a=b&", "a=b"),
            ("resource=x&resource=y", "resource=x&resource=y"),
            ("", ""),
        ] {
            let form = Form::parse(TYPE, body.as_bytes()).ok().unwrap();
            assert_eq!(*form.encoded(), written, "{body}");
        }
        let form = Form::parse(TYPE, b"a=&b=1").ok().unwrap();
        assert_eq!((form.get("a"), form.get("b"), form.get("c")), (None, Some("1"), None));
    }

    #[test]
    fn refuses_what_two_readers_could_read_in_two_ways() {
        for (content_type, body, expect) in [
            (None, "a=b", FormFault::Type),
            (Some("application/json"), "{}", FormFault::Type),
            (Some("application/x-www-form-urlencoded-x"), "a=b", FormFault::Type),
            (TYPE, "a=1&a=2", FormFault::Repeated),
            (TYPE, "a=1&%61=2", FormFault::Repeated),
            (TYPE, "client_id=a&client_id=a", FormFault::Repeated),
            (TYPE, "client_id=a&Client_Id=b", FormFault::Malformed),
            (TYPE, "client.id=b", FormFault::Malformed),
            (TYPE, "+client+id=b", FormFault::Malformed),
            (TYPE, "refresh_token%5B%5D=b", FormFault::Malformed),
            (TYPE, "%EF%BB%BFgrant_type=b", FormFault::Malformed),
            (TYPE, "grant_type%0D%0A=b", FormFault::Malformed),
            (TYPE, "a=%", FormFault::Malformed),
            (TYPE, "a=%4", FormFault::Malformed),
            (TYPE, "a=%GG", FormFault::Malformed),
            (TYPE, "a=%+1", FormFault::Malformed),
            (TYPE, "a=%ff", FormFault::Malformed),
            (TYPE, "a=%00", FormFault::Malformed),
        ] {
            assert_eq!(fault(content_type, body.as_bytes()), Some(expect), "{body}");
        }
        assert_eq!(fault(TYPE, b"a=\xff"), Some(FormFault::Malformed));
        let many: Vec<_> = (0..129).map(|n| format!("a{n}=1")).collect();
        assert_eq!(fault(TYPE, many.join("&").as_bytes()), Some(FormFault::Malformed));
        let with_parameter = Some("Application/X-WWW-Form-Urlencoded; charset=UTF-8");
        assert_eq!(fault(with_parameter, b"a=b"), None);
    }

    #[test]
    fn a_query_decides_nothing() {
        for (query, expect) in [
            ("policy=b2c", false),
            ("", false),
            ("client_id=x", true),
            ("p=1&client%5fid=x", true),
            ("p=1;refresh_token=x", true),
            ("%zz=1", true),
            ("grant_type", true),
            ("Grant_Type=x", true),
            ("client.id=x", true),
            ("resource[0]=x", true),
            ("code_challenge_method=plain", true),
            ("tenant=x&api-version=1.0", false),
        ] {
            assert_eq!(query_decides(query), expect, "{query}");
        }
    }
}
