//! The library's functions, looked for at run time.

use libc::{c_int, c_uint, c_void, iovec, size_t, ssize_t};
use std::io;
use std::sync::OnceLock;

/// `struct culvert_room` and `struct culvert_view` of `culvert.h`.
#[repr(C)]
#[derive(Debug)]
pub struct Spans {
    pub span: [iovec; 2],
    pub len: usize,
    kind: u32,
    own: [u32; 3],
    own64: [u64; 3],
    memory: *mut c_void,
}

const NONE: u32 = 0;
const ROOM: u32 = 0x6375_6c01;
const VIEW: u32 = 0x6375_6c03;
/// Memory of this crate's, where there is no library.
const PLAIN: u32 = 0x6375_6c10;

impl Spans {
    pub const fn none() -> Spans {
        const PIECE: iovec = iovec { iov_base: core::ptr::null_mut(), iov_len: 0 };
        Spans { span: [PIECE; 2], len: 0, kind: NONE, own: [0; 3], own64: [0; 3], memory: core::ptr::null_mut() }
    }

    pub fn is_none(&self) -> bool {
        self.kind == NONE
    }

    /// Whether it is a view of a chunk.
    pub fn is_chunk(&self) -> bool {
        self.kind == VIEW && self.own[2] > 1
    }

    pub fn is_on_ring(&self) -> bool {
        matches!(self.kind, ROOM | VIEW)
    }

    /// A buffer of this crate's.
    pub fn plain(bytes: Vec<u8>) -> Spans {
        let bytes = bytes.into_boxed_slice();
        let len = bytes.len();
        let at = Box::into_raw(bytes).cast::<u8>();
        let mut spans = Spans { len, kind: PLAIN, memory: at.cast(), ..Spans::none() };
        spans.own64[0] = len as u64;
        spans.span[0] = iovec { iov_base: at.cast(), iov_len: len };
        spans
    }

    /// Its first `n` bytes are gone.
    pub fn advance(&mut self, n: usize) {
        self.len -= n;
        self.span[0].iov_base = self.span[0].iov_base.wrapping_byte_add(n);
        self.span[0].iov_len -= n;
    }

    /// Ends it, if it is this crate's.
    pub fn end_plain(&mut self) {
        if self.kind == PLAIN {
            let whole = core::ptr::slice_from_raw_parts_mut(self.memory.cast::<u8>(), self.own64[0] as usize);
            // SAFETY: made by `plain`, and not used any more.
            drop(unsafe { Box::from_raw(whole) });
        }
        *self = Spans::none();
    }
}

/// `struct culvert_kept`.
#[repr(C)]
#[derive(Debug)]
pub struct KeptMemory {
    pub span: [iovec; 2],
    len: usize,
    pub limit: usize,
    pub all: u32,
    pub anew: u32,
    own: [u32; 3],
    own64: [u64; 3],
}

impl Default for KeptMemory {
    fn default() -> KeptMemory {
        const PIECE: iovec = iovec { iov_base: core::ptr::null_mut(), iov_len: 0 };
        KeptMemory { span: [PIECE; 2], len: 0, limit: 0, all: 0, anew: 0, own: [0; 3], own64: [0; 3] }
    }
}

type Keep = unsafe extern "C-unwind" fn(c_int, size_t, size_t, *mut KeptMemory) -> size_t;
type Settle = unsafe extern "C-unwind" fn();
type GiveBack = unsafe extern "C" fn(c_int, *mut KeptMemory, size_t) -> c_int;

/// `struct culvert_chunk` of `culvert.h`.
#[repr(C)]
#[derive(Debug)]
pub struct Memory {
    pub at: *mut c_void,
    pub len: usize,
    kind: u32,
    own: [u32; 7],
    memory: *mut c_void,
}

const HELD: u32 = 0x6375_6c12;
const COPY: u32 = 0x6375_6c13;

impl Memory {
    const fn none() -> Memory {
        let at = core::ptr::null_mut();
        Memory { at, len: 0, kind: NONE, own: [0; 7], memory: at }
    }

    pub fn is_none(&self) -> bool {
        self.kind == NONE
    }

    pub fn is_copy(&self) -> bool {
        self.kind == COPY || self.kind == PLAIN && self.own[1] != 0
    }

