use crate::signals::arm_faults;
use crate::usercopy::{Fault, copy, load, outside, store};
use core::ptr;

const PAGE: usize = 4096;

/// Pages that can be used between two that fault.
pub(super) struct Guarded {
    at: *mut u8,
    pages: usize,
}

impl Guarded {
    pub fn new(pages: usize) -> Guarded {
        arm_faults();
        let len = (pages + 2) * PAGE;
        // SAFETY: a new mapping.
        let at = unsafe {
            libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        let at = at.cast::<u8>().wrapping_add(PAGE);
        // SAFETY: the middle of it.
        assert_eq!(unsafe { libc::mprotect(at.cast(), pages * PAGE, libc::PROT_READ | libc::PROT_WRITE) }, 0);
        Guarded { at, pages }
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped, and this one's.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.pages * PAGE) }
    }

    /// `n` bytes before the page that faults behind.
    pub fn before_end(&self, n: usize) -> *mut u8 {
        self.at.wrapping_add(self.pages * PAGE - n)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: this one's mapping.
        unsafe { libc::munmap(self.at.wrapping_sub(PAGE).cast(), (self.pages + 2) * PAGE) };
    }
}

/// No byte is 0, which stands for one that was not written.
fn pattern(i: usize) -> u8 {
    (i * 7 + i / 251) as u8 | 1
}

/// Every way through the routine, and around where it changes.
fn lengths() -> impl Iterator<Item = usize> {
    (0..=290).chain([511, 512, 513, 766, 767, 768, 769, 1000, 4095, 4096, 4097, 5000])
}

#[test]
fn all_of_it_is_copied_and_nothing_beside_it() {
    let (mut from, mut to) = (Guarded::new(3), Guarded::new(3));
    from.bytes().iter_mut().enumerate().for_each(|(i, b)| *b = pattern(i));
    for len in lengths() {
        for (off, at) in [(0, 0), (1, 0), (0, 3), (9, 2), (64, 63)] {
            to.bytes().fill(0);
            // SAFETY: inside of both.
            assert_eq!(unsafe { copy(to.at.wrapping_add(at), from.at.wrapping_add(off), len) }, Ok(()));
            let there = to.bytes();
            let right = there[at..at + len].iter().enumerate().all(|(i, b)| *b == pattern(off + i));
            assert!(right, "{len} bytes from {off} to {at}");
            assert!(there[..at].iter().chain(&there[at + len..]).all(|b| *b == 0), "beside {len} bytes at {at}");
        }
        // Up to the last byte that there is, on either side.
        let mut other = vec![0; len];
        // SAFETY: inside of both.
        assert_eq!(unsafe { copy(other.as_mut_ptr(), from.before_end(len), len) }, Ok(()));
        // SAFETY: inside of both.
        assert_eq!(unsafe { copy(to.before_end(len), other.as_ptr(), len) }, Ok(()));
        let n = 3 * PAGE;
        assert!(to.bytes()[n - len..] == from.bytes()[n - len..], "{len} bytes at the end");
    }
}

/// Wherever the memory ends: it is an error, and each byte of the copy was written as it is to be, or not yet.
#[test]
fn a_fault_at_any_byte_is_an_error() {
    let (mut from, mut to) = (Guarded::new(2), Guarded::new(2));
    from.bytes().iter_mut().enumerate().for_each(|(i, b)| *b = pattern(i));
    for len in lengths().filter(|len| *len > 0) {
        // So many bytes are there.
        for there in (0..len).step_by(if len > 130 { 13 } else { 1 }) {
            to.bytes()[..len + 64].fill(0);
            // SAFETY: the source ends where it faults; the other is memory.
            let r = unsafe { copy(to.at, from.before_end(there), len) };
            assert_eq!(r, Err(Fault), "{there} of {len} bytes to read");
            let first = 2 * PAGE - there;
            let wrote = &to.bytes()[..len];
            assert!(wrote.iter().enumerate().all(|(i, b)| *b == 0 || *b == pattern(first + i)), "{there} of {len}");
            assert!(to.bytes()[len..len + 64].iter().all(|b| *b == 0), "{there} of {len} bytes to read");

            let n = 2 * PAGE - there;
            to.bytes()[n - 64..n].fill(0);
            // SAFETY: the other way round.
            let r = unsafe { copy(to.before_end(there), from.at, len) };
            assert_eq!(r, Err(Fault), "{there} of {len} bytes to write");
            assert!(to.bytes()[n - 64..n].iter().all(|b| *b == 0), "{there} of {len} bytes to write");

            // Before the memory begins.
            let early = len - there;
            // SAFETY: it begins where it faults.
            assert_eq!(unsafe { copy(to.at, from.at.wrapping_sub(early), len) }, Err(Fault));
            // SAFETY: as above.
            assert_eq!(unsafe { copy(to.at.wrapping_sub(early), from.at, len) }, Err(Fault));
        }
    }
}

#[test]
fn addresses_of_nobody_are_errors() {
    arm_faults();
    let mut byte = [0u8; 16];
    // The first page, what is not canonical, and the kernel's.
    for bad in [0usize, 1, 4080, 1 << 47, usize::MAX - 15, 0xffff_8000_0000_0000, 0x0123_4567_89ab_cdef] {
        let p = ptr::without_provenance_mut::<u8>(bad);
        // SAFETY: the copy reports that it faults.
        unsafe {
            assert_eq!(copy(byte.as_mut_ptr(), p, 16), Err(Fault), "{bad:x}");
            assert_eq!(copy(p, byte.as_ptr(), 16), Err(Fault), "{bad:x}");
            assert_eq!(copy(p, p, 0), Ok(()), "{bad:x}");
            assert_eq!(load(p.cast::<[u8; 8]>()), Err(Fault), "{bad:x}");
            assert_eq!(store(p.cast::<[u8; 8]>(), &[7; 8]), Err(Fault), "{bad:x}");
        }
    }
    let v = [1u32, 2, 3];
    // SAFETY: a local.
    assert_eq!(unsafe { load(&raw const v) }, Ok(v));
    let mut w = [0u32; 3];
    // SAFETY: a local.
    assert_eq!(unsafe { store(&raw mut w, &v) }, Ok(()));
    assert_eq!(w, v);
}

#[test]
fn many_threads_fault_at_once() {
    let threads: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(|| {
                let g = Guarded::new(1);
                let mut there = [0u8; 300];
                for i in 0..2_000 {
                    let n = i % 300;
                    // SAFETY: the source ends where it faults.
                    assert_eq!(unsafe { copy(there.as_mut_ptr(), g.before_end(n), 300) }, Err(Fault));
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
}

#[test]
fn what_reaches_out_of_the_user_half_is_refused_without_a_look() {
    let end = 0x7fff_ffff_f000usize;
    let p = ptr::without_provenance::<u8>;
    assert!(!outside(p(end - 1), 1) && !outside(p(end - 4096), 4096) && !outside(p(0), 0));
    let wide = (1 << 56) - 4096;
    assert!(outside(p(usize::MAX), 1) && outside(p(1 << 63), 0) && outside(p(1), usize::MAX) && outside(p(wide), 1));
}

/// A fault anywhere else ends the process as it would have without us.
#[test]
fn a_fault_of_the_programs_own_still_kills() {
    arm_faults();
    // SAFETY: the child makes no call but those that kill it.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: the default action, as far as the program knows; then a read that faults, which is the point.
        unsafe {
            let default: libc::sigaction = core::mem::zeroed();
            crate::signals::sigaction(libc::SIGSEGV, &default, ptr::null_mut());
            ptr::read_volatile(ptr::without_provenance::<u8>(8));
            libc::_exit(0);
        }
    }
    let mut status = 0;
    // SAFETY: a local.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV, "{status:x}");
}
