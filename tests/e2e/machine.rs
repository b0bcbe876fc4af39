//! A machine for one runtime: network, mounts, processes and control groups of its own, all
//! of them gone with the test, however it ends.

use std::io::Read;
use std::net::{TcpStream, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{env, fs, process};

use nix::mount::{MsFlags, mount};

use crate::common::{Node, binary, run};

/// Where cnibox is installed, and nothing else is.
pub const PLUGINS: &str = "/opt/cni/bin";

/// The name of the image that [`Machine::image`] makes.
pub const IMAGE: &str = "localhost/e2e:1";

/// How long a runtime may take to get something ready.
const PATIENCE: Duration = Duration::from_secs(20);

/// What `mount` is not told.
const NOTHING: Option<&str> = None;

/// Set for the process that is inside: the control group below which containers go.
const INSIDE: &str = "CNIBOX_E2E_CGROUP";

/// A node with cnibox installed.
pub struct Machine {
    /// Network, `/run` and `/var/lib`, as every other test has them.
    pub node: Node,
    /// The parent of every container's control group, from the root of a hierarchy.
    pub cgroup: String,
}

/// Runs a test on a machine of its own. The test program starts itself again in a namespace
/// for processes: its init, a shell that reaps what daemons leave, takes them all along.
pub fn machine(test: impl FnOnce(&Machine)) {
    if let Ok(cgroup) = env::var(INSIDE) {
        return test(&Machine::new(cgroup));
    }
    let id = process::id();
    let status = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare", "--pid", "--fork"])
        .args(["--kill-child", "--mount-proc", "sh", "-c", "\"$@\"; exit"])
        .arg("sh")
        .args(env::args_os())
        .env(INSIDE, format!("/cnibox-e2e-{id}"))
        .status()
        .unwrap();
    // Those of tests that were killed before they came here, too.
    let groups = format!(
        "for group in $(find /sys/fs/cgroup -maxdepth 2 -name 'cnibox-e2e-*'); do
            if [ ${{group##*-}} = {id} ] || ! [ -e /proc/${{group##*-}} ]; then
                find $group -depth -type d -exec rmdir {{}} + || exit
            fi
        done"
    );
    let removed = run(Command::new("sh").args(["-c", &groups]), "");
    assert!(status.success(), "the test failed on its machine");
    assert!(removed.ok, "control groups are left: {removed:?}");
}

impl Machine {
    fn new(cgroup: String) -> Self {
        let node = Node::new();
        let networks = "/etc/cni/net.d";
        let podmans = format!("{networks}/87-podman-bridge.conflist");
        let podmans_network = fs::read(&podmans);
        // /dev/shm has podman's locks.
        for dir in ["/etc/cni", "/etc/containers", "/opt", "/dev/shm"] {
            fs::create_dir_all(dir).unwrap();
            mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), NOTHING).unwrap();
        }
        fs::create_dir_all(networks).unwrap();
        // Where the distribution has one.
        if let Ok(network) = podmans_network {
            fs::write(podmans, network).unwrap();
        }
        let mut install = Command::new(binary());
        assert!(run(install.args(["install", PLUGINS]), "").ok);
        // ctr has no setting for the directory, and Debian's looks here.
        for dir in ["/usr/lib/cni", "/usr/libexec/cni"] {
            if Path::new(dir).exists() {
                mount(Some(PLUGINS), dir, NOTHING, MsFlags::MS_BIND, NOTHING).unwrap();
            }
        }
        Self { node, cgroup }
    }

    /// An image of busybox, in the form that every runtime loads: its command answers on TCP
    /// port 80 with the name of the host that it runs on.
    pub fn image(&self) -> PathBuf {
        let dir = self.node.dir.path().display();
        self.node.sh(&format!(
            r#"mkdir -p {dir}/root/bin {dir}/root/etc && cd {dir}
            cp "$(command -v busybox)" root/bin/busybox
            for applet in sh nc hostname ip ping sleep; do ln -s busybox root/bin/$applet; done
            tar -C root -cf layer.tar .
            echo '{{"architecture": "'$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')'", "os": "linux",
                "config": {{"Cmd": ["/bin/nc", "-ll", "-p", "80", "-e", "/bin/hostname"]}},
                "rootfs": {{"type": "layers", "diff_ids": ["sha256:'$(sha256sum <layer.tar | cut -c-64)'"]}}}}' >config.json
            echo '[{{"Config": "config.json", "RepoTags": ["{IMAGE}"], "Layers": ["layer.tar"]}}]' >manifest.json
            tar -cf image.tar manifest.json config.json layer.tar"#
        ));
        self.node.dir.path().join("image.tar")
    }
}

/// Asks again and again, until there is an answer.
#[track_caller]
pub fn wait_for<T>(what: &str, mut answer: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = answer() {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "waiting for {what}");
        sleep(Duration::from_millis(20));
    }
}

/// What a server on TCP says to whoever connects.
#[track_caller]
pub fn tcp(address: &str) -> String {
    let address = address.to_socket_addrs().unwrap().next().unwrap();
    wait_for(&format!("an answer from {address}"), || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        (!answer.is_empty()).then(|| answer.trim().to_owned())
    })
}

/// What a server on UDP answers.
#[track_caller]
pub fn udp(address: &str) -> String {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    wait_for(&format!("an answer from {address}"), || {
        socket.send_to(b"?", address).ok()?;
        let mut buffer = [0; 64];
        let (length, _) = socket.recv_from(&mut buffer).ok()?;
        let answer = String::from_utf8_lossy(buffer.get(..length)?).into_owned();
        Some(answer.trim().to_owned())
    })
}

/// A process that ends with its owner.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
