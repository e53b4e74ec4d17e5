//! What programs write goes to the wire from where they wrote it, and all of it once, whatever a program does with its connection while
//! megabytes are on their way: the remote host, which reads nothing until then, has each byte in its place.

// FIONREAD.
#![allow(unsafe_code)]

#[path = "../../port/tests/lab/mod.rs"]
mod lab;
mod world;

use lab::{Process, bounded, noise, soon};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::process::Stdio;
use world::{LIMIT, THERE, World, at, listen, open_to_all};

/// Connects, and comes to the ring; sends a file until there is no room; says how much that was; does what it was told to; sends the rest.
const SENDER: &str = "
import array, errno, fcntl, os, socket, sys, termios
address, name, what = sys.argv[1:4]
data = open(name, 'rb').read()
def say(*words):
    print(*words, flush=True)
def opened():
    s = socket.create_connection((address, 80))
    for _ in range(20):
        s.sendall(b'x')
        s.recv(1)
    return s
def fill(s):
    n = 0
    s.setblocking(False)
    try:
        while n < len(data):
            n += s.send(data[n:n + 100_000])
    except BlockingIOError:
        pass
    s.setblocking(True)
    return n
def left(s):
    count = array.array('i', [0])
    fcntl.ioctl(s, termios.TIOCOUTQ, count)
    return count[0]
def ordered():
    return sys.stdin.readline().strip()
if what.startswith('resumed'):
    s, n = socket.socket(fileno=int(what.split()[1])), int(what.split()[2])
else:
    s = opened()
    n = fill(s)
    say(n)
while what == 'asked' and ordered() != 'go on':
    say(left(s))
if what == 'forked' and os.fork() != 0:
    s.close()
    os.wait()
    sys.exit()
if what == 'executed':
    s.set_inheritable(True)
    os.execv(sys.executable, [sys.executable, '-c', sys.argv[4], address, name, f'resumed {s.fileno()} {n}'])
if what == 'passed':
    a, b = socket.socketpair()
    socket.send_fds(a, [b'x'], [s.fileno()])
    _, fds, _, _ = socket.recv_fds(b, 9, 1)
    s.close()
    s = socket.socket(fileno=fds[0])
if what == 'closed':
    s.close()
    for i in range(1, 5):
        s = opened()
        data = data[1 << 20:]
        say(fill(s))
        s.close()
    ordered()
    sys.exit()
if what == 'killed':
    ordered()
if what == 'cut':
    ordered()
    try:
        while True:
            s.sendall(data)
    except OSError as e:
        say(errno.errorcode[e.errno])
    say(len(s.recv(9)))
    sys.exit()
say('moved')
s.sendall(data[n:])
s.shutdown(socket.SHUT_WR)
s.recv(1)
";

/// More than a ring holds.
const SIZE: usize = 6 << 20;

/// The program's file.
struct File(std::path::PathBuf);

