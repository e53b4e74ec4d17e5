//! What is counted: every packet that is dropped, by its reason, and what the protocol did that an operator may want to know.

use std::ops::{Index, IndexMut};

macro_rules! counters {
    ($($(#[doc = $text:literal])+ $name:ident $label:literal)*) => {
        /// A reason or an occurrence. Its [name](Counter::name) is what `zstack stat` shows.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum Counter {
            $($(#[doc = $text])+ $name,)*
        }

        impl Counter {
            /// All of them, in the order of [`Counters::iter`].
            pub const ALL: &'static [Counter] = &[$(Counter::$name,)*];

            /// The name under which it is shown: words joined by `_`, the layer first.
            pub fn name(self) -> &'static str {
                match self {
                    $(Counter::$name => $label,)*
                }
            }

            /// What it counts, as a sentence.
            pub fn text(self) -> &'static str {
                match self {
                    $(Counter::$name => concat!($($text,)+).trim_ascii_start(),)*
                }
            }
        }
    };
}

counters! {
    /// Packets that the port gave us.
    Received "port_received"
    /// Frames that the port took; a frame that it cuts into segments is one.
    Sent "port_sent"
    /// Frames that the port had no room for; they were built again later.
    PortFull "port_full"
    /// Frames that the port can never send: too long, or malformed for the device.
    PortUnfit "port_unfit"
    /// Payload bytes that the engine copied. The engine has no way to copy payload: this stays 0.
    CopiedBytes "copied_bytes"

    /// Frames too short for their link header.
    LinkShort "link_short"
    /// Frames to another station's address.
    LinkOtherStation "link_other_station"
    /// Frames of another VLAN, or without the tag that is ours.
    LinkOtherVlan "link_other_vlan"
    /// Frames of an ethertype that we do not speak.
    LinkUnknownType "link_unknown_type"

    /// ARP or NDP messages with wrong lengths, types or checksums.
    NeighbourMalformed "neighbour_malformed"
    /// Neighbours that did not answer.
    NeighbourFailed "neighbour_failed"
    /// What ARP and NDP say of neighbours that we have nothing to do with, or in a way that need not be believed.
    NeighbourIgnored "neighbour_ignored"
    /// Neighbours forgotten because the cache was full.
    NeighbourEvicted "neighbour_evicted"

    /// IP packets with a wrong version, header length or total length.
    IpMalformed "ip_malformed"
    /// IPv4 headers with a wrong checksum.
    IpChecksum "ip_checksum"
    /// Fragments: not reassembled.
    IpFragment "ip_fragment"
    /// Packets to an address that is not ours.
    IpNotOurs "ip_not_ours"
    /// Packets from our own address, that we did not send.
    IpSourceOurs "ip_source_ours"
    /// Packets from a broadcast address.
    IpSourceBroadcast "ip_source_broadcast"
    /// Packets from a multicast address.
    IpSourceMulticast "ip_source_multicast"
    /// Packets from an unspecified or loopback address.
    IpSourceInvalid "ip_source_invalid"
    /// TCP to a broadcast or multicast address.
    IpDestinationMany "ip_destination_many"
    /// Packets of a transport protocol that we do not speak.
    IpUnknownProtocol "ip_unknown_protocol"
    /// Packets with a chain of IPv6 extension headers that we do not follow.
    IpExtension "ip_extension"
    /// Packets that could not be sent because no route leads to their destination.
    IpNoRoute "ip_no_route"

    /// Packets that a bridge had no use for, passed on to others here.
    BridgePassedIn "bridge_passed_in"
    /// Such packets dropped because nobody took them.
    BridgeNobody "bridge_nobody"
    /// Packets of others here, sent to the wire.
    BridgePassedOut "bridge_passed_out"
    /// Packets of others not sent: no IP packets, or not as long as they say.
    BridgeMalformed "bridge_malformed"
    /// Packets of others not sent: to an address of our own.
    BridgeOurs "bridge_ours"
    /// Packets of others not sent: longer than the MTU.
    BridgeTooBig "bridge_too_big"
    /// Packets of others not sent: no route leads to their destination.
    BridgeNoRoute "bridge_no_route"
    /// Packets of others not sent: the neighbour on their way did not answer.
    BridgeUnreachable "bridge_unreachable"
    /// Packets of others not sent: too many waited for neighbours, and they were the oldest.
    BridgeWaited "bridge_waited"
    /// Packets of others not sent: the port had no room, or could not send them.
    BridgePort "bridge_port"

    /// ICMP messages too short, of an unknown type, or quoting too little.
    IcmpMalformed "icmp_malformed"
    /// ICMP messages with a wrong checksum.
    IcmpChecksum "icmp_checksum"
    /// Echo requests that were answered.
    IcmpEcho "icmp_echo"
    /// Answers by ICMP that the rate limit withheld.
    IcmpLimited "icmp_limited"
    /// ICMP messages of types that are not acted upon: redirects, advertisements of routers, errors about errors.
    IcmpUnwanted "icmp_unwanted"
    /// UDP datagrams answered by "port unreachable".
    UdpUnreachable "udp_unreachable"
    /// UDP datagrams too short, or with a wrong checksum.
    UdpMalformed "udp_malformed"
    /// ICMP errors about a segment that a connection has in flight (RFC 5927), told to it.
    IcmpError "icmp_error"
    /// ICMP errors about no connection of ours.
    IcmpUnknown "icmp_unknown"
    /// ICMP errors that quote a sequence number which is not in flight (RFC 5927, section 4.1).
    IcmpOutside "icmp_outside"
    /// ICMP errors that name an MTU below the least that the protocol allows, or not below the one in use.
    IcmpMtu "icmp_mtu"

    /// Segments whose header or options do not fit.
    TcpMalformed "tcp_malformed"
    /// Segments with a wrong checksum.
    TcpChecksum "tcp_checksum"
    /// Segments for no connection and no listener.
    TcpUnknown "tcp_unknown"
    /// RSTs sent for them.
    TcpUnknownReset "tcp_unknown_reset"
    /// RSTs for them that the rate limit withheld.
    TcpUnknownLimited "tcp_unknown_limited"

    /// Segments whose timestamp is older than the last one's (RFC 7323, PAWS).
    TcpPaws "tcp_paws"
    /// Segments whose numbers lie beyond the window.
    TcpOutside "tcp_outside"
    /// Segments without payload from before the window: the peer's keep-alives and window probes, and old ACKs.
    TcpOld "tcp_old"
    /// RSTs that ended a connection, or its opening.
    TcpReset "tcp_reset"
    /// RSTs whose number lies outside the window: ignored.
    TcpResetOutside "tcp_reset_outside"
    /// RSTs inside the window that are not exact: challenged (RFC 5961, section 3).
    TcpResetInside "tcp_reset_inside"
    /// SYNs for a connection that stands: challenged (RFC 5961, section 4).
    TcpSynInside "tcp_syn_inside"
    /// ACKs too old, or of what was never sent (RFC 5961, section 5).
    TcpAckInvalid "tcp_ack_invalid"
    /// Segments without the ACK that their connection's state asks for.
    TcpNoAck "tcp_no_ack"
    /// Challenge ACKs (RFC 5961).
    TcpChallenge "tcp_challenge"
    /// Challenge ACKs that the connection's limit withheld.
    TcpChallengeLimited "tcp_challenge_limited"
    /// RSTs that a connection sent.
    TcpResetSent "tcp_reset_sent"
    /// Segments with URG: their bytes stay in line.
    TcpUrgent "tcp_urgent"
    /// Segments that came ahead of order.
    TcpAhead "tcp_ahead"
    /// Segments with payload that had come before.
    TcpDuplicate "tcp_duplicate"
    /// Segments with more payload than there was room for.
    TcpNoRoom "tcp_no_room"
    /// Segments that the host could not take.
    TcpNotPlaced "tcp_not_placed"
    /// Segments ahead of order that would have made one range too many.
    TcpGapsFull "tcp_gaps_full"
    /// Segments with payload for a connection that its holder had closed: reset.
    TcpAfterClose "tcp_after_close"
    /// Segments that were sent again.
    TcpRetransmit "tcp_retransmit"
    /// Retransmission timers that expired.
    TcpTimeout "tcp_timeout"
    /// Tail loss probes (RFC 8985).
    TcpTailProbe "tcp_tail_probe"
    /// Probes of a window that was shut.
    TcpWindowProbe "tcp_window_probe"
    /// Keep-alive probes.
    TcpKeepalive "tcp_keepalive"
    /// Connections that ended because the peer did not answer in time.
    TcpTimedOut "tcp_timed_out"
    /// Segments of ours that arrived twice, as the peer tells (RFC 2883).
    TcpDuplicateTold "tcp_duplicate_told"
    /// Times that losses were found and a fast recovery began.
    TcpRecovery "tcp_recovery"
    /// Recoveries that came to their end.
    TcpRecovered "tcp_recovered"
    /// Recoveries that proved needless, and were undone.
    TcpUndone "tcp_undone"
    /// Losses of the last segment that a tail loss probe mended.
    TcpProbeMended "tcp_probe_mended"

    /// SYNs for a listener.
    SynReceived "syn_received"
    /// SYNs dropped because the stack has all the connections that it may have.
    SynConnectionsFull "syn_connections_full"
    /// SYNs and cookies dropped because too many connections of the listener wait to be accepted.
    SynHostFull "syn_host_full"
    /// SYNs dropped because a deferred listener has too many half-open connections, and does not answer with cookies.
    SynDeferredFull "syn_deferred_full"
    /// SYN-ACKs that carried a cookie (RFC 4987, section 3.6): too many connections were half open.
    CookieSent "cookie_sent"
    /// Connections made from a cookie.
    CookieAccepted "cookie_accepted"
    /// ACKs to a listener whose number is no cookie of ours, or an old one.
    CookieInvalid "cookie_invalid"
    /// Half-open connections that ended because their listener did.
    SynOrphaned "syn_orphaned"
    /// Connections of deferred listeners that were refused.
    DeferredRefused "deferred_refused"
    /// Connections of deferred listeners that were given up without a word.
    DeferredIgnored "deferred_ignored"
    /// Connections of deferred listeners that waited for a decision when the peer began another one in their place.
    DeferredOverrun "deferred_overrun"

    /// Connections that connect opened.
    Opened "opened"
    /// Connections that reached ESTABLISHED.
    Established "established"
    /// Connections that ended, for whatever reason.
    Ended "ended"
    /// Connections that came into TIME_WAIT.
    TimeWait "time_wait"
    /// TIME_WAITs given up early, the oldest first, because there were too many.
    TimeWaitEvicted "time_wait_evicted"
    /// TIME_WAITs that a new connection ended, the peer's or ours (RFC 6191).
    TimeWaitReused "time_wait_reused"
    /// Segments that a connection in TIME_WAIT answered or dropped.
    TimeWaitSegment "time_wait_segment"
}

/// How often each [`Counter`] was counted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counters([u64; Counter::ALL.len()]);

impl Default for Counters {
    fn default() -> Counters {
        Counters([0; Counter::ALL.len()])
    }
}

impl Counters {
    /// One more.
    #[inline]
    pub fn count(&mut self, counter: Counter) {
        self[counter] += 1;
    }

    /// Each with its value.
    pub fn iter(&self) -> impl Iterator<Item = (Counter, u64)> + '_ {
        Counter::ALL.iter().map(|&counter| (counter, self[counter]))
    }
}

impl Index<Counter> for Counters {
    type Output = u64;
    #[inline]
    fn index(&self, counter: Counter) -> &u64 {
        &self.0[counter as usize]
    }
}

impl IndexMut<Counter> for Counters {
    #[inline]
    fn index_mut(&mut self, counter: Counter) -> &mut u64 {
        &mut self.0[counter as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_say_something() {
        let names: HashSet<_> = Counter::ALL.iter().map(|counter| counter.name()).collect();
        assert_eq!(names.len(), Counter::ALL.len());
        for counter in Counter::ALL {
            assert!(counter.name().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}", counter.name());
            assert!(counter.text().ends_with('.'), "{}", counter.text());
        }
    }

    #[test]
    fn counting() {
        let mut counters = Counters::default();
        counters.count(Counter::TcpChecksum);
        counters.count(Counter::TcpChecksum);
        assert_eq!(counters[Counter::TcpChecksum], 2);
        assert_eq!(counters.iter().map(|(_, n)| n).sum::<u64>(), 2);
    }
}
