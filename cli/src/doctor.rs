//! `culvert doctor`: will programs on this machine be accelerated, and this one?
// Unsafe here: libc's calls.
#![allow(unsafe_code)]

use std::ffi::OsString;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{Command, Stdio};

use rendezvous::registry::{Served, Unserved};
use serde::Serialize;

use crate::args::DoctorArgs;
use crate::program::{self, Program};
use crate::visible::visible;
use crate::{elf, exit, library, netdiag, run, serving, settings};

/// What a check found.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Ok,
    /// Works, but less well.
    Warn,
    /// Nothing will be accelerated.
    Fail,
}

#[derive(Serialize, Debug)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

fn ok(name: &'static str, detail: impl Into<String>) -> Check {
    Check { name, verdict: Verdict::Ok, detail: visible(&detail.into()), remedy: None }
}

fn warn(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { name, verdict: Verdict::Warn, detail: visible(&detail.into()), remedy: Some(visible(&remedy.into())) }
}

fn fail(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { name, verdict: Verdict::Fail, detail: visible(&detail.into()), remedy: Some(visible(&remedy.into())) }
}

/// Runs `culvert doctor`.
pub fn main(args: &DoctorArgs) -> u8 {
    let mut checks = Vec::new();
    let library = match library::find(args.library.as_deref()) {
        Ok(path) => {
            checks.push(ok("library", path.display().to_string()));
            Some(path)
        }
        Err(e) => {
            checks.push(fail("library", e, "build it with `cargo build --release`, or name it with --library"));
            None
        }
    };
    checks.extend(kernel());
    checks.extend(shared_memory());
    checks.extend(limits());
    checks.push(seccomp());
    checks.push(processors());
    checks.push(zstackd(serving::here(), std::env::var_os("CULVERT_PATH").is_some_and(|v| v == "zstack")));
    checks.extend(steering());
    let lossy = |s: OsString| s.to_string_lossy().into_owned();
    checks.extend(environment(std::env::vars_os().map(|(k, v)| (lossy(k), lossy(v)))));
    if let Some(library) = &library {
        checks.push(self_test(library));
        if let Some(name) = args.program.first() {
            checks.extend(inspect(name, &args.program[1..], library));
        }
    }
    let accelerated = checks.iter().all(|c| c.verdict != Verdict::Fail);
    if args.json {
        let report = serde_json::json!({ "accelerated": accelerated, "checks": checks });
        println!("{}", serde_json::to_string_pretty(&report).unwrap_or_default());
    } else {
        print!("{}", text(&checks, accelerated, args.program.first()));
    }
    if accelerated { exit::OK } else { exit::NO }
}

fn text(checks: &[Check], accelerated: bool, program: Option<&OsString>) -> String {
    let mut out = String::new();
    for c in checks {
        let word = match c.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        out += &format!("{word}  {:<20} {}\n", c.name, c.detail);
        if let Some(remedy) = &c.remedy {
            out += &format!("{:27}-> {remedy}\n", "");
        }
    }
    let who = program.map_or("Programs on this machine".into(), |p| visible(&p.to_string_lossy()));
    out + &match accelerated {
        true => format!("\n{who}: connections to co-located programs under culvert go through shared memory.\n"),
        false => format!("\n{who}: NOT accelerated, for the reasons marked FAIL; everything stays on the kernel.\n"),
    }
}

/// What `culvert steer` has done here, where that can be read: it is root's.
fn steering() -> Option<Check> {
    let journal =
        steering::Journal::look(Path::new(crate::args::STEER_STATE)).ok().filter(|j| !j.steps().is_empty())?;
    Some(match journal.is_complete() {
        true => ok("steering", "applied; `culvert steer status` shows it"),
        false => warn(
            "steering",
            "`culvert steer` was broken off on its way",
            "`culvert steer undo` restores what was found, `culvert steer apply FILE` goes on",
        ),
    })
}

fn io_check(name: &'static str, result: io::Result<String>, remedy: &str) -> Check {
    match result {
        Ok(detail) => ok(name, detail),
        Err(e) => fail(name, e.to_string(), remedy),
    }
}

