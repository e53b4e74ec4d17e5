//! The system calls this crate makes, as small functions with checked results. Errors are `errno` values.

use core::ffi::CStr;
use shmring::sys;
use shmring::syscall;

fn check(ret: isize) -> Result<usize, i32> {
    if ret < 0 { Err(-ret as i32) } else { Ok(ret as usize) }
}

pub(crate) fn geteuid() -> u32 {
    // SAFETY: takes no arguments and cannot fail.
    unsafe { syscall!(libc::SYS_geteuid) as u32 }
}

pub(crate) fn getegid() -> u32 {
    // SAFETY: takes no arguments and cannot fail.
    unsafe { syscall!(libc::SYS_getegid) as u32 }
}

/// Random 64 bits; never waits for the kernel's generator to be seeded.
pub(crate) fn random() -> Result<u64, i32> {
    let mut bytes = [0u8; 8];
    // SAFETY: the kernel writes at most the 8 bytes of `bytes`.
    let n = check(unsafe { syscall!(libc::SYS_getrandom, bytes.as_mut_ptr(), bytes.len(), libc::GRND_NONBLOCK) })?;
    if n == bytes.len() { Ok(u64::from_ne_bytes(bytes)) } else { Err(libc::EAGAIN) }
}

// --- files

pub(crate) fn openat(dir: i32, path: &CStr, flags: i32, mode: u32) -> Result<i32, i32> {
    // SAFETY: `path` is a NUL-terminated string; the other arguments are plain numbers.
    let ret = unsafe { syscall!(libc::SYS_openat, dir, path.as_ptr(), flags | libc::O_CLOEXEC, mode) };
    Ok(check(ret)? as i32)
}

/// A mount of the directory `dir` alone, in no place of the file system: nothing leads out of it. Needs CAP_SYS_ADMIN; since Linux 5.2.
pub(crate) fn detached(dir: i32) -> Result<i32, i32> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u32;
    // SAFETY: an empty path; the other arguments are plain numbers.
    let ret = unsafe { syscall!(libc::SYS_open_tree, dir, c"".as_ptr(), flags) };
    Ok(check(ret)? as i32)
}

/// What `fstat` says and this crate uses.
#[derive(Clone, Copy)]
pub(crate) struct Stat {
    pub dev: u64,
    pub ino: u64,
    pub mode: u32,
    pub uid: u32,
    pub nlink: u64,
    pub size: u64,
}

impl Stat {
    fn from(st: &libc::stat) -> Stat {
        Stat {
            dev: st.st_dev,
            ino: st.st_ino,
            mode: st.st_mode,
            uid: st.st_uid,
            nlink: st.st_nlink,
            size: st.st_size as u64,
        }
    }
    pub fn is_regular(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFREG
    }
}

fn empty_stat() -> libc::stat {
    // SAFETY: `stat` is plain integers, for which all zeros is a value.
    unsafe { core::mem::zeroed() }
}

pub(crate) fn fstat(fd: i32) -> Result<Stat, i32> {
    let mut st = empty_stat();
    // SAFETY: on x86-64 libc's `stat` is the kernel's, and the kernel writes exactly one of them.
    check(unsafe { syscall!(libc::SYS_fstat, fd, &raw mut st) })?;
    Ok(Stat::from(&st))
}

/// `stat`, following links.
pub(crate) fn stat(path: &CStr) -> Result<Stat, i32> {
    let mut st = empty_stat();
    // SAFETY: as for `fstat`; `path` is NUL-terminated.
    check(unsafe { syscall!(libc::SYS_newfstatat, libc::AT_FDCWD, path.as_ptr(), &raw mut st, 0) })?;
    Ok(Stat::from(&st))
}

/// Whether a descriptor is memory made by `memfd_create`, or of its kind. Asks nobody but the kernel (fcntl(2), F_GET_SEALS),
/// whatever else it is.
pub(crate) fn is_memfd(fd: i32) -> bool {
    // SAFETY: no memory is involved.
    check(unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_GET_SEALS) }).is_ok()
}

/// Reads the beginning of a file of the kernel's; 0 if that fails.
pub(crate) fn read_file(path: &CStr, buf: &mut [u8]) -> usize {
    let Ok(fd) = openat(libc::AT_FDCWD, path, libc::O_RDONLY, 0) else { return 0 };
    // SAFETY: the kernel writes at most `buf.len()` bytes to `buf`.
    let n = check(unsafe { syscall!(libc::SYS_read, fd, buf.as_mut_ptr(), buf.len()) });
    close(fd);
    n.unwrap_or(0)
}

