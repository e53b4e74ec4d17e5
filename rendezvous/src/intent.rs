//! What a process says of a socket of its own that has no other end yet, or whose other end could not be believed otherwise.
//! And what who stands in for another host says of a program's socket: how its connection has ended on the wire.
//! Kept in the user's [`registry`](crate::registry) file, behind its entries, by the socket's cookie: five tables, one for each
//! [`Kind`].
//!
//! ```text
//! bucket = hash of the cookie % buckets, some entries of 16 bytes each
//! entry:  0 cookie  8 kind  9 value  10 version  12 checksum; of a timeout: 8 kind  9 value of three bytes
//! ```
//! As of the registry's entries nobody believes more of one than that this user has said so. One that was lost costs an
//! acceleration; one of an end or a timeout costs what it says: the program is told of a reset, or its connection lasts as long as TCP
//! tries. Where a bucket is full the lowest cookie goes: that is the socket that was made first, and may be one that is still used.
//!
//! Cookies are counted from 1 when the kernel begins, and a file may outlast that: the checksum is made with the kernel's boot id, so that
//! nothing is believed of a socket which was said of one before.

use crate::os;
use crate::tuple::mix;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

/// What is said of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It is about to connect to another host, and its process may come to shared memory with whoever stands in for that host.
    /// For the moments until the SYN has been looked at.
    Connect,
    /// It listens, and what it accepts may come to shared memory with whoever stands in for its clients.
    Listen,
    /// It stands in for another host: its own address is none of this network namespace, and yet it is the other end of the
    /// connection whose addresses say so. Said by the process that serves the namespace ([`serving`](crate::serving)), and by
    /// nobody else.
    StandIn,
    /// It is a program's, whose connection to another host has ended in this way on the wire. Said by the process that serves the namespace
    /// before it resets the socket, since a RST says nothing else than that there was one.
    Ended(End),
    /// Its connection ends if what it sends stays unacknowledged for so long (TCP_USER_TIMEOUT, tcp(7)): that is for the remote host's
    /// acknowledgements to judge, of which the program's kernel hears nothing where somebody stands in for it.
    Timed(Timeout),
}

/// Milliseconds, up to 4.6 hours: what is longer counts as that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeout(u32);

impl Timeout {
    /// None any more: that is said, since who finds nothing said may have come too late.
    pub const NONE: Timeout = Timeout(0);

    /// 0 milliseconds stand for [`Timeout::NONE`].
    pub fn new(milliseconds: u32) -> Timeout {
        Timeout(milliseconds.min((1 << 24) - 1))
    }

    /// The time; 0: none.
    pub fn milliseconds(self) -> u32 {
        self.0
    }
}

/// How the kernel ends a connection of its own whose other host sends no RST.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End(u16);

impl End {
    /// The errors with which `tcp_write_err` ends a connection: that nobody answers, or what ICMP has said of the way there since
    /// (icmp(7), `icmp_err_convert`; `icmpv6_err_convert`).
    const ALL: [i32; 10] = [
        libc::ETIMEDOUT,
        libc::EHOSTUNREACH,
        libc::ENETUNREACH,
        libc::ECONNREFUSED,
        libc::EHOSTDOWN,
        libc::ENONET,
        libc::ENOPROTOOPT,
        libc::EOPNOTSUPP,
        libc::EPROTO,
        libc::EACCES,
    ];

    /// `None`: the kernel ends no connection with this error.
    pub fn new(errno: i32) -> Option<End> {
        End::ALL.contains(&errno).then_some(End(errno as u16))
    }

    /// The error.
    pub fn errno(self) -> i32 {
        self.0.into()
    }
}

/// The format of an entry.
const VERSION: u16 = 1;

pub(crate) const ENTRY: usize = 16;
/// Most entries of a bucket.
const WAYS: usize = 8;

struct Table {
    /// Where it begins.
    at: u64,
    buckets: u64,
    ways: usize,
}

impl Table {
    const fn end(&self) -> u64 {
        self.at + self.buckets * (self.ways * ENTRY) as u64
    }
}

