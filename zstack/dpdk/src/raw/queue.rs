//! The hot path: packets from and to one queue of a device.

use super::ethdev::Ethdev;
use super::pool::Pool;
use super::slots::Slots;
use crate::driver::Payload;
use std::cell::Cell;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use zstack::payload::{Buffer, Pinned, Span, Spans};
use zstack::port::{Checksum, Frame, Refused};
use zstack_dpdk_sys as sys;

/// Packets that are taken from, or given to, the driver at once.
const BURST: usize = 32;
/// Frames that wait for the driver at most.
const PENDING: usize = 64;
/// Frames whose payload the driver may still read.
const SLOTS: usize = 2048;

/// The device and the pools of all its queues, in the order in which they go: a pool must outlive the device, and every packet.
pub(crate) struct Parts {
    pub ethdev: Ethdev,
    pub queues: Vec<Pools>,
}

/// The pools of one queue.
pub(crate) struct Pools {
    /// What the driver receives into.
    pub rx: Pool,
    /// Headers, and whole packets that are copied; `None`: [`Pools::rx`] is used.
    pub tx: Option<Pool>,
    /// Segments that point at others' memory.
    pub segments: Option<Pool>,
    /// How many received packets may be in use at once, the driver's own not counted.
    pub most: u32,
}

/// What a queue and its packets share, on one thread.
struct Shared {
    parts: Arc<Parts>,
    /// Packets in use.
    held: Cell<u32>,
    most: u32,
}

/// A received packet: the driver's buffer, until it is dropped.
pub struct Packet {
    mbuf: NonNull<sys::rte_mbuf>,
    shared: Rc<Shared>,
}

impl Buffer for Packet {
    #[inline]
    fn bytes(&self) -> &[u8] {
        // SAFETY: the mbuf is this packet's alone since the driver has handed it over; `data_len` bytes at `data_off` of its buffer were
        // written by the driver (one segment: `Raw::receive`), and nobody writes there while the packet lives.
        unsafe {
            let m = self.mbuf.as_ref();
            std::slice::from_raw_parts(m.buf_addr.cast::<u8>().add(usize::from(m.data_off)), usize::from(m.data_len))
        }
    }

    /// Less than a quarter of those that may be in use is free.
    #[inline]
    fn scarce(&self) -> bool {
        u64::from(self.shared.held.get()) * 4 > u64::from(self.shared.most) * 3
    }
}

// SAFETY: `bytes` names the mbuf's buffer, which lies in the pool's memory and does not move; it is nobody else's until the packet is dropped.
unsafe impl Pinned for Packet {}

impl Drop for Packet {
    fn drop(&mut self) {
        self.shared.held.set(self.shared.held.get() - 1);
        // SAFETY: the mbuf is ours, and its pool lives (`Shared::parts`).
        unsafe { sys::z_free(self.mbuf.as_ptr()) };
    }
}

impl std::fmt::Debug for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packet({} bytes)", self.bytes().len())
    }
}

/// What has happened at a queue, and at its device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Packets received.
    pub received: u64,
    /// Packets received and dropped: longer than a buffer.
    pub oversized: u64,
    /// Frames accepted.
    pub sent: u64,
    /// Payload bytes that the driver read where their owner has them.
    pub attached_bytes: u64,
    /// Payload bytes that were copied behind their header.
    pub copied_bytes: u64,
    /// Frames that were refused as unfit.
    pub unfit: u64,
    /// How often nothing was received because all buffers were in use.
    pub starved: u64,
    /// Calls of the driver's tx_burst.
    pub bursts: u64,
    /// Of the device: packets that it has dropped for want of buffers or of room in its ring, as far as its driver tells.
    pub missed: u64,
    /// Of the device: packets that it could not send.
    pub unsent: u64,
}

/// How frames are built.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Building {
    pub payload: Payload,
    /// The longest frame that is not to be cut.
    pub longest: u32,
    pub checksum: bool,
    /// The most payload of a frame that is to be cut.
    pub tso: u32,
}

/// One queue, used by one thread.
pub(crate) struct Raw {
    shared: Rc<Shared>,
    port: u16,
    queue: u16,
    building: Building,
    arrived: [*mut sys::rte_mbuf; BURST],
    next: usize,
    count: usize,
    pending: [*mut sys::rte_mbuf; PENDING],
    waiting: usize,
    slots: Slots,
    /// The driver can be asked to let go what it has sent.
    cleans: bool,
    accepted: u64,
    /// Without those of the device.
    pub counts: Counters,
}

impl Raw {
    pub fn new(parts: Arc<Parts>, queue: u16, building: Building) -> Raw {
        let port = parts.ethdev.port();
        let most = parts.queues[usize::from(queue)].most;
        Raw {
            shared: Rc::new(Shared { parts, held: Cell::new(0), most }),
            port,
            queue,
            building,
            arrived: [std::ptr::null_mut(); BURST],
            next: 0,
            count: 0,
            pending: [std::ptr::null_mut(); PENDING],
            waiting: 0,
            slots: Slots::new(SLOTS),
            cleans: true,
            accepted: 0,
            counts: Counters::default(),
        }
    }

