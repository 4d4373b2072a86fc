//! A client's certificate as a proxy in front hands it on, in the three fields in use: `Client-Cert`
//! (RFC 9440), Envoy's `X-Forwarded-Client-Cert`, and `X-SSL-Client-Cert` as nginx and HAProxy fill it.
//!
//! Chain and possession are the proxy's to verify. Nothing is believed here:
//! [`proxies`](super::proxies) says who is.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use sfv::{ListEntry, Parser};

use super::certificate::SenderCertificate;
use super::digest::Sha256;
use super::forwarded::{self, one_value, split};
use super::target::percent_decoded;

const CLIENT_CERT_CHAIN: &str = "client-cert-chain";
/// Certificates of a chain that are taken.
const MAX_CHAIN: usize = 16;

/// Which field carries the certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `Client-Cert`, with `Client-Cert-Chain` beside it: DER as a byte sequence (RFC 9440 section 2).
    ClientCert,
    /// `X-Forwarded-Client-Cert`: the `Cert` of its one element, PEM in percent-encoding, which is the one
    /// of its `Hash`, if it has that, and perhaps a `Chain`.
    ForwardedClientCert,
    /// `X-SSL-Client-Cert`: PEM in percent-encoding (nginx: `$ssl_client_escaped_cert`) or DER in
    /// base64 (HAProxy: `%[ssl_c_der,base64]`).
    SslClientCert,
}

impl Field {
    /// Its name in lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ClientCert => "client-cert",
            Self::ForwardedClientCert => "x-forwarded-client-cert",
            Self::SslClientCert => "x-ssl-client-cert",
        }
    }
}

/// The field is there more than once, or holds no certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client's certificate cannot be read")]
pub struct Malformed;

impl From<forwarded::Malformed> for Malformed {
    fn from(_: forwarded::Malformed) -> Self {
        Self
    }
}

/// A certificate that was handed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandedOn {
    /// The client's own.
    pub leaf: SenderCertificate,
    /// Those that it chains to, DER, as far as the proxy says.
    pub chain: Vec<Vec<u8>>,
}

/// Reads `field`. `None` where the proxy says that the client has none: no field, or an empty one.
///
/// # Errors
/// [`Malformed`].
pub fn read(headers: &HeaderMap, field: Field) -> Result<Option<HandedOn>, Malformed> {
    let value = one_value(headers, field.name())?;
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(None) };
    match field {
        Field::ClientCert => {
            let leaf = leaf(byte_sequence(value)?)?;
            Ok(Some(HandedOn { leaf, chain: client_cert_chain(headers)? }))
        }
        Field::ForwardedClientCert => forwarded_client_cert(value),
        Field::SslClientCert => {
            let der = if value.starts_with("-----BEGIN") {
                one(pem(value)?)?
            } else {
                STANDARD.decode(value).map_err(|_| Malformed)?
            };
            Ok(Some(HandedOn { leaf: leaf(der)?, chain: Vec::new() }))
        }
    }
}

fn leaf(der: Vec<u8>) -> Result<SenderCertificate, Malformed> {
    SenderCertificate::new(der).ok_or(Malformed)
}

fn byte_sequence(value: &str) -> Result<Vec<u8>, Malformed> {
    let item = Parser::parse_item(value.as_bytes()).map_err(|_| Malformed)?;
    item.bare_item.as_byte_seq().cloned().ok_or(Malformed)
}

/// `Client-Cert-Chain` (RFC 9440 section 2.3): a list, in several fields or one.
fn client_cert_chain(headers: &HeaderMap) -> Result<Vec<Vec<u8>>, Malformed> {
    let values = headers.get_all(CLIENT_CERT_CHAIN).iter();
    let values: Vec<_> = values.map(http::HeaderValue::as_bytes).collect();
    let list = Parser::parse_list(&values.join(b", ".as_slice())).map_err(|_| Malformed)?;
    if list.len() > MAX_CHAIN {
        return Err(Malformed);
    }
    let der = |entry: &ListEntry| match entry {
        ListEntry::Item(item) => item.bare_item.as_byte_seq().cloned().ok_or(Malformed),
        ListEntry::InnerList(_) => Err(Malformed),
    };
    let chain: Vec<_> = list.iter().map(der).collect::<Result<_, _>>()?;
    if chain.iter().all(|der| SenderCertificate::new(der.clone()).is_some()) {
        Ok(chain)
    } else {
        Err(Malformed)
    }
}

