//! Connections between two other hosts, moved between the kernel's forwarding and that of a process on the queues, while they run. As root.

mod wire;

use culvert_split::{Split, rules};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use wire::{Frames, HERE4, Socket, Wire, is_root, run, wait_for};

/// The second wire's.
const OUT4: &str = "10.10.0.1";
const OUT6: &str = "fd10::1";
const BEYOND4: &str = "10.10.0.2";
const BEYOND6: &str = "fd10::2";

/// One direction of the process: it takes the frames of one interface's queue, and sends them out by the other one.
struct Leg {
    from: Socket,
    to: Frames,
    /// The Ethernet addresses on the other wire: whose it is, and whose the interface is.
    addresses: [u8; 12],
}

fn mac(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, last]
}

impl Leg {
    fn new(from: &str, to: &str, whose: u8, own: u8) -> Leg {
        let split = Split::on(from).expect("asked").expect("there");
        let addresses = [mac(whose), mac(own)].concat().try_into().expect("two of them");
        Leg { from: Socket::new(from, 0, &split), to: Frames::of(to, false), addresses }
    }

    fn forward(&self, forwarded: &AtomicU64) {
        self.from.each(|frame| {
            frame[..12].copy_from_slice(&self.addresses);
            // One hop less, and the header's checksum one unit of its upper byte more (RFC 1624).
            frame[14 + 8] -= 1;
            let sum = u32::from(u16::from_be_bytes([frame[24], frame[25]])) + 0x100;
            frame[24..26].copy_from_slice(&((sum + (sum >> 16)) as u16).to_be_bytes());
            self.to.send(frame);
            forwarded.fetch_add(1, Ordering::Relaxed);
        });
    }
}

/// Ends with the test, also where it fails.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn iperf3(args: &str) -> Program {
    let mut command = Command::new("iperf3");
    command.args(args.split(' ')).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    Program(command.spawn().expect("iperf3"))
}

/// 8 MiB go there and come back, byte by byte what was sent, and then the end.
fn there_and_back(near: &Wire, far: &Wire) -> thread::JoinHandle<()> {
    const WORDS: u32 = 2 << 20;
    let listener = far.there(|| TcpListener::bind((BEYOND4, 0)).expect("a listener"));
    let port = listener.local_addr().expect("an address").port();
    let mut sender = near.there(move || TcpStream::connect((BEYOND4, port)).expect("connected"));
    let mut echo = listener.accept().expect("accepted").0;
    let limit = Some(Duration::from_secs(60));
    for stream in [&sender, &echo] {
        stream.set_read_timeout(limit).expect("a time-out");
        stream.set_write_timeout(limit).expect("a time-out");
    }
    let mut receiver = sender.try_clone().expect("a clone");
    thread::spawn(move || std::io::copy(&mut echo.try_clone().expect("a clone"), &mut echo).expect("echoed"));
    let sends = thread::spawn(move || {
        for begin in (0..WORDS).step_by(4096) {
            let block: Vec<u8> = (begin..begin + 4096).flat_map(u32::to_be_bytes).collect();
            sender.write_all(&block).expect("sent");
        }
        sender.shutdown(Shutdown::Write).expect("its end");
    });
    thread::spawn(move || {
        let mut all = Vec::new();
        receiver.read_to_end(&mut all).expect("received");
        sends.join().expect("sent");
        assert_eq!(all.len(), WORDS as usize * 4);
        let (words, _) = all.as_chunks::<4>();
        let wrong = words.iter().zip(0..).find(|(word, n)| u32::from_be_bytes(**word) != *n);
        assert_eq!(wrong, None);
    })
}

/// The longest time without a segment of iperf3's data at the receiver, and how many there were.
fn longest_gap(frames: &Frames, ended: &AtomicBool) -> (Duration, u64) {
    let (mut longest, mut last, mut count) = (Duration::ZERO, None, 0);
    let mut buffer = [0; 64];
    while !ended.load(Ordering::Relaxed) {
        let Some((length, at)) = frames.receive(&mut buffer) else { continue };
        let port = u16::from_be_bytes([buffer[36], buffer[37]]);
        if length > 1000 && buffer[12..14] == [8, 0] && buffer[23] == 6 && port == 5201 {
            longest = last.map_or(longest, |last| longest.max(at.saturating_sub(last)));
            (last, count) = (Some(at), count + 1);
        }
    }
    (longest, count)
}

