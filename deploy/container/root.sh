#!/bin/sh
# root.sh BINARY ROOT: lays out what the container holds in the new directory ROOT: the program, the
# libraries that it is linked with, the system's certificate authorities, a user, and nothing that could
# be run beside it. As root, on the Debian that the program was built on.
set -eu
binary=$1
root=$2
here=$(dirname "$0")
# The user of the container; Dockerfile names it as well.
user=65532

umask 022
mkdir "$root"
install -D -m 0755 "$binary" "$root/usr/bin/holdfast"
# Lines: "NAME => PATH (ADDRESS)", the loader as "PATH (ADDRESS)", and what the kernel brings, without a path.
ldd "$binary" | sed -nE 's:^[^/]*(/[^ ]+) \(0x.*:\1:p' | while read -r library; do
  cp --dereference --parents "$library" "$root"
done

install -D -m 0644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
printf 'holdfast:x:%s:%s::/var/lib/holdfast:/usr/sbin/nologin\n' $user $user >"$root/etc/passwd"
printf 'holdfast:x:%s:\n' $user >"$root/etc/group"
install -d -m 0755 "$root/etc/holdfast"
install -d -m 0700 -o $user -g $user "$root/var/lib/holdfast"

install -D -m 0644 "$here/../../LICENSE" "$root/usr/share/doc/holdfast/LICENSE"
install -D -m 0644 "$here/../../conf/authority.yaml" "$root/usr/share/doc/holdfast/authority.yaml"
# From these scanners know which versions are in it.
mkdir -p "$root/var/lib/dpkg/status.d"
for package in libc6 libgcc-s1 ca-certificates; do
  dpkg-query --status "$package" >"$root/var/lib/dpkg/status.d/$package"
  install -D -m 0644 "/usr/share/doc/$package/copyright" "$root/usr/share/doc/$package/copyright"
done