/// One element, Envoy's own about its client. Envoy copies what stands in a client's certificate without
/// quoting all of it, so that a certificate may hold `,Cert=…`: more than one element, a name twice, a
/// half quoted value or a `Cert` that is not the one of `Hash`, which stands before anything of the
/// client's, are refused.
fn forwarded_client_cert(value: &str) -> Result<Option<HandedOn>, Malformed> {
    let elements = split(value, ',')?;
    let [element] = elements[..] else { return Err(Malformed) };
    let (mut certificate, mut chain, mut hash) = (None, None, None);
    for pair in split(element, ';')? {
        let (name, value) = pair.split_once('=').ok_or(Malformed)?;
        let value = whole(value)?;
        let before = match name.to_ascii_lowercase().as_str() {
            "cert" => certificate.replace(pem(value)?).is_some(),
            "chain" => chain.replace(pem(value)?).is_some(),
            "hash" => hash.replace(value).is_some(),
            _ => false,
        };
        if before {
            return Err(Malformed);
        }
    }
    // Without `Cert` there is nothing to hold a token against.
    let certificate = one(certificate.ok_or(Malformed)?)?;
    let written: String = Sha256::of(&certificate).0.map(|byte| format!("{byte:02x}")).concat();
    if hash.is_some_and(|hash| !hash.eq_ignore_ascii_case(&written)) {
        return Err(Malformed);
    }
    let mut chain = chain.unwrap_or_default();
    // Envoy's chain begins with the client's own.
    if chain.first() == Some(&certificate) {
        chain.remove(0);
    }
    Ok(Some(HandedOn { leaf: leaf(certificate)?, chain }))
}

/// A value without any quote, or what stands in the one pair around it.
fn whole(value: &str) -> Result<&str, Malformed> {
    if !value.contains('"') {
        return Ok(value);
    }
    let inner =
        value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).ok_or(Malformed)?;
    let mut escaped = false;
    for character in inner.chars() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Err(Malformed),
            _ => {}
        }
    }
    if escaped { Err(Malformed) } else { Ok(inner) }
}

/// The certificates of a PEM text in percent-encoding.
fn pem(value: &str) -> Result<Vec<Vec<u8>>, Malformed> {
    let text = percent_decoded(value);
    let certificates = CertificateDer::pem_slice_iter(&text);
    let certificates = certificates.map(|der| der.map(|der| der.to_vec()).map_err(|_| Malformed));
    let certificates: Vec<_> = certificates.take(MAX_CHAIN + 1).collect::<Result<_, _>>()?;
    if certificates.is_empty() || certificates.len() > MAX_CHAIN {
        return Err(Malformed);
    }
    Ok(certificates)
}

