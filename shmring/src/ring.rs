//! One direction of one connection: a single-producer, single-consumer ring of bytes.
//!
//! TCP has no message boundaries, so the ring has none either: a *position* counts the bytes since the
//! stream went up, and lies at `(position - base) mod size`. `base` moves only while the ring is
//! empty, so that a connection that keeps up uses the same few cache lines over and over.
//!
//! Ordering. T (`publish`): `tail.store(Release)` ↔ `Receiver::available`'s `tail.load(Acquire)`: the
//! bytes and `base` are visible before the tail that covers them. H (`consume`): `head.store(Release)` ↔
//! `Sender::refresh`'s `head.load(Acquire)`: the reads are done before the room is given back. `base` is
//! stable whenever the ring is non-empty, hence `Relaxed`.

use crate::layout::{ALONE, Consumer, DOZING, Producer, Queue, Side};
use crate::position::{Corrupt, RingPos};
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};
use crate::sys;

/// Where positions lie in a ring.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Bytes; a power of two.
    pub size: u64,
    /// How many of them, the first, are the ring's home, which lies apart from the rest.
    pub home: u64,
}

/// A piece of ring memory: offset from the ring's start, and length, in bytes.
pub type Span = (usize, usize);

impl Geometry {
    /// Where the ring's `len` bytes from position `pos` on lie, if that is one piece of the home: what nearly all messages are.
    #[inline(always)]
    pub fn at_home(&self, base: RingPos, pos: RingPos, len: u64) -> Option<usize> {
        let off = pos.since(base) & (self.size - 1);
        let room = self.home.min(self.size);
        (len <= room && off <= room - len).then_some(off as usize)
    }

    /// The pieces that `len` bytes from `pos` occupy, in their order; each is all home or all bulk. Always inside the
    /// ring, whatever the arguments; `len` is cut to the ring's size.
    pub fn spans(&self, base: RingPos, pos: RingPos, len: u64) -> [Span; 3] {
        let len = len.min(self.size);
        let home = self.home.min(self.size);
        let off = pos.since(base) & (self.size - 1);
        // The parts of the ring, from the one that `pos` lies in.
        let (in_home, bulk) = (off < home, self.size - home);
        let first = len.min(if in_home { home } else { self.size } - off);
        let rest = len - first;
        let (at, second) = if in_home { (home, rest.min(bulk)) } else { (0, rest.min(home)) };
        let third = if in_home { 0 } else { home };
        [(off as usize, first as usize), (at as usize, second as usize), (third as usize, (rest - second) as usize)]
    }
}

/// Receiver's look at the ring: bytes available after `head`, given the peer's claim.
#[inline(always)]
pub fn available(p: &Producer, head: RingPos, size: u64) -> Result<u64, Corrupt> {
    let tail = p.tail.load(Ordering::Acquire); // T
    Ok(tail.within(head, head.plus(size))?.since(head))
}

/// The base that goes with a tail loaded before. The peer's word for it is enough: places are inside the ring whatever it is.
#[inline(always)]
pub fn base(p: &Producer) -> RingPos {
    p.base.load(Ordering::Relaxed)
}

/// Gives `head` back to the sender.
#[inline(always)]
pub fn consume(c: &Consumer, head: RingPos) {
    c.head.store(head.claim(), Ordering::Release); // H
}

/// Says that everything before `head` was read, and gives no room back.
#[inline(always)]
pub fn read_on(c: &Consumer, head: RingPos) {
    c.read.store(head.claim(), Ordering::Release);
}

/// Makes everything before `tail` visible to the receiver.
#[inline(always)]
pub fn publish(p: &Producer, tail: RingPos) {
    p.tail.store(tail.claim(), Ordering::Release); // T
}

/// The receiver's head as far as it can be believed: between what it said last and what was sent.
#[inline(always)]
pub fn refresh(c: &Consumer, known: RingPos, tail: RingPos) -> Result<RingPos, Corrupt> {
    let head = c.head.load(Ordering::Acquire); // H
    head.within(known, tail)
}

