//! A network namespace of the calling thread's, control groups for clients and for the middlebox (this process), and servers.
#![allow(dead_code)]
// Unsafe here: an option that no crate asks for.
#![allow(unsafe_code)]

pub mod remote;
pub mod steer;

use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

/// Addresses of a server, which has nothing to do with the middlebox.
pub const SERVER4: &str = "10.66.0.9";
pub const SERVER6: &str = "fd66::9";
/// Where the middlebox listens.
pub const BOX: u16 = 15001;

pub fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: it takes root");
    }
    root
}

pub fn run(text: &str) {
    let mut words = text.split_whitespace();
    let out = Command::new(words.next().expect("a command")).args(words).stdin(Stdio::null()).output().expect(text);
    assert!(out.status.success(), "{text}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A process is in one group at a time, and so are all threads of this one.
static ALONE: Mutex<()> = Mutex::new(());

pub struct Host {
    place: PathBuf,
    name: String,
    before: String,
    _alone: MutexGuard<'static, ()>,
}

impl Host {
    pub fn new() -> Host {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        run("ip link set lo up");
        run(&format!("ip addr add {SERVER4}/32 dev lo"));
        run(&format!("ip addr add {SERVER6}/128 dev lo nodad"));
        let own = fs::read_to_string("/proc/self/cgroup").expect("this process's group");
        let before = own.lines().find_map(|l| l.strip_prefix("0::")).expect("a group of version 2").to_owned();
        let name = format!("/culvert-redirect-{}", std::process::id());
        let place = culvert_redirect::root().expect("the groups").join(&name[1..]);
        fs::create_dir_all(place.join("apps/inner")).expect("a group");
        fs::create_dir_all(place.join("box")).expect("a group");
        let host = Host { place, name, before, _alone: alone };
        enter(&host.place.join("box"));
        host
    }

    pub fn clients(&self) -> String {
        format!("{}/apps", self.name)
    }

    pub fn middlebox(&self) -> String {
        format!("{}/box", self.name)
    }

    /// Runs a program among the clients.
    pub fn client(&self, words: &[&str]) -> Output {
        let group = self.place.join("apps/inner/cgroup.procs");
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "30"]).args(words).stdin(Stdio::null());
        // SAFETY: it opens and writes a file, between fork and exec.
        unsafe { command.pre_exec(move || fs::write(&group, "0")) };
        command.output().expect("a client")
    }

    /// What a client prints.
    pub fn says(&self, words: &[&str]) -> String {
        let out = self.client(words);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        format!("{text}{}", String::from_utf8_lossy(&out.stderr)).trim_end().to_owned()
    }
}

fn enter(group: &Path) {
    fs::write(group.join("cgroup.procs"), "0").unwrap_or_else(|e| panic!("{}: {e}", group.display()));
}

impl Drop for Host {
    fn drop(&mut self) {
        enter(&culvert_redirect::root().expect("the groups").join(self.before.trim_start_matches('/')));
        // A client's process may end a moment later than it is waited for.
        for group in ["apps/inner", "apps", "box", ""] {
            while fs::remove_dir(self.place.join(group)).is_err_and(|e| e.raw_os_error() == Some(libc::EBUSY)) {
                thread::yield_now();
            }
        }
    }
}

/// What netfilter's SO_ORIGINAL_DST says of a socket.
pub fn original(stream: &TcpStream) -> Option<SocketAddr> {
    let six = stream.local_addr().expect("an address").is_ipv6();
    let level = if six { libc::IPPROTO_IPV6 } else { libc::IPPROTO_IP };
    let mut name = MaybeUninit::<libc::sockaddr_in6>::zeroed();
    let mut len = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
    // SAFETY: `name` has room for `len` bytes, and is initialised.
    let name = unsafe {
        if libc::getsockopt(stream.as_raw_fd(), level, 80, name.as_mut_ptr().cast(), &mut len) != 0 {
            return None;
        }
        name.assume_init()
    };
    let port = u16::from_be(name.sin6_port);
    if six {
        assert_eq!((name.sin6_family, len), (libc::AF_INET6 as u16, 28));
        return Some(SocketAddr::new(Ipv6Addr::from(name.sin6_addr.s6_addr).into(), port));
    }
    assert_eq!((name.sin6_family, len), (libc::AF_INET as u16, 16));
    Some(SocketAddr::new(IpAddr::from(name.sin6_flowinfo.to_ne_bytes()), port))
}

