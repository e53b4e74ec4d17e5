//! An actor: a thread that makes the socket calls it is told to make, and reports what came of each.
//!
//! Descriptors have script names `v0..v63`; the table is per process, inherited by fork and handed to an
//! exec'd image in its arguments.

mod bulk;
mod bytes;
mod fds;
mod process;
mod wait;

use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::SeqCst};

use crate::raw;

/// Script names per process.
pub const SLOTS: usize = 64;
/// The process's Unix datagram socket, through which descriptors are passed.
pub const SLOT_UNIX: usize = 63;
/// A file of known content, for sendfile.
pub const SLOT_FILE: usize = 62;
/// Length of that file.
pub const FILE_LEN: usize = 64 << 10;

static FDS: [AtomicI32; SLOTS] = [const { AtomicI32::new(-1) }; SLOTS];
static CONTROL: [AtomicI32; 32] = [const { AtomicI32::new(-1) }; 32];
static HANDLED: AtomicU32 = AtomicU32::new(0);
static PIPES: AtomicU32 = AtomicU32::new(0);

/// Makes a libc call. The arguments come from a script and may be wrong on purpose.
macro_rules! call {
    ($f:ident ( $($arg:expr),* $(,)? )) => {
        // SAFETY: buffers passed are live locals of the stated length; deliberately bad descriptors and
        // pointers are for the kernel to refuse.
        unsafe { libc::$f($($arg),*) }
    };
}
pub(crate) use call;

/// The calling thread's errno.
pub(crate) fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn set_errno(value: i32) {
    // SAFETY: the location is the calling thread's own.
    unsafe { *libc::__errno_location() = value };
}

/// A value no call sets, to see that success leaves errno alone.
const ERRNO_MARK: i32 = 99_999;

/// Runs `f` and shows its result: `r=<n>`, the error name on failure, and what else changed.
fn shown(f: impl FnOnce() -> i64) -> (i64, String) {
    let pipes = PIPES.load(SeqCst);
    set_errno(ERRNO_MARK);
    let r = f();
    let e = errno();
    let mut out = format!("r={r}");
    if r < 0 {
        out += &format!(" {}", name_of(e));
    } else if e != ERRNO_MARK {
        out += &format!(" errno-changed-to-{e}");
    }
    let signals = PIPES.load(SeqCst) - pipes;
    if signals != 0 {
        out += &format!(" sigpipe={signals}");
    }
    (r, out)
}

fn name_of(e: i32) -> String {
    let name = match e {
        libc::EAGAIN => "EAGAIN",
        libc::EBADF => "EBADF",
        libc::ECONNRESET => "ECONNRESET",
        libc::EEXIST => "EEXIST",
        libc::EFAULT => "EFAULT",
        libc::EINPROGRESS => "EINPROGRESS",
        libc::EINTR => "EINTR",
        libc::EINVAL => "EINVAL",
        libc::EISCONN => "EISCONN",
        libc::ENOENT => "ENOENT",
        libc::ENOTCONN => "ENOTCONN",
        libc::ENOTSOCK => "ENOTSOCK",
        libc::EPERM => "EPERM",
        libc::EPIPE => "EPIPE",
        libc::ESPIPE => "ESPIPE",
        libc::ETIMEDOUT => "ETIMEDOUT",
        libc::ENOTTY => "ENOTTY",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        _ => return format!("errno{e}"),
    };
    name.into()
}

/// The arguments of one operation, taken from left to right.
struct Args<'a>(std::str::SplitWhitespace<'a>);

impl<'a> Args<'a> {
    fn word(&mut self) -> &'a str {
        self.0.next().expect("the operation has enough arguments")
    }
    fn int(&mut self) -> i64 {
        self.word().parse().expect("a number")
    }
    fn size(&mut self) -> usize {
        self.int() as usize
    }
    fn list(&mut self) -> Vec<usize> {
        self.word().split(',').map(|n| n.parse().expect("a number")).collect()
    }
    fn slot(&mut self) -> usize {
        slot_named(self.word())
    }
    fn fd(&mut self) -> i32 {
        FDS[self.slot()].load(SeqCst)
    }
}

fn slot_named(word: &str) -> usize {
    let n: usize = word.trim_start_matches('v').parse().expect("a slot");
    assert!(n < SLOTS);
    n
}

fn fd_in(slot: usize) -> i32 {
    FDS[slot].load(SeqCst)
}

fn set_slot(slot: usize, fd: i32) {
    FDS[slot].store(fd, SeqCst);
}

extern "C" fn count_signal(_: i32) {
    HANDLED.fetch_add(1, SeqCst);
}

extern "C" fn count_pipe(_: i32) {
    PIPES.fetch_add(1, SeqCst);
}

/// Installs `handler` for `sig` with libc's sigaction.
fn install(sig: i32, handler: usize, flags: i32) -> i32 {
    // SAFETY: zero is a valid sigaction; the handler only touches atomics.
    let mut sa: libc::sigaction = unsafe { std::mem::zeroed() };
    sa.sa_sigaction = handler;
    sa.sa_flags = flags;
    call!(sigaction(sig, &raw const sa, std::ptr::null_mut()))
}

fn handler(f: extern "C" fn(i32)) -> usize {
    f as *const () as usize
}

fn add_control(fd: i32) {
    let free = CONTROL.iter().find(|c| c.compare_exchange(-1, fd, SeqCst, SeqCst).is_ok());
    assert!(free.is_some(), "too many threads in one actor");
}

/// Entry of an actor image: `name conductor-address slot=fd,...`.
pub fn main(name: &str, conductor: &str, table: &str) -> ! {
    for entry in table.split(',').filter(|e| !e.is_empty()) {
        let (slot, fd) = entry.split_once('=').expect("slot=fd");
        set_slot(slot_named(slot), fd.parse().expect("a descriptor"));
    }
    install(libc::SIGPIPE, handler(count_pipe), 0);
    install(libc::SIGUSR1, handler(count_signal), libc::SA_RESTART);
    install(libc::SIGALRM, handler(count_signal), 0);
    if fd_in(SLOT_FILE) < 0 {
        process::open_private(name, conductor);
    }
    serve(name, conductor)
}

/// Serves the conductor as `name` until it goes away.
fn serve(name: &str, conductor: &str) -> ! {
    let control = raw::connect(conductor);
    add_control(control);
    raw::send(control, &format!("{name} {} {}", raw::getpid(), raw::gettid()));
    loop {
        let text = raw::recv(control);
        let reply = perform(&text, name, conductor);
        raw::send(control, &reply);
    }
}

/// Performs one operation; the text after a tab is for the conductor alone, not for the trace.
fn perform(text: &str, name: &str, conductor: &str) -> String {
    let mut words = text.split_whitespace();
    let op = words.next().expect("an operation");
    let mut args = Args(words);
    bytes::perform(op, &mut args)
        .or_else(|| fds::perform(op, &mut args))
        .or_else(|| wait::perform(op, &mut args))
        .or_else(|| bulk::perform(op, &mut args))
        .or_else(|| process::perform(op, &mut args, name, conductor))
        .unwrap_or_else(|| panic!("unknown operation {text:?}"))
}
