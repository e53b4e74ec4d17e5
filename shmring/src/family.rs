//! The memory a process shares with its forks: one memfd, mapped at the same address by all of them.
//!
//! It holds every [`Endpoint`] of the family, so that all holders of a connection agree on who reads,
//! who writes, where the stream is, and what error is latched. The peer of a connection never maps it.
//! `culvert stat` reads it through `/proc/PID/fd` with `pread`, as the same user or root, and takes
//! nothing in it on trust.

use crate::holders::{Holders, Life};
use crate::journal::Journal;
use crate::layout::Role;
use crate::owner;
pub use crate::owner::MEMBERS;
use crate::position::{Claim, RingPos, StreamPos};
use crate::switch::{Again, RxPhase, TxPhase};
use crate::sync::{AtomicU32, AtomicU64};
use crate::word::{Code, Coded, Numbered};
use core::sync::atomic::Ordering::Relaxed;

/// `"culvfam\x01"`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"culvfam\x01");
/// Changes with every incompatible change of this file.
pub const VERSION: u32 = 17;
/// Name of the memfd: `/proc/PID/fd/N` reads `/memfd:culvert-family (deleted)`.
pub const MEMFD_NAME: &str = "culvert-family";
/// A program whose limit of descriptors (RLIMIT_NOFILE) is below this would miss those that culvert takes: its connections stay
/// on the kernel.
pub const FEW_DESCRIPTORS: u64 = 256;
/// Endpoints one family can have at a time; a connection beyond them stays on the kernel, untracked.
pub const ENDPOINTS: usize = if cfg!(miri) { 256 } else { 65536 };
/// Where the endpoints begin.
pub const ENDPOINTS_AT: usize = 4096;
/// Length of the memfd (sparse).
pub const FAMILY_LEN: usize = JOURNAL_AT + size_of::<Journal>();
/// Where the family's journal lies.
pub const JOURNAL_AT: usize = ENDPOINTS_AT + ENDPOINTS * size_of::<Endpoint>();

/// First page.
#[repr(C, align(64))]
pub struct FamilyHeader {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`VERSION`].
    pub version: u32,
    /// Process that made the family.
    pub pid: u32,
    /// Configured path: a [`ConfiguredPath`] value.
    pub path: AtomicU32,
    /// Endpoints `0..high` have been used at some time.
    pub high: AtomicU32,
    /// Head of the free list.
    pub free: Coded<FreeList>,
    /// Channels this family has mapped since it began.
    pub channels: AtomicU64,
    /// Why new connections are not accelerated at all, a [`Reason`]; 0 if they are. `culvert kernel` writes
    /// [`Reason::Recalled`] here, in another process's family: then those that are go back when they are used next.
    pub disabled: AtomicU32,
    /// Not 0: members look at bytes of connections that others hold, too, where they lie, or may do so.
    pub looked: AtomicU32,
    /// The family's members, a [`Member`] each. A member has the byte of the memfd that its place numbers locked
    /// (fcntl(2), POSIX record locks) as long as it lives. When it matters, others notice that it does not, and give
    /// up its holds for it.
    pub members: [AtomicU64; MEMBERS],
}

impl Numbered for Role {
    type Bits = u32;
    #[inline(always)]
    fn number(self) -> u32 {
        self as u32
    }
    #[inline(always)]
    fn numbered(number: u32) -> Role {
        if number == Role::Connector as u32 { Role::Connector } else { Role::Acceptor }
    }
}

/// The head of the list of free endpoints.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FreeList {
    /// Index of the first.
    pub first: Option<u32>,
    /// Changes of the head so far: one that was the first, and is again, is another head.
    pub tag: u32,
}

impl FreeList {
    /// The next head, with this one first.
    pub fn then(self, first: Option<u32>) -> FreeList {
        FreeList { first, tag: self.tag.wrapping_add(1) }
    }
}

impl Code for FreeList {
    type Bits = u64;
    fn code(self) -> u64 {
        u64::from(self.first.code()) | u64::from(self.tag) << 32
    }
    fn of(code: u64) -> FreeList {
        FreeList { first: Option::of(code as u32), tag: (code >> 32) as u32 }
    }
}