/// A listener whose connections are answered, each by a thread: with a line, then with what has come until the end, or the end of a
/// request of HTTP. Dropped, it listens no more.
pub struct Server {
    addresses: Vec<SocketAddr>,
    threads: Vec<thread::JoinHandle<()>>,
    over: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Server {
    pub fn new(addresses: &[(&str, u16)], line: fn(&TcpStream) -> String) -> Server {
        Server::with(addresses, line, |_| ())
    }

    /// One whose connections keep the addresses that they are for.
    pub fn transparent(addresses: &[(&str, u16)], line: fn(&TcpStream) -> String) -> Server {
        Server::with(addresses, line, |listener| culvert_redirect::relay::transparent(listener).expect("transparent"))
    }

    fn with(addresses: &[(&str, u16)], line: fn(&TcpStream) -> String, prepare: fn(&TcpListener)) -> Server {
        let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (mut threads, mut all) = (Vec::new(), Vec::new());
        for (ip, port) in addresses {
            let listener = TcpListener::bind((*ip, *port)).expect("a listener");
            prepare(&listener);
            all.push(listener.local_addr().expect("an address"));
            let over = over.clone();
            threads.push(thread::spawn(move || {
                for stream in listener.incoming() {
                    if over.load(std::sync::atomic::Ordering::Acquire) {
                        return;
                    }
                    let stream = stream.expect("a connection");
                    thread::spawn(move || answer(stream, line));
                }
            }));
        }
        Server { addresses: all, threads, over }
    }
}

fn answer(mut stream: TcpStream, line: fn(&TcpStream) -> String) {
    let mut came = Vec::new();
    let mut part = [0; 65536];
    while !(came.starts_with(b"GET ") && came.ends_with(b"\r\n\r\n")) {
        match stream.read(&mut part) {
            Ok(0) | Err(_) => break,
            Ok(n) => came.extend_from_slice(&part[..n]),
        }
    }
    if came.starts_with(b"GET ") {
        let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n");
    }
    // A client may be gone.
    let _ = stream.write_all(format!("{}\n", line(&stream)).as_bytes());
    if !came.starts_with(b"GET ") {
        let _ = stream.write_all(&came);
    }
    let _ = stream.shutdown(Shutdown::Write);
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, std::sync::atomic::Ordering::Release);
        for address in &self.addresses {
            let _ = TcpStream::connect(address);
        }
        self.threads.drain(..).for_each(|thread| thread.join().expect("a server"));
    }
}

/// A middlebox's program, in the middlebox's group; killed when it is dropped.
pub struct Middlebox(std::process::Child);

impl Middlebox {
    /// Returns when the program has printed a line.
    pub fn new(words: &[&str]) -> Middlebox {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{words:?}: {e}"));
        let mut line = String::new();
        let out = child.stdout.take().expect("its output");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).expect("a line");
        assert!(!line.is_empty(), "{words:?}");
        Middlebox(child)
    }
}

impl Middlebox {
    /// Returns when the program listens on this port of IPv4.
    pub fn listening(words: &[&str], port: u16) -> Middlebox {
        let child = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let mut program = Middlebox(child.unwrap_or_else(|e| panic!("{words:?}: {e}")));
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(program.0.try_wait().expect("its state").is_none(), "{words:?} has ended");
            thread::yield_now();
        }
        program
    }
}

impl Middlebox {
    /// It, and all processes that it has begun.
    pub fn kill_with_children(self) {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.0.id())).expect("its children");
        drop(self);
        for child in children.split_whitespace() {
            run(&format!("kill -KILL {child}"));
            while fs::read_to_string(format!("/proc/{child}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
                thread::yield_now();
            }
        }
    }
}

impl Drop for Middlebox {
    fn drop(&mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("its end");
    }
}

/// The middlebox: says where its client wanted to go, and who that is to it.
pub fn middlebox() -> Server {
    Server::new(&[("127.0.0.1", BOX), ("::1", BOX)], |stream| {
        // By netfilter's way, by the crate, and by culvert.h.
        let asked = original(stream).map_or("nothing".into(), |address| address.to_string());
        let own = stream.local_addr().expect("an address").to_string();
        let by_crate = culvert::asked(stream).expect("an address").to_string();
        assert_eq!(by_crate, if asked == "nothing" { &own[..] } else { &asked });
        let c = Command::new(compiled("asked.c"))
            .stdin(std::os::fd::OwnedFd::from(stream.try_clone().expect("a copy")))
            .output();
        assert_eq!(String::from_utf8_lossy(&c.expect("a program").stdout), by_crate);
        format!("box asked {asked}")
    })
}

/// The server that clients ask for.
pub fn server() -> Server {
    Server::new(&[(SERVER4, 80), (SERVER6, 80)], |_| "server".into())
}

/// A static program of musl, for which no library can be loaded, from a file in this directory.
pub fn compiled(name: &str) -> PathBuf {
    static DONE: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name.trim_end_matches(".c"));
    if !done.iter().any(|other| other == name) {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut compiler = Command::new("musl-gcc");
        compiler
            .args(["-static", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-I"])
            .arg(here.join("../../api/include"));
        // Another process of these tests may be about to run it.
        let new = out.with_extension(std::process::id().to_string());
        compiler.arg("-o").arg(&new).arg(here.join("tests").join(name));
        assert!(compiler.status().expect("musl-gcc (apt-get install musl-tools)").success(), "{name}");
        std::fs::rename(&new, &out).expect("the program in its place");
        done.push(name.to_owned());
    }
    out
}
