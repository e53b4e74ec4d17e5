//! A wire in memory: two ports, what one sends the other receives.

use crate::raw::memory;
use crate::raw::pool::{Packet, Pool};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use zstack::payload::Spans;
use zstack::port::{Capabilities, Checksum, Frame, Medium, Port, Received, Refused};

/// Both ends' settings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// What the ports say of themselves. With `late`, the payload of a frame is read when [`Wire::read`] says so, and the frame
    /// arrives then; without, when it is sent.
    pub capabilities: Capabilities,
    /// How many packets can be on the way to each end, or held by it.
    pub buffers: u32,
}

impl Default for Settings {
    /// IP packets of 1500 bytes, complete; 256 of them.
    fn default() -> Settings {
        let capabilities = Capabilities { medium: Medium::Ip, mtu: 1500, checksum: false, tso: 0, late: false };
        Settings { capabilities, buffers: 256 }
    }
}

/// A frame whose payload has not been read.
struct Waiting {
    head: Vec<u8>,
    payload: Spans,
    verified: bool,
}

/// One direction.
struct Way {
    /// The receiver's memory.
    pool: Pool,
    waiting: VecDeque<Waiting>,
    arrived: VecDeque<Received<Packet>>,
    /// How many frames the sender need not keep any more.
    completed: u64,
}

struct Shared {
    ways: [Way; 2],
    gone: bool,
}

/// One end of a wire: see [`pair`]. Both ends belong to one thread.
pub struct Wire {
    shared: Rc<RefCell<Shared>>,
    /// The way that this end sends on; it receives on the other.
    way: usize,
    capabilities: Capabilities,
}

/// A wire. A packet that the sending port was asked to cut, or to complete the checksum of, arrives as it is, as it does between
/// two programs on one machine.
pub fn pair(settings: Settings) -> (Wire, Wire) {
    let capabilities = settings.capabilities;
    let longest = usize::from(capabilities.mtu).max(capabilities.tso as usize + 100) + 18;
    let way = || Way {
        pool: Pool::new(settings.buffers, longest),
        waiting: VecDeque::new(),
        arrived: VecDeque::new(),
        completed: 0,
    };
    let shared = Rc::new(RefCell::new(Shared { ways: [way(), way()], gone: false }));
    let end = |way| Wire { shared: Rc::clone(&shared), way, capabilities };
    (end(0), end(1))
}

impl Wire {
    /// How many frames of ours wait for [`Wire::read`].
    pub fn waiting(&self) -> usize {
        self.shared.borrow().ways[self.way].waiting.len()
    }

    /// Reads the payload of the first `frames` of our frames that wait, completes them and lets them arrive; fewer, if the other
    /// end's buffers are all in use. How many it were.
    ///
    /// The memory must still be readable: who promised that to [`Port::send`] is bound until now.
    pub fn read(&mut self, frames: usize) -> usize {
        let mut shared = self.shared.borrow_mut();
        let way = &mut shared.ways[self.way];
        let mut read = 0;
        while read < frames && !way.waiting.is_empty() {
            let Some(vacant) = way.pool.take() else { break };
            let Some(Waiting { head, payload, verified }) = way.waiting.pop_front() else { break };
            #[allow(unsafe_code)]
            // SAFETY: the frame is not completed yet, so the promise made to `send` holds.
            unsafe {
                way.arrive(vacant, &head, &payload, verified);
            }
            way.completed += 1;
            read += 1;
        }
        read
    }

    /// Takes the wire away: from now on both ends say [`Refused::Gone`]. Frames that were not read never will be: they are
    /// completed.
    pub fn cut(&mut self) {
        let mut shared = self.shared.borrow_mut();
        shared.gone = true;
        for way in &mut shared.ways {
            way.completed += way.waiting.len() as u64;
            way.waiting.clear();
            way.arrived.clear();
        }
    }

    /// The memory that this end receives into.
    pub fn pool(&self) -> Pool {
        self.shared.borrow().ways[1 - self.way].pool.clone()
    }
}

