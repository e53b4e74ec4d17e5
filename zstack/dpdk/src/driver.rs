//! What is known of DPDK's drivers that they do not say themselves.

/// How a driver takes payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Payload {
    /// In segments of their own that point at the owner's memory.
    Attached,
    /// Copied behind the header: the driver has no chains of segments, or the device cannot read memory that it was not told of.
    Copied,
    /// Copied into a buffer of the receive pool, which is the memory that the device shares with the kernel.
    CopiedToReceivePool,
}

/// Where the buffers of packets that arrive can lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Takes {
    /// In any memory: the driver's processor time copies packets there.
    Pinned,
    /// In any memory, with their mbufs.
    Whole,
    /// In DPDK's own, or it is not known; for this reason.
    Dpdks(&'static str),
    /// In what DPDK was told of.
    Told(&'static str),
}

/// A driver, by the beginning of its devices' names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Driver {
    AfPacket,
    AfXdp,
    Tap,
    Memif,
    VirtioUser,
    Vhost,
    Pcap,
    Null,
    Ring,
    /// A device on the PCI bus, named by its address.
    Pci,
    /// Any other virtual device: what it says of itself is believed, and no more.
    Other,
}

impl Driver {
    /// Which driver a device of this name has.
    pub fn of(device: &str) -> Driver {
        let name = device.trim_start_matches("vdev:");
        let known = [
            ("net_af_packet", Driver::AfPacket),
            ("eth_af_packet", Driver::AfPacket),
            ("net_af_xdp", Driver::AfXdp),
            ("net_tap", Driver::Tap),
            ("net_memif", Driver::Memif),
            ("net_virtio_user", Driver::VirtioUser),
            ("virtio_user", Driver::VirtioUser),
            ("net_vhost", Driver::Vhost),
            ("eth_vhost", Driver::Vhost),
            ("net_pcap", Driver::Pcap),
            ("eth_pcap", Driver::Pcap),
            ("net_null", Driver::Null),
            ("eth_null", Driver::Null),
            ("net_ring", Driver::Ring),
            ("eth_ring", Driver::Ring),
        ];
        if let Some((_, driver)) = known.iter().find(|(prefix, _)| name.starts_with(prefix)) {
            return *driver;
        }
        if is_pci(device.trim_start_matches("pci:")) { Driver::Pci } else { Driver::Other }
    }

    /// How it takes payload, if it can chain segments (`chains`, RTE_ETH_TX_OFFLOAD_MULTI_SEGS); `shares`: as for [`Driver::takes`].
    pub fn payload(self, chains: bool, shares: bool) -> Payload {
        match self {
            // It sends what follows the header in its own buffer, whatever the chain says, and reports success.
            Driver::AfXdp => Payload::CopiedToReceivePool,
            // Read by the processor, before tx_burst returns.
            Driver::AfPacket | Driver::Tap | Driver::Memif if chains && !shares => Payload::Attached,
            // It frees what it is given, segment by segment, and says nothing of chains.
            Driver::Null => Payload::Attached,
            // It passes addresses on without looking: an engine at the other end would read our memory after it was released.
            Driver::Ring => Payload::Copied,
            // A device reads DPDK's memory alone, until others are registered with it; so does the other end of virtio.
            _ => Payload::Copied,
        }
    }

    /// Where the buffers of packets that arrive can lie; `shares`: it was told to let the other end reach its memory (net_memif's zero-copy=).
    pub fn takes(self, shares: bool) -> Takes {
        const OTHER_END: &str = "the other end reaches DPDK's memory alone";
        match self {
            Driver::Memif if shares => Takes::Dpdks(OTHER_END),
            Driver::AfPacket | Driver::Tap | Driver::Memif | Driver::Vhost | Driver::Pcap | Driver::Null => {
                Takes::Pinned
            }
            // Its frames are the objects of its pool, mbufs and all.
            Driver::AfXdp => Takes::Whole,
            Driver::VirtioUser => Takes::Dpdks(OTHER_END),
            Driver::Ring => Takes::Dpdks("packets arrive in the buffers of whoever sends them"),
            Driver::Pci => Takes::Told("a card reaches no memory that it was not told of, and that was never tried"),
            Driver::Other => Takes::Told("what its driver takes was never tried"),
        }
    }

