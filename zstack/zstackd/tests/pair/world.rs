//! Two hosts and a router between them. Each host's programs have its kernel's connections to the wire, or run under culvert with a zstackd.

use crate::lab::{Namespace, Process, soon};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long anything that ends by itself may take on a busy machine before it counts as hung.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Which hosts' programs run under culvert, with a zstackd.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ends {
    Neither,
    Server,
    Client,
    Both,
}

/// What is the server's and what the client's.
const NAMES: [&str; 2] = ["w0", "w1"];
const HOSTS: [[&str; 2]; 2] = [["10.1.0.1", "fd00:1::1"], ["10.2.0.1", "fd00:2::1"]];
const ROUTERS: [[&str; 2]; 2] = [["10.1.0.2", "fd00:1::2"], ["10.2.0.2", "fd00:2::2"]];

/// Networks to which no way leads: the router drops what is sent there, or says that there is no such host.
pub const SILENT: [&str; 2] = ["10.9.0.1", "fd00:9::1"];
pub const UNREACHABLE: [&str; 2] = ["10.8.0.1", "fd00:8::1"];

/// One of the hosts.
pub struct Host {
    pub namespace: Namespace,
    /// Its addresses.
    pub ip: [&'static str; 2],
    zstackd: Option<Process>,
    registry: PathBuf,
}

/// Both, and the router.
pub struct World {
    pub server: Host,
    pub client: Host,
    _router: Namespace,
    pub ends: Ends,
    /// A directory for the programs' files.
    pub dir: PathBuf,
}

impl World {
    pub fn new(ends: Ends) -> World {
        use std::os::unix::fs::PermissionsExt;
        let name = std::thread::current().name().unwrap_or("").replace(':', "-");
        let dir = std::env::temp_dir().join(format!("zstackd-{name}-{}-{ends:?}", std::process::id()));
        let registry = dir.join("registry");
        std::fs::create_dir_all(&registry).expect("a directory");
        for d in [&dir, &registry] {
            // Programs of every user publish there, and keep files.
            std::fs::set_permissions(d, std::fs::Permissions::from_mode(0o1777)).expect("permissions");
        }
        let router = Namespace::new();
        let host = |i: usize, under_culvert: bool| {
            let mut host =
                Host { namespace: Namespace::new(), ip: HOSTS[i], zstackd: None, registry: registry.clone() };
            if under_culvert {
                host.start_zstackd(i, &router, &dir);
            } else {
                host.namespace.run(&format!("ip link add w0 type veth peer name {} netns {}", NAMES[i], router.path()));
                addressed(&host.namespace, "w0", HOSTS[i]);
                host.namespace.run(&format!("ip route add default via {}", ROUTERS[i][0]));
                host.namespace.run(&format!("ip -6 route add default via {}", ROUTERS[i][1]));
            }
            addressed(&router, NAMES[i], ROUTERS[i]);
            host
        };
        let server = host(0, matches!(ends, Ends::Server | Ends::Both));
        let client = host(1, matches!(ends, Ends::Client | Ends::Both));
        router.sysctl("ipv4/ip_forward", "1");
        router.sysctl("ipv6/conf/all/forwarding", "1");
        // Each is to be told, and not one a second.
        router.sysctl("ipv4/icmp_ratelimit", "0");
        router.sysctl("ipv6/icmp/ratelimit", "0");
        for (i, family) in ["-4", "-6"].iter().enumerate() {
            router.run(&format!("ip {family} route add blackhole {}", SILENT[i]));
            router.run(&format!("ip {family} route add unreachable {}", UNREACHABLE[i]));
        }
        let world = World { server, client, _router: router, ends, dir };
        for ip in HOSTS[0] {
            soon("a way from host to host", LIMIT, || {
                let mut ping = world.client.namespace.command("ping");
                let ping = ping.args(["-n", "-q", "-W", "1", "-c", "1", ip]).stdout(Stdio::null());
                ping.status().is_ok_and(|s| s.success()).then_some(())
            });
        }
        world
    }

