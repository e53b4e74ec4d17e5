//! Letters between processes: knocks, channels, doorbells. See `rendezvous::message`.

use crate::channel::{self, Chan};
use crate::lock::Lock;
use crate::{clock, config, own, poller};
use core::mem::offset_of;
use core::sync::atomic::Ordering::{Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64};
use rendezvous::mailbox::{self, Incoming};
use rendezvous::message::{MAX_FDS, Message, VERSION};
use shmring::layout::{self, POLLERS, Role};
use shmring::{sys, syscall};

/// Guards the mailbox, the steps of a rendezvous, and who sits in which slot; taken before the tokens of any connection,
/// and before `channel::LOCK`.
pub static LOCK: Lock = Lock::new();

static MAILBOX: AtomicI32 = AtomicI32::new(-1);

static NAME: AtomicU64 = AtomicU64::new(0);

/// Questions that were asked and not answered yet.
struct Asked {
    nonce: AtomicU64,
    mailbox: AtomicU64,
    uid: AtomicU32,
    at: AtomicU64,
    /// Doorbells that went with the answer, for the channel that it will make.
    told: AtomicU64,
}

const fn asked() -> Asked {
    Asked {
        nonce: AtomicU64::new(0),
        mailbox: AtomicU64::new(0),
        uid: AtomicU32::new(0),
        at: AtomicU64::new(0),
        told: AtomicU64::new(0),
    }
}

/// Knocks sent (acceptor) and answered (connector).
static KNOCKS: [Asked; 64] = [const { asked() }; 64];

static WELCOMES: [Asked; 64] = [const { asked() }; 64];

/// A knock that brought no answer is repeated after this long, nanoseconds.
const KNOCK_AGAIN: u64 = 20_000_000;

/// Time of a knock at a peer of another version: never again.
pub const REFUSED: u64 = u64::MAX / 2;

/// The child of a fork has a mailbox of its own, once it needs one.
pub fn after_fork_child() {
    own::discard(&MAILBOX);
    NAME.store(0, Relaxed);
    for a in KNOCKS.iter().chain(&WELCOMES) {
        a.nonce.store(0, Relaxed);
    }
}

fn random() -> u64 {
    let mut v = 0u64;
    // SAFETY: writes 8 bytes into a local.
    unsafe { syscall!(libc::SYS_getrandom, &raw mut v, 8, 0) };
    v.max(1)
}

/// Our mailbox; opened at first use. 0 if there is none.
pub fn own_mailbox() -> u64 {
    if NAME.load(Relaxed) == 0
        && crate::tls::tls().vfork.get() == 0
        && let Ok(m) = mailbox::open(|fd| fd)
    {
        MAILBOX.store(m.fd, Relaxed);
        if own::adopt(&MAILBOX) {
            NAME.store(m.name, Release);
        }
    }
    NAME.load(Relaxed)
}

/// Knocks, unless that was done. `Some`: the time at which it was.
pub fn knock(peer: u64, uid: u32) -> Option<u64> {
    let now = clock::now();
    let mut place = None;
    for k in &KNOCKS {
        let pending = k.nonce.load(Relaxed) != 0 && now.saturating_sub(k.at.load(Relaxed)) < KNOCK_AGAIN;
        if pending && k.mailbox.load(Relaxed) == peer {
            return Some(k.at.load(Relaxed));
        }
        if !pending && place.is_none() {
            place = Some(k);
        }
    }
    let k = place?;
    let nonce = random();
    let m = Message::Knock { from: NAME.load(Relaxed), nonce };
    if mailbox::send(MAILBOX.load(Relaxed), peer, &m, &[]).is_ok() {
        k.mailbox.store(peer, Relaxed);
        k.uid.store(uid, Relaxed);
        k.at.store(now, Relaxed);
        k.nonce.store(nonce, Relaxed);
        talk();
    }
    None
}

/// Reads the mailbox, unless somebody is at it; for those who miss a doorbell, and for sleepers it woke. False:
/// somebody is.
pub fn collect() -> bool {
    // The child of vfork has our memory and a table of descriptors of its own: what it received would be noted
    // here under numbers that mean something else to us.
    if crate::tls::tls().vfork.get() != 0 {
        return true;
    }
    let held = LOCK.try_lock();
    let free = held.is_some();
    if let Some(held) = held {
        read_mailbox();
        held.release();
    }
    free
}

/// The mailbox's descriptor, for sleepers; -1 if there is none.
pub fn mailbox() -> i32 {
    if NAME.load(Relaxed) == 0 { -1 } else { MAILBOX.load(Relaxed) }
}

/// Wakes all sleepers of the other side through its mailbox: we do not have the doorbell of the one we mean.
/// So it is after a fork, whose child its parent's peers do not know.
pub fn poke(chan: &Chan) {
    if own_mailbox() != 0 {
        let m = Message::VersionNo { from: NAME.load(Relaxed), nonce: 0, version: VERSION };
        let _ = mailbox::send(MAILBOX.load(Relaxed), chan.peer_mailbox.load(Relaxed), &m, &[]);
    }
}