/// A place among the members: what it is used for, the generation of that use, and the times that its lock was, or is
/// (odd), out of use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member(pub u64);

impl Member {
    /// Kept for a child that is being forked.
    const BEING_FORKED: u32 = u32::MAX;
    /// The same, and parent and child have the place's birth locked until the child has taken it.
    const BEING_BORN: u32 = u32::MAX - 1;
    /// Its process has died; with the place and the low bits of the generation of the member that clears up.
    const REAPED: u32 = 0xff00_0000;

    fn with(self, state: u32) -> Member {
        Member(self.0 & !0xffff_ffff | u64::from(state))
    }
    fn state(self) -> u32 {
        self.0 as u32
    }
    /// Number of the use of the place.
    pub fn generation(self) -> u32 {
        (self.0 >> 32) as u32 & ((1 << owner::GENERATION_BITS) - 1)
    }
    /// Whether nobody has it.
    pub fn is_free(self) -> bool {
        self.state() == 0
    }
    /// Whether it is kept for a child.
    pub fn is_being_forked(self) -> bool {
        self.state() == Member::BEING_FORKED || self.is_being_born()
    }
    /// Whether it is kept for a child, and whoever looks can tell whether that will be there.
    pub fn is_being_born(self) -> bool {
        self.state() == Member::BEING_BORN
    }
    /// Process id, in the member's own namespace, for display.
    pub fn pid(self) -> Option<u32> {
        (self.state() != 0 && self.state() < Member::REAPED).then(|| self.state())
    }
    /// Whether the lock says nothing at present, so that the member counts as alive.
    pub fn is_unproved(self) -> bool {
        self.0 >> 56 & 1 != 0
    }
    /// The member that clears up after it: place, and the low bits of the generation.
    pub fn reaper(self) -> Option<(usize, u32)> {
        let state = self.state();
        (state >= Member::REAPED && !self.is_being_forked()).then_some((state as usize & 0xff, state >> 8 & 0xffff))
    }
    /// Free, after this use.
    pub fn freed(self) -> Member {
        let generation = u64::from(self.generation() + 1) & ((1 << owner::GENERATION_BITS) - 1);
        Member(generation << 32)
    }
    /// Kept for a child.
    pub fn being_forked(self) -> Member {
        self.with(Member::BEING_FORKED)
    }
    /// Kept for a child whose birth is locked.
    pub fn being_born(self) -> Member {
        self.with(Member::BEING_BORN)
    }
    /// Process `pid` has it.
    pub fn taken(self, pid: u32) -> Member {
        self.with(pid.clamp(1, Member::REAPED - 1))
    }
    /// The member in `place`, of `generation`, clears up.
    pub fn reaped(self, place: usize, generation: u32) -> Member {
        // The highest values are those of a place that is being forked.
        self.with(Member::REAPED | (generation & 0x7fff) << 8 | place as u32 & 0xff)
    }
    /// Its lock goes out of use, or comes back into it.
    pub fn lock_moved(self) -> Member {
        Member(self.0.wrapping_add(1 << 56))
    }
}

/// `CULVERT_PATH`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum ConfiguredPath {
    /// Shared memory where possible.
    Auto = 0,
    /// The same; what cannot go there is logged at `warn`.
    Shm = 1,
    /// Everything stays on the kernel.
    Kernel = 2,
    /// As `Auto`; that nobody carries connections to other hosts is logged at `warn`.
    Zstack = 3,
}

/// [`Endpoint::state`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum State {
    /// Not in use.
    Free = 0,
    /// A TCP socket not connected yet, or a listener.
    Idle = 1,
    /// A connection on the kernel that may still be attached to a channel.
    Eligible = 2,
    /// Has a slot in a channel; each direction is on the lifeline or on its ring.
    Attached = 3,
    /// On the kernel for good; [`Endpoint::reason`] says why.
    Pinned = 4,
}