/// Each call that the library needs, made once.
fn kernel() -> Vec<Check> {
    vec![
        io_check("memfd", memfd(), "Linux 3.17 or later, and a seccomp filter that allows memfd_create and fcntl"),
        io_check(
            "doorbell",
            doorbell(),
            "a seccomp filter that allows AF_UNIX sockets with a packet filter (CONFIG_NET)",
        ),
        io_check(
            "socket diagnostics",
            socket_diagnostics(),
            "modprobe tcp_diag; a seccomp filter that allows netlink sockets. Without them the identity of a peer cannot be proved",
        ),
        io_check("socket state", socket_state(), "Linux 4.12 or later (SO_COOKIE, TCP_INFO)"),
    ]
}

fn checked(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn own(fd: i32) -> OwnedFd {
    // SAFETY: every caller passes a descriptor that it has just created and owns alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn memfd() -> io::Result<String> {
    // SAFETY: the name is a terminated string.
    let fd = checked(unsafe {
        libc::memfd_create(c"culvert-doctor".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
    })?;
    let file = std::fs::File::from(own(fd));
    file.set_len(1 << 16)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: F_ADD_SEALS takes an integer; no memory is involved.
    checked(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) })?;
    if file.set_len(0).is_ok() {
        return Err(io::Error::other("a sealed memfd could be truncated"));
    }
    Ok("memfd_create with seals".into())
}

/// What wakes a sleeper: a datagram to a filtered socket with an abstract name.
fn doorbell() -> io::Result<String> {
    let name = SocketAddr::from_abstract_name(format!("culvert-doctor-{}", std::process::id()))?;
    let bell = UnixDatagram::bind_addr(&name)?;
    // BPF_RET | BPF_K: takes the whole of every datagram.
    let mut all = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: u32::MAX };
    let program = libc::sock_fprog { len: 1, filter: &raw mut all };
    let size = size_of_val(&program) as libc::socklen_t;
    // SAFETY: the kernel reads one sock_fprog and the instruction that it points to, both locals.
    checked(unsafe {
        let (level, option) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
        libc::setsockopt(bell.as_raw_fd(), level, option, (&raw const program).cast(), size)
    })?;
    bell.set_nonblocking(true)?;
    UnixDatagram::unbound()?.send_to_addr(b"ding", &name)?;
    match bell.recv(&mut [0; 8])? {
        4 => Ok("a filtered datagram socket".into()),
        n => Err(io::Error::other(format!("4 bytes were sent to a socket of our own, {n} came"))),
    }
}

fn loopback_pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    Ok((client, listener.accept()?.0))
}

fn socket_diagnostics() -> io::Result<String> {
    let (client, server) = loopback_pair()?;
    let found = netdiag::exact(server.peer_addr()?, client.peer_addr()?)?;
    let found = found.ok_or_else(|| io::Error::other("the kernel does not find our own connection"))?;
    // SAFETY: takes no arguments and cannot fail.
    let uid = unsafe { libc::geteuid() };
    if found.uid != uid || found.cookie != Some(cookie(&client)?) {
        return Err(io::Error::other("the kernel does not know whose our own connection is"));
    }
    Ok("NETLINK_SOCK_DIAG names the owner of the other end".into())
}

fn cookie(s: &TcpStream) -> io::Result<u64> {
    let mut cookie = 0u64;
    option(s, libc::SOL_SOCKET, libc::SO_COOKIE, &mut cookie)?;
    Ok(cookie)
}

fn option<T>(s: &TcpStream, level: i32, name: i32, value: &mut T) -> io::Result<()> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is valid for `len` bytes. Callers pass integers and integer structures.
    checked(unsafe { libc::getsockopt(s.as_raw_fd(), level, name, std::ptr::from_mut(value).cast(), &mut len) })
        .map(drop)
}

fn socket_state() -> io::Result<String> {
    let (client, _server) = loopback_pair()?;
    if cookie(&client)? == 0 {
        return Err(io::Error::other("SO_COOKIE is 0"));
    }
    // tcpi_bytes_received is the 17th 64-bit word of struct tcp_info (linux/tcp.h).
    let mut info = [0u64; 32];
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: `info` is valid for `len` bytes.
    checked(unsafe {
        libc::getsockopt(client.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &mut len)
    })?;
    if len < 136 {
        return Err(io::Error::other("TCP_INFO does not count bytes"));
    }
    Ok("SO_COOKIE, TCP_INFO with byte counts".into())
}