fn one(mut certificates: Vec<Vec<u8>>) -> Result<Vec<u8>, Malformed> {
    if certificates.len() == 1 { certificates.pop().ok_or(Malformed) } else { Err(Malformed) }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn certificate(name: &str) -> (Vec<u8>, String) {
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        (certificate.der().to_vec(), certificate.pem())
    }

    /// As `encodeURIComponent` would: nginx and Envoy escape at least what this does.
    fn escaped(text: &str) -> String {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let escape = |byte| {
            if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
        };
        text.bytes().map(escape).collect()
    }

    fn sequence(der: &[u8]) -> String {
        format!(":{}:", STANDARD.encode(der))
    }

    /// `FIELD: VALUE` lines, read as `field`: the leaf and how many follow.
    fn check(lines: &[String], field: Field) -> Result<Option<(Vec<u8>, usize)>, Malformed> {
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap();
            let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let read = read(&headers, field)?;
        Ok(read.map(|it| (it.leaf.der().to_vec(), it.chain.len())))
    }

    #[test]
    fn client_cert() {
        let ((der, pem), (issuer, _)) = (certificate("one.example"), certificate("ca.example"));
        let (leaf, chain) = (sequence(&der), sequence(&issuer));
        let some = |chain| Ok(Some((der.clone(), chain)));
        for (lines, expect) in [
            (vec![], Ok(None)),
            (vec!["client-cert: ".to_owned()], Ok(None)),
            (vec![format!("client-cert: {leaf}")], some(0)),
            (vec![format!("client-cert: {leaf};note=1")], some(0)),
            (
                vec![
                    format!("client-cert: {leaf}"),
                    format!("client-cert-chain: {chain}, {chain}"),
                ],
                some(2),
            ),
            (
                vec![
                    format!("client-cert: {leaf}"),
                    format!("client-cert-chain: {chain}"),
                    format!("client-cert-chain: {chain}"),
                ],
                some(2),
            ),
            (vec![format!("client-cert-chain: {chain}")], Ok(None)),
            (vec![format!("client-cert: {leaf}"), format!("client-cert: {leaf}")], Err(Malformed)),
            (vec![format!("client-cert: {leaf}, {leaf}")], Err(Malformed)),
            (vec![format!("client-cert: {}", STANDARD.encode(&der))], Err(Malformed)),
            (vec![format!("client-cert: {}", escaped(&pem))], Err(Malformed)),
            (vec!["client-cert: ::".to_owned()], Err(Malformed)),
            (vec!["client-cert: :AAAA:".to_owned()], Err(Malformed)),
            (vec!["client-cert: 1".to_owned()], Err(Malformed)),
            (
                vec![format!("client-cert: {}", sequence(&[&der[..], &[0]].concat()))],
                Err(Malformed),
            ),
            (
                vec![format!("client-cert: {leaf}"), "client-cert-chain: 1".to_owned()],
                Err(Malformed),
            ),
            (
                vec![format!("client-cert: {leaf}"), "client-cert-chain: :AAAA:".to_owned()],
                Err(Malformed),
            ),
            (
                vec![format!("client-cert: {leaf}"), format!("client-cert-chain: ({chain})")],
                Err(Malformed),
            ),
            (
                vec![
                    format!("client-cert: {leaf}"),
                    format!("client-cert-chain: {}", vec!["::"; 17].join(",")),
                ],
                Err(Malformed),
            ),
        ] {
            assert_eq!(check(&lines, Field::ClientCert), expect, "{lines:?}");
        }
    }

    #[test]
    fn x_forwarded_client_cert() {
        let ((der, pem), (other_der, other)) =
            (certificate("one.example"), certificate("two.example"));
        let hash = |der: &[u8]| Sha256::of(der).0.map(|byte| format!("{byte:02x}")).concat();
        let (own_hash, other_hash) = (hash(&der), hash(&other_der));
        let (leaf, other, both) =
            (escaped(&pem), escaped(&other), escaped(&[&*pem, &*other].concat()));
        let own = format!("By=spiffe://a;Hash={own_hash};Cert=\"{leaf}\"");
        let some = |chain| Ok(Some((der.clone(), chain)));
        for (value, expect) in [
            (own.clone(), some(0)),
            (format!("{own};Subject=\"CN=a,O=\\\"b;c\\\"\";URI=x;DNS=a;DNS=b"), some(0)),
            (format!("hash={};cert={leaf}", own_hash.to_uppercase()), some(0)),
            (format!("Cert=\"{leaf}\""), some(0)),
            (format!("{own};Chain=\"{both}\""), some(1)),
            (format!("{own};Chain=\"{other}\""), some(1)),
            (String::new(), Ok(None)),
            // What a client's certificate may hold, which Envoy copies.
            (format!("{own};URI=x,Cert=\"{other}\""), Err(Malformed)),
            (format!("{own};URI=x,Hash={other_hash};Cert=\"{other}\""), Err(Malformed)),
            (format!("{own};URI=x;Cert=\"{other}\""), Err(Malformed)),
            (format!("Hash={own_hash};URI=x;Cert=\"{other}\""), Err(Malformed)),
            (format!("Hash={own_hash};URI=x;Hash={other_hash};Cert=\"{other}\""), Err(Malformed)),
            (format!("x=\",{own};Subject=\"a\\;Cert={other}\\;x=\\\"\""), Err(Malformed)),
            (format!("x=\",{own};Subject=\"a;Cert={other};x=\""), Err(Malformed)),
            // What somebody before Envoy said.
            (format!("Hash={other_hash};Cert=\"{other}\",{own}"), Err(Malformed)),
            (format!("{own},Hash=00"), Err(Malformed)),
            (format!("{own},"), Err(Malformed)),
            (format!("{own};Cert=\"{leaf}\""), Err(Malformed)),
            (format!("{own};cert=\"{other}\""), Err(Malformed)),
            (format!("Hash={own_hash};Cert=\"{both}\""), Err(Malformed)),
            (format!("Hash={own_hash};Cert=\"{leaf}"), Err(Malformed)),
            (format!("Hash={own_hash};Cert=\"{leaf}\"x"), Err(Malformed)),
            (format!("Hash={other_hash};Cert=\"{leaf}\""), Err(Malformed)),
            (format!("Hash={own_hash};Subject=\"CN=a\""), Err(Malformed)),
            (format!("Hash={own_hash};Cert="), Err(Malformed)),
            ("Cert=\"-----BEGIN%20CERTIFICATE-----\"".to_owned(), Err(Malformed)),
            ("evil".to_owned(), Err(Malformed)),
        ] {
            let lines = [format!("x-forwarded-client-cert: {value}")];
            assert_eq!(check(&lines, Field::ForwardedClientCert), expect, "{value}");
        }
        let line = format!("x-forwarded-client-cert: {own}");
        let twice = [line.clone(), line];
        assert_eq!(check(&twice, Field::ForwardedClientCert), Err(Malformed));
    }

    #[test]
    fn x_ssl_client_cert() {
        let ((der, pem), (_, other)) = (certificate("one.example"), certificate("two.example"));
        let some = Ok(Some((der.clone(), 0)));
        for (value, expect) in [
            (escaped(&pem), some.clone()),
            (STANDARD.encode(&der), some),
            (String::new(), Ok(None)),
            (escaped(&[&*pem, &*other].concat()), Err(Malformed)),
            (escaped(&pem.replace("CERTIFICATE", "PUBLIC KEY")), Err(Malformed)),
            (sequence(&der), Err(Malformed)),
            ("-----BEGIN CERTIFICATE-----".to_owned(), Err(Malformed)),
            ("(null)".to_owned(), Err(Malformed)),
            ("AAAA".to_owned(), Err(Malformed)),
        ] {
            let lines = [format!("x-ssl-client-cert: {value}")];
            assert_eq!(check(&lines, Field::SslClientCert), expect, "{value}");
        }
    }
}
