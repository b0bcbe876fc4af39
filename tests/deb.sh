#!/bin/sh
# deb.sh PACKAGE: installs the package on an overlay of this system, looks at it as a user
# would, purges it, and looks for what is left. The system itself stays as it is.
set -eu
package=$(realpath "$1")
if [ "${2:-}" != inside ]; then
    exec unshare --mount --net sh "$0" "$package" inside
fi

scratch=$(mktemp -d /tmp/cnibox-deb-XXXXXX)
trap 'cd /; umount -R "$scratch" && rmdir "$scratch"' EXIT
mount -t tmpfs tmpfs "$scratch"
mkdir "$scratch/root" "$scratch/upper" "$scratch/work"
mount -t overlay overlay -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/root"
mount --bind /dev "$scratch/root/dev"
mount -t proc proc "$scratch/root/proc"
mkdir "$scratch/root/package" && cp "$package" "$scratch/root/package/cnibox.deb"
on() { chroot "$scratch/root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"; }
# What is there and not part of the package manager's own books.
files() {
    (cd "$scratch/upper" && find . ! -type d ! -path './var/lib/dpkg/*' ! -path './var/log/*' ! -path './var/cache/*' \
        ! -path ./etc/ld.so.cache ! -path './package/*' | sort)
}
fail() { echo "deb.sh: $1" >&2; exit 1; }

test -z "$(files)" || fail "the scratch system has files of its own: $(files)"
on dpkg --no-triggers -i /package/cnibox.deb >/dev/null
on cnibox list | while read -r name; do
    test "$(on readlink "/usr/lib/cnibox/$name")" = cnibox || fail "/usr/lib/cnibox/$name is no link"
done
on cnitool --version | grep -q '^cnitool ' || fail "cnitool is not found"
echo '{}' | on env CNI_COMMAND=VERSION /usr/lib/cnibox/bridge | grep -q supportedVersions || fail "bridge does not answer"
for file in man/man1/cnibox.1.gz man/man1/cnibox-cnitool-add.1.gz man/man1/cnitool.1.gz \
    man/man7/cnibox-bridge.7.gz man/man7/cnibox-plugins.7.gz bash-completion/completions/cnibox \
    zsh/vendor-completions/_cnitool fish/vendor_completions.d/cnibox.fish doc/cnibox/copyright; do
    on test -s "/usr/share/$file" || fail "/usr/share/$file is missing"
done
if command -v bash >/dev/null; then
    on bash -n /usr/share/bash-completion/completions/cnibox
fi
# It owns nothing that another package could: beside it, the reference's plugins are untouched.
if on dpkg -L cnibox | grep -E '^/(opt|etc|usr/lib/cni)(/|$)'; then fail "it owns files outside of its places"; fi
# A directory of the test's own: on the overlay, removing one that the system has leaves a trace.
on cnibox install /package/bin >/dev/null
on test -x /package/bin/bridge || fail "cnibox install does not install"
# Once more over itself, as an upgrade does.
on dpkg --no-triggers -i /package/cnibox.deb >/dev/null
on cnitool --version >/dev/null || fail "cnitool is gone after an upgrade"
on dpkg --no-triggers --purge cnibox >/dev/null 2>&1
left=$(files)
test -z "$left" || fail "left after purging: $left"
if on update-alternatives --query cnitool 2>/dev/null | grep cnibox; then fail "an alternative is left"; fi
echo "$(basename "$package"): $(stat -c %s "$package") bytes, installed $(dpkg -f "$package" Installed-Size) KiB; installs, runs, upgrades, purges"
