//! The memory of many connections, counted by the allocator: at most 512 bytes for one that is established and idle, all in,
//! and 64 for one in TIME-WAIT. And none at all is allocated for a packet.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use zstack::net::Address;
use zstack::payload::{Buffer, Host, Region, Span, Spans};
use zstack::port::{Capabilities, Frame, Medium, Port, Received, Refused};
use zstack::stack::{Config, ConnId, Listen, Stack};
use zstack::tcp::Event;
use zstack::time::Time;
use zstack_wire::Seq;
use zstack_wire::checksum::Sum;
use zstack_wire::ipv4;
use zstack_wire::tcp::{Flags, Header, Timestamps};

struct Counting;

thread_local! {
    /// What this thread has allocated and not given back, in bytes. By thread: the harness prints from another one meanwhile.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    /// How often it has allocated.
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

/// A thread that ends has no counters any more.
fn counted(bytes: isize, calls: usize) {
    let _ = LIVE.try_with(|live| live.set(live.get() + bytes));
    let _ = CALLS.try_with(|count| count.set(count.get() + calls));
}

// SAFETY: it is the system's allocator, with two counters beside it, which allocate nothing (they are constants at first and have no
// destructor).
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        counted(layout.size() as isize, 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        counted(-(layout.size() as isize), 0);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(start, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        counted(layout.size() as isize, 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        counted(size as isize - layout.size() as isize, 1);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(start, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const OURS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

/// A packet in memory that is never allocated anew.
struct Packet(&'static [u8]);

impl Buffer for Packet {
    fn bytes(&self) -> &[u8] {
        self.0
    }

    fn scarce(&self) -> bool {
        false
    }
}

/// A port with one packet to receive, that keeps the last one that was sent, and of some the port that they were sent to, and where
/// their payload ends.
struct Card {
    arrives: Option<&'static [u8]>,
    sent: [u8; 128],
    len: usize,
    payload: u32,
    log: Vec<(u16, u32)>,
}

impl Port for Card {
    type Buffer = Packet;

    fn capabilities(&self) -> Capabilities {
        Capabilities { medium: Medium::Ip, mtu: 1500, checksum: true, tso: 0, late: false }
    }

    fn receive(&mut self) -> Result<Option<Received<Packet>>, Refused> {
        let packet = self.arrives.take();
        Ok(packet.map(|bytes| Received { buffer: Packet(bytes), range: 0..bytes.len(), verified: false }))
    }

    unsafe fn send(&mut self, frame: &Frame<'_>) -> Result<(), Refused> {
        self.sent[..frame.head.len()].copy_from_slice(frame.head);
        self.len = frame.head.len();
        self.payload = frame.payload.len();
        if self.log.len() < self.log.capacity() {
            let header = Header::parse(&frame.head[20..]).unwrap().0;
            self.log.push((header.destination, (header.seq + self.payload).0));
        }
        Ok(())
    }

    fn completed(&mut self) -> u64 {
        unreachable!("this port reads at once")
    }
}

#[derive(Default)]
struct Program {
    last: Option<ConnId>,
    established: u32,
    freed: u32,
    published: u64,
}

static BYTES: [u8; 1000] = [7; 1000];

// SAFETY: the bytes are static.
unsafe impl Host for Program {
    type Buffer = Packet;

    fn spans(&mut self, _: ConnId, _: u64, len: u32) -> Spans {
        Spans([Span { start: BYTES.as_ptr(), len: len.min(1000), region: Region(0) }, Span::EMPTY])
    }

    fn release(&mut self, _: ConnId, _: u64) {}

    fn place(&mut self, _: ConnId, _: u64, _: Packet, _: Range<usize>) -> bool {
        true
    }

    fn publish(&mut self, _: ConnId, to: u64) {
        self.published = to;
    }

    fn event(&mut self, conn: ConnId, event: Event) {
        match event {
            Event::Established => {
                self.last = Some(conn);
                self.established += 1;
            }
            Event::Free => self.freed += 1,
            _ => {}
        }
    }
}

/// A stack that is talked to packet by packet.
struct Talk {
    stack: Stack,
    card: Card,
    program: Program,
    now: Time,
    frame: &'static mut [u8; 2048],
    /// What peers offer, and how they scale it.
    window: u16,
    scale: u8,
}

/// A peer's end of a connection.
#[derive(Clone, Copy)]
struct Peer {
    address: Ipv4Addr,
    port: u16,
    seq: u32,
    ack: u32,
}

impl Talk {
    fn new(time_wait: u32) -> Talk {
        let mut config = Config::new(Address { ip: IpAddr::V4(OURS), prefix: 8 }, [9; 16]);
        config.limits.time_wait = time_wait;
        let card = Card { arrives: None, sent: [0; 128], len: 0, payload: 0, log: Vec::new() };
        let mut stack = Stack::new(config, card.capabilities(), Time(0)).unwrap();
        stack.listen(Listen::new(80, 65_536)).unwrap();
        let frame = Box::leak(Box::new([0; 2048]));
        Talk { stack, card, program: Program::default(), now: Time(1_000_000), frame, window: 60_000, scale: 7 }
    }

    /// A segment arrives; the header of what is answered, if anything is.
    fn say(&mut self, peer: &mut Peer, flags: Flags, payload: usize) -> Option<Header> {
        let syn = flags.has(Flags::SYN);
        let header = Header {
            source: peer.port,
            destination: 80,
            seq: Seq(peer.seq),
            ack: Seq(peer.ack),
            flags,
            window: self.window,
            mss: syn.then_some(1460),
            scale: syn.then_some(self.scale),
            sack_permitted: syn,
            timestamps: Some(Timestamps { value: 1, echo: 0 }),
            ..Header::default()
        };
        let end = 20 + header.emit(&mut self.frame[20..]);
        let len = end + payload;
        let segment = (len - 20) as u16;
        ipv4::Header {
            source: peer.address,
            destination: OURS,
            protocol: 6,
            ttl: 64,
            tos: 0,
            id: 0,
            dont_fragment: true,
            payload: segment,
        }
        .emit(&mut self.frame[..20]);
        let sum = Sum::pseudo_v4(peer.address, OURS, 6, segment).bytes(&self.frame[20..len]).field();
        self.frame[36..38].copy_from_slice(&sum.to_be_bytes());
        peer.seq += payload as u32 + u32::from(syn) + u32::from(flags.has(Flags::FIN));
        // SAFETY: the frame is leaked, and written again only when the stack has dropped the packet, which it does in the turn.
        self.card.arrives = Some(unsafe { std::slice::from_raw_parts(self.frame.as_ptr(), len) });
        self.turn()
    }

    fn turn(&mut self) -> Option<Header> {
        self.card.len = 0;
        self.now += zstack::time::Micros(10);
        self.stack.turn(self.now, &mut self.card, &mut self.program);
        (self.card.len > 0).then(|| Header::parse(&self.card.sent[20..self.card.len]).unwrap().0)
    }

    /// Peer number `n` opens a connection.
    fn open(&mut self, n: u32) -> Peer {
        let address = Ipv4Addr::from(0x0a01_0000 + n / 1000);
        let mut peer = Peer { address, port: (1000 + n % 1000) as u16, seq: n, ack: 0 };
        let answer = self.say(&mut peer, Flags::SYN, 0).expect("a SYN-ACK");
        peer.ack = answer.seq.0.wrapping_add(1);
        self.say(&mut peer, Flags::ACK, 0);
        peer
    }
}

fn live() -> isize {
    LIVE.get()
}

#[test]
fn a_hundred_thousand_idle_connections() {
    const MANY: u32 = 100_000;
    let before = live();
    let mut talk = Talk::new(100);
    let mut sent = 0;
    for n in 0..MANY {
        let mut peer = talk.open(n);
        // Bytes both ways, acknowledged: what is needed for them is given back.
        talk.say(&mut peer, Flags::ACK.with(Flags::PSH), 100);
        talk.stack.commit(talk.program.last.unwrap(), 100, true);
        talk.turn().expect("the bytes");
        sent += talk.card.payload;
        peer.ack = peer.ack.wrapping_add(100);
        talk.say(&mut peer, Flags::ACK, 0);
    }
    assert_eq!((talk.program.established, sent, talk.program.published), (MANY, MANY * 100, 100));
    assert_eq!(talk.stack.connections().count(), MANY as usize);
    assert!(talk.stack.connections().all(|(_, info)| info.tcp.in_flight == 0 && info.tcp.acknowledged == 100));
    let each = (live() - before) as f64 / f64::from(MANY);
    println!("{each:.1} bytes a connection, the stack's own included");
    assert!(each <= 512.0, "{each} bytes a connection");
}

#[test]
fn thirty_thousand_in_time_wait() {
    const MANY: u32 = 32_768;
    let mut talk = Talk::new(MANY);
    let begin = |talk: &mut Talk, n| {
        let mut peer = talk.open(n);
        talk.stack.close(talk.program.last.unwrap(), false);
        talk.turn().expect("the FIN");
        peer.ack = peer.ack.wrapping_add(1);
        talk.say(&mut peer, Flags::ACK.with(Flags::FIN), 0);
    };
    // What connections need while they stand is there before it is counted.
    let peer = talk.open(500_000);
    let before = live();
    for n in 0..MANY {
        begin(&mut talk, n);
    }
    assert_eq!((talk.stack.time_wait(), talk.program.freed), (MANY, MANY));
    let each = (live() - before) as f64 / f64::from(MANY);
    println!("{each:.1} bytes a connection in TIME-WAIT");
    assert!(each <= 64.1, "{each} bytes a connection in TIME-WAIT");
    let _ = peer;
}

#[test]
fn nothing_is_allocated_for_a_packet() {
    let mut talk = Talk::new(100);
    let mut peer = talk.open(1);
    let conn = talk.program.last.unwrap();
    let mut end = 0;
    let mut exchange = |talk: &mut Talk| {
        talk.say(&mut peer, Flags::ACK.with(Flags::PSH), 1000);
        end += 500;
        talk.stack.commit(conn, end, true);
        talk.stack.room(conn, talk.program.published + 65_536);
        talk.turn();
        peer.ack = peer.ack.wrapping_add(talk.card.payload);
        talk.say(&mut peer, Flags::ACK, 0);
    };
    for _ in 0..100 {
        exchange(&mut talk);
    }
    let calls = CALLS.get();
    for _ in 0..1000 {
        exchange(&mut talk);
    }
    assert_eq!(CALLS.get() - calls, 0);
    assert_eq!(talk.program.published, 1_100_000);
}

/// Peers that take a byte at a time, and peers that never read, for an hour, with a megabyte for each that waits. They cost what they
/// have in flight, and somebody else gets his answers meanwhile.
#[test]
fn peers_that_hardly_read() {
    const LAZY: u16 = 40;
    let mut talk = Talk::new(100);
    let mut busy = talk.open(0);
    let conn = talk.program.last.unwrap();
    talk.card.log.reserve_exact(1000);
    talk.scale = 0;
    let mut lazy: Vec<(ConnId, Peer)> = (1..=LAZY)
        .map(|n| {
            let peer = talk.open(n.into());
            (talk.program.last.unwrap(), peer)
        })
        .collect();
    for (conn, _) in &lazy {
        talk.stack.commit(*conn, 1 << 20, true);
    }
    let (mut end, mut frames, mut memory) = (0, 0, None);
    for step in 0..36_000 {
        talk.now = talk.now.after_millis(100);
        talk.card.log.clear();
        while talk.stack.turn(talk.now, &mut talk.card, &mut talk.program).more {}
        for (port, reaches) in talk.card.log.clone() {
            let Some((_, peer)) = lazy.iter_mut().find(|(_, peer)| peer.port == port) else { continue };
            frames += 1;
            // The first window was taken whole; then every second peer reads a byte for each segment that comes, and the others none.
            let reads = port % 2 == 0;
            let ahead = reaches.wrapping_sub(peer.ack) as i32;
            if step == 0 {
                peer.ack = peer.ack.wrapping_add(ahead.max(0) as u32);
            } else if reads {
                peer.ack = peer.ack.wrapping_add(ahead.clamp(0, 1) as u32);
            }
            talk.window = u16::from(reads);
            talk.say(peer, Flags::ACK, 0);
            talk.window = 60_000;
        }
        // A request of 1000 bytes, and an answer of 500, at once.
        talk.say(&mut busy, Flags::ACK.with(Flags::PSH), 1000);
        end += 500;
        talk.stack.commit(conn, end, true);
        talk.stack.room(conn, end * 2 + 65_536);
        talk.card.log.clear();
        talk.turn();
        let answer = talk.card.log.iter().find(|(port, _)| *port == busy.port);
        assert_eq!(answer, Some(&(busy.port, busy.ack.wrapping_add(500))), "step {step}");
        busy.ack = busy.ack.wrapping_add(500);
        talk.say(&mut busy, Flags::ACK, 0);
        if step == 600 {
            memory = Some(live());
        }
    }
    let grown = live() - memory.unwrap();
    let info: Vec<_> = lazy.iter().map(|(conn, _)| talk.stack.info(*conn).expect("it stands").tcp).collect();
    println!("{grown} bytes more after an hour than after a minute; {frames} frames to them");
    // A few more may have something in flight at the same moment than ever in the first minute.
    assert!(grown < 400 * isize::from(LAZY as i16), "{grown}");
    assert!(info.iter().all(|info| info.in_flight <= 1 && info.unsent > 1 << 19), "{info:?}");
    // Probes of a window that is shut come every two minutes at last; a byte is acknowledged at once, and the next follows when the
    // persist timer says so.
    assert!(frames < 36_000 * i32::from(LAZY) / 4, "{frames}");
    let read = info.iter().map(|info| info.acknowledged).max().unwrap();
    let least = info.iter().map(|info| info.acknowledged).min().unwrap();
    assert!(read > least + 50, "{read}, {least}: nobody reads");
}