    pub fn ethdev(&self) -> &Ethdev {
        &self.shared.parts.ethdev
    }

    fn pools(&self) -> &Pools {
        &self.shared.parts.queues[usize::from(self.queue)]
    }

    /// The memory of ours in which packets arrive.
    pub fn memory(&self) -> Option<(BorrowedFd<'_>, Range<usize>)> {
        let region = self.pools().rx.region()?;
        let start = region.start().addr().get();
        Some((region.file(), start..start + region.len()))
    }

    /// Packets that are in use, and how many may be.
    pub fn held(&self) -> (u32, u32) {
        (self.shared.held.get(), self.shared.most)
    }

    /// Whether a packet is there; asks the driver if none has been taken from it.
    #[inline]
    pub fn look(&mut self) -> bool {
        if self.next == self.count {
            self.next = 0;
            self.count = 0;
            let (held, most) = self.held();
            let room = most.saturating_sub(held).min(BURST as u32) as u16;
            if room == 0 {
                self.counts.starved += 1;
                return false;
            }
            // SAFETY: the queue is this thread's alone (`Raw` is not Send), the device is started, and the array has room for `room`.
            let n = unsafe { sys::z_rx_burst(self.port, self.queue, self.arrived.as_mut_ptr(), room) };
            self.count = usize::from(n);
            self.shared.held.set(held + u32::from(n));
        }
        self.next < self.count
    }

    /// The next packet, and whether its transport checksum is known to be right.
    #[inline]
    pub fn receive(&mut self) -> Option<(Packet, bool)> {
        while self.look() {
            let mbuf = self.arrived[self.next];
            self.next += 1;
            // The driver hands over mbufs, never null pointers.
            let Some(mbuf) = NonNull::new(mbuf) else { continue };
            let packet = Packet { mbuf, shared: Rc::clone(&self.shared) };
            // SAFETY: the mbuf is the packet's.
            let (segments, flags) = unsafe { (mbuf.as_ref().nb_segs, mbuf.as_ref().ol_flags) };
            if segments != 1 {
                // Longer than a buffer, which has room for the MTU.
                self.counts.oversized += 1;
                continue;
            }
            self.counts.received += 1;
            debug_assert!(
                self.pools().rx.region().is_none_or(|region| region.has(packet.bytes().as_ptr(), packet.bytes().len())),
                "a packet has come in memory of others"
            );
            let sum = flags & sys::Z_M_RX_L4_MASK;
            return Some((packet, sum == sys::Z_M_RX_L4_GOOD || sum == sys::Z_M_RX_L4_NONE));
        }
        None
    }

