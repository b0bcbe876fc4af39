#!/bin/sh
# containerd.sh DIR: a containerd that asks plugins for STATUS, 2.1 or later, in DIR/bin: the
# distribution's own where it is that new, else that of Debian's next release, unpacked only.
set -eu
dir=$1
newest="$dir/bin/containerd"
# Tells whether the version of a containerd is at least 2.1.
asks() {
    version=$("$1" --version 2>/dev/null | grep -oE '[0-9]+\.[0-9]+' | head -n 1)
    [ "$(printf '2.1\n%s\n' "$version" | sort -V | head -n 1)" = 2.1 ]
}
if asks "$newest"; then exit 0; fi
mkdir -p "$dir/bin"
if asks containerd; then
    for program in containerd ctr containerd-shim-runc-v2; do
        ln -sf "$(command -v $program)" "$dir/bin/$program"
    done
    exit 0
fi
command -v apt-get >/dev/null || { echo "$0 takes a containerd from Debian and needs apt-get, or one of 2.1 or later here" >&2; exit 1; }
echo "fetching a newer containerd"
apt="$dir/apt"
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
# From where this machine has its packages, checked against the same keys.
from=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' 'Component: main' | head -n 1)
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $from forky main" >"$apt/sources.list"
cat >"$apt/apt.conf" <<EOF
Dir::Etc::SourceList "$apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "$apt/lists";
Dir::Cache "$apt/cache";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
APT::Sandbox::User "root";
EOF
export APT_CONFIG="$apt/apt.conf"
apt-get -qq update
cd "$apt"
apt-get -qq download containerd
dpkg-deb --extract containerd_*.deb .
mv usr/bin/* "$dir/bin"
cd "$dir"
rm -r "$apt"
asks "$newest" || { echo "$newest does not run, or is older than 2.1" >&2; exit 1; }
