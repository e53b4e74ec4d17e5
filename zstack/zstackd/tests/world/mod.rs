//! Programs in one network namespace, a remote host in another, and a wire between them. Used by several test programs, of which none
//! uses all.

#![allow(dead_code)]

use crate::lab::{Namespace, Process, soon};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub const LIMIT: Duration = Duration::from_secs(120);
/// The programs' addresses, and the remote host's.
pub const HERE: [&str; 2] = ["10.1.0.1", "fd00:1::1"];
pub const THERE: [&str; 2] = ["10.1.0.2", "fd00:1::2"];

/// Programs in one namespace, a remote host in another, and a wire between them: with zstackd, or without.
pub struct World {
    pub here: Namespace,
    pub there: Namespace,
    pub zstackd: Option<Process>,
    /// With a port of DPDK's: its driver, and the namespace of its device. Without, it is a tap in the remote host's.
    pub wire: Option<(String, Namespace)>,
    /// Runs under culvert, and serves programs that do.
    under_culvert: bool,
    /// More lines of zstackd's configuration.
    more: &'static str,
}

impl World {
    /// Two kernels and a veth pair.
    pub fn native() -> World {
        let (here, there) = (Namespace::new(), Namespace::new());
        here.run(&format!("ip link add w0 type veth peer name w0 netns {}", there.path()));
        for (namespace, addresses) in [(&here, HERE), (&there, THERE)] {
            addressed(namespace, "w0", addresses);
        }
        for (namespace, other) in [(&here, THERE), (&there, HERE)] {
            namespace.run(&format!("ip route add default via {}", other[0]));
            namespace.run(&format!("ip -6 route add default via {}", other[1]));
        }
        World { here, there, zstackd: None, wire: None, under_culvert: false, more: "" }
    }

    /// zstackd, with a tap device of the remote host's namespace as its port; or, where the environment says `ZSTACKD_PORT=af_packet`
    /// (or `af_xdp`), with that driver of DPDK's on a veth whose one end is in a namespace of its own. Then
    /// zstackd has to be built with DPDK. `ZSTACKD_WORKERS=2`: with so many workers.
    pub fn split() -> World {
        World::with_zstackd(driver(), false, "")
    }

    /// The same with more lines in its configuration.
    pub fn split_with(more: &'static str) -> World {
        World::with_zstackd(driver(), false, more)
    }

    /// The same under culvert, for programs under culvert.
    pub fn culvert() -> World {
        World::with_zstackd(driver(), true, "")
    }

    /// The same with more lines in its configuration.
    pub fn culvert_with(more: &'static str) -> World {
        World::with_zstackd(driver(), true, more)
    }

    /// zstackd on a port of DPDK's, whatever the environment says.
    pub fn over(driver: &str, more: &'static str) -> World {
        World::with_zstackd(Some(driver.into()), false, more)
    }

    fn with_zstackd(driver: Option<String>, under_culvert: bool, more: &'static str) -> World {
        let (here, there) = (Namespace::new(), Namespace::new());
        let wire = driver.map(|driver| (driver, veth(&there)));
        let mut world = World { here, there, zstackd: None, wire, under_culvert, more };
        world.start();
        world
    }

    fn command(&self, level: Option<&str>) -> Command {
        let (port, namespace) = match &self.wire {
            Some((driver, wire)) => (format!("dpdk:net_{driver}0,iface=p0"), wire.path()),
            None => ("tap:w0".into(), self.there.path()),
        };
        let gateways = THERE.map(|ip| format!("\"{ip}\"")).join(", ");
        let gateways = if self.more.contains("follow-routes") { "".into() } else { format!("gateways = [{gateways}]") };
        let own = self.more.contains("workers");
        let workers = if own { "".into() } else { format!("workers = {}", workers()) };
        let more = format!("port-namespace = \"{namespace}\"\n{gateways}\n{workers}\n{}", self.more);
        let config = config(&port, HERE, self.under_culvert, &more);
        zstackd_telling(&self.here, self.under_culvert, &config, level)
    }

    /// Starts it.
    pub fn start(&mut self) {
        self.start_with(Stdio::inherit());
    }