/// `stat` of `name` in a directory, not following links.
pub(crate) fn lstat_at(dir: i32, name: &CStr) -> Result<Stat, i32> {
    let mut st = empty_stat();
    // SAFETY: as for `fstat`; `name` is NUL-terminated.
    check(unsafe { syscall!(libc::SYS_newfstatat, dir, name.as_ptr(), &raw mut st, libc::AT_SYMLINK_NOFOLLOW) })?;
    Ok(Stat::from(&st))
}

pub(crate) fn unlinkat(dir: i32, name: &CStr) {
    // SAFETY: `name` is NUL-terminated.
    unsafe { syscall!(libc::SYS_unlinkat, dir, name.as_ptr(), 0) };
}

/// Entries of a directory, as `struct linux_dirent64`; bytes written, 0 at the end.
pub(crate) fn getdents(dir: i32, buf: &mut [u8]) -> usize {
    // SAFETY: the kernel writes at most `buf.len()` bytes to `buf`.
    check(unsafe { syscall!(libc::SYS_getdents64, dir, buf.as_mut_ptr(), buf.len()) }).unwrap_or(0)
}

fn lock_on(kind: i32, at: u64, len: u64) -> libc::flock {
    // SAFETY: `flock` is plain integers, for which all zeros is a value.
    let mut l: libc::flock = unsafe { core::mem::zeroed() };
    l.l_type = kind as i16;
    l.l_whence = libc::SEEK_SET as i16;
    l.l_start = at as i64;
    l.l_len = len as i64;
    l
}

/// Sets an open file description lock on `len` bytes (0: all that follow). Never waits.
pub(crate) fn lock(fd: i32, kind: i32, at: u64, len: u64) -> Result<(), i32> {
    let l = lock_on(kind, at, len);
    // SAFETY: the kernel reads one `flock`.
    check(unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_OFD_SETLK, &raw const l) }).map(drop)
}

/// Whether somebody has a lock for writing on the byte at `at`, by another opening of the file than `fd`. Only who may write the
/// file can have one.
pub(crate) fn is_locked(fd: i32, at: u64) -> Result<bool, i32> {
    // Locks for reading are in the way of no other one for reading.
    let mut l = lock_on(libc::F_RDLCK, at, 1);
    // SAFETY: the kernel reads and writes one `flock`.
    check(unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_OFD_GETLK, &raw mut l) })?;
    Ok(l.l_type != libc::F_UNLCK as i16)
}

pub(crate) fn ftruncate(fd: i32, len: u64) -> Result<(), i32> {
    // SAFETY: no memory is involved.
    check(unsafe { syscall!(libc::SYS_ftruncate, fd, len) }).map(drop)
}

pub(crate) fn fchmod(fd: i32, mode: u32) -> Result<(), i32> {
    // SAFETY: no memory is involved.
    check(unsafe { syscall!(libc::SYS_fchmod, fd, mode) }).map(drop)
}

pub(crate) fn pread(fd: i32, buf: &mut [u8], at: u64) -> Result<usize, i32> {
    // SAFETY: the kernel writes at most `buf.len()` bytes to `buf`.
    check(unsafe { syscall!(libc::SYS_pread64, fd, buf.as_mut_ptr(), buf.len(), at) })
}

pub(crate) fn pwrite(fd: i32, buf: &[u8], at: u64) -> Result<usize, i32> {
    // SAFETY: the kernel reads `buf.len()` bytes from `buf`.
    check(unsafe { syscall!(libc::SYS_pwrite64, fd, buf.as_ptr(), buf.len(), at) })
}

/// Largest file this process may write (`RLIMIT_FSIZE`), bytes.
pub(crate) fn file_size_limit() -> u64 {
    let mut limit = [0u64; 2];
    // SAFETY: no new limit is given; the kernel writes two 64-bit words, soft limit first, to `limit`.
    let ret = unsafe { syscall!(libc::SYS_prlimit64, 0, libc::RLIMIT_FSIZE, 0, limit.as_mut_ptr()) };
    if ret < 0 { u64::MAX } else { limit[0] }
}

// --- sockets

pub(crate) fn socket(domain: i32, kind: i32, protocol: i32) -> Result<i32, i32> {
    let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is involved.
    Ok(check(unsafe { syscall!(libc::SYS_socket, domain, kind, protocol) })? as i32)
}

/// A socket address as bytes; `bytes()` is the part the kernel filled.
#[repr(C, align(8))]
pub(crate) struct Address {
    buf: [u8; 128],
    len: u32,
}

impl Address {
    pub fn new() -> Address {
        Address { buf: [0; 128], len: 128 }
    }
    pub fn bytes(&self) -> &[u8] {
        // The kernel reports the length it would have needed, which may exceed the buffer.
        &self.buf[..(self.len as usize).min(self.buf.len())]
    }
}

/// Whose address of a socket.
#[derive(Clone, Copy)]
pub(crate) enum End {
    Local,
    Peer,
}

