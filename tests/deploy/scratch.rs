//! Programs and where they work.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_holdfast");

/// What is in the repository under `name`.
pub(crate) fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The text of a file in the repository.
pub(crate) fn text(name: &str) -> String {
    fs::read_to_string(source(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A program that `tests/run` puts into `target`; none where it is not there, which CI does not take.
pub(crate) fn installed(name: &str) -> Option<PathBuf> {
    let program = source("target").join(name);
    if program.exists() {
        return Some(program);
    }
    skip(&format!("{name}: not installed in target"));
    None
}

/// Whether this is root, as what mounts must be; CI does not take it that it is not.
pub(crate) fn is_root() -> bool {
    let root = Command::new("id").arg("-u").output().expect("id").stdout == b"0\n";
    if !root {
        skip("mounts as root");
    }
    root
}

fn skip(reason: &str) {
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!ci, "a skip is a failure in CI: {reason}");
    eprintln!("SKIPPED: {reason}; `tests/run` installs it");
}

/// Everything that a program wrote.
pub(crate) fn said(output: &Output) -> String {
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// Runs a program that must succeed, and gives what it wrote to its output.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, said(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Runs a script in namespaces of its own (mounts, processes, a network with nothing but loopback), so
/// that nothing of what it mounts or starts stays, and every port is free. Its arguments are `$1` and so
/// on.
pub(crate) fn run_apart(script: &str, arguments: &[&Path]) -> String {
    let mut command = Command::new("unshare");
    let script = format!("ip link set lo up\n{script}");
    command.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-euc"]);
    command.args([&script, "sh"]);
    run(command.args(arguments))
}

/// Writes a file with its directories.
pub(crate) fn put(path: &Path, content: &[u8], mode: u32) {
    fs::create_dir_all(path.parent().expect("a directory")).expect("a writable directory");
    fs::write(path, content).expect("a writable directory");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("one's own file");
}
