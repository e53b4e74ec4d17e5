//! The kernel's sockets, driven by the test, at the other end.

use crate::pattern;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// How long a single call may block.
const PATIENCE: Duration = Duration::from_secs(60);

fn patient(stream: TcpStream) -> TcpStream {
    // Whatever the machine has chosen for itself (BBR sends a few kilobytes a second after some timeouts); CUBIC is nearly
    // everywhere, and else the machine's choice stays.
    let name = "cubic";
    // SAFETY: the descriptor is open, and the name lives through the call.
    unsafe {
        let (fd, len) = (stream.as_raw_fd(), name.len() as u32);
        libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_CONGESTION, name.as_ptr().cast(), len);
    }
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    stream.set_write_timeout(Some(PATIENCE)).expect("a time limit");
    stream
}

pub fn connect(to: SocketAddr) -> TcpStream {
    patient(TcpStream::connect_timeout(&to, PATIENCE).unwrap_or_else(|e| panic!("connect to {to}: {e}")))
}

pub fn listen(at: IpAddr) -> TcpListener {
    TcpListener::bind((at, 0)).unwrap_or_else(|e| panic!("listen at {at}: {e}"))
}

/// The next connection; the engine has its time for the handshake.
pub fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).expect("not to block");
    let stream = crate::lab::soon("a connection", PATIENCE, || match listener.accept() {
        Ok((stream, _)) => Some(stream),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => panic!("accept: {error}"),
    });
    stream.set_nonblocking(false).expect("to block");
    patient(stream)
}

/// Sends the pattern: `bytes`, or as many as the time allows. How many it were.
pub fn feed(stream: &mut TcpStream, bytes: u64, time: Duration) -> io::Result<u64> {
    let end = Instant::now() + time;
    let mut sent = 0;
    while sent < bytes && Instant::now() < end {
        sent += stream.write(pattern::piece(sent, (bytes - sent).min(256 << 10)))? as u64;
    }
    Ok(sent)
}

/// Sends as [`feed`] does, ends the stream, and expects a sink's answer: all has come, and is right. How many bytes it were.
pub fn send(stream: &mut TcpStream, bytes: u64, time: Duration) -> u64 {
    let sent = feed(stream, bytes, time).expect("a write");
    finish(stream, sent);
    sent
}

/// Ends the stream of which `sent` bytes were sent, and expects a sink's answer.
pub fn finish(stream: &mut TcpStream, sent: u64) {
    stream.shutdown(Shutdown::Write).expect("shutdown");
    let mut answer = [0; 16];
    stream.read_exact(&mut answer).expect("a sink's answer");
    let number = |at: usize| u64::from_le_bytes(answer[at..at + 8].try_into().expect("eight bytes"));
    assert_eq!((number(0), number(8)), (sent, u64::MAX), "what the sink received, and where it is wrong");
    assert_eq!(stream.read(&mut answer).expect("the end"), 0, "nothing comes behind the answer");
}

/// Receives the pattern to the end of the stream; how many bytes it were.
pub fn receive(stream: &mut TcpStream) -> u64 {
    let mut buffer = vec![0; 256 << 10];
    let mut received = 0;
    loop {
        let n = stream.read(&mut buffer).unwrap_or_else(|e| panic!("a read after {received} bytes: {e}"));
        if n == 0 {
            return received;
        }
        if let Some(at) = pattern::wrong(received, &buffer[..n]) {
            panic!("byte {at} is wrong");
        }
        received += n as u64;
    }
}

/// Receives as [`receive`] does, and answers as a sink.
pub fn sink(stream: &mut TcpStream) -> u64 {
    let received = receive(stream);
    stream.write_all(&[received.to_le_bytes(), u64::MAX.to_le_bytes()].concat()).expect("the answer");
    received
}

/// Asks the engine's source for `bytes`, and receives them.
pub fn fetch(stream: &mut TcpStream, bytes: u64) {
    stream.write_all(&bytes.to_le_bytes()).expect("the request");
    assert_eq!(receive(stream), bytes);
}

/// Connects from a port, which may have been another connection's just before (SO_REUSEADDR in socket(7)).
pub fn connect_from(port: u16, to: SocketAddr) -> io::Result<TcpStream> {
    let SocketAddr::V4(to) = to else { panic!("{to}: IPv4 is enough here") };
    let name = |port: u16, ip: std::net::Ipv4Addr| libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(ip).to_be() },
        sin_zero: [0; 8],
    };
    let (own, peer) = (name(port, std::net::Ipv4Addr::UNSPECIFIED), name(to.port(), *to.ip()));
    let size = size_of::<libc::sockaddr_in>() as u32;
    let check = |result: i32| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
    // SAFETY: the descriptor that socket(2) gives is nobody else's; the addresses live through the calls.
    unsafe {
        let fd = check(libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0))?;
        let stream = <TcpStream as std::os::fd::FromRawFd>::from_raw_fd(fd);
        set(&stream, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
        check(libc::bind(fd, (&raw const own).cast(), size))?;
        check(libc::connect(fd, (&raw const peer).cast(), size))?;
        Ok(patient(stream))
    }
}

/// Probes the peer after a second of silence, and every second then (SO_KEEPALIVE in tcp(7)).
pub fn keep_alive(stream: &TcpStream) {
    set(stream, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    set(stream, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 1);
    set(stream, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 1);
    set(stream, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 2);
}

/// Closes with an RST (SO_LINGER in socket(7)).
pub fn reset(stream: TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let size = size_of::<libc::linger>() as u32;
    // SAFETY: the descriptor is open, and the value lives through the call.
    let result = unsafe {
        let value = (&raw const linger).cast();
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, value, size)
    };
    assert_eq!(result, 0, "SO_LINGER: {}", io::Error::last_os_error());
    drop(stream);
}

/// Sends bytes of which the last one is urgent (MSG_OOB in send(2)).
pub fn send_urgent(stream: &TcpStream, bytes: &[u8]) {
    // SAFETY: the descriptor is open, and the bytes live through the call.
    let sent = unsafe { libc::send(stream.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_OOB) };
    assert_eq!(sent, bytes.len() as isize, "{}", io::Error::last_os_error());
}

fn set(stream: &TcpStream, level: i32, option: i32, value: i32) {
    let size = size_of::<i32>() as u32;
    // SAFETY: the descriptor is open, and the value lives through the call.
    let result =
        unsafe { libc::setsockopt(stream.as_raw_fd(), level, option, std::ptr::from_ref(&value).cast(), size) };
    assert_eq!(result, 0, "setsockopt: {}", io::Error::last_os_error());
}

/// Ends the connection when what was sent is not acknowledged for so long (TCP_USER_TIMEOUT in tcp(7)).
pub fn user_timeout(stream: &TcpStream, time: Duration) {
    set(stream, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, time.as_millis() as i32);
}

/// Bytes that wait to be read (FIONREAD).
pub fn unread(stream: &TcpStream) -> i32 {
    let mut value = 0i32;
    // SAFETY: the descriptor is open; FIONREAD writes an int, which lives through the call.
    assert_eq!(unsafe { libc::ioctl(stream.as_raw_fd(), libc::FIONREAD, &raw mut value) }, 0);
    value
}