/// Where the tables begin.
pub(crate) const AT: u64 = 1 << 20;
/// 16,384 connections on their way.
const CONNECT: Table = Table { at: AT, buckets: 4096, ways: 4 };
/// 32,768 listeners, of which most are those of processes that have been killed: an entry is withdrawn when its socket is closed.
const LISTEN: Table = Table { at: CONNECT.end(), buckets: 4096, ways: 8 };
/// 65,536 connections that have not come to shared memory yet.
const STAND_IN: Table = Table { at: LISTEN.end(), buckets: 16384, ways: 4 };
/// 16,384 connections that have ended otherwise than by a RST. Where a bucket is full the one whose socket was made first is forgotten, also if
/// it has ended last, and its program is told of a reset.
const ENDED: Table = Table { at: STAND_IN.end(), buckets: 4096, ways: 4 };
/// 32,768 connections of whose acknowledgements their programs have said how late they may come: also of those that are over.
const TIMED: Table = Table { at: ENDED.end(), buckets: 8192, ways: 4 };
/// Where the tables end.
pub(crate) const END: u64 = TIMED.end();

impl Kind {
    fn table(self) -> &'static Table {
        match self {
            Kind::Connect => &CONNECT,
            Kind::Listen => &LISTEN,
            Kind::StandIn => &STAND_IN,
            Kind::Ended(_) => &ENDED,
            Kind::Timed(_) => &TIMED,
        }
    }

    /// What stands in an entry beside the cookie.
    fn said(self) -> u32 {
        let versioned = |kind: u32, value: u16| kind | u32::from(value) << 8 | u32::from(VERSION) << 16;
        match self {
            Kind::Connect => versioned(1, 0),
            Kind::Listen => versioned(2, 0),
            Kind::StandIn => versioned(3, 0),
            Kind::Ended(End(errno)) => versioned(4, errno),
            Kind::Timed(Timeout(milliseconds)) => 5 | milliseconds << 8,
        }
    }

    fn of(said: u32) -> Option<Kind> {
        let value = said >> 8;
        if said as u8 == 5 {
            return Some(Kind::Timed(Timeout(value)));
        }
        match (said as u8, value as u8, said >> 16 == u32::from(VERSION)) {
            (1, 0, true) => Some(Kind::Connect),
            (2, 0, true) => Some(Kind::Listen),
            (3, 0, true) => Some(Kind::StandIn),
            (4, errno, true) => End::new(errno.into()).map(Kind::Ended),
            _ => None,
        }
    }
}

/// A bucket as it was read.
struct Bucket {
    entries: [[u8; ENTRY]; WAYS],
    ways: usize,
    at: u64,
}

impl Bucket {
    /// One read; what lies beyond the end of the file reads as empty.
    fn read(fd: i32, cookie: u64, table: &Table) -> Result<Bucket, i32> {
        let at = table.at + mix(cookie) % table.buckets * (table.ways * ENTRY) as u64;
        let mut b = Bucket { entries: [[0; ENTRY]; WAYS], ways: table.ways, at };
        os::pread(fd, b.entries[..table.ways].as_flattened_mut(), at)?;
        Ok(b)
    }

    /// What stands at each place, if it belongs to this table.
    fn places(&self) -> impl Iterator<Item = Option<(u64, Kind)>> {
        let table = |kind: Kind| kind.table().at..kind.table().end();
        self.entries[..self.ways].iter().map(move |e| decode(e).filter(|(_, kind)| table(*kind).contains(&self.at)))
    }

    /// The places where something is said of this socket, and what.
    fn said(&self, cookie: u64) -> impl Iterator<Item = (usize, Kind)> {
        self.places().enumerate().filter_map(move |(way, place)| {
            place.filter(|(of, _)| *of == cookie && cookie != 0).map(|(_, kind)| (way, kind))
        })
    }

    /// Where an entry for this cookie goes: to an empty place, or that of the lowest. Of empty ones each cookie prefers another: whoever
    /// publishes at the same time has read the same bucket, and the last one to write to a place is the only one who is in it.
    fn way(&self, cookie: u64) -> usize {
        let preferred = (mix(cookie) >> 32) as usize % self.ways;
        let order = |way: usize| (way + self.ways - preferred) % self.ways;
        let cookies = self.places().map(|place| place.map_or(0, |(cookie, _)| cookie));
        cookies.enumerate().min_by_key(|(way, c)| (*c, order(*way))).map_or(0, |(way, _)| way)
    }

    fn write(&self, fd: i32, way: usize, entry: &[u8; ENTRY]) -> Result<(), i32> {
        match os::pwrite(fd, entry, self.at + (way * ENTRY) as u64)? {
            ENTRY => Ok(()),
            _ => Err(libc::ENOSPC),
        }
    }
}

