//! `deploy/systemd` and the package under systemd as process 1, in a copy of this machine's Debian that
//! is gone afterwards.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::debian::package;
use crate::scratch::{is_root, put, run_apart};

/// Starts systemd in the copy, with `inside` as its first service; what that says is in `$1/said`. It
/// sees no control group but `$2` of this machine's.
const BOOT: &str = r#"
work=$1
mount -t tmpfs changes "$work/mount"
cd "$work/mount"
mkdir groups
mount -t cgroup2 groups groups
mkdir "groups/$2"
echo $$ >"groups/$2/cgroup.procs"
umount groups
exec unshare --cgroup --ipc --uts sh -euc "$(cat <<'APART'
work=$1
mkdir upper work root
mount -t overlay -o "lowerdir=/,upperdir=$PWD/upper,workdir=$PWD/work" machine root
cd root
mount -t tmpfs run run
mount -t tmpfs tmp tmp
mount -t proc proc proc
mount -t sysfs sys sys
mount -t cgroup2 cgroup sys/fs/cgroup
mount -t tmpfs dev dev
for device in 'null 1 3' 'zero 1 5' 'full 1 7' 'random 1 8' 'urandom 1 9' 'tty 5 0'; do
  set -- $device
  mknod -m 666 "dev/$1" c "$2" "$3"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs shm dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mkdir shown old
mount --bind "$work" shown

cat >etc/systemd/system/trial.service <<UNIT
[Unit]
Description=What is tried
FailureAction=exit-force
FailureActionExitStatus=0
SuccessAction=exit-force
[Service]
Type=oneshot
ExecStart=/bin/sh -eu /shown/inside
StandardOutput=file:/shown/said
StandardError=inherit
TimeoutStartSec=240
UNIT
pivot_root . old
umount --lazy old
# Credentials come into the service's sight that way; systemd does it itself where it is no guest.
mount --make-rshared /
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  /lib/systemd/systemd --unit=trial.service --log-target=journal --show-status=no </dev/null >/dev/null 2>&1
APART
)" sh "$work"
"#;

/// Takes the control group `$2` away, in which nobody is any more.
const AWAY: &str = r#"
mount -t cgroup2 groups "$1/mount"
find "$1/mount/$2" -depth -type d -exec rmdir {} +
"#;

