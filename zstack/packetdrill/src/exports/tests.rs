//! The table, called as packetdrill does: by two threads, on the real clock.

use super::*;
use std::mem::MaybeUninit;
use zstack_sim::packet::{self, Opt, Tcp, flag};

/// The table may be called from any thread.
#[derive(Clone, Copy)]
struct Table(*const Interface);
// SAFETY: the table is not written any more, and its functions lock.
unsafe impl Send for Table {}

impl Table {
    fn of(self) -> &'static Interface {
        // SAFETY: leaked below.
        unsafe { &*self.0 }
    }
}

fn open(flags: &std::ffi::CStr) -> Table {
    let mut table = Box::new(MaybeUninit::<Interface>::uninit());
    // SAFETY: room for a table, and a string.
    unsafe { packetdrill_interface_init(flags.as_ptr(), table.as_mut_ptr()) };
    Table(Box::leak(table).as_ptr())
}

fn inject(table: &Interface, tcp: &Tcp, payload: &[u8]) {
    let packet = packet::segment("192.0.2.1".parse().unwrap(), "192.168.0.1".parse().unwrap(), tcp, payload);
    // SAFETY: the packet's own bytes.
    let sent = unsafe { table.netdev_send.unwrap()(table.userdata, packet.as_ptr().cast(), packet.len()) };
    assert_eq!(sent, 0);
}

fn sniff(table: &Interface) -> (Tcp, usize, i64) {
    let (mut buffer, mut at) = ([0u8; 65_600], 0);
    let mut count = buffer.len();
    // SAFETY: the buffer's own bytes.
    let got = unsafe { table.netdev_receive.unwrap()(table.userdata, buffer.as_mut_ptr().cast(), &mut count, &mut at) };
    assert_eq!(got, 0);
    let ip = packet::ip(&buffer[..count], 0).expect("IP");
    assert!(packet::checksum_right(&buffer[..count], &ip));
    let (tcp, payload) = packet::tcp(&buffer[..count], &ip).expect("TCP");
    (tcp, ip.end - payload, at)
}

fn sockaddr(ip: [u8; 4], port: u16) -> [u8; 16] {
    let mut b = [0; 16];
    b[..2].copy_from_slice(&(c::AF_INET as u16).to_ne_bytes());
    b[2..4].copy_from_slice(&port.to_be_bytes());
    b[4..8].copy_from_slice(&ip);
    b
}

#[test]
fn a_connection_goes_through_the_table_while_another_thread_waits() {
    let shared = open(c"tso=0,local=192.168.0.1");
    let t = shared.of();
    let u = t.userdata;
    // SAFETY: pointers to this test's own memory, in the sizes that are named, and the table's userdata.
    unsafe {
        let listener = t.socket.unwrap()(u, c::AF_INET, c::SOCK_STREAM, c::IPPROTO_TCP);
        assert_eq!(listener, 3);
        assert_eq!(t.bind.unwrap()(u, listener, sockaddr([192, 168, 0, 1], 8080).as_ptr().cast(), 16), 0);
        assert_eq!(t.listen.unwrap()(u, listener, 1), 0);

        let caller = std::thread::spawn(move || {
            let (t, mut peer, mut len) = (shared.of(), [0u8; 16], 16);
            let u = t.userdata;
            let fd = t.accept.unwrap()(u, 3, peer.as_mut_ptr().cast(), &mut len);
            assert_eq!((fd, len, peer), (4, 16, sockaddr([192, 0, 2, 1], 40_000)));
            let mut into = [0u8; 64];
            let n = t.read.unwrap()(u, fd, into.as_mut_ptr().cast(), into.len());
            assert_eq!(&into[..n as usize], b"hello");
            n
        });
        let syn = Tcp {
            source: 40_000,
            destination: 8080,
            flags: flag::SYN,
            window: 5000,
            options: vec![Opt::Mss(1000)],
            ..Tcp::default()
        };
        inject(t, &syn, &[]);
        let (answer, ..) = sniff(t);
        assert_eq!((answer.flags, answer.ack), (flag::SYN | flag::ACK, 1));
        let ack = Tcp { seq: 1, ack: answer.seq + 1, flags: flag::ACK, options: vec![], ..syn.clone() };
        inject(t, &ack, &[]);
        std::thread::sleep(Duration::from_millis(30));
        assert!(!caller.is_finished(), "nothing can be read");
        inject(t, &ack, b"hello");
        assert_eq!(caller.join().unwrap(), 5);
        assert_eq!(sniff(t).0.ack, 6);

        // Errors, options, poll, and the time that packets carry.
        assert_eq!(t.fcntl.unwrap()(u, 4, c::F_SETFL, c::O_NONBLOCK.into()), 0);
        let mut one = [0u8; 1];
        assert_eq!(t.read.unwrap()(u, 4, one.as_mut_ptr().cast(), 1), -1);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(c::EAGAIN));
        assert_eq!(t.close.unwrap()(u, 77), -1);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(c::EBADF));
        let (mut info, mut len) = ([0u8; 232], 232);
        let got = t.getsockopt.unwrap()(u, 4, c::IPPROTO_TCP, c::TCP_INFO, info.as_mut_ptr().cast(), &mut len);
        assert_eq!((got, info[0], info[80]), (0, 1, 10), "established, a window of ten segments");
        let mut fds = [c::pollfd { fd: 4, events: c::POLLIN | c::POLLOUT, revents: 0 }];
        assert_eq!((t.poll.unwrap()(u, fds.as_mut_ptr(), 1, 0), fds[0].revents), (1, c::POLLOUT));
        fds[0].events = c::POLLIN;
        assert_eq!(t.poll.unwrap()(u, fds.as_mut_ptr(), 1, 20), 0);

        let mut before: c::timeval = std::mem::zeroed();
        t.gettimeofday.unwrap()(u, &mut before, std::ptr::null_mut());
        let vector = [c::iovec { iov_base: info.as_mut_ptr().cast(), iov_len: 200 }; 6];
        assert_eq!(t.writev.unwrap()(u, 4, vector.as_ptr(), 6), 1200);
        let ((first, len, at), (_, rest, _)) = (sniff(t), sniff(t));
        assert_eq!((first.seq, len, rest), (answer.seq + 1, 1000, 200));
        let late = at - (before.tv_sec * 1_000_000 + before.tv_usec);
        assert!((0..500_000).contains(&late), "{late}");
        // Nobody acknowledges: somebody who sniffs sees the retransmission, whose timer fires meanwhile.
        let (again, _, later) = sniff(t);
        assert!(later - at > 100_000 && again.seq.wrapping_sub(first.seq) <= 1000);
        t.free.unwrap()(u);
    }
}