/// How far the receiver has read, as far as it can be believed: at least up to where it has given room back, `head`.
pub fn read_up_to(c: &Consumer, head: RingPos, tail: RingPos) -> RingPos {
    c.read.load(Ordering::Acquire).within(head, tail).unwrap_or(head)
}

/// What a receiver of the kernel's takes at least before anything is read, if the program did not limit it: the default
/// (tcp_rmem, tcp(7)) twice, as it grows with large segments.
const UNLIMITED_RECEIVER: u32 = 2 * 131_072;

/// In [`Side::sndbuf`]: the rest bounds what has not been sent (`TCP_NOTSENT_LOWAT`), which is what the receiver's window does
/// not take.
pub const UNSENT: u32 = 1 << 31;

/// Whether the sender has bounded what it has not sent (`TCP_NOTSENT_LOWAT`).
pub fn bounds_unsent(sender: &Side) -> bool {
    sender.sndbuf.load(Ordering::Relaxed) & UNSENT != 0
}

/// Bytes that may lie on a ring of `size` bytes: what the kernel would hold between the two sockets, if the
/// program has limited the sender's buffer. The ends judge by the same words, in which a peer may have written anything: what
/// no two sockets of the kernel's have counts as the least that they have.
pub fn limit(sender: &Side, receiver: &Side, size: u64) -> u64 {
    let held = match (sender.sndbuf.load(Ordering::Relaxed), receiver.rcvbuf.load(Ordering::Relaxed)) {
        // It grows to megabytes.
        (0, _) => size,
        (low, _) if low & UNSENT != 0 => u64::from(low & !UNSENT) + window(receiver),
        (snd, 0) => u64::from(snd) + u64::from(UNLIMITED_RECEIVER),
        (snd, rcv) => u64::from(snd) + u64::from(rcv),
    };
    held.max(LEAST_HELD).min(size)
}

/// The window of the smallest receive buffer (SOCK_MIN_RCVBUF, net/sock.h: 2,304 bytes), which TCP_NOTSENT_LOWAT may have
/// nothing added to. With a limit of a few bytes there would be room for a send by one count, and none by another.
const LEAST_HELD: u64 = 1152;

/// Bytes that a receiver of the kernel's takes at least before anything is read: half of its buffer, the rest of which is for
/// the overhead (tcp_win_from_space with tcp_adv_win_scale 1).
pub fn window(receiver: &Side) -> u64 {
    match receiver.rcvbuf.load(Ordering::Relaxed) {
        0 => u64::from(UNLIMITED_RECEIVER) / 4,
        bytes => u64::from(bytes) / 2,
    }
}

/// Moves the home to position `tail`. Only the sender, and only when the ring is empty.
pub fn rebase(p: &Producer, tail: RingPos) {
    p.base.store(tail, Ordering::Relaxed);
}

/// Sender: marks `me` as waiting for room. Arm first, call this, then look at the room once more.
///
/// Every wish has its own number, so that a receiver that served one does not take back a later one.
pub fn want_space(me: &Side) {
    me.want_space.fetch_add(1, Ordering::Relaxed);
    fence(Ordering::SeqCst);
}

/// Receiver, after [`consume`] of `head`: the wish for room to serve now, if there is one and a third of the
/// ring is free (sk_stream_write_space has the same hysteresis). Notify the sender, then call [`served`].
///
/// The room is what the sender's tail leaves *after* ours was given back: judged by an earlier tail, a
/// sender that filled the ring meanwhile and sleeps would be overlooked.
pub fn wish(sender: &Side, p: &Producer, head: RingPos, size: u64) -> Option<u32> {
    fence(Ordering::SeqCst);
    let wish = sender.want_space.load(Ordering::Relaxed);
    if wish == 0 {
        return None;
    }
    let used = p.tail.load(Ordering::Relaxed).behind(head);
    (size.saturating_sub(used) >= size / 3).then_some(wish)
}