fn shared_memory() -> Vec<Check> {
    let directory = std::env::var_os("CULVERT_DIR").unwrap_or("/dev/shm".into());
    let directory = Path::new(&directory);
    let mut checks = vec![probe_directory(directory)];
    // SAFETY: takes no arguments and cannot fail.
    let uid = unsafe { libc::geteuid() };
    let netns = std::fs::metadata("/proc/self/ns/net").map(|m| m.ino()).unwrap_or(0);
    let registry = directory.join(format!("culvert-{uid}-{netns}"));
    checks.push(match std::fs::symlink_metadata(&registry) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            ok("registry", format!("{} does not exist yet", registry.display()))
        }
        Err(e) => fail("registry", format!("{}: {e}", registry.display()), "make it accessible"),
        Ok(m) if !m.is_file() || !program::owned_by_caller(&m) || m.mode() & 0o022 != 0 => fail(
            "registry",
            format!(
                "{} is not a regular file that only its user can write (owner {}, mode {:o})",
                registry.display(),
                m.uid(),
                m.mode()
            ),
            "somebody else made it: remove it",
        ),
        Ok(m) => ok("registry", format!("{}, {} bytes", registry.display(), m.len())),
    });
    checks
}

/// Creates an unnamed file there: what a named one would need, without leaving a trace.
fn probe_directory(directory: &Path) -> Check {
    use std::os::unix::fs::OpenOptionsExt;
    const NAME: &str = "shared memory";
    let remedy = match std::env::var_os("CULVERT_DIR") {
        Some(_) => "CULVERT_DIR must name a directory that exists and that this user may write",
        None => "mount -t tmpfs tmpfs /dev/shm (in a container: --shm-size or a tmpfs volume)",
    };
    let file = std::fs::File::options().write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(directory);
    let file = match file {
        Ok(f) => f,
        Err(e) => return fail(NAME, format!("{}: {e}", directory.display()), remedy),
    };
    // SAFETY: plain data, and all zeros is a valid value.
    let mut fs: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `fs` outlives the call.
    if unsafe { libc::fstatvfs(file.as_raw_fd(), &mut fs) } != 0 {
        return warn(NAME, format!("{}: {}", directory.display(), io::Error::last_os_error()), remedy);
    }
    let free = fs.f_bavail * fs.f_frsize;
    match free >> 20 {
        0 => fail(NAME, format!("{} is full", directory.display()), "free some space in it"),
        mib => ok(NAME, format!("{} is writable, {mib} MiB free", directory.display())),
    }
}

fn soft_limit(resource: libc::__rlimit_resource_t) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives the call.
    let failed = unsafe { libc::getrlimit(resource, &mut limit) } != 0;
    (!failed && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

fn limits() -> Vec<Check> {
    // The library's family memory, a few channels, and room for the program itself.
    const ADDRESS_SPACE: u64 = 1 << 30;
    const FEW_DESCRIPTORS: u64 = 256;
    let mut checks = vec![match soft_limit(libc::RLIMIT_NOFILE) {
        Some(n) if n < FEW_DESCRIPTORS => {
            warn("descriptors", format!("RLIMIT_NOFILE is {n}: few doorbells"), "ulimit -n 1024 or more")
        }
        n => ok("descriptors", format!("RLIMIT_NOFILE is {}", n.map_or("unlimited".into(), |n| n.to_string()))),
    }];
    if let Some(n) = soft_limit(libc::RLIMIT_AS).filter(|n| *n < ADDRESS_SPACE) {
        checks.push(warn(
            "address space",
            format!("RLIMIT_AS is {} MiB: rings may not fit", n >> 20),
            "ulimit -v unlimited, or a smaller CULVERT_RING",
        ));
    }
    // setrlimit(2): RLIMIT_FSIZE bounds ftruncate, of a memfd as well.
    if let Some(n) = soft_limit(libc::RLIMIT_FSIZE).filter(|n| *n < shmring::family::FAMILY_LEN as u64) {
        checks.push(fail(
            "file size",
            format!("RLIMIT_FSIZE is {n}: shared memory cannot be made"),
            "ulimit -f unlimited",
        ));
    }
    checks.push(memory_limit());
    checks
}

/// The tightest limit of the control groups that this process is in; v2 and v1.
fn memory_limit() -> Check {
    const TIGHT: u64 = 64 << 20;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let files = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        match controllers {
            "" => Some(Path::new("/sys/fs/cgroup").join(path).join("memory.max")),
            c if c.split(',').any(|c| c == "memory") => {
                Some(Path::new("/sys/fs/cgroup/memory").join(path).join("memory.limit_in_bytes"))
            }
            _ => None,
        }
    });
    let limit = files.filter_map(|f| std::fs::read_to_string(f).ok()?.trim().parse::<u64>().ok()).min();
    match limit {
        // v1 says "no limit" with a number near 2^63.
        Some(n) if n < TIGHT => warn(
            "memory",
            format!("the control group allows {} MiB", n >> 20),
            "a larger limit, or a smaller CULVERT_RING",
        ),
        Some(n) if n < 1 << 60 => ok("memory", format!("the control group allows {} MiB", n >> 20)),
        _ => ok("memory", "no limit"),
    }
}