    /// A packet of these bytes, as if it had arrived; `None`: no buffer is free.
    pub fn copy_of(&mut self, bytes: &[u8]) -> Option<Packet> {
        let (held, most) = self.held();
        if held >= most {
            return None;
        }
        // SAFETY: the pool lives.
        let mbuf = NonNull::new(unsafe { sys::z_alloc(self.pools().rx.as_ptr()) })?;
        self.shared.held.set(held + 1);
        let packet = Packet { mbuf, shared: Rc::clone(&self.shared) };
        // SAFETY: the mbuf is ours alone; the room is looked at before anything is written.
        unsafe {
            let m = &mut *mbuf.as_ptr();
            if usize::from(m.buf_len) < usize::from(m.data_off) + bytes.len() {
                return None;
            }
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                m.buf_addr.cast::<u8>().add(usize::from(m.data_off)),
                bytes.len(),
            );
            m.data_len = bytes.len() as u16;
            m.pkt_len = bytes.len() as u32;
        }
        Some(packet)
    }

    /// A buffer with `head` in it, alone.
    #[inline]
    fn begin(&mut self, head: &[u8], more: usize) -> Result<NonNull<sys::rte_mbuf>, Refused> {
        let pools = self.pools();
        let pool = pools.tx.as_ref().unwrap_or(&pools.rx);
        // SAFETY: the pool lives.
        let mbuf = NonNull::new(unsafe { sys::z_alloc(pool.as_ptr()) }).ok_or(Refused::Full)?;
        // SAFETY: the mbuf is ours alone. The room is looked at before anything is written.
        unsafe {
            let m = &mut *mbuf.as_ptr();
            let len = head.len() + more;
            if usize::from(m.buf_len) < usize::from(m.data_off) + len {
                sys::z_free(mbuf.as_ptr());
                return Err(Refused::Unfit);
            }
            std::ptr::copy_nonoverlapping(
                head.as_ptr(),
                m.buf_addr.cast::<u8>().add(usize::from(m.data_off)),
                head.len(),
            );
            m.data_len = len as u16;
            m.pkt_len = len as u32;
        }
        Ok(mbuf)
    }

    /// Takes a frame; it goes to the driver with others.
    ///
    /// # Safety
    /// The spans must be readable until [`Raw::completed`] has passed the frame.
    #[inline]
    pub unsafe fn send(&mut self, frame: &Frame<'_>) -> Result<(), Refused> {
        let payload = frame.payload.len();
        if frame.cut > 0 {
            if payload > self.building.tso {
                return self.unfit();
            }
        } else if frame.head.len() as u32 + payload > self.building.longest {
            return self.unfit();
        }
        if self.waiting == PENDING {
            self.burst();
            if self.waiting == PENDING {
                return Err(Refused::Full);
            }
        }
        let attach = self.building.payload == Payload::Attached && payload > 0;
        if !self.slots.has_room() {
            self.clean();
            if !self.slots.has_room() {
                return Err(Refused::Full);
            }
        }
        let copied = if attach { 0 } else { payload };
        let mbuf = match self.begin(frame.head, copied as usize) {
            Ok(mbuf) => mbuf,
            Err(Refused::Unfit) => return self.unfit(),
            Err(refused) => return Err(refused),
        };
        if attach {
            // SAFETY: handed on.
            if let Err(refused) = unsafe { self.attach(mbuf, &frame.payload) } {
                // SAFETY: the mbuf is ours, and has no other segments.
                unsafe { sys::z_free(mbuf.as_ptr()) };
                return Err(refused);
            }
            self.counts.attached_bytes += u64::from(payload);
        } else if payload > 0 {
            // SAFETY: `begin` has made room for the payload behind the head; the spans are readable (the contract).
            unsafe {
                let m = &*mbuf.as_ptr();
                let mut to = m.buf_addr.cast::<u8>().add(usize::from(m.data_off) + frame.head.len());
                for span in frame.payload.0.iter().filter(|s| s.len > 0) {
                    std::ptr::copy_nonoverlapping(span.start, to, span.len as usize);
                    to = to.add(span.len as usize);
                }
            }
            self.counts.copied_bytes += u64::from(payload);
        }
        if let Checksum::Partial { start, offset } = frame.checksum
            && !self.offload(mbuf, frame, usize::from(start), usize::from(offset))
        {
            // SAFETY: the mbuf is ours; a segment of the payload is let go with it, and its slot is not accepted.
            unsafe { sys::z_free(mbuf.as_ptr()) };
            return self.unfit();
        }
        self.slots.accept(attach);
        self.pending[self.waiting] = mbuf.as_ptr();
        self.waiting += 1;
        self.accepted += 1;
        self.counts.sent += 1;
        if self.waiting >= BURST {
            self.burst();
        }
        Ok(())
    }

    #[cold]
    fn unfit(&mut self) -> Result<(), Refused> {
        self.counts.unfit += 1;
        Err(Refused::Unfit)
    }

    /// Chains segments that point at the payload.
    ///
    /// # Safety
    /// As for [`Raw::send`].
    #[inline]
    unsafe fn attach(&mut self, head: NonNull<sys::rte_mbuf>, payload: &Spans) -> Result<(), Refused> {
        let Some(pool) = self.pools().segments.as_ref().map(Pool::as_ptr) else { return Err(Refused::Unfit) };
        let mut spans = [Span::EMPTY; 2];
        let mut n = 0;
        for span in payload.0.iter().filter(|s| s.len > 0) {
            if span.len > u32::from(u16::MAX) {
                return Err(Refused::Unfit);
            }
            spans[n] = *span;
            n += 1;
        }
        let mut segments = [std::ptr::null_mut(); 2];
        for i in 0..n {
            // SAFETY: the pool lives.
            segments[i] = unsafe { sys::z_alloc(pool) };
            if segments[i].is_null() {
                if i > 0 {
                    // SAFETY: the segment is ours, and points at nothing yet.
                    unsafe { sys::z_free(segments[0]) };
                }
                return Err(Refused::Full);
            }
        }
        let shared = self.slots.share(n as u16);
        let mut last = head.as_ptr();
        for i in 0..n {
            // SAFETY: all mbufs are ours alone; the span is readable until the driver lets the segment go (the contract), and `shared` lives as
            // long (`Slots`).
            unsafe {
                sys::z_attach(segments[i], spans[i].start.cast_mut().cast(), spans[i].len as u16, shared);
                (*last).next = segments[i];
                last = segments[i];
                (*head.as_ptr()).nb_segs += 1;
                (*head.as_ptr()).pkt_len += spans[i].len;
            }
        }
        Ok(())
    }

    /// Says what the device has to complete; false: the frame contradicts itself.
    fn offload(&mut self, mbuf: NonNull<sys::rte_mbuf>, frame: &Frame<'_>, start: usize, offset: usize) -> bool {
        let head = frame.head;
        let link = if head.get(12..14) == Some(&[0x81, 0]) { 18 } else { 14 };
        // TCP alone: its checksum is 16 bytes into its header.
        if !self.building.checksum || offset != 16 || start <= link || head.len() < start + 20 {
            return false;
        }
        let four = head[link] >> 4 == 4;
        let mut flags = sys::Z_M_TX_TCP_CKSUM | if four { sys::Z_M_TX_IPV4 } else { sys::Z_M_TX_IPV6 };
        let cut = frame.cut > 0 && frame.payload.len() > u32::from(frame.cut);
        if cut {
            flags |= sys::Z_M_TX_TCP_SEG | if four { sys::Z_M_TX_IP_CKSUM } else { 0 };
        }
        let tcp = usize::from(head[start + 12] >> 4) * 4;
        // SAFETY: the mbuf is ours alone; its first bytes are `head`, into which the checksum's two bytes fall (looked at above).
        unsafe {
            if cut {
                // The sum of the pseudo header without the length, which is another one for each segment (rte_ipv4_phdr_cksum).
                let len = (head.len() - start) as u32 + frame.payload.len();
                let m = &*mbuf.as_ptr();
                let field = m.buf_addr.cast::<u8>().add(usize::from(m.data_off) + start + 16);
                let sum = u32::from(u16::from_be_bytes([field.read(), field.add(1).read()]));
                let without = subtract(sum as u16, len).to_be_bytes();
                field.write(without[0]);
                field.add(1).write(without[1]);
            }
            let segment = if cut { u64::from(frame.cut) } else { 0 };
            sys::z_tx_offload(mbuf.as_ptr(), flags, link as u64, (start - link) as u64, tcp as u64, segment);
        }
        true
    }

    /// Gives the driver what waits.
    pub fn burst(&mut self) {
        if self.waiting == 0 {
            return;
        }
        // SAFETY: the queue is this thread's alone, the device is started, and the first `waiting` entries are packets of ours, which are the
        // driver's as far as it takes them.
        let n = unsafe { sys::z_tx_burst(self.port, self.queue, self.pending.as_mut_ptr(), self.waiting as u16) };
        let n = usize::from(n).min(self.waiting);
        self.counts.bursts += 1;
        self.pending.copy_within(n..self.waiting, 0);
        self.waiting -= n;
    }

    /// Frames that the driver has not taken yet.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    #[cold]
    fn clean(&mut self) {
        self.burst();
        if self.cleans {
            // SAFETY: the queue is this thread's alone. 0: as many as it can.
            self.cleans = unsafe { sys::rte_eth_tx_done_cleanup(self.port, self.queue, 0) } != -libc::ENOTSUP;
        }
    }

    /// How many of the accepted frames, the first ones, nobody will read again.
    #[inline]
    pub fn completed(&mut self) -> u64 {
        self.burst();
        let mut completed = self.slots.completed();
        if self.slots.in_flight() && self.cleans {
            self.clean();
            completed = self.slots.completed();
        }
        completed
    }
}

