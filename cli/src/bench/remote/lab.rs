//! Two network namespaces and a wire between them: the kernel's at both ends, or with the engine, or zstackd, at one.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::super::procs::{Job, Side};
use super::super::row::{Equipment, Setup, program, workload};
use super::super::{api, split};
use crate::zstackd;

/// The host that is measured: on the kernel's side its veth has this address, on the other one the engine or zstackd.
pub const NEAR: Ipv4Addr = Ipv4Addr::new(10, 97, 0, 2);
/// The host at the other end, always on the kernel.
pub const FAR: Ipv4Addr = Ipv4Addr::new(10, 97, 0, 1);

/// DPDK's devices, each on the near end of the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device {
    /// A packet socket, without hugepages.
    AfPacket,
    /// An XDP socket, with hugepages if there are enough.
    AfXdp,
}

impl Device {
    /// As `--port` of zstack, and `port` of zstackd, have it.
    fn port(self) -> &'static str {
        match self {
            Device::AfPacket => "dpdk:net_af_packet0,iface=p0,memory=none",
            Device::AfXdp => "dpdk:net_af_xdp0,iface=p0",
        }
    }

    /// The same for zstack, with the near host's address.
    pub fn with_address(self, more: &str) -> String {
        format!("{},addr={NEAR}/24{more}", self.port())
    }
}

/// A network namespace; it lasts as long as a process of ours.
pub struct Namespace(Job);

impl Namespace {
    /// A new one, in which only `lo` is.
    pub fn new(s: &Setup) -> io::Result<Namespace> {
        let mut c = program("unshare")?;
        c.args(["-n", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity"]);
        let mut holder = Job::start(c, None, s.scratch)?;
        holder.first_line()?;
        Ok(Namespace(holder))
    }

    /// The file that stands for it.
    pub fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.pid())
    }

    /// A command, to be run in it.
    pub fn enter(&self, command: Command) -> io::Result<Command> {
        let mut c = program("nsenter")?;
        c.arg(format!("--net={}", self.path())).arg("--").arg(command.get_program()).args(command.get_args());
        c.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
        Ok(c)
    }

    /// Starts a program in it.
    pub fn start(&self, s: &Setup, command: Command) -> io::Result<Job> {
        Job::start(self.enter(command)?, None, s.scratch)
    }

    /// Runs commands of a shell in it.
    pub fn run(&self, s: &Setup, script: &str) -> io::Result<String> {
        let mut c = Command::new("/bin/sh");
        c.args(["-ec", script]);
        Ok(self.start(s, c)?.finish(Duration::ZERO)?.output)
    }

    /// Returns when something listens there, as seen from here.
    pub fn knock(&self, s: &Setup, to: SocketAddrV4) -> io::Result<()> {
        self.start(s, workload(&["remote", "knock", &to.to_string()]))?.finish(Duration::from_secs(20)).map(drop)
    }
}

/// The near and the far namespace, and a veth pair `p0`, `v0` without offloads between them. The far end has [`FAR`].
pub struct Wire {
    /// Where the near end is; it has no address.
    pub near: Namespace,
    /// Where the far end is.
    pub far: Namespace,
}

impl Wire {
    /// A new one.
    pub fn new(s: &Setup) -> io::Result<Wire> {
        let (near, far) = (Namespace::new(s)?, Namespace::new(s)?);
        near.run(
            s,
            &format!(
                "ip link add p0 type veth peer name v0 netns {}; \
                 ethtool -K p0 tx off tso off gso off gro off >/dev/null; ip link set p0 up",
                far.0.pid()
            ),
        )?;
        far.run(
            s,
            &format!(
                "ethtool -K v0 tx off tso off gso off gro off >/dev/null; ip addr add {FAR}/24 dev v0; ip link set v0 up"
            ),
        )?;
        Ok(Wire { near, far })
    }

    /// One whose near end is the kernel's.
    pub fn of_kernels(s: &Setup) -> io::Result<Wire> {
        let wire = Wire::new(s)?;
        wire.near.run(s, &format!("ip addr add {NEAR}/24 dev p0; ip route add default via {FAR}"))?;
        Ok(wire)
    }

    /// Frames that the near end has sent.
    pub fn frames(&self) -> f64 {
        let text = fs::read_to_string(format!("/proc/{}/net/dev", self.near.0.pid())).unwrap_or_default();
        let line = text.lines().find_map(|l| l.trim_start().strip_prefix("p0:"));
        line.and_then(|l| l.split_ascii_whitespace().nth(9)?.parse().ok()).unwrap_or(0.0)
    }
}

/// A wire, and programs at its near end: on the kernel, or behind zstackd.
pub struct World {
    /// The wire.
    pub wire: Wire,
    zstackd: Option<(Job, Namespace)>,
}

impl World {
    /// A new one.
    pub fn new(s: &Setup, side: Side, device: Device) -> io::Result<World> {
        if side == Side::Kernel {
            return Ok(World { wire: Wire::of_kernels(s)?, zstackd: None });
        }
        let (wire, here) = (Wire::new(s)?, Namespace::new(s)?);
        let text = format!(
            "port = \"{}\"\nport-namespace = \"{}\"\naddresses = [\"{NEAR}/24\"]\ngateways = [\"{FAR}\"]\n",
            device.port(),
            wire.near.path()
        );
        let daemon = serve(s, &here, "zstackd.toml", &text)?;
        Ok(World { wire, zstackd: Some((daemon, here)) })
    }