/// Stands for the time since the kernel began: its boot id (random(4)), read once. Without /proc all times are the same.
fn boot() -> u64 {
    /// 0: not read yet. Whoever reads it reads the same.
    static KNOWN: AtomicU64 = AtomicU64::new(0);
    let known = KNOWN.load(Relaxed);
    if known != 0 {
        return known;
    }
    let mut id = [0; 40];
    os::read_file(c"/proc/sys/kernel/random/boot_id", &mut id);
    let boot = (0..id.len() / 8).map(|i| os::u64_at(&id, 8 * i)).fold(0, |sum, word| mix(sum ^ word)).max(1);
    KNOWN.store(boot, Relaxed);
    boot
}

/// To be called when a process begins, while it has /proc.
pub(crate) fn prepare() {
    boot();
}

fn checksum(boot: u64, cookie: u64, said: u32) -> u32 {
    mix(mix(boot ^ cookie ^ 0x696e_7465_6e74) ^ u64::from(said)) as u32
}

pub(crate) fn encode(cookie: u64, kind: Kind) -> [u8; ENTRY] {
    encode_since(boot(), cookie, kind.said())
}

fn encode_since(boot: u64, cookie: u64, said: u32) -> [u8; ENTRY] {
    let mut b = [0; ENTRY];
    os::put(&mut b, 0, &cookie.to_ne_bytes());
    os::put(&mut b, 8, &said.to_ne_bytes());
    os::put(&mut b, 12, &checksum(boot, cookie, said).to_ne_bytes());
    b
}

/// The entry in `b`; `None` if it is empty, torn, garbage, of another version, or from before the kernel began.
pub(crate) fn decode(b: &[u8; ENTRY]) -> Option<(u64, Kind)> {
    let (cookie, said) = (os::u64_at(b, 0), os::u32_at(b, 8));
    if cookie == 0 || os::u32_at(b, 12) != checksum(boot(), cookie, said) {
        return None;
    }
    Kind::of(said).map(|kind| (cookie, kind))
}

/// Two system calls, one if it is there already. What the same table says of this socket otherwise is said no more.
pub(crate) fn publish(fd: i32, cookie: u64, kind: Kind) -> Result<(), i32> {
    let bucket = Bucket::read(fd, cookie, kind.table())?;
    let way = match bucket.said(cookie).next() {
        Some((_, said)) if said == kind => return Ok(()),
        Some((way, _)) => way,
        None => bucket.way(cookie),
    };
    bucket.write(fd, way, &encode(cookie, kind))
}

/// What the table of this kind says of this socket is said no more.
pub(crate) fn withdraw(fd: i32, cookie: u64, kind: Kind) -> Result<(), i32> {
    let bucket = Bucket::read(fd, cookie, kind.table())?;
    bucket.said(cookie).try_for_each(|(way, _)| bucket.write(fd, way, &[0; ENTRY]))
}

pub(crate) fn has(fd: i32, cookie: u64, kind: Kind) -> Result<bool, i32> {
    Ok(Bucket::read(fd, cookie, kind.table())?.said(cookie).any(|(_, said)| said == kind))
}

/// How the connection of the socket with this cookie has ended, if that is said.
pub(crate) fn end(fd: i32, cookie: u64) -> Result<Option<End>, i32> {
    Ok(Bucket::read(fd, cookie, &ENDED)?.said(cookie).find_map(|(_, kind)| match kind {
        Kind::Ended(end) => Some(end),
        _ => None,
    }))
}

