//! n-tuple filters of a card, by the ioctls of linux/ethtool.h: the tool of that name succeeds also where the card has refused, and prints what is to be read by people.
// Unsafe here: ioctl(2) is given memory of this module by address.
#![allow(unsafe_code)]

use crate::filter::{Filter, Ntuple};
use nix::libc;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

const SIOCETHTOOL: u64 = 0x8946;
const GSTRINGS: u32 = 0x1b;
const GFLAGS: u32 = 0x25;
const SFLAGS: u32 = 0x26;
const GRXCLSRLCNT: u32 = 0x2e;
const GRXCLSRULE: u32 = 0x2f;
const GRXCLSRLALL: u32 = 0x30;
const SRXCLSRLDEL: u32 = 0x31;
const SRXCLSRLINS: u32 = 0x32;
const GSSET_INFO: u32 = 0x37;
const GFEATURES: u32 = 0x3a;

/// `ETH_FLAG_NTUPLE`.
const FLAG: u32 = 1 << 27;
/// `ETH_SS_FEATURES`, each with a name of so many bytes.
const FEATURES: u32 = 4;
const NAME: usize = 32;

/// `struct ethtool_rxnfc`, with the numbers of filters behind it.
const RXNFC: usize = 192;
/// In it: how much, or where the room ends; the filter; how many numbers there are; the numbers.
const DATA: usize = 8;
const SPEC: usize = 16;
const COUNT: usize = 184;
const PLACES: usize = 188;
/// In a filter (`struct ethtool_rx_flow_spec`): the headers, the masks, where to, the place.
const MASK: usize = 4 + Filter::HEADERS;
const RING: usize = 152;
const PLACE: usize = 160;

/// Commands to one interface.
pub(crate) struct Ethtool {
    /// Any socket does; this one needs no address.
    socket: UnixDatagram,
    name: [libc::c_char; libc::IFNAMSIZ],
}