impl State {
    /// The state `v` encodes; anything unknown is `Pinned`, the state in which culvert does nothing.
    pub fn from_u32(v: u32) -> State {
        match v {
            0 => State::Free,
            1 => State::Idle,
            2 => State::Eligible,
            3 => State::Attached,
            _ => State::Pinned,
        }
    }
}

macro_rules! reasons {
    ($($name:ident = $n:literal, $key:literal, $text:literal;)*) => {
        /// Why a connection is not (yet) accelerated.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u32)]
        pub enum Reason { $(#[doc = $text] $name = $n,)* }
        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];
            /// The reason `v` encodes.
            pub fn from_u32(v: u32) -> Option<Reason> {
                match v { $($n => Some(Reason::$name),)* _ => None }
            }
            /// Stable machine-readable key (`culvert stat --json`).
            pub fn key(self) -> &'static str { match self { $(Reason::$name => $key,)* } }
            /// One sentence for people.
            pub fn text(self) -> &'static str { match self { $(Reason::$name => $text,)* } }
        }
    };
}

reasons! {
    None = 0, "", "accelerated";
    Young = 1, "young", "too few exchanges so far to be worth a ring";
    Remote = 2, "remote-peer", "the peer is on another host";
    NoPeer = 3, "peer-without-culvert", "the peer takes no part: it is not under culvert, or could not use the registry";
    Config = 4, "configured", "CULVERT_PATH=kernel keeps it there, or a setting that is wrong";
    Shared = 5, "shared-by-processes", "another process holds the same socket";
    Inherited = 6, "inherited", "the socket came from another program image, or from a process that was not its only holder";
    Stdio = 7, "fdopen", "stdio reads or writes it behind the library's back";
    Passed = 8, "passed-on", "the descriptor was passed to another process (SCM_RIGHTS)";
    Exec = 9, "exec", "the descriptor was handed to a new program image";
    Option = 10, "socket-option", "a socket option that only the kernel can honour is set";
    Oob = 11, "out-of-band", "out-of-band data is used";
    Async = 12, "async", "signal-driven (O_ASYNC) or asynchronous I/O is used";
    Splice = 13, "splice", "splice or tee moves its bytes";
    EpollShared = 14, "epoll-exclusive", "the epoll set that watches it is also another process's, or another program's, or watched by a set";
    Ktls = 15, "ktls", "kernel TLS or another upper-layer protocol is attached";
    SelfConnect = 16, "self-connect", "the socket is connected to itself";
    NoMemory = 17, "no-memory", "shared memory for a ring could not be had";
    NoFd = 18, "no-descriptor", "no descriptor was left for culvert";
    Seccomp = 19, "seccomp", "the process runs under a system-call filter";
    Version = 20, "peer-version", "the peer runs another version of culvert";
    NoRegistry = 21, "no-registry", "the registry could not be used: its directory (/dev/shm, CULVERT_DIR) is missing, full, or not to be written";
    Down = 22, "returned", "it was accelerated and went back to the kernel";
    IoUring = 23, "io_uring", "the program has an io_uring, which could use any descriptor";
    Pending = 24, "pending", "waiting for the peer to take part";
    Dead = 26, "peer-gone", "the peer closed or died";
    Corrupt = 27, "corrupt", "the peer wrote nonsense into the shared memory";
    UidMismatch = 28, "unproved", "the kernel did not confirm who the peer is";
    Shut = 29, "shut-down", "it was shut down for reading or writing before it could be accelerated";
    Namespace = 30, "namespace", "the program has libraries in a namespace of their own (dlmopen), which do not call culvert";
    Raw = 31, "raw-calls", "the program has an epoll set that libc did not make, or libc's functions past culvert: it makes calls of its own";
    Tables = 32, "descriptor-tables", "threads of the program have tables of descriptors of their own";
    Recalled = 33, "recalled", "`culvert kernel` has brought it back to the kernel";
    Received = 34, "received", "another process has sent it here (SCM_RIGHTS), and may still hold it";
    OtherUser = 36, "other-user", "CULVERT_PEERS=own, and the peer is another user's";
    Slow = 35, "held-up", "processes of the peer's user have held up this one";
    Unread = 37, "unread", "the peer had not read for a while what was sent, and a ring shared with another user holds little";
    Unsealed = 38, "unsealed", "memory for a peer of another user cannot be sealed here: Linux before 5.1, or no /proc";
    UserIds = 39, "user-ids", "the program's real, effective and saved user ids differ: it acts for one user, and has another's rights";
    Translated = 41, "translated", "an address of the connection is translated (NAT), and the kernel cannot say whose the other end is";
    NotServed = 43, "not-served", "the peer is on another host, and no zstackd serves this network namespace";
    ZstackDown = 44, "zstack-down", "the peer is on another host, and the zstackd that served this network namespace has ended";
    NotCarried = 45, "not-carried", "the peer is on another host, and the zstackd that serves here leaves this connection to the kernel";
    Reserved = 46, "reserved", "bytes were sent by a POSIX call while room on the ring was reserved, and had no other place to go";
    OtherNetwork = 42, "other-network", "its socket, or the thread that uses it, is in another network namespace than culvert's own sockets in its process";
}

