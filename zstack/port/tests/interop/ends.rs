//! How connections end that do not end in order.

use crate::lab::Process;
use crate::*;

/// This program as another process: what it does is in ZSTACK_LAB_CHILD.
#[test]
fn child() {
    let Ok(what) = std::env::var("ZSTACK_LAB_CHILD") else { return };
    let words: Vec<&str> = what.split(' ').collect();
    match words[..] {
        ["engine", spec] => {
            let _engine = Engine::start(&spec.parse().expect("a spec"));
            println!("ready");
            // Until the parent's end.
            let _ = std::io::stdin().read(&mut [0]);
        }
        ["connect", to] => {
            let mut stream = kernel::connect(to.parse().expect("an address"));
            stream.write_all(b"hello").expect("a write");
            println!("ready");
            let _ = std::io::stdin().read(&mut [0]);
        }
        _ => panic!("{what}"),
    }
}

/// Starts this program as another process, and waits until it is ready.
fn start_child(namespace: &Namespace, what: &str) -> Process {
    let program = std::env::current_exe().expect("this program");
    let mut command = namespace.command(program.to_str().expect("a path"));
    command.args(["--exact", "ends::child", "--nocapture"]).env("ZSTACK_LAB_CHILD", what);
    let mut process = Process::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut output = std::io::BufReader::new(process.0.stdout.take().expect("a pipe"));
    let mut line = String::new();
    while !line.contains("ready") {
        line.clear();
        let n = std::io::BufRead::read_line(&mut output, &mut line).expect("its output");
        assert!(n > 0, "{what}: it ended before it was ready");
    }
    process
}

/// The device stays when the engine is killed, as a network does when a host dies.
const LASTING: &str = "engine tun:zs0,addr=10.9.0.2/24,peer=10.9.0.1";

#[test]
fn the_engine_is_killed_and_another_takes_its_place() {
    need_root!();
    with_kernel_beside(LIMIT, |namespace| {
        namespace.run("ip tuntap add dev zs0 mode tun");
        let mut engine = start_child(namespace, LASTING);
        let mut stream = kernel::connect(at(ENGINE[0], ECHO));
        stream.write_all(b"hello").unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).unwrap();
        engine.kill();
        stream.write_all(b"is anybody there?").unwrap();
        let _next = start_child(namespace, LASTING);
        // The kernel's retransmission reaches an engine that knows nothing of it.
        let error = stream.read(&mut back).expect_err("nobody answers");
        assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET), "{error}");
        kernel::connect(at(ENGINE[0], ECHO)).write_all(b"and the next connection").unwrap();
    });
}

#[test]
fn the_engine_is_killed_and_nobody_answers() {
    need_root!();
    with_kernel_beside(LIMIT, |namespace| {
        namespace.run("ip tuntap add dev zs0 mode tun");
        let mut engine = start_child(namespace, LASTING);
        let mut stream = kernel::connect(at(ENGINE[0], ECHO));
        kernel::user_timeout(&stream, Duration::from_secs(2));
        engine.kill();
        stream.write_all(b"is anybody there?").unwrap();
        let error = stream.read(&mut [0; 5]).expect_err("nobody answers");
        assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT), "{error}");
    });
}

#[test]
fn the_kernels_program_is_killed() {
    need_root!();
    with_kernel(LIMIT, |namespace| {
        let mut engine = Engine::start(&spec(1500, "on"));
        // It has read everything: its connection ends in order.
        let to = at(ENGINE[0], SINK);
        let mut peer = start_child(namespace, &format!("connect {to}"));
        peer.kill();
        let outcome = engine.outcome(LIMIT, |o| o.job == Job::Sink);
        assert_eq!((outcome.received, outcome.cause), (5, Cause::Done));
        // It has not read what came: the kernel resets (RFC 2525, section 2.17).
        let mut peer = start_child(namespace, &format!("connect {}", at(ENGINE[1], ECHO)));
        soon("an echo that nobody reads", LIMIT, || namespace.run("ss -Htn").contains(" 5 ").then_some(()));
        peer.kill();
        let outcome = engine.outcome(LIMIT, |o| o.job == Job::Echo);
        assert_eq!(outcome.cause, Cause::Reset);
        soon("the end of all", LIMIT, || engine.look().connections.is_empty().then_some(()));
    });
}

#[test]
fn refusals_and_unreachable_hosts() {
    need_root!();
    with_kernel(LIMIT, |kernel| {
        let mut lab = Routed::new(kernel, "on");
        for version in 0..2 {
            // Nobody listens.
            let error = TcpStream::connect(at(ENGINE[version], 4)).expect_err("nobody listens");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            let job = Job::Send(version as u64, LIMIT);
            lab.engine.connect(at(FAR[version], 4), job);
            assert_eq!(lab.engine.outcome(LIMIT, |o| o.job == job).cause, Cause::Refused);
        }
        // The router knows no way.
        lab.router.run("ip route add unreachable 10.66.0.0/16");
        lab.router.run("ip route add unreachable fd00:66::/64");
        // For IPv6 the kernel says "no route" of such a route too (ip6_pkt_discard), which is ENETUNREACH (icmpv6_err_convert).
        let unreachable = [
            ("10.66.0.1", Cause::HostUnreachable),
            ("fd00:66::1", Cause::NetUnreachable),
            ("10.67.0.1", Cause::NetUnreachable),
            ("fd00:67::1", Cause::NetUnreachable),
        ];
        for (i, (to, cause)) in unreachable.into_iter().enumerate() {
            let job = Job::Send(10 + i as u64, LIMIT);
            lab.engine.connect(at(to, 80), job);
            assert_eq!(lab.engine.outcome(LIMIT, |o| o.job == job).cause, cause, "{to}");
        }
        // The engine resets what it cannot take: bytes that come when its program has gone.
        let mut stream = kernel::connect(at(ENGINE[0], SOURCE));
        stream.write_all(&1000u64.to_le_bytes()).unwrap();
        assert_eq!(kernel::receive(&mut stream), 1000);
    });
}

#[test]
fn a_device_that_vanishes_ends_connections() {
    need_root!();
    with_kernel(LIMIT, |namespace| {
        let mut engine = Engine::start(&spec(1500, "on"));
        let listener = kernel::listen(ip(KERNEL[0]));
        engine.connect(listener.local_addr().unwrap(), Job::Hold);
        let _stream = kernel::accept(&listener);
        namespace.run("ip link del zs0");
        let outcome = engine.outcome(LIMIT, |o| o.job == Job::Hold);
        assert_eq!(outcome.cause, Cause::PortGone);
    });
}

/// With a thousand connections and nothing to do, the engine uses no CPU.
#[test]
fn an_idle_engine_sleeps() {
    need_root!();
    with_kernel_beside(LIMIT, |namespace| {
        namespace.run("ip tuntap add dev zs0 mode tun");
        let engine = start_child(namespace, LASTING);
        let streams: Vec<TcpStream> = (0..1000).map(|_| kernel::connect(at(ENGINE[0], ECHO))).collect();
        // What follows a handshake is over when the CPU time stands still for a while.
        let mut last = engine.cpu();
        soon("a quiet engine", LIMIT, || {
            std::thread::sleep(Duration::from_millis(500));
            let quiet = engine.cpu() == last;
            last = engine.cpu();
            quiet.then_some(())
        });
        let before = engine.cpu();
        std::thread::sleep(Duration::from_secs(2));
        assert!(engine.cpu() - before <= Duration::from_millis(10), "{:?} of 2 s", engine.cpu() - before);
        drop(streams);
    });
}
