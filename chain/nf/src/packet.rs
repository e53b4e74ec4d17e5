//! Packets, the copies of their heads, and batches.

use crate::memory::Room;

/// How many packets a batch has at most.
pub const BATCH: usize = 32;

/// How many bytes of a packet are copied out to be parsed, at most.
pub const HEAD: usize = 128;

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Verdict {
    /// The next function has it; behind the last one, what the chain says.
    #[default]
    Next,
    /// It is dropped.
    Drop,
    /// It goes out of this port.
    Out(u16),
    /// It goes out of each port whose bit is set: who runs the chain makes the copies.
    Each(u64),
    /// The kernel has it.
    Kernel,
}

/// A packet: its place in its chunk of memory, and what is known of it.
#[derive(Debug)]
pub struct Packet<'a> {
    room: Room<'a>,
    at: usize,
    len: usize,
    port: u16,
    /// What functions tell later ones of it.
    pub mark: u32,
    /// What becomes of it.
    pub verdict: Verdict,
}

impl<'a> Packet<'a> {
    const NONE: Packet<'a> = Packet { room: Room::none(), at: 0, len: 0, port: 0, mark: 0, verdict: Verdict::Next };

    /// The packet that is the `len` bytes from `at` on in `memory`, received by `port`. `None`: they do not lie in it.
    pub fn over(memory: &'a mut [u8], at: usize, len: usize, port: u16) -> Option<Packet<'a>> {
        Packet::within(Room::of(memory), at, len, port)
    }

    /// The packet that is the `len` bytes from `at` on in the chunk of `capacity` bytes at `start`, received by `port`. `None`: they do
    /// not lie in it.
    ///
    /// # Safety
    /// As long as `'a` the chunk can be read and written, and this program's other code does not use it. Other processes may.
    #[allow(unsafe_code)]
    pub unsafe fn new(start: *mut u8, capacity: usize, at: usize, len: usize, port: u16) -> Option<Packet<'a>> {
        // SAFETY: the caller's obligation is the room's.
        let room = unsafe { Room::new(start, capacity) };
        Packet::within(room, at, len, port)
    }

    fn within(room: Room<'a>, at: usize, len: usize, port: u16) -> Option<Packet<'a>> {
        let inside = at <= room.len() && len <= room.len() - at;
        inside.then_some(Packet { room, at, len, port, mark: 0, verdict: Verdict::Next })
    }

    /// The port that received it.
    #[inline]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its length.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "whether a packet has no bytes is nobody's question")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Where it begins in its chunk.
    #[inline]
    pub fn headroom(&self) -> usize {
        self.at
    }

    /// How many bytes of its chunk are behind it.
    #[inline]
    pub fn tailroom(&self) -> usize {
        self.room.len() - self.at - self.len
    }

    /// Copies out the `N` bytes from `at` on, if it has so many.
    #[inline]
    pub fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.read_into(at, &mut bytes).then_some(bytes)
    }

    /// Copies out the bytes from `at` on into all of `bytes`; false: it has fewer, and nothing was copied.
    #[inline]
    pub fn read_into(&self, at: usize, bytes: &mut [u8]) -> bool {
        at <= self.len && bytes.len() <= self.len - at && self.room.read(self.at + at, bytes)
    }

    /// Copies out its first bytes, up to [`HEAD`].
    #[inline]
    pub fn head(&self) -> Head {
        let mut head = Head { bytes: [0; HEAD], len: self.len.min(HEAD), packet: self.len };
        // A copy of a fixed length is a handful of instructions: it may take bytes of the chunk that are behind the packet, which `len`
        // hides.
        if !self.room.read(self.at, &mut head.bytes) {
            self.room.read(self.at, &mut head.bytes[..head.len]);
        }
        head
    }

    /// Writes all of `bytes` to those from `at` on; false: the packet has fewer, and nothing was written.
    #[inline]
    #[must_use = "what does not fit is not written"]
    pub fn write(&mut self, at: usize, bytes: &[u8]) -> bool {
        at <= self.len && bytes.len() <= self.len - at && self.room.write(self.at + at, bytes)
    }

