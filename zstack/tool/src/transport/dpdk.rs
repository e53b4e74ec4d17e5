//! The engine over a queue of a DPDK device.

use super::engine::{Engine, Here, Sleep, watch};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;
use std::time::Duration;
use zstack_dpdk::{Device, Queue, Spec};
use zstack_port::Captured;

impl Sleep for Captured<Queue> {
    fn sleep(&mut self, watched: &[RawFd], limit: Option<Duration>, ready: &mut Vec<RawFd>) -> io::Result<()> {
        watch(watched, ready, |interests| self.port_mut().wait(interests, limit))
    }

    fn capture_failure(&self) -> Option<&io::Error> {
        self.failure()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let c = self.port().counters();
        vec![
            ("device_received", c.received),
            ("device_oversized", c.oversized),
            ("device_sent", c.sent),
            ("device_sent_bytes_in_place", c.attached_bytes),
            ("device_sent_bytes_copied", c.copied_bytes),
            ("device_bursts", c.bursts),
            ("device_unfit", c.unfit),
            ("device_starved", c.starved),
            ("device_missed", c.missed),
            ("device_unsent", c.unsent),
        ]
    }

    fn about(&self) -> Vec<(&'static str, String)> {
        self.port().about()
    }
}

/// The device that `--port` names, with what the other options change.
///
/// # Errors
/// A line for the user.
pub fn spec(text: &str) -> Result<Spec, String> {
    let spec: Spec = text.parse().map_err(|e| format!("--port {text}: {e}"))?;
    if spec.addresses.is_empty() {
        return Err(format!("--port {text}: the engine needs an address: add addr=ADDRESS/PREFIX"));
    }
    if spec.queues > 1 {
        return Err(format!("--port {text}: this tool has one thread and serves one queue: leave queues= out"));
    }
    Ok(spec)
}

/// Opens the device.
///
/// # Errors
/// A line for the user.
pub fn open(spec: &Spec, pcap: Option<&std::path::Path>) -> Result<Engine<Captured<Queue>>, String> {
    let queue = Device::open(spec).map_err(|e| e.to_string())?.first();
    let (name, mac) = (queue.name().to_owned(), queue.mac());
    let (addresses, gateways) = (&spec.addresses[..], &spec.gateways[..]);
    Engine::over(queue, &Here { addresses, gateways, mac, vlan: spec.vlan, pcap, name: &name })
}

/// Opens the device, alone.
///
/// # Errors
/// A line for the user.
pub fn queue(spec: &Spec) -> Result<Queue, String> {
    Ok(Device::open(spec).map_err(|e| e.to_string())?.first())
}

/// Opens the device to be measured by itself. Its addresses are ours and whom to ping.
///
/// # Errors
/// A line for the user.
pub fn device(spec: &Spec) -> Result<(Queue, (Ipv4Addr, Ipv4Addr)), String> {
    let four = |ip: IpAddr| if let IpAddr::V4(ip) = ip { Some(ip) } else { None };
    let ours = spec.addresses.iter().find_map(|a| four(a.address));
    let peers = spec.addresses.iter().filter_map(|a| a.peer).chain(spec.gateways.iter().copied());
    let (Some(ours), Some(peer)) = (ours, peers.into_iter().find_map(four)) else {
        return Err(
            "bare: whom to ping? Add gateway=ADDRESS, the kernel's at the other end, or peer= of a net_tap; IPv4 both"
                .into(),
        );
    };
    Ok((Device::open(spec).map_err(|e| e.to_string())?.first(), (ours, peer)))
}
