//! What the lifeline says of its receiving direction: how far it was read, and how it ended.
#![forbid(unsafe_code)]

use super::look::peer;
use crate::endpoint::{Ep, latch};
use crate::lifeline;
use core::sync::atomic::Ordering::Relaxed;
use shmring::family::{FIN, RST};
use shmring::position::StreamPos;

/// If the lifeline has ended with an error, takes it, and notes what it says of the end.
pub fn note_failure(ep: Ep, fd: i32) {
    if ep.rx_fin.load(Relaxed) < FIN && lifeline::look(fd, 0) & libc::POLLERR != 0 {
        // Only its error tells whether a RST came behind a FIN: EPIPE (tcp_reset in CLOSE_WAIT). To ask takes it.
        if let Ok(e) = lifeline::option(fd, libc::SOL_SOCKET, libc::SO_ERROR)
            && e != 0
        {
            latch(ep, e);
            ep.rx_fin.store(if e == libc::EPIPE { FIN } else { RST }, Relaxed);
        }
    }
}

/// How far the lifeline was consumed, and bytes lying there. The direction is owned.
pub fn received(ep: Ep, fd: i32) -> Option<(StreamPos, u64)> {
    note_failure(ep, fd);
    if let Some(at) = ep.rx_at.load(Relaxed) {
        // tcpi_bytes_received counts a FIN as one byte. `rx_at` says how many bytes we have taken: a count that is one
        // higher includes a FIN, which is subtracted. The socket's error cannot tell it: in LAST_ACK a RST behind a FIN
        // gives ECONNRESET, too.
        let counted = lifeline::received(fd, Some(false), &ep.record().urgent);
        return counted.map(|(consumed, queued)| (if consumed == at.plus(1) { at } else { consumed }, queued));
    }
    lifeline::received(fd, fin_on_closed(ep), &ep.record().urgent)
}

/// Whether a FIN came on a connection that the kernel has closed by now, if that is known.
pub fn fin_on_closed(ep: Ep) -> Option<bool> {
    let noted = ep.rx_fin.load(Relaxed);
    match noted {
        FIN => Some(true),
        RST if ep.wr_shut.load(Relaxed) == 0 => Some(false),
        _ => ep.chan().and_then(|chan| {
            let p = peer(chan, chan.slot(ep.slot.load(Relaxed) as usize));
            match ep.wr_shut.load(Relaxed) {
                // In LAST_ACK and CLOSING a RST behind a FIN is ECONNRESET, too: then the peer has said that it finishes.
                _ if noted == RST => Some(p.wr_shut.load(Relaxed) != 0),
                // A connection that this side has not shut down is closed by a RST only, whoever has had its error:
                // perhaps behind the FIN of a peer that has shut down.
                0 => Some(p.wr_shut.load(Relaxed) != 0),
                // A peer that has finished says so, unless another program image of its did.
                _ => (p.wr_shut.load(Relaxed) | p.gone.load(Relaxed) != 0).then_some(true),
            }
        }),
    }
}