/// Receiver: takes back the `wish` it has notified the sender of.
pub fn served(sender: &Side, wish: u32) {
    let _ = sender.want_space.compare_exchange(wish, 0, Ordering::Relaxed, Ordering::Relaxed);
}

/// How a poller that sleeps is woken.
pub enum Sleeper<'a> {
    /// This poller, by the doorbell that its queue names.
    Bell(usize, &'a Queue),
    /// `FUTEX_WAKE` on this word, which is clear by now.
    Word(&'a AtomicU32),
}

/// When news came that are new to a poller: of connections that have some, the one that had them first is reported
/// first, as by the kernel (its ready list is in the order of arrival).
pub struct Stamp<'a> {
    /// Where the pollers find it.
    pub told: &'a AtomicU64,
    /// Now, in cycles, and not before anything that this thread did earlier.
    pub now: fn() -> u64,
}

/// What a notification is about: there is a bit per slot for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum About {
    /// What the sender of a stream did: bytes, its end, a change of the medium ([`Queue::ready`]).
    Stream,
    /// Anything else: room, readiness, somebody of the same process who came first ([`Queue::aside`]).
    Aside,
}

impl About {
    fn word(self, queue: &Queue) -> &AtomicU64 {
        match self {
            About::Stream => &queue.ready,
            About::Aside => &queue.aside,
        }
    }
}

/// Sets `bit` in `word`. `stamp` is called before that if the bit is not set, so that whoever finds the bit finds the
/// stamp of the first of the news that it stands for, until the bit is taken.
///
/// Also where the bit is set already the word is written, by a CAS: whoever takes the bit afterwards sees what was
/// stored before the call. Who took it before makes the CAS fail.
fn mark(word: &AtomicU64, bit: u64, mut stamp: impl FnMut()) {
    /// Others that set and take bits make the CAS fail, too. The peer could do so for ever.
    const TRIES: u32 = 64;
    sys::prefetch_to_write(core::ptr::from_ref(word));
    let mut bits = word.load(Ordering::Relaxed);
    for _ in 0..TRIES {
        if bits & bit == 0 {
            stamp();
        }
        match word.compare_exchange(bits, bits | bit, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => bits = now,
        }
    }
    stamp();
    word.fetch_or(bit, Ordering::AcqRel);
}

