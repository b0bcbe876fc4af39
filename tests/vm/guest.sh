#!/bin/sh
# guest.sh DIR NEXTEST: inside the virtual machine that boot.sh starts. Runs the tests that
# DIR/binaries.json lists with DIR/cnibox; leaves their output and exit status in DIR/out.
set -eu
dir=$1 nextest=$2 stage=${3:-} kernel=${4:-}
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root

# The host's files once more, which this kernel keeps in memory once it has read them: where
# virtme-ng mounts them, each program that starts is read anew. They become the root.
if [ "$stage" = "" ]; then
    # What the programs of iptables would look for in /lib/modules, which is not this kernel's
    # there.
    modprobe -a nf_conntrack ip_tables iptable_filter iptable_nat ip6_tables ip6table_filter ip6table_nat
    exec unshare --mount sh "$0" "$dir" "$nextest" root "$(readlink -f "/lib/modules/$(uname -r)")"
fi
if [ "$stage" = root ]; then
    here=$PWD
    mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=524288 host /mnt
    for place in /mnt /run /var/lib; do mount -t tmpfs tmpfs "/mnt$place"; done
    for place in /proc /sys /dev "$dir/out"; do mount --rbind "$place" "/mnt$place"; done
    cd /mnt
    mount --move . /
    # shellcheck disable=SC2016 # for the inner shell
    exec chroot . sh -c 'cd "$1" && exec sh tests/vm/guest.sh "$2" "$3" run "$4"' sh "$here" "$dir" "$nextest" "$kernel"
fi

cp "$dir/cnibox" "$nextest" /mnt
status=0
# Without double spawn: nextest would start itself for each test, and that takes a while here.
run() {
    TMPDIR=/mnt CNIBOX=/mnt/cnibox NEXTEST_HIDE_PROGRESS_BAR=1 NEXTEST_DOUBLE_SPAWN=0 \
        /mnt/cargo-nextest nextest run --binaries-metadata "$dir/binaries.json" --cargo-metadata "$dir/metadata.json" \
        --profile "$1" --run-ignored all --color never >>"$dir/out/log" 2>&1 || status=$?
}
run vm
# From here on frames on bridges go through the packet filter, in each new namespace. Not before:
# it masquerades on the bridge what is for a VLAN's gateway.
modprobe -d "${kernel%/lib/modules/*}" br_netfilter
run vm-br-netfilter
uname -sr >>"$dir/out/log"
echo "$status" >"$dir/out/status"