fn seccomp() -> Check {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    match status.lines().find_map(|l| l.strip_prefix("Seccomp:")).map(str::trim) {
        Some("0") => ok("seccomp", "no filter"),
        Some(_) => ok("seccomp", "a filter is active; it allows what was tried above"),
        None => ok("seccomp", "not built into this kernel"),
    }
}

fn processors() -> Check {
    match std::thread::available_parallelism().map_or(1, |n| n.get()) {
        1 => warn(
            "processors",
            "one: spinning is off, both ends share it",
            "two or more processors, if the affinity mask or the container hides some",
        ),
        n => ok("processors", format!("{n}: a waiter may spin while its peer works")),
    }
}

/// Who carries connections to other hosts. `wanted`: they are to go that way.
fn zstackd(served: Result<Served, Unserved>, wanted: bool) -> Check {
    const NAME: &str = "zstackd";
    let served = match served {
        Ok(served) if !served.is_ready() => {
            return warn(NAME, serving::text(Unserved::Begins), serving::remedy(Unserved::Begins));
        }
        Ok(served) => served,
        // Most machines have none, and need none.
        Err(Unserved::Nobody) if !wanted => {
            let detail = "none serves this network namespace: connections to other hosts stay on the kernel";
            let remedy = Some(serving::remedy(Unserved::Nobody).into());
            return Check { remedy, ..ok(NAME, detail) };
        }
        Err(why) => {
            let text = format!("{}: connections to other hosts stay on the kernel", serving::text(why));
            return warn(NAME, text, serving::remedy(why));
        }
    };
    let name = served.control().unwrap_or_default();
    let prefixes = serving::prefixes(&served);
    match zstack_control::ask(name, served.owner) {
        Ok(all) => {
            ok(NAME, format!("one serves this network namespace, for {prefixes}; it carries {} connections", all.len()))
        }
        Err(e) => warn(
            NAME,
            format!("one serves this network namespace, for {prefixes}, but {e}"),
            "its log says more; stop it and start it again if it hangs",
        ),
    }
}

fn environment(vars: impl Iterator<Item = (String, String)>) -> Vec<Check> {
    const NAME: &str = "environment";
    let mut all = Vec::new();
    for (key, value) in vars.filter(|(k, _)| k.starts_with("CULVERT_")) {
        all.push(match settings::complaint(&key, &value) {
            Some(e) => fail(NAME, format!("{key}={value}: {e}"), format!("unset {key}")),
            None if !settings::VARIABLES.contains(&&*key) => {
                warn(NAME, format!("{key} means nothing to this version"), format!("unset {key}"))
            }
            None if key == "CULVERT_PATH" && value == "kernel" => {
                fail(NAME, "CULVERT_PATH=kernel keeps everything on the kernel", "unset CULVERT_PATH")
            }
            None => ok(NAME, format!("{key}={value}")),
        });
    }
    if all.is_empty() {
        all.push(ok(NAME, "no CULVERT_ variable is set"));
    }
    all
}

