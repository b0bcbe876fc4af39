# cnibox: build, try, test, install. `make demo` and `make test` are the two to know.

CARGO   ?= cargo
ARCH    ?= $(shell uname -m)
TARGET  ?= $(ARCH)-unknown-linux-musl
DESTDIR ?=
BINDIR  ?= /opt/cni/bin

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
BINARY     := $(TARGET_DIR)/$(TARGET)/release/cnibox
# Bytes; the release binary stays below with every applet in it.
SIZE_LIMIT := 6291456
# Where cargo puts the programs it installs. cargo-deny is called by its path and checked for its
# version: a distribution's older one may come first in PATH and does not read deny.toml.
TOOLS := $(or $(CARGO_HOME),$(HOME)/.cargo)
DENY  := 0.20.2
DEB   := 3.8.0
# Where cargo-deb looks for what the package holds beside the binary.
DOCS  := target/docs
PACKAGE := $(TARGET_DIR)/cnibox.deb
# What builds the container image: podman, buildah or docker.
IMAGE_BUILDER ?= podman
IMAGE         ?= localhost/cnibox:latest

# Seconds of each fuzz target: `make fuzz`, and the short run that is part of `make test`.
FUZZ_SECONDS       := 600
FUZZ_SHORT_SECONDS := 5
# What makes plain cargo build for libFuzzer: coverage of our code and the crates we use. There is
# no unsafe code to look after, so no sanitizer, and the stable compiler will do.
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module $(addprefix -Cllvm-args=-sanitizer-coverage-,level=4 \
	inline-8bit-counters pc-table trace-compares)
FUZZ_HOST  := $(ARCH)-unknown-linux-gnu
FUZZ       := $(TARGET_DIR)/fuzz

.PHONY: build demo test test-unit test-host test-deb test-e2e test-vm bench bench-check fuzz fuzz-short fuzz-build lint install docs deb image clean toolchain demo-packages test-packages e2e-packages vm-packages nextest deny cargo-deb

## The static release binary, its size printed and checked.
build: toolchain
	$(CARGO) build --locked --release --target $(TARGET)
	@size=$$(stat -c %s $(BINARY)); echo "$(BINARY): $$size bytes, limit $(SIZE_LIMIT)"; test $$size -lt $(SIZE_LIMIT)
	@readelf -lW $(BINARY) | grep -q INTERP && { echo "$(BINARY) is not static" >&2; exit 1; } || echo "$(BINARY): statically linked"

## Connects two namespaces with the real binary, pings, and cleans up. Needs root.
demo: demo-packages build
	sh tests/demo.sh $(BINARY)

## Everything: unit tests, and the release binary in private namespaces, as a package, with real
## runtimes, and on Debian's kernel. Needs root.
test: test-host test-deb test-e2e test-vm

## What needs neither root nor the kernel's network stack.
test-unit: nextest
	@sh tests/packages.sh bash=bash dash=dash
	$(CARGO) nextest run --locked --profile unit

## On this kernel. Tests that need a feature it may lack say so and are skipped. Most wait for the
## kernel more than they compute: two of them for each processor.
test-host: test-packages nextest build
	CNIBOX=$(abspath $(BINARY)) $(CARGO) nextest run --locked --test-threads $$((2 * $$(nproc)))
	$(MAKE) fuzz-short

## podman and containerd with cnibox as their only plugins.
test-e2e: test-packages e2e-packages nextest build
	CNIBOX=$(abspath $(BINARY)) CONTAINERD_2=$(abspath $(TARGET_DIR))/e2e/bin $(CARGO) nextest run --locked --profile e2e

## On Debian's kernel, which filters VLANs, in QEMU without KVM. Its processor is emulated: the
## network test-suite goes there, without what .config/nextest.toml leaves out. ipam, cnitool and
## install work on files and processes, and show the same on any kernel.
test-vm: test-packages vm-packages nextest build
	@mkdir -p $(TARGET_DIR)/vm
	$(CARGO) nextest list --locked $(foreach test,$(VM_TESTS),--test $(test)) --list-type binaries-only --message-format json >$(TARGET_DIR)/vm/binaries.json
	$(CARGO) metadata --locked --format-version 1 >$(TARGET_DIR)/vm/metadata.json
	sh tests/vm/boot.sh $(abspath $(TARGET_DIR))/vm $(abspath $(BINARY))
VM_TESTS := vlan bridge ptp loopback portmap tuning bandwidth firewall flannel static gc security restricted conf see trace faults

## The Debian package: installed, used and purged on a scratch copy of this system, which it leaves
## as it was. Needs root.
test-deb: deb
	@sh tests/packages.sh dpkg=dpkg
	sh tests/deb.sh $(PACKAGE)

