//! The program over the engine, on a tun device in a namespace of its own, and the kernel at the other end: as a server, as a client,
//! and when the device is not as it should be.

#[path = "../../port/tests/lab/mod.rs"]
mod lab;

use lab::{Namespace, Process, bounded, soon};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const PORT: &str = "tun:zs0,addr=10.9.0.2/24,peer=10.9.0.1,addr=fd00:9::2/64,peer=fd00:9::1";

/// A namespace, and a directory for sockets and files, which goes with it.
struct Place {
    namespace: Namespace,
    directory: PathBuf,
    /// How many programs were started.
    count: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A program that runs, with its end of `zstack stat`.
struct Tool {
    process: Process,
    control: PathBuf,
}

fn in_place(name: &'static str, work: impl FnOnce(&mut Place) + Send + 'static) {
    bounded(LIMIT, move || {
        let directory = std::env::temp_dir().join(format!("zstack-tun-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let mut place = Place { namespace: Namespace::new(), directory, count: 0 };
        place.namespace.enter();
        work(&mut place);
    });
}

impl Place {
    fn command(&self, port: &str, words: &str) -> Command {
        let mut command = self.namespace.command(env!("CARGO_BIN_EXE_zstack"));
        command.args(["--port", port]).args(words.split_whitespace()).env_remove("ZSTACK_PORT");
        command
    }

    /// A program that goes on until it is told to end, or has done its work; it is there when this returns.
    fn start(&mut self, port: &str, words: &str) -> Tool {
        self.count += 1;
        let control = self.directory.join(format!("{}.sock", self.count));
        let mut command = self.command(port, words);
        let mut process = Process::spawn(command.arg("--control").arg(&control).stdout(Stdio::piped()));
        let tool = |process| Tool { process, control: control.clone() };
        soon("a program that answers `stat`", LIMIT, || {
            assert_eq!(process.0.try_wait().expect("wait"), None, "{words}: it has ended");
            stat(&control).map(|_| ())
        });
        tool(process)
    }

    /// Runs a program to its end: status, standard output, standard error.
    fn run(&self, port: &str, words: &str) -> (ExitStatus, String, String) {
        let output = self.command(port, words).output().expect("the program");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status, text(&output.stdout), text(&output.stderr))
    }

    /// One line with the remedy, and exit status 2.
    fn refused(&self, port: &str, words: &str, remedy: &str) {
        let (status, _, text) = self.run(port, words);
        assert_eq!((status.code(), text.lines().count()), (Some(2), 1), "{port} {words}: {text}");
        assert!(text.starts_with("zstack: ") && text.contains(remedy), "{port} {words}: {text}");
    }
}

fn stat(control: &std::path::Path) -> Option<serde_json::Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zstack"));
    let output = command.args(["stat", "--json", "--control"]).arg(control).output().expect("the program");
    output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
}

impl Tool {
    fn stat(&self) -> serde_json::Value {
        stat(&self.control).expect("it runs")
    }

    /// Its end, which comes by itself.
    fn done(self) -> String {
        let (status, text) = self.process.finish(LIMIT);
        assert!(status.success(), "{status}: {text}");
        text
    }