impl Way {
    /// # Safety
    /// The spans must be readable.
    #[allow(unsafe_code)] // The contract is handed on to the function that copies.
    unsafe fn arrive(&mut self, mut vacant: crate::raw::pool::Vacant, head: &[u8], payload: &Spans, verified: bool) {
        let (start, end) = vacant.bytes().split_at_mut(head.len());
        start.copy_from_slice(head);
        // SAFETY: readable by this function's contract.
        unsafe { memory::copy(payload, end) };
        let len = head.len() + payload.len() as usize;
        self.arrived.push_back(Received { buffer: vacant.filled(len), range: 0..len, verified });
    }
}

impl Port for Wire {
    type Buffer = Packet;

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn receive(&mut self) -> Result<Option<Received<Packet>>, Refused> {
        let mut shared = self.shared.borrow_mut();
        if shared.gone {
            return Err(Refused::Gone);
        }
        Ok(shared.ways[1 - self.way].arrived.pop_front())
    }

    #[allow(unsafe_code)] // The trait's contract is handed on, or kept until `read`.
    unsafe fn send(&mut self, frame: &Frame<'_>) -> Result<(), Refused> {
        let mut shared = self.shared.borrow_mut();
        if shared.gone {
            return Err(Refused::Gone);
        }
        let c = self.capabilities;
        let link = if c.medium == Medium::Ip { 0 } else { 18 };
        let most = link + if frame.cut > 0 { c.tso as usize + 100 } else { usize::from(c.mtu) };
        let partial = frame.checksum != Checksum::Complete;
        let asked_too_much = (partial && !c.checksum) || (frame.cut > 0 && (!partial || frame.payload.len() > c.tso));
        if asked_too_much || frame.head.len() + frame.payload.len() as usize > most {
            return Err(Refused::Unfit);
        }
        let way = &mut shared.ways[self.way];
        if c.late {
            if way.waiting.len() >= way.pool.count() {
                return Err(Refused::Full);
            }
            way.waiting.push_back(Waiting { head: frame.head.to_vec(), payload: frame.payload, verified: partial });
            return Ok(());
        }
        let vacant = way.pool.take().ok_or(Refused::Full)?;
        // SAFETY: readable until the frame is completed, which it is here.
        unsafe { way.arrive(vacant, frame.head, &frame.payload, partial) };
        way.completed += 1;
        Ok(())
    }