/// Runs both ends of a connection in one process under the library, and asks `stat` what became of it.
fn self_test(library: &Path) -> Check {
    const NAME: &str = "self-test";
    let remedy = "CULVERT_LOG=debug culvert run -- PROGRAM says more";
    let env = run::environment(std::env::vars_os().collect(), library, Vec::new());
    let child = Command::new("/proc/self/exe")
        .args(["workload", "self-test"])
        .env_clear()
        .envs(env)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let output = match child.and_then(|c| with_deadline(c, 10)) {
        Ok(o) => o,
        Err(e) => return fail(NAME, format!("could not be run: {e}"), remedy),
    };
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let process = &answer["process"];
    let ends = process["connections"].as_array().map_or(&[][..], |a| a);
    let on = ends.iter().filter(|c| c["path"] == "shm").count();
    if !output.status.success() {
        fail(NAME, format!("a program under the library failed ({}): {said}", output.status), remedy)
    } else if process.is_null() {
        fail(
            NAME,
            format!("the library was not loaded: {said}"),
            "check that the file is readable and built for this machine",
        )
    } else if let Some(text) = process["disabled_text"].as_str().or(process["error"].as_str()) {
        fail(NAME, format!("the library is loaded but stays on the kernel: {text} {said}"), remedy)
    } else if on == 2 && ends.len() == 2 {
        ok(NAME, "a loopback connection under the library went through shared memory")
    } else {
        let why = ends.iter().find_map(|c| c["reason_text"].as_str()).unwrap_or("no reason given");
        fail(NAME, format!("a loopback connection under the library stayed on the kernel: {why} {said}"), remedy)
    }
}

/// Waits for `child`, but no longer than `seconds`; then kills it.
fn with_deadline(child: std::process::Child, seconds: i32) -> io::Result<std::process::Output> {
    // SAFETY: the child has not been waited for, so its id is still its own.
    let fd = checked(unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) } as i32)?;
    let fd = own(fd);
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd. Its output is far below a pipe's capacity, so it cannot block on us.
    let ready = unsafe { libc::poll(&mut poll, 1, seconds * 1000) };
    let mut child = child;
    if ready != 1 {
        child.kill()?;
        child.wait()?;
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("it hung for {seconds} s")));
    }
    child.wait_with_output()
}

fn inspect(name: &OsString, args: &[OsString], library: &Path) -> Vec<Check> {
    let found = program::resolve(name, std::env::var_os("PATH").as_deref()).and_then(|p| program::check(&p, args));
    let program = match found {
        Ok(p) => p,
        Err(e) => return vec![fail("program", e.to_string(), "a dynamically linked, unprivileged build of it")],
    };
    let mut checks = vec![ok("program", describe(&program))];
    if program.image.go {
        checks.push(fail(
            "program",
            "a Go program: its network calls do not go through libc, only those of C code in it do",
            "none; it runs unchanged",
        ));
    }
    checks.push(imports(&program, library));
    checks
}

fn describe(p: &Program) -> String {
    match p.path == p.binary {
        true => format!("{} is dynamically linked with glibc", p.path.display()),
        false => {
            format!("{} is run by {}, which is dynamically linked with glibc", p.path.display(), p.binary.display())
        }
    }
}

/// Which of the functions that the library interposes does the program, or a library of it, call?
fn imports(program: &Program, library: &Path) -> Check {
    const NAME: &str = "calls";
    let offered = elf::read(library).map(|i| i.exports).unwrap_or_default();
    let mut lines = Vec::new();
    let mut names_a_socket_call = false;
    for (file, imports) in objects(program) {
        let mut used: Vec<_> = imports.into_iter().filter(|i| offered.contains(i)).collect();
        used.sort();
        used.dedup();
        names_a_socket_call |= used.iter().any(|u| ["connect", "accept", "accept4", "socket"].contains(&&**u));
        if !used.is_empty() {
            lines.push(visible(&format!("{file}: {}", used.join(" "))));
        }
    }
    let check = match names_a_socket_call {
        true => ok(NAME, ""),
        false => {
            lines.insert(0, String::new());
            warn(
                NAME,
                "neither it nor its libraries open TCP connections through libc",
                "nothing to do if it loads its network code later (plugins, interpreters)",
            )
        }
    };
    // What the lines say is visible already.
    Check { detail: check.detail.clone() + &lines.join(&format!("\n{:27}", "")), ..check }
}