    /// Starts it; what it says goes to `told`.
    pub fn start_with(&mut self, told: Stdio) {
        self.start_telling(told, None);
    }

    /// Starts it; what it says, of this level (`info`, for example), goes to `told`.
    pub fn start_telling(&mut self, told: Stdio, level: Option<&str>) {
        self.zstackd = Some(Process::spawn(self.command(level).stderr(told)));
        if self.wire.is_none() {
            soon("the device of zstackd's port", LIMIT, || {
                let mut link = self.there.command("ip");
                link.args(["link", "show", "w0"]).stdout(Stdio::null()).stderr(Stdio::null());
                link.status().is_ok_and(|s| s.success()).then_some(())
            });
            addressed(&self.there, "w0", THERE);
        }
        serves(&self.here);
        // Its first packet to the neighbour.
        soon("a way through zstackd", LIMIT, || self.reach(&self.here, THERE[1], 1).then_some(()));
    }

    /// A program here under culvert.
    pub fn run_here(&self, program: &str) -> Command {
        run(&self.here, program)
    }

    /// The same of another user's.
    pub fn run_here_as(&self, user: u32, program: &str) -> Command {
        let mut command = self.here.command("setpriv");
        command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"]);
        command.arg(culvert()).args(["run", "--path", "zstack", "--", program]);
        command.env("CULVERT_DIR", registry()).stdin(Stdio::null());
        command
    }

    /// What `culvert stat` says of the programs here.
    pub fn stat(&self) -> String {
        stat(&self.here)
    }

    /// What zstackd tells who looks for a fault: each connection in a line.
    pub fn details(&self) -> String {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("culvert-zstackd-{}", self.zstackd.as_ref().expect("zstackd").0.id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name).expect("a name");
        self.here.within(|| {
            let mut stream = std::os::unix::net::UnixStream::connect_addr(&address).expect("zstackd's control socket");
            stream.write_all(b"details\n").expect("a question");
            let mut text = String::new();
            stream.read_to_string(&mut text).expect("an answer");
            text
        })
    }

    /// Lets zstackd have so many more descriptors for its sockets.
    pub fn leave_descriptors(&self, count: usize) {
        let pid = self.zstackd.as_ref().expect("zstackd").0.id();
        let mut taken = vec![];
        let mut least = 0;
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors").flatten() {
            let number: usize = entry.file_name().to_str().expect("a number").parse().expect("a number");
            taken.push(number);
            // Sockets have higher numbers than the tun.
            if std::fs::read_link(entry.path()).is_ok_and(|link| link.ends_with("net/tun")) {
                least = least.max(number + 1);
            }
        }
        let free = (least..).filter(|n| !taken.contains(n)).nth(count).expect("a number");
        self.here.run(&format!("prlimit --pid {pid} --nofile={free}:{free}"));
    }

    /// Whether an echo request is answered.
    pub fn reach(&self, from: &Namespace, to: &str, count: u32) -> bool {
        let mut ping = from.command("ping");
        ping.args(["-n", "-q", "-i", "0.01", "-W", "2", "-c", &count.to_string(), to]).stdout(Stdio::null());
        ping.status().is_ok_and(|s| s.success())
    }
}

/// The driver of DPDK's that is to be zstackd's port.
fn driver() -> Option<String> {
    std::env::var("ZSTACKD_PORT").ok().filter(|driver| driver != "tap")
}

/// How many workers zstackd has, if a test does not say.
pub fn workers() -> u64 {
    std::env::var("ZSTACKD_WORKERS").map_or(1, |workers| workers.parse().expect("a number"))
}

/// A veth with one end, p0, in a namespace of its own, which is returned, and the other, w0, in the remote host's. Packets cross it as
/// they would cross a wire: whole, and with their checksums.
pub fn veth(there: &Namespace) -> Namespace {
    let wire = Namespace::new();
    wire.run(&format!("ip link add p0 type veth peer name w0 netns {}", there.path()));
    for (namespace, device) in [(&wire, "p0"), (there, "w0")] {
        namespace.run(&format!("ethtool -K {device} tx off tso off gso off gro off"));
    }
    wire.run("ip link set p0 up");
    addressed(there, "w0", THERE);
    wire
}

