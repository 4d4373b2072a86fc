//! `holdfast quickstart` as a person runs it: the table, every command that it prints, its end.

#![expect(clippy::disallowed_methods, reason = "runs programs, and looks at the files they write")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_holdfast");

fn once(directory: &Path, port: &str) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(["quickstart", "--once", "--port", port, "--dir"]).arg(directory);
    command.output().unwrap()
}

/// The rows of a section of the table, with single spaces.
fn section(out: &str, title: &str) -> Vec<String> {
    let title = format!("{title}:");
    let rows = out.lines().skip_while(|line| *line != title).skip(1);
    let rows = rows.take_while(|line| !line.is_empty());
    rows.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// A token's life at a server that knows no DPoP: what is sent, and what must come.
const AT_A_LEGACY_SERVER: [&str; 18] = [
    "token asked for without a proof 400 use_dpop_nonce",
    "asked for with a proof, no nonce 400 use_dpop_nonce",
    "then with the nonce 200 token_type DPoP",
    "replay of that proof 401 invalid_dpop_proof",
    "the token, used by its key 200 dpop, alice",
    "by another key 401 invalid_token",
    "as the Bearer token that it was 401 invalid_token",
    "a token issued past the edge 401 invalid_token",
    "refreshed by another key 400 invalid_grant",
    "refreshed by its own key 200 token_type DPoP",
    "introspected 200 active, cnf.jkt its key",
    "revoked 200",
    "then used 401 invalid_token",
    "then introspected 200 inactive",
    "/fresh, logged in just now 200 fresh",
    "/fresh, logged in an hour ago 401 insufficient_user_authentication",
    "metadata of the server 200 DPoP by ES256",
    "metadata of the resource 200 DPoP by ES256, demanded",
];

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn every_case_is_as_expected_and_a_second_run_keeps_what_is_good() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("quick start");
    let first = once(&directory, "0");
    let (out, errors) = (text(&first.stdout), text(&first.stderr));
    assert!(first.status.success(), "{out}{errors}");
    assert!(!out.contains("DIFFERS") && !out.contains("no record"), "{out}");
    assert!(!out.contains('\u{1b}'), "{out}");
    let titles = ["On a resource", "Runtime capsules"];
    assert_eq!(titles.map(|title| section(&out, title).len()), [17, 10], "{out}");
    let rows = section(&out, "In front of an Authorization Server that knows no DPoP");
    assert_eq!(rows.len(), AT_A_LEGACY_SERVER.len(), "{out}");
    for (row, expect) in rows.iter().zip(AT_A_LEGACY_SERVER) {
        assert!(row.starts_with(expect) && row.ends_with(" ok"), "{row}: {expect}");
    }

    let second = once(&directory, "0");
    let out = text(&second.stdout);
    assert!(second.status.success(), "{out}{}", text(&second.stderr));
    assert!(out.contains(": kept  ca.pem, "), "{out}");
    assert!(out.contains(": wrote node-secret, authority.yaml\n"), "{out}");
}

#[test]
fn what_stands_in_the_way_is_named_and_left_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let check = |output: Output, expect: &str| {
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.starts_with("error: ") && errors.contains(expect), "{errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
    };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    check(once(scratch.path(), &port), "is taken");
    for name in ["authority.yaml", "edge.log"] {
        let directory = tempfile::tempdir().unwrap();
        let mine = directory.path().join(name);
        std::fs::write(&mine, "mine").unwrap();
        check(once(directory.path(), "0"), "is not as quickstart wrote it");
        assert_eq!(std::fs::read_to_string(&mine).unwrap(), "mine");
    }
    let file = scratch.path().join("file");
    std::fs::write(&file, "").unwrap();
    check(once(&file, "0"), "file");
}

/// A quickstart that serves; ended when the test is.
struct Serving {
    process: Child,
    printed: Vec<String>,
}

impl Serving {
    fn start(directory: &Path) -> Self {
        let mut process = Command::new(PROGRAM)
            .args(["quickstart", "--port", "0", "--dir"])
            .arg(directory)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut printed = Vec::new();
        for line in lines {
            printed.push(line.unwrap());
            if printed.last().is_some_and(|line| line.starts_with("Every decision")) {
                break;
            }
        }
        Self { process, printed }
    }

    /// The lines to paste, by what stands above them.
    fn command(&self, about: &str) -> &str {
        let comment = format!("# {about}");
        let mut lines = self.printed.iter().skip_while(|line| !line.starts_with(&comment)).skip(1);
        lines.next().unwrap_or_else(|| panic!("no {about:?} in {:#?}", self.printed))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn every_command_that_it_prints_works_as_printed() {
    let scratch = tempfile::tempdir().unwrap();
    let mut serving = Serving::start(&scratch.path().join("it's here"));
    let check = |before: &str, about: &str, code: i32, out: &str, errors: &str| {
        let script = format!("{before}\n{}", serving.command(about));
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        let (said, trace) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{about}: {said}{trace}");
        assert!(said.contains(out) && trace.contains(errors), "{about}: {said}{trace}");
    };
    let token = serving.command("a token bound to a key");
    let admitted = "\"x-holdfast-result\":\"dpop\"";
    check(token, "its key proves itself", 0, admitted, "use_dpop_nonce");
    check(token, "another key", 1, "invalid_token", "ANOTHER KEY");
    let token = serving.command("a token bound to a certificate");
    check(token, "its certificate is on", 0, "\"x-holdfast-result\":\"mtls\"", "");
    check(token, "no certificate: refused", 0, "invalid_token", "");
    let token = serving.command("a server that only knows Bearer");
    check(token, "the token says nothing of a key", 0, "\"x-holdfast-subject\":\"alice\"", "ath");
    check(token, "what others are told of it", 0, "\"cnf\":{\"jkt\":", "");
    check("", "what a client must show", 0, "binding retrofit: the edge binds", "");
    check("", "a node fetches its capsule", 0, "\"keyVersion\"", "not pinned");
    check("", "what was decided about nodes", 0, "capsule.decision node-1 GRANTED", "");
    check("", "what was counted", 0, "authority_dpop_result_total{", "");
    check("", "the configuration", 0, "no errors", "");
    let printed = serving.printed.iter().filter(|line| line.starts_with("# ")).count();
    assert_eq!(printed, 14, "a command is not tried here: {:#?}", serving.printed);

    let pid = serving.process.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert!(serving.process.wait().unwrap().success());
}
