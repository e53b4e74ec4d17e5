//! Whose SYN it is that zstackd has read: what the filter has noted of its socket, which spares a question to the kernel
//! (`NETLINK_SOCK_DIAG`) for each connection.
//!
//! The note is in the ring (BPF_MAP_TYPE_RINGBUF) before the SYN is in the tun. A SYN without one, because the ring was full or the socket
//! is one that the filter leaves out, is asked about as before.

use super::raw;
use crate::flow::Flow;
use libbpf_rs::{MapCore, RingBuffer, RingBufferBuilder};
use std::collections::HashMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use zstack_wire::Seq;

/// The socket that a SYN is from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    /// Who owns it: what sock_diag(7) calls `idiag_uid`.
    pub user: u32,
    /// Its SO_COOKIE.
    pub cookie: u64,
}

/// struct owner of bpf/turn.bpf.c.
const NOTE: usize = 56;

/// Notes of SYNs that have not been read: the tun's queue was full, or somebody else has read them. So many are kept at most.
const UNREAD: usize = 4096;

/// By addresses and sequence number.
type Notes = HashMap<(Flow, Seq), Owner>;

/// The notes.
pub(crate) struct Owners {
    ring: Mutex<RingBuffer<'static>>,
    notes: Arc<Mutex<Notes>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Owners {
    /// Those of the filter that writes into this ring. `None` where the filter's numbers of users are not this process's: it has them as the
    /// user namespace does in which the network namespace was made.
    pub(crate) fn new(ring: &dyn MapCore) -> Result<Option<Owners>, libbpf_rs::Error> {
        if !are_users_ours() {
            return Ok(None);
        }
        let notes = Arc::new(Mutex::new(Notes::new()));
        let mut builder = RingBufferBuilder::new();
        let to = notes.clone();
        builder.add(ring, move |note| {
            if let Some((key, owner)) = decode(note) {
                let mut notes = lock(&to);
                if notes.len() >= UNREAD {
                    notes.clear();
                }
                notes.insert(key, owner);
            }
            0
        })?;
        Ok(Some(Owners { ring: Mutex::new(builder.build()?), notes }))
    }

    /// What was noted of this SYN, once. No system call.
    pub(crate) fn take(&self, flow: &Flow, isn: Seq) -> Option<Owner> {
        // Fails by what the callback returns alone.
        let _ = lock(&self.ring).consume();
        lock(&self.notes).remove(&(*flow, isn))
    }
}

/// Whether the network namespace of the calling thread belongs to the user namespace of this process.
fn are_users_ours() -> bool {
    let theirs = File::open("/proc/thread-self/ns/net").and_then(|net| raw::user_namespace(net.as_fd()));
    let theirs = theirs.and_then(|fd| File::from(fd).metadata()).map(|m| (m.dev(), m.ino()));
    let ours = std::fs::metadata("/proc/self/ns/user").map(|m| (m.dev(), m.ino()));
    matches!((theirs, ours), (Ok(theirs), Ok(ours)) if theirs == ours)
}

fn decode(note: &[u8]) -> Option<((Flow, Seq), Owner)> {
    let note: &[u8; NOTE] = note.try_into().ok()?;
    let four = |at: usize| [note[at], note[at + 1], note[at + 2], note[at + 3]];
    let ipv4 = u32::from_ne_bytes(four(52)) != 0;
    let address = |at: usize| -> IpAddr {
        let all: [u8; 16] = std::array::from_fn(|i| note[at + i]);
        if ipv4 { Ipv4Addr::from(four(at)).into() } else { Ipv6Addr::from(all).into() }
    };
    let port = |at: usize| u16::from_be_bytes([note[at], note[at + 1]]);
    let flow = Flow { local: SocketAddr::new(address(0), port(32)), remote: SocketAddr::new(address(16), port(34)) };
    let cookie = u64::from_ne_bytes(std::array::from_fn(|i| note[40 + i]));
    Some(((flow, Seq(u32::from_be_bytes(four(36)))), Owner { user: u32::from_ne_bytes(four(48)), cookie }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(source: &[u8], destination: &[u8], ipv4: u32) -> Vec<u8> {
        let mut b = vec![0; NOTE];
        b[..source.len()].copy_from_slice(source);
        b[16..16 + destination.len()].copy_from_slice(destination);
        b[32..34].copy_from_slice(&40_000u16.to_be_bytes());
        b[34..36].copy_from_slice(&80u16.to_be_bytes());
        b[36..40].copy_from_slice(&0xfeed_0001u32.to_be_bytes());
        b[40..48].copy_from_slice(&77u64.to_ne_bytes());
        b[48..52].copy_from_slice(&1000u32.to_ne_bytes());
        b[52..].copy_from_slice(&ipv4.to_ne_bytes());
        b
    }

    #[test]
    fn notes_are_read() {
        let owner = Owner { user: 1000, cookie: 77 };
        let four = Flow { local: ([10, 1, 0, 1], 40_000).into(), remote: ([10, 9, 0, 2], 80).into() };
        let b = note(&[10, 1, 0, 1], &[10, 9, 0, 2], 1);
        assert_eq!(decode(&b), Some(((four, Seq(0xfeed_0001)), owner)));
        let v6 = |text: &str| text.parse::<Ipv6Addr>().unwrap();
        let (here, there) = (v6("fd01::1"), v6("fd09::2"));
        let six = Flow { local: (here, 40_000).into(), remote: (there, 80).into() };
        assert_eq!(decode(&note(&here.octets(), &there.octets(), 0)), Some(((six, Seq(0xfeed_0001)), owner)));
        assert_eq!(decode(&b[..NOTE - 1]), None);
        assert_eq!(decode(&[]), None);
    }
}
