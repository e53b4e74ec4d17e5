use super::*;
use crate::event::Event;
use crate::payload::{Host, Pinned, Span, Spans};
use proptest::prelude::*;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

/// A port's buffer: `alive` counts those that were not dropped.
#[derive(Debug)]
struct Packet {
    bytes: Vec<u8>,
    scarce: bool,
    alive: Rc<Cell<i32>>,
}

impl Packet {
    fn new(bytes: Vec<u8>, scarce: bool, alive: &Rc<Cell<i32>>) -> Packet {
        alive.set(alive.get() + 1);
        Packet { bytes, scarce, alive: alive.clone() }
    }
}

impl Drop for Packet {
    fn drop(&mut self) {
        self.alive.set(self.alive.get() - 1);
    }
}

impl Buffer for Packet {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    fn scarce(&self) -> bool {
        self.scarce
    }
}

const CONN: ConnId = ConnId { index: 3, generation: 7 };
const RING: u32 = 4096;

fn config() -> Config {
    Config {
        send_ring: RING,
        receive_ring: RING,
        references: 6000,
        quota: 5000,
        buffer: 1000,
        small: 50,
        ..Config::default()
    }
}

/// Rings of eight sizes, and memory for one large one and a bit.
fn bounded() -> Config {
    Config { send_ring: 8 * RING, receive_ring: 8 * RING, memory: 20 * u64::from(RING), assured: RING, ..config() }
}

fn established(receive: Receive) -> (Sockets<Packet>, Socket) {
    established_with(config(), receive)
}

fn established_with(config: Config, receive: Receive) -> (Sockets<Packet>, Socket) {
    let mut sockets = Sockets::new(config).unwrap();
    let socket = sockets.open(CONN, receive);
    assert_eq!(sockets.write(socket, b"x"), Err(Error::Connecting));
    sockets.event(CONN, Event::Established);
    (sockets, socket)
}

/// The byte of a stream at a position.
fn pattern(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

fn stream(at: u64, len: usize) -> Vec<u8> {
    (at..at + len as u64).map(pattern).collect()
}

fn read_spans(spans: Spans) -> Vec<u8> {
    let mut all = Vec::new();
    for span in spans.0 {
        for i in 0..span.len as usize {
            // SAFETY: the socket says that this is readable until it is released.
            #[allow(unsafe_code)]
            all.push(unsafe { span.start.add(i).read() });
        }
    }
    all
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize),
    Fill {
        most: usize,
        use_: usize,
    },
    Reference {
        len: usize,
        kind: u8,
    },
    /// The engine looks at a part of what was not released (thousandths of it), as it may at any time.
    Look {
        from: u64,
        len: u32,
    },
    Release(u64),
    /// A segment at `ahead` bytes behind what was published.
    Segment {
        ahead: u64,
        len: usize,
        scarce: bool,
    },
    Read(usize),
    Consume(usize),
    Keep(bool),
    /// Another account takes memory, or gives some back.
    Others(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0usize..3000).prop_map(Step::Write),
        (0usize..5000, 0usize..5000).prop_map(|(most, use_)| Step::Fill { most, use_ }),
        (0usize..3000, 0u8..4).prop_map(|(len, kind)| Step::Reference { len, kind }),
        (0u64..1000, 0u32..6000).prop_map(|(from, len)| Step::Look { from, len }),
        (0u64..1001).prop_map(Step::Release),
        (prop_oneof![3 => Just(0u64), 1 => 0u64..3000], 1usize..1500, proptest::bool::weighted(0.1))
            .prop_map(|(ahead, len, scarce)| Step::Segment { ahead, len, scarce }),
        (0usize..3000).prop_map(Step::Read),
        (0usize..3000).prop_map(Step::Consume),
        any::<bool>().prop_map(Step::Keep),
        any::<bool>().prop_map(Step::Others),
    ]
}

/// What was placed and not published, and the rule by which a receiver publishes.
#[derive(Default)]
struct Reassembly {
    published: u64,
    ahead: Vec<(u64, u64)>,
}

