//! An n-tuple filter as the kernel takes it and shows it (linux/ethtool.h, `ethtool_rx_flow_spec`).

/// A filter without its place. What a mask's bits leave out does not count, and is 0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filter {
    /// Of what packets: `TCP_V4_FLOW` and so on.
    pub kind: u32,
    /// What their headers must have: of IP and above, then of Ethernet (`h_u`, `h_ext`).
    pub value: [u8; Filter::HEADERS],
    /// The bits that count.
    pub mask: [u8; Filter::HEADERS],
    /// Where they go (`ring_cookie`).
    pub to: u64,
}

/// Flags of [`Filter::kind`]: the VLAN counts, or the Ethernet address.
const FLOW_EXT: u32 = 0x8000_0000;
const FLOW_MAC_EXT: u32 = 0x4000_0000;

/// Where they go: nowhere.
const DISC: u64 = u64::MAX;

impl Filter {
    /// How many bytes the headers of IP and above have.
    const IP: usize = 52;
    /// With those of Ethernet.
    pub const HEADERS: usize = Filter::IP + 20;

    /// TCP or UDP over IPv4, whatever they have, and then nowhere.
    pub(crate) fn new(ipv6: bool, protocol: Option<u8>) -> Filter {
        let kind = match (protocol, ipv6) {
            (Some(6), false) => 0x01,
            (Some(17), false) => 0x02,
            (Some(6), true) => 0x05,
            (Some(17), true) => 0x06,
            (_, false) => 0x0d,
            (_, true) => 0x0e,
        };
        let mut filter = Filter { kind, value: [0; Filter::HEADERS], mask: [0; Filter::HEADERS], to: DISC };
        if kind == 0x0d {
            // `ip_ver` of ethtool_usrip4_spec, which has no mask: IPv4's number here.
            filter.value[13] = 1;
        }
        filter
    }

    /// Bytes of the header count under a mask.
    pub(crate) fn set(&mut self, at: usize, value: &[u8], mask: &[u8]) {
        for ((to, masks), (value, mask)) in
            self.value[at..].iter_mut().zip(&mut self.mask[at..]).zip(value.iter().zip(mask))
        {
            (*to, *masks) = (value & mask, *mask);
        }
    }

    /// The VLAN counts, without its priority.
    pub(crate) fn set_vlan(&mut self, vlan: u16) {
        self.kind |= FLOW_EXT;
        // `vlan_tci`, behind two bytes, an address, and a type.
        self.set(Filter::IP + 10, &vlan.to_be_bytes(), &0x0fff_u16.to_be_bytes());
    }

    /// Whether the kernel shows it so: drivers keep more or less of what does not count.
    pub(crate) fn is(&self, shown: &Filter) -> bool {
        let flags = FLOW_EXT | FLOW_MAC_EXT;
        let counts = |of: &Filter| -> Vec<(u8, u8)> {
            let ethernet = of.kind & flags != 0;
            let all = of.value.iter().zip(&of.mask).enumerate();
            all.map(|(at, (value, mask))| if at < Filter::IP || ethernet { (value & mask, *mask) } else { (0, 0) })
                .collect()
        };
        self.kind & !flags == shown.kind & !flags && self.to == shown.to && counts(self) == counts(shown)
    }
}

/// Whether a card has n-tuple filters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ntuple {
    /// They are on.
    On,
    /// They are off, and can be switched on.
    Off,
    /// They are on for good.
    AlwaysOn,
    /// The card or its driver has none.
    None,
}
