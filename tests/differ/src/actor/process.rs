//! Calls that make threads and processes, pass descriptors between them, and set up signals.

use std::ffi::CString;
use std::ptr;
use std::sync::atomic::Ordering::SeqCst;

use super::{
    Args, CONTROL, FDS, FILE_LEN, HANDLED, SLOT_FILE, SLOT_UNIX, SLOTS, call, count_signal, fd_in, handler, install,
    serve, set_slot, shown,
};
use crate::spaces::Spaces;
use crate::{raw, rng};

/// What every process has: a Unix datagram socket named after it, and a file for sendfile.
pub fn open_private(name: &str, conductor: &str) {
    let file = call!(memfd_create(c"differ-file".as_ptr(), 0));
    assert!(file >= 0);
    let content = rng::fill(77, FILE_LEN);
    assert_eq!(call!(write(file, content.as_ptr().cast(), FILE_LEN)), FILE_LEN as isize);
    set_slot(SLOT_FILE, file);
    open_unix(name, conductor);
}

fn unix_name(process: &str, conductor: &str) -> String {
    format!("{conductor}-{}", process.split('.').next().unwrap_or(process))
}

fn open_unix(name: &str, conductor: &str) {
    let fd = call!(socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0));
    let (sa, len) = raw::address(&unix_name(name, conductor));
    assert_eq!(call!(bind(fd, (&raw const sa).cast(), len)), 0, "bind of the process's Unix socket");
    set_slot(SLOT_UNIX, fd);
}

pub fn perform(op: &str, a: &mut Args, name: &str, conductor: &str) -> Option<String> {
    Some(match op {
        "thread" => {
            let (child, conductor) = (a.word().to_owned(), conductor.to_owned());
            std::thread::spawn(move || serve(&child, &conductor));
            "started".into()
        }
        "fork" => fork(a.word(), "-", conductor),
        "forkin" => fork(a.word(), a.word(), conductor),
        "exec" => exec(a.word(), a.int() == 1, name, conductor),
        "pspawn" => posix_spawn(a, conductor),
        "exit" => match a.word() {
            "exit" => call!(exit(0)),
            _ => call!(_exit(0)),
        },
        "usend" => send_fd(a.fd(), a.word(), conductor),
        "urecv" => receive_fd(a.slot(), a.int() as i32),
        "sigact" => {
            let (sig, mode) = (a.int() as i32, a.word());
            let r = match mode {
                "restart" => install(sig, handler(count_signal), libc::SA_RESTART),
                "plain" => install(sig, handler(count_signal), 0),
                "ignore" => install(sig, libc::SIG_IGN, 0),
                other => panic!("unknown disposition {other}"),
            };
            format!("r={r}")
        }
        "handled" => format!("n={}", HANDLED.swap(0, SeqCst)),
        "alarm" => {
            // A one-shot timer whose signal is to hit the call that the script makes next.
            let ms = a.int();
            let value = libc::timeval { tv_sec: ms / 1000, tv_usec: ms % 1000 * 1000 };
            let timer = libc::itimerval { it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 }, it_value: value };
            let fd = a.fd();
            let mut b = [0u8; 1];
            let none = ptr::null_mut::<libc::itimerval>();
            // SAFETY: both pointers are valid for the call or null.
            let set = unsafe { libc::syscall(libc::SYS_setitimer, libc::ITIMER_REAL, &raw const timer, none) };
            assert_eq!(set, 0);
            shown(|| call!(recv(fd, b.as_mut_ptr().cast(), 1, libc::MSG_PEEK)) as i64).1
        }
        _ => return None,
    })
}

fn close_control() {
    for c in &CONTROL {
        let fd = c.swap(-1, SeqCst);
        if fd >= 0 {
            raw::close(fd);
        }
    }
}

/// Forks into new namespaces.
fn fork(child: &str, spaces: &str, conductor: &str) -> String {
    let spaces = Spaces::new(spaces);
    let made = spaces.around_fork(|| {
        let pid = call!(fork());
        if pid == 0 {
            close_control();
            // The parent's datagram socket stays the parent's; the number is freed for the child's own.
            call!(close(fd_in(SLOT_UNIX)));
            open_unix(child, conductor);
            if spaces.enter().is_err() {
                raw::exit(4);
            }
            serve(child, conductor);
        }
        pid
    });
    match made {
        Ok(pid) if pid > 0 => format!("forked\t{pid}"),
        Ok(_) => "fork failed".into(),
        Err(e) => format!("namespaces fail: {e}"),
    }
}

fn table() -> String {
    let stays = |fd: i32| fd >= 0 && call!(fcntl(fd, libc::F_GETFD)) & libc::FD_CLOEXEC == 0;
    let open = (0..SLOTS).filter(|s| stays(FDS[*s].load(SeqCst)));
    open.map(|s| format!("v{s}={}", FDS[s].load(SeqCst))).collect::<Vec<_>>().join(",")
}

