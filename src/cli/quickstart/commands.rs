//! What to try next: lines to paste into a shell.

use std::path::Path;

use super::grants;
use super::nodes::{self, FINGERPRINT, NODE, VERSION};
use super::pki::DPOP_KEY;
use super::settings::Addresses;

/// What picks the token out of an answer.
const TOKEN_OF: &str = r#"sed -n 's/.*"access_token":"\([^"]*\)".*/\1/p'"#;

/// A line to paste, and what it shows.
pub(super) struct Command {
    /// Ends up as a shell comment.
    pub(super) about: &'static str,
    /// One line for `sh`.
    pub(super) line: String,
}

/// The lines, each good by itself but for the variables that one before it sets.
pub(super) fn commands(program: &str, directory: &Path, addresses: &Addresses) -> Vec<Command> {
    let file = |name: &str| quoted_file(directory, name);
    let (origin, admin) = (addresses.origin(), addresses.admin);
    let program = quoted(program);
    let (ca, key) = (file("ca.pem"), file(DPOP_KEY));
    let certificate = (file("client.pem"), file("client-key.pem"));
    let form = "grant_type=client_credentials";
    let curl = format!("curl -sS --cacert {ca} --cert {} --key {}", certificate.0, certificate.1);
    let request = format!("--cacert {ca} --key {key}");
    let mut commands = vec![
        command(
            "a token bound to a key: the request carries a DPoP proof",
            format!(
                "TOKEN=$({program} request POST {origin}/token {request} --data {form} | {TOKEN_OF})"
            ),
        ),
        command(
            "its key proves itself: the challenge, the retry with the nonce, the answer",
            format!("{program} request GET {origin}/dpop/orders {request} --token \"$TOKEN\""),
        ),
        command(
            "another key: refused",
            format!("{program} request GET {origin}/dpop/orders --cacert {ca} --token \"$TOKEN\""),
        ),
        command(
            "a token bound to a certificate",
            format!("MTLS_TOKEN=$({curl} {origin}/token -d {form} | {TOKEN_OF})"),
        ),
        command(
            "its certificate is on the connection: admitted",
            format!("{curl} {origin}/mtls/orders -H \"Authorization: Bearer $MTLS_TOKEN\""),
        ),
        command(
            "no certificate: refused",
            format!(
                "curl -sS -i --cacert {ca} {origin}/mtls/orders \
                 -H \"Authorization: Bearer $MTLS_TOKEN\""
            ),
        ),
    ];
    commands.extend(in_front_of_a_server(&program, &origin, &request, directory));
    commands.extend([
        command(
            "a node fetches its capsule: proof, nonce, sealed key, every check",
            format!(
                "{program} capsule fetch --edge {origin} --node {NODE} --secret-file {} --key {} \
                 --cacert {ca} --fingerprint {FINGERPRINT} --node-version {VERSION} \
                 --boot-id boot-1 --format json",
                file(nodes::SECRET),
                file(nodes::KEY),
            ),
        ),
        command(
            "what was decided about nodes; `holdfast audit show ID` says why",
            format!("{program} audit tail --config {}", file(super::settings::FILE)),
        ),
        command("what was counted", format!("curl -sS http://{admin}/metrics")),
        command(
            "the configuration, checked",
            format!("{program} check --config {}", file(super::settings::FILE)),
        ),
    ]);
    commands
}

/// The lines about the server that knows no DPoP.
fn in_front_of_a_server(
    program: &str,
    origin: &str,
    request: &str,
    directory: &Path,
) -> [Command; 4] {
    let (ca, login) = (quoted_file(directory, "ca.pem"), grants::LOGIN);
    [
        command(
            "a server that only knows Bearer tokens: the edge binds what it issues",
            format!(
                "LEGACY_TOKEN=$({program} request POST {origin}/legacy/token {request} \
                 --data '{login}' | {TOKEN_OF})"
            ),
        ),
        command(
            "the token says nothing of a key, and goes with it all the same",
            format!(
                "{program} request GET {origin}/dpop/orders {request} --token \"$LEGACY_TOKEN\""
            ),
        ),
        command(
            "what others are told of it: cnf.jkt, added by the edge",
            format!(
                "curl -sS --cacert {ca} {origin}/legacy/introspect -d client_id=quickstart-client \
                 -d token=\"$LEGACY_TOKEN\""
            ),
        ),
        command(
            "what a client must show at the token endpoint, and what becomes of the token",
            format!(
                "{program} explain --config {} POST {origin}/legacy/token",
                quoted_file(directory, super::settings::FILE)
            ),
        ),
    ]
}

fn command(about: &'static str, line: String) -> Command {
    Command { about, line }
}

fn quoted_file(directory: &Path, name: &str) -> String {
    quoted(&directory.join(name).display().to_string())
}

/// For `sh`: as it is where that is safe, else in single quotes.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_would_read_is_quoted() {
        for (text, expect) in
            [("a/b-c.pem", "a/b-c.pem"), ("a b", "'a b'"), ("it's", r"'it'\''s'"), ("", "''")]
        {
            assert_eq!(quoted(text), expect);
        }
    }
}
