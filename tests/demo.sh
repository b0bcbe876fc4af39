#!/bin/sh
# demo.sh BINARY: two network namespaces on a bridge, connected by the real binary the way
# a container runtime does it, with addresses, routes and pings over IPv4 and IPv6.
# Everything happens in a network stack of its own and is gone afterwards.
set -eu
binary=$(realpath "$1")
here=$(dirname "$(realpath "$0")")

if [ "${DEMO_INSIDE:-}" = "" ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "the demo makes network namespaces and needs root: run \`sudo make demo\`" >&2
        exit 1
    fi
    mkdir -p /var/lib/cni
    DEMO_INSIDE=1 exec unshare --net --mount --propagation private sh "$0" "$binary"
fi

mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib/cni
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT

# Shows a command, then runs it.
show() {
    if [ -t 1 ]; then printf '\n\033[1m$ %s\033[0m\n' "$*"; else printf '\n$ %s\n' "$*"; fi
    "$@"
}

show "$binary" install "$bin"
export CNI_PATH="$bin" NETCONFPATH="$here/../conf" PATH="$bin:$PATH"
ip link set lo up

for name in red blue; do
    ip netns add "$name"
    ip -n "$name" link set lo up
    show cnitool add dual-stack "/run/netns/$name"
    echo
done

show ip -brief address show
show ip -n red -brief address show dev eth0
show ip -n red route
for address in $(ip -n blue -brief address show dev eth0 | tr ' ' '\n' | grep -vE '^fe80' | sed -n 's,/.*,,p'); do
    show ip netns exec red ping -n -c 1 -W 2 "$address"
done
for name in red blue; do
    show cnitool check dual-stack "/run/netns/$name"
done
show cnitool status dual-stack
for name in red blue; do
    show cnitool del dual-stack "/run/netns/$name"
done

echo
echo "What is left: links $(ip -brief link show type veth | wc -l), leases $(find /var/lib/cni/networks/dual-stack -name '*[.:]*' ! -name 'last_*' | wc -l)," \
    "interfaces in the namespaces $(ip netns exec red ip -brief link show type veth | wc -l)."
test -z "$(ip -brief link show type veth)"
test -z "$(find /var/lib/cni/networks/dual-stack -name '*[.:]*' ! -name 'last_*')"
echo "Done: everything that was made is gone."
