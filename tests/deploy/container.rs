//! `deploy/container`: the Dockerfile linted, its context looked at, and its root file system made and run
//! as a container would be: read-only, without root, and without anything of this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::scratch::{PROGRAM, installed, is_root, put, run, run_apart, said, source, text};

#[test]
fn the_dockerfile_has_no_faults() {
    let Some(hadolint) = installed("python/bin/hadolint") else { return };
    let file = source("deploy/container/Dockerfile");
    run(Command::new(&hadolint).arg("--failure-threshold=style").arg(&file));

    // That it sees what it is there for.
    let scratch = tempfile::tempdir().expect("a directory");
    let broken = scratch.path().join("Dockerfile");
    let root = text("deploy/container/Dockerfile").replace("USER 65532:65532", "USER root");
    put(&broken, root.as_bytes(), 0o644);
    let output = Command::new(&hadolint).arg(&broken).output().expect("hadolint");
    assert!(!output.status.success() && said(&output).contains("DL3002"), "{}", said(&output));
}

#[test]
fn its_toolchain_version_and_user_are_those_of_the_rest() {
    let (dockerfile, cargo) = (text("deploy/container/Dockerfile"), text("Cargo.toml"));
    let of_cargo = |key: &str| {
        let start = format!("{key} = \"");
        let line = cargo.lines().find_map(|line| line.strip_prefix(start.as_str()));
        line.expect("in [package]").trim_end_matches('"').to_owned()
    };
    assert!(dockerfile.contains(&format!("FROM rust:{}-", of_cargo("rust-version"))));
    let version = of_cargo("version");
    assert!(dockerfile.contains(&format!("image.version=\"{version}\"")));
    assert!(
        text("deploy/kubernetes/base/kustomization.yaml").contains(&format!("newTag: {version}"))
    );
    assert!(dockerfile.contains("\nUSER 65532:65532\n"));
    assert!(text("deploy/container/root.sh").contains("\nuser=65532\n"));
}

/// What the build needs of the repository is not kept from it.
#[test]
fn the_context_holds_all_that_is_built_from() {
    let ignored = text(".dockerignore");
    let sent: Vec<_> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let in_context = |path: &Path| {
        let path = path.strip_prefix(source("")).expect("in the repository");
        sent.iter().any(|it| path.starts_with(it))
    };
    for name in sent.iter().chain(&["Cargo.lock", ".cargo/config.toml", "deploy/container/root.sh"])
    {
        assert!(source(name).exists() && in_context(&source(name)), "{name}");
    }
    let mut files = Vec::new();
    for directory in ["src", "benches"] {
        walk(&source(directory), &mut files);
    }
    let mut included = 0;
    // Tests are not built there.
    let built = |file: &&PathBuf| {
        let of_tests = file.iter().any(|part| part == "tests" || part == "tests.rs");
        file.extension().is_some_and(|it| it == "rs") && !of_tests
    };
    for file in files.iter().filter(built) {
        let text = fs::read_to_string(file).expect("UTF-8");
        let names = text.split("include_str!(\"").skip(1).filter_map(|rest| rest.split('"').next());
        for path in names.map(|name| file.parent().expect("a directory").join(name)) {
            let path = path.canonicalize().expect("an included file");
            assert!(in_context(&path), "{}: {}", file.display(), path.display());
            included += 1;
        }
    }
    assert!(included > 1, "src/lib.rs has README.md at least");
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { walk(&path, files) } else { files.push(path) }
    }
}

/// Starts it as `docker run --read-only --cap-drop ALL --user 65532` would, with a configuration and a
/// volume for its state, asks how it is, and ends it.
const AS_A_CONTAINER: &str = r#"
root=$1 site=$2
mkdir "$root/dev"
touch "$root/dev/null"
mount --bind /dev/null "$root/dev/null"
mount --bind "$site" "$root/etc/holdfast"
mount -t tmpfs -o mode=0700,uid=65532,gid=65532 state "$root/var/lib/holdfast"
mount --rbind "$root" "$root"
mount -o remount,bind,ro "$root"
inside="setpriv --no-new-privs chroot --userspec=65532:65532 --groups=65532 $root"
holdfast="$inside /usr/bin/holdfast"
# Nobody there yet.
! $holdfast health 2>/dev/null
$holdfast check --config /etc/holdfast/authority.yaml
$holdfast run --config /etc/holdfast/authority.yaml &
served=$!
tries=0
until $holdfast health --ready 2>/dev/null; do
  tries=$((tries + 1))
  [ $tries -lt 300 ]
  sleep 0.1
done
$holdfast health
test -e "$root/var/lib/holdfast/holdfast.db"
kill -TERM $served
wait $served
echo ended well
"#;

#[test]
fn its_root_runs_read_only_and_without_root() {
    if !is_root() {
        return;
    }
    let scratch = tempfile::tempdir().expect("a directory");
    let (root, site) = (scratch.path().join("image"), scratch.path().join("site"));
    run(Command::new(source("deploy/container/root.sh")).arg(PROGRAM).arg(&root));

    // Nothing that could be run but the program itself: no shell.
    let mut files = Vec::new();
    walk(&root, &mut files);
    let programs = files.iter().filter(|path| path.parent().is_some_and(|it| it.ends_with("bin")));
    assert_eq!(programs.collect::<Vec<_>>(), [&root.join("usr/bin/holdfast")]);
    let bundle = fs::metadata(root.join("etc/ssl/certs/ca-certificates.crt")).expect("authorities");
    assert!(bundle.len() > 10_000);
    for package in ["libc6", "libgcc-s1", "ca-certificates"] {
        assert!(root.join("var/lib/dpkg/status.d").join(package).exists(), "{package}");
    }

    put(&site.join("authority.yaml"), text("deploy/debian/authority.yaml").as_bytes(), 0o644);
    let told = run_apart(AS_A_CONTAINER, &[&root, &site]);
    assert!(told.ends_with("ended well\n"), "{told}");
}