/// [`Endpoint::cork`]: neither the program nor the kernel holds back small segments.
pub const UNCORKED: u32 = 1;
/// [`Endpoint::cork`]: the program has asked for it; the kernel does not know yet.
pub const CORKED: u32 = 2;

/// [`Endpoint::never_waits`]: a receive does not wait (`SO_RCVTIMEO`). The kernel does not tell: a negative time and none at
/// all are both read as 0.
pub const RCVTIMEO: u32 = 1;
/// [`Endpoint::never_waits`]: a send does not wait (`SO_SNDTIMEO`).
pub const SNDTIMEO: u32 = 2;
/// [`Endpoint::tx_word`]: bytes go to the ring; threads of the family no longer send natively.
pub const UP: u32 = 1 << 31;
/// [`Endpoint::rx_word`]: the ring may be used; threads of the family no longer block natively.
pub const OPEN: u32 = 1 << 31;

/// [`Endpoint::rx_fin`]: a FIN was seen, before any RST.
pub const FIN: u32 = 2;
/// [`Endpoint::rx_fin`]: there was a RST and no FIN.
pub const RST: u32 = 3;

/// [`Endpoint::stands_in`]: the peer does.
pub const PEER_STANDS_IN: u32 = 1;
/// [`Endpoint::stands_in`]: this end does.
pub const STANDS_IN: u32 = 2;

/// [`Endpoint::handed`]: a process has received, while another one that had received before lives and holds it as well.
pub const HANDED_RX: u32 = 1;
/// [`Endpoint::handed`]: the same of sending.
pub const HANDED_TX: u32 = 2;
/// [`Endpoint::handed`]: two processes use it by turns; it goes to the kernel.
pub const CONTESTED: u32 = 4;
/// [`Endpoint::handed`]: other processes have held it since it was attached.
pub const SHARED: u32 = 8;

/// [`Endpoint::custody`]: the socket came in a message, and nothing proves yet that nobody else holds it.
pub const FOREIGN: u32 = 1 << 31;
/// [`Endpoint::custody`]: processes outside of the family may hold the socket, nobody knows how many.
pub const LEAKED: u32 = 1 << 30;