impl File {
    fn new(name: &str, bytes: &[u8]) -> File {
        let path = std::env::temp_dir().join(format!("zstackd-lent-{name}-{}", std::process::id()));
        std::fs::write(&path, bytes).expect("a file");
        File(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A sender that says something.
struct Sender {
    process: Process,
    lines: BufReader<std::process::ChildStdout>,
}

impl Sender {
    fn start(world: &World, user: Option<u32>, file: &File, what: &str) -> Sender {
        let mut command = match user {
            Some(user) => world.run_here_as(user, "python3.11"),
            None => world.run_here("python3.11"),
        };
        command.args(["-c", SENDER, THERE[0]]).arg(&file.0).args([what, SENDER]);
        let mut process = Process::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let lines = BufReader::new(process.0.stdout.take().expect("a pipe"));
        Sender { process, lines }
    }

    fn says(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line");
        line.trim().into()
    }

    fn number(&mut self) -> usize {
        self.says().parse().expect("a number")
    }

    /// It has succeeded.
    fn ends(self, of: &str) {
        let (status, _) = self.process.finish(LIMIT);
        assert!(status.success(), "{of}: {status}");
    }

    fn tell(&mut self, order: &str) {
        writeln!(self.process.0.stdin.as_mut().expect("a pipe"), "{order}").expect("told");
    }
}

/// Answers the first bytes of a connection.
fn greet(far: &mut TcpStream) {
    far.set_read_timeout(Some(LIMIT)).expect("a timeout");
    far.set_nodelay(true).expect("an option");
    for _ in 0..20 {
        far.read_exact(&mut [0]).expect("a byte");
        far.write_all(b"y").expect("written");
    }
}

/// Reads to the end, and compares.
fn receives(far: &mut TcpStream, expected: &[u8], of: &str) {
    let mut got = vec![];
    far.read_to_end(&mut got).expect("its end");
    let first = got.iter().zip(expected).position(|(a, b)| a != b);
    assert!(got == expected, "{of}: {} of {} bytes, the first wrong one: {first:?}", got.len(), expected.len());
}

fn queued(far: &TcpStream) -> usize {
    let mut count = 0i32;
    // SAFETY: FIONREAD writes one int.
    assert_eq!(unsafe { libc::ioctl(far.as_raw_fd(), libc::FIONREAD, &raw mut count) }, 0);
    count as usize
}

/// Bytes that zstackd says it has copied on the way out.
fn copied(world: &World) -> u64 {
    let text = world.stat();
    let of = |line: &str| line.split("copied ").nth(1)?.split(" in, ").nth(1)?.split(' ').next()?.parse::<u64>().ok();
    text.lines().find_map(of).unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn what_programs_write_comes_once_whatever_they_do_meanwhile() {
    need_root!();
    bounded(LIMIT, || {
        open_to_all();
        let data = noise(5, SIZE);
        let file = File::new("data", &data);
        let world = World::culvert();
        let listener = listen(&world.there, at(THERE[0], 80));
        for user in [None, Some(65_534)] {
            // His rings are small.
            let all =
                if user.is_some() { &["sent", "executed"][..] } else { &["sent", "forked", "executed", "passed"] };
            for what in all {
                let of = format!("{what}, user {user:?}");
                let mut sender = Sender::start(&world, user, &file, what);
                let (mut far, _) = listener.accept().expect("a connection");
                greet(&mut far);
                let n = sender.number();
                assert!(n > 100_000, "{of}: {n}");
                assert_eq!(sender.says(), "moved", "{of}");
                receives(&mut far, &data, &of);
                drop(far);
                sender.ends(&of);
            }
        }
    });
}

/// Where more may be on its way than is commonly referenced, and the remote host reads late: nothing is left out.
#[test]
fn all_that_a_large_buffer_takes_comes() {
    need_root!();
    bounded(LIMIT, || {
        let data = noise(8, SIZE);
        let file = File::new("large", &data);
        let world = World::culvert_with("buffer = 2097152");
        let listener = listen(&world.there, at(THERE[0], 80));
        let mut sender = Sender::start(&world, None, &file, "asked");
        let (mut far, _) = listener.accept().expect("a connection");
        greet(&mut far);
        let n = sender.number();
        // A ring of the largest size.
        assert!(n > 2 << 20, "{n}");
        soon("much is on its way", LIMIT, || lent(&world).filter(|lent| *lent > 3 << 19));
        sender.tell("go on");
        assert_eq!(sender.says(), "moved");
        receives(&mut far, &data, "a large buffer");
        drop(far);
        sender.ends("the sender");
    });
}

/// A program that is killed, and one that closes and opens others, while the remote host has acknowledged little of what it wrote: all of it
/// comes, and none of what other connections have in the same places.
#[test]
fn what_was_written_outlives_its_connection() {
    need_root!();
    bounded(LIMIT, || {
        open_to_all();
        let data = noise(6, SIZE);
        let file = File::new("left", &data);
        let world = World::culvert();
        let listener = listen(&world.there, at(THERE[0], 80));
        for user in [None, Some(65_534)] {
            for what in ["killed", "closed"] {
                let mut sender = Sender::start(&world, user, &file, what);
                let mut all = vec![];
                for _ in 0..if what == "closed" { 5 } else { 1 } {
                    let (mut far, _) = listener.accept().expect("a connection");
                    greet(&mut far);
                    all.push((far, sender.number()));
                }
                if what == "killed" {
                    sender.process.0.kill().expect("killed");
                }
                if user.is_some() {
                    // All of what his small rings have is on its way. They get their memory back, though nobody has acknowledged it.
                    soon("zstackd has nothing of the rings any more", LIMIT, || {
                        let details = world.details();
                        let gone = !details.contains("program_ended: false") && !details.contains("holds: true");
                        (gone && details.contains("program_ended: true")).then_some(())
                    });
                }
                for (i, (far, n)) in all.iter_mut().enumerate() {
                    // Each has sent other bytes, in the same places.
                    receives(far, &data[i << 20..][..*n], &format!("{what}, user {user:?}, connection {i}"));
                }
                if what == "closed" {
                    sender.tell("end");
                    sender.ends("the sender");
                }
            }
        }
        // Nothing is left of them.
        soon("zstackd has closed what it had", LIMIT, || {
            let details = world.details();
            (!details.contains("stage: Open")).then_some(())
        });
    });
}

/// What is retransmitted lies where the program wrote it, and nothing else was written there meanwhile, though its ring goes round many times.
#[test]
fn what_is_lost_on_the_wire_is_sent_again_from_where_it_was_written() {
    need_root!();
    bounded(LIMIT, || {
        open_to_all();
        let data = noise(9, SIZE);
        let file = File::new("lost", &data);
        let world = World::culvert();
        let listener = listen(&world.there, at(THERE[0], 80));
        let chain = |hook: &str, port: &str| {
            let rule = format!("tcp {port} 80 numgen random mod 1000 < 15 counter drop");
            format!("chain {hook} {{\ntype filter hook {hook} priority 0;\n{rule}\n}}\n")
        };
        // Small rings go round most often; what lies in a large one is another connection's when it is sent again.
        for (user, what) in [(Some(65_534), "sent"), (None, "closed")] {
            let mut sender = Sender::start(&world, user, &file, what);
            let mut all = vec![];
            for _ in 0..if what == "closed" { 5 } else { 1 } {
                let (mut far, _) = listener.accept().expect("a connection");
                greet(&mut far);
                if all.is_empty() {
                    let chains = chain("input", "dport") + &chain("output", "sport");
                    world.there.nft(&format!("table inet lossy {{\n{chains}}}\n"));
                }
                all.push((far, sender.number()));
            }
            if what == "sent" {
                assert_eq!(sender.says(), "moved");
            }
            for (i, (far, n)) in all.iter_mut().enumerate() {
                let expected = if what == "sent" { &data[..] } else { &data[i << 20..][..*n] };
                receives(far, expected, &format!("{what}, user {user:?}, connection {i}"));
            }
            let rules = world.there.run("nft list table inet lossy");
            world.there.run("nft delete table inet lossy");
            let counts = rules.split("packets ").skip(1).map(|rest| rest.split(' ').next()?.parse::<u64>().ok());
            let lost: Vec<u64> = counts.map(|n| n.expect("a number")).collect();
            assert!(lost.len() == 2 && lost[0] > 0, "nothing was lost: {rules}");
            drop(all);
            if what == "closed" {
                sender.tell("end");
            }
            sender.ends(&format!("{what}, user {user:?}"));
        }
    });
}

/// Bytes of the rings that zstackd has lent to the wire, and not given back.
fn lent(world: &World) -> Option<u64> {
    let details = world.details();
    let of = |line: &str| line.split("bytes: ").nth(1)?.split([',', ' ', '}']).next()?.parse::<u64>().ok();
    details.lines().find_map(of)
}

/// zstackd keeps what a program wrote until the remote host has acknowledged it. If it is stopped meanwhile nothing happens, and if it is
/// killed the program hears of it, and the next zstackd has nothing to do with what the last one had.
#[test]
fn zstackd_is_stopped_and_killed_while_it_keeps_what_a_program_wrote() {
    need_root!();
    bounded(LIMIT, || {
        let data = noise(10, SIZE);
        let file = File::new("kept", &data);
        let mut world = World::culvert();
        let signal = |world: &World, signal: i32| {
            let pid = world.zstackd.as_ref().expect("zstackd").0.id();
            // SAFETY: a child of this process that nobody has waited for.
            assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
        };
        for killed in [false, true, false] {
            let listener = listen(&world.there, at(THERE[0], 80));
            let mut sender = Sender::start(&world, None, &file, if killed { "cut" } else { "asked" });
            let (mut far, _) = listener.accept().expect("a connection");
            greet(&mut far);
            let n = sender.number();
            soon("zstackd keeps something", LIMIT, || lent(&world).filter(|lent| *lent > 100_000));
            signal(&world, libc::SIGSTOP);
            if killed {
                signal(&world, libc::SIGKILL);
                sender.tell("go on");
                assert_eq!(sender.says(), "ECONNRESET");
                // The error is told once.
                assert_eq!(sender.says(), "0");
            } else {
                sender.tell("how much");
                let left = sender.number();
                assert!(left > 0 && left <= n, "{left} of {n}");
                signal(&world, libc::SIGCONT);
                sender.tell("go on");
                assert_eq!(sender.says(), "moved");
                receives(&mut far, &data, "zstackd was stopped");
                drop(far);
            }
            sender.ends("the sender");
            if killed {
                drop(world.zstackd.take());
                drop(listener);
                world.start();
            }
        }
    });
}

/// What is not acknowledged is what the remote host does not have, to the byte; and it is copied by nobody but the program.
#[test]
fn what_is_not_acknowledged_is_told_and_little_is_copied() {
    need_root!();
    bounded(LIMIT, || {
        let data = noise(7, SIZE);
        let file = File::new("told", &data);
        let world = World::culvert();
        let listener = listen(&world.there, at(THERE[0], 80));
        let mut sender = Sender::start(&world, None, &file, "asked");
        let (mut far, _) = listener.accept().expect("a connection");
        greet(&mut far);
        let n = sender.number();
        soon("what the remote host has, and what is not acknowledged, are all", LIMIT, || {
            sender.tell("how much");
            let left = sender.number();
            (left > 0 && left + queued(&far) == n).then_some(())
        });
        sender.tell("go on");
        assert_eq!(sender.says(), "moved");
        let mut got = vec![0; SIZE - 1];
        far.read_exact(&mut got).expect("all but one byte");
        assert!(got == data[..SIZE - 1]);
        let copied = copied(&world);
        assert!(copied < SIZE as u64 / 100, "{copied} of {SIZE} bytes were copied");
        receives(&mut far, &data[SIZE - 1..], "the last byte");
        drop(far);
        sender.ends("the sender");
    });
}

/// Sends a few bytes at a time, in a way that is asked for.
const SEGMENTS: &str = "
import socket, sys, time
s = socket.create_connection((sys.argv[1], 80))
for _ in range(20):
    s.sendall(b'x')
    s.recv(1)
print('up', flush=True)
def set(option, value):
    s.setsockopt(socket.IPPROTO_TCP, option, value)
for line in sys.stdin:
    ways = line.split()
    set(socket.TCP_NODELAY, 'nodelay' in ways)
    if 'cork' in ways:
        set(socket.TCP_CORK, 1)
    for last in (False, False, False, True):
        s.send(b'0123456789', socket.MSG_MORE if 'more' in ways and not last else 0)
        time.sleep(0 if 'quick' in ways else 0.004)
    if 'cork' in ways:
        # Most often it is out when all has been read, and nothing but it tells of that.
        time.sleep(0.001)
        set(socket.TCP_CORK, 0)
    s.recv(1)
    print('answered', flush=True)
";

fn data_segments(far: &TcpStream) -> u32 {
    let mut info = [0u8; 256];
    let mut len = info.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes there.
    let r = unsafe {
        libc::getsockopt(far.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut len)
    };
    assert_eq!(r, 0);
    // tcpi_data_segs_in (include/uapi/linux/tcp.h).
    u32::from_ne_bytes(info[152..156].try_into().expect("four bytes"))
}

/// Small segments wait for an acknowledgement unless the program does not want that, and for what it says will follow, as the kernel's do. A machine that is
/// busy may make more segments of them: one time in some it is not.
#[test]
fn what_a_program_wants_in_one_segment_goes_in_one() {
    need_root!();
    bounded(LIMIT, || {
        let world = World::culvert();
        let listener = listen(&world.there, at(THERE[0], 80));
        let mut command = world.run_here("python3.11");
        command.args(["-c", SEGMENTS, THERE[0]]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::spawn(&mut command);
        let lines = BufReader::new(process.0.stdout.take().expect("a pipe"));
        let mut sender = Sender { process, lines };
        let (mut far, _) = listener.accept().expect("a connection");
        greet(&mut far);
        assert_eq!(sender.says(), "up");
        for (way, wanted) in [
            ("nodelay", 4..5),
            ("nodelay more", 1..2),
            ("waits", 1..3),
            ("waits more", 1..2),
            ("waits cork", 1..2),
            ("nodelay", 4..5),
        ] {
            let mut told = vec![];
            let seen = (0..20).any(|_| {
                let before = data_segments(&far);
                sender.tell(way);
                far.read_exact(&mut [0; 40]).expect("what was sent");
                told.push(data_segments(&far) - before);
                far.write_all(b"y").expect("written");
                assert_eq!(sender.says(), "answered");
                wanted.contains(told.last().expect("one"))
            });
            assert!(seen, "{way}: {told:?} segments");
        }
        // What a cork has held back goes when it is taken out: each time a fifth of a second later would be too late for this test.
        for _ in 0..700 {
            sender.tell("waits cork quick");
            far.read_exact(&mut [0; 40]).expect("what was sent");
            far.write_all(b"y").expect("written");
            assert_eq!(sender.says(), "answered");
        }
        drop(sender.process.0.stdin.take());
        sender.ends("the sender");
    });
}