    /// Where the near host's programs run.
    pub fn here(&self) -> &Namespace {
        self.zstackd.as_ref().map_or(&self.wire.near, |(_, here)| here)
    }

    /// Starts a program of the near host.
    pub fn start(&self, s: &Setup, command: Command) -> io::Result<Job> {
        if self.zstackd.is_none() {
            return self.here().start(s, command);
        }
        run(s, self.here(), command)
    }

    /// zstackd, if there is one.
    pub fn zstackd(&self) -> Option<&Job> {
        self.zstackd.as_ref().map(|(daemon, _)| daemon)
    }

    /// CPU time of zstackd so far.
    pub fn cpu(&self) -> Duration {
        self.zstackd().map_or(Duration::ZERO, Job::cpu)
    }
}

/// Starts a zstackd for the programs in a namespace, with this configuration, in a file of that name.
pub fn serve(s: &Setup, here: &Namespace, name: &str, text: &str) -> io::Result<Job> {
    let config = s.scratch.join(name);
    fs::write(&config, text)?;
    fs::create_dir_all(registry(s))?;
    // nginx's worker is another user, with a file of its own there.
    fs::set_permissions(registry(s), std::os::unix::fs::PermissionsExt::from_mode(0o1777))?;
    let mut c = own()?;
    c.args(["zstackd", "--log", "warn", "--config"]).arg(&config);
    // Ten thousand connections, and what it needs itself.
    let mut c = with_descriptors(c);
    c.env("CULVERT_DIR", registry(s)).env(zstackd::VARIABLE, zstackd::locate().map_err(|(_, e)| io::Error::other(e))?);
    let mut daemon = here.start(s, c)?;
    daemon.wait_until(|_| run(s, here, Command::new("true")).ok()?.finish(Duration::ZERO).ok())?;
    Ok(daemon)
}

/// Starts a program under culvert that a zstackd serves.
pub fn run(s: &Setup, here: &Namespace, command: Command) -> io::Result<Job> {
    let mut c = own()?;
    c.args(["run", "--path", "zstack", "--library"]).arg(s.library).arg("--");
    c.arg(command.get_program()).args(command.get_args()).env("CULVERT_DIR", registry(s));
    here.start(s, c)
}

/// The library's registry, apart from this machine's.
pub fn registry(s: &Setup) -> PathBuf {
    s.scratch.join("registry")
}

/// This command.
fn own() -> io::Result<Command> {
    std::env::current_exe().map(Command::new)
}

/// A command that may have many descriptors.
pub fn with_descriptors(command: Command) -> Command {
    let mut c = Command::new("/bin/sh");
    c.args(["-c", "ulimit -n 65536 2>/dev/null || ulimit -n $(ulimit -H -n); exec \"$0\" \"$@\""]);
    c.arg(command.get_program()).args(command.get_args());
    c
}

/// The command `zstack`: the one that ZSTACK_BIN names, or that beside this command.
pub fn zstack() -> io::Result<Command> {
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("zstack"));
    let path = std::env::var_os("ZSTACK_BIN").map(PathBuf::from).or_else(beside).filter(|p| p.is_file());
    path.map(Command::new).ok_or_else(|| {
        io::Error::other(
            "zstack was not found: `cargo build --release -p zstack-tool --features dpdk`, or name it in ZSTACK_BIN",
        )
    })
}

/// Why this machine cannot do it.
pub fn missing(s: &Setup, what: Equipment) -> Option<String> {
    match what {
        Equipment::Root => is_root().err().map(|e| format!("network namespaces need root: {e}")),
        Equipment::Zstack => zstack()
            .and_then(|mut c| {
                c.args(["--port", "dpdk:", "ping", "10.0.0.1"]);
                said(s, c)
            })
            .map_or_else(|e| Some(e.to_string()), |text| without_dpdk("zstack", &text)),
        Equipment::Iceoryx2 => api::iceoryx2().err().map(|e| e.to_string()),
        Equipment::Split => split::program().err().map(|e| e.to_string()),
        Equipment::Zstackd => match zstackd::locate() {
            Err((_, e)) => Some(e),
            Ok(path) => {
                let config = s.scratch.join("check.toml");
                let text = format!("port = \"{}\"\naddresses = [\"{NEAR}/24\"]\n", Device::AfPacket.port());
                let mut c = Command::new(path);
                c.args(["check", "--config"]).arg(&config);
                fs::write(&config, text)
                    .and_then(|()| said(s, c))
                    .map_or_else(|e| Some(e.to_string()), |text| without_dpdk("zstackd", &text))
            }
        },
    }
}

/// What a program says of a port of DPDK's: one that was built without, or that finds none of its libraries, says so.
fn without_dpdk(program: &str, text: &str) -> Option<String> {
    let why = ["without DPDK", "error while loading"].iter().any(|why| text.contains(why));
    why.then(|| format!("{program}: {}", text.lines().next().unwrap_or("")))
}

fn said(s: &Setup, command: Command) -> io::Result<String> {
    let mut job = Job::start(command, None, s.scratch)?;
    job.end(Duration::ZERO)?;
    Ok(job.output())
}

fn is_root() -> io::Result<()> {
    let text = fs::read_to_string("/proc/self/status")?;
    let effective =
        text.lines().find_map(|l| l.strip_prefix("Uid:")?.split_ascii_whitespace().nth(1).map(str::to_owned));
    if effective.as_deref() == Some("0") { Ok(()) } else { Err(io::Error::from(io::ErrorKind::PermissionDenied)) }
}
