//! `bare`: what a device itself costs, without the engine: packets of one size, written and dropped, and to the kernel's ICMP and back; or those
//! that come by themselves.

use crate::run::Meter;
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};
use zstack::payload::Buffer;
use zstack::port::{Port, Refused};
use zstack_port::{Device, Kind, Spec};

/// IPv4 and ICMP header.
const HEADERS: usize = 28;

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Bytes of an IP packet.
    pub size: usize,
    /// For each of both measurements.
    pub time: Duration,
    pub json: bool,
}

/// Measures, and prints.
///
/// # Errors
/// A line for the user.
pub fn run(spec: &Spec, plan: Plan) -> Result<(), String> {
    let pair = spec.addresses.iter().find_map(|a| match (a.address, a.peer) {
        (IpAddr::V4(ours), Some(IpAddr::V4(peer))) => Some((ours, peer)),
        _ => None,
    });
    let Some((ours, peer)) = pair.filter(|_| spec.kind == Kind::Tun) else {
        return Err(
            "bare: it needs a tun device with IPv4 at both ends: --port tun:NAME,addr=10.9.0.2/24,peer=10.9.0.1".into(),
        );
    };
    let mut device = Device::open(spec).map_err(|e| e.to_string())?;
    let name = device.name().to_owned();
    over(&mut device, &name, (ours, peer), None, plan)
}

/// The same on any port that is open; `mac`: our Ethernet address, where packets begin with Ethernet's header.
///
/// # Errors
/// A line for the user.
pub fn over<P: Port>(
    port: &mut P,
    name: &str,
    (ours, peer): (Ipv4Addr, Ipv4Addr),
    mac: Option<[u8; 6]>,
    plan: Plan,
) -> Result<(), String> {
    let mtu = usize::from(port.capabilities().mtu);
    if !(HEADERS..=mtu).contains(&plan.size) {
        return Err(format!("--size {}: give {HEADERS} to {mtu} bytes, or a larger --mtu", plan.size));
    }
    let mut wire = Wire { port, ours, link: mac.map(|mac| Link { ours: mac, theirs: [0xff; 6] }) };
    wire.find(peer)?;
    let mut packet = wire.framed(&echo_request(ours, peer, plan.size));
    let ip = packet.len() - plan.size;
    let back = measure(plan.time, || {
        wire.send(&packet)?;
        wire.port.flush();
        wire.answer()
    })?;
    // The kernel drops it for its checksum, before it looks at anything else.
    packet[ip + 10] ^= 0xff;
    let written = measure(plan.time, || wire.send(&packet))?;
    wire.port.flush();
    if plan.json {
        crate::out::line(format_args!(
            "{}",
            json!({"tool": "zstack bare", "size_bytes": plan.size, "written_cpu_us": written.0, "written_us": written.1,
                "there_and_back_cpu_us": back.0, "there_and_back_us": back.1})
        ));
    } else {
        crate::out::line(format_args!(
            "a packet of {} bytes on {name}: written {:.2} us CPU ({:.2} us); to the kernel's ICMP and back {:.2} us CPU ({:.2} us)",
            plan.size, written.0, written.1, back.0, back.1
        ));
    }
    Ok(())
}

/// What a packet costs that comes by itself, from the driver to its return, while so many are held.
///
/// # Errors
/// A line for the user.
#[cfg(feature = "dpdk")]
pub fn received<P: Port>(port: &mut P, held: usize, time: Duration, json: bool) -> Result<(), String> {
    let mut packets = Vec::with_capacity(held);
    let (cpu, wall) = measure(time, || {
        let until = Instant::now() + PATIENCE;
        while packets.len() < held {
            match port.receive() {
                Ok(Some(packet)) => packets.push(packet),
                Ok(None) if Instant::now() < until => std::hint::spin_loop(),
                Ok(None) => {
                    return Err("nothing comes: it wants a device that makes packets, as dpdk:net_null0,no-rx=0".into());
                }
                Err(_) => return Err("the device is gone".into()),
            }
        }
        packets.clear();
        Ok(())
    })?;
    let (cpu, wall) = (cpu / held as f64, wall / held as f64);
    if json {
        crate::out::line(format_args!(
            "{}",
            json!({"tool": "zstack bare", "held": held, "received_cpu_us": cpu, "received_us": wall})
        ));
    } else {
        crate::out::line(format_args!(
            "a packet that comes, {held} held: {:.1} ns CPU ({:.1} ns)",
            cpu * 1e3,
            wall * 1e3
        ));
    }
    Ok(())
}