/// How long what the socket with this cookie sends may stay unacknowledged, if that is said.
pub(crate) fn timeout(fd: i32, cookie: u64) -> Result<Option<Timeout>, i32> {
    Ok(Bucket::read(fd, cookie, &TIMED)?.said(cookie).find_map(|(_, kind)| match kind {
        Kind::Timed(timeout) => Some(timeout),
        _ => None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;

    const TIMED_OUT: Kind = Kind::Ended(End(libc::ETIMEDOUT as u16));
    const ALL: [Kind; 5] = [Kind::Connect, Kind::Listen, Kind::StandIn, TIMED_OUT, Kind::Timed(Timeout(0xff_ffff))];

    fn file() -> std::fs::File {
        // SAFETY: a NUL-terminated name; the descriptor is nobody else's.
        let fd = unsafe { libc::memfd_create(c"intents".as_ptr(), libc::MFD_CLOEXEC) };
        let file = std::fs::File::from(crate::testing::own(fd));
        file.set_len(END).unwrap();
        file
    }

    /// `n` cookies that share a bucket of `kind`, in rising order.
    fn crowded(kind: Kind, n: usize) -> Vec<u64> {
        let bucket = |c: u64| mix(c) % kind.table().buckets;
        (1..10_000_000).filter(|c| bucket(*c) == bucket(1)).take(n).collect()
    }

    #[test]
    fn what_was_said_is_known_until_it_is_withdrawn_and_of_this_kind_alone() {
        let file = file();
        let fd = file.as_raw_fd();
        for kind in ALL {
            assert_eq!(has(fd, 7, kind), Ok(false));
            publish(fd, 7, kind).unwrap();
            publish(fd, 7, kind).unwrap();
            assert_eq!(has(fd, 7, kind), Ok(true));
            assert_eq!(has(fd, 8, kind), Ok(false));
            assert_eq!(has(fd, 0, kind), Ok(false));
            assert_eq!(ALL.map(|other| has(fd, 7, other).unwrap()), ALL.map(|other| other == kind));
            withdraw(fd, 8, kind).unwrap();
            assert_eq!(has(fd, 7, kind), Ok(true));
            withdraw(fd, 7, kind).unwrap();
            assert_eq!(has(fd, 7, kind), Ok(false));
        }
    }

    /// Two that have read the same bucket before either wrote, as threads that connect at the same time do: mostly both are there
    /// afterwards.
    #[test]
    fn who_publishes_at_the_same_time_prefers_another_place() {
        for kind in ALL {
            let cookies = crowded(kind, 60);
            let both = cookies.chunks(2).filter(|pair| {
                let file = file();
                let fd = file.as_raw_fd();
                let read = pair.iter().map(|c| Bucket::read(fd, *c, kind.table()).unwrap()).collect::<Vec<_>>();
                for (bucket, c) in read.iter().zip(*pair) {
                    bucket.write(fd, bucket.way(*c), &encode(*c, kind)).unwrap();
                }
                pair.iter().all(|c| has(fd, *c, kind).unwrap())
            });
            assert!(both.count() > 15, "of 30 pairs");
        }
    }

    #[test]
    fn a_full_bucket_gives_way_in_turn() {
        for kind in ALL {
            let (file, ways) = (file(), kind.table().ways);
            let fd = file.as_raw_fd();
            let cookies = crowded(kind, ways + 2);
            for c in &cookies {
                publish(fd, *c, kind).unwrap();
                assert_eq!(has(fd, *c, kind), Ok(true), "the newest is always there");
            }
            let there: Vec<_> = cookies.iter().map(|c| has(fd, *c, kind).unwrap()).collect();
            assert_eq!(there, (0..ways + 2).map(|i| i >= 2).collect::<Vec<_>>());
        }
    }

    /// A listener is to outlast the connections that its user makes.
    #[test]
    fn a_listener_survives_a_hundred_thousand_connections_and_stand_ins() {
        let file = file();
        let fd = file.as_raw_fd();
        publish(fd, 1, Kind::Listen).unwrap();
        for c in 2..100_000 {
            publish(fd, c, Kind::Connect).unwrap();
            publish(fd, c, Kind::StandIn).unwrap();
        }
        assert_eq!(has(fd, 1, Kind::Listen), Ok(true));
        // And those on their way are there for a while: here the last thousand.
        assert!((99_000..100_000).all(|c| has(fd, c, Kind::Connect) == Ok(true)));
        // Half of what there is room for.
        let recent = (100_000 - 32_768..100_000).filter(|c| has(fd, *c, Kind::StandIn) == Ok(true)).count();
        assert!(recent > 32_768 * 9 / 10, "{recent}");
    }

    #[test]
    fn torn_entries_and_those_of_other_versions_are_empty() {
        let good = encode(0x0102_0304_0506_0708, Kind::Listen);
        assert_eq!(decode(&good), Some((0x0102_0304_0506_0708, Kind::Listen)));
        for bit in 0..ENTRY * 8 {
            let mut torn = good;
            torn[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&torn), None, "bit {bit}");
        }
        let newer = Kind::Listen.said() & 0xffff | 2 << 16;
        assert_eq!(decode(&encode_since(boot(), 9, newer)), None);
    }

    /// The file is on a disk, and the machine has been started anew: the same cookies are other sockets'.
    #[test]
    fn what_was_said_before_the_kernel_began_is_believed_of_no_socket() {
        assert!(std::path::Path::new("/proc/sys/kernel/random/boot_id").exists(), "otherwise all times are the same");
        for kind in ALL {
            let file = file();
            let fd = file.as_raw_fd();
            let old = encode_since(boot() ^ 1 << 40, 7, kind.said());
            let bucket = Bucket::read(fd, 7, kind.table()).unwrap();
            (0..bucket.ways).for_each(|way| bucket.write(fd, way, &old).unwrap());
            assert_eq!((has(fd, 7, kind), end(fd, 7), timeout(fd, 7)), (Ok(false), Ok(None), Ok(None)));
            publish(fd, 7, kind).unwrap();
            assert_eq!(has(fd, 7, kind), Ok(true));
        }
    }

    #[test]
    fn a_file_that_was_cut_short_has_none_and_takes_new_ones() {
        let file = file();
        let fd = file.as_raw_fd();
        for kind in ALL {
            publish(fd, 5, kind).unwrap();
        }
        file.set_len(0).unwrap();
        for kind in ALL {
            assert_eq!(has(fd, 5, kind), Ok(false));
            publish(fd, 5, kind).unwrap();
            assert_eq!(has(fd, 5, kind), Ok(true));
        }
        assert!(file.metadata().unwrap().len() <= END);
    }

    #[test]
    fn an_entry_of_another_table_says_nothing() {
        let file = file();
        let b = Bucket::read(file.as_raw_fd(), 5, &LISTEN).unwrap();
        file.write_all_at(&encode(5, Kind::StandIn), b.at).unwrap();
        assert_eq!(has(file.as_raw_fd(), 5, Kind::Listen), Ok(false));
    }

    #[test]
    fn an_end_is_one_that_the_kernel_would_show() {
        let file = file();
        let fd = file.as_raw_fd();
        assert_eq!(end(fd, 9), Ok(None));
        for errno in End::ALL {
            publish(fd, 9, Kind::Ended(End::new(errno).unwrap())).unwrap();
            assert_eq!(decode(&encode(9, Kind::Ended(End(errno as u16)))), Some((9, Kind::Ended(End(errno as u16)))));
        }
        // What is said last counts.
        assert_eq!(end(fd, 9), Ok(Some(End(libc::EACCES as u16))));
        assert_eq!(end(fd, 10), Ok(None));
        for errno in [0, libc::ECONNRESET, libc::EPIPE, libc::EAGAIN, libc::EINTR, 255, 256 + libc::ETIMEDOUT] {
            assert_eq!(End::new(errno), None);
        }
        assert_eq!(decode(&encode(9, Kind::Ended(End(libc::EINTR as u16)))), None);
        // At a place of another table it says nothing.
        let bucket = Bucket::read(fd, 11, &ENDED).unwrap();
        file.write_all_at(&encode(11, Kind::StandIn), bucket.at).unwrap();
        assert_eq!(end(fd, 11), Ok(None));
    }

    #[test]
    fn a_timeout_is_the_last_that_was_said() {
        let file = file();
        let fd = file.as_raw_fd();
        for (said, kept) in [(1, 1), (30_000, 30_000), (0xff_ffff, 0xff_ffff), (u32::MAX, 0xff_ffff), (5, 5), (0, 0)] {
            publish(fd, 9, Kind::Timed(Timeout::new(said))).unwrap();
            assert_eq!(timeout(fd, 9).unwrap().map(Timeout::milliseconds), Some(kept));
        }
        // None any more is something else than nothing said.
        assert_eq!((timeout(fd, 9), timeout(fd, 10)), (Ok(Some(Timeout::NONE)), Ok(None)));
        // Whatever its value.
        withdraw(fd, 9, Kind::Timed(Timeout(1))).unwrap();
        assert_eq!(timeout(fd, 9), Ok(None));
    }

    proptest! {
        #[test]
        fn random_bytes_are_no_entry(b: [u8; ENTRY]) {
            prop_assert_eq!(decode(&b), None);
        }

        #[test]
        fn entries_keep_every_field(cookie in 1u64.., which in 0usize..ALL.len()) {
            prop_assert_eq!(decode(&encode(cookie, ALL[which])), Some((cookie, ALL[which])));
        }
    }
}
