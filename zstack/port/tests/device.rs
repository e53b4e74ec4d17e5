//! Tun and tap devices against the kernel, in network namespaces.

mod lab;

use lab::Namespace;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};
use zstack::payload::{Buffer, Region, Span, Spans};
use zstack::port::{Checksum, Frame, Medium, Port, Refused};
use zstack_port::{Captured, Device, Interest, OpenError, Spec};

const LIMIT: Duration = Duration::from_secs(20);

fn spec(text: &str) -> Spec {
    text.parse().unwrap()
}

fn open(text: &str) -> Device {
    Device::open(&spec(text)).unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// Runs a test in a namespace of its own; nothing of IPv6 disturbs it unless it has an IPv6 address.
fn alone(work: impl FnOnce(&Namespace) + Send) {
    let namespace = Namespace::new();
    namespace.within(|| {
        std::fs::write("/proc/sys/net/ipv6/conf/default/addr_gen_mode", "1").unwrap();
        work(&namespace);
    });
}

/// The next packet for which `wanted` holds. The kernel sends things of its own (MLD reports).
fn receive(device: &mut Device, mut wanted: impl FnMut(&[u8]) -> bool) -> (Vec<u8>, bool) {
    let end = Instant::now() + LIMIT;
    loop {
        while let Some(got) = device.receive().unwrap() {
            let bytes = &got.buffer.bytes()[got.range];
            if wanted(bytes) {
                return (bytes.to_vec(), got.verified);
            }
        }
        let rest = end.checked_duration_since(Instant::now()).expect("a packet in time");
        device.wait(&mut [], Some(rest)).unwrap();
    }
}

fn send(port: &mut impl Port, frame: &Frame<'_>) -> Result<(), Refused> {
    // SAFETY: the payloads of these tests live through the call, and the devices read nothing later.
    unsafe { port.send(frame) }
}

fn spans(a: &[u8], b: &[u8]) -> Spans {
    Spans([a, b].map(|s| Span { start: s.as_ptr(), len: s.len() as u32, region: Region(0) }))
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// The sum of the pseudo header.
fn pseudo(from: IpAddr, to: IpAddr, protocol: u8, len: usize) -> u32 {
    sum(&octets(from)) + sum(&octets(to)) + u32::from(protocol) + len as u32
}

/// The IP header before `len` bytes of a transport.
fn ip(from: IpAddr, to: IpAddr, protocol: u8, len: usize) -> Vec<u8> {
    let mut head = if from.is_ipv4() {
        let mut head = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0];
        head[2..4].copy_from_slice(&(20 + len as u16).to_be_bytes());
        head
    } else {
        let mut head = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
        head[4..6].copy_from_slice(&(len as u16).to_be_bytes());
        head
    };
    head.extend(octets(from));
    head.extend(octets(to));
    if from.is_ipv4() {
        let check = !fold(sum(&head));
        head[10..12].copy_from_slice(&check.to_be_bytes());
    }
    head
}

/// IP and UDP header from port 7 to port 9 before `payload`; the checksum complete, or of the pseudo header.
fn udp(from: IpAddr, to: IpAddr, payload: &[u8], partial: bool) -> Vec<u8> {
    let len = 8 + payload.len();
    let mut udp = [[0, 7, 0, 9], [(len >> 8) as u8, len as u8, 0, 0]].concat();
    let pseudo = pseudo(from, to, 17, len);
    let check = if partial { fold(pseudo) } else { !fold(pseudo + sum(&udp) + sum(payload)) };
    udp[6..8].copy_from_slice(&check.to_be_bytes());
    [ip(from, to, 17, len), udp].concat()
}

/// Whether the transport checksum of an IP packet is right.
fn sound(packet: &[u8]) -> bool {
    let (head, protocol, addresses) =
        if packet[0] >> 4 == 4 { (20, packet[9], &packet[12..20]) } else { (40, packet[6], &packet[8..40]) };
    let transport = &packet[head..];
    fold(sum(addresses) + u32::from(protocol) + transport.len() as u32 + sum(transport)) == 0xffff
}

fn is_udp(packet: &[u8]) -> bool {
    packet[0] >> 4 == 4 && packet[9] == 17 || packet[0] >> 4 == 6 && packet[6] == 17
}

/// A datagram each way between the kernel's socket at `peer` and the device at `own`.
fn exchange(device: &mut Device, own: &str, peer: &str) {
    let (own, peer): (IpAddr, IpAddr) = (own.parse().unwrap(), peer.parse().unwrap());
    let offload = device.capabilities().checksum;
    let socket = UdpSocket::bind((peer, 9)).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.send_to(b"from the kernel", (own, 7)).unwrap();
    let (packet, verified) = receive(device, is_udp);
    assert!(packet.ends_with(b"from the kernel"));
    assert_eq!(verified, offload, "the kernel leaves the checksum out if it may");
    assert_eq!(sound(&packet), !offload);

    let head = udp(own, peer, b"from the device", offload);
    let start = (head.len() - 8) as u16;
    let checksum = if offload { Checksum::Partial { start, offset: 6 } } else { Checksum::Complete };
    send(device, &Frame { head: &head, payload: spans(b"from ", b"the device"), checksum, cut: 0 }).unwrap();
    let mut bytes = [0; 100];
    let (len, from) = socket.recv_from(&mut bytes).unwrap();
    assert_eq!((&bytes[..len], from), (&b"from the device"[..], (own, 7).into()));
}

#[test]
fn datagrams_both_ways_over_a_tun_device() {
    need_root!();
    for offload in ["on", "checksum", "off"] {
        alone(|_| {
            let addresses = "addr=10.9.0.2/24,peer=10.9.0.1,addr=fd00::2/64,peer=fd00::1";
            let mut device = open(&format!("tun:zs0,{addresses},offload={offload}"));
            let c = device.capabilities();
            assert_eq!((c.medium, c.mtu, c.late), (Medium::Ip, 1500, false));
            assert_eq!((c.checksum, c.tso > 0), (offload != "off", offload == "on"));
            exchange(&mut device, "10.9.0.2", "10.9.0.1");
            exchange(&mut device, "fd00::2", "fd00::1");
            assert_eq!(device.completed(), 2);
            assert_eq!(device.counters().sent, 2);
        });
    }
}

#[test]
fn settings_reach_the_device() {
    need_root!();
    alone(|namespace| {
        let device = open("tun:zs0,addr=10.9.0.2/24,peer=10.9.0.1,mtu=9000");
        assert_eq!((device.name(), device.capabilities().mtu), ("zs0", 9000));
        let text = namespace.run("ip address show dev zs0");
        assert!(text.contains("mtu 9000") && text.contains("qlen 65536") && text.contains("LOWER_UP"), "{text}");
        assert!(text.contains("inet 10.9.0.1/24"), "{text}");
        drop(device);
        // Without anything to set, nothing is set.
        let device = open("tap:zs1,queue=77");
        assert_eq!(device.capabilities().medium, Medium::Ethernet);
        let text = namespace.run("ip address show dev zs1");
        assert!(text.contains("mtu 1500") && text.contains("qlen 77") && text.contains("state DOWN"), "{text}");
        gone(namespace, "zs0");
    });
}

#[test]
fn a_tap_device_speaks_ethernet() {
    need_root!();
    alone(|_| {
        let mut device = open("tap:zs0,addr=10.9.0.2/24,peer=10.9.0.1,offload=checksum");
        let (own, peer) = ([10, 9, 0, 2], [10, 9, 0, 1]);
        let socket = UdpSocket::bind("10.9.0.1:9").unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket.send_to(b"hello", "10.9.0.2:7").unwrap();
        let (request, _) = receive(&mut device, |p| p[12..14] == [8, 6]);
        assert_eq!(request[..6], [0xff; 6]);
        assert_eq!(request[38..42], own);
        let (kernel, mac) = (&request[6..12], [2, 0, 0, 0, 0, 1]);
        let arp = [&[0, 1, 8, 0, 6, 4, 0, 2], &mac[..], &own, kernel, &peer].concat();
        let reply = [kernel, &mac[..], &[8, 6], &arp].concat();
        let payload = Spans::EMPTY;
        send(&mut device, &Frame { head: &reply, payload, checksum: Checksum::Complete, cut: 0 }).unwrap();
        let (packet, verified) = receive(&mut device, |p| p[12..14] == [8, 0] && is_udp(&p[14..]));
        assert_eq!(packet[..6], mac);
        assert!(packet.ends_with(b"hello") && verified);
        let head = [kernel, &mac[..], &[8, 0], &udp(own.into(), peer.into(), b"back", true)].concat();
        let checksum = Checksum::Partial { start: 34, offset: 6 };
        send(&mut device, &Frame { head: &head, payload: spans(b"back", &[]), checksum, cut: 0 }).unwrap();
        let mut bytes = [0; 10];
        assert_eq!(socket.recv(&mut bytes).unwrap(), 4);
    });
}

/// A TCP segment's headers with a partial checksum.
fn tcp(from: IpAddr, to: IpAddr, len: usize) -> Vec<u8> {
    let mut tcp = vec![0, 7, 0, 9, 0, 0, 0x10, 0, 0, 0, 0, 1, 5 << 4, 0x18, 0xff, 0xff, 0, 0, 0, 0];
    let check = fold(pseudo(from, to, 6, 20 + len));
    tcp[16..18].copy_from_slice(&check.to_be_bytes());
    [ip(from, to, 6, 20 + len), tcp].concat()
}

/// What one device hands over to be cut reaches, through the kernel's forwarding, another: whole if that takes it so, and else cut.
#[test]
fn packets_of_several_segments_are_cut_or_handed_on() {
    need_root!();
    let payload: Vec<u8> = (0..10_000u32).map(|i| (i * 7 + i / 256) as u8).collect();
    let pairs = [("10.9.0.2", "10.8.0.2"), ("fd00:9::2", "fd00:8::2")];
    for (offload, (from, to)) in ["on", "checksum", "off"].into_iter().flat_map(|o| pairs.map(|p| (o, p))) {
        alone(|namespace| {
            namespace.sysctl("ipv4/ip_forward", "1");
            namespace.sysctl("ipv6/conf/all/forwarding", "1");
            let mut a = open("tun:a,addr=10.9.0.2/24,peer=10.9.0.1,addr=fd00:9::2/64,peer=fd00:9::1");
            let addresses = "addr=10.8.0.2/24,peer=10.8.0.1,addr=fd00:8::2/64,peer=fd00:8::1";
            let mut b = open(&format!("tun:b,{addresses},offload={offload}"));
            let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let head = tcp(from, to, payload.len());
            let transport = head.len() - 20;
            let checksum = Checksum::Partial { start: transport as u16, offset: 16 };
            let (x, y) = payload.split_at(3333);
            send(&mut a, &Frame { head: &head, payload: spans(x, y), checksum, cut: 1400 }).unwrap();
            let segment = if offload == "on" { payload.len() } else { 1400 };
            let is_tcp = |p: &[u8]| p[if p[0] >> 4 == 4 { 9 } else { 6 }] == 6;
            for (i, part) in payload.chunks(segment).enumerate() {
                let (packet, verified) = receive(&mut b, is_tcp);
                assert_eq!(packet[transport + 4..transport + 8], (0x1000 + (i * 1400) as u32).to_be_bytes());
                assert!(packet[transport + 20..] == *part, "segment {i} with offload={offload}");
                assert!(if offload == "off" { sound(&packet) && !verified } else { verified });
            }
            assert_eq!((a.counters().cut, b.counters().joined), (1, u64::from(offload == "on")));
        });
    }
}

#[test]
fn a_frame_that_the_device_cannot_take_is_unfit() {
    need_root!();
    alone(|_| {
        let mut device = open("tun:zs0,addr=10.9.0.2/24,peer=10.9.0.1,offload=off");
        let head = udp([10, 9, 0, 2].into(), [10, 9, 0, 1].into(), b"", false);
        let frame = Frame { head: &head, payload: Spans::EMPTY, checksum: Checksum::Complete, cut: 0 };
        let partial = Checksum::Partial { start: 20, offset: 6 };
        assert_eq!(send(&mut device, &Frame { checksum: partial, ..frame }), Err(Refused::Unfit), "no offload");
        assert_eq!(
            send(&mut device, &Frame { head: &[0x75; 40], ..frame }),
            Err(Refused::Unfit),
            "neither IPv4 nor IPv6"
        );
        assert_eq!((device.completed(), device.counters().unfit), (0, 2));
        // The payload is read by the kernel and by nobody else: an address where nothing is makes the call fail, and does not kill
        // the process. (The promise about readable memory is broken on purpose.)
        let nowhere = Span { start: std::ptr::without_provenance(4096), len: 100, region: Region(0) };
        assert_eq!(send(&mut device, &Frame { payload: Spans([nowhere, Span::EMPTY]), ..frame }), Err(Refused::Unfit));
        send(&mut device, &frame).unwrap();
        assert_eq!(device.completed(), 1);
    });
}

#[test]
fn a_device_that_is_deleted_is_gone() {
    need_root!();
    alone(|namespace| {
        let mut device = open("tun:zs0,addr=10.9.0.2/24,peer=10.9.0.1");
        namespace.run("ip link del zs0");
        device.wait(&mut [], None).unwrap();
        let head = udp([10, 9, 0, 2].into(), [10, 9, 0, 1].into(), b"", false);
        let frame = Frame { head: &head, payload: Spans::EMPTY, checksum: Checksum::Complete, cut: 0 };
        for _ in 0..2 {
            assert!(matches!(device.receive(), Err(Refused::Gone)));
            assert_eq!(send(&mut device, &frame), Err(Refused::Gone));
        }
    });
}

#[test]
fn a_link_that_is_down_loses_packets_and_comes_back() {
    need_root!();
    alone(|namespace| {
        let mut device = open("tun:zs0,addr=10.9.0.2/24,peer=10.9.0.1,offload=off");
        namespace.run("ip link set zs0 down");
        let head = udp([10, 9, 0, 2].into(), [10, 9, 0, 1].into(), b"", false);
        send(&mut device, &Frame { head: &head, payload: Spans::EMPTY, checksum: Checksum::Complete, cut: 0 }).unwrap();
        assert_eq!((device.counters().down, device.completed()), (1, 1));
        assert!(device.receive().unwrap().is_none());
        namespace.run("ip link set zs0 up");
        exchange(&mut device, "10.9.0.2", "10.9.0.1");
    });
}

#[test]
fn without_free_buffers_packets_stay_in_the_device_and_nobody_spins() {
    need_root!();
    alone(|_| {
        let mut device = open("tun:zs0,addr=10.9.0.2/24,peer=10.9.0.1,buffers=4");
        let socket = UdpSocket::bind("10.9.0.1:9").unwrap();
        for i in 0..9u8 {
            socket.send_to(&[i], "10.9.0.2:7").unwrap();
        }
        let mut held = Vec::new();
        while let Some(got) = device.receive().unwrap() {
            held.push(got);
        }
        assert_eq!(held.len(), 4);
        assert!(held[0].buffer.scarce() && device.pool().free() == 0);
        assert_eq!(device.counters().starved, 1);
        // A packet is there and does not wake; another descriptor does.
        let began = Instant::now();
        device.wait(&mut [], Some(Duration::from_millis(30))).unwrap();
        assert!(began.elapsed() >= Duration::from_millis(30));
        let (reader, writer) = std::io::pipe().unwrap();
        drop(writer);
        let mut others = [Interest::read(std::os::fd::AsFd::as_fd(&reader))];
        device.wait(&mut others, None).unwrap();
        assert!(others[0].ready);
        held.remove(0);
        device.wait(&mut [], None).unwrap();
        let next = device.receive().unwrap().unwrap();
        assert!(next.buffer.bytes()[next.range].ends_with(&[4]), "nothing was lost");
    });
}

#[test]
fn a_packet_longer_than_the_buffers_is_counted_and_dropped() {
    need_root!();
    alone(|namespace| {
        let mut device = open("tun:zs0,addr=10.9.0.2/24,peer=10.9.0.1,offload=off");
        namespace.run("ip link set zs0 mtu 9000");
        let socket = UdpSocket::bind("10.9.0.1:9").unwrap();
        socket.send_to(&[1; 8000], "10.9.0.2:7").unwrap();
        socket.send_to(b"short", "10.9.0.2:7").unwrap();
        assert!(receive(&mut device, is_udp).0.ends_with(b"short"));
        assert_eq!(device.counters().oversized, 1);
    });
}

/// A device that its owner has closed goes with the last descriptor. A process that another test starts at that moment has them all
/// between its fork and its exec, which closes them; on a busy machine that takes a while.
fn gone(namespace: &Namespace, name: &str) {
    lab::soon(&format!("the end of {name}"), LIMIT, || (!namespace.run("ip link").contains(name)).then_some(()));
}

fn refusal(text: &str) -> (OpenError, String) {
    let error = Device::open(&spec(text)).err().unwrap_or_else(|| panic!("{text} was opened"));
    let sentence = error.to_string();
    (error, sentence)
}

#[test]
fn errors_of_opening_name_the_device_and_the_remedy() {
    need_root!();
    alone(|namespace| {
        let _first = open("tun:zs0");
        let (error, text) = refusal("tun:zs0");
        assert!(matches!(error, OpenError::Busy { .. }), "{error:?}");
        assert!(text.contains("zs0 is in use: end the process"), "{text}");
        for taken in ["tap:zs0", "tun:lo"] {
            let (error, text) = refusal(taken);
            assert!(matches!(error, OpenError::OtherKind { .. }), "{error:?}");
            assert!(text.contains("choose another name"), "{text}");
        }
        let (_, text) = refusal("tun:zs1,queue=1048576");
        assert!(text.contains("zs1 does not take queue=1048576") && text.contains("choose"), "{text}");
        // A device that could not be set up does not stay.
        gone(namespace, "zs1");
        namespace.sysctl("ipv6/conf/default/disable_ipv6", "1");
        let (_, text) = refusal("tun:zs1,addr=fd00::2/64,peer=fd00::1");
        assert!(
            text.contains("zs1 does not take peer=fd00::1/64") && text.contains("IPv6 may be switched off"),
            "{text}"
        );
        gone(namespace, "zs1");
    });
}

#[test]
fn without_rights_the_error_says_which() {
    need_root!();
    const CAP_NET_ADMIN: u32 = 12;
    const CAP_DAC_OVERRIDE: u32 = 1;
    let namespace = Namespace::new();
    namespace.within(|| {
        lab::without_capability(CAP_NET_ADMIN);
        let (error, text) = refusal("tap:zs0");
        assert!(matches!(error, OpenError::NoRights { .. }), "{error:?}");
        assert!(text.contains("ip tuntap add dev zs0 mode tap user USER"), "{text}");
    });
    lab::with_own_mounts(|| {
        lab::mount_tmpfs("/dev/net", "");
        let (error, text) = refusal("tun:zs0");
        assert!(matches!(error, OpenError::NoTun), "{error:?}");
        assert!(text.contains("modprobe tun"), "{text}");
        std::fs::write("/dev/net/tun", "").unwrap();
        std::fs::set_permissions("/dev/net/tun", std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
        lab::without_capability(CAP_DAC_OVERRIDE);
        let (error, text) = refusal("tun:zs0");
        assert!(matches!(error, OpenError::NoAccess), "{error:?}");
        assert!(text.contains("no right to open /dev/net/tun"), "{text}");
    });
}

/// The disk is full in the middle of a block: the file ends with the last whole one, and packets go on.
#[test]
fn a_capture_on_a_full_disk_stays_readable() {
    need_root!();
    lab::with_own_mounts(|| {
        let directory = std::env::temp_dir();
        lab::mount_tmpfs(directory.to_str().unwrap(), "size=64k");
        let path = directory.join("capture");
        let (near, mut far) = zstack_port::pair(zstack_port::Settings::default());
        let mut near = Captured::to_file(near, &path, "wire0").unwrap();
        let payload = [7; 1000];
        for sent in 1.. {
            let frame = Frame { head: b"head", payload: spans(&payload, &[]), checksum: Checksum::Complete, cut: 0 };
            send(&mut near, &frame).unwrap();
            near.flush();
            assert!(far.receive().unwrap().is_some());
            if near.failure().is_some() {
                send(&mut near, &frame).unwrap();
                assert!(sent > 50, "{sent} packets of 1 kB");
                break;
            }
        }
        assert_eq!(near.failure().unwrap().raw_os_error(), Some(libc::ENOSPC));
        let bytes = std::fs::read(&path).unwrap();
        let mut at = 0;
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        while at < bytes.len() {
            let len = word(at + 4);
            assert_eq!(word(at + len - 4), len, "block at {at}");
            at += len;
        }
        assert!(at > 50_000);
    });
}