impl Reassembly {
    fn placed(&mut self, from: u64, to: u64) {
        self.ahead.push((from, to));
        self.ahead.sort_unstable();
        for (from, to) in &self.ahead {
            if *from <= self.published {
                self.published = self.published.max(*to);
            }
        }
        let published = self.published;
        self.ahead.retain(|(_, to)| *to > published);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn any_mix_of_calls_is_the_same_stream(
        config in prop_oneof![Just(config()), Just(bounded())],
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let alive = Rc::new(Cell::new(0));
        let (mut sockets, socket) = established_with(config, Receive::Keep);
        let (mut end, mut released, mut read) = (0u64, 0u64, 0u64);
        let (mut edge, mut others) = (sockets.room(), 0);
        let other = sockets.budget.place(7);
        let mut arrived = Reassembly::default();
        let mut shared: Vec<(u64, Arc<[u8]>)> = Vec::new();
        for step in steps {
            match step {
                Step::Write(len) => match sockets.write(socket, &stream(end, len)) {
                    Ok(n) => end += n as u64,
                    Err(error) => prop_assert_eq!(error, Error::WouldBlock),
                },
                Step::Fill { most, use_ } => match sockets.reserve(socket, most) {
                    Ok((a, b)) => {
                        let n = use_.min(a.len() + b.len());
                        for (i, byte) in a.iter_mut().chain(b).take(n).enumerate() {
                            *byte = pattern(end + i as u64);
                        }
                        sockets.commit(socket, n).unwrap();
                        end += n as u64;
                    }
                    Err(error) => prop_assert_eq!(error, Error::WouldBlock),
                },
                Step::Reference { len, kind } => {
                    let bytes = stream(end, len);
                    let piece = match kind {
                        0 => Still::from(bytes),
                        1 => Still::from(Arc::new(bytes)),
                        _ => {
                            let mut padded = vec![0xee; 10];
                            padded.extend(bytes);
                            let whole: Arc<[u8]> = padded.into();
                            shared.push((end + len as u64, whole.clone()));
                            Still::from(whole).slice(10..10 + len)
                        }
                    };
                    let before = sockets.copies().referenced;
                    match sockets.send(socket, piece) {
                        Ok(()) => {
                            end += len as u64;
                            if kind > 1 && sockets.copies().referenced == before {
                                // Tiny, and copied.
                                shared.pop();
                            }
                        }
                        Err((error, back)) => {
                            prop_assert_eq!(error, Error::WouldBlock);
                            prop_assert_eq!(back.len(), len);
                            drop(back);
                            if kind > 1 {
                                shared.pop();
                            }
                        }
                    }
                }
                Step::Look { from, len } => {
                    let from = released + (end - released) * from / 1000;
                    let len = len.min((end - from) as u32);
                    let found = read_spans(sockets.spans(CONN, from, len));
                    prop_assert!(found.len() <= len as usize && (len == 0 || !found.is_empty()));
                    prop_assert_eq!(&found, &stream(from, found.len()));
                }
                Step::Release(part) => {
                    released += (end - released) * part / 1000;
                    sockets.release(CONN, released);
                    for (end, owner) in &shared {
                        prop_assert_eq!(Arc::strong_count(owner) == 1, *end <= released || owner.len() == 10);
                    }
                    shared.retain(|(end, _)| *end > released);
                }
                Step::Segment { ahead, len, scarce } => {
                    let at = arrived.published + ahead;
                    let len = len.min(edge.saturating_sub(at) as usize);
                    if len > 0 {
                        let mut packet = vec![0xdd; 40];
                        packet.extend(stream(at, len));
                        packet.push(0xdd);
                        prop_assert!(sockets.place(CONN, at, Packet::new(packet, scarce, &alive), 40..40 + len));
                        arrived.placed(at, at + len as u64);
                        sockets.publish(CONN, arrived.published);
                        if scarce {
                            prop_assert_eq!((alive.get(), sockets.pinned(socket)), (0, 0));
                        }
                    }
                }
                Step::Read(len) => {
                    let mut into = vec![0; len];
                    match sockets.read(socket, &mut into) {
                        Ok(n) => {
                            prop_assert_eq!(n as u64, (len as u64).min(arrived.published - read));
                            prop_assert_eq!(&into[..n], &stream(read, n)[..]);
                            read += n as u64;
                        }
                        Err(error) => {
                            prop_assert_eq!((error, arrived.published), (Error::WouldBlock, read));
                        }
                    }
                }
                Step::Consume(most) => {
                    let all: Vec<u8> = sockets.pieces(socket).flatten().copied().collect();
                    prop_assert_eq!(&all, &stream(read, (arrived.published - read) as usize));
                    let n = most.min(all.len());
                    sockets.consume(socket, n).unwrap();
                    read += n as u64;
                }
                Step::Keep(keep) => sockets.set_receive(socket, if keep { Receive::Keep } else { Receive::Copy }),
                Step::Others(true) => others += u64::from(sockets.budget.take(other, RING.into())),
                Step::Others(false) if others > 0 => {
                    sockets.budget.give(other, RING.into());
                    others -= 1;
                }
                Step::Others(false) => {}
            }
            if let Some((_, to)) = sockets.take_edge(socket) {
                prop_assert!(to > edge);
                edge = to;
            }
            // A window is never shut for want of memory.
            prop_assert!(edge - read > u64::from(RING / 8));
            let entry = &sockets.entries[socket.index as usize];
            let outgoing = entry.streams.as_ref().and_then(|s| s.outgoing.ring_len());
            let incoming = entry.streams.as_ref().and_then(|s| s.incoming.ring_len());
            let taken = sockets.taken(entry);
            prop_assert!(outgoing.unwrap_or(0) + incoming.unwrap_or(0) <= taken as usize);
            prop_assert_eq!(sockets.budget.taken(), taken + others * u64::from(RING));
            prop_assert!(sockets.budget.taken() <= config.memory);
            prop_assert!(sockets.pinned(socket) <= config.quota);
            prop_assert_eq!(sockets.unread(socket), arrived.published - read);
            prop_assert_eq!(sockets.unreleased(socket), end - released);
        }
        // Everything is given back.
        sockets.release(CONN, end);
        let rest = sockets.unread(socket) as usize;
        sockets.consume(socket, rest).unwrap();
        if arrived.ahead.is_empty() {
            prop_assert!(sockets.entries[socket.index as usize].streams.is_none());
        }
        prop_assert_eq!(alive.get(), 0);
        sockets.close(socket);
        sockets.event(CONN, Event::Free);
        prop_assert_eq!(sockets.budget.taken(), others * u64::from(RING));
        for (_, owner) in &shared {
            prop_assert_eq!(Arc::strong_count(owner), 1);
        }
    }
}

/// All that was sent is released between the two calls: what was filled in stays where it is.
#[test]
fn a_reservation_outlives_a_release() {
    for referenced in [false, true] {
        let (mut sockets, socket) = established(Receive::Copy);
        sockets.write(socket, &stream(0, 100)).unwrap();
        let mut end = 100;
        if referenced {
            sockets.send(socket, Still::from(stream(100, 50))).unwrap();
            end = 150;
        }
        let (first, _) = sockets.reserve(socket, 200).unwrap();
        first.copy_from_slice(&stream(end, 200));
        sockets.release(CONN, 100);
        sockets.commit(socket, 200).unwrap();
        sockets.release(CONN, end);
        assert_eq!(read_spans(sockets.spans(CONN, end, 200)), stream(end, 200));
        sockets.release(CONN, end + 200);
        assert!(sockets.entries[socket.index as usize].streams.is_none());
    }
}

#[test]
fn zero_copy_both_ways_copies_nothing() {
    let alive = Rc::new(Cell::new(0));
    let (mut sockets, socket) = established(Receive::Keep);
    sockets.send(socket, Still::from(&b"never copied"[..])).unwrap();
    let mut packet = vec![0; 40];
    packet.extend(stream(0, 1000));
    assert!(sockets.place(CONN, 0, Packet::new(packet, false, &alive), 40..1040));
    sockets.publish(CONN, 1000);
    assert_eq!(alive.get(), 1);
    assert_eq!(sockets.peek(socket).unwrap(), stream(0, 1000));
    sockets.consume(socket, 400).unwrap();
    assert_eq!((alive.get(), sockets.peek(socket).unwrap().len()), (1, 600));
    sockets.consume(socket, 600).unwrap();
    assert_eq!(alive.get(), 0);
    let copies = sockets.copies();
    assert_eq!((copies.copied(), copies.referenced, copies.kept), (0, 12, 1000));
}

#[test]
fn small_payload_and_scarce_buffers_are_copied_in_order_with_what_is_kept() {
    let alive = Rc::new(Cell::new(0));
    let (mut sockets, socket) = established(Receive::Keep);
    let mut at = 0;
    for (len, scarce, held) in [(100, false, 1), (20, false, 1), (100, false, 2), (100, true, 0), (60, false, 1)] {
        let packet = Packet::new(stream(at, len), scarce, &alive);
        assert!(sockets.place(CONN, at, packet, 0..len));
        at += len as u64;
        sockets.publish(CONN, at);
        assert_eq!(alive.get(), held);
    }
    let mut all = vec![0; at as usize];
    assert_eq!(sockets.read(socket, &mut all), Ok(at as usize));
    assert_eq!(all, stream(0, at as usize));
    assert_eq!(sockets.copies().spilled, 200);
}

#[test]
fn a_slow_reader_pins_no_more_than_its_quota() {
    let alive = Rc::new(Cell::new(0));
    let (mut sockets, socket) = established(Receive::Keep);
    for i in 0..40 {
        let at = i * 60;
        assert!(sockets.place(CONN, at, Packet::new(stream(at, 60), false, &alive), 0..60));
        sockets.publish(CONN, at + 60);
    }
    // 5000 bytes of quota, and a buffer counts 1000 whatever is in it.
    assert_eq!((alive.get(), sockets.pinned(socket)), (5, 5000));
    let mut all = vec![0; 2400];
    assert_eq!(sockets.read(socket, &mut all), Ok(2400));
    assert_eq!(all, stream(0, 2400));
}

#[test]
fn what_is_behind_the_edge_is_not_taken() {
    let alive = Rc::new(Cell::new(0));
    let (mut sockets, _) = established(Receive::Copy);
    let edge = u64::from(RING);
    assert!(!sockets.place(CONN, edge - 10, Packet::new(vec![0; 11], false, &alive), 0..11));
    assert!(sockets.place(CONN, edge - 10, Packet::new(vec![0; 10], false, &alive), 0..10));
    assert_eq!(alive.get(), 0);
}

#[test]
fn readiness_is_told_once_and_again_when_a_starved_writer_has_room() {
    let (mut sockets, socket) = established(Receive::Copy);
    let ready = sockets.next_ready().unwrap();
    assert_eq!(ready, (socket, Ready { writable: true, ..Ready::default() }));
    assert_eq!(sockets.next_ready(), None);
    assert_eq!(sockets.write(socket, &[1; 5000]), Ok(4096));
    assert_eq!(sockets.write(socket, &[1; 5000]), Err(Error::WouldBlock));
    sockets.release(CONN, 1000);
    assert_eq!(sockets.next_ready(), None);
    sockets.release(CONN, 3000);
    assert_eq!(sockets.next_ready().unwrap().0, socket);
    sockets.release(CONN, 4096);
    assert_eq!(sockets.next_ready(), None);
}

#[test]
fn an_end_is_told_with_its_errno_after_what_had_arrived() {
    let alive = Rc::new(Cell::new(0));
    let (mut sockets, socket) = established(Receive::Copy);
    assert!(sockets.place(CONN, 0, Packet::new(vec![5; 3], false, &alive), 0..3));
    sockets.publish(CONN, 3);
    sockets.event(CONN, Event::Ended(Cause::Reset));
    sockets.event(CONN, Event::Free);
    let (_, ready) = sockets.next_ready().unwrap();
    assert!(ready.readable && ready.writable && ready.hang_up && ready.error == Some(Cause::Reset));
    // The connection's name may belong to another by now; the socket's is its own.
    let other = sockets.open(ConnId { index: 3, generation: 8 }, Receive::Copy);
    assert_ne!(other.index, socket.index);
    let mut into = [0; 8];
    assert_eq!(sockets.read(socket, &mut into), Ok(3));
    assert_eq!(sockets.read(socket, &mut into), Err(Error::Ended(Cause::Reset)));
    assert_eq!(sockets.write(socket, b"x").unwrap_err().errno(), 104);
    assert!(!sockets.close(socket));
    assert_eq!(sockets.read(socket, &mut into), Err(Error::Stale));
    let third = sockets.open(ConnId { index: 4, generation: 0 }, Receive::Copy);
    assert_eq!((third.index, third.generation), (socket.index, socket.generation + 1));
}

#[test]
fn a_reset_behind_the_end_of_the_stream_breaks_only_what_is_written() {
    let (mut sockets, socket) = established(Receive::Copy);
    sockets.event(CONN, Event::PeerClosed);
    sockets.event(CONN, Event::Ended(Cause::Broken));
    // Who reads has had all of it (SOCK_DONE of Linux); who writes learns of it.
    assert_eq!(sockets.read(socket, &mut [0; 8]), Ok(0));
    let error = sockets.write(socket, b"x").unwrap_err();
    assert_eq!((error, error.errno()), (Error::Ended(Cause::Broken), 32));
}

#[test]
fn what_a_closed_socket_wrote_stays_until_it_is_released() {
    let (mut sockets, socket) = established(Receive::Copy);
    let owner: Arc<[u8]> = stream(8, 100).into();
    sockets.write(socket, &stream(0, 8)).unwrap();
    sockets.send(socket, owner.clone().into()).unwrap();
    assert!(!sockets.close(socket));
    assert_eq!(read_spans(sockets.spans(CONN, 0, 108)), stream(0, 108));
    sockets.event(CONN, Event::Ended(Cause::Reset));
    assert_eq!(Arc::strong_count(&owner), 2);
    sockets.event(CONN, Event::Free);
    assert_eq!(Arc::strong_count(&owner), 1);
    assert_eq!(sockets.next_ready(), None);
}

#[test]
fn a_listener_s_connections_wait_and_what_came_meanwhile_is_told() {
    let alive = Rc::new(Cell::new(0));
    let mut sockets: Sockets<Packet> = Sockets::new(config()).unwrap();
    let listener = ListenerId(4);
    sockets.set_listener_receive(listener, Receive::Keep);
    sockets.event(CONN, Event::Incoming(listener));
    sockets.event(CONN, Event::Established);
    assert!(sockets.place(CONN, 0, Packet::new(vec![5; 100], false, &alive), 0..100));
    sockets.publish(CONN, 100);
    assert_eq!(sockets.next_ready(), None);
    let socket = sockets.accept(listener).unwrap();
    assert_eq!(sockets.accept(listener), None);
    assert_eq!(alive.get(), 1);
    let (told, ready) = sockets.next_ready().unwrap();
    assert!(told == socket && ready.readable && ready.writable);
    // Closing with bytes unread is to be seen by the peer.
    assert!(sockets.close(socket));
    assert_eq!(alive.get(), 0);
}

#[test]
fn the_stack_is_told_of_room_by_eighths() {
    let alive = Rc::new(Cell::new(0));
    let (mut sockets, socket) = established(Receive::Copy);
    assert!(sockets.place(CONN, 0, Packet::new(vec![5; 600], false, &alive), 0..600));
    sockets.publish(CONN, 600);
    sockets.consume(socket, 511).unwrap();
    assert_eq!(sockets.take_edge(socket), None);
    sockets.consume(socket, 1).unwrap();
    assert_eq!(sockets.take_edge(socket), Some((CONN, 4096 + 512)));
    assert_eq!(sockets.take_edge(socket), None);
}

/// Others take all that is left; what is taken, by their places.
fn take_all(budget: &mut Budget) -> Vec<(u32, u64)> {
    let mut taken = Vec::new();
    for account in 7..40 {
        let place = budget.place(account);
        while budget.take(place, RING.into()) {
            taken.push((place, RING.into()));
        }
    }
    taken
}

#[test]
fn a_ring_for_which_there_was_no_memory_is_small_until_it_has_drained() {
    let (mut sockets, socket) = established_with(bounded(), Receive::Copy);
    sockets.next_ready();
    let ring = RING as usize;
    let others = take_all(&mut sockets.budget);
    assert_eq!(sockets.write(socket, &[1; 9 * RING as usize]), Ok(ring));
    sockets.release(CONN, 3000);
    // As long as there is none, it goes on with what it is sure of.
    assert_eq!(sockets.next_ready(), Some((socket, Ready { writable: true, ..Ready::default() })));
    assert_eq!(sockets.write(socket, &[1; 9 * RING as usize]), Ok(3000));
    others.into_iter().for_each(|(place, taken)| sockets.budget.give(place, taken));
    sockets.release(CONN, 7000);
    assert_eq!((sockets.next_ready(), sockets.write(socket, b"x")), (None, Err(Error::WouldBlock)));
    assert!(!sockets.ready(socket).writable);
    sockets.release(CONN, 3000 + u64::from(RING));
    assert!(sockets.next_ready().is_some_and(|(_, ready)| ready.writable));
    assert_eq!(sockets.write(socket, &[1; 9 * RING as usize]), Ok(8 * ring));
}

#[test]
fn a_window_grows_for_who_fills_it_and_not_for_who_asks_and_is_answered() {
    for answers in [false, true] {
        let alive = Rc::new(Cell::new(0));
        let memory = 40 * u64::from(RING);
        let (mut sockets, socket) = established_with(Config { memory, ..bounded() }, Receive::Copy);
        let mut at = 0;
        let mut receive = |sockets: &mut Sockets<Packet>| {
            assert!(sockets.place(CONN, at, Packet::new(stream(at, 500), false, &alive), 0..500));
            at += 500;
            sockets.publish(CONN, at);
            sockets.consume(socket, 500).unwrap();
            sockets.take_edge(socket);
        };
        for _ in 0..100 {
            receive(&mut sockets);
            if answers {
                let end = sockets.entries[0].end;
                sockets.write(socket, b"answer").unwrap();
                sockets.release(CONN, end + 6);
            }
        }
        assert_eq!(sockets.entries[0].room, if answers { RING } else { 8 * RING });
        // Others need it: what was promised is given back as it is used.
        take_all(&mut sockets.budget);
        (0..100).for_each(|_| receive(&mut sockets));
        assert_eq!(sockets.entries[0].room, RING);
    }
}

#[test]
fn memory_of_an_idle_socket() {
    assert!(size_of::<Entry<Packet>>() <= 80);
    let (mut sockets, socket) = established(Receive::Copy);
    sockets.write(socket, b"some").unwrap();
    assert!(sockets.entries[0].streams.is_some());
    sockets.release(CONN, 4);
    assert!(sockets.entries[0].streams.is_none());
    assert_eq!((sockets.spare.len(), sockets.send_rings.len()), (1, 1));
}

#[test]
fn a_ring_that_cannot_be_is_named() {
    let error = Sockets::<Packet>::new(Config { send_ring: 5000, ..config() }).unwrap_err();
    assert_eq!(error.to_string(), "a send ring of 5000 bytes: give a power of two from 4096 to 1073741824 bytes");
}

#[allow(unsafe_code)]
// SAFETY: a vector's bytes do not move with it, and nobody writes them.
unsafe impl Pinned for Packet {}

#[test]
fn what_arrived_goes_back_from_where_it_is() {
    let alive = Rc::new(Cell::new(0));
    let (mut sockets, socket) = established(Receive::Keep);
    // One that is kept, one that is too small for that, and one that the port needs back when it is sent on.
    for (at, len) in [(0, 1000), (1000, 40), (1040, 900)] {
        assert!(sockets.place(CONN, at, Packet::new(stream(at, len), false, &alive), 0..len));
        sockets.publish(CONN, at + len as u64);
    }
    assert_eq!(sockets.forward(socket, socket), Ok(1000));
    assert_eq!(sockets.forward(socket, socket), Ok(40));
    assert_eq!(sockets.forward(socket, socket), Ok(900));
    assert_eq!(sockets.forward(socket, socket), Err(Error::WouldBlock), "nothing more is there");
    assert_eq!((sockets.unread(socket), sockets.end(socket)), (0, Some((CONN, 1940))));
    assert_eq!((sockets.copies().referenced, sockets.copies().written, alive.get()), (1900, 40, 2));
    assert_eq!(read_spans(sockets.spans(CONN, 0, 1040)), stream(0, 1040));
    assert_eq!(read_spans(sockets.spans(CONN, 1010, 930)), stream(1010, 930));
    sockets.release(CONN, 1500);
    assert_eq!(alive.get(), 1, "the first is its port's again, the last goes whole");
    assert_eq!(read_spans(sockets.spans(CONN, 1500, 440)), stream(1500, 440));
    sockets.release(CONN, 1940);
    assert_eq!(alive.get(), 0);
    // The end of the stream goes no further.
    sockets.event(CONN, Event::PeerClosed);
    assert_eq!(sockets.forward(socket, socket), Ok(0));
}

#[test]
fn what_is_sent_on_is_bounded_and_told_when_it_may_go_on() {
    let alive = Rc::new(Cell::new(0));
    let (mut sockets, socket) = established(Receive::Keep);
    let mut at = 0;
    let result = loop {
        let packet = Packet::new(stream(at, 500), false, &alive);
        assert!(sockets.place(CONN, at, packet, 0..500));
        at += 500;
        sockets.publish(CONN, at);
        match sockets.forward(socket, socket) {
            Ok(n) => assert_eq!(n, 500),
            error => break error,
        }
    };
    // Each counts as a whole buffer of the port's.
    assert_eq!((result, alive.get()), (Err(Error::WouldBlock), 7));
    while sockets.next_ready().is_some() {}
    sockets.release(CONN, 1500);
    assert!(sockets.next_ready().is_some_and(|(_, ready)| ready.writable));
    assert_eq!(sockets.forward(socket, socket), Ok(500));
}

#[test]
fn a_kept_buffer_that_the_port_needs_is_copied_when_it_is_sent_on() {
    let alive = Rc::new(Cell::new(0));
    let (mut sockets, socket) = established(Receive::Keep);
    assert!(sockets.place(CONN, 0, Packet::new(stream(0, 1000), false, &alive), 0..1000));
    assert!(sockets.place(CONN, 1000, Packet::new(stream(1000, 100), true, &alive), 0..100));
    sockets.publish(CONN, 1100);
    assert_eq!(alive.get(), 0, "both are in the ring");
    assert_eq!(sockets.forward(socket, socket), Ok(1100));
    assert_eq!(read_spans(sockets.spans(CONN, 0, 1100)), stream(0, 1100));
    assert_eq!(sockets.copies().written, 1100);
}

#[test]
fn many_tiny_pieces_do_not_make_tiny_segments() {
    let (mut sockets, socket) = established(Receive::Copy);
    for at in 0..100 {
        sockets.send(socket, stream(at * 10, 10).into()).unwrap();
    }
    let spans = sockets.spans(CONN, 0, 1000);
    assert_eq!(read_spans(spans), stream(0, 1000));
    assert_eq!((sockets.copies().referenced, sockets.copies().written), (10, 990));
    // Longer ones stay where they are, whatever lies beside them.
    sockets.send(socket, stream(1000, 51).into()).unwrap();
    assert_eq!(sockets.copies().referenced, 61);
}

#[test]
fn a_listener_whose_program_does_not_accept_admits_no_more() {
    let mut sockets = Sockets::<Packet>::new(Config { waiting: 2, ..config() }).unwrap();
    let (one, other) = (ListenerId(1), ListenerId(2));
    let come = |sockets: &mut Sockets<Packet>, index| {
        sockets.event(ConnId { index, generation: 1 }, Event::Incoming(one));
    };
    for index in 0..2 {
        assert!(sockets.admits(one));
        come(&mut sockets, index);
    }
    assert!(!sockets.admits(one) && sockets.admits(other));
    // One that was half open by then.
    come(&mut sockets, 2);
    assert_eq!(sockets.waiting(one), 3);
    sockets.accept(one).unwrap();
    assert!(!sockets.admits(one));
    sockets.accept(one).unwrap();
    assert!(sockets.admits(one));
}

#[test]
fn what_goes_by_waits_within_bounds_and_is_given_back() {
    let alive = Rc::new(Cell::new(0));
    let mut sockets = Sockets::<Packet>::new(Config { passed: 16, ..config() }).unwrap();
    let packet = |n: u8, scarce| Packet::new(vec![n; 10], scarce, &alive);
    assert!((0..16).all(|n| sockets.pass(packet(n, false), 2..8)));
    assert!(!sockets.pass(packet(16, false), 2..8));
    assert_eq!(alive.get(), 16, "what is dropped is given back");
    for n in 0..16 {
        let (buffer, range) = sockets.next_passed().unwrap();
        assert_eq!(buffer.bytes()[range], [n; 6]);
    }
    assert!(sockets.next_passed().is_none());
    assert_eq!(alive.get(), 0);
    // A port that runs short.
    assert_eq!((0..16).filter(|&n| sockets.pass(packet(n, true), 2..8)).count(), 2);
    for n in 0..100 {
        sockets.undelivered(&[n]);
    }
    let told: Vec<_> = std::iter::from_fn(|| sockets.next_undelivered()).collect();
    assert_eq!((told.len(), &told[63][..]), (64, &[63][..]));
}

#[test]
fn the_owner_decides_what_a_bridge_takes() {
    let mut sockets = Sockets::<Packet>::new(config()).unwrap();
    let (local, remote) = ("10.0.0.1:80".parse().unwrap(), "10.0.0.2:5".parse().unwrap());
    assert!(sockets.takes(local, remote, b"segment"));
    sockets.set_takes(Box::new(move |to, from, segment, _| match (to, from, segment) {
        _ if (to, from) != (local, remote) => Taking::Pass,
        (.., b"segment") => Taking::Take,
        _ => Taking::Drop,
    }));
    assert!(sockets.takes(local, remote, b"segment"));
    // What is passed on next is the packet that was asked about.
    let alive = Rc::new(Cell::new(0));
    let packet = || Packet::new(vec![0; 10], false, &alive);
    assert!(!sockets.takes(remote, local, b"segment") && sockets.pass(packet(), 2..8));
    assert!(!sockets.takes(local, remote, b"other") && !sockets.pass(packet(), 2..8));
    assert!(sockets.pass(packet(), 2..8));
    assert_eq!(alive.get(), 2);
}

/// Whatever the bound of references: what was read of somebody's memory cannot be put back there.
#[test]
fn nothing_that_may_be_lent_is_refused() {
    for references in [6000, 3 * u64::from(RING), 1 << 20] {
        let ring = 8 * RING;
        let config = Config { send_ring: ring, references, ..config() };
        let (mut sockets, socket) = established_with(config, Receive::Copy);
        let (mut end, mut released, mut waits) = (0, 0, 0);
        while end < 40 * u64::from(ring) {
            while let Ok(n) = sockets.lendable(socket, 100) {
                for len in [n * 2 / 3, n - n * 2 / 3] {
                    let piece = Arc::<[u8]>::from(stream(end, len));
                    assert!(sockets.send(socket, Still::from(piece)).is_ok(), "{references}: {n} at {end}");
                    end += len as u64;
                }
                assert!(end - released <= u64::from(ring));
                let left = end - released;
                assert_eq!(
                    read_spans(sockets.spans(CONN, released, left.min(10) as u32)),
                    stream(released, left.min(10) as usize)
                );
            }
            // It is told of room before all is released, and not for nothing.
            waits += 1;
            while sockets.next_ready().is_none() {
                assert!(released < end, "{references}: never told");
                released = end.min(released + 700);
                sockets.release(CONN, released);
            }
        }
        assert!(waits > 40);
    }
}

#[test]
fn who_lends_gets_a_large_ring_when_there_is_memory_again() {
    let (mut sockets, socket) = established_with(bounded(), Receive::Copy);
    let (ring, mut end, mut released) = (u64::from(RING), 0, 0);
    let others = take_all(&mut sockets.budget);
    sockets.next_ready();
    let mut round = |sockets: &mut Sockets<Packet>| {
        // As who streams does: as much as can be, before all of what was lent before is released.
        let mut most = 0;
        for _ in 0..20 {
            while let Ok(n) = sockets.lendable(socket, 500) {
                sockets.send(socket, stream(end, n).into()).unwrap();
                end += n as u64;
            }
            most = most.max(end - released);
            while sockets.next_ready().is_none() {
                assert!(released < end, "never told");
                released = end.min(released + 500);
                sockets.release(CONN, released);
            }
        }
        most
    };
    assert_eq!(round(&mut sockets), ring);
    for (place, bytes) in others {
        sockets.budget.give(place, bytes);
    }
    assert_eq!(round(&mut sockets), 6000, "as much as may be referenced");
}

#[test]
fn what_is_lent_fits_the_ring_and_its_owner_is_told_when_it_is_his_again() {
    let (mut sockets, socket) = established(Receive::Copy);
    assert!(sockets.next_ready().is_some());
    assert_eq!(sockets.lendable(socket, 1000), Ok(RING as usize));
    assert_eq!(sockets.write(socket, &stream(0, 100)), Ok(100));
    assert_eq!(sockets.lendable(socket, 1000), Ok(RING as usize - 100));
    let memory: Arc<[u8]> = stream(100, 3500).into();
    sockets.send(socket, Still::from(memory.clone())).unwrap();
    assert_eq!(sockets.lendable(socket, 497), Err(Error::WouldBlock));
    assert_eq!(sockets.lendable(socket, 496), Ok(496));
    sockets.tell_released(socket, 1500);
    sockets.release(CONN, 1499);
    assert_eq!((sockets.released(socket), sockets.next_ready()), (1499, None));
    sockets.release(CONN, 1500);
    assert!(sockets.next_ready().is_some() && sockets.next_ready().is_none());
    // Who found too little room is told when half of the ring is his again, though all is one piece, which is kept whole.
    sockets.release(CONN, 1551);
    assert_eq!(sockets.next_ready(), None);
    sockets.release(CONN, 1552);
    assert!(sockets.next_ready().is_some_and(|(_, ready)| ready.writable));
    assert_eq!((sockets.lendable(socket, 1000), Arc::strong_count(&memory)), (Ok(2048), 2));
    sockets.release(CONN, 3600);
    assert_eq!((Arc::strong_count(&memory), sockets.released(socket)), (1, 3600));
    // So is, at once, who asks for what has been.
    sockets.tell_released(socket, 3600);
    assert!(sockets.next_ready().is_some() && sockets.next_ready().is_none());
    assert_eq!(sockets.lendable(socket, RING as usize), Ok(RING as usize));
}

#[test]
fn what_others_may_write_is_taken_over_by_a_copy() {
    struct Shared(Vec<u8>);
    // SAFETY: the vector stays as it is.
    #[allow(unsafe_code)]
    unsafe impl Stable for Shared {
        fn span(&self) -> Span {
            Span { start: self.0.as_ptr(), len: self.0.len() as u32, region: Default::default() }
        }
    }
    let (mut sockets, socket) = established(Receive::Copy);
    let (shared, own) = (Arc::new(Shared(stream(10, 900))), Arc::<[u8]>::from(stream(910, 500)));
    assert_eq!(sockets.write(socket, &stream(0, 10)), Ok(10));
    sockets.send(socket, Still::from(shared.clone())).unwrap();
    sockets.send(socket, Still::from(own.clone())).unwrap();
    assert_eq!(Arc::strong_count(&shared), 2);
    let taken = sockets.take_over(socket);
    assert_eq!((taken.len(), taken[0].len(), Arc::strong_count(&shared)), (1, 900, 2));
    assert_eq!(taken[0].address(), shared.0.as_ptr());
    drop(taken);
    assert_eq!((Arc::strong_count(&shared), Arc::strong_count(&own)), (1, 2));
    for (at, len) in [(0, 10), (10, 900), (700, 300), (910, 500)] {
        assert_eq!(read_spans(sockets.spans(CONN, at, len)), stream(at, len as usize));
    }
    assert_eq!((sockets.copies().written, sockets.take_over(socket).len()), (910, 0));
    sockets.release(CONN, 1410);
    assert_eq!(Arc::strong_count(&own), 1);
}
