//! Connections of which the kernel knows by a SYN cookie alone when the rules change. As root.

mod wire;

use culvert_split::{Split, rules};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};
use wire::{Frames, HERE4, HERE6, Socket, Wire, is_root, run};

/// A client that the other namespace's kernel does not know of, so that we answer for it.
const CLIENT4: &str = "10.9.0.77";
const CLIENT6: &str = "fd09::77";

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// A segment of the client's, from port 4000.
struct Segment {
    ip: (IpAddr, IpAddr),
    port: u16,
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
    payload: &'static [u8],
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w.get(1).copied().unwrap_or(0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    (!(sum as u16)).to_be_bytes()
}

impl Segment {
    fn frame(&self) -> Vec<u8> {
        let mut tcp = [4000_u16.to_be_bytes(), self.port.to_be_bytes()].concat();
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledgement.to_be_bytes());
        tcp.extend([0x50, self.flags, 0x40, 0, 0, 0, 0, 0]);
        tcp.extend(self.payload);
        let (source, destination) = (octets(self.ip.0), octets(self.ip.1));
        let pseudo = [&source[..], &destination, &[0, 6], &(tcp.len() as u16).to_be_bytes()].concat();
        let sum = checksum(&[&pseudo[..], &tcp].concat());
        tcp[16..18].copy_from_slice(&sum);
        let mut ip = if source.len() == 4 {
            [&[0x45, 0][..], &(20 + tcp.len() as u16).to_be_bytes(), &[0, 1, 0x40, 0, 64, 6, 0, 0]].concat()
        } else {
            [&[0x60, 0, 0, 0][..], &(tcp.len() as u16).to_be_bytes(), &[6, 64]].concat()
        };
        ip.extend([source, destination].concat());
        if ip.len() == 20 {
            let sum = checksum(&ip);
            ip[10..12].copy_from_slice(&sum);
        }
        let types: [u8; 2] = if ip.len() == 20 { [8, 0] } else { [0x86, 0xdd] };
        [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2], &types[..], &ip, &tcp].concat()
    }
}

/// The next connection; fails if none comes.
fn accepted(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).expect("a listener that does not wait");
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).expect("a stream that waits");
                return stream;
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < until => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(e) => panic!("no connection: {e}"),
        }
    }
}

/// The kernel has answered a SYN with a cookie, and then a rule sends the listener's connections to the queue: the ACK that brings the cookie
/// back, and what comes behind it, are the kernel's. The next connection is the queue's; and where no cookie was sent, so is an ACK of which nobody knows.
#[test]
fn a_cookie_comes_back_to_who_has_sent_it() {
    if !is_root() {
        return;
    }
    let wire = Wire::new();
    run("ip link set here address 02:00:00:00:00:01");
    for client in [CLIENT4, CLIENT6] {
        run(&format!("ip neigh add {client} lladdr 02:00:00:00:00:02 dev here"));
    }
    Split::attach("here").expect("attached");
    let now = || Split::on("here").expect("asked").expect("there");
    let listener = TcpListener::bind("[::]:0").expect("a listener");
    let port = listener.local_addr().expect("an address").port();
    let words: Vec<String> = "protocol tcp to queue 0".split(' ').map(str::to_owned).collect();
    let queue: rules::Rules = [(0, rules::parse(&words).expect("a rule"))].into();
    let frames = wire.there(|| Frames::of("there", true));
    let socket = Socket::new("here", 0, &now());
    let addresses = [(CLIENT4, HERE4), (CLIENT6, HERE6)];
    let segments = addresses.map(|(client, here)| {
        let ip = (client.parse().expect("an address"), here.parse().expect("an address"));
        Segment { ip, port, sequence: 1000, acknowledgement: 0, flags: SYN, payload: b"" }
    });
    // No cookie was sent as yet: the ACK of which nobody knows is under the rule.
    now().change(&queue).expect("changed");
    for segment in &segments {
        frames.send(&Segment { flags: ACK, acknowledgement: 5, ip: segment.ip, ..*segment }.frame());
    }
    assert_eq!(socket.take(2).len(), 2);
    now().change(&rules::Rules::new()).expect("changed");
    // It is this namespace's own: a cookie for each SYN.
    std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2").expect("cookies");
    let cookies = segments.each_ref().map(|segment| {
        frames.send(&segment.frame());
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            assert!(Instant::now() < until, "no answer to the SYN");
            let mut answer = [0; 128];
            let Some(_) = frames.receive(&mut answer) else { continue };
            let header = if segment.ip.0.is_ipv4() { 34 } else { 54 };
            let to = octets(segment.ip.0);
            let tcp = &answer[header..];
            if answer[header - to.len()..header] == to[..] && tcp[13] == SYN | ACK {
                break u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
            }
        }
    });
    now().change(&queue).expect("changed");
    for (segment, cookie) in segments.iter().zip(cookies) {
        let bare = Segment { sequence: 1001, acknowledgement: cookie + 1, flags: ACK, ..*segment };
        frames.send(&bare.frame());
        frames.send(&Segment { payload: b"hello", ..bare }.frame());
        let mut server = accepted(&listener);
        server.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
        let mut bytes = [0; 5];
        server.read_exact(&mut bytes).expect("received");
        assert_eq!(&bytes, b"hello");
        server.write_all(b"answer").expect("sent");
    }
    assert_eq!(socket.take(0).len(), 0, "a segment of the kernel's connections came to the queue");
    // Another connection, and a reset that no socket knows of.
    for segment in &segments {
        frames.send(&Segment { sequence: 5000, ..*segment }.frame());
        frames.send(&Segment { port: port ^ 1, flags: RST, ..*segment }.frame());
    }
    assert_eq!(socket.take(4).len(), 4);
    now().detach().expect("detached");
}
