//! smoltcp, doing what the engine does: a data segment received with its acknowledgement, a data segment sent. Its checksums are
//! left out, timestamps are on, and it copies each payload once: into its buffer, or out of it.
//!
//! In the scenarios without `-batch` there is one packet for each call of `poll`; in the others there are 16.

use crate::Scenario;
use crate::peer::{HERE, PAYLOAD, PEER, PORT, Remote, SEGMENTS};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};
use std::hint::black_box;
use zstack_wire::tcp::Flags;

/// Packets that are to arrive, and what was sent.
struct Wire {
    arriving: Vec<Vec<u8>>,
    next: usize,
    /// Those from here on have not arrived yet.
    end: usize,
    sent: u32,
    frame: [u8; 2048],
    len: usize,
}

struct Rx<'a>(&'a [u8]);

impl RxToken for Rx<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct Tx<'a> {
    frame: &'a mut [u8],
    len: &'a mut usize,
    sent: &'a mut u32,
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        (*self.len, *self.sent) = (len, *self.sent + 1);
        let result = f(&mut self.frame[..len]);
        black_box(&*self.frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Rx<'a>;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Rx<'_>, Tx<'_>)> {
        let packet = self.arriving[..self.end].get(self.next)?;
        self.next += 1;
        Some((Rx(packet), Tx { frame: &mut self.frame, len: &mut self.len, sent: &mut self.sent }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        Some(Tx { frame: &mut self.frame, len: &mut self.len, sent: &mut self.sent })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        capabilities.checksum = ChecksumCapabilities::ignored();
        capabilities
    }
}

struct Smoltcp {
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    remotes: Vec<(SocketHandle, Remote)>,
    now: Instant,
    batch: usize,
    /// Which connection the next round begins with.
    turn: usize,
    sends: bool,
    data: Vec<u8>,
}

impl Smoltcp {
    fn new(connections: usize, batch: usize, sends: bool) -> Smoltcp {
        let mut wire = Wire { arriving: vec![], next: 0, end: 0, sent: 0, frame: [0; 2048], len: 0 };
        let now = Instant::from_millis(1000);
        let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut wire, now);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(HERE.into(), 24)).expect("room for an address");
        });
        let mut all = Smoltcp {
            interface,
            sockets: SocketSet::new(vec![]),
            wire,
            remotes: vec![],
            now,
            batch,
            turn: 0,
            sends,
            data: vec![0x62; PAYLOAD],
        };
        // Room for what a round sends on a connection.
        let room = if connections == 1 { 2 * SEGMENTS * PAYLOAD } else { 8 * PAYLOAD };
        for n in 0..connections {
            let buffer = || tcp::SocketBuffer::new(vec![0; room]);
            let mut socket = tcp::Socket::new(buffer(), buffer());
            socket.set_tsval_generator(Some(|| 7));
            socket.set_nagle_enabled(false);
            socket.listen(PORT).expect("a socket that is closed");
            let socket = all.sockets.add(socket);
            let mut remote = Remote::new(HERE, (PEER, 10_000 + n as u16), 7);
            all.arrive(vec![remote.packet(Flags::SYN, 0)]);
            remote.answered(&all.wire.frame[..all.wire.len]);
            all.arrive(vec![remote.packet(Flags::ACK, 0)]);
            assert!(all.sockets.get::<tcp::Socket>(socket).may_send(), "connection {n} is not established");
            all.remotes.push((socket, remote));
        }
        all
    }

    fn arrive(&mut self, packets: Vec<Vec<u8>>) {
        (self.wire.next, self.wire.end, self.wire.arriving) = (0, packets.len(), packets);
        self.interface.poll(self.now, &mut self.wire, &mut self.sockets);
        assert_eq!(self.wire.next, self.wire.arriving.len());
    }

    /// The connection of the round's segment `n`.
    fn of(&self, n: usize) -> usize {
        (self.turn + n / 2) % self.remotes.len()
    }

    fn receive(&mut self) {
        for first in (0..SEGMENTS).step_by(self.batch) {
            self.wire.end = first + self.batch;
            self.interface.poll(self.now, &mut self.wire, &mut self.sockets);
            for n in first..first + self.batch {
                let socket = self.remotes[self.of(n)].0;
                let socket = self.sockets.get_mut::<tcp::Socket>(socket);
                let taken = socket.recv(|bytes| (bytes.len(), bytes.len())).expect("an open connection");
                black_box(taken);
            }
        }
    }

    fn send(&mut self) {
        for first in (0..SEGMENTS).step_by(self.batch) {
            for n in first..first + self.batch {
                let socket = self.remotes[self.of(n)].0;
                let taken = self.sockets.get_mut::<tcp::Socket>(socket).send_slice(&self.data);
                assert_eq!(taken, Ok(PAYLOAD));
            }
            self.interface.poll(self.now, &mut self.wire, &mut self.sockets);
        }
    }
}

impl Scenario for Smoltcp {
    fn segments(&self) -> u32 {
        SEGMENTS as u32
    }

    /// Of many connections a segment takes so long that a few are enough.
    fn rounds(&self) -> (u32, u32) {
        if self.remotes.len() > 1 { (2, 4) } else { (20, 50) }
    }

    fn prepare(&mut self) {
        // What the last round was about: acknowledged in one packet a connection, or no more than forgotten.
        if self.sends && self.wire.sent > 0 {
            assert!(self.wire.sent >= SEGMENTS as u32, "{} segments sent", self.wire.sent);
            let mut acks = vec![];
            for n in 0..SEGMENTS {
                let of = self.of(n);
                let remote = &mut self.remotes[of].1;
                remote.expected += PAYLOAD as u32;
                acks.push(remote.packet(Flags::ACK, 0));
            }
            self.arrive(acks);
        } else if self.wire.sent > 0 {
            // One for two segments, but not more than one a call for a connection.
            let least = SEGMENTS / self.batch.max(2);
            assert!(self.wire.sent >= least as u32, "{} acknowledgements", self.wire.sent);
        }
        self.turn = (self.turn + SEGMENTS / 2) % self.remotes.len();
        self.now += smoltcp::time::Duration::from_millis(1);
        self.wire.sent = 0;
        if !self.sends {
            let mut packets = vec![];
            for n in 0..SEGMENTS {
                let of = self.of(n);
                let remote = &mut self.remotes[of].1;
                packets.push(remote.packet(Flags::ACK, PAYLOAD));
                remote.nxt += PAYLOAD as u32;
            }
            (self.wire.arriving, self.wire.next, self.wire.end) = (packets, 0, 0);
        }
    }

    fn work(&mut self) {
        if self.sends { self.send() } else { self.receive() }
    }
}

/// A data segment received, and its acknowledgement: one for each two segments.
pub fn receive<const CONNECTIONS: usize, const BATCH: usize>() -> Box<dyn Scenario> {
    let mut all = Smoltcp::new(CONNECTIONS, BATCH, false);
    all.wire.sent = 0;
    Box::new(all)
}

/// A data segment sent.
pub fn send<const CONNECTIONS: usize, const BATCH: usize>() -> Box<dyn Scenario> {
    let mut all = Smoltcp::new(CONNECTIONS, BATCH, true);
    all.wire.sent = 0;
    Box::new(all)
}
