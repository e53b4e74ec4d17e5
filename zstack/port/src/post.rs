//! What one queue passes on to the others of its device. The device's hash brings each flow to one queue, but what ARP and NDP say is for every
//! engine: each has the same addresses, and neighbours of its own. And an ICMP error has another hash than the connection that it is about, which
//! may be anybody's. Whoever knows whose a packet is, where the hash does not, hands it over.

use crate::raw::calls;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use zstack::port::Medium;

/// Letters to all that wait at most for each queue: a flood of ARP harms itself.
const MOST: usize = 64;
/// Bytes of packets that are handed over and wait at most for each queue: what comes while its thread waits some milliseconds for a processor.
const MOST_BYTES: usize = 8 << 20;

/// The letters for one queue.
struct Inbox {
    letters: Mutex<Letters>,
    /// There are some.
    flag: AtomicBool,
    bell: OwnedFd,
}

#[derive(Default)]
struct Letters {
    waiting: VecDeque<Box<[u8]>>,
    /// In all of them.
    bytes: usize,
}

impl Inbox {
    /// Whether there was room for it.
    fn put(&self, packet: &[u8], has_room: impl FnOnce(&Letters) -> bool) -> bool {
        let mut letters = self.letters.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !has_room(&letters) {
            return false;
        }
        letters.bytes += packet.len();
        letters.waiting.push_back(packet.into());
        if letters.waiting.len() == 1 {
            self.flag.store(true, Ordering::Release);
            calls::ring(self.bell.as_fd());
        }
        true
    }
}

/// The inboxes of all queues of a device.
pub struct Post {
    inboxes: Vec<Inbox>,
    medium: Medium,
}

impl Post {
    /// For a device with so many queues; for one alone there is nothing to pass on.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new(queues: u16, medium: Medium) -> io::Result<Post> {
        let count = if queues > 1 { queues } else { 0 };
        let inbox = |_| Ok(Inbox { letters: Mutex::default(), flag: AtomicBool::new(false), bell: calls::bell()? });
        Ok(Post { inboxes: (0..count).map(inbox).collect::<io::Result<_>>()?, medium })
    }

    /// Passes a packet that `from` has received on, if it is for all.
    #[inline]
    pub fn pass_on(&self, from: u16, packet: &[u8]) {
        if !self.inboxes.is_empty() && is_for_all(packet, self.medium) {
            self.send(from, packet);
        }
    }

    fn send(&self, from: u16, packet: &[u8]) {
        for (_, inbox) in self.inboxes.iter().enumerate().filter(|(queue, _)| *queue != usize::from(from)) {
            inbox.put(packet, |letters| letters.waiting.len() < MOST);
        }
    }

    /// Hands a packet over to the queue whose it is, as if it had come there. False: too many wait there already, and it is lost.
    pub fn hand_over(&self, to: u16, packet: &[u8]) -> bool {
        let has_room = |letters: &Letters| letters.bytes + packet.len() <= MOST_BYTES;
        self.inboxes.get(usize::from(to)).is_some_and(|inbox| inbox.put(packet, has_room))
    }

    /// The next packet that others have passed on to `queue`.
    #[inline]
    pub fn receive(&self, queue: u16) -> Option<Box<[u8]>> {
        let inbox = self.inboxes.get(usize::from(queue))?;
        if !inbox.flag.load(Ordering::Acquire) {
            return None;
        }
        let mut letters = inbox.letters.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let letter = letters.waiting.pop_front();
        letters.bytes -= letter.as_ref().map_or(0, |letter| letter.len());
        if letters.waiting.is_empty() {
            inbox.flag.store(false, Ordering::Release);
            calls::drain(inbox.bell.as_fd());
        }
        letter
    }

    /// Whether there is one.
    #[inline]
    pub fn waits(&self, queue: u16) -> bool {
        self.inboxes.get(usize::from(queue)).is_some_and(|inbox| inbox.flag.load(Ordering::Acquire))
    }

    /// What wakes the thread of `queue`.
    pub fn bell(&self, queue: u16) -> Option<BorrowedFd<'_>> {
        self.inboxes.get(usize::from(queue)).map(|inbox| inbox.bell.as_fd())
    }
}

