//! How the other end of a net_memif wakes us: it writes to an eventfd behind each burst, if our ring of what arrives does not ask it not
//! to. The driver asks it at the beginning, and has no call by which that could be taken back: it is a driver that polls. But the ring is
//! shared memory, laid out as memif's protocol has it (drivers/net/memif/memif.h), and the eventfd is a descriptor of this process.
//!
//! Which eventfd it is only the driver knows. So all of this process are watched, for edges: nobody but the driver reads them, and an edge that was
//! another one's costs a look for packets.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicU16, AtomicU32, fence};
use std::time::{Duration, Instant};

/// What a ring begins with.
const COOKIE: u32 = 0x03e3_1f20;
/// The bit of a ring's flags by which its reader asks not to be woken.
const MASKED: u16 = 1;
/// Where the flags are in a ring, and where its descriptors begin, of which each has so many bytes.
const FLAGS: usize = 4;
const DESCRIPTORS: usize = 128;
const DESCRIPTOR: usize = 16;
/// The largest ring, as a power of two.
const RING_MOST: u32 = 14;
/// How long after a try to find the ring, which has failed, the next one comes.
const AGAIN: Duration = Duration::from_secs(1);
/// Eventfds that are watched at most.
const WATCHED: usize = 64;

/// A set in which eventfds are watched.
pub(crate) fn set() -> io::Result<OwnedFd> {
    // SAFETY: epoll_create1(2) touches no memory of ours.
    let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Forgets the edges that were seen.
pub(crate) fn drain(set: BorrowedFd<'_>) {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; WATCHED];
    // SAFETY: the kernel writes at most so many events to memory of this frame.
    unsafe { libc::epoll_wait(set.as_raw_fd(), events.as_mut_ptr(), WATCHED as i32, 0) };
}

fn watch(set: BorrowedFd<'_>, fd: RawFd) {
    let mut event = libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLET) as u32, u64: 0 };
    // One that is there already stays.
    // SAFETY: the kernel reads one event of this frame; a number that is no descriptor is an error.
    unsafe { libc::epoll_ctl(set.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) };
}

/// The inode and the size of a descriptor's file.
fn stat(fd: RawFd) -> Option<(u64, usize)> {
    // SAFETY: all zeroes are a valid stat.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one stat, of this frame; a number that is no descriptor is an error.
    (unsafe { libc::fstat(fd, &raw mut stat) } == 0).then_some((stat.st_ino, stat.st_size as usize))
}

/// The memory of a connection's rings, mapped once more.
struct Memory {
    start: *mut u8,
    len: usize,
    /// The driver's descriptor for it, and its inode: as long as that is there, so is the connection.
    fd: RawFd,
    inode: u64,
    /// Where the flags of our ring are.
    flags: usize,
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping that `Memory::of` made; no reference into it outlives `self`.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

impl Memory {
    /// Maps it, if it is what it should be: two rings, one for each direction, ours masked. `connects`: we are the end that connected, and our
    /// ring is the second.
    fn of(fd: RawFd, connects: bool) -> Option<Memory> {
        // SAFETY: fcntl(2) touches no memory of ours.
        let seals = unsafe { libc::fcntl(fd, libc::F_GET_SEALS) };
        let (inode, len) = stat(fd).filter(|(_, len)| *len > 2 * DESCRIPTORS)?;
        if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
            return None;
        }
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd, 0)
        };
        if start == libc::MAP_FAILED {
            return None;
        }
        let mut memory = Memory { start: start.cast(), len, fd, inode, flags: FLAGS };
        let mut second =
            (0..=RING_MOST).map(|size| DESCRIPTORS + (DESCRIPTOR << size)).filter(|at| at + DESCRIPTORS <= len);
        let second = second.find(|at| memory.is_ring(*at)).filter(|_| memory.is_ring(0))?;
        if connects {
            memory.flags += second;
        }
        (memory.flags().load(SeqCst) == MASKED).then_some(memory)
    }

    fn is_ring(&self, at: usize) -> bool {
        // SAFETY: four bytes inside the mapping (the caller), on a boundary of four; the file cannot become shorter. Others may write there:
        // they are read as an atomic.
        let cookie = unsafe { AtomicU32::from_ptr(self.start.add(at).cast()) };
        cookie.load(SeqCst) == COOKIE
    }

    fn flags(&self) -> &AtomicU16 {
        // SAFETY: as above, two bytes.
        unsafe { AtomicU16::from_ptr(self.start.add(self.flags).cast()) }
    }
}

/// Whether the other end wakes us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Armed {
    /// It does not: the ring was not found.
    Not,
    /// From now on. A burst that it is just sending may have come without: it looks at the flag right behind the ring's end, and a processor
    /// may do the one before the other.
    Now,
    /// As before.
    Before,
}

/// The ring of what arrives, and who rings for it.
pub(crate) struct Bells {
    connects: bool,
    memory: Option<Memory>,
    armed: bool,
    tried: Option<Instant>,
}

impl Bells {
    /// Of a device with one queue, the only net_memif of this process. `connects`: it is the end that connects.
    pub fn new(connects: bool) -> Bells {
        Bells { connects, memory: None, armed: false, tried: None }
    }