/// CPU and wall time of a step, in microseconds.
fn measure(time: Duration, mut step: impl FnMut() -> Result<(), String>) -> Result<(f64, f64), String> {
    // The first ones find cold caches, and the kernel busy with a new device.
    for _ in 0..100 {
        step()?;
    }
    let (meter, until) = (Meter::start(), Instant::now() + time);
    let mut steps = 0u32;
    while Instant::now() < until {
        for _ in 0..16 {
            step()?;
        }
        steps += 16;
    }
    let spent = meter.read();
    Ok((spent.cpu_s() * 1e6 / f64::from(steps), spent.wall_s * 1e6 / f64::from(steps)))
}

/// Ethernet addresses.
struct Link {
    ours: [u8; 6],
    theirs: [u8; 6],
}

/// A port, without an engine.
struct Wire<'a, P> {
    port: &'a mut P,
    ours: Ipv4Addr,
    link: Option<Link>,
}

/// As long as an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

impl<P: Port> Wire<'_, P> {
    fn framed(&self, packet: &[u8]) -> Vec<u8> {
        let header = self.link.as_ref().map(|l| [&l.theirs[..], &l.ours[..], &[8, 0]].concat());
        [&header.unwrap_or_default()[..], packet].concat()
    }

    fn send(&mut self, frame: &[u8]) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        loop {
            match crate::sys::send_whole(self.port, frame) {
                Ok(()) => return Ok(()),
                Err(Refused::Gone) => return Err("the device is gone".into()),
                Err(Refused::Full) if Instant::now() < until => self.port.flush(),
                Err(refused) => return Err(format!("the device does not take the packet ({refused:?})")),
            }
        }
    }

    /// Asks for the peer's Ethernet address, if there is one.
    fn find(&mut self, peer: Ipv4Addr) -> Result<(), String> {
        let Some(link) = &self.link else { return Ok(()) };
        let frame = arp(1, (link.ours, self.ours), ([0xff; 6], [0; 6], peer));
        self.send(&frame)?;
        self.port.flush();
        let found = self.until(&format!("{peer} does not answer to ARP: is it there?"), |frame| {
            let is = frame.get(12..14) == Some(&[8, 6]) && frame.get(20..22) == Some(&[0, 2]);
            (is && frame.get(28..32) == Some(&peer.octets())).then(|| frame[22..28].try_into().expect("six bytes"))
        })?;
        self.link.iter_mut().for_each(|link| link.theirs = found);
        Ok(())
    }

    /// Waits for the answer; other packets of the kernel's (IGMP, router solicitations) are passed over.
    fn answer(&mut self) -> Result<(), String> {
        let skip = if self.link.is_some() { 14 } else { 0 };
        let nobody = "the kernel does not answer pings (sysctl net.ipv4.icmp_echo_ignore_all=0)";
        self.until(nobody, |frame| frame.get(skip..).filter(|packet| is_answer(packet)).map(|_| ()))
    }

    /// Receives until one is the right one, and answers to ARP meanwhile.
    fn until<R>(&mut self, nobody: &str, right: impl Fn(&[u8]) -> Option<R>) -> Result<R, String> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.port.receive() {
                Ok(Some(packet)) => {
                    let bytes = &packet.buffer.bytes()[packet.range];
                    if let Some(result) = right(bytes) {
                        return Ok(result);
                    }
                    if let Some(reply) = self.arp_reply(bytes) {
                        self.send(&reply)?;
                        self.port.flush();
                    }
                }
                Ok(None) if Instant::now() < until => std::hint::spin_loop(),
                Ok(None) => return Err(nobody.to_owned()),
                Err(_) => return Err("the device is gone".into()),
            }
        }
    }

    fn arp_reply(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let link = self.link.as_ref()?;
        let asks =
            frame.get(12..14)? == [8, 6] && frame.get(20..22)? == [0, 1] && frame.get(38..42)? == self.ours.octets();
        let who: [u8; 6] = frame.get(22..28)?.try_into().ok()?;
        let address: [u8; 4] = frame.get(28..32)?.try_into().ok()?;
        asks.then(|| arp(2, (link.ours, self.ours), (who, who, address.into())))
    }
}

