//! A throw-away node for one test: its own network stack, `/run` and `/var/lib/cni`,
//! and the built binary under all its names. The binary is called exactly as a runtime
//! calls it; what it did is judged with `ip`, `ping` and the files it left.
#![allow(
    dead_code,
    reason = "every test program uses another part of this module"
)]
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::unused_self,
    reason = "a test that cannot do its work says so by panicking; doors are for the product"
)]

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

pub mod network;

/// The versions of the specification, each of which a plugin speaks.
pub const VERSIONS: [&str; 7] = [
    "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
];

/// `config` with the members of `change` replaced.
pub fn with(mut config: Value, change: Value) -> Value {
    let Value::Object(change) = change else {
        panic!("{change} is no object");
    };
    config.as_object_mut().unwrap().extend(change);
    config
}

/// `config` as a runtime sends it after ADD.
pub fn with_result(config: &Value, result: &Value) -> Value {
    with(config.clone(), json!({"prevResult": result}))
}

/// The rule backends: iptables in both of its variants.
pub const BACKENDS: [&str; 3] = ["nftables", "iptables-nft", "iptables-legacy"];

/// A `PATH` with the programs of one of [`BACKENDS`] and no others, in a directory of that
/// name: with none for nftables.
pub fn tools(node: &Node, name: &str, backend: &str) -> String {
    let dir = node.dir.path().join(name);
    fs::create_dir(&dir).unwrap();
    if backend != "nftables" {
        for (family, variant) in [
            ("iptables", backend),
            ("ip6tables", &backend.replace("ip", "ip6")),
        ] {
            for tool in ["", "-save", "-restore"] {
                let program = PathBuf::from(format!("/usr/sbin/{variant}{tool}"));
                assert!(
                    program.exists(),
                    "{} is needed: see `make test`",
                    program.display()
                );
                symlink(program, dir.join(format!("{family}{tool}"))).unwrap();
            }
        }
    }
    dir.to_str().unwrap().to_owned()
}

/// Where Debian's `containernetworking-plugins` puts the reference plugins.
pub const REFERENCE: &str = "/usr/lib/cni";

/// The binary under test: `$CNIBOX` (the release binary, set by the Makefile), else the
/// one cargo built for this test run.
pub fn binary() -> PathBuf {
    std::env::var_os("CNIBOX").map_or_else(|| env!("CARGO_BIN_EXE_cnibox").into(), PathBuf::from)
}

/// The names under which the binary is installed: what `symlinks/` holds.
pub fn links() -> Vec<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("symlinks");
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("read symlinks/")
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A node of its own, as long as the calling thread lives. Threads and processes that
/// the test starts are on it too.
pub struct Node {
    /// A directory for the test's files, gone at the end.
    pub dir: tempfile::TempDir,
    /// Where the plugins are: `CNI_PATH`.
    pub bin: PathBuf,
}