/// ARP, ICMPv6 133 to 137 (RFC 4861, section 4), and ICMP errors about a segment of TCP (RFC 792; RFC 4443); with or without a VLAN tag.
fn is_for_all(packet: &[u8], medium: Medium) -> bool {
    const TCP: u8 = 6;
    let (kind, packet) = if medium == Medium::Ip {
        let kind: &[u8] =
            if packet.first().is_some_and(|first| first >> 4 == 4) { &[0x08, 0x00] } else { &[0x86, 0xdd] };
        (Some(kind), packet)
    } else {
        let ip = if packet.get(12..14) == Some(&[0x81, 0]) { 18 } else { 14 };
        (packet.get(ip - 2..ip), packet.get(ip..).unwrap_or(&[]))
    };
    match kind {
        Some([0x08, 0x06]) => true,
        Some([0x08, 0x00]) if packet.get(9) == Some(&1) => {
            let message = packet.get(usize::from(packet[0] & 15) * 4..).unwrap_or(&[]);
            // Destination unreachable, time exceeded, parameter problem; behind the 8 bytes of each, the packet that it is about.
            matches!(message.first(), Some(3 | 11 | 12)) && message.get(8 + 9) == Some(&TCP)
        }
        Some([0x86, 0xdd]) if packet.get(6) == Some(&58) => match packet.get(40) {
            Some(1..=4) => packet.get(40 + 8 + 6) == Some(&TCP),
            Some(133..=137) => true,
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On Ethernet; and on a medium without link header as well, but for ARP, which is not there.
    fn for_all(frame: &[u8]) -> bool {
        let is = is_for_all(frame, Medium::Ethernet);
        let start = if frame.get(12..14) == Some(&[0x81, 0]) { 18 } else { 14 };
        if let Some(packet) =
            frame.get(start..).filter(|packet| packet.len() > 40 && frame[start - 2..start] != [0x08, 0x06])
        {
            let mut packet = packet.to_vec();
            packet[0] = if frame[start - 2] == 0x08 { 0x40 | packet[0] & 15 } else { 0x60 };
            assert_eq!(is_for_all(&packet, Medium::Ip), is);
        }
        is
    }

    fn packet(kind: [u8; 2], vlan: bool) -> Vec<u8> {
        let mut packet = vec![0; 12];
        if vlan {
            packet.extend([0x81, 0, 0, 7]);
        }
        packet.extend(kind);
        packet.resize(100, 0);
        packet
    }

    #[test]
    fn neighbours_are_for_all_and_others_are_not() {
        for vlan in [false, true] {
            let ip = if vlan { 18 } else { 14 };
            assert!(for_all(&packet([0x08, 0x06], vlan)));
            assert!(!for_all(&packet([0x08, 0], vlan)));
            let mut six = packet([0x86, 0xdd], vlan);
            assert!(!for_all(&six));
            six[ip + 6] = 58;
            six[ip + 40] = 136;
            assert!(for_all(&six));
            six[ip + 40] = 128;
            assert!(!for_all(&six));
        }
        assert!(!for_all(&[0; 13]));
    }

    #[test]
    fn errors_about_connections_are_for_all_and_other_messages_are_not() {
        for vlan in [false, true] {
            let ip = if vlan { 18 } else { 14 };
            let mut four = packet([0x08, 0], vlan);
            // A header with an option, and a quoted one without.
            (four[ip], four[ip + 9]) = (0x46, 1);
            for (kind, quoted, passed) in [(3, 6, true), (11, 6, true), (3, 17, false), (8, 6, false), (0, 6, false)] {
                (four[ip + 24], four[ip + 24 + 8 + 9]) = (kind, quoted);
                assert_eq!(for_all(&four), passed, "{kind} about {quoted}");
            }
            four[ip + 9] = 17;
            assert!(!for_all(&four));
            let mut six = packet([0x86, 0xdd], vlan);
            six[ip + 6] = 58;
            for (kind, quoted, passed) in [(1, 6, true), (2, 6, true), (2, 17, false), (128, 6, false)] {
                (six[ip + 40], six[ip + 40 + 8 + 6]) = (kind, quoted);
                assert_eq!(for_all(&six), passed, "{kind} about {quoted}");
            }
            let error = |len| {
                let mut error = packet([0x08, 0], vlan);
                (error[ip], error[ip + 9], error[ip + 20], error[ip + 20 + 8 + 9]) = (0x45, 1, 3, 6);
                error.truncate(len);
                error
            };
            assert!(for_all(&error(ip + 38)));
            (0..ip + 38).for_each(|len| assert!(!for_all(&error(len)), "{len}"));
        }
    }

    #[test]
    fn a_letter_reaches_the_others_once_and_rings() {
        let post = Post::new(3, Medium::Ethernet).unwrap();
        let arp = packet([0x08, 0x06], false);
        post.pass_on(1, &arp);
        post.pass_on(1, &packet([0x08, 0], false));
        for queue in [0, 2] {
            assert!(crate::wait(post.bell(queue).unwrap(), Some(std::time::Duration::ZERO)).unwrap());
            assert!(post.waits(queue));
            assert_eq!(post.receive(queue).as_deref(), Some(&arp[..]));
            assert!(!post.waits(queue));
            assert_eq!(post.receive(queue), None);
            assert!(!crate::wait(post.bell(queue).unwrap(), Some(std::time::Duration::ZERO)).unwrap());
        }
        assert_eq!(post.receive(1), None);
        // One that is handed over comes to its queue alone, whatever it is, and not to one that has too many.
        assert!(post.hand_over(2, b"one") && post.hand_over(2, b"two") && !post.waits(0) && !post.waits(1));
        assert_eq!([(); 3].map(|()| post.receive(2)), [Some(b"one"[..].into()), Some(b"two"[..].into()), None]);
        let large = vec![0; 65_535];
        let most = MOST_BYTES / large.len();
        assert_eq!((0..2 * most).filter(|_| post.hand_over(0, &large)).count(), most);
        assert!(post.receive(0).is_some() && post.hand_over(0, &large) && !post.hand_over(0, &large));
        assert!(Post::new(1, Medium::Ethernet).unwrap().bell(0).is_none());
    }
}
