//! What of the process's memory is culvert's, and so neither in its core dumps nor locked into RAM with the program's.
// Unsafe here: it maps memory, and asks the linker where the library lies.
#![allow(unsafe_code)]

use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;
use shmring::{lnx, syscall};

const PAGE: usize = 4096;

unsafe extern "C" {
    /// The first byte of this library's image, its ELF header, and the first one behind it (set by the linker).
    #[link_name = "__ehdr_start"]
    static IMAGE: u8;
    #[link_name = "_end"]
    static IMAGE_END: u8;
}

/// Where this library lies.
pub fn image() -> (usize, usize) {
    ((&raw const IMAGE).addr(), (&raw const IMAGE_END).addr().next_multiple_of(PAGE))
}

/// In the constructor: the library's own tables, some 25 MB of which hardly anything is ever touched.
pub fn init() {
    let (start, end) = image();
    lnx::not_dumped(start, end - start);
}

/// The program has asked for every future mapping to be locked.
static LOCKED: AtomicBool = AtomicBool::new(false);

/// See [`LOCKED`].
pub fn locks_future(yes: bool) {
    LOCKED.store(yes, Relaxed);
}

/// Maps memory of ours as `mmap` does, readable and writable, and neither locked nor dumped. With MAP_FIXED in place of what
/// is mapped at `at`, which is accessible all the time.
pub fn map(at: usize, len: usize, flags: i32, fd: i32, offset: usize) -> Option<*mut u8> {
    map_as(libc::PROT_READ | libc::PROT_WRITE, at, len, flags, fd, offset)
}

/// The same of a file's first `len` bytes, to read only, shared with whoever writes them.
pub fn map_to_read(len: usize, fd: i32) -> Option<*mut u8> {
    map_as(libc::PROT_READ, 0, len, libc::MAP_SHARED | libc::MAP_NORESERVE, fd, 0)
}

fn map_as(rights: i32, at: usize, len: usize, flags: i32, fd: i32, offset: usize) -> Option<*mut u8> {
    let failed = |p: isize| (-4095..0).contains(&p);
    // SAFETY: a fresh mapping, or one in place of memory of ours, as the caller says.
    let p = unsafe {
        if !LOCKED.load(Relaxed) {
            syscall!(libc::SYS_mmap, at, len, rights, flags, fd, offset)
        } else {
            // A mapping that nobody may access is not filled, as a locked one would be at once.
            let flags = flags & !libc::MAP_FIXED;
            let p = syscall!(libc::SYS_mmap, 0, len, libc::PROT_NONE, flags, fd, offset);
            if failed(p) {
                return None;
            }
            syscall!(libc::SYS_munlock, p, len);
            syscall!(libc::SYS_mprotect, p, len, rights);
            match at {
                0 => p,
                at => {
                    let moved = syscall!(libc::SYS_mremap, p, len, len, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, at);
                    if failed(moved) {
                        syscall!(libc::SYS_munmap, p, len);
                    }
                    moved
                }
            }
        }
    };
    if failed(p) {
        return None;
    }
    lnx::not_dumped(p as usize, len);
    Some(p as *mut u8)
}