impl Node {
    pub fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests make network namespaces and need root: run `sudo make test`"
        );
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .expect("make namespaces for the test");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private /");
        for dir in ["/run", "/var/lib"] {
            assert!(
                !binary().starts_with(dir),
                "the tests hide {dir} from the plugins: build outside of it"
            );
            mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), none)
                .unwrap_or_else(|error| panic!("mount a tmpfs on {dir}: {error}"));
        }
        fs::create_dir_all("/run/netns").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        for name in links() {
            symlink(binary(), bin.join(name)).unwrap();
        }
        let made = Self { dir, bin };
        made.sh("ip link set lo up");
        made
    }

    /// A new network namespace `/run/netns/NAME`, with `lo` up.
    pub fn netns(&self, name: &str) -> String {
        self.sh(&format!(
            "ip netns add {name} && ip -n {name} link set lo up"
        ));
        format!("/run/netns/{name}")
    }

    /// The path of the node's own network namespace, which is that of the calling thread.
    pub fn own_netns(&self) -> String {
        let (process, thread) = (std::process::id(), nix::unistd::gettid());
        format!("/proc/{process}/task/{thread}/ns/net")
    }

    /// A second machine `ext` (192.0.2.9, `PREFIX::9`) behind link `up0` (192.0.2.1, `PREFIX::1`),
    /// whose way to everything else leads over this node. Both have been there for long: their
    /// addresses are settled, and they know each other.
    pub fn machine(&self, prefix: &str) {
        self.sh(&format!(
            "ip netns add ext && ip link add up0 type veth peer name up1 netns ext && \
             echo 0 > /proc/sys/net/ipv6/conf/up0/accept_dad && \
             ip netns exec ext sh -c 'echo 0 > /proc/sys/net/ipv6/conf/up1/accept_dad' && \
             ip addr add 192.0.2.1/24 dev up0 && ip addr add {prefix}::1/64 dev up0 nodad && \
             ip -n ext addr add 192.0.2.9/24 dev up1 && ip -n ext addr add {prefix}::9/64 dev up1 nodad && \
             ip -n ext link set lo up && ip -n ext link set up1 up && ip link set up0 up && \
             ip -n ext route add default via 192.0.2.1 && ip -n ext route add default via {prefix}::1 && \
             for there in 192.0.2.9 {prefix}::9; do until ping -n -c 1 -W 1 $there; do :; done; done"
        ));
    }

    /// Runs a shell command that must succeed; answers its stdout.
    pub fn sh(&self, command: &str) -> String {
        let output = run(Command::new("sh").args(["-c", command]), "");
        assert!(output.ok, "{command}\n{output:?}");
        output.stdout
    }

    /// Whether a shell command succeeds.
    pub fn succeeds(&self, command: &str) -> bool {
        run(Command::new("sh").args(["-c", command]), "").ok
    }

    /// What `ip -j ARGS` prints. `args` may start with `-n NAMESPACE`.
    pub fn ip(&self, args: &str) -> Value {
        let text = self.sh(&format!("ip -d -j {args}"));
        if text.trim().is_empty() {
            return Value::Array(Vec::new());
        }
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("ip {args}: {error}: {text}"))
    }

    /// The names of the links on the node, `lo` left out.
    pub fn links(&self) -> Vec<String> {
        let list = self.ip("link show");
        list.as_array()
            .unwrap()
            .iter()
            .map(|link| link["ifname"].as_str().unwrap().to_owned())
            .filter(|name| name != "lo")
            .collect()
    }

    /// Asserts that one ping from `netns` to `address` is answered.
    pub fn ping(&self, netns: &str, address: &str) {
        let name = netns.rsplit('/').next().unwrap();
        self.sh(&format!("ip netns exec {name} ping -n -c 1 -W 5 {address}"));
    }

    /// Asserts that nothing tells any more that there were containers: no links but `bridges`,
    /// which stay as the reference's do, no leases, results and namespaces, and no rules for an
    /// address or an attachment.
    #[track_caller]
    pub fn nothing_left(&self, bridges: &[&str]) {
        assert_eq!(self.links(), bridges);
        let files = self.sh(
            "find /var/lib/cni -type f ! -name 'last_reserved_ip.*' ! -name lock
            ls /run/netns",
        );
        assert_eq!(files, "");
        for list in ["iptables-save", "ip6tables-save", "nft list ruleset"] {
            let rules = self.sh(list);
            for trace in ["CNI-DN-", "dnat to", "id: ", " 10.", " fd00:", "elements"] {
                assert!(!rules.contains(trace), "{trace}: {rules}");
            }
        }
    }

    /// What STATUS of `plugin` says when the kernel refuses one netlink request of those that it
    /// makes, each in turn.
    pub fn refusals(&self, plugin: &str, config: &Value) -> Vec<String> {
        let file = self.dir.path().join("config");
        fs::write(&file, config.to_string()).unwrap();
        let bin = self.bin.display();
        let refused = |which: u32| {
            let text = self.sh(&format!(
                "CNI_COMMAND=STATUS CNI_PATH={bin} strace -f -o /dev/null \
                 -e inject=sendto:error=EOPNOTSUPP:when={which} {bin}/{plugin} <{} || true",
                file.display()
            ));
            let error = serde_json::from_str(&text).unwrap_or(Value::Null);
            error.is_object().then(|| {
                assert_eq!(error["code"], 50, "{text}");
                error["msg"].as_str().unwrap().to_owned()
            })
        };
        (1..).map_while(refused).collect()
    }

    /// A call of plugin `name` for container `c1` and `eth0`, to be changed and run.
    pub fn plugin(&self, name: &str) -> Call {
        let mut call = Call {
            executable: self.bin.join(name),
            env: Vec::new(),
        };
        for (key, value) in [
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", self.bin.to_str().unwrap()),
        ] {
            call = call.env(key, value);
        }
        call
    }

    /// `cnitool` with this node's plugins, ready for arguments.
    pub fn cnitool(&self, confdir: &Path, args: &[&str]) -> Output {
        run(
            Command::new(self.bin.join("cnitool"))
                .args(args)
                .env("CNI_PATH", &self.bin)
                .env("NETCONFPATH", confdir),
            "",
        )
    }
}

