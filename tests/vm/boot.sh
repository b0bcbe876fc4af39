#!/bin/sh
# boot.sh DIR BINARY: boots Debian's kernel in QEMU, without KVM, and runs guest.sh there.
# The host's files are there too, read-only; what the guest writes stays in its memory,
# DIR/out aside. DIR keeps what was downloaded: kernel and virtme-ng are unpacked there,
# nothing is installed on this host.
set -eu
cd "$(dirname "$0")/../.."
dir=$1 binary=$2
virtme_version=1.42
# Seconds. Emulation is slow; a guest that hangs must not take all of CI with it.
limit=1200

command -v apt-get >/dev/null || { echo "$0 takes Debian's kernel and needs apt-get" >&2; exit 1; }
mkdir -p "$dir"

# The package that linux-image-amd64 stands for, under its own name.
package() {
    apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[^ ]*-amd64\)$/\1/p' | head -n 1
}
download() {
    (cd "$dir" && apt-get -qq -o APT::Sandbox::User=root download "$(package)")
}
kernel=$dir/$(package)
if [ ! -d "$kernel/boot" ]; then
    download || { apt-get -qq update && download; }
    kernel=$dir/$(package)
    rm -rf "$kernel.new"
    dpkg-deb -x "$kernel"_*.deb "$kernel.new"
    rm "$kernel"_*.deb
    mv "$kernel.new" "$kernel"
fi

virtme=$dir/virtme-ng-$virtme_version
if [ ! -x "$virtme/bin/vng" ]; then
    rm -rf "$virtme"
    python3 -m pip -q --disable-pip-version-check install --root-user-action ignore --target "$virtme" "virtme-ng==$virtme_version"
fi

out=$dir/out
rm -rf "$out"
mkdir "$out"
cp "$binary" "$dir/cnibox"
echo "booting $(basename "$kernel") in QEMU; console in $out/console"
# -v: without it the guest's console is thrown away. mitigations=off: nobody attacks this
# guest, and emulating them takes a third of its time. The rest of the line is what Debian's
# kernel does at each system call, page, or look at the clock for nobody's good here.
PATH=$virtme/bin:$PATH PYTHONPATH=$virtme timeout --kill-after=10 "$limit" \
    vng --disable-kvm --force-9p --memory 2G --cpus 2 -v --run "$kernel"/boot/vmlinuz-* \
    --append "mitigations=off lsm=capability audit=0 init_on_alloc=0 no5lvl tsc=reliable nowatchdog loglevel=4" \
    --qemu-opts="-fsdev local,id=host,path=/,security_model=none,readonly=on,multidevs=remap -device virtio-9p-pci,fsdev=host,mount_tag=host" \
    --rwdir "$out" \
    --exec "sh tests/vm/guest.sh '$dir' '$(command -v cargo-nextest)'" \
    </dev/null >"$out/console" 2>&1 || true

if [ -e "$out/log" ]; then cat "$out/log"; fi
if [ "$(cat "$out/status" 2>/dev/null)" != 0 ]; then
    echo "--- the guest's console, $out/console, ends with: ---" >&2
    tail -n 40 "$out/console" >&2
    echo "the tests in the virtual machine failed, or did not end within $limit seconds" >&2
    exit 1
fi