/// A connection of iperf3 and one of our own run through this host. A stateless rule gives both directions to a process, and its removal, or
/// another rule, gives them back to the kernel, over and over: each time they go the new way, none is reset, and no byte is lost.
#[test]
fn forwarded_connections_are_moved_while_they_run() {
    if !is_root() {
        return;
    }
    let near = Wire::new();
    let far = Wire::between("out", [OUT4, OUT6], "beyond", [BEYOND4, BEYOND6]);
    // It is this namespace's own: the file shows that of who opens it.
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding");
    run("ip link set here address 02:00:00:00:00:01");
    run("ip link set out address 02:00:00:00:00:03");
    // What a process forwards has to have its checksums already.
    near.there(|| {
        run("ip link set there address 02:00:00:00:00:02");
        run("ethtool -K there tx off tso off gso off");
        run(&format!("ip route add 10.10.0.0/24 via {HERE4}"));
    });
    far.there(|| {
        run("ip link set beyond address 02:00:00:00:00:04");
        run("ethtool -K beyond tx off tso off gso off");
        run(&format!("ip route add 10.9.0.0/24 via {OUT4}"));
    });
    Split::attach("here").expect("attached");
    Split::attach("out").expect("attached");
    let split = |interface: &str| Split::on(interface).expect("asked").expect("there");
    let (forwarded, ended) = (&AtomicU64::new(0), &AtomicBool::new(false));
    let legs = [("here", "out", 4, 3), ("out", "here", 2, 1)];
    let frames = far.there(|| Frames::of("beyond", true));
    let server = far.there(|| iperf3(&format!("-s -1 -B {BEYOND4} -p 5201")));
    thread::scope(|scope| {
        let (begins, begun) = std::sync::mpsc::channel();
        scope.spawn(move || {
            let [there, back] = legs.map(|(from, to, whose, own)| Leg::new(from, to, whose, own));
            begins.send(()).expect("told");
            while !ended.load(Ordering::Relaxed) {
                wait_for([there.from.descriptor(), back.from.descriptor()]);
                there.forward(forwarded);
                back.forward(forwarded);
            }
        });
        begun.recv().expect("it forwards");
        let gap = scope.spawn(|| longest_gap(&frames, ended));
        let ends = Ended(ended);
        let bytes = there_and_back(&near, &far);
        // It may be a moment until the server listens.
        let listens = Instant::now() + Duration::from_secs(20);
        while far
            .there(|| std::fs::read_to_string("/proc/thread-self/net/tcp").expect("sockets"))
            .lines()
            .all(|line| !line.contains(":1451 00000000:0000 0A"))
        {
            assert!(Instant::now() < listens, "iperf3 does not listen");
            thread::sleep(Duration::from_millis(5));
        }
        let mut client = near.there(|| iperf3(&format!("-c {BEYOND4} -p 5201 -t 2 -b 200M -l 64K -J")));
        let rules = |texts: &[&str]| -> rules::Rules {
            let words = |text: &&str| rules::parse(&text.split(' ').map(str::to_owned).collect::<Vec<_>>());
            (0..).zip(texts.iter().map(|text| words(text).expect("a rule"))).collect()
        };
        let ways = [
            rules(&["protocol tcp to queue 0 stateless"]),
            rules(&[]),
            rules(&["protocol tcp to queues stateless"]),
            rules(&["protocol tcp to kernel stateless", "protocol tcp to queue 0"]),
        ];
        let by_kernel = || {
            ["here", "out"].map(|on| {
                let (of_rules, others) = split(on).counts().expect("counted");
                others[0].packets + of_rules[0].packets
            })
        };
        let mut moves = 0;
        'runs: for way in ways.iter().cycle() {
            let queue = way.values().next().is_some_and(|rule| rule.to != steering::Target::Kernel);
            ["here", "out"].iter().for_each(|on| split(on).change(way).expect("changed"));
            let (process, kernel) = (forwarded.load(Ordering::Relaxed), by_kernel());
            let until = Instant::now() + Duration::from_secs(20);
            // Until some hundred packets have gone this way.
            loop {
                if client.0.try_wait().expect("asked").is_some() {
                    break 'runs;
                }
                let enough = if queue {
                    forwarded.load(Ordering::Relaxed) > process + 500
                } else {
                    by_kernel().iter().zip(kernel).all(|(now, before)| *now > before + 200)
                };
                if enough {
                    break;
                }
                assert!(Instant::now() < until, "nothing goes this way: {way:?}");
                thread::sleep(Duration::from_millis(5));
            }
            moves += 1;
        }
        bytes.join().expect("all bytes");
        let mut told = String::new();
        client.0.stdout.take().expect("its output").read_to_string(&mut told).expect("text");
        assert!(client.0.wait().expect("ended").success(), "{told}");
        drop(ends);
        let (gap, segments) = gap.join().expect("watched");
        eprintln!("{moves} moves, {segments} segments of iperf3, the longest gap {gap:?}");
        assert!(moves >= 4, "{moves} moves");
        assert!(segments > 1000, "{segments} segments");
    });
    drop(server);
    split("here").detach().expect("detached");
    split("out").detach().expect("detached");
}

/// Tells the threads that it is over, also where the test fails.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