## cnibox beside the reference plugins (BENCH_PEER=DIR: others than Debian's) and the floor, in ten
## minutes at most; BENCH_ARGS=--quick in one, --publish for docs/performance.md. Writes $(TARGET_DIR)/bench/. Needs root.
bench: test-packages build
	CNIBOX=$(abspath $(BINARY)) $(CARGO) bench --locked --profile dev --bench cni -- $(BENCH_ARGS)

## The same; fails where a goal is missed.
bench-check:
	$(MAKE) bench BENCH_ARGS="--check $(BENCH_ARGS)"

## Every fuzz target for FUZZ_SECONDS, one after the other; what they find goes to $(FUZZ)/corpus.
## A failure leaves its input in $(FUZZ): mend it, and keep the input in fuzz/corpus.
fuzz: fuzz-build
	@sh fuzz/run.sh $(FUZZ) $(FUZZ)/$(FUZZ_HOST)/release -max_total_time=$(FUZZ_SECONDS)

## The same for a moment, from the committed corpus with a fixed seed, leaving nothing behind.
fuzz-short: fuzz-build
	@sh fuzz/run.sh "" $(FUZZ)/$(FUZZ_HOST)/release -seed=1 -max_total_time=$(FUZZ_SHORT_SECONDS)

fuzz-build: toolchain
	@sh tests/packages.sh c++=g++
	@rustup target list --installed 2>/dev/null | grep -qx $(FUZZ_HOST) || rustup target add $(FUZZ_HOST)
	RUSTFLAGS="$(FUZZ_FLAGS)" $(CARGO) build --manifest-path fuzz/Cargo.toml --locked --release --target $(FUZZ_HOST) --target-dir $(FUZZ)

lint: toolchain deny
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(TOOLS)/bin/cargo-deny check licenses bans sources

## The binary and its links into $(DESTDIR)$(BINDIR), safe while plugins run.
install: build
	$(BINARY) install $(DESTDIR)$(BINDIR)

## Manual pages and shell completions, as they belong below /usr/share, into $(DOCS).
docs: toolchain
	@rm -rf $(DOCS)
	$(CARGO) run --locked --quiet --example docs $(DOCS)

## The Debian package, from the binary that `build` made.
deb: build docs cargo-deb
	$(TOOLS)/bin/cargo-deb deb --locked --no-build --no-strip --target $(TARGET) --output $(PACKAGE)

## The container image that installs the plugins on the node that it runs on: conf/image.
image: build
	@rm -rf $(TARGET_DIR)/image
	$(BINARY) install $(TARGET_DIR)/image
	$(IMAGE_BUILDER) build -t $(IMAGE) -f conf/image/Containerfile $(TARGET_DIR)/image

clean:
	$(CARGO) clean
	rm -rf $(DOCS)

# --- What the targets above need; each line does nothing when it is there already. ---

toolchain:
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing: install Rust with rustup (https://rustup.rs)" >&2; exit 1; }
	@sh tests/packages.sh cc=gcc readelf=binutils
	@rustup target list --installed 2>/dev/null | grep -qx $(TARGET) || rustup target add $(TARGET)

demo-packages:
	@sh tests/packages.sh ip=iproute2 ping=iputils-ping

test-packages: demo-packages
	@sh tests/packages.sh bash=bash dash=dash strace=strace tcpdump=tcpdump socat=socat python3=python3 nc=netcat-openbsd nft=nftables iptables=iptables conntrack=conntrack host-local=containernetworking-plugins nsenter=util-linux
	@sh tests/firewalld.sh $(abspath $(TARGET_DIR))/tmp/firewalld
	@python3 -c 'import yaml' 2>/dev/null || sh tests/packages.sh yaml=python3-yaml

# podman runs containers with runc here: crun refuses some kernels' control groups. The newer of
# the two containerds asks plugins for STATUS.
e2e-packages:
	@sh tests/packages.sh podman=podman containerd=containerd runc=runc curl=curl busybox=busybox-static nsenter=util-linux
	@sh tests/e2e/containerd.sh $(abspath $(TARGET_DIR))/e2e

vm-packages:
	@sh tests/packages.sh qemu-system-x86_64=qemu-system-x86 kmod=kmod busybox=busybox-static strings=binutils pip3=python3-pip

nextest:
	@cargo-nextest nextest --version 2>/dev/null | grep -q '^release: 0\.9\.' || $(CARGO) install --locked --force cargo-nextest@0.9.143

deny:
	@$(TOOLS)/bin/cargo-deny --version 2>/dev/null | grep -qx 'cargo-deny $(DENY)' || $(CARGO) install --locked --force --root $(TOOLS) cargo-deny@$(DENY)

cargo-deb:
	@$(TOOLS)/bin/cargo-deb --version 2>/dev/null | grep -qx 'cargo-deb $(DEB)' || $(CARGO) install --locked --force --root $(TOOLS) cargo-deb@$(DEB)