/// What an operator does by `deploy/systemd/README.md`, and what may befall the service.
const INSIDE: &str = r#"
export DEBIAN_FRONTEND=noninteractive
fail() {
  echo "FAILED: $*"
  systemctl --no-pager --lines=0 status holdfast.service || true
  journalctl --no-pager --lines=40 --unit=holdfast || true
  exit 1
}
# until_it SECONDS COMMAND …
until_it() {
  local left=$(($1 * 10))
  shift
  until "$@"; do
    left=$((left - 1))
    test $left -gt 0 || fail "never: $*"
    sleep 0.1
  done
}
property() { systemctl show --property="$1" --value holdfast.service; }
says() { journalctl --unit=holdfast --output=cat --no-pager | grep -q "$1"; }
get() { curl --silent --show-error --fail --max-time 60 --cacert /etc/holdfast/tls/edge.pem "$@"; }
served() { get https://localhost/public/one >/dev/null 2>&1; }
another_serves() {
  test "$(property MainPID)" != "$1" && test "$(property MainPID)" != 0 &&
    test "$(property ActiveState)" = active && served
}

dpkg --install /shown/holdfast.deb >/dev/null
test "$(systemctl is-enabled holdfast.service holdfast.socket || true)" = "disabled
disabled"

mkdir -p /srv/public /etc/holdfast/tls
echo one >/srv/public/one
head -c 400000 /dev/zero >/srv/public/long
cat >/srv/nginx.conf <<'NGINX'
daemon off;
events {}
http { server { listen 127.0.0.1:9000; root /srv; location /public/long { limit_rate 100k; } } }
NGINX
systemd-run --quiet --unit=orders /usr/sbin/nginx -c /srv/nginx.conf
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost \
  -addext subjectAltName=DNS:localhost -keyout /etc/holdfast/tls/edge.key -out /etc/holdfast/tls/edge.pem 2>/dev/null
chgrp holdfast /etc/holdfast/tls/edge.key
chmod 640 /etc/holdfast/tls/edge.key
openssl rand -hex 32 >/etc/holdfast/secrets/nonce.key
chmod 600 /etc/holdfast/secrets/nonce.key
sed --in-place \
  -e 's|address: "127.0.0.1:8443"|address: "0.0.0.0:443"|' \
  -e 's|#tls:|tls:|; s|#  certificates:|  certificates:|; s|#    - certificate|    - certificate|; s|#      key:|      key:|' \
  -e 's|localhost:8443|localhost|; s|path: /placeholder|path: /public/*|' /etc/holdfast/authority.yaml
cat >>/etc/holdfast/authority.yaml <<'YAML'
security:
  senderConstraints:
    dpop: {nonce: {keyFiles: ["${ENV:CREDENTIALS_DIRECTORY}/secrets_nonce.key"]}}
YAML

echo '- enabled and started'
systemctl --quiet enable --now holdfast.socket holdfast.service || fail start
test "$(property ActiveState)" = active
test "$(get https://localhost/public/one)" = one || fail 'no answer'
test "$(property User)" = holdfast
systemctl is-active --quiet holdfast.socket

echo '- its sandbox'
main=$(property MainPID)
in_it() { nsenter --mount --target="$main" -- setpriv --reuid=holdfast --regid=holdfast --clear-groups -- "$@"; }
grep -q '^CapBnd:[[:space:]]*0000000000000000$' /proc/$main/status || fail capabilities
grep -q '^NoNewPrivs:[[:space:]]*1$' /proc/$main/status || fail privileges
grep -q '^Seccomp:[[:space:]]*2$' /proc/$main/status || fail seccomp
! in_it touch /etc/holdfast/new 2>/dev/null || fail 'it writes its configuration'
! in_it cat /etc/holdfast/secrets/nonce.key >/dev/null 2>&1 || fail 'it reads what is for root'
in_it touch /var/lib/holdfast/new || fail 'it does not write its state'
rm /var/lib/holdfast/new
systemd-analyze security --no-pager --threshold=15 holdfast.service >/tmp/security 2>&1 || fail "$(cat /tmp/security)"

echo '- a command as its user'
setpriv --reuid=holdfast --regid=holdfast --clear-groups -- env STATE_DIRECTORY=/var/lib/holdfast \
  RUNTIME_DIRECTORY=/run/holdfast CREDENTIALS_DIRECTORY=/run/credentials/holdfast.service \
  holdfast check --config /etc/holdfast/authority.yaml || fail check

echo '- reloaded'
systemctl reload holdfast || fail reload
until_it 20 says '"configuration reloaded"'
cp /etc/holdfast/authority.yaml /tmp/good.yaml
echo 'nonsense: 1' >>/etc/holdfast/authority.yaml
systemctl reload holdfast || fail reload
until_it 20 says 'configuration not reloaded'
until_it 20 sh -c 'systemctl status holdfast | grep -q "Status:.*not reloaded:.*nonsense: unknown key"'
test "$(property MainPID)" = "$main" || fail 'another process'
served || fail 'no answer after a bad reload'
cp /tmp/good.yaml /etc/holdfast/authority.yaml
until_it 20 sh -c '! systemctl status holdfast | grep -q "Status:.*nonsense"'

# From here on somebody asks all the time, each time on a new connection.
touch /tmp/asking
(
  while test -e /tmp/asking; do
    if get https://localhost/public/one >/dev/null 2>>/tmp/refused; then echo . >>/tmp/served; fi
  done
) &
asking=$!
until_it 20 test -s /tmp/served

echo '- upgraded'
dpkg --install --force-confold /shown/holdfast.deb >/tmp/told 2>&1
grep -q 'the edge that runs is of the version before' /tmp/told || fail "$(cat /tmp/told)"
test "$(property MainPID)" = "$main" || fail 'the package stopped it'
systemctl kill --kill-whom=main --signal=QUIT holdfast.service
until_it 60 another_serves "$main"
until_it 60 sh -c "! kill -0 $main 2>/dev/null"
says '"sockets taken over"' || fail 'not taken over'
test "$(property NRestarts)" = 0 || fail 'it was started anew'
main=$(property MainPID)
# Whose parent is another process systemd does not wait for when it stops, nor sees die.
! says 'not our child' || fail 'systemd is not its parent'

echo '- not upgraded, since the configuration is bad'
echo 'nonsense: 1' >>/etc/holdfast/authority.yaml
systemctl kill --kill-whom=main --signal=QUIT holdfast.service
until_it 60 says 'sockets not handed over'
test "$(property MainPID)" = "$main" || fail 'another process'
served || fail 'no answer after an upgrade that failed'
cp /tmp/good.yaml /etc/holdfast/authority.yaml

echo '- restarted, in the middle of an answer'
get https://localhost/public/long >/tmp/long 2>>/tmp/refused &
long=$!
until_it 20 test -s /tmp/long
systemctl restart holdfast || fail restart
another_serves "$main" || fail 'not restarted'
main=$(property MainPID)
wait $long || fail 'an answer was cut off'
test "$(wc -c </tmp/long)" = 400000 || fail 'an answer came in part'

rm /tmp/asking
wait $asking
test ! -s /tmp/refused || fail "refused: $(sort /tmp/refused | uniq -c)"
echo "  $(wc -l </tmp/served) requests meanwhile, none refused"

echo '- killed, after an upgrade'
systemctl kill --kill-whom=main --signal=QUIT holdfast.service
until_it 60 another_serves "$main"
main=$(property MainPID)
kill -KILL "$main"
until_it 30 another_serves "$main"
test "$(property NRestarts)" = 1 || fail 'not started anew'
main=$(property MainPID)

echo '- standing still'
mkdir -p /etc/systemd/system/holdfast.service.d
printf '[Service]\nWatchdogSec=10s\nTimeoutAbortSec=2s\n' >/etc/systemd/system/holdfast.service.d/watchdog.conf
systemctl daemon-reload
systemctl restart holdfast
main=$(property MainPID)
sleep 15
test "$(property MainPID)" = "$main" || fail 'the watchdog ended one that was well'
kill -STOP "$main"
until_it 60 another_serves "$main"
says 'Watchdog timeout' || fail 'no watchdog'

echo '- stopped'
systemctl stop holdfast.socket holdfast.service
test "$(property Result)" = success || fail 'not stopped well'
! served || fail 'it answers'
echo whole
"#;

/// Whether this machine lets root make control groups: a container does not, whatever `tests/run` installs.
fn may_group() -> bool {
    let script =
        "mount -t cgroup2 groups /mnt && mkdir /mnt/holdfast-may && rmdir /mnt/holdfast-may";
    let may = Command::new("unshare").args(["--mount", "sh", "-c", script]).output();
    let may = may.expect("unshare").status.success();
    if !may {
        eprintln!("SKIPPED: the service under systemd: no control groups for root in here");
    }
    may
}

#[test]
fn the_service_lives_under_systemd() {
    if !is_root() || !may_group() {
        return;
    }
    let scratch = tempfile::tempdir().expect("a directory");
    if package(scratch.path()).is_none() {
        return;
    }
    put(&scratch.path().join("inside"), INSIDE.as_bytes(), 0o600);
    fs::create_dir(scratch.path().join("mount")).expect("a writable directory");
    let group = format!("holdfast-trial-{}", std::process::id());
    let arguments = [scratch.path(), Path::new(&group)];
    run_apart(BOOT, &arguments);
    run_apart(AWAY, &arguments);
    let said = fs::read_to_string(scratch.path().join("said")).unwrap_or_default();
    print!("{said}");
    assert!(said.ends_with("whole\n"), "{said}");
}
