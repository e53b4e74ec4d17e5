//! Unmodified programs under culvert, whose other end is another host: their bytes go through zstackd, over shared memory here, and
//! `culvert stat` says so.

#[path = "../../port/tests/lab/mod.rs"]
mod lab;
mod world;

use lab::{Namespace, Process, bounded, noise, soon};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;
use world::{HERE, LIMIT, THERE, World, at, config, connect, listen, open_to_all, registry, run, zstackd};

/// A directory that goes with the test.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let path = std::env::temp_dir().join(format!("zstackd-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        Place(path)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).expect("a file");
        path.to_str().expect("a path").into()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn output(command: &mut Command) -> Vec<u8> {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

/// The lines of `culvert stat` about connections on path zstack.
fn accelerated(world: &World) -> Vec<String> {
    let is = |line: &&str| line.split_whitespace().nth(3) == Some("zstack");
    world.stat().lines().filter(is).map(str::to_owned).collect()
}

fn nginx(place: &Place, port: u16) -> Vec<String> {
    let dir = place.0.display();
    let text = format!(
        "daemon off; worker_processes 2; pid {dir}/nginx.pid; error_log {dir}/error.log;\n\
         events {{ worker_connections 512; }}\n\
         http {{ access_log off; client_body_temp_path {dir}/a; proxy_temp_path {dir}/b; fastcgi_temp_path {dir}/c;\n\
         uwsgi_temp_path {dir}/d; scgi_temp_path {dir}/e;\n\
         server {{ listen {port}; listen [::]:{port}; root {dir}; }} }}\n"
    );
    vec!["-c".into(), place.file("nginx.conf", text.as_bytes())]
}

/// A program that is started as soon as `culvert run` takes it finds zstackd's addresses, and the way to other hosts.
#[test]
fn who_says_that_it_is_ready_is() {
    need_root!();
    bounded(LIMIT, || {
        use rendezvous::serving::look_at;
        let (here, there) = (Namespace::new(), Namespace::new());
        let more = format!("port-namespace = \"{}\"", there.path());
        let directory = std::ffi::CString::new(registry().to_str().expect("a path")).expect("no zero byte");
        let inode = here.within(|| std::fs::metadata("/proc/thread-self/ns/net").expect("a namespace").ino());
        for _ in 0..3 {
            let begun = Process::spawn(&mut zstackd(&here, true, &config("tap:w0", HERE, true, &more)));
            soon("a zstackd that begins", LIMIT, || look_at(&directory, inode).ok());
            let program = Process::spawn(run(&here, "ip").args(["route", "get", THERE[0]]).stdout(Stdio::piped()));
            // It is asked all the time, to see it as early as anybody can.
            while !look_at(&directory, inode).is_ok_and(|served| served.is_ready()) {
                std::thread::yield_now();
            }
            HERE.iter().for_each(|ip| drop(listen(&here, at(ip, 0))));
            let (status, text) = program.finish(LIMIT);
            assert!(status.success() && text.contains("dev cv0"), "{status:?}: {text}");
            drop(begun);
            soon("its end", LIMIT, || look_at(&directory, inode).is_err().then_some(()));
        }
    });
}

/// nginx here, curl, ab and wrk on the remote host; nginx is told to reload all the while.
#[test]
fn nginx_serves_another_host_and_reloads() {
    need_root!();
    bounded(LIMIT, || {
        let place = Place::new("nginx");
        let bytes = noise(1, 20 << 20);
        place.file("large", &bytes);
        place.file("small", &bytes[..1000]);
        let world = World::culvert();
        let mut command = world.run_here("nginx");
        command.args(nginx(&place, 80)).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Process::spawn(&mut command);
        for ip in HERE {
            soon("nginx", LIMIT, || connect(&world.there, at(ip, 80)).ok());
        }
        for ip in ["10.1.0.1", "[fd00:1::1]"] {
            let got = output(world.there.command("curl").args(["-sSf", &format!("http://{ip}/large")]));
            assert!(got == bytes, "{ip}: {} of {} bytes, or other ones", got.len(), bytes.len());
        }
        // A connection for each request: one that is kept may be closed by the old worker just when a request comes, on any path.
        let mut ab = world.there.command("ab");
        ab.args(["-q", "-c", "8", "-n", "3000", "http://10.1.0.1/small"]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut ab = Process::spawn(&mut ab);
        let mut wrk = world.there.command("wrk");
        wrk.args(["-t1", "-c4", "-d120s", "http://10.1.0.1/small"]).stdout(Stdio::null());
        let _kept = Process::spawn(&mut wrk);
        let mut reloads = 0;
        while ab.0.try_wait().expect("ab").is_none() {
            output(Command::new("kill").args(["-HUP", &server.0.id().to_string()]));
            reloads += 1;
        }
        let (status, text) = ab.finish(LIMIT);
        assert!(status.success() && text.contains("Failed requests:        0"), "{text}");
        soon("a connection that is kept", LIMIT, || {
            accelerated(&world).iter().any(|line| line.contains("on the wire")).then_some(())
        });
        // Told to end, it ends its workers; killed, it would leave them.
        output(Command::new("kill").arg(server.0.id().to_string()));
        server.finish(LIMIT);
        assert!(reloads > 0);
    });
}

/// redis here and its client there, then the other way round; the client takes a large value and gives it back.
#[test]
fn redis_at_either_end() {
    need_root!();
    bounded(LIMIT, || {
        let world = World::culvert();
        let place = Place::new("redis");
        let dir = place.0.to_str().expect("a path").to_string();
        let words = |ip: &str| -> Vec<String> {
            ["--port", "6379", "--save", "", "--protected-mode", "no", "--dir", &dir, "--bind", ip]
                .map(String::from)
                .into()
        };
        for server_is_here in [true, false] {
            let ip = if server_is_here { HERE[0] } else { THERE[0] };
            let mut server =
                if server_is_here { world.run_here("redis-server") } else { world.there.command("redis-server") };
            let _server = Process::spawn(server.args(words(ip)).stdout(Stdio::null()));
            let client = |program: &str| {
                let mut client = if server_is_here { world.there.command(program) } else { world.run_here(program) };
                client.args(["-h", ip]);
                client
            };
            soon("redis", LIMIT, || {
                client("redis-cli").arg("ping").output().ok().filter(|o| o.stdout.starts_with(b"PONG"))
            });
            let text = String::from_utf8(output(client("redis-benchmark").args([
                "-q",
                "-n",
                "4000",
                "-c",
                "20",
                "-d",
                "1000",
                "-t",
                "set,get,lrange_100",
            ])))
            .expect("text");
            assert!(text.contains("LRANGE_100"), "{text}");
            let value: String = noise(1, 3 << 20).iter().map(|b| char::from(b'a' + b % 26)).collect();
            let mut set = client("redis-cli");
            let mut set =
                set.args(["-x", "set", "key"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("redis-cli");
            set.stdin.take().expect("a pipe").write_all(value.as_bytes()).expect("written");
            assert!(set.wait().expect("redis-cli").success());
            let got = output(client("redis-cli").args(["get", "key"]));
            assert!(got.strip_suffix(b"\n") == Some(value.as_bytes()), "{} of {} bytes", got.len(), value.len());
        }
    });
}

/// Bulk both ways, by connections that come to shared memory.
#[test]
fn iperf3_both_ways() {
    need_root!();
    bounded(LIMIT, || {
        let world = World::culvert();
        let mut server = world.there.command("iperf3");
        let _server = Process::spawn(server.args(["-s", "-B", THERE[0]]).stdout(Stdio::null()));
        soon("iperf3", LIMIT, || connect(&world.here, at(THERE[0], 5201)).ok());
        for extra in [&[][..], &["-R"], &["--bidir"]] {
            // On a busy machine a look may take longer than a short run.
            let is_seen = ["2", "4", "8", "16"].iter().any(|seconds| {
                let mut client = world.run_here("iperf3");
                client.args(["-c", THERE[0], "-t", seconds, "-J"]).args(extra).stdout(Stdio::piped());
                let mut client = Process::spawn(&mut client);
                let mut seen = vec![];
                while client.0.try_wait().expect("iperf3").is_none() {
                    seen.extend(accelerated(&world));
                    std::thread::sleep(Duration::from_millis(50));
                }
                let (status, text) = client.finish(LIMIT);
                assert!(status.success(), "{extra:?}: {text}");
                seen.iter().any(|line| line.contains("on the wire (tap): established"))
            });
            assert!(is_seen, "{extra:?}: {}", world.stat());
        }
    });
}

/// A program that has read nothing of megabytes, behind which the remote host has ended, and then passes the connection on in a message: by
/// then nobody but culvert has them, and whoever gets the descriptor finds all of them, and the end.
#[test]
fn what_is_unread_when_the_remote_host_ends_can_be_passed_on() {
    const SCRIPT: &str = "
import array, fcntl, socket, sys, termios, time
s = socket.create_connection((sys.argv[1], 80))
for _ in range(100):
    s.sendall(b'x')
    s.recv(1)
left = array.array('i', [0])
while left[0] < int(sys.argv[2]):
    time.sleep(0.001)
    fcntl.ioctl(s, termios.FIONREAD, left)
print('all', flush=True)
sys.stdin.readline()
a, b = socket.socketpair()
socket.send_fds(a, [b'x'], [s.fileno()])
_, fds, _, _ = socket.recv_fds(b, 9, 1)
s.close()
passed = socket.socket(fileno=fds[0])
n = 0
while got := passed.recv(1 << 16):
    n += len(got)
print(n)
";
    need_root!();
    bounded(LIMIT, || {
        let world = World::culvert();
        let listener = listen(&world.there, at(THERE[0], 80));
        for n in [100_000, 300_000, 2_000_000] {
            let mut program = world.run_here("python3.11");
            program.args(["-c", SCRIPT, THERE[0], &n.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut program = Process::spawn(&mut program);
            let (mut far, _) = listener.accept().expect("a connection");
            far.set_read_timeout(Some(LIMIT)).expect("a timeout");
            far.set_nodelay(true).expect("an option");
            for _ in 0..100 {
                far.read_exact(&mut [0]).expect("a byte");
                far.write_all(b"y").expect("written");
            }
            far.write_all(&noise(3, n)).expect("written");
            far.shutdown(std::net::Shutdown::Write).expect("an end");
            let mut said = [0; 4];
            program.0.stdout.as_mut().expect("a pipe").read_exact(&mut said).expect("a line");
            assert_eq!(&said, b"all\n");
            soon("zstackd knows of the end", LIMIT, || {
                let details = world.details();
                ["remote_ended: true", "end_held: true"].iter().any(|state| details.contains(state)).then_some(())
            });
            program.0.stdin.as_mut().expect("a pipe").write_all(b"\n").expect("a line");
            let (status, text) = program.finish(LIMIT);
            assert!(status.success() && text == format!("{n}\n"), "{n}: {status:?} {text}");
            assert_eq!(far.read(&mut [0]).expect("its end"), 0);
        }
    });
}

/// Connections of which the program says how long what it sends may stay unacknowledged: before they are there, young, and on a ring, whoever has
/// opened them; one on which it sends a file; and one that takes that back.
const TIMED: &str = "
import errno, os, socket, sys, tempfile, threading, time
def timed(s, milliseconds):
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
def talk(s, exchanges):
    for _ in range(exchanges):
        s.sendall(b'x')
        s.recv(1)
def opened(port, exchanges, before):
    s = socket.socket()
    if before:
        timed(s, 2000)
    s.connect((sys.argv[2], port))
    talk(s, exchanges)
    if not before:
        timed(s, 2000)
    return s
listener = socket.create_server((sys.argv[1], 81))
print('up', flush=True)
def accepted(exchanges):
    s, _ = listener.accept()
    talk(s, exchanges)
    timed(s, 2000)
    return s
all = {(port, n, before): opened(port, n, before) for port in (80, 82) for n in (1, 100) for before in (True, False)}
all.update({(81, n): accepted(n) for n in (1, 100)})
free = opened(80, 100, False)
timed(free, 0)
file, files = tempfile.TemporaryFile(), opened(80, 100, False)
file.truncate(100 << 20)
def attempt(call):
    try:
        return call() > 0
    except OSError as e:
        return errno.errorcode[e.errno]
def send_file():
    send = lambda: os.sendfile(files.fileno(), file.fileno(), 0, 100 << 20)
    sent.extend([attempt(send), attempt(send), attempt(lambda: files.send(b'x'))])
print('ready', flush=True)
sys.stdin.readline()
begun = time.monotonic()
sent, sender = [], threading.Thread(target=send_file)
sender.start()
for s in [free, *all.values()]:
    s.send(b'x')
for what, s in all.items():
    try:
        s.recv(1)
    except OSError as e:
        print(what, errno.errorcode[e.errno], time.monotonic() - begun >= 1.9)
sender.join()
print('file', sent)
free.settimeout(0.2)
try:
    free.recv(1)
except TimeoutError as e:
    print('free', e)
";

/// How long what was sent may stay unacknowledged (TCP_USER_TIMEOUT) counts by what the remote host acknowledges, whenever that was asked for.
#[test]
fn a_user_timeout_is_the_wires() {
    need_root!();
    bounded(LIMIT, || {
        let told = |world: &World, culvert: bool| {
            let mut program = if culvert { world.run_here("python3.11") } else { world.here.command("python3.11") };
            program.args(["-c", TIMED, HERE[0], THERE[0]]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let listeners = [80, 82].map(|port| listen(&world.there, at(THERE[0], port)));
            let mut program = Process::spawn(&mut program);
            let mut says = |line: &str| {
                let mut said = vec![0; line.len()];
                program.0.stdout.as_mut().expect("a pipe").read_exact(&mut said).expect("a line");
                assert_eq!(said, line.as_bytes());
            };
            says("up\n");
            let answer = |mut far: std::net::TcpStream| {
                let mut bytes = [0; 9];
                while let Ok(n @ 1..) = far.read(&mut bytes) {
                    let _ = far.write_all(&bytes[..n]);
                }
            };
            for listener in listeners {
                std::thread::spawn(move || {
                    for far in listener.incoming() {
                        std::thread::spawn(move || answer(far.expect("a connection")));
                    }
                });
            }
            for _ in 0..2 {
                let far = connect(&world.there, at(HERE[0], 81)).expect("a connection");
                std::thread::spawn(move || answer(far));
            }
            says("ready\n");
            assert!(accelerated(world).len() >= 4 || !culvert, "{}", world.stat());
            // It says of each segment that it is not for it (icmp(7)): else chance says of which.
            world.there.sysctl("ipv4/icmp_ratelimit", "0");
            world.there.nft(
                "table inet t {\n chain c {\n type filter hook input priority 0;\n tcp dport 80 drop\n tcp sport 81 drop\n\
                 tcp dport 82 reject with icmpx type host-unreachable\n}\n}\n",
            );
            program.0.stdin.as_mut().expect("a pipe").write_all(b"\n").expect("a line");
            let (status, text) = program.finish(LIMIT);
            assert!(status.success(), "{status:?}: {text}");
            text
        };
        let expected = std::thread::spawn(move || told(&World::native(), false));
        let got = told(&World::culvert(), true);
        let expected = expected.join().expect("the same natively");
        assert_eq!(got, expected, "through zstackd, and natively");
        let count = |what| expected.matches(what).count();
        assert_eq!(
            (count("ETIMEDOUT True"), count("EHOSTUNREACH True"), count("free timed out")),
            (6, 4, 1),
            "{expected}"
        );
    });
}

/// Connections whose remote host falls silent, and what calls say of each: of some that serve one request and of some that come to shared
/// memory, by a receive that waits, by an epoll set and SO_ERROR, by a send, and where the remote host had finished before.
const SILENCE: &str = "
import errno, os, select, socket, sys
def attempt(call):
    try:
        return repr(call())
    except OSError as e:
        return errno.errorcode[e.errno]
def connection(exchanges, finished):
    s = socket.create_connection((sys.argv[1], 80))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name in 'TCP_KEEPIDLE', 'TCP_KEEPINTVL', 'TCP_KEEPCNT':
        s.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), 1)
    for _ in range(exchanges):
        s.sendall(b'x')
        s.recv(1)
    if finished:
        s.sendall(b'F')
        assert s.recv(1) == b''
    return s
def state(s):
    return s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
def receive(s):
    return attempt(lambda: s.recv(9))
def send(s):
    return attempt(lambda: s.send(b'x'))
pipe = os.pipe()
def splice(s):
    return attempt(lambda: os.splice(s.fileno(), pipe[1], 9))
waits = ('receive', 'splice')
calls = {'receive': [receive, receive, send, state], 'splice': [splice, splice, send, state], 'state': [state, state, receive, send], 'send': [send, send, receive, state]}
cases = [(n, how, finished) for n in (1, 100) for how in calls for finished in (False, True)]
all = [(connection(n, finished), n, how, finished) for n, how, finished in cases]
print('ready', flush=True)
sys.stdin.readline()
for s, n, how, finished in all:
    said = []
    if how not in waits:
        epoll = select.epoll()
        epoll.register(s, select.EPOLLET)
        said.append(epoll.poll())
        said = [event for _, event in said[0]]
    elif finished:
        poll = select.poll()
        poll.register(s, 0)
        said = [event for _, event in poll.poll()]
    print(n, how, finished, said, [call(s) for call in calls[how]], attempt(s.getpeername))
";

/// A remote host that answers no more: its kernel says nothing, and the program is told what its own kernel would say of a connection of its
/// own, by every call.
#[test]
fn a_silent_host_ends_connections_as_on_the_kernel() {
    need_root!();
    bounded(LIMIT, || {
        let told = |world: &World, culvert: bool| {
            let listener = listen(&world.there, at(THERE[0], 80));
            std::thread::spawn(move || {
                for far in listener.incoming() {
                    std::thread::spawn(move || {
                        let (mut far, mut byte) = (far.expect("a connection"), [0]);
                        while far.read(&mut byte).is_ok_and(|n| n > 0) {
                            match byte[0] {
                                b'F' => far.shutdown(std::net::Shutdown::Write).expect("an end"),
                                _ => far.write_all(b"y").expect("written"),
                            }
                        }
                    });
                }
            });
            // zstackd's registry is another user's then.
            let user = 40_000;
            let mut program = match culvert {
                true => world.run_here_as(user, "python3.11"),
                false => world.here.command("python3.11"),
            };
            program.args(["-c", SILENCE, THERE[0]]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut program = Process::spawn(&mut program);
            let mut said = [0; 6];
            program.0.stdout.as_mut().expect("a pipe").read_exact(&mut said).expect("a line");
            let carried = accelerated(world).len();
            assert!(carried >= 3 || !culvert, "{}", world.stat());
            let silent = "table inet t {\n chain c {\n type filter hook input priority 0;\n tcp dport 80 drop\n}\n}\n";
            world.there.nft(silent);
            program.0.stdin.as_mut().expect("a pipe").write_all(b"\n").expect("a line");
            let (status, text) = program.finish(LIMIT);
            assert!(status.success(), "{status:?}: {text}");
            text
        };
        let expected = std::thread::spawn(move || told(&World::native(), false));
        let mut world = World::culvert();
        world.zstackd = None;
        world.here.sysctl("ipv4/tcp_keepalive_intvl", "1");
        world.here.sysctl("ipv4/tcp_keepalive_probes", "1");
        world.start();
        open_to_all();
        let got = told(&world, true);
        let expected = expected.join().expect("the same natively");
        assert_eq!(got, expected, "through zstackd, and natively");
        assert_eq!(expected.matches("ETIMEDOUT").count() + expected.matches("[110").count(), 16, "{expected}");
    });
}

/// A program that is killed: its remote host sees what it would on the kernel.
#[test]
fn killed_programs_end_as_on_the_kernel() {
    need_root!();
    bounded(LIMIT, || {
        let world = World::culvert();
        let listener = listen(&world.there, at(THERE[0], 80));
        for round in 0..10 {
            // A program that sends for as long as somebody takes it.
            let mut sender = world.run_here("python3.11");
            let script = "import socket,sys\ns=socket.create_connection((sys.argv[1],80))\nwhile True: s.sendall(b'x'*3000); s.recv(1)";
            let mut sender = Process::spawn(sender.args(["-c", script, THERE[0]]));
            let (mut far, _) = listener.accept().expect("a connection");
            far.set_read_timeout(Some(LIMIT)).expect("a timeout");
            let mut buffer = vec![0; 3000];
            for _ in 0..20 {
                far.read_exact(&mut buffer).expect("bytes");
                far.write_all(b"y").expect("written");
            }
            sender.kill();
            // Nothing lies unread there, or the last byte does: an end, or a reset; but an end of all that was sent.
            let mut rest = vec![];
            match far.read_to_end(&mut rest) {
                Ok(_) => assert_eq!(rest.len() % 3000, 0, "round {round}"),
                Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset),
            }
        }
        soon("no connection is left", LIMIT, || {
            let sockets = world.here.run("ss -Htan state established");
            sockets.is_empty().then_some(())
        });
    });
}