/// One TCP socket of the family, shared by all dups of its descriptor.
///
/// Meaningful while `state` is not `Free`: the first group. The rest begins with [`State::Attached`], so that a
/// connection for one request and its answer touches three lines of memory.
#[repr(C, align(64))]
#[cfg_attr(loom, derive(Default))]
pub struct Endpoint {
    // --- identity and life
    /// A [`State`].
    pub state: AtomicU32,
    /// A [`Reason`].
    pub reason: AtomicU32,
    /// Index of the next free endpoint, while `state` is `Free`.
    pub next_free: Coded<Option<u32>>,
    /// [`RCVTIMEO`], [`SNDTIMEO`]: that option was set to a negative time.
    pub never_waits: AtomicU32,
    /// Which end it is, once known.
    pub role: Coded<Option<Role>>,
    /// Process that created the socket, and its descriptor there at that time.
    pub pid: AtomicU32,
    /// See `pid`.
    pub fd: AtomicU32,
    /// Operations so far while `Eligible`; paces the attempts to attach.
    pub ops: AtomicU32,
    /// [`OPEN`]. Low bits: threads in a native receive or wait.
    pub rx_word: AtomicU32,
    /// [`UP`]. Low bits: threads in a native send.
    pub tx_word: AtomicU32,
    /// SO_RCVLOWAT, if the program set it; else 0.
    pub rcvlowat: AtomicU32,
    /// Error to report before anything else (ECONNRESET...), 0 if none.
    pub latched: AtomicU32,
    /// `SO_COOKIE` of the socket; 0 until asked for.
    pub cookie: AtomicU64,
    /// `TCP_CORK` while sending on the ring, which needs none: [`UNCORKED`], [`CORKED`]; else 0, ask the kernel.
    pub cork: AtomicU32,
    /// An error that a `recvmmsg` has kept for the next call, behind messages that it received; 0 if none. The connection has not
    /// ended by it.
    pub kept: AtomicU32,
    /// Not 0: `TCP_INQ` is set, as far as calls on the ring are concerned: each `recvmsg` says how much is left.
    pub inq: AtomicU32,
    /// Not 0: `TCP_USER_TIMEOUT` is set, as far as the ring is concerned.
    pub timed: AtomicU32,
    /// Not 0: a call has told how the connection has ended on the wire.
    pub ended: AtomicU32,
    /// How many references to the socket have left the family in messages; [`FOREIGN`], [`LEAKED`].
    pub custody: AtomicU32,
    /// Which use of the record this is.
    pub life: Coded<Life>,
    /// The connector's port << 16 | the acceptor's; 0 while unknown.
    pub ports: AtomicU32,
    /// Bytes sent and received over the lifeline, as this family has counted: a hint, for the order of events.
    pub sent: AtomicU32,
    /// See `sent`.
    pub heard: AtomicU32,
    /// Process id of the peer, for display; 0 if unknown.
    pub peer_pid: AtomicU32,
    /// Which members of the family ([`FamilyHeader::members`]) hold a descriptor of it.
    pub holders: Holders,
    /// The end of a pair of Unix sockets at which it came in or went out in a message. Meaningful while `custody` is not 0.
    pub way: AtomicU64,

    // --- the channel
    /// Channel id.
    pub channel: AtomicU64,
    /// Slot in that channel.
    pub slot: AtomicU32,
    /// Times that a sender found no room on the ring (for edges).
    pub tx_blocked: AtomicU32,
    /// Not 0: urgent data has come on the lifeline. From a mark that lies there on FIONREAD counts nothing.
    pub urgent: AtomicU32,
    /// How often what there is to read has become news without more of it (for edges).
    pub renewed: AtomicU32,
    /// How often its program has disconnected the socket (`sk_disconnects`).
    pub disconnects: AtomicU32,
    /// One end stands in for another host: [`PEER_STANDS_IN`], [`STANDS_IN`]; else 0.
    pub stands_in: AtomicU32,