/// An ARP frame (RFC 826): operation, sender, and the target with where the frame goes.
fn arp(operation: u8, from: ([u8; 6], Ipv4Addr), to: ([u8; 6], [u8; 6], Ipv4Addr)) -> Vec<u8> {
    let head = [8, 6, 0, 1, 8, 0, 6, 4, 0, operation];
    [&to.0[..], &from.0, &head, &from.0, &from.1.octets(), &to.1, &to.2.octets()].concat()
}

/// Whether it is an echo reply of ICMP, with or without data.
fn is_answer(packet: &[u8]) -> bool {
    packet.len() >= HEADERS && packet[0] == 0x45 && packet[9] == 1 && packet[20] == 0
}

fn echo_request(from: Ipv4Addr, to: Ipv4Addr, size: usize) -> Vec<u8> {
    let mut packet = vec![0; size];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(size as u16).to_be_bytes());
    packet[6] = 0x40;
    packet[8..10].copy_from_slice(&[64, 1]);
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum);
    packet[20] = 8;
    let sum = checksum(&packet[20..]);
    packet[22..24].copy_from_slice(&sum);
    packet
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_checksums_that_the_kernel_wants() {
        for size in [HEADERS, 65, 1500] {
            let packet = echo_request([10, 0, 0, 2].into(), [10, 0, 0, 1].into(), size);
            assert_eq!((packet.len(), checksum(&packet[..20]), checksum(&packet[20..])), (size, [0, 0], [0, 0]));
        }
    }

    #[test]
    fn an_answer_may_be_headers_alone() {
        let mut packet = echo_request([10, 0, 0, 2].into(), [10, 0, 0, 1].into(), HEADERS);
        assert!(!is_answer(&packet));
        packet[20] = 0;
        assert!(is_answer(&packet) && !is_answer(&packet[..HEADERS - 1]));
    }

    #[test]
    fn who_asks_for_our_address_is_told_it() {
        let (mut port, _other) = zstack_port::pair(zstack_port::Settings::default());
        let ours = Ipv4Addr::new(10, 0, 0, 2);
        let link = Some(Link { ours: [2; 6], theirs: [0xff; 6] });
        let wire = Wire { port: &mut port, ours, link };
        let peer = ([4; 6], Ipv4Addr::new(10, 0, 0, 1));
        let question = arp(1, peer, ([0xff; 6], [0; 6], ours));
        assert_eq!(question.len(), 42);
        assert_eq!(wire.arp_reply(&question), Some(arp(2, ([2; 6], ours), ([4; 6], [4; 6], peer.1))));
        assert_eq!(wire.arp_reply(&arp(1, peer, ([0xff; 6], [0; 6], peer.1))), None);
        assert_eq!(wire.arp_reply(&question[..41]), None);
    }

    #[test]
    fn without_two_addresses_it_says_what_it_needs() {
        let plan = Plan { size: 100, time: Duration::from_millis(1), json: false };
        let spec: Spec = "tun:zsx,addr=10.0.0.2/24".parse().unwrap();
        assert!(run(&spec, plan).unwrap_err().contains("peer="));
    }
}