impl Ethtool {
    /// In the calling thread's network namespace.
    pub(crate) fn of(interface: &str) -> io::Result<Ethtool> {
        let mut name = [0; libc::IFNAMSIZ];
        if interface.len() >= name.len() {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        for (to, byte) in name.iter_mut().zip(interface.bytes()) {
            *to = byte as libc::c_char;
        }
        Ok(Ethtool { socket: UnixDatagram::unbound()?, name })
    }

    /// Does what the first word says, in memory that the command reads and writes.
    fn ask(&self, command: &mut [u64]) -> io::Result<()> {
        let data = libc::__c_anonymous_ifr_ifru { ifru_data: command.as_mut_ptr().cast() };
        let mut request = libc::ifreq { ifr_name: self.name, ifr_ifru: data };
        // SAFETY: SIOCETHTOOL reads one ifreq of this frame. The command reads and writes the memory that it names, which is borrowed here and has
        // room for all that the command may write: each caller makes it so large (`room`), and says in it how much there is.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Whether there are n-tuple filters, and whether that can be changed.
    pub(crate) fn ntuple(&self) -> io::Result<Ntuple> {
        let on = self.flags()? & FLAG != 0;
        Ok(match (on, self.can_change()?) {
            (true, true) => Ntuple::On,
            (true, false) => Ntuple::AlwaysOn,
            (false, true) => Ntuple::Off,
            (false, false) => Ntuple::None,
        })
    }

    /// Switches them.
    pub(crate) fn set_ntuple(&self, on: bool) -> io::Result<()> {
        let flags = if on { self.flags()? | FLAG } else { self.flags()? & !FLAG };
        let mut command = Room::new(SFLAGS, 8);
        command.put(4, &flags.to_ne_bytes());
        self.ask(&mut command.0)
    }

    fn flags(&self) -> io::Result<u32> {
        let mut command = Room::new(GFLAGS, 8);
        self.ask(&mut command.0)?;
        Ok(command.number(4))
    }

    /// Whether the feature's bit can be changed: it is available, and not fixed.
    fn can_change(&self) -> io::Result<bool> {
        // `ethtool_sset_info`: the number of names in one set.
        let mut command = Room::new(GSSET_INFO, 24);
        command.put(8, &(1_u64 << FEATURES).to_ne_bytes());
        self.ask(&mut command.0)?;
        let count = if command.number(8) == 0 { 0 } else { command.number(16) as usize };
        // `ethtool_gstrings`: the kernel writes as many names as it has told.
        let mut names = Room::new(GSTRINGS, 12 + count * NAME);
        names.put(4, &FEATURES.to_ne_bytes());
        names.put(8, &(count as u32).to_ne_bytes());
        self.ask(&mut names.0)?;
        let bytes = names.bytes();
        let is =
            |at: &usize| bytes[12 + at * NAME..][..NAME].split(|b| *b == 0).next() == Some(&b"rx-ntuple-filter"[..]);
        let Some(at) = (0..count).find(is) else { return Ok(false) };
        // `ethtool_gfeatures`: blocks of 32 features, each of four words: available, requested, active, never changed.
        let blocks = count.div_ceil(32);
        let mut features = Room::new(GFEATURES, 8 + blocks * 16);
        features.put(4, &(blocks as u32).to_ne_bytes());
        self.ask(&mut features.0)?;
        let word = |which: usize| features.number(8 + at / 32 * 16 + which * 4) >> (at % 32) & 1 == 1;
        Ok(word(0) && !word(3))
    }

    /// The filters by their places.
    pub(crate) fn filters(&self) -> io::Result<BTreeMap<u32, Filter>> {
        let mut command = Room::new(GRXCLSRLCNT, RXNFC);
        match self.ask(&mut command.0) {
            // A driver that knows of none.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => return Ok(BTreeMap::new()),
            asked => asked?,
        }
        let count = command.number(COUNT);
        let mut all = Room::new(GRXCLSRLALL, RXNFC + count as usize * 4);
        all.put(COUNT, &count.to_ne_bytes());
        self.ask(&mut all.0)?;
        let mut filters = BTreeMap::new();
        for at in 0..all.number(COUNT).min(count) as usize {
            let place = all.number(PLACES + at * 4);
            let mut one = Room::new(GRXCLSRULE, RXNFC);
            one.put(SPEC + PLACE, &place.to_ne_bytes());
            match self.ask(&mut one.0) {
                Ok(()) => filters.insert(place, one.filter()),
                // It went meanwhile.
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => continue,
                Err(e) => return Err(e),
            };
        }
        Ok(filters)
    }

    /// Enters a filter at a place, or takes away the one there.
    pub(crate) fn set_filter(&self, place: u32, filter: Option<&Filter>) -> io::Result<()> {
        let mut command = Room::new(if filter.is_some() { SRXCLSRLINS } else { SRXCLSRLDEL }, RXNFC);
        if let Some(filter) = filter {
            command.put(SPEC, &filter.kind.to_ne_bytes());
            command.put(SPEC + 4, &filter.value);
            command.put(SPEC + MASK, &filter.mask);
            command.put(SPEC + RING, &filter.to.to_ne_bytes());
        }
        command.put(SPEC + PLACE, &place.to_ne_bytes());
        self.ask(&mut command.0)
    }
}

/// Memory for a command, zeros behind its number, aligned as its structs are.
struct Room(Vec<u64>);

impl Room {
    fn new(command: u32, bytes: usize) -> Room {
        let mut room = Room(vec![0; bytes.div_ceil(8)]);
        room.put(0, &command.to_ne_bytes());
        room
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            let mut word = self.0[at / 8].to_ne_bytes();
            word[at % 8] = *byte;
            self.0[at / 8] = u64::from_ne_bytes(word);
        }
    }

    fn number(&self, at: usize) -> u32 {
        let word = self.0[at / 8].to_ne_bytes();
        let at = at % 8;
        u32::from_ne_bytes([word[at], word[at + 1], word[at + 2], word[at + 3]])
    }

    fn filter(&self) -> Filter {
        let bytes = self.bytes();
        let mut filter =
            Filter { kind: self.number(SPEC), value: [0; Filter::HEADERS], mask: [0; Filter::HEADERS], to: 0 };
        filter.value.copy_from_slice(&bytes[SPEC + 4..][..Filter::HEADERS]);
        filter.mask.copy_from_slice(&bytes[SPEC + MASK..][..Filter::HEADERS]);
        filter.to = self.0[(SPEC + RING) / 8];
        filter
    }
}

const _: () =
    assert!(DATA + 8 == SPEC && MASK + Filter::HEADERS <= RING && PLACE + 8 + SPEC == COUNT && COUNT + 4 == PLACES);
