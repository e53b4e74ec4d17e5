//! What one thread uses of a front: a queue of the tun, and listeners for the SYNs that are written back.

use super::filter::Signpost;
use super::inward::{self, Accepted, Place};
use super::owners::{Owner, Owners};
use super::tun::Tun;
use crate::flow::Flow;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use zstack_wire::Seq;

/// A lane. The kernel brings a connection's packets to the lane by which packets of the same addresses and ports came in last; without
/// one, to one that it chooses by a hash, which is the same in both directions.
pub struct Lane {
    /// IPv4's and IPv6's.
    pub(super) listeners: [Option<OwnedFd>; 2],
    pub(super) place: Arc<Place>,
    /// None: there is no other lane.
    pub(super) signpost: Option<Signpost>,
    /// All lanes': a SYN comes to any.
    pub(super) owners: Option<Arc<Owners>>,
    // The last: with it go the addresses.
    pub(super) tun: Tun,
}

impl Lane {
    /// The tun, to sleep on (poll(2), epoll(7)) until a packet can be read.
    pub fn tun(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
    }

    /// Reads a packet that a program has sent, beginning with its IP header. A packet that is longer than the buffer (the MTU is
    /// enough) is cut off.
    ///
    /// # Errors
    /// `WouldBlock`: none waits. EBADFD: somebody has removed the interface.
    pub fn read(&self, packet: &mut [u8]) -> io::Result<usize> {
        self.tun.read(packet)
    }

    /// Whose socket it is that a SYN which was just read came from, as the kernel has noted it meanwhile. `None`: it has to be asked.
    pub fn owner(&self, flow: &Flow, isn: Seq) -> Option<Owner> {
        self.owners.as_ref()?.take(flow, isn)
    }

    /// Lets a packet come in by the tun, beginning with its IP header. The kernel looks at the checksums.
    ///
    /// # Errors
    /// EIO: the interface is down. EBADFD: it is gone. EINVAL: not IP.
    pub fn write(&self, packet: &[u8]) -> io::Result<()> {
        self.tun.write(packet)
    }

    /// The connection that a program's SYN asks for comes to this lane's listeners, when the SYN is written back, until
    /// [`Lane::expect_no_more`]. On any lane but the first it has to be said before.
    ///
    /// # Errors
    /// Those of bpf(2): E2BIG where more are expected than [`Wanted::held`](super::Wanted::held).
    pub fn expect(&self, program: SocketAddr, remote: SocketAddr) -> io::Result<()> {
        self.signpost.as_ref().map_or(Ok(()), |signpost| signpost.set(program, remote))
    }

    /// It was accepted, or given up.
    pub fn expect_no_more(&self, program: SocketAddr, remote: SocketAddr) {
        if let Some(signpost) = &self.signpost {
            signpost.remove(program, remote);
        }
    }

    /// The transparent listeners, of IPv4 and of IPv6 as far as zstackd has addresses of the family, to sleep on until
    /// [`Lane::accept`] has something.
    pub fn listeners(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.listeners.iter().flatten().map(AsFd::as_fd)
    }

    /// Takes the next connection of a program, which stands since zstackd has written its SYN back, from either listener.
    ///
    /// # Errors
    /// Those of accept4(2), EMFILE above all.
    pub fn accept(&self) -> io::Result<Option<Accepted>> {
        for listener in self.listeners() {
            if let Some(accepted) = inward::accept(listener, self.place.least)? {
                return Ok(Some(accepted));
            }
        }
        Ok(None)
    }

    /// Connects to a program's listener `to`, an address of zstackd's, as the remote host's `client`. Nonblocking: the connection
    /// stands, or is under way; the socket becomes writable then, and its SO_ERROR tells (connect(2)). It resets the connection
    /// when it is closed, until [`end_in_order`](super::end_in_order). The last ACK of its handshake goes with the first bytes, after
    /// [`acknowledge`](super::acknowledge), or after 0.2 seconds: until then the server has not accepted it. The calling thread has to be
    /// in the front's network namespace.
    ///
    /// # Errors
    /// ECONNREFUSED, and the others of socket(2), bind(2) and connect(2): EADDRNOTAVAIL if this connection exists already.
    pub fn connect_inward(&self, client: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
        inward::connect(client, to, &self.place).map(TcpStream::from)
    }
}