    /// Of bytes that were received.
    pub fn plain_copy(bytes: Vec<u8>) -> Memory {
        let mut memory = Memory::plain(bytes);
        memory.own[1] = 1;
        memory
    }

    pub fn is_writable(&self) -> bool {
        !matches!(self.kind, HELD | NONE)
    }

    /// A buffer of this crate's.
    pub fn plain(bytes: Vec<u8>) -> Memory {
        let bytes = bytes.into_boxed_slice();
        let len = bytes.len();
        let at = Box::into_raw(bytes).cast::<c_void>();
        let mut memory = Memory { at, len, kind: PLAIN, memory: at, ..Memory::none() };
        memory.own[0] = len as u32;
        memory
    }

    /// The first `n` bytes are sent.
    pub fn advance(&mut self, n: usize) {
        self.len -= n;
        self.at = self.at.wrapping_byte_add(n);
    }

    /// Ends it, if it is this crate's.
    pub fn end_plain(&mut self) {
        if self.kind == PLAIN {
            let whole = core::ptr::slice_from_raw_parts_mut(self.memory.cast::<u8>(), self.own[0] as usize);
            // SAFETY: made by `plain`, and not used any more.
            drop(unsafe { Box::from_raw(whole) });
        }
        *self = Memory::none();
    }
}

type PoolMake = unsafe extern "C" fn(size_t, size_t, size_t) -> c_int;
type PoolEnd = unsafe extern "C" fn(c_int) -> c_int;
type ChunkTake = unsafe extern "C" fn(c_int, c_int, *mut Memory) -> c_int;
type ChunkSend = unsafe extern "C-unwind" fn(c_int, *mut Memory, size_t, c_int) -> ssize_t;
type ChunkKeep = unsafe extern "C-unwind" fn(c_int, *mut Spans, *mut Memory) -> ssize_t;
type ChunkDrop = unsafe extern "C" fn(*mut Memory) -> c_int;
type Reserve = unsafe extern "C-unwind" fn(c_int, size_t, c_int, *mut Spans) -> ssize_t;
type Commit = unsafe extern "C-unwind" fn(c_int, *mut Spans, size_t, c_int) -> ssize_t;
type Release = unsafe extern "C-unwind" fn(c_int, *mut Spans, size_t) -> c_int;
type PathOf = unsafe extern "C" fn(c_int) -> c_uint;

/// The library.
pub struct Library {
    reserve: Reserve,
    commit: Commit,
    look: Reserve,
    release: Release,
    path: PathOf,
    keep: Keep,
    give_back: GiveBack,
    settle: Settle,
    pool_make: PoolMake,
    pool_end: PoolEnd,
    chunk_take: ChunkTake,
    chunk_send: ChunkSend,
    chunk_keep: ChunkKeep,
    chunk_drop: ChunkDrop,
}

fn result(r: ssize_t) -> io::Result<usize> {
    usize::try_from(r).map_err(|_| io::Error::last_os_error())
}

impl Library {
    fn find() -> Option<Library> {
        let find = |name: &core::ffi::CStr| {
            // SAFETY: a name; what was loaded before is asked for it.
            let at = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
            (!at.is_null()).then_some(at)
        };
        // SAFETY: functions of these types (`culvert.h`), whose names carry the version; the library is never unloaded.
        unsafe {
            Some(Library {
                reserve: core::mem::transmute::<*mut c_void, Reserve>(find(c"culvert_1_reserve")?),
                commit: core::mem::transmute::<*mut c_void, Commit>(find(c"culvert_1_commit")?),
                look: core::mem::transmute::<*mut c_void, Reserve>(find(c"culvert_1_look")?),
                release: core::mem::transmute::<*mut c_void, Release>(find(c"culvert_1_release")?),
                path: core::mem::transmute::<*mut c_void, PathOf>(find(c"culvert_1_path")?),
                pool_make: core::mem::transmute::<*mut c_void, PoolMake>(find(c"culvert_1_pool_make")?),
                pool_end: core::mem::transmute::<*mut c_void, PoolEnd>(find(c"culvert_1_pool_end")?),
                chunk_take: core::mem::transmute::<*mut c_void, ChunkTake>(find(c"culvert_1_chunk_take")?),
                chunk_send: core::mem::transmute::<*mut c_void, ChunkSend>(find(c"culvert_1_chunk_send")?),
                chunk_keep: core::mem::transmute::<*mut c_void, ChunkKeep>(find(c"culvert_1_chunk_keep")?),
                chunk_drop: core::mem::transmute::<*mut c_void, ChunkDrop>(find(c"culvert_1_chunk_drop")?),
                keep: core::mem::transmute::<*mut c_void, Keep>(find(c"culvert_1_keep")?),
                give_back: core::mem::transmute::<*mut c_void, GiveBack>(find(c"culvert_1_give_back")?),
                settle: core::mem::transmute::<*mut c_void, Settle>(find(c"culvert_1_settle")?),
            })
        }
    }