    // --- receiving
    /// Owner of the receiving direction, or who owned it last: see [`owner`].
    pub rx_token: AtomicU64,
    /// Where the direction is.
    pub rx_phase: Coded<RxPhase>,
    /// Not 0: FIN, RST or error was seen on the lifeline; [`FIN`] or [`RST`] if it is known which.
    pub rx_fin: AtomicU32,
    /// Who leaves the ring, and waits for the peer to do its part: others do not receive meanwhile. 0 = nobody. See
    /// [`owner`].
    pub rx_leaving: AtomicU64,
    /// Until when it does so at most, milliseconds of the monotonic clock.
    pub rx_leaving_until: AtomicU64,
    /// What is consumed (the trusted copy of `Consumer::head`).
    pub rx_head: Coded<RingPos>,
    /// The head that the sender can be relied on to have seen when it last looked for room.
    pub rx_shown: Coded<RingPos>,
    /// Where on the lifeline echoes of what was read from the ring end; none are left.
    pub rx_skip: Coded<Option<StreamPos>>,
    /// While echoes are dropped: how far the lifeline has been read, as we have counted; none: we have not.
    pub rx_at: Coded<Option<StreamPos>>,
    /// Where on the lifeline lies what comes behind `rx_head`, once the receiver has come down from a ring; none: it has not.
    pub rx_down_at: Coded<Option<StreamPos>>,
    /// `shutdown(SHUT_RD)` was called.
    pub rd_shut: AtomicU32,
    /// [`HANDED_RX`], [`HANDED_TX`], [`CONTESTED`], [`SHARED`].
    pub handed: AtomicU32,
    /// Where this side stops reading the ring, having told the sender; none: it did not. It may be what a dead holder had
    /// told, read from where the peer can write.
    pub rx_cut: Coded<Option<Claim<RingPos>>>,
    /// Who looks at bytes of the ring where they lie, so that nothing from there on is given back to the sender; 0 = nobody. See
    /// [`owner`].
    pub rx_viewed: AtomicU64,
    /// Which of such looks at this connection it is.
    pub rx_view: AtomicU64,
    /// Bytes and messages received through the ring.
    pub rx_bytes: AtomicU64,
    /// See `rx_bytes`.
    pub rx_msgs: AtomicU64,
    /// Where the ring began, [`StreamPos::NEVER`] if it did not.
    pub rx_up: Coded<StreamPos>,

    // --- sending
    /// Owner of the sending direction, or who owned it last: see [`owner`].
    pub tx_token: AtomicU64,
    /// Where the direction is.
    pub tx_phase: Coded<TxPhase>,
    /// `shutdown(SHUT_WR)` was called.
    pub wr_shut: AtomicU32,
    /// Not 0: the direction was taken from a process that may go on to copy to where the next byte would lie. It goes down.
    pub tx_taken: AtomicU32,
    /// What is published (the trusted copy of `Producer::tail`).
    pub tx_tail: Coded<RingPos>,
    /// Last head accepted from the peer.
    pub tx_head: Coded<RingPos>,
    /// Trusted copy of `Producer::base`.
    pub tx_base: Coded<RingPos>,
    /// Whose program fills room on the ring that is not published: nobody else writes there. 0 = nobody. See [`owner`].
    pub tx_reserved: AtomicU64,
    /// Which of such reservations of this connection it is.
    pub tx_reservation: AtomicU64,
    /// Bytes and messages sent through the ring.
    pub tx_bytes: AtomicU64,
    /// See `tx_bytes`.
    pub tx_msgs: AtomicU64,
    /// Where the ring began, [`StreamPos::NEVER`] if it did not.
    pub tx_up: Coded<StreamPos>,
    /// What is sent over the lifeline although it was published on the ring.
    pub tx_again: Coded<Again>,

    // --- more sending, and statistics
    /// When a sender found no room on the ring, monotonic nanoseconds, with the peer's head at `tx_full_at`; 0 = never.
    pub tx_full_since: AtomicU64,
    /// See `tx_full_since`.
    pub tx_full_at: Coded<RingPos>,
    /// Time stamp (cycles) of the last look at the lifeline by a sender.
    pub tx_checked: AtomicU64,
    /// `rx_head` at that time or at the last send: a peer whose bytes came since was alive since.
    pub tx_heard: Coded<RingPos>,
    /// Trusted copy of `Producer::there`.
    pub tx_there: AtomicU64,
    /// Farthest that our ring was filled from its home since its memory was last given back, bytes.
    pub tx_extent: AtomicU64,
    /// When that was (cycles).
    pub tx_trimmed: AtomicU64,
    /// Doorbells rung for this connection.
    pub bells: AtomicU64,
    /// Waits that ended while spinning.
    pub spins_won: AtomicU64,
    /// Waits that had to sleep after spinning.
    pub spins_lost: AtomicU64,
}