    /// Ends both zstackds, which then have nothing to complain of.
    pub fn end(&mut self) {
        for host in [&mut self.server, &mut self.client] {
            if let Some(zstackd) = host.zstackd.take() {
                assert!(Command::new("kill").arg(zstackd.0.id().to_string()).status().is_ok_and(|s| s.success()));
                assert!(zstackd.finish(LIMIT).0.success(), "zstackd ends as it is told");
            }
        }
    }

    /// The connections of the programs here that `culvert stat` shows on path zstack and established on the wire.
    pub fn on_zstack(&self) -> usize {
        [&self.server, &self.client].into_iter().filter(|h| h.zstackd.is_some()).map(Host::on_zstack).sum()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Host {
    /// A host that talks to nobody, for what a program does by itself.
    pub fn outside() -> Host {
        Host { namespace: Namespace::new(), ip: ["127.0.0.1", "::1"], zstackd: None, registry: PathBuf::new() }
    }

    fn start_zstackd(&mut self, i: usize, router: &Namespace, dir: &std::path::Path) {
        let file = dir.join(format!("zstackd{i}.toml"));
        let text = format!(
            "port = \"tap:{}\"\nport-namespace = \"{}\"\naddresses = [\"{}/24\", \"{}/64\"]\ngateways = [\"{}\", \"{}\"]\n",
            NAMES[i],
            router.path(),
            HOSTS[i][0],
            HOSTS[i][1],
            ROUTERS[i][0],
            ROUTERS[i][1]
        );
        std::fs::write(&file, text).expect("a configuration");
        let mut command = self.namespace.command(culvert().to_str().expect("a path"));
        // Another build of it: a test program is built with one that is not optimised.
        let binary = std::env::var("ZSTACKD_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_zstackd").into());
        command.arg("zstackd").env("CULVERT_ZSTACKD", binary).arg("--config").arg(&file);
        command.arg("--log").arg(std::env::var("ZSTACKD_LOG").unwrap_or("warn".into()));
        command.env("CULVERT_DIR", &self.registry).stdin(Stdio::null());
        self.zstackd = Some(Process::spawn(&mut command));
        soon("the device of zstackd's port", LIMIT, || {
            let mut ip = router.command("ip");
            let ip = ip.args(["link", "show", NAMES[i]]).stdout(Stdio::null()).stderr(Stdio::null());
            ip.status().is_ok_and(|s| s.success()).then_some(())
        });
        soon("zstackd's tun", LIMIT, || {
            let out = self.namespace.command("ip").args(["route", "show", "table", "all"]).output().ok()?;
            String::from_utf8_lossy(&out.stdout).contains("default dev cv0").then_some(())
        });
    }

    /// A program of this host's: under culvert, where the host has a zstackd.
    pub fn run(&self, program: &str) -> Command {
        let mut command = match self.zstackd {
            None => self.namespace.command(program),
            Some(_) => {
                let mut command = self.namespace.command(culvert().to_str().expect("a path"));
                command.args(["run", "--path", "zstack", "--", program]).env("CULVERT_DIR", &self.registry);
                command
            }
        };
        command.stdin(Stdio::null()).env("LC_ALL", "C").env("HOME", "/nonexistent");
        command
    }

    fn on_zstack(&self) -> usize {
        let mut command = self.namespace.command(culvert().to_str().expect("a path"));
        let out = command.arg("stat").env("CULVERT_DIR", &self.registry).output().expect("culvert stat");
        let is = |line: &&str| line.split_whitespace().nth(3) == Some("zstack") && line.contains("established");
        String::from_utf8_lossy(&out.stdout).lines().filter(is).count()
    }
}

fn addressed(namespace: &Namespace, device: &str, [v4, v6]: [&str; 2]) {
    namespace.run(&format!("ip addr add {v4}/24 dev {device}"));
    namespace.run(&format!("ip -6 addr add {v6}/64 dev {device} nodad"));
    namespace.run(&format!("ip link set {device} up"));
}

/// The command, with its library beside it.
fn culvert() -> PathBuf {
    let built = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/release/culvert");
    let path = std::env::var_os("CULVERT_BIN").map_or_else(built, PathBuf::from);
    assert!(path.exists(), "{}: build it: cargo build --release", path.display());
    path
}