/// The program and the libraries that the dynamic linker would load for it, libc aside.
fn objects(program: &Program) -> Vec<(String, Vec<String>)> {
    let mut all = vec![(file_name(&program.binary), program.image.imports.clone())];
    let Some(linker) = &program.image.interpreter else { return all };
    // `ld.so --list` resolves the libraries without running anything of the program.
    let listed =
        Command::new(linker).arg("--list").arg(&program.binary).env_remove("LD_PRELOAD").stderr(Stdio::null()).output();
    let listed = listed.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    for path in listed.lines().filter_map(|l| l.split_once(" => ")?.1.split_whitespace().next()).map(Path::new) {
        let name = file_name(path);
        if !name.starts_with("libc.so") && path.is_file() {
            all.extend(elf::read(path).ok().map(|i| (name, i.imports)));
        }
    }
    all
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_what_the_kernel_checks_ask_for() {
        for c in kernel() {
            assert_eq!(c.verdict, Verdict::Ok, "{c:?}");
        }
    }

    #[test]
    fn wrong_settings_fail_and_unknown_ones_warn() {
        let of = |k: &str, v: &str| environment([(k.to_string(), v.to_string())].into_iter())[0].verdict;
        assert_eq!(of("CULVERT_PATH", "zstack"), Verdict::Ok);
        assert_eq!(of("CULVERT_PATH", "zstackd"), Verdict::Fail);
        assert_eq!(of("CULVERT_PATH", "kernel"), Verdict::Fail);
        assert_eq!(of("CULVERT_PATH", "shm"), Verdict::Ok);
        assert_eq!(of("CULVERT_SPIN", "often"), Verdict::Fail);
        assert_eq!(of("CULVERT_SPEED", "high"), Verdict::Warn);
    }

    #[test]
    fn what_a_user_named_is_said_without_what_a_terminal_obeys() {
        let c = &environment([("CULVERT_PATH".to_string(), "x\nok    registry\x1b[2J".to_string())].into_iter())[0];
        assert!(c.detail.starts_with("CULVERT_PATH=x?ok    registry?[2J: "), "{c:?}");
        let said = text(&[], true, Some(&OsString::from("a\nb\x1b]0;c\x07")));
        assert!(said.contains("a?b?]0;c?:"), "{said}");
    }

    #[test]
    fn who_does_not_serve_is_said_with_the_remedy() {
        let c = zstackd(Err(Unserved::Nobody), false);
        assert!(c.verdict == Verdict::Ok && c.remedy.as_deref().unwrap().contains("culvert zstackd"), "{c:?}");
        for (why, wanted) in [(Unserved::Nobody, true), (Unserved::Gone, false), (Unserved::Stranger(7), false)] {
            let c = zstackd(Err(why), wanted);
            assert!(c.verdict == Verdict::Warn && c.remedy.is_some() && c.detail.contains("on the kernel"), "{c:?}");
        }
        // One that serves, and does not answer.
        let text = "zstackd 1\ncontrol @culvert-doctor-test-nobody\nserves 10.0.0.0/8\n";
        let c = zstackd(Ok(Served::read(0, text.as_bytes())), false);
        assert!(c.verdict == Verdict::Warn && c.detail.contains("not ready"), "{c:?}");
        let c = zstackd(Ok(Served::read(0, format!("{text}ready\n").as_bytes())), false);
        assert!(c.verdict == Verdict::Warn && c.detail.contains("10.0.0.0/8, but nobody answers"), "{c:?}");
    }

    #[test]
    fn a_missing_directory_fails() {
        assert_eq!(probe_directory(Path::new("/nonexistent")).verdict, Verdict::Fail);
    }

    #[test]
    fn the_linker_lists_a_programs_libraries() {
        let sh = program::check(Path::new("/bin/sh"), &[]).unwrap();
        assert!(objects(&sh)[0].1.iter().any(|i| i == "read" || i == "dup2"));
        let me = program::check(&std::env::current_exe().unwrap(), &[]).unwrap();
        assert!(objects(&me).iter().any(|(name, _)| name.starts_with("libgcc_s")));
    }
}
