//! A middlebox that only passes on: each connection goes to the address that its client has asked for, or to a proxy that is told it by the PROXY
//! protocol (version 2). It keeps back who sends faster than the other side reads, and a stream that was cut on one side is reset on the other,
//! never ended.

use crate::sys;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;

/// Bytes of each direction that are under way here.
const BUFFER: usize = 64 << 10;
/// A connection's thread needs little.
const STACK: usize = 64 << 10;

/// Where connections go.
#[derive(Clone, Copy, Debug)]
pub struct Onward {
    /// To this address; none: to that which the client has asked for.
    pub to: Option<SocketAddr>,
    /// Whether it is told both addresses of the client's connection first.
    pub proxy: bool,
}

/// Accepts connections and passes them on, until accepting fails for good.
pub fn serve(listener: &TcpListener, onward: Onward) -> io::Error {
    let own = match listener.local_addr() {
        Ok(own) => own,
        Err(e) => return e,
    };
    loop {
        let client = match listener.accept() {
            Ok((client, _)) => client,
            // A client that has gone meanwhile, or no descriptors or memory for it: others end in time.
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted || e.kind() == io::ErrorKind::Interrupted => {
                continue;
            }
            Err(e)
                if [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM]
                    .contains(&e.raw_os_error().unwrap_or(0)) =>
            {
                thread::sleep(std::time::Duration::from_millis(10));
                continue;
            }
            Err(e) => return e,
        };
        resets(&client, true);
        let builder = thread::Builder::new().stack_size(STACK + BUFFER);
        if let Err(e) = builder.spawn(move || {
            if let Err(e) = carry(&client, own, onward) {
                eprintln!("culvert-redirect: {e}");
            }
        }) {
            eprintln!("culvert-redirect: a connection's thread: {e}");
        }
    }
}

/// A listener of connections that keep the address that they are for, whosever it is (IP_TRANSPARENT).
pub fn transparent(listener: &TcpListener) -> io::Result<()> {
    sys::transparent(listener, listener.local_addr()?.is_ipv6())
}

/// Whether closing the socket resets the connection, also when this process is killed: until both streams have come to their ends nobody must take
/// what has come so far for all.
fn resets(stream: &TcpStream, yes: bool) {
    // It fails for no socket of TCP.
    let _ = setsockopt(stream, sockopt::Linger, &libc::linger { l_onoff: yes.into(), l_linger: 0 });
}

fn carry(client: &TcpStream, own: SocketAddr, onward: Onward) -> Result<(), String> {
    let failed = |e: io::Error| format!("a client's connection: {e}");
    let peer = client.peer_addr().map_err(failed)?;
    let asked = culvert::asked(client).map_err(failed)?;
    // Where the listener has all addresses, this is one of them.
    let itself = asked.port() == own.port() && (own.ip().is_unspecified() || asked.ip() == own.ip());
    let to = match onward.to {
        Some(to) => to,
        None if itself => {
            return Err(format!(
                "{peer} has asked for {asked}, which is this relay (or nobody tells it for whom: is it in the group `--middlebox`?)"
            ));
        }
        None => asked,
    };
    let server = TcpStream::connect(to).map_err(|e| format!("{to}: {e}"))?;
    resets(&server, true);
    let done = (|| {
        if onward.proxy {
            (&server).write_all(&header(SocketAddr::new(peer.ip().to_canonical(), peer.port()), asked))?;
        }
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        client.set_nonblocking(true)?;
        server.set_nonblocking(true)?;
        pass(client, &server)
    })();
    done.map_err(|e| format!("{peer} to {to}: {e}"))
}

/// What stands before the stream: section 2.2 of the protocol's text (proxy-protocol.txt of HAProxy).
fn header(client: SocketAddr, asked: SocketAddr) -> Vec<u8> {
    let mut out = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    let ports = [client.port().to_be_bytes(), asked.port().to_be_bytes()].concat();
    let (family, addresses) = match (client.ip(), asked.ip()) {
        (IpAddr::V4(client), IpAddr::V4(asked)) => (0x11, [client.octets(), asked.octets()].concat()),
        (client, asked) => {
            let octets = |ip| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            (0x21, [octets(client), octets(asked)].concat())
        }
    };
    out.push(family);
    out.extend(((addresses.len() + ports.len()) as u16).to_be_bytes());
    out.extend(addresses);
    out.extend(ports);
    out
}

/// One direction of a stream.
struct Way<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
    ended: bool,
    done: bool,
}

/// Nothing if it would have waited.
fn tried(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(n) => Ok(Some(n)),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock || e.kind() == io::ErrorKind::Interrupted => Ok(None),
        Err(e) => Err(e),
    }
}

impl<'a> Way<'a> {
    fn new(from: &'a TcpStream, to: &'a TcpStream) -> Way<'a> {
        Way { from, to, buffer: vec![0; BUFFER], begin: 0, end: 0, ended: false, done: false }
    }

    fn reads(&self) -> bool {
        !self.ended && self.begin == self.end
    }

    fn writes(&self) -> bool {
        self.begin < self.end
    }

    /// As far as it goes without waiting, once around.
    fn go(&mut self) -> io::Result<()> {
        if self.reads()
            && let Some(n) = tried(self.from.read(&mut self.buffer))?
        {
            (self.begin, self.end, self.ended) = (0, n, n == 0);
        }
        while self.writes() {
            match tried(self.to.write(&self.buffer[self.begin..self.end]))? {
                Some(n) => self.begin += n,
                None => return Ok(()),
            }
        }
        if self.ended && !self.done {
            self.to.shutdown(Shutdown::Write)?;
            self.done = true;
        }
        Ok(())
    }
}

fn pass(client: &TcpStream, server: &TcpStream) -> io::Result<()> {
    let (mut there, mut back) = (Way::new(client, server), Way::new(server, client));
    while !(there.done && back.done) {
        let mut waits = Vec::with_capacity(2);
        for (reads, writes) in [(&there, &back), (&back, &there)] {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, reads.reads());
            flags.set(PollFlags::POLLOUT, writes.writes());
            // A socket with both ends behind it has nothing more to say, and would say so all the time.
            if !(reads.ended && writes.done) {
                waits.push(PollFd::new(reads.from.as_fd(), flags));
            }
        }
        match poll(&mut waits, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            result => result?,
        };
        // Also where nothing is to be read or written: one side is gone, and the other must hear of it.
        if waits.iter().filter_map(PollFd::revents).any(|flags| flags.contains(PollFlags::POLLERR)) {
            [client, server].into_iter().try_for_each(|stream| stream.take_error()?.map_or(Ok(()), Err))?;
        }
        there.go()?;
        back.go()?;
    }
    resets(client, false);
    resets(server, false);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_the_protocol_s() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let four = header(address("192.0.2.1:258"), address("192.0.2.2:80"));
        assert_eq!(four[..16], *b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c");
        assert_eq!(four[16..], [192, 0, 2, 1, 192, 0, 2, 2, 1, 2, 0, 80]);
        let six = header(address("[::1]:1"), address("[fd00::2]:2"));
        assert_eq!((six[13], six[14..16].to_vec(), six.len()), (0x21, vec![0, 36], 52));
        assert_eq!((six[31], six[32], six[47], six[48..].to_vec()), (1, 0xfd, 2, vec![0, 1, 0, 2]));
    }
}
