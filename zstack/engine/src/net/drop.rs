//! Why packets are dropped, and how many were.

/// Why a packet that arrived was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Reason {
    /// The frame is shorter than its link header.
    LinkShort,
    /// It is for another station, or comes from a group address.
    LinkAddress,
    /// It belongs to another VLAN: the tag is not ours, or there is one too many or too few.
    Vlan,
    /// Neither IP nor ARP.
    EtherType,
    /// An ARP packet that is cut short, or not for IPv4 over Ethernet, or contradicts itself.
    Arp,
    /// Neither version 4 nor 6, or not the one that the Ethernet type says.
    Version,
    /// The packet is shorter than its headers say.
    Short,
    /// A header's length is impossible.
    HeaderLength,
    /// The IPv4 header's checksum is wrong.
    Checksum,
    /// A fragment: they are not reassembled.
    Fragment,
    /// The source is no host's address, or one of ours.
    Source,
    /// The destination is not ours.
    Destination,
    /// Unicast IP in a link broadcast, or the reverse, where it has no business (RFC 1122, 3.3.6).
    Cast,
    /// An extension header that is out of bounds, or one too many, or that asks to be dropped.
    Extension,
    /// A protocol that is not spoken here.
    Protocol,
    /// An ICMP message that is cut short, or whose checksum is wrong.
    Icmp,
    /// An ICMP message that means nothing here: an unknown type, a redirect, a router's advertisement.
    IcmpType,
    /// An ICMP error whose quotation is no packet of ours.
    IcmpQuote,
    /// A neighbour discovery message that breaks a rule of RFC 4861.
    Ndp,
    /// A UDP datagram that is cut short, or whose checksum is wrong.
    Udp,
    /// An answer was due, and too many were sent lately, or the caller's buffer has no room for it.
    Rate,
}

impl Reason {
    /// All of them, in order.
    pub const ALL: [Reason; 21] = {
        use Reason::*;
        [
            LinkShort,
            LinkAddress,
            Vlan,
            EtherType,
            Arp,
            Version,
            Short,
            HeaderLength,
            Checksum,
            Fragment,
            Source,
            Destination,
            Cast,
            Extension,
            Protocol,
            Icmp,
            IcmpType,
            IcmpQuote,
            Ndp,
            Udp,
            Rate,
        ]
    };

    /// The name that counters files show.
    pub fn name(self) -> &'static str {
        match self {
            Reason::LinkShort => "link-short",
            Reason::LinkAddress => "link-address",
            Reason::Vlan => "vlan",
            Reason::EtherType => "ethertype",
            Reason::Arp => "arp",
            Reason::Version => "ip-version",
            Reason::Short => "ip-short",
            Reason::HeaderLength => "ip-header-length",
            Reason::Checksum => "ip-checksum",
            Reason::Fragment => "ip-fragment",
            Reason::Source => "ip-source",
            Reason::Destination => "ip-destination",
            Reason::Cast => "ip-cast",
            Reason::Extension => "ip-extension",
            Reason::Protocol => "ip-protocol",
            Reason::Icmp => "icmp",
            Reason::IcmpType => "icmp-type",
            Reason::IcmpQuote => "icmp-quote",
            Reason::Ndp => "ndp",
            Reason::Udp => "udp",
            Reason::Rate => "icmp-rate",
        }
    }
}

/// Packets dropped, by reason.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Drops([u64; Reason::ALL.len()]);

impl Drops {
    /// How many were dropped for this reason.
    pub fn of(&self, reason: Reason) -> u64 {
        self.0[reason as usize]
    }

    /// Every reason with its number.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL.into_iter().map(|reason| (reason, self.of(reason)))
    }

    pub(super) fn count(&mut self, reason: Reason) {
        self.0[reason as usize] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_place_and_name() {
        let mut drops = Drops::default();
        let mut names = std::collections::HashSet::new();
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            assert!(names.insert(reason.name()));
            (0..=index).for_each(|_| drops.count(reason));
        }
        assert!(drops.iter().enumerate().all(|(index, (_, count))| count == index as u64 + 1));
    }
}