/// Processes that end with their owner.
#[derive(Default)]
pub struct Servers(pub Vec<Child>);

impl Drop for Servers {
    fn drop(&mut self) {
        for server in &mut self.0 {
            drop(server.kill());
            drop(server.wait());
        }
    }
}

/// One call of a plugin, as a runtime makes it.
#[derive(Clone)]
pub struct Call {
    executable: PathBuf,
    env: Vec<(String, String)>,
}

impl Call {
    /// Sets a variable; the last value counts.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// The same call made to another executable.
    pub fn executable(mut self, path: impl Into<PathBuf>) -> Self {
        self.executable = path.into();
        self
    }

    pub fn id(self, id: &str) -> Self {
        self.env("CNI_CONTAINERID", id)
    }

    pub fn ifname(self, name: &str) -> Self {
        self.env("CNI_IFNAME", name)
    }

    pub fn netns(self, path: &str) -> Self {
        self.env("CNI_NETNS", path)
    }

    /// Runs `command` with `config` on stdin.
    pub fn run(&self, command: &str, config: &Value) -> Output {
        self.clone()
            .env("CNI_COMMAND", command)
            .run_text(&config.to_string())
    }

    /// Runs with `stdin` as it is.
    pub fn run_text(&self, stdin: &str) -> Output {
        run(&mut self.process(), stdin)
    }

    /// The process that the call is, not yet started.
    pub fn process(&self) -> Command {
        let mut command = Command::new(&self.executable);
        for key in ["CNI_COMMAND", "CNI_NETNS", "CNI_ARGS", "CNI_NETNS_OVERRIDE"] {
            command.env_remove(key);
        }
        // Of the shell that runs the tests; no runtime sets them. With backtraces, an error
        // that gets no memory waits for ever for a lock that its own thread holds: std's.
        for key in ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"] {
            command.env_remove(key);
        }
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        command
    }
}

/// What a process left.
#[derive(Debug, Clone)]
pub struct Output {
    pub ok: bool,
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Stdout as the one JSON document it must be, after a success.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert!(self.ok, "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Asserts success without any output.
    #[track_caller]
    pub fn silent(&self) {
        assert!(self.ok && self.stdout.is_empty(), "{self:?}");
    }

    /// The error object, after a failure: code, message, details.
    #[track_caller]
    pub fn error(&self) -> (u64, String, String) {
        assert!(!self.ok, "{self:?}");
        let object: Value =
            serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"));
        (
            object["code"].as_u64().unwrap(),
            object["msg"].as_str().unwrap().to_owned(),
            object["details"].as_str().unwrap_or_default().to_owned(),
        )
    }
}

/// Runs a process with `stdin` to its end.
pub fn run(command: &mut Command, stdin: impl AsRef<OsStr>) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut input = child.stdin.take().unwrap();
    let bytes = stdin.as_ref().as_encoded_bytes().to_vec();
    let writer = std::thread::spawn(move || drop(input.write_all(&bytes)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    Output {
        ok: output.status.success(),
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
