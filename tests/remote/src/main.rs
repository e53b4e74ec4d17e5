//! `remote [--kernel] COMMAND [ARG...]`: runs a command in a network namespace of its own whose connections to itself go over a wire.
//!
//! What its programs connect to on 127.0.0.1 or ::1 is another host's address; the wire's other end is a mirror that sends
//! what it gets back to where it came from, as if that host had sent it (`bpf/away.bpf.c`). So each connection crosses the wire twice,
//! each of its ends has a remote peer, and any test that talks to this machine becomes one of remote peers, unchanged:
//! natively, with one end under culvert, or with both. Between the programs and the wire is zstackd, or, with `--kernel`,
//! a veth device of the kernel's.
//!
//! The tests are told by `CULVERT_REMOTE`: `zstackd` or `kernel`, and by `CULVERT_REMOTE_PID` which process zstackd is. As root. Environment: `CULVERT_BIN`, else the command of `target/release`;
//! `CULVERT_ZSTACKD`, else what is beside this program; `ZSTACKD_LOG`, its log's level.

mod away;
#[path = "../../../zstack/port/tests/lab/mod.rs"]
mod lab;

use lab::{Namespace, Process, soon};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// The namespace's addresses on the wire.
const OWN: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(10, 1, 0, 1), Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1));
/// The other host's.
const OTHER: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(10, 1, 0, 2), Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2));

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1).peekable();
    let kernel = words.next_if(|w| w == "--kernel").is_some();
    let Some(program) = words.next() else {
        eprintln!("usage: remote [--kernel] COMMAND [ARG...]");
        return ExitCode::from(2);
    };
    if !lab::able() {
        return ExitCode::from(2);
    }
    let (here, there) = (Namespace::new(), Namespace::new());
    let zstackd = if kernel {
        veth(&here, &there);
        None
    } else {
        Some(zstackd(&here, &there))
    };
    let away = match away::Away::lead(&here, &there, OWN, OTHER) {
        Ok(away) => away,
        Err(why) => {
            eprintln!("remote: {why}");
            return ExitCode::from(2);
        }
    };
    let mut command = here.command(program.to_str().expect("a program's name"));
    command.args(words).env("CULVERT_REMOTE", if kernel { "kernel" } else { "zstackd" });
    if let Some(zstackd) = &zstackd {
        command.env("CULVERT_PATH", "zstack").env("CULVERT_REMOTE_PID", zstackd.0.id().to_string());
    }
    dies_with_us(&mut command);
    away.admit(&mut command);
    match command.status() {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => ExitCode::from(code as u8),
            (None, signal) => ExitCode::from(128 + signal.unwrap_or(0) as u8),
        },
        Err(e) => {
            eprintln!("remote: {}: {e}", program.display());
            ExitCode::from(127)
        }
    }
}

fn dies_with_us(command: &mut Command) {
    // SAFETY: prctl touches no memory, and may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}

fn addressed(namespace: &Namespace, (v4, v6): (Ipv4Addr, Ipv6Addr)) {
    namespace.run(&format!("ip addr add {v4}/24 dev w0"));
    namespace.run(&format!("ip -6 addr add {v6}/64 dev w0 nodad"));
    // A test's connections are many, and none is to wait for retransmissions because the queue is short.
    namespace.run("ip link set w0 up txqueuelen 20000");
}

/// The kernel's wire.
fn veth(here: &Namespace, there: &Namespace) {
    here.run(&format!("ip link add w0 type veth peer name w0 netns {}", there.path()));
    addressed(here, OWN);
    addressed(there, OTHER);
}

/// zstackd in the namespace, with a tap device of the other host's as its port.
fn zstackd(here: &Namespace, there: &Namespace) -> Process {
    let file = std::env::temp_dir().join(format!("remote-{}.toml", std::process::id()));
    let text = format!(
        "port = \"tap:w0\"\nport-namespace = \"{}\"\naddresses = [\"{}/24\", \"{}/64\"]\ngateways = [\"{}\", \"{}\"]\n",
        there.path(),
        OWN.0,
        OWN.1,
        OTHER.0,
        OTHER.1
    );
    std::fs::write(&file, text).expect("a configuration");
    let mut command = here.command(culvert().to_str().expect("a path"));
    command.arg("zstackd").env("CULVERT_ZSTACKD", binary()).arg("--config").arg(&file);
    command.arg("--log").arg(std::env::var("ZSTACKD_LOG").unwrap_or("warn".into()));
    command.env_remove("CULVERT_LOG").stdin(Stdio::null());
    dies_with_us(&mut command);
    let zstackd = Process::spawn(&mut command);
    let silent = |namespace: &Namespace, line: &str| {
        let mut words = line.split_whitespace();
        let mut command = namespace.command(words.next().expect("a command"));
        command.args(words).stderr(Stdio::null()).output()
    };
    soon("the device of zstackd's port", LIMIT, || {
        silent(there, "ip link show w0").is_ok_and(|o| o.status.success()).then_some(())
    });
    addressed(there, OTHER);
    soon("zstackd's tun", LIMIT, || {
        let out = silent(here, "ip route show table all").ok()?;
        String::from_utf8_lossy(&out.stdout).contains("default dev cv0").then_some(())
    });
    soon("a way through zstackd", LIMIT, || {
        silent(here, &format!("ping -n -q -c 1 -W 2 {}", OTHER.1)).is_ok_and(|o| o.status.success()).then_some(())
    });
    let _ = std::fs::remove_file(&file);
    zstackd
}

/// The command, with its library beside it.
fn culvert() -> PathBuf {
    let built = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/release/culvert");
    let path = std::env::var_os("CULVERT_BIN").map_or_else(built, PathBuf::from);
    assert!(path.exists(), "{}: build it: cargo build --release", path.display());
    path
}

fn binary() -> PathBuf {
    std::env::var_os("CULVERT_ZSTACKD")
        .map_or_else(|| std::env::current_exe().expect("this program's path").with_file_name("zstackd"), PathBuf::from)
}
