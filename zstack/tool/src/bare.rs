//! `bare`: what a tun device itself costs, without the engine: packets of one size, written and dropped, and to the kernel's ICMP and back.

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
    let mtu = usize::from(device.capabilities().mtu);
    if !(HEADERS..=mtu).contains(&plan.size) {
        return Err(format!("--size {}: give {HEADERS} to {mtu} bytes, or a larger --mtu", plan.size));
    }
    let mut packet = echo_request(ours, peer, plan.size);
    let back = measure(plan.time, || {
        send(&mut device, &packet)?;
        answer(&mut device)
    })?;
    // The kernel drops it for its checksum, before it looks at anything else.
    packet[10] ^= 0xff;
    let written = measure(plan.time, || send(&mut device, &packet))?;
    if plan.json {
        crate::out::line(format_args!(
            "{}",
            json!({"tool": "zstack bare", "size_bytes": plan.size, "written_cpu_us": written.0, "written_us": written.1,
                "there_and_back_cpu_us": back.0, "there_and_back_us": back.1})
        ));
    } else {
        crate::out::line(format_args!(
            "a packet of {} bytes on {}: written {:.2} us CPU ({:.2} us); to the kernel's ICMP and back {:.2} us CPU ({:.2} us)",
            plan.size,
            device.name(),
            written.0,
            written.1,
            back.0,
            back.1
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

fn send(device: &mut Device, packet: &[u8]) -> Result<(), String> {
    crate::sys::send_whole(device, packet).map_err(|refused| match refused {
        Refused::Gone => "the device is gone".to_owned(),
        Refused::Full | Refused::Unfit => format!("the device does not take the packet ({refused:?})"),
    })
}

/// Waits for the answer; other packets of the kernel's (IGMP, router solicitations) are passed over.
fn answer(device: &mut Device) -> Result<(), String> {
    let until = Instant::now() + Duration::from_secs(2);
    loop {
        match device.receive() {
            Ok(Some(packet)) => {
                let bytes = &packet.buffer.bytes()[packet.range];
                if is_answer(bytes) {
                    return Ok(());
                }
            }
            Ok(None) if Instant::now() < until => std::hint::spin_loop(),
            Ok(None) => return Err("the kernel does not answer pings (sysctl net.ipv4.icmp_echo_ignore_all=0)".into()),
            Err(_) => return Err("the device is gone".into()),
        }
    }
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
    fn without_two_addresses_it_says_what_it_needs() {
        let plan = Plan { size: 100, time: Duration::from_millis(1), json: false };
        let spec: Spec = "tun:zsx,addr=10.0.0.2/24".parse().unwrap();
        assert!(run(&spec, plan).unwrap_err().contains("peer="));
    }
}
