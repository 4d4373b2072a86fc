//! `capsule verify` over files.

use std::process::ExitCode;

use serde_json::Value;

use super::super::{Args, Screen, run};
use super::forge::{Forge, KEY};
use crate::policy::jose::Algorithm;

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

/// Runs a line of words that are parted by `|`.
fn capsule(line: &str) -> (ExitCode, String, String) {
    let words = std::iter::once("capsule").chain(line.split('|'));
    let args = <Line as clap::Parser>::try_parse_from(words).unwrap().args;
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    let mut screen = Screen {
        out: &mut out,
        out_is_terminal: false,
        errors: &mut errors,
        errors_is_terminal: false,
    };
    let code = run(&args, &mut screen);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(errors).unwrap())
}

#[test]
#[expect(clippy::disallowed_methods, reason = "writes what is then verified")]
fn an_envelope_is_verified_offline_and_told_in_words() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).display().to_string();
    let forge = Forge::new(Algorithm::Es256);
    let now = crate::cli::site::now().secs();
    std::fs::write(path("jwks"), forge.jwks().to_string()).unwrap();
    std::fs::write(path("envelope"), forge.envelope(&forge.spec(now)) + "\n").unwrap();
    std::fs::write(path("old"), forge.envelope(&forge.spec(now - 86_400))).unwrap();
    std::fs::write(path("early"), forge.envelope(&forge.spec(now + 60))).unwrap();
    std::fs::write(path("other"), Forge::new(Algorithm::Es256).jwks().to_string()).unwrap();
    std::fs::write(path("key"), KEY).unwrap();
    std::fs::write(path("wrong"), [8; 32]).unwrap();
    std::fs::write(path("short"), [7; 31]).unwrap();
    let check = |words: &str, code: u8, expect: &[&str]| {
        let line = format!("verify|{}", words.replace('%', &format!("{}/", path(""))));
        let line = line.replace("//", "/");
        let (got, out, errors) = capsule(&line);
        assert_eq!(got, ExitCode::from(code), "{line}\n{out}{errors}");
        for text in expect {
            assert!(format!("{out}{errors}").contains(text), "{text} is not in\n{out}{errors}");
        }
    };
    let (jwks, good) = ("|--jwks|%jwks", "%envelope|--jwks|%jwks");
    check(good, 0, &["holds  signature ES256 by ", "holds  node      node-1\n", "holds  time"]);
    check(
        &format!("{good}|--key|%key|--node|node-1|--cluster|test-cluster"),
        0,
        &["holds  key       version m1.n1", "node-1, as expected", "test-cluster, as expected"],
    );
    check(&format!("{good}|--key|%wrong"), 1, &["FAILS  key       the key is not the one"]);
    check(&format!("{good}|--key|%short"), 1, &["FAILS  key       the key is not 32 bytes"]);
    check(&format!("{good}|--node|node-2"), 1, &["FAILS  node      the envelope is for the node"]);
    check(&format!("{good}|--cluster|c"), 1, &["FAILS  cluster   the envelope is of"]);
    check(&format!("%old{jwks}"), 1, &["FAILS  time      it ended at", "holds  signature"]);
    check(&format!("%early{jwks}"), 1, &["FAILS  time      it begins only at"]);
    check("%envelope|--jwks|%other", 1, &["FAILS  signature the envelope's key"]);
    check(&format!("%key{jwks}"), 1, &["FAILS  signature the envelope is no compact JWS"]);
    check(&format!("%nowhere{jwks}"), 2, &["error: ", "nowhere: No such file"]);
    check("%envelope|--jwks|%key", 2, &["error: ", "not a JWK set"]);
    let (code, out, _) = capsule(&format!("verify|{}|--jwks|{}|--json", path("old"), path("jwks")));
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, ExitCode::from(1));
    assert_eq!(document["holds"], false);
    assert_eq!(document["checks"][1]["holds"], false);
    assert_eq!(document["claims"]["sub"], "node-1");
}