pub(crate) fn address_of(fd: i32, end: End) -> Result<Address, i32> {
    let nr = match end {
        End::Local => libc::SYS_getsockname,
        End::Peer => libc::SYS_getpeername,
    };
    let mut a = Address::new();
    let len = &raw mut a.len;
    // SAFETY: `len` says 128, the room in `buf`; the kernel writes no more than that, and then `len`.
    check(unsafe { syscall!(nr, fd, a.buf.as_mut_ptr(), len) })?;
    Ok(a)
}

pub(crate) fn bind(fd: i32, address: &[u8]) -> Result<(), i32> {
    // SAFETY: the kernel reads `address.len()` bytes.
    check(unsafe { syscall!(libc::SYS_bind, fd, address.as_ptr(), address.len()) }).map(drop)
}

pub(crate) fn set_option(fd: i32, level: i32, name: i32, value: i32) -> Result<(), i32> {
    // SAFETY: the kernel reads the 4 bytes of `value`.
    check(unsafe { syscall!(libc::SYS_setsockopt, fd, level, name, &raw const value, 4) }).map(drop)
}

pub(crate) fn connect(fd: i32, address: &[u8]) -> Result<(), i32> {
    // SAFETY: the kernel reads `address.len()` bytes.
    check(unsafe { syscall!(libc::SYS_connect, fd, address.as_ptr(), address.len()) }).map(drop)
}

/// The number of the network namespace that a socket lives in: unique while the machine is up, never 0 (Linux 5.14).
pub(crate) fn network_of(fd: i32) -> Result<u64, i32> {
    const SO_NETNS_COOKIE: i32 = 71;
    let (mut id, mut len) = (0u64, 8u32);
    // SAFETY: `len` says 8, the room in `id`; the kernel writes no more than that, and then `len`.
    check(unsafe { syscall!(libc::SYS_getsockopt, fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, &raw mut id, &raw mut len) })?;
    if len == 8 && id != 0 { Ok(id) } else { Err(libc::EPROTO) }
}

/// `SO_COOKIE`.
pub(crate) fn cookie_of(fd: i32) -> Result<u64, i32> {
    let (mut cookie, mut len) = (0u64, 8u32);
    // SAFETY: `len` says 8, the room in `cookie`; the kernel writes no more than that, and then `len`.
    check(unsafe {
        syscall!(libc::SYS_getsockopt, fd, libc::SOL_SOCKET, libc::SO_COOKIE, &raw mut cookie, &raw mut len)
    })?;
    Ok(cookie)
}

/// Has a Unix socket refuse descriptors, where the kernel can (Linux 6.16).
pub(crate) fn refuse_descriptors(fd: i32) {
    const SO_PASSRIGHTS: i32 = 83;
    let _ = set_option(fd, libc::SOL_SOCKET, SO_PASSRIGHTS, 0);
}

/// `address` is empty for a connected socket.
pub(crate) fn sendto(fd: i32, data: &[u8], address: &[u8]) -> Result<usize, i32> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let name = if address.is_empty() { core::ptr::null() } else { address.as_ptr() };
    // SAFETY: the kernel reads `data` and `address`, each with its own length.
    check(unsafe { syscall!(libc::SYS_sendto, fd, data.as_ptr(), data.len(), flags, name, address.len()) })
}

/// Datagrams that one call of [`discard`] takes at most.
pub(crate) const DISCARDED_AT_ONCE: usize = 16;

/// Receives datagrams, and looks at none; returns how many. Never blocks.
pub(crate) fn discard(fd: i32) -> usize {
    // SAFETY: `mmsghdr` is plain integers and pointers, for which all zeros is a value: no buffer of any kind.
    let mut none: [libc::mmsghdr; DISCARDED_AT_ONCE] = unsafe { core::mem::zeroed() };
    let flags = libc::MSG_DONTWAIT;
    // SAFETY: the kernel writes lengths and flags to the headers, which are as many as said, and nothing elsewhere.
    let n = unsafe { syscall!(libc::SYS_recvmmsg, fd, none.as_mut_ptr(), DISCARDED_AT_ONCE, flags, 0) };
    check(n).unwrap_or(0)
}

/// A classic BPF program (linux/filter.h) that keeps what passes all its tests, and drops the rest: before it is queued, and
/// before anybody is woken (unix_dgram_sendmsg). The sender is told that it was sent.
pub(crate) struct Filter {
    code: [libc::sock_filter; 32],
    len: usize,
}

