//! Debian packages that the chores need.

use std::path::Path;
use std::process::{Command, Stdio};

/// The programs of tests/legacy-apps; those of the benchmarks are among them.
pub const PROGRAMS: &[&str] = &[
    "nginx",
    "redis-server",
    "redis-tools",
    "wrk",
    "iperf3",
    "memcached",
    "apache2-utils",
    "socat",
    "curl",
    "openssl",
    "python3.11",
    "python3-grpcio",
    "nodejs",
    "procps",
    "iproute2",
    "iptables",
    "nftables",
    "util-linux",
    "musl-tools",
    "postgresql-15",
    "haproxy",
    "openssh-server",
    "openssh-client",
    // Shows where a program was that a test had to give up.
    "gdb",
    // Counts instructions, for zstack/budget.
    "valgrind",
];

/// What zstackd and the Z-stack on DPDK are built with.
pub const BUILD: &[&str] =
    &["clang-14", "libclang1-14", "libelf-dev", "zlib1g-dev", "pkg-config", "make", "libdpdk-dev", "dpdk-dev"];

/// What their tests use beside [`PROGRAMS`].
pub const NETWORK: &[&str] = &["iputils-ping", "ethtool", "strace", "tcpdump"];

/// The packages in which `programs` are.
pub fn packages_of(programs: &[String]) -> Vec<&'static str> {
    let all = [PROGRAMS, NETWORK].concat();
    let package = |program: &String| match program.as_str() {
        "redis-benchmark" => "redis-tools",
        "ip" => "iproute2",
        "unshare" | "nsenter" => "util-linux",
        name => *all.iter().find(|p| **p == name).unwrap_or_else(|| panic!("{name}: of which package?")),
    };
    let mut all: Vec<_> = programs.iter().map(package).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// CPython's own tests.
pub const CPYTHON_TESTS: &[&str] = &["python3.11", "libpython3.11-testsuite"];

const POLICY: &str = "/usr/sbin/policy-rc.d";

fn installed(package: &str) -> bool {
    let out =
        Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Abbrev}", package]).stderr(Stdio::null()).output();
    out.is_ok_and(|o| o.stdout.starts_with(b"ii"))
}

/// Installs what is missing of `packages`, after saying so. False if that failed.
pub fn install(packages: &[&str]) -> bool {
    let missing: Vec<&str> = packages.iter().copied().filter(|p| !installed(p)).collect();
    if missing.is_empty() {
        return true;
    }
    println!("== installing Debian packages: apt-get install {}", missing.join(" "));
    // Services are not to be started: the tests start their own, with their own configuration.
    let guard = NoServices::new();
    let apt = |args: &[&str]| {
        let mut c = Command::new("apt-get");
        c.args(args).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        c.status().is_ok_and(|s| s.success())
    };
    let mut args = vec!["install", "-y", "-q", "--no-install-recommends"];
    args.extend(&missing);
    // Package lists may be missing (fresh machine) or old (a version that is gone): refresh, then once more.
    let ok = apt(&args) || (apt(&["update", "-q"]) && apt(&args));
    drop(guard);
    if !ok {
        eprintln!("apt-get could not install: {} (are you root?)", missing.join(" "));
    }
    ok
}

/// While it lives, Debian's maintainer scripts start no service (invoke-rc.d asks /usr/sbin/policy-rc.d).
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn new() -> NoServices {
        use std::os::unix::fs::PermissionsExt;
        // An existing policy is the administrator's.
        let ours = !Path::new(POLICY).exists()
            && std::fs::write(POLICY, "#!/bin/sh\nexit 101\n").is_ok()
            && std::fs::set_permissions(POLICY, std::fs::Permissions::from_mode(0o755)).is_ok();
        NoServices { ours }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _ = std::fs::remove_file(POLICY);
        }
    }
}