pub fn read_mailbox() {
    if NAME.load(Relaxed) == 0 {
        return;
    }
    let mut fds = [-1i32; MAX_FDS];
    // To the end: an edge-triggered set is not told of what is left. Nobody can make it endless.
    for _ in 0..4096 {
        match mailbox::recv(MAILBOX.load(Relaxed), &mut fds) {
            None => return,
            Some(Incoming::VersionMismatch { from, nonce, version, refusal }) => {
                crate::log!(
                    Info,
                    "a peer speaks version {version:#x} of culvert's messages, this is {VERSION:#x}; its connections stay on the kernel"
                );
                if refusal {
                    if let Some(k) =
                        KNOCKS.iter().find(|k| k.nonce.load(Relaxed) == nonce && k.mailbox.load(Relaxed) == from)
                    {
                        k.at.store(REFUSED, Relaxed);
                    }
                } else {
                    let m = Message::VersionNo { from: NAME.load(Relaxed), nonce, version: VERSION };
                    let _ = mailbox::send(MAILBOX.load(Relaxed), from, &m, &[]);
                }
            }
            Some(Incoming::Message(r)) => {
                let got = &fds[..r.nfds];
                let kept = heard(r.message, r.uid, r.pid, got);
                for &fd in &got[kept..] {
                    sys::close(fd);
                }
            }
        }
    }
}

/// Handles a message; returns how many of the descriptors, from the front, were kept.
fn heard(m: Message, uid: u32, pid: u32, got: &[i32]) -> usize {
    match m {
        Message::Knock { from, nonce } => {
            MET.store(true, Relaxed);
            talk();
            let mut out = [-1; POLLERS];
            let (pollers, n) = poller::bells(&mut out);
            let m = Message::Welcome { from: NAME.load(Relaxed), nonce, pollers };
            if mailbox::send(MAILBOX.load(Relaxed), from, &m, &out[..n]).is_ok() {
                let oldest = WELCOMES.iter().min_by_key(|w| w.at.load(Relaxed));
                if let Some(w) = oldest {
                    w.mailbox.store(from, Relaxed);
                    w.uid.store(uid, Relaxed);
                    w.at.store(clock::now(), Relaxed);
                    w.nonce.store(nonce, Relaxed);
                    w.told.store(pollers, Relaxed);
                }
            }
            0
        }
        Message::Welcome { from, nonce, pollers } => {
            let Some(k) = KNOCKS.iter().find(|k| k.nonce.load(Relaxed) == nonce && k.mailbox.load(Relaxed) == from)
            else {
                return 0;
            };
            k.nonce.store(0, Relaxed);
            if k.uid.load(Relaxed) != uid {
                crate::log!(
                    Warn,
                    "the mailbox of uid {} is held by uid {uid}; its connections stay on the kernel",
                    k.uid.load(Relaxed)
                );
                return 0;
            }
            make_channel(from, nonce, uid, pid, pollers, got)
        }
        Message::Channel { from, nonce, channel, ring, pollers } => {
            let Some(w) = WELCOMES.iter().find(|w| w.nonce.load(Relaxed) == nonce && w.mailbox.load(Relaxed) == from)
            else {
                return 0;
            };
            w.nonce.store(0, Relaxed);
            if w.uid.load(Relaxed) != uid {
                return 0;
            }
            let held = channel::LOCK.lock();
            let chan = channel::map(got[0], Role::Connector, ring as usize, channel);
            held.release();
            let Some(chan) = chan else {
                crate::log!(Warn, "channel of pid {pid}: not usable, or no memory");
                return 1;
            };
            introduce(chan, from, uid, pid);
            chan.told.store(w.told.load(Relaxed), Relaxed);
            1 + keep_bells(chan, pollers, &got[1..])
        }
        Message::Doorbell { from, channel, role, pollers } => {
            let mine = channel::all().find(|c| {
                c.id.load(Relaxed) == channel && c.role() == role.peer() && c.peer_mailbox.load(Relaxed) == from
            });
            mine.map_or(0, |c| if c.peer_uid.load(Relaxed) == uid { keep_bells(c, pollers, got) } else { 0 })
        }
        // A poke, or a question whether we are there. Of several threads that sleep on the mailbox only the one
        // that reads it is sure to wake: it wakes the others.
        Message::VersionNo { nonce: 0, .. } => {
            poller::ring_all();
            0
        }
        // Peers of our own version refuse nothing.
        Message::VersionNo { .. } => 0,
    }
}

fn introduce(chan: &Chan, mailbox: u64, uid: u32, pid: u32) {
    talk();
    chan.peer_mailbox.store(mailbox, Relaxed);
    chan.peer_uid.store(uid, Relaxed);
    chan.peer_pid.store(pid, Relaxed);
    crate::log!(Info, "channel {:x} with pid {pid} (uid {uid}), {} bytes a ring", chan.id.load(Relaxed), chan.ring());
}