/// A configuration of zstackd's, with more lines.
pub fn config(port: &str, addresses: [&str; 2], under_culvert: bool, more: &str) -> String {
    let programs = if under_culvert { "culvert" } else { "all" };
    let [four, six] = addresses;
    format!("port = \"{port}\"\naddresses = [\"{four}/24\", \"{six}/64\"]\nprograms = \"{programs}\"\n{more}\n")
}

/// zstackd with this configuration, for the programs of a namespace; under culvert, or not.
pub fn zstackd(namespace: &Namespace, under_culvert: bool, config: &str) -> Command {
    zstackd_telling(namespace, under_culvert, config, None)
}

fn zstackd_telling(namespace: &Namespace, under_culvert: bool, config: &str, level: Option<&str>) -> Command {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let file = std::env::temp_dir().join(format!("zstackd-{}-{count}.toml", std::process::id()));
    std::fs::write(&file, config).expect("a configuration");
    // Another build of it: a test program is built with one that is not optimised.
    let built = env!("CARGO_BIN_EXE_zstackd");
    let binary = &std::env::var("ZSTACKD_BIN").unwrap_or_else(|_| built.into());
    let mut command = if under_culvert {
        let mut command = namespace.command(culvert().to_str().expect("a path"));
        command.arg("zstackd").env("CULVERT_ZSTACKD", binary);
        command
    } else {
        namespace.command(binary)
    };
    let usual = || std::env::var("ZSTACKD_LOG").unwrap_or("warn".into());
    command.arg("--config").arg(&file).arg("--log").arg(level.map_or_else(usual, str::to_owned));
    command.env("CULVERT_DIR", registry()).stdin(Stdio::null());
    command
}

/// Waits until a zstackd serves the namespace.
pub fn serves(namespace: &Namespace) {
    soon("zstackd's tun", LIMIT, || {
        let out = namespace.command("ip").args(["route", "show", "table", "all"]).output().ok()?;
        String::from_utf8_lossy(&out.stdout).contains("default dev cv0").then_some(())
    });
}

/// A program of a namespace under culvert.
pub fn run(namespace: &Namespace, program: &str) -> Command {
    let mut command = namespace.command(culvert().to_str().expect("a path"));
    command.args(["run", "--path", "zstack", "--", program]).env("CULVERT_DIR", registry()).stdin(Stdio::null());
    command
}

/// What `culvert stat` says of the programs of a namespace.
pub fn stat(namespace: &Namespace) -> String {
    let mut command = namespace.command(culvert().to_str().expect("a path"));
    let out = command.arg("stat").env("CULVERT_DIR", registry()).output().expect("culvert stat");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

pub fn addressed(namespace: &Namespace, device: &str, addresses: [&str; 2]) {
    namespace.run(&format!("ip addr add {}/24 dev {device}", addresses[0]));
    namespace.run(&format!("ip -6 addr add {}/64 dev {device} nodad", addresses[1]));
    namespace.run(&format!("ip link set {device} up"));
}

pub fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse::<IpAddr>().expect("an address"), port)
}

pub fn listen(namespace: &Namespace, address: SocketAddr) -> TcpListener {
    namespace.within(|| TcpListener::bind(address).unwrap_or_else(|e| panic!("{address}: {e}")))
}

pub fn connect(namespace: &Namespace, address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = namespace.within(|| TcpStream::connect(address))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// The registry's directory: not this machine's.
pub fn registry() -> PathBuf {
    let directory = std::env::temp_dir().join(format!("zstackd-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    directory
}

/// Lets programs of every user take part.
pub fn open_to_all() {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(registry(), std::fs::Permissions::from_mode(0o1777)).expect("rights");
}

/// The command, with its library beside it.
pub fn culvert() -> PathBuf {
    let built = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/release/culvert");
    let path = std::env::var_os("CULVERT_BIN").map_or_else(built, PathBuf::from);
    assert!(path.exists(), "{}: build it: cargo build --release", path.display());
    path
}