impl Endpoint {
    /// A connection begins in this record. The caller knows the rest of the first group, and sets `state` last.
    pub fn begin(&self) {
        for w in [
            &self.reason,
            &self.ops,
            &self.rx_word,
            &self.tx_word,
            &self.rcvlowat,
            &self.latched,
            &self.cork,
            &self.kept,
            &self.peer_pid,
            &self.never_waits,
            &self.inq,
            &self.custody,
            &self.timed,
            &self.ended,
            &self.ports,
            &self.sent,
            &self.heard,
        ] {
            w.store(0, Relaxed);
        }
        self.cookie.store(0, Relaxed);
    }

    /// The same for what it needs once it is attached. Its tokens are those of the record's last connection: who held them
    /// gave them back, or has died.
    pub fn begin_attached(&self) {
        for w in [
            &self.slot,
            &self.tx_blocked,
            &self.urgent,
            &self.renewed,
            &self.disconnects,
            &self.stands_in,
            &self.rx_fin,
            &self.rd_shut,
            &self.handed,
            &self.wr_shut,
            &self.tx_taken,
        ] {
            w.store(0, Relaxed);
        }
        for w in [
            &self.channel,
            &self.rx_leaving,
            self.rx_head.word(),
            self.rx_shown.word(),
            self.rx_skip.word(),
            self.rx_at.word(),
            self.rx_down_at.word(),
            self.rx_cut.word(),
            &self.rx_viewed,
            &self.rx_view,
            &self.rx_bytes,
            &self.rx_msgs,
            self.tx_tail.word(),
            self.tx_head.word(),
            self.tx_base.word(),
            self.tx_again.word(),
            &self.tx_reserved,
            &self.tx_reservation,
            &self.tx_bytes,
            &self.tx_msgs,
            &self.tx_full_since,
            self.tx_full_at.word(),
            &self.tx_checked,
            self.tx_heard.word(),
            &self.tx_there,
            &self.tx_extent,
            &self.tx_trimmed,
            &self.bells,
            &self.spins_won,
            &self.spins_lost,
        ] {
            w.store(0, Relaxed);
        }
        self.rx_phase.set(RxPhase::Native);
        self.tx_phase.set(TxPhase::Native);
        self.rx_up.store(StreamPos::NEVER, Relaxed);
        self.tx_up.store(StreamPos::NEVER, Relaxed);
    }
}

// loom's atomics are larger; nothing is mapped there.
#[cfg(not(loom))]
const _: () = assert!(size_of::<Endpoint>().is_multiple_of(64) && ENDPOINTS_AT.is_multiple_of(64));
#[cfg(not(loom))]
const _: () = assert!(size_of::<FamilyHeader>() <= ENDPOINTS_AT);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_place_goes_from_hand_to_hand() {
        let free = Member(0);
        assert!(free.is_free() && free.pid().is_none() && free.reaper().is_none());
        let child = free.being_forked();
        assert!(child.is_being_forked() && !child.is_free() && child.pid().is_none() && child.reaper().is_none());
        let born = free.being_born();
        assert!(born.is_being_forked() && born.is_being_born() && !child.is_being_born() && born.reaper().is_none());
        let taken = born.taken(4711);
        assert_eq!((taken.pid(), taken.is_being_forked(), taken.reaper()), (Some(4711), false, None));
        let reaped = taken.reaped(255, 0xabcdef);
        assert_eq!((reaped.reaper(), reaped.pid(), reaped.is_being_forked()), (Some((255, 0x4def)), None, false));
        let next = reaped.freed();
        assert!(next.is_free() && next.generation() == 1 && next.0 != free.0);
    }

    #[test]
    fn a_lock_that_moves_proves_nothing_and_leaves_a_trace() {
        let m = Member(0).taken(1);
        let moving = m.lock_moved();
        assert!(moving.is_unproved() && !m.is_unproved() && moving.pid() == Some(1));
        let moved = moving.lock_moved();
        assert!(!moved.is_unproved() && moved != m && moved.generation() == m.generation());
    }

    #[test]
    fn generations_wrap_within_their_bits() {
        let last = Member(((1 << owner::GENERATION_BITS) - 1) << 32).taken(7);
        assert_eq!((last.freed().generation(), last.freed().is_free()), (0, true));
    }
}