    /// Has the other end wake whoever sleeps on `set`. Packets are to be looked for afterwards.
    pub fn arm(&mut self, set: BorrowedFd<'_>) -> Armed {
        if self.memory.as_ref().is_some_and(|m| stat(m.fd).is_none_or(|(inode, _)| inode != m.inode)) {
            // The other end has come anew.
            self.leave();
        }
        if self.memory.is_none() {
            self.find(set);
        }
        let Some(memory) = &self.memory else { return Armed::Not };
        if self.armed {
            return Armed::Before;
        }
        memory.flags().store(0, SeqCst);
        // Before the look for packets.
        fence(SeqCst);
        self.armed = true;
        Armed::Now
    }

    /// It need not wake us.
    pub fn disarm(&mut self) {
        if let Some(memory) = self.memory.as_ref().filter(|_| self.armed) {
            memory.flags().store(MASKED, SeqCst);
        }
        self.armed = false;
    }

    /// Whether it wakes us.
    #[inline]
    pub fn is_armed(&self) -> bool {
        self.armed
    }

    /// The other end is not there.
    pub fn leave(&mut self) {
        (self.memory, self.armed, self.tried) = (None, false, None);
    }

    #[cold]
    fn find(&mut self, set: BorrowedFd<'_>) {
        if self.tried.is_some_and(|tried| tried.elapsed() < AGAIN) {
            return;
        }
        self.tried = Some(Instant::now());
        let (mut memories, mut bells) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
            let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
            let link = std::fs::read_link(entry.path()).unwrap_or_default();
            match link.to_str() {
                Some("anon_inode:[eventfd]") => bells.push(fd),
                Some(link) if link.starts_with("/memfd:memif_region_0") => memories.push(fd),
                _ => {}
            }
        }
        // With another device's beside it nobody could tell them apart.
        if let [memory] = memories[..]
            && (1..=WATCHED).contains(&bells.len())
        {
            self.memory = Memory::of(memory, self.connects);
            bells.into_iter().for_each(|fd| watch(set, fd));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// Memory as a driver makes it: two rings of 2^size descriptors.
    fn memory(size: u32) -> OwnedFd {
        // SAFETY: the name is a string of C.
        let fd = unsafe { libc::memfd_create(c"memif_region_0".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        assert!(fd >= 0);
        // SAFETY: the kernel has just given us this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let file = std::fs::File::from(fd);
        let ring = DESCRIPTORS + (DESCRIPTOR << size);
        file.set_len(2 * ring as u64 + 4096).unwrap();
        for at in [0, ring] {
            use std::os::unix::fs::FileExt;
            file.write_all_at(&COOKIE.to_ne_bytes(), at as u64).unwrap();
            file.write_all_at(&MASKED.to_ne_bytes(), (at + FLAGS) as u64).unwrap();
        }
        // SAFETY: fcntl(2) touches no memory of ours.
        assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) }, 0);
        file.into()
    }

    fn flags(memory: &OwnedFd, at: usize) -> u16 {
        let mut bytes = [0; 2];
        // SAFETY: two bytes of this frame.
        assert_eq!(unsafe { libc::pread(memory.as_raw_fd(), bytes.as_mut_ptr().cast(), 2, (at + FLAGS) as i64) }, 2);
        u16::from_ne_bytes(bytes)
    }

    fn is_ready(set: &OwnedFd) -> bool {
        let mut entry = libc::pollfd { fd: set.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry of this frame.
        unsafe { libc::poll(&raw mut entry, 1, 0) == 1 }
    }

    #[test]
    fn the_ring_of_what_arrives_says_whether_we_sleep() {
        let bell = super::super::calls::bell().unwrap();
        for (connects, size) in [(false, 10), (true, 10), (true, 5)] {
            let (memory, set) = (memory(size), set().unwrap());
            let ring = DESCRIPTORS + (DESCRIPTOR << size);
            let mut bells = Bells::new(connects);
            let both = |memory: &OwnedFd| (flags(memory, 0), flags(memory, ring));
            assert_eq!(bells.arm(set.as_fd()), Armed::Now);
            assert_eq!(both(&memory), if connects { (MASKED, 0) } else { (0, MASKED) });
            assert_eq!((bells.arm(set.as_fd()), bells.is_armed()), (Armed::Before, true));
            // Each time that the other end rings, whether somebody has read what it has counted or not.
            drain(set.as_fd());
            for _ in 0..2 {
                assert!(!is_ready(&set));
                super::super::calls::ring(bell.as_fd());
                assert!(is_ready(&set));
                drain(set.as_fd());
            }
            bells.disarm();
            assert_eq!((both(&memory), bells.is_armed()), ((MASKED, MASKED), false));
            // It comes anew.
            drop(memory);
            let next = self::memory(size);
            assert_eq!(bells.arm(set.as_fd()), Armed::Now);
            assert_eq!(both(&next), if connects { (MASKED, 0) } else { (0, MASKED) });
        }
        // What is no ring is left alone.
        let other = memory(3);
        let file = std::fs::File::from(other);
        std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4], 0).unwrap();
        assert_eq!(Bells::new(false).arm(set().unwrap().as_fd()), Armed::Not);
    }
}
