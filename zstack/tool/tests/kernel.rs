//! The program itself, over the kernel's sockets on the loopback.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn zstack(words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zstack"));
    command.args(["--port", "kernel"]).args(words.split_whitespace()).env_remove("ZSTACK_PORT");
    command
}

/// Ends with the test.
struct Running(Option<Child>);

impl Running {
    fn start(words: &str, at: SocketAddr) -> Running {
        let child = zstack(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut running = Running(Some(child));
        let until = Instant::now() + Duration::from_secs(20);
        // Looks whether the port is taken, without a connection that would be counted.
        while TcpListener::bind(at).is_ok() {
            assert!(Instant::now() < until && running.0.as_mut().unwrap().try_wait().unwrap().is_none(), "{words}");
            std::thread::sleep(Duration::from_millis(5));
        }
        running
    }

    fn interrupt(&self) {
        let pid = self.0.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }

    fn output(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn every_role_moves_and_checks_the_pattern() {
    let at = free();
    let sink = Running::start(&format!("sink --listen {at} --connections 3 --seed 9 --bytes 5M"), at);
    let source = zstack(&format!("source --connect {at} --connections 3 --seed 9 --bytes 5M")).output().unwrap();
    assert!(source.status.success(), "{}", text(&source.stderr));
    let sink = sink.output();
    assert!(sink.status.success() && text(&sink.stdout).contains("15728640 bytes"), "{}", text(&sink.stdout));

    let at = free();
    let source = Running::start(&format!("source --listen {at} --connections 1 --seed 9 --bytes 5M"), at);
    assert!(zstack(&format!("sink --connect {at} --seed 9 --bytes 5M")).status().unwrap().success());
    assert!(source.output().status.success());
}

/// Neither is a panic; the work is done.
#[test]
fn a_full_standard_output_is_a_failure_in_one_line_and_a_closed_one_is_none() {
    let at = free();
    let _source = Running::start(&format!("source --listen {at} --seed 9 --bytes 5"), at);
    let sink = || zstack(&format!("sink --connect {at} --seed 9 --bytes 5"));
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let out = sink().stdout(full).output().unwrap();
    assert_eq!((out.status.code(), text(&out.stderr).lines().count()), (Some(1), 1), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("standard output"), "{}", text(&out.stderr));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let out = sink().stdout(writer).output().unwrap();
    assert_eq!((out.status.code(), text(&out.stderr)), (Some(0), String::new()));
}

#[test]
fn peers_that_reset_connections_do_not_fill_the_log() {
    use std::io::{Read, Write};
    let at = free();
    let echo = Running::start(&format!("echo --listen {at}"), at);
    let began = Instant::now();
    for _ in 0..40 {
        let mut peer = TcpStream::connect(at).unwrap();
        peer.write_all(b"0123456789").unwrap();
        // What is not read makes the close a reset.
        peer.read_exact(&mut [0]).unwrap();
    }
    std::thread::sleep(Duration::from_millis(200));
    let most = began.elapsed().as_secs() as usize + 1;
    echo.interrupt();
    let out = echo.output();
    assert!(text(&out.stdout).starts_with("echo: 40 connections, 40 failed"), "{}", text(&out.stdout));
    let lines = text(&out.stderr).lines().count();
    assert!((1..=most).contains(&lines), "{lines} lines");
}

/// Those that find no descriptor wait until another connection ends; meanwhile the server works, does not spin, and says it once.
#[test]
fn without_a_free_descriptor_connections_wait() {
    use std::io::{Read, Write};
    let at = free();
    // Of 24 descriptors some seven are taken.
    let mut command = Command::new("sh");
    let line = format!("ulimit -n 24; exec {} --port kernel echo --listen {at}", env!("CARGO_BIN_EXE_zstack"));
    let child = command.args(["-c", &line]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let echo = Running(Some(child));
    let until = Instant::now() + Duration::from_secs(20);
    while TcpListener::bind(at).is_ok() {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut peers: std::collections::VecDeque<_> = (0..60).map(|_| TcpStream::connect(at).unwrap()).collect();
    let answered = |peer: &mut TcpStream, time| {
        peer.set_read_timeout(Some(time)).unwrap();
        matches!(peer.read(&mut [0; 8]), Ok(1))
    };
    for peer in &mut peers {
        peer.write_all(b"x").unwrap();
    }
    assert!(answered(&mut peers[0], Duration::from_secs(10)));
    assert!(!answered(peers.back_mut().unwrap(), Duration::from_millis(300)), "the limit is none");
    let cpu = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = cpu();
    std::thread::sleep(Duration::from_secs(2));
    assert!(cpu() - before < 20, "{} ticks of 10 ms in two seconds", cpu() - before);
    peers.pop_front();
    while let Some(mut peer) = peers.pop_front() {
        assert!(answered(&mut peer, Duration::from_secs(10)), "{} wait", peers.len());
    }
    echo.interrupt();
    let out = echo.output();
    let (said, told) = (text(&out.stdout), text(&out.stderr));
    assert!(out.status.success() && said.starts_with("echo: 60 connections"), "{said}{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.contains("raise the limit of open files"), "{told}");
}

#[test]
fn another_seed_or_another_length_is_a_failure_in_one_line() {
    for wrong in ["--seed 10", "--seed 9 --bytes 6M"] {
        let at = free();
        let _source = Running::start(&format!("source --listen {at} --seed 9 --bytes 5M"), at);
        let sink = zstack(&format!("sink --connect {at} {wrong}")).output().unwrap();
        assert_eq!(sink.status.code(), Some(1), "{wrong}");
        assert_eq!(text(&sink.stderr).lines().count(), 1, "{}", text(&sink.stderr));
    }
}

#[test]
fn echo_sends_back_what_comes() {
    use std::io::{Read, Write};
    let at = free();
    let echo = Running::start(&format!("echo --listen {at}"), at);
    let mut stream = TcpStream::connect(at).unwrap();
    let sent: Vec<u8> = (0..3_000_000u32).map(|i| (i % 253) as u8).collect();
    let (mut writer, bytes) = (stream.try_clone().unwrap(), sent.clone());
    let thread = std::thread::spawn(move || {
        writer.write_all(&bytes).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    thread.join().unwrap();
    assert!(back == sent);
    echo.interrupt();
    let echo = echo.output();
    assert!(echo.status.success() && text(&echo.stdout).contains("3000000 bytes"), "{}", text(&echo.stdout));
}

#[test]
fn perf_measures_both_sides_and_stat_shows_the_server() {
    let at = free();
    let control = std::env::temp_dir().join(format!("zstack-perf-{}", std::process::id()));
    let server = Running::start(&format!("perf --listen {at} --control {}", control.display()), at);
    for mode in ["upload", "download", "exchange", "connect", "wake"] {
        let perf = zstack(&format!("perf --connect {at} --mode {mode} --seconds 0.3 --connections 3 --json"));
        let perf = { perf }.output().unwrap();
        assert!(perf.status.success(), "{mode}: {}", text(&perf.stderr));
        let report: serde_json::Value = serde_json::from_slice(&perf.stdout).unwrap();
        let rate = if report["mib_per_s"].is_null() { &report["per_s"] } else { &report["mib_per_s"] };
        assert!(rate.as_f64().unwrap() > 0.0, "{report}");
        assert!(report["server_cpu_s"]["total"].as_f64().unwrap() >= 0.0, "{report}");
        if mode == "wake" {
            // Each message has arrived, later than it was sent, and sooner than its answer; the last may have none yet.
            assert!(report["wake_us"]["count"].as_u64() >= report["exchanges"].as_u64(), "{report}");
            let [wake, both] = ["wake_us", "latency_us"].map(|name| report[name]["p50"].as_f64().unwrap());
            assert!(0.0 < wake && wake < both, "{report}");
        }
    }
    let stat = zstack(&format!("stat --json --control {}", control.display())).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&stat.stdout).unwrap();
    assert!(report["counters"]["accepted"].as_u64().unwrap() > 9, "{report}");
    server.interrupt();
    assert!(server.output().status.success());
    assert!(!control.exists(), "the socket goes with its tool");
}

#[test]
fn wrong_configuration_is_one_line_and_status_2() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    for (words, part) in [
        (format!("sink --listen {at}"), "choose another port"),
        ("sink --listen 192.0.2.1:5000".to_owned(), "no interface has this address"),
        ("http --listen 127.0.0.1:9 /nowhere/at/all".to_owned(), "give the directory"),
        ("sink --listen 5000 --mtu 1400".to_owned(), "are the engine's"),
        ("stat".to_owned(), "--control"),
    ] {
        let output = zstack(&words).output().unwrap();
        let line = text(&output.stderr);
        assert_eq!((output.status.code(), line.lines().count()), (Some(2), 1), "{words}: {line}");
        assert!(line.contains(part), "{words}: {line}");
    }
    for (port, part) in [
        ("tun:zsx", "add addr="),
        ("tun:zsx,addr=10.9.0.2/24 --mtu 60", "mtu=60"),
        ("tun:zsx,addr=10.9.0.2/24 --offload some", "offload"),
        ("ether:0", "there is no port of the kind `ether`"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zstack"));
        let output = command.arg("--port").args(port.split(' ')).args(["sink", "--listen", "9"]).output().unwrap();
        let line = text(&output.stderr);
        assert_eq!((output.status.code(), line.lines().count()), (Some(2), 1), "{port}: {line}");
        assert!(line.contains(part), "{port}: {line}");
    }
    let refused = zstack(&format!("source --connect {}", free())).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
}
