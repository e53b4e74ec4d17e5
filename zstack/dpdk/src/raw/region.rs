//! Memory of ours in which a pool's buffers lie: a memfd of a size that nobody can change, mapped.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use zstack_dpdk_sys as sys;

/// The mapping goes with it, and what DPDK was told of it.
#[derive(Debug)]
pub(crate) struct Region {
    start: NonNull<u8>,
    len: usize,
    file: OwnedFd,
    /// Bytes of a page of it.
    page: usize,
    huge: bool,
    /// DPDK was told of it.
    registered: bool,
}

// SAFETY: the mapping is used by address alone, and no thread is bound to it.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// At least `len` bytes, zeroed; of hugepages if they are wanted and there are enough.
    pub(crate) fn new(len: usize, huge: bool) -> io::Result<Region> {
        if huge && let Ok(region) = Region::of(len, true) {
            return Ok(region);
        }
        Region::of(len, false)
    }

    fn of(len: usize, huge: bool) -> io::Result<Region> {
        let check = |result: i32| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | if huge { libc::MFD_HUGETLB } else { 0 };
        // SAFETY: the name is a string of C.
        let fd = check(unsafe { libc::memfd_create(c"zstack-packets".as_ptr(), flags) })?;
        // SAFETY: the kernel has just given us this descriptor; nobody else has it.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all zeroes are a valid stat.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes to `stat`, which is of this frame.
        check(unsafe { libc::fstat(fd, &raw mut stat) })?;
        // A file of hugepages says here how large they are.
        let page = (stat.st_blksize as usize).max(4096);
        let len = len.max(1).next_multiple_of(page);
        // SAFETY: ftruncate(2) and fcntl(2) touch no memory of ours.
        check(unsafe { libc::ftruncate(fd, len as libc::off_t) })?;
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: as above.
        check(unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) })?;
        if huge {
            // Now, where a cgroup that may have no more of them is an error: later it would be a SIGBUS.
            // SAFETY: fallocate(2) touches no memory of ours.
            check(unsafe { libc::fallocate(fd, 0, 0, len as libc::off_t) })?;
        }
        // SAFETY: a mapping of the whole file at an address of the kernel's choice. Hugepages are there by now; pages of another size are taken as
        // they are written.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd, 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("the kernel maps nothing at 0");
        Ok(Region { start, len, file, page, huge, registered: false })
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_huge(&self) -> bool {
        self.huge
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Whether these bytes lie in it.
    pub(crate) fn has(&self, start: *const u8, len: usize) -> bool {
        let offset = start.addr().wrapping_sub(self.start.addr().get());
        offset <= self.len && len <= self.len - offset
    }

    /// Tells DPDK of the memory, as is needed where a device reads and writes it rather than the processor.
    pub(crate) fn register(&mut self) -> Result<(), i32> {
        // SAFETY: DPDK runs; the mapping is page-aligned, whole pages long, and stays until `drop`, where DPDK is told first. No table of
        // IOVAs: an address is its own (--iova-mode=va).
        let result = unsafe {
            sys::rte_extmem_register(self.start.as_ptr().cast(), self.len, std::ptr::null_mut(), 0, self.page)
        };
        self.registered = result == 0;
        if self.registered { Ok(()) } else { Err(super::eal::error()) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.registered {
            // SAFETY: it was registered with these values, and whoever drops it has seen to it that no device uses it.
            unsafe { sys::rte_extmem_unregister(self.start.as_ptr().cast(), self.len) };
        }
        // SAFETY: the mapping is ours, and nobody has a pointer into it any more (`Pool`).
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn it_has_what_lies_in_it_alone() {
        let region = Region::new(10_000, false).unwrap();
        let (start, len) = (region.start().as_ptr().cast_const(), region.len());
        assert!(len >= 10_000 && len.is_multiple_of(4096));
        assert!(region.has(start, 0) && region.has(start, len) && region.has(start.wrapping_add(len), 0));
        assert!(!region.has(start, len + 1) && !region.has(start.wrapping_add(len), 1));
        assert!(!region.has(start.wrapping_sub(1), 1) && !region.has(std::ptr::null(), 1));
    }

    #[test]
    fn its_size_is_sealed_and_every_byte_is_there() {
        let region = Region::new(1, false).unwrap();
        let fd = region.file().as_raw_fd();
        // SAFETY: ftruncate(2) touches no memory of ours; it must fail, or the mapping would lose its pages.
        let results = [0, 1 << 20].map(|len| unsafe { libc::ftruncate(fd, len) });
        assert_eq!(results, [-1, -1]);
        // SAFETY: the mapping is ours alone, and so long.
        let bytes = unsafe { std::slice::from_raw_parts_mut(region.start().as_ptr(), region.len()) };
        assert!(bytes.iter().all(|b| *b == 0));
        bytes.fill(7);
    }

    /// Where the machine has one that is free.
    #[test]
    fn hugepages_are_taken_at_once() {
        let Ok(region) = Region::of(1, true) else { return eprintln!("skipped: it needs a free hugepage") };
        // SAFETY: all zeroes are a valid stat.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes to `stat`, which is of this frame.
        assert_eq!(unsafe { libc::fstat(region.file().as_raw_fd(), &raw mut stat) }, 0);
        assert_eq!((region.is_huge(), stat.st_blocks as usize * 512), (true, region.len()));
    }
}
