//! `deploy/debian`: the package as `cargo deb` makes it, and what dpkg makes of it on this machine's own
//! Debian, of which it sees a copy that is gone afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::scratch::{PROGRAM, installed, is_root, run, run_apart, source, text};

/// Installs the package, looks, changes the configuration, installs it again, removes and purges it.
const ON_A_DEBIAN: &str = r#"
work=$1 package=$2
mount -t tmpfs changes "$work"
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" machine "$work/root"
cp "$package" "$work/root/holdfast.deb"
mount -t tmpfs run "$work/root/run"
mount -t proc proc "$work/root/proc"
mount --bind /dev/null "$work/root/dev/null" 2>/dev/null || mknod -m 666 "$work/root/dev/null" c 1 3
exec chroot "$work/root" /bin/sh -euc "$(cat <<'INSIDE'
export DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin
install_it() { dpkg --install --force-confold /holdfast.deb >/dev/null; }
! getent passwd holdfast >/dev/null
install_it

dpkg --verify holdfast
test "$(dpkg-query --show --showformat='${db:Status-Status}' holdfast)" = installed
getent passwd holdfast | grep -q ':/var/lib/holdfast:'
test "$(stat --format='%a %U %G' /var/lib/holdfast)" = '700 holdfast holdfast'
test "$(stat --format='%a %U' /etc/holdfast/authority.yaml)" = '644 root'
test "$(stat --format='%a %U' /etc/holdfast/secrets)" = '700 root'
# Not started, not at the next start of the machine either.
for unit in service socket; do
  test -e /usr/lib/systemd/system/holdfast.$unit
  test -z "$(find /etc/systemd/system -name "holdfast.$unit")"
done

as_it_serves="setpriv --reuid=holdfast --regid=holdfast --clear-groups -- holdfast"
$as_it_serves check --config /etc/holdfast/authority.yaml
$as_it_serves run --config /etc/holdfast/authority.yaml >/log &
served=$!
tries=0
until holdfast health --ready 2>/dev/null; do
  kill -0 $served || { cat /log; exit 1; }
  tries=$((tries + 1))
  test $tries -lt 300
  sleep 0.1
done
test "$(stat --format='%a %U' /var/lib/holdfast/holdfast.db)" = '600 holdfast'
kill -TERM $served
wait $served

# What an operator wrote stays over an upgrade, and what the edge keeps even over a purge.
echo '# mine' >>/etc/holdfast/authority.yaml
chmod 0750 /var/lib/holdfast
install_it
tail -n 1 /etc/holdfast/authority.yaml | grep -qx '# mine'
test "$(stat --format='%a' /var/lib/holdfast)" = 750
dpkg --remove holdfast >/dev/null
test -e /etc/holdfast/authority.yaml
dpkg --purge holdfast >/dev/null
test ! -e /etc/holdfast/authority.yaml
test -e /var/lib/holdfast/holdfast.db
echo whole
INSIDE
)"
"#;

/// The package, made in a directory.
pub(crate) fn package(scratch: &Path) -> Option<PathBuf> {
    let cargo_deb = installed("tools/bin/cargo-deb")?;
    let (target, package) = (scratch.join("target"), scratch.join("holdfast.deb"));
    fs::create_dir_all(target.join("release")).expect("a writable directory");
    // As the release's is: what stands for it here is many times as long with its symbols.
    run(Command::new("strip").arg("-o").arg(target.join("release/holdfast")).arg(PROGRAM));
    let mut make = Command::new(cargo_deb);
    make.args(["deb", "--no-build", "--no-strip", "--fast", "--offline", "--locked", "--output"]);
    make.arg(&package).env("CARGO_TARGET_DIR", &target).current_dir(source(""));
    run(&mut make);
    Some(package)
}

#[test]
fn the_package_installs_serves_and_goes() {
    if !is_root() {
        return;
    }
    let scratch = tempfile::tempdir().expect("a directory");
    let Some(package) = package(scratch.path()) else { return };
    let work = scratch.path().join("work");
    fs::create_dir(&work).expect("a writable directory");

    let field = |name: &str| run(Command::new("dpkg-deb").arg("--field").arg(&package).arg(name));
    assert_eq!(field("Package"), "holdfast\n");
    assert_eq!(field("Version"), format!("{}-1\n", env!("CARGO_PKG_VERSION")));
    let depends = field("Depends");
    assert!(depends.contains("libc6 (>= ") && depends.contains("systemd"), "{depends}");
    assert_eq!(control(&package, "conffiles"), "/etc/holdfast/authority.yaml\n");

    let told = run_apart(ON_A_DEBIAN, &[&work, &package]);
    assert!(told.ends_with("whole\n"), "{told}");
}

fn control(package: &Path, name: &str) -> String {
    run(Command::new("dpkg-deb").arg("--info").arg(package).arg(name))
}

/// The newest entry is this version's.
#[test]
fn the_change_log_is_of_this_version() {
    let log = text("deploy/debian/changelog");
    let first = log.lines().next().unwrap_or_default();
    assert!(first.starts_with(&format!("holdfast ({}-1) ", env!("CARGO_PKG_VERSION"))), "{first}");
}
