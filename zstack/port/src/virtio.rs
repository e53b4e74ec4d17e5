//! The header that stands before each packet of a device with IFF_VNET_HDR (`struct virtio_net_hdr`, linux/virtio_net.h): what
//! is left for the receiver to do. A tun device writes its numbers in the machine's own byte order.

use zstack::port::{Checksum, Frame, Medium};

/// The bytes of the header.
pub(crate) const LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;

/// The header of a frame to be sent; `None`: the frame contradicts itself.
pub(crate) fn header(frame: &Frame<'_>, medium: Medium) -> Option<[u8; LEN]> {
    let mut header = [0; LEN];
    let Checksum::Partial { start, offset } = frame.checksum else {
        // The kernel cuts no packet whose checksum it may not complete (net/core/dev.c, skb_warn_bad_offload).
        return (frame.cut == 0).then_some(header);
    };
    if usize::from(start) + usize::from(offset) + 2 > frame.head.len() {
        return None;
    }
    header[0] = NEEDS_CSUM;
    header[6..8].copy_from_slice(&start.to_ne_bytes());
    header[8..10].copy_from_slice(&offset.to_ne_bytes());
    if frame.cut > 0 && frame.payload.len() > u32::from(frame.cut) {
        header[1] = match version(frame.head, medium)? {
            4 => GSO_TCPV4,
            6 => GSO_TCPV6,
            _ => return None,
        };
        // Byte 13 of the TCP header holds CWR, which belongs to the first segment only.
        if frame.head.get(usize::from(start) + 13)? & 0x80 != 0 {
            header[1] |= GSO_ECN;
        }
        header[2..4].copy_from_slice(&u16::try_from(frame.head.len()).ok()?.to_ne_bytes());
        header[4..6].copy_from_slice(&frame.cut.to_ne_bytes());
    }
    Some(header)
}

/// Whether the header of a received packet says that its transport checksum is right: checked by a device, or not computed
/// because the sender is on this machine.
pub(crate) fn verified(header: &[u8]) -> bool {
    header[0] & (NEEDS_CSUM | DATA_VALID) != 0
}

/// Whether a received packet is several segments in one.
pub(crate) fn joined(header: &[u8]) -> bool {
    header[1] & !GSO_ECN != GSO_NONE
}

/// The IP version of a packet.
fn version(head: &[u8], medium: Medium) -> Option<u8> {
    let ip = match medium {
        Medium::Ip => 0,
        // 802.1Q: the tag stands before the type of what follows.
        Medium::Ethernet if head.get(12..14)? == [0x81, 0] => 18,
        Medium::Ethernet => 14,
    };
    Some(head.get(ip)? >> 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zstack::payload::{Region, Span, Spans};

    fn frame<'a>(head: &'a [u8], payload: &[u8], checksum: Checksum, cut: u16) -> Frame<'a> {
        let span = Span { start: payload.as_ptr(), len: payload.len() as u32, region: Region(0) };
        Frame { head, payload: Spans([span, Span::EMPTY]), checksum, cut }
    }

    #[test]
    fn a_complete_frame_asks_for_nothing() {
        assert_eq!(header(&frame(&[0x45; 40], &[], Checksum::Complete, 0), Medium::Ip), Some([0; LEN]));
    }

    #[test]
    fn a_partial_checksum_is_named_by_its_place() {
        let mut expected = [0; LEN];
        expected[0] = NEEDS_CSUM;
        expected[6..8].copy_from_slice(&20u16.to_ne_bytes());
        expected[8..10].copy_from_slice(&16u16.to_ne_bytes());
        let checksum = Checksum::Partial { start: 20, offset: 16 };
        assert_eq!(header(&frame(&[0x45; 40], &[1; 9], checksum, 0), Medium::Ip), Some(expected));
        // Not longer than a segment: there is nothing to cut.
        assert_eq!(header(&frame(&[0x45; 40], &[1; 9], checksum, 9), Medium::Ip), Some(expected));
    }

    #[test]
    fn a_frame_to_be_cut_names_its_protocol_and_size() {
        let mut head = [0; 58];
        head[33] = 0x10;
        let mut check = |at: usize, version: u8, medium, start: u16| {
            head[at] = version << 4;
            let got = header(&frame(&head, &[1; 3000], Checksum::Partial { start, offset: 16 }, 1448), medium).unwrap();
            assert_eq!(u16::from_ne_bytes([got[2], got[3]]), 58);
            assert_eq!(u16::from_ne_bytes([got[4], got[5]]), 1448);
            got[1]
        };
        assert_eq!(check(0, 4, Medium::Ip, 20), GSO_TCPV4);
        assert_eq!(check(0, 6, Medium::Ip, 40), GSO_TCPV6);
        assert_eq!(check(14, 4, Medium::Ethernet, 34), GSO_TCPV4);
        head[12] = 0x81;
        let partial = Checksum::Partial { start: 38, offset: 16 };
        head[18] = 0x60;
        assert_eq!(header(&frame(&head, &[1; 30], partial, 20), Medium::Ethernet).unwrap()[1], GSO_TCPV6);
        // CWR is in the first segment only.
        head[38 + 13] = 0x80;
        assert_eq!(header(&frame(&head, &[1; 30], partial, 20), Medium::Ethernet).unwrap()[1], GSO_TCPV6 | GSO_ECN);
    }

    #[test]
    fn contradictions_are_refused() {
        let complete = frame(&[0x45; 40], &[1; 3000], Checksum::Complete, 1448);
        assert_eq!(header(&complete, Medium::Ip), None, "cut, but summed already");
        let outside = frame(&[0x45; 40], &[], Checksum::Partial { start: 30, offset: 16 }, 0);
        assert_eq!(header(&outside, Medium::Ip), None, "the checksum lies behind the header");
        let neither = frame(&[0x55; 40], &[1; 30], Checksum::Partial { start: 20, offset: 16 }, 10);
        assert_eq!(header(&neither, Medium::Ip), None, "IP version 5");
    }

    #[test]
    fn received_headers() {
        assert!(!verified(&[0; LEN]) && !joined(&[0; LEN]));
        let mut header = [0; LEN];
        (header[0], header[1]) = (DATA_VALID, GSO_ECN);
        assert!(verified(&header) && !joined(&header));
        (header[0], header[1]) = (NEEDS_CSUM, GSO_TCPV6);
        assert!(verified(&header) && joined(&header));
    }
}
