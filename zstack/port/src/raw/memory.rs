//! One allocation that is divided into equal parts, and copies out of others' memory.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use zstack::payload::Spans;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Memory in `count` parts of `size` bytes, zeroed. Whoever uses a part says by its number which: the callers of `part` and
/// `part_mut` see to it that nobody else uses it (`pool.rs`: a number is in the free list, or one owner has it).
pub(crate) struct Parts {
    /// Aligned to a cache line, within the allocation.
    base: NonNull<u8>,
    allocation: NonNull<u8>,
    layout: Layout,
    size: usize,
    count: u32,
}

impl Parts {
    /// Never touched parts cost address space only: the kernel gives pages as they are written.
    pub(crate) fn new(count: u32, size: usize) -> Parts {
        // Neither 0 bytes, of which the allocator wants to know nothing, nor parts that share a cache line.
        let size = size.max(1).next_multiple_of(LINE);
        // The allocator would zero memory of a larger alignment than its own by writing all of it, where calloc(3) gets zeroes from the
        // kernel. So the allocation is a cache line longer, and the parts begin at the first line in it.
        let all = size.checked_mul(count.max(1) as usize).and_then(|all| all.checked_add(LINE - 1));
        let layout = all.and_then(|all| Layout::from_size_align(all, 1).ok());
        let layout = layout.expect("a pool's size fits in the address space");
        // SAFETY: the layout's size is not 0.
        let allocation = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        let skip = allocation.addr().get().wrapping_neg() % LINE;
        // SAFETY: skip < LINE, and LINE - 1 bytes are there beyond the parts.
        let base = unsafe { allocation.add(skip) };
        Parts { base, allocation, layout, size, count }
    }

    /// The bytes of each part.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    fn address(&self, part: u32) -> *mut u8 {
        assert!(part < self.count, "a pool's part has a number below {}", self.count);
        // SAFETY: part < count, so the sum lies within the allocation.
        unsafe { self.base.as_ptr().add(part as usize * self.size) }
    }

    /// A part's bytes.
    ///
    /// # Safety
    /// Nobody may hold a result of `part_mut` for this part.
    pub(crate) unsafe fn part(&self, part: u32) -> &[u8] {
        // SAFETY: the bytes lie within the allocation, which `self` keeps; they were zeroed, thus initialised; nobody writes them
        // while this is borrowed (the contract).
        unsafe { std::slice::from_raw_parts(self.address(part), self.size) }
    }

    /// A part's bytes, to be written.
    ///
    /// # Safety
    /// Nobody else may hold a result of `part` or `part_mut` for this part.
    #[expect(clippy::mut_from_ref, reason = "parts do not overlap, and the caller answers for the part being his")]
    pub(crate) unsafe fn part_mut(&self, part: u32) -> &mut [u8] {
        // SAFETY: as in `part`; the contract makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.address(part), self.size) }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        // SAFETY: this is the allocation and the layout of `new`; borrowed parts cannot outlive `self`.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) };
    }
}

/// Copies the spans' bytes to the beginning of `to`, which has room for them.
///
/// # Safety
/// The spans must be readable through the call.
pub(crate) unsafe fn copy(spans: &Spans, to: &mut [u8]) {
    assert!(spans.len() as usize <= to.len(), "room for the payload");
    let mut to = to.as_mut_ptr();
    for span in spans.0 {
        if span.len > 0 {
            // SAFETY: the span is readable (the contract). `to` has room for all spans (asserted), and as an exclusive borrow it
            // does not overlap memory of another owner. A byte that its owner writes meanwhile arrives as either value.
            unsafe {
                std::ptr::copy_nonoverlapping(span.start, to, span.len as usize);
                to = to.add(span.len as usize);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_nobody_has_touched_take_no_memory() {
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
        };
        let before = resident();
        let parts = Parts::new(1 << 14, 1 << 16);
        // SAFETY: nobody else has these parts.
        let (first, last) = unsafe { (parts.part_mut(0), parts.part_mut((1 << 14) - 1)) };
        assert!(first.as_ptr().addr() % LINE == 0 && first.iter().chain(last.iter()).all(|b| *b == 0));
        first.fill(1);
        last.fill(2);
        // A gigabyte. The other tests of this process have less.
        assert!(resident() < before + (256 << 20), "{} bytes more", resident() - before);
    }
}