    pub fn pool_make(&self, len: usize, count: usize, quota: usize) -> io::Result<c_int> {
        // SAFETY: takes any numbers.
        let pool = unsafe { (self.pool_make)(len, count, quota) };
        result(pool as ssize_t).map(|_| pool)
    }

    pub fn pool_end(&self, pool: c_int) {
        // SAFETY: takes any number.
        unsafe { (self.pool_end)(pool) };
    }

    pub fn chunk_take(&self, pool: c_int, flags: c_int) -> io::Result<Memory> {
        let mut memory = Memory::none();
        // SAFETY: a local variable.
        result(unsafe { (self.chunk_take)(pool, flags, &raw mut memory) } as ssize_t)?;
        Ok(memory)
    }

    pub fn chunk_send(&self, fd: c_int, memory: &mut Memory, n: usize, flags: c_int) -> io::Result<usize> {
        // SAFETY: a chunk as the library has left it.
        result(unsafe { (self.chunk_send)(fd, memory, n, flags) })
    }

    pub fn chunk_keep(&self, fd: c_int, view: &mut Spans) -> io::Result<Memory> {
        let mut memory = Memory::none();
        // SAFETY: a view as the library has left it, and a local variable.
        result(unsafe { (self.chunk_keep)(fd, view, &raw mut memory) })?;
        Ok(memory)
    }

    pub fn chunk_drop(&self, memory: &mut Memory) {
        if !memory.is_none() {
            // SAFETY: a chunk as the library has left it.
            unsafe { (self.chunk_drop)(memory) };
        }
    }

    pub fn path(&self, fd: c_int) -> c_uint {
        // SAFETY: takes any number.
        unsafe { (self.path)(fd) }
    }

    /// `None`: they are to be received.
    pub fn keep(&self, fd: c_int, least: usize, most: usize, kept: &mut KeptMemory) -> Option<usize> {
        // SAFETY: as the library has left it, or zeros.
        let n = unsafe { (self.keep)(fd, least, most, kept) };
        (n > 0).then_some(n)
    }

    /// Whether something is kept still.
    pub fn give_back(&self, fd: c_int, n: usize, kept: &mut KeptMemory) -> bool {
        // SAFETY: as above.
        unsafe { (self.give_back)(fd, kept, n) != 0 }
    }

    pub fn settle(&self) {
        // SAFETY: takes nothing.
        unsafe { (self.settle)() };
    }

    #[inline]
    pub fn reserve(&self, fd: c_int, n: usize, flags: c_int) -> io::Result<Spans> {
        let mut spans = Spans::none();
        // SAFETY: a local variable.
        result(unsafe { (self.reserve)(fd, n, flags, &raw mut spans) })?;
        Ok(spans)
    }

    #[inline]
    pub fn commit(&self, fd: c_int, spans: &mut Spans, n: usize, flags: c_int) -> io::Result<usize> {
        // SAFETY: spans as the library has left them.
        result(unsafe { (self.commit)(fd, spans, n, flags) })
    }

    #[inline]
    pub fn look(&self, fd: c_int, min: usize, flags: c_int) -> io::Result<Spans> {
        let mut spans = Spans::none();
        // SAFETY: a local variable.
        result(unsafe { (self.look)(fd, min, flags, &raw mut spans) })?;
        Ok(spans)
    }

    #[inline]
    pub fn release(&self, fd: c_int, spans: &mut Spans, n: usize) -> io::Result<()> {
        // SAFETY: spans as the library has left them.
        let r = unsafe { (self.release)(fd, spans, n) };
        result(r as ssize_t).map(|_| ())
    }
}

/// The library, if this program has it.
pub fn library() -> Option<&'static Library> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    LIBRARY.get_or_init(Library::find).as_ref()
}