    fn completed(&mut self) -> u64 {
        self.shared.borrow().ways[self.way].completed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zstack::payload::{Buffer, Region, Span};

    fn spans(a: &[u8], b: &[u8]) -> Spans {
        Spans([a, b].map(|s| Span { start: s.as_ptr(), len: s.len() as u32, region: Region(0) }))
    }

    fn frame<'a>(head: &'a [u8], payload: Spans) -> Frame<'a> {
        Frame { head, payload, checksum: Checksum::Complete, cut: 0 }
    }

    #[allow(unsafe_code)]
    fn send(wire: &mut Wire, frame: &Frame<'_>) -> Result<(), Refused> {
        // SAFETY: all payloads of these tests live to the end of their test.
        unsafe { wire.send(frame) }
    }

    fn next(wire: &mut Wire) -> Option<Vec<u8>> {
        wire.receive().unwrap().map(|r| r.buffer.bytes()[r.range].to_vec())
    }

    #[test]
    fn what_one_sends_the_other_receives_in_order() {
        let (mut a, mut b) = pair(Settings::default());
        send(&mut a, &frame(b"head", spans(b"pay", b"load"))).unwrap();
        send(&mut a, &frame(b"second", Spans::EMPTY)).unwrap();
        assert_eq!(a.completed(), 2);
        assert_eq!(next(&mut b).unwrap(), b"headpayload");
        assert_eq!(next(&mut b).unwrap(), b"second");
        assert_eq!(next(&mut b), None);
        assert_eq!(next(&mut a), None, "nothing comes back");
        send(&mut b, &frame(b"answer", Spans::EMPTY)).unwrap();
        assert_eq!(next(&mut a).unwrap(), b"answer");
    }

    #[test]
    fn a_late_wire_reads_when_it_is_told() {
        let mut settings = Settings::default();
        settings.capabilities.late = true;
        let (mut a, mut b) = pair(settings);
        let payload = [std::cell::Cell::new(b'1'), std::cell::Cell::new(b'2')];
        let span = Span { start: payload.as_ptr().cast(), len: 2, region: Region(0) };
        send(&mut a, &frame(b"h", Spans([span, Span::EMPTY]))).unwrap();
        send(&mut a, &frame(b"h", Spans([span, Span::EMPTY]))).unwrap();
        assert_eq!((a.waiting(), a.completed()), (2, 0));
        assert_eq!(next(&mut b), None);
        payload[0].set(b'x');
        assert_eq!(a.read(1), 1);
        payload[1].set(b'y');
        assert_eq!((a.waiting(), a.completed()), (1, 1));
        assert_eq!(a.read(9), 1);
        assert_eq!(next(&mut b).unwrap(), b"hx2");
        assert_eq!(next(&mut b).unwrap(), b"hxy");
    }

    #[test]
    fn a_wire_is_full_when_the_receiver_has_no_buffers() {
        let (mut a, mut b) = pair(Settings { buffers: 2, ..Settings::default() });
        let one = frame(b"x", Spans::EMPTY);
        send(&mut a, &one).unwrap();
        let held = b.receive().unwrap();
        send(&mut a, &one).unwrap();
        assert_eq!(send(&mut a, &one), Err(Refused::Full));
        assert_eq!(a.completed(), 2, "what was not taken is not counted");
        drop(held);
        send(&mut a, &one).unwrap();
        assert_eq!(b.pool().free(), 0);
    }

    #[test]
    fn what_the_capabilities_do_not_offer_is_unfit() {
        let (mut a, mut b) = pair(Settings::default());
        let long = [0; 1481];
        assert_eq!(send(&mut a, &frame(&[0; 20], spans(&long, &[]))), Err(Refused::Unfit));
        send(&mut a, &frame(&[0; 20], spans(&long[1..], &[]))).unwrap();
        let partial = Checksum::Partial { start: 20, offset: 16 };
        assert_eq!(send(&mut a, &Frame { checksum: partial, ..frame(&[0; 40], Spans::EMPTY) }), Err(Refused::Unfit));
        assert!(!b.receive().unwrap().unwrap().verified);

        let capabilities = Capabilities { checksum: true, tso: 4000, ..Settings::default().capabilities };
        let (mut a, mut b) = pair(Settings { capabilities, buffers: 4 });
        let large = [1; 4000];
        let whole = Frame { checksum: partial, cut: 1400, ..frame(&[0; 40], spans(&large, &[])) };
        send(&mut a, &whole).unwrap();
        let got = b.receive().unwrap().unwrap();
        assert!(got.verified && got.range.len() == 4040);
        assert_eq!(send(&mut a, &Frame { checksum: Checksum::Complete, ..whole }), Err(Refused::Unfit));
        assert_eq!(send(&mut a, &Frame { cut: 0, ..whole }), Err(Refused::Unfit));
        let larger = Frame { payload: spans(&large, b"x"), ..whole };
        assert_eq!(send(&mut a, &larger), Err(Refused::Unfit));
    }

    #[test]
    fn a_wire_that_is_cut_is_gone_for_both() {
        let mut settings = Settings::default();
        settings.capabilities.late = true;
        let (mut a, mut b) = pair(settings);
        send(&mut a, &frame(b"x", Spans::EMPTY)).unwrap();
        b.cut();
        assert_eq!(a.completed(), 1, "its memory is free");
        assert_eq!(send(&mut a, &frame(b"x", Spans::EMPTY)), Err(Refused::Gone));
        assert!(matches!(b.receive(), Err(Refused::Gone)));
        assert!(matches!(a.receive(), Err(Refused::Gone)));
    }
}