#[test]
fn flags_are_read_and_wrong_ones_named() {
    let setup = super::setup("mtu=900, tso=0,local=10.1.2.3,sack=0,cc=reno").unwrap();
    assert_eq!((setup.mtu, setup.tso, setup.options.sack), (900, 0, false));
    assert_eq!(setup.local.0, "10.1.2.3".parse::<IpAddr>().unwrap());
    for (wrong, named) in [("mtu=x", "mtu=x"), ("fly=1", "fly"), ("sack=2", "sack=2"), ("local=::1", "local=::1")] {
        assert!(super::setup(wrong).unwrap_err().contains(named), "{wrong}");
    }
}

/// The table's layout is packetdrill's: 33 pointers, of which `netdev_send` is the 25th.
#[test]
fn the_table_has_its_layout() {
    assert_eq!(size_of::<Interface>(), 33 * size_of::<usize>());
    assert_eq!(std::mem::offset_of!(Interface, netdev_send), 24 * size_of::<usize>());
}

/// A program in C, whose table is declared in C, calls everything that packetdrill calls. It is loaded here, and given the function
/// that packetdrill finds by its name; `abi/driver.c` tells how it loads the object itself.
#[test]
fn a_program_in_c_finds_the_table_that_it_expects() {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/abi/driver.c");
    let folder = std::env::temp_dir().join(format!("zstack-packetdrill-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let object = folder.join("driver.so");
    let compiler = std::process::Command::new("cc")
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
        .arg(&object)
        .args([source, "-lpthread", "-ldl"])
        .status()
        .expect("cc");
    assert!(compiler.success());
    let name = std::ffi::CString::new(object.to_str().unwrap()).unwrap();
    // SAFETY: the object has nothing that runs when it is loaded, `drive` has the type of its definition, and what it returns is null
    // or a string that lives as long as the object.
    unsafe {
        let handle = c::dlopen(name.as_ptr(), c::RTLD_NOW | c::RTLD_LOCAL);
        assert!(!handle.is_null());
        std::fs::remove_dir_all(&folder).unwrap();
        let drive = c::dlsym(handle, c"drive".as_ptr());
        assert!(!drive.is_null());
        type Init = unsafe extern "C" fn(*const c_char, *mut Interface);
        let drive: unsafe extern "C" fn(Init) -> *const c_char = std::mem::transmute(drive);
        let wrong = drive(packetdrill_interface_init);
        assert!(wrong.is_null(), "{:?}", std::ffi::CStr::from_ptr(wrong));
    }
}
