#!/bin/sh
# guest.sh DIR NEXTEST: inside the virtual machine that boot.sh starts. Runs the tests in
# DIR/tests.tar.zst with DIR/cnibox; leaves their output and exit status in DIR/out.
set -eu
dir=$1 nextest=$2
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
# The guest's disk is a slow one: what runs often is copied to memory.
mount -t tmpfs tmpfs /mnt
mkdir /mnt/bin /mnt/lib
cp "$dir/cnibox" "$nextest" /mnt
for tool in sh ip ping bridge tcpdump nft; do
    file=$(command -v "$tool")
    cp -L "$file" /mnt/bin
    # shellcheck disable=SC2046 # a list of files
    cp -L $(ldd "$file" | grep -o '/[^ ]*') /mnt/lib
done
export PATH=/mnt/bin:$PATH LD_LIBRARY_PATH=/mnt/lib
status=0
CNIBOX=/mnt/cnibox NEXTEST_HIDE_PROGRESS_BAR=1 /mnt/cargo-nextest nextest run \
    --archive-file "$dir/tests.tar.zst" --extract-to /mnt --workspace-remap "$PWD" \
    --profile vm --run-ignored all --color never >"$dir/out/log" 2>&1 || status=$?
uname -sr >>"$dir/out/log"
echo "$status" >"$dir/out/status"