/// `sum` without `len`, in one's complement (RFC 1071).
fn subtract(sum: u16, len: u32) -> u16 {
    let mut sum = u32::from(sum) + u32::from(!((len >> 16) as u16)) + u32::from(!(len as u16));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.burst();
        for mbuf in &self.pending[..self.waiting] {
            // SAFETY: the driver has not taken it: it is ours.
            unsafe { sys::z_free(*mbuf) };
        }
        for mbuf in &self.arrived[self.next..self.count] {
            // SAFETY: it was not handed out: it is ours.
            unsafe { sys::z_free(*mbuf) };
        }
        // The memory that frames point at belongs to the caller, who may use it again as soon as this returns.
        self.slots.completed();
        if self.slots.in_flight() {
            self.clean();
            self.slots.completed();
        }
        if self.slots.in_flight() {
            self.shared.parts.ethdev.stop();
            self.slots.completed();
        }
        if self.slots.in_flight() {
            // The driver keeps what it has sent until the device is closed, or it is used again: the slots must stay.
            std::mem::forget(std::mem::replace(&mut self.slots, Slots::new(1)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_taken_out_of_a_sum() {
        let sum = |words: &[u16]| {
            let mut s: u32 = words.iter().map(|w| u32::from(*w)).sum();
            while s > 0xffff {
                s = (s & 0xffff) + (s >> 16);
            }
            s as u16
        };
        let pseudo = [0x0a00, 1, 0x0a00, 2, 6];
        for len in [20u32, 1480, 65_000] {
            let with = sum(&[&pseudo[..], &[len as u16]].concat());
            assert_eq!(subtract(with, len), sum(&pseudo));
        }
    }
}