/// Stores doorbells; returns how many descriptors were kept (all: those that cannot be placed are closed).
fn keep_bells(chan: &'static Chan, pollers: u64, got: &[i32]) -> usize {
    let mut m = pollers;
    let mut n = 0;
    while m != 0 && n < got.len() {
        let p = m.trailing_zeros() as usize;
        m &= m - 1;
        own::discard(&chan.bells[p]);
        chan.bells[p].store(got[n], Relaxed);
        own::adopt(&chan.bells[p]);
        n += 1;
    }
    n
}

fn make_channel(peer: u64, nonce: u64, uid: u32, pid: u32, pollers: u64, got: &[i32]) -> usize {
    let ring = config::ring();
    let id = random();
    let Some(memfd) = new_memory(ring, id) else {
        crate::log!(Warn, "no memory for a channel; connections stay on the kernel");
        return 0;
    };
    let held = channel::LOCK.lock();
    let chan = channel::map(memfd, Role::Acceptor, ring, id);
    held.release();
    let Some(chan) = chan else {
        crate::log!(Warn, "no memory, or no descriptor, for a channel; connections stay on the kernel");
        return 0;
    };
    let mut out = [-1; MAX_FDS];
    out[0] = chan.memfd.load(Relaxed);
    let mut bells = [-1; POLLERS];
    let (mine, n) = poller::bells(&mut bells);
    out[1..=n].copy_from_slice(&bells[..n]);
    let m = Message::Channel { from: NAME.load(Relaxed), nonce, channel: id, ring: ring as u32, pollers: mine };
    let sent = mailbox::send(MAILBOX.load(Relaxed), peer, &m, &out[..=n]);
    if sent.is_err() {
        let held = channel::LOCK.lock();
        chan.close();
        held.release();
        return 0;
    }
    introduce(chan, peer, uid, pid);
    chan.told.store(mine, Relaxed);
    keep_bells(chan, pollers, got)
}

/// A sealed memfd with a channel's header in it.
pub fn new_memory(ring: usize, id: u64) -> Option<i32> {
    if !own::may_size(layout::channel_len(ring)) {
        return None;
    }
    let name = c"culvert-channel";
    // SAFETY: system calls on a descriptor of ours and on locals.
    unsafe {
        let fd = syscall!(libc::SYS_memfd_create, name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) as i32;
        if fd < 0 {
            return None;
        }
        // Bytes, not the struct: its padding would be what happens to lie on our stack, and another user may read it.
        let mut h = [0u8; size_of::<layout::Header>()];
        let mut put = |at: usize, bytes: &[u8]| h[at..at + bytes.len()].copy_from_slice(bytes);
        put(offset_of!(layout::Header, magic), &layout::MAGIC.to_ne_bytes());
        put(offset_of!(layout::Header, version), &layout::VERSION.to_ne_bytes());
        put(offset_of!(layout::Header, ring), &(ring as u32).to_ne_bytes());
        put(offset_of!(layout::Header, id), &id.to_ne_bytes());
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        let ok = syscall!(libc::SYS_ftruncate, fd, layout::channel_len(ring)) >= 0
            && syscall!(libc::SYS_pwrite64, fd, h.as_ptr(), h.len(), 0) > 0
            && syscall!(libc::SYS_fcntl, fd, libc::F_ADD_SEALS, seals) >= 0
            // A doorbell that is rung while another thread closes it must not write here, should the number be this file's.
            && syscall!(libc::SYS_lseek, fd, 0, libc::SEEK_END) >= 0;
        if !ok {
            sys::close(fd);
            return None;
        }
        Some(fd)
    }
}

/// Sends the doorbell of poller `p` to the other side of `chan`.
fn send_bell(chan: &Chan, p: usize) -> bool {
    let m = Message::Doorbell {
        from: NAME.load(Relaxed),
        channel: chan.id.load(Relaxed),
        role: chan.role(),
        pollers: 1 << p,
    };
    mailbox::send(MAILBOX.load(Relaxed), chan.peer_mailbox.load(Relaxed), &m, &[poller::bell(p)]).is_ok()
}

/// Makes sure that the peer has the doorbell of poller `p`. False: it does not, sleep in bounded steps.
pub fn tell(chan: &Chan, p: usize) -> bool {
    if chan.told.load(Relaxed) & (1 << p) != 0 {
        return true;
    }
    let sent = send_bell(chan, p);
    if sent {
        chan.told.fetch_or(1 << p, Relaxed);
    }
    sent
}

/// Another process has knocked: some of our peers take part, however long they need.
pub static MET: AtomicBool = AtomicBool::new(false);

/// Until when (monotonic, nanoseconds) every connection takes steps more often: somebody was written to, or has written.
static TALK_UNTIL: AtomicU64 = AtomicU64::new(0);

fn talk() {
    const LENGTH: u64 = 500_000_000;
    TALK_UNTIL.store(clock::now() + LENGTH, Relaxed);
}

pub fn talking() -> bool {
    let until = TALK_UNTIL.load(Relaxed);
    until != 0 && clock::now() < until
}