/// Tells the pollers of `side` to look at `slot`; `wake` wakes one that sleeps, or says by `false` that it does so later, by [`wake_late`]: it
/// stays armed until then. `alone` is the queue of a thread that sleeps on
/// this slot and nothing else: it needs no mark to know where to look.
///
/// Call it after the store the other side is to see. The fence pairs with the one in [`armed`]: either the
/// sleeper's second look sees that store, or we see that it is armed. The doorbell is rung *before* the
/// armed word is cleared, so that dying in between loses no wake-up. Who sleeps on the word itself is woken after;
/// dying in between costs it the rest of a doze.
pub fn notify(
    side: &Side,
    queues: &[Queue],
    alone: &Queue,
    slot: usize,
    about: About,
    stamp: Option<Stamp>,
    mut wake: impl FnMut(Sleeper) -> bool,
) {
    let queue = |p: usize| if p == ALONE { alone } else { &queues[p] };
    let mut done = 0u64;
    loop {
        let mask = side.pollers.load(Ordering::Relaxed) & !done;
        let mut m = mask & !(1 << ALONE);
        // One time for all pollers.
        let mut now = None;
        while m != 0 {
            let p = m.trailing_zeros() as usize;
            m &= m - 1;
            mark(about.word(&queues[p]), 1 << slot, || {
                if let Some(s) = &stamp {
                    s.told.store(*now.get_or_insert_with(s.now), Ordering::Relaxed);
                }
            });
        }
        fence(Ordering::SeqCst);
        let mut m = mask;
        while m != 0 {
            let p = m.trailing_zeros() as usize;
            m &= m - 1;
            let q = queue(p);
            let armed = &q.armed;
            let generation = armed.load(Ordering::Relaxed);
            let clear = || armed.compare_exchange(generation, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok();
            if generation & DOZING != 0 {
                if clear() {
                    wake(Sleeper::Word(armed));
                }
            } else if generation != 0 && wake(Sleeper::Bell(p, q)) {
                clear();
            }
        }
        done |= mask;
        if side.pollers.load(Ordering::Relaxed) & !done == 0 {
            return;
        }
    }
}

/// Rings for whoever was left asleep in [`notify`], by the same thread, if he sleeps still: `ring` rings the doorbell that `queue` names. He
/// may have slept, woken and armed it anew meanwhile, with the news seen: then he is woken for nothing.
pub fn wake_late(queue: &Queue, ring: impl FnOnce(&Queue)) {
    // That call's fence comes after the news and before this look.
    let generation = queue.armed.load(Ordering::Relaxed);
    if generation != 0 && generation & DOZING == 0 {
        ring(queue);
        let _ = queue.armed.compare_exchange(generation, 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Declares that the owner of `queue` is about to sleep. Then call [`armed`], and look at everything once more.
///
/// `generation` must differ from that of every earlier sleep: a notifier that is late with clearing the word compares
/// it with the one that it saw, and must not clear this one.
///
/// A store would do: the notifier's CAS comes before it in the word's modification order and clears an earlier generation,
/// or after it and fails. It is a swap because loom lets a CAS pass a store that it should have read, and this function
/// is the one that loom checks.
pub fn arm(queue: &Queue, generation: u32) {
    queue.armed.swap(generation, Ordering::Relaxed);
}

/// All queues that concern one sleep are armed. The fence pairs with the one in [`notify`].
pub fn armed() {
    fence(Ordering::SeqCst);
}

/// The bits that are set, without taking them. What they stand for, and the stamps, can be read then.
pub fn marks(queue: &Queue, about: About) -> u64 {
    about.word(queue).load(Ordering::Acquire)
}

/// Takes the bits `which`.
pub fn take(queue: &Queue, about: About, which: u64) -> u64 {
    about.word(queue).fetch_and(!which, Ordering::AcqRel) & which
}

/// Leaves the bits `which` for the next time.
pub fn leave(queue: &Queue, about: About, which: u64) {
    about.word(queue).fetch_or(which, Ordering::AcqRel);
}

/// Whether there are any.
#[inline(always)]
pub fn stirred(queue: &Queue) -> bool {
    queue.ready.load(Ordering::Relaxed) | queue.aside.load(Ordering::Relaxed) != 0
}

/// Takes all bits.
pub fn take_ready(queue: &Queue) -> u64 {
    let all = |about| match marks(queue, about) {
        0 => 0,
        _ => take(queue, about, u64::MAX),
    };
    all(About::Stream) | all(About::Aside)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn side(sndbuf: u32, rcvbuf: u32) -> Side {
        let side = Side::default();
        side.sndbuf.store(sndbuf, Ordering::Relaxed);
        side.rcvbuf.store(rcvbuf, Ordering::Relaxed);
        side
    }

    #[test]
    fn what_may_lie_on_a_ring_is_what_the_kernel_would_hold() {
        let of = |snd, rcv| limit(&side(snd, 0), &side(0, rcv), 1 << 22);
        assert_eq!(of(0, 0), 1 << 22);
        assert_eq!(of(4608, 2304), 4608 + 2304);
        assert_eq!(of(4608, 0), 4608 + u64::from(UNLIMITED_RECEIVER));
        assert_eq!(of(UNSENT, 2304), 1152);
        assert_eq!(of(!UNSENT, u32::MAX), 1 << 22);
    }

    #[test]
    fn buffers_that_nobody_has_leave_room_to_send() {
        for (snd, rcv) in [(1, 1), (1, 0), (UNSENT | 1, 1), (UNSENT, 1)] {
            let least = limit(&side(snd, 0), &side(0, rcv), 4096);
            assert!(least / 3 > 0, "{snd} {rcv}: {least}");
        }
    }
}
