#!/bin/sh
# packages.sh PROGRAM=PACKAGE...: installs the package of each program that is missing.
set -eu
# Where Debian and Fedora put the reference plugins.
PATH="$PATH:/usr/sbin:/usr/lib/cni:/usr/libexec/cni"
missing=
for pair in "$@"; do
    program=${pair%%=*} package=${pair#*=}
    command -v "$program" >/dev/null || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ]; then
    echo "missing:$missing; install them, or run this as root" >&2
    exit 1
fi
echo "installing:$missing"
if command -v apt-get >/dev/null; then
    apt-get -qq update
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $missing >/dev/null
elif command -v dnf >/dev/null; then
    # dnf has other names for some of them.
    missing=$(echo "$missing" | sed 's/iproute2/iproute/; s/iputils-ping/iputils/; s/g++/gcc-c++/; s/conntrack/conntrack-tools/
        s/python3-yaml/python3-pyyaml/; s/busybox-static/busybox/; s/dbus-bin/dbus-tools/')
    # shellcheck disable=SC2086
    dnf -q -y install $missing
else
    echo "neither apt-get nor dnf here; please install:$missing" >&2
    exit 1
fi