impl Filter {
    pub fn new() -> Filter {
        Filter { code: [libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 }; 32], len: 0 }
    }

    fn push(&mut self, code: u32, jt: u8, jf: u8, k: u32) {
        // `attach` refuses a program without an end.
        if let Some(place) = self.code.get_mut(self.len) {
            *place = libc::sock_filter { code: code as u16, jt, jf, k };
            self.len += 1;
        }
    }

    fn drop_it(&mut self) {
        self.push(libc::BPF_RET | libc::BPF_K, 0, 0, 0);
    }

    /// The length must be this.
    pub fn length(&mut self, len: u32) {
        self.push(libc::BPF_LD | libc::BPF_W | libc::BPF_LEN, 0, 0, 0);
        self.push(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, len);
        self.drop_it();
    }

    /// The four bytes at `at` must be these.
    pub fn word(&mut self, at: u32, bytes: &[u8]) {
        self.push(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at);
        self.push(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, u32::from_be_bytes(array(bytes, 0)));
        self.drop_it();
    }

    /// The four bytes at `at` must be the one or the other.
    pub fn either(&mut self, at: u32, one: &[u8], other: &[u8]) {
        self.push(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at);
        self.push(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 2, 0, u32::from_be_bytes(array(one, 0)));
        self.push(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, u32::from_be_bytes(array(other, 0)));
        self.drop_it();
    }

    pub fn attach(mut self, fd: i32) -> Result<(), i32> {
        self.push(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX);
        let program = libc::sock_fprog { len: self.len as u16, filter: self.code.as_mut_ptr() };
        let len = size_of_val(&program);
        // SAFETY: the kernel reads `program`, and as many instructions as it says.
        let ret = unsafe {
            syscall!(libc::SYS_setsockopt, fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &raw const program, len)
        };
        check(ret).map(drop)
    }
}

/// Sends one datagram with ancillary data. `address` is empty for a connected socket. Never blocks, never raises SIGPIPE.
pub(crate) fn sendmsg(fd: i32, data: &[u8], address: &[u8], control: &[u8]) -> Result<usize, i32> {
    let iov = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: `msghdr` is plain integers and pointers, for which all zeros is a value.
    let mut hdr: libc::msghdr = unsafe { core::mem::zeroed() };
    if !address.is_empty() {
        hdr.msg_name = address.as_ptr().cast_mut().cast();
        hdr.msg_namelen = address.len() as u32;
    }
    hdr.msg_iov = (&raw const iov).cast_mut();
    hdr.msg_iovlen = 1;
    hdr.msg_control = control.as_ptr().cast_mut().cast();
    hdr.msg_controllen = control.len();
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the kernel only reads through the pointers in `hdr`; all outlive the call and are as long
    // as the lengths beside them say.
    check(unsafe { syscall!(libc::SYS_sendmsg, fd, &raw const hdr, flags) })
}

/// What [`recvmsg`] brought, lengths cut to the buffers.
pub(crate) struct Datagram {
    /// Length of the datagram: more than the buffer if it did not fit.
    pub len: usize,
    pub control: usize,
    pub flags: i32,
    pub address: Address,
}

/// Receives one datagram; never blocks. Descriptors that come with it are close-on-exec.
pub(crate) fn recvmsg(fd: i32, data: &mut [u8], control: &mut [u8], flags: i32) -> Result<Datagram, i32> {
    let mut address = Address::new();
    let iov = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    // SAFETY: `msghdr` is plain integers and pointers, for which all zeros is a value.
    let mut hdr: libc::msghdr = unsafe { core::mem::zeroed() };
    hdr.msg_name = address.buf.as_mut_ptr().cast();
    hdr.msg_namelen = address.buf.len() as u32;
    hdr.msg_iov = (&raw const iov).cast_mut();
    hdr.msg_iovlen = 1;
    hdr.msg_control = control.as_mut_ptr().cast();
    hdr.msg_controllen = control.len();
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the kernel writes to `data`, `control` and `address` at most the lengths in `hdr`, which are
    // theirs, and to `hdr` itself.
    let len = check(unsafe { syscall!(libc::SYS_recvmsg, fd, &raw mut hdr, flags) })?;
    address.len = hdr.msg_namelen;
    Ok(Datagram { len, control: hdr.msg_controllen.min(control.len()), flags: hdr.msg_flags, address })
}

pub(crate) fn getpid() -> u32 {
    sys::getpid()
}

pub(crate) fn close(fd: i32) {
    sys::close(fd)
}

// --- reading integers out of bytes the kernel or a peer wrote

pub(crate) fn array<const N: usize>(b: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    // Out of range reads as zeros: no parser can be made to panic by a short buffer.
    if let Some(part) = b.get(at..at + N) {
        out.copy_from_slice(part);
    }
    out
}

pub(crate) fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(array(b, at))
}

pub(crate) fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(array(b, at))
}

pub(crate) fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(array(b, at))
}

/// Copies `value` to `b[at..]`; the caller's constants keep it inside.
pub(crate) fn put(b: &mut [u8], at: usize, value: &[u8]) {
    if let Some(part) = b.get_mut(at..at + value.len()) {
        part.copy_from_slice(value);
    }
}
