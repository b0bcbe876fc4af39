#!/bin/sh
# bench.sh BINARY: cnibox and the reference plugins, side by side in one run, on a network
# stack of their own. Prints the median of wall times in milliseconds, process start included.
set -eu
if [ "${BENCH_INSIDE:-}" = "" ]; then
    [ "$(id -u)" = 0 ] || { echo "the benchmark makes network namespaces and needs root" >&2; exit 1; }
    mkdir -p /var/lib/cni
    BENCH_INSIDE=1 exec unshare --net --mount --propagation private sh "$0" "$(realpath "$1")"
fi
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib/cni
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ip link set lo up
ip netns add c1
"$1" install "$work/cnibox" >/dev/null
reference=$(dirname "$(PATH=/usr/lib/cni:/usr/libexec/cni command -v host-local)")
exec python3 "$(dirname "$0")/bench.py" "$work/cnibox" "$reference"