    /// The key under which the driver wants to know the number of its queues.
    pub fn queues_key(self) -> Option<&'static str> {
        match self {
            Driver::AfPacket => Some("qpairs"),
            Driver::AfXdp => Some("queue_count"),
            Driver::VirtioUser | Driver::Vhost => Some("queues"),
            _ => None,
        }
    }

    /// Whether packets are cut and summed by its own processor time: then it saves nothing to let it check those that arrive.
    pub fn sums_in_software(self) -> bool {
        self == Driver::Tap
    }

    /// Whether the kernel gets all that arrives, too, as if nobody else did (packet(7)).
    pub fn leaves_to_the_kernel(self) -> bool {
        // libpcap's are packet sockets, too.
        matches!(self, Driver::AfPacket | Driver::Pcap)
    }

    /// Whether its interface of the kernel has the name that `iface` says.
    pub fn has_interface(self) -> bool {
        matches!(self, Driver::AfPacket | Driver::AfXdp | Driver::Tap)
    }
}

/// `0000:01:00.0` or `01:00.0`.
fn is_pci(name: &str) -> bool {
    let hex = |s: &str, most: usize| (1..=most).contains(&s.len()) && s.chars().all(|c| c.is_ascii_hexdigit());
    let Some((rest, function)) = name.rsplit_once('.') else { return false };
    let parts: Vec<_> = rest.split(':').collect();
    let (domain, bus, device) = match parts[..] {
        [bus, device] => ("0000", bus, device),
        [domain, bus, device] => (domain, bus, device),
        _ => return false,
    };
    hex(domain, 8) && hex(bus, 2) && hex(device, 2) && hex(function, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_by_name() {
        for (name, driver) in [
            ("net_af_packet0", Driver::AfPacket),
            ("net_af_xdp_x", Driver::AfXdp),
            ("virtio_user0", Driver::VirtioUser),
            ("vdev:net_tap3", Driver::Tap),
            ("0000:3b:00.1", Driver::Pci),
            ("3b:00.1", Driver::Pci),
            ("pci:0000:3b:00.1", Driver::Pci),
            ("net_bond0", Driver::Other),
            ("3b.00.1", Driver::Other),
            ("", Driver::Other),
        ] {
            assert_eq!(Driver::of(name), driver, "{name}");
        }
    }

    #[test]
    fn only_drivers_that_chain_and_copy_get_the_owners_memory() {
        assert_eq!(Driver::AfPacket.payload(true, false), Payload::Attached);
        assert_eq!(Driver::AfPacket.payload(false, false), Payload::Copied);
        assert_eq!(Driver::AfXdp.payload(true, false), Payload::CopiedToReceivePool);
        assert_eq!(Driver::Null.payload(false, false), Payload::Attached);
        assert_eq!(Driver::Pci.payload(true, false), Payload::Copied);
        assert_eq!(Driver::Memif.payload(true, false), Payload::Attached);
        assert_eq!(
            Driver::Memif.payload(true, true),
            Payload::Copied,
            "the other end would look for it in DPDK's memory"
        );
    }

    #[test]
    fn only_drivers_that_copy_receive_into_our_memory() {
        assert_eq!(Driver::Memif.takes(false), Takes::Pinned);
        assert!(matches!(Driver::Memif.takes(true), Takes::Dpdks(_)));
        assert!(matches!(Driver::VirtioUser.takes(false), Takes::Dpdks(_)));
        assert_eq!(Driver::AfXdp.takes(false), Takes::Whole);
        assert!(matches!(Driver::Pci.takes(false), Takes::Told(_)));
    }
}
