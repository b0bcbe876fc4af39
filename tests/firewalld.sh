#!/bin/sh
# firewalld.sh DIR: puts firewalld into DIR, for tests that run it in a namespace of their
# own. Its package is not installed, for that would start it on this host; only the
# libraries that it needs are.
set -eu
dir=$1
sh "$(dirname "$0")/packages.sh" dbus-daemon=dbus-daemon dbus-send=dbus-bin
if command -v apt-get >/dev/null; then
    /usr/bin/python3 -c 'import dbus, gi.repository.GLib, nftables' 2>/dev/null ||
        DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
            python3-dbus python3-gi python3-nftables gir1.2-glib-2.0 >/dev/null
    [ ! -x "$dir/usr/sbin/firewalld" ] || exit 0
    echo "fetching firewalld"
    mkdir -p "$dir"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    (cd "$work" && apt-get -qq update && apt-get -qq download firewalld python3-firewall)
    for package in "$work"/*.deb; do dpkg-deb --extract "$package" "$dir"; done
else
    # dnf starts nothing.
    sh "$(dirname "$0")/packages.sh" firewalld=firewalld
    mkdir -p "$dir/usr" "$dir/etc"
fi