/// This image's arguments and environment for a successor called `name`.
struct Image {
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Image {
    fn new(name: &str, conductor: &str, table: &str, preload: bool) -> Image {
        let text = |s: &str| CString::new(s).expect("no NUL inside");
        let args = ["differ", "actor", name, conductor, table].map(text).to_vec();
        let env = std::env::vars()
            .filter(|(k, _)| preload || k != "LD_PRELOAD")
            .map(|(k, v)| text(&format!("{k}={v}")))
            .collect();
        Image { args, env }
    }
}

fn pointers(list: &[CString]) -> Vec<*mut libc::c_char> {
    list.iter().map(|s| s.as_ptr().cast_mut()).chain([ptr::null_mut()]).collect()
}

fn exec(successor: &str, preload: bool, name: &str, conductor: &str) -> String {
    assert!(successor.starts_with(name.split('.').next().unwrap_or(name)));
    let image = Image::new(successor, conductor, &table(), preload);
    let (argv, envp) = (pointers(&image.args), pointers(&image.env));
    let (_, text) =
        shown(|| i64::from(call!(execve(c"/proc/self/exe".as_ptr(), argv.as_ptr().cast(), envp.as_ptr().cast()))));
    format!("exec failed: {text}")
}

/// `pspawn NAME v number preload`: a new image that has connection `v` as descriptor `number`, and nothing else.
fn posix_spawn(a: &mut Args, conductor: &str) -> String {
    let (child, slot, number, preload) = (a.word(), a.slot(), a.int() as i32, a.int() == 1);
    let image = Image::new(child, conductor, &format!("v{slot}={number}"), preload);
    let (argv, envp) = (pointers(&image.args), pointers(&image.env));
    let mut pid = 0;
    // SAFETY: zero is a valid state to initialise from.
    let mut actions: libc::posix_spawn_file_actions_t = unsafe { std::mem::zeroed() };
    let acts = &raw mut actions;
    call!(posix_spawn_file_actions_init(acts));
    call!(posix_spawn_file_actions_adddup2(acts, fd_in(slot), number));
    for s in 0..SLOTS {
        let fd = fd_in(s);
        if fd > 2 && fd != number {
            call!(posix_spawn_file_actions_addclose(acts, fd));
        }
    }
    let r =
        call!(posix_spawn(&raw mut pid, c"/proc/self/exe".as_ptr(), acts, ptr::null(), argv.as_ptr(), envp.as_ptr()));
    call!(posix_spawn_file_actions_destroy(acts));
    format!("r={r}\t{pid}")
}

/// Room for one descriptor in a control message.
#[repr(C, align(8))]
struct Control([u8; 24]);

fn fd_message(iov: &mut libc::iovec, control: &mut Control) -> libc::msghdr {
    // SAFETY: zero is a valid msghdr.
    let mut m: libc::msghdr = unsafe { std::mem::zeroed() };
    m.msg_iov = iov;
    m.msg_iovlen = 1;
    m.msg_control = control.0.as_mut_ptr().cast();
    m.msg_controllen = control.0.len();
    m
}

fn send_fd(fd: i32, to: &str, conductor: &str) -> String {
    let (mut sa, len) = raw::address(&unix_name(to, conductor));
    let mut byte = [b'f'];
    let mut iov = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let mut control = Control([0; 24]);
    let mut m = fd_message(&mut iov, &mut control);
    m.msg_name = (&raw mut sa).cast();
    m.msg_namelen = len;
    // SAFETY: the control buffer is aligned and large enough for one descriptor.
    unsafe {
        let c = libc::CMSG_FIRSTHDR(&raw const m);
        (*c).cmsg_level = libc::SOL_SOCKET;
        (*c).cmsg_type = libc::SCM_RIGHTS;
        (*c).cmsg_len = libc::CMSG_LEN(4) as usize;
        libc::CMSG_DATA(c).cast::<i32>().write_unaligned(fd);
    }
    shown(|| call!(sendmsg(fd_in(SLOT_UNIX), &raw const m, 0)) as i64).1
}

fn receive_fd(slot: usize, flags: i32) -> String {
    let mut byte = [0u8];
    let mut iov = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let mut control = Control([0; 24]);
    let mut m = fd_message(&mut iov, &mut control);
    let (r, text) = shown(|| call!(recvmsg(fd_in(SLOT_UNIX), &raw mut m, libc::MSG_DONTWAIT | flags)) as i64);
    if r < 1 {
        return text;
    }
    // SAFETY: the kernel filled the control buffer that `m` describes.
    let fd = unsafe {
        let c = libc::CMSG_FIRSTHDR(&raw const m);
        if c.is_null() { -1 } else { libc::CMSG_DATA(c).cast::<i32>().read_unaligned() }
    };
    set_slot(slot, fd);
    format!("{text} fd={fd}")
}