    /// Writes back what was changed in the copy of its head, from byte `from` up to `to`; false: the packet has no such bytes.
    #[inline]
    #[must_use = "what does not fit is not written"]
    pub fn write_back(&mut self, head: &Head, from: usize, to: usize) -> bool {
        head.bytes().get(from..to).is_some_and(|bytes| self.write(from, bytes))
    }

    /// Begins `n` bytes earlier: these are whatever lies there. False: there is less headroom, and nothing has changed.
    #[inline]
    #[must_use = "without headroom nothing changes"]
    pub fn push_front(&mut self, n: usize) -> bool {
        let fits = n <= self.at;
        if fits {
            (self.at, self.len) = (self.at - n, self.len + n);
        }
        fits
    }

    /// Begins `n` bytes later. False: it is shorter, and nothing has changed.
    #[inline]
    #[must_use = "a shorter packet does not change"]
    pub fn pull_front(&mut self, n: usize) -> bool {
        let fits = n <= self.len;
        if fits {
            (self.at, self.len) = (self.at + n, self.len - n);
        }
        fits
    }

    /// Ends so that it has `len` bytes; those that are new are whatever lies there. False: there is less tailroom, and nothing has changed.
    #[inline]
    #[must_use = "without tailroom nothing changes"]
    pub fn resize(&mut self, len: usize) -> bool {
        let fits = len <= self.room.len() - self.at;
        if fits {
            self.len = len;
        }
        fits
    }

    /// Makes room for `n` bytes at `at`, by moving what is before it to the front. False: there is less headroom, or no such place, and
    /// nothing has changed. What the `n` bytes are is to be written.
    #[inline]
    #[must_use = "without headroom nothing changes"]
    pub fn insert(&mut self, at: usize, n: usize) -> bool {
        at <= self.len && self.push_front(n) && self.room.shift(self.at + n, self.at, at)
    }

    /// Takes the `n` bytes at `at` out, by moving what is before it to the back. False: it has no such bytes, and nothing has changed.
    #[inline]
    #[must_use = "a shorter packet does not change"]
    pub fn remove(&mut self, at: usize, n: usize) -> bool {
        let inside = at <= self.len && n <= self.len - at;
        inside && self.room.shift(self.at, self.at + n, at) && self.pull_front(n)
    }
}

/// The copy of a packet's first bytes. Nobody else writes it.
#[derive(Clone, Debug)]
pub struct Head {
    bytes: [u8; HEAD],
    len: usize,
    packet: usize,
}

impl Head {
    /// The bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The length of the packet whose head it is.
    #[inline]
    pub fn packet(&self) -> usize {
        self.packet
    }

    /// The `N` bytes from `at` on, if it has so many.
    #[inline]
    pub fn get<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.bytes().get(at..)?.first_chunk().copied()
    }

    /// Writes `bytes` to those from `at` on in the copy; what does not fit is left out altogether.
    #[inline]
    pub fn set<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        if let Some(to) = self.bytes[..self.len].get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
            *to = bytes;
        }
    }
}

/// Up to [`BATCH`] packets.
#[derive(Debug)]
pub struct Batch<'a> {
    packets: [Packet<'a>; BATCH],
    len: usize,
}

impl<'a> Batch<'a> {
    /// No packets.
    pub const fn new() -> Batch<'a> {
        Batch { packets: [const { Packet::NONE }; BATCH], len: 0 }
    }

    /// Adds a packet; one for which there is no place comes back.
    ///
    /// # Errors
    /// The batch is full.
    #[inline]
    pub fn push(&mut self, packet: Packet<'a>) -> Result<(), Packet<'a>> {
        match self.packets.get_mut(self.len) {
            Some(place) => {
                *place = packet;
                self.len += 1;
                Ok(())
            }
            None => Err(packet),
        }
    }

    /// Takes all packets out.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All packets, in their order.
    #[inline]
    pub fn packets(&mut self) -> &mut [Packet<'a>] {
        &mut self.packets[..self.len]
    }

    /// Those that no function has decided about.
    #[inline]
    pub fn undecided(&mut self) -> impl Iterator<Item = &mut Packet<'a>> {
        self.packets().iter_mut().filter(|p| p.verdict == Verdict::Next)
    }
}

impl Default for Batch<'_> {
    fn default() -> Self {
        Batch::new()
    }
}
