//! What one queue passes on to the others of its device. The device's hash brings each flow to one queue, but what ARP and NDP say is for every
//! engine: each has the same addresses, and neighbours of its own.

use crate::raw::calls;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Letters that wait at most for each queue: a flood of ARP harms itself.
const MOST: usize = 64;

/// The letters for one queue.
struct Inbox {
    letters: Mutex<Vec<Box<[u8]>>>,
    /// There are some.
    flag: AtomicBool,
    bell: OwnedFd,
}

/// The inboxes of all queues of a device.
pub(crate) struct Post(Vec<Inbox>);

impl Post {
    /// For a device with so many queues; for one alone there is nothing to pass on.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new(queues: u16) -> io::Result<Post> {
        let count = if queues > 1 { queues } else { 0 };
        let inbox = |_| Ok(Inbox { letters: Mutex::default(), flag: AtomicBool::new(false), bell: calls::bell()? });
        Ok(Post((0..count).map(inbox).collect::<io::Result<_>>()?))
    }

    /// Passes a packet that `from` has received on, if it is for all.
    #[inline]
    pub fn pass_on(&self, from: u16, packet: &[u8]) {
        if !self.0.is_empty() && is_for_all(packet) {
            self.send(from, packet);
        }
    }

    fn send(&self, from: u16, packet: &[u8]) {
        for (_, inbox) in self.0.iter().enumerate().filter(|(queue, _)| *queue != usize::from(from)) {
            let mut letters = inbox.letters.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if letters.len() < MOST {
                letters.push(packet.into());
                inbox.flag.store(true, Ordering::Release);
                calls::ring(inbox.bell.as_fd());
            }
        }
    }

    /// The next packet that others have passed on to `queue`.
    #[inline]
    pub fn receive(&self, queue: u16) -> Option<Box<[u8]>> {
        let inbox = self.0.get(usize::from(queue))?;
        if !inbox.flag.load(Ordering::Acquire) {
            return None;
        }
        let mut letters = inbox.letters.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let letter = if letters.is_empty() { None } else { Some(letters.remove(0)) };
        inbox.flag.store(!letters.is_empty(), Ordering::Release);
        if letters.is_empty() {
            calls::drain(inbox.bell.as_fd());
        }
        letter
    }

    /// Whether there is one.
    #[inline]
    pub fn waits(&self, queue: u16) -> bool {
        self.0.get(usize::from(queue)).is_some_and(|inbox| inbox.flag.load(Ordering::Acquire))
    }

    /// What wakes the thread of `queue`.
    pub fn bell(&self, queue: u16) -> Option<BorrowedFd<'_>> {
        self.0.get(usize::from(queue)).map(|inbox| inbox.bell.as_fd())
    }
}

/// ARP, and ICMPv6 133 to 137 (RFC 4861, section 4), with or without a VLAN tag.
fn is_for_all(packet: &[u8]) -> bool {
    let ip = if packet.get(12..14) == Some(&[0x81, 0]) { 18 } else { 14 };
    match packet.get(ip - 2..ip) {
        Some([0x08, 0x06]) => true,
        Some([0x86, 0xdd]) => {
            packet.get(ip + 6) == Some(&58) && packet.get(ip + 40).is_some_and(|kind| (133..=137).contains(kind))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert!(is_for_all(&packet([0x08, 0x06], vlan)));
            assert!(!is_for_all(&packet([0x08, 0], vlan)));
            let mut six = packet([0x86, 0xdd], vlan);
            assert!(!is_for_all(&six));
            six[ip + 6] = 58;
            six[ip + 40] = 136;
            assert!(is_for_all(&six));
            six[ip + 40] = 128;
            assert!(!is_for_all(&six));
        }
        assert!(!is_for_all(&[0; 13]));
    }

    #[test]
    fn a_letter_reaches_the_others_once_and_rings() {
        let post = Post::new(3).unwrap();
        let arp = packet([0x08, 0x06], false);
        post.pass_on(1, &arp);
        post.pass_on(1, &packet([0x08, 0], false));
        for queue in [0, 2] {
            assert!(zstack_port::wait(post.bell(queue).unwrap(), Some(std::time::Duration::ZERO)).unwrap());
            assert!(post.waits(queue));
            assert_eq!(post.receive(queue).as_deref(), Some(&arp[..]));
            assert!(!post.waits(queue));
            assert_eq!(post.receive(queue), None);
            assert!(!zstack_port::wait(post.bell(queue).unwrap(), Some(std::time::Duration::ZERO)).unwrap());
        }
        assert_eq!(post.receive(1), None);
        assert!(Post::new(1).unwrap().bell(0).is_none());
    }
}