    /// Its end, which a signal asks for.
    fn interrupted(self) -> String {
        let pid = self.process.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
        self.done()
    }
}

/// 10 MiB on each of two connections, compared byte by byte, both ways and in both roles.
#[test]
fn streams_to_and_from_the_kernel() {
    need_root!();
    in_place("streams", |place| {
        let pattern = "--connections 2 --seed 7 --bytes 10M";
        for (engine, kernel) in [("10.9.0.2", "10.9.0.1"), ("[fd00:9::2]", "[fd00:9::1]")] {
            // The engine is passive.
            let sink = place.start(PORT, &format!("sink --listen 9 {pattern}"));
            let (status, _, text) = place.run("kernel", &format!("source --connect {engine}:9 {pattern}"));
            assert!(status.success(), "{text}");
            assert!(sink.done().contains("20971520 bytes"));
            let source = place.start(PORT, &format!("source --listen 19 {pattern}"));
            let (status, _, text) = place.run("kernel", &format!("sink --connect {engine}:19 {pattern}"));
            assert!(status.success(), "{text}");
            assert!(source.done().contains("20971520 bytes"));
            // The engine is active.
            let sink = place.start("kernel", &format!("sink --listen 9 {pattern}"));
            let (status, _, text) = place.run(PORT, &format!("source --connect {kernel}:9 {pattern}"));
            assert!(status.success(), "{text}");
            sink.done();
            let source = place.start("kernel", &format!("source --listen 19 {pattern}"));
            let (status, _, text) = place.run(PORT, &format!("sink --connect {kernel}:19 {pattern}"));
            assert!(status.success(), "{text}");
            source.done();
        }
        // What comes is compared indeed.
        let _source = place.start(PORT, "source --listen 19 --seed 8");
        let (status, ..) = place.run("kernel", "sink --connect 10.9.0.2:19 --seed 7");
        assert_eq!(status.code(), Some(1));
    });
}

#[test]
fn echo_and_what_stat_says_of_it() {
    need_root!();
    in_place("echo", |place| {
        for words in ["echo --listen 7", "echo --listen 7 --deferred", "--copy echo --listen 7"] {
            let echo = place.start(PORT, words);
            let mut stream = TcpStream::connect("10.9.0.2:7").expect("a connection");
            stream.set_read_timeout(Some(LIMIT)).expect("a time limit");
            let sent: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
            stream.write_all(&sent).expect("a write");
            let mut back = vec![0; sent.len()];
            stream.read_exact(&mut back).expect("an echo");
            assert!(back == sent, "{words}");
            let stat = echo.stat();
            let connection = &stat["connections"][0];
            assert_eq!(connection["local"], "10.9.0.2:7", "{stat}");
            assert_eq!(connection["remote"], stream.local_addr().expect("an address").to_string().as_str(), "{stat}");
            assert!(connection["cwnd"].as_u64().expect("cwnd") > 1000, "{stat}");
            assert_eq!(stat["counters"]["established"], 1, "{stat}");
            assert!(connection["state"].as_str().expect("a state").eq_ignore_ascii_case("established"), "{stat}");
            drop(stream);
            assert!(echo.interrupted().contains("200000 bytes"), "{words}");
        }
    });
}

#[test]
fn files_over_http_to_curl() {
    need_root!();
    in_place("http", |place| {
        let root = place.directory.join("root");
        std::fs::create_dir(&root).expect("a directory");
        let bytes: Vec<u8> = (0..5_000_000u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
        std::fs::write(root.join("file"), &bytes).expect("a file");
        let server = place.start(PORT, &format!("http --listen 80 {}", root.display()));
        let curl = |words: &str| {
            let mut curl = place.namespace.command("curl");
            curl.args(["--silent", "--show-error", "--max-time", "50"]).args(words.split_whitespace());
            let output = curl.output().expect("curl");
            assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
            output.stdout
        };
        for host in ["10.9.0.2", "[fd00:9::2]"] {
            assert!(curl(&format!("http://{host}/file")) == bytes);
            assert!(curl(&format!("--range 1000000-2999999 http://{host}/file")) == bytes[1_000_000..3_000_000]);
            let head = curl(&format!("--head http://{host}/file"));
            assert!(String::from_utf8_lossy(&head).to_ascii_lowercase().contains("content-length: 5000000"));
            let code = curl(&format!("--output /dev/null --write-out %{{http_code}} http://{host}/nothing"));
            assert_eq!(code, b"404");
        }
        // Two requests on one connection.
        assert!(curl("http://10.9.0.2/file http://10.9.0.2/file") == [&bytes[..], &bytes[..]].concat());
        assert!(server.stat()["counters"]["established"].as_u64().expect("a number") >= 9);
        server.interrupted();
    });
}

#[test]
fn ping_and_somebody_who_does_not_answer() {
    need_root!();
    in_place("ping", |place| {
        for to in ["10.9.0.1", "fd00:9::1"] {
            let (status, text, error) = place.run(PORT, &format!("ping {to} -c 3 -i 0.01 -s 1000"));
            assert!(status.success() && text.contains("3 "), "{text}{error}");
        }
        let (status, text, error) = place.run(PORT, "ping 10.9.0.77 -c 2 -i 0.01 -W 0.2");
        assert_eq!(status.code(), Some(1), "{text}{error}");
        // The other way round: the program answers whatever it does.
        let _echo = place.start(PORT, "echo --listen 7");
        let (status, text, error) = place.run("kernel", "ping 10.9.0.2 -c 2 -i 0.01");
        assert!(status.success(), "{text}{error}");
    });
}

#[test]
fn devices_that_are_not_as_they_should_be() {
    need_root!();
    in_place("devices", |place| {
        // Of another kind.
        place.refused("tun:lo,addr=10.9.0.2/24", "ping 10.9.0.1", "lo");
        place.namespace.run("ip link add veth0 type veth peer name veth1");
        place.refused("tun:veth0,addr=10.9.0.2/24", "ping 10.9.0.1", "veth0");
        place.namespace.run("ip tuntap add dev tap0 mode tap");
        place.refused("tun:tap0,addr=10.9.0.2/24", "ping 10.9.0.1", "tap0");
        // Somebody else has it.
        let echo = place.start(PORT, "echo --listen 7");
        place.refused(PORT, "ping 10.9.0.1", "zs0");
        // The address is the peer's.
        place.refused("tun:zs1,addr=10.8.0.1/24,peer=10.8.0.1", "ping 10.8.0.1", "10.8.0.1");
        // Gateways in no network.
        place.refused("tap:zs1,addr=10.8.0.2/24,gw=10.7.0.1", "ping 10.8.0.1", "10.7.0.1");
        // It vanishes: one line, and status 1.
        place.namespace.run("ip link del zs0");
        let (status, _) = echo.process.finish(LIMIT);
        assert_eq!(status.code(), Some(1));
    });
}
