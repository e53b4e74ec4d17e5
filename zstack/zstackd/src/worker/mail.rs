//! The letters that threads send to workers.

use super::asker::Asker;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use zstack::net::Route;

/// What a worker is told.
pub(crate) enum Letter {
    /// A program's packet, of a connection that this worker has, came to another one's queue of the tun.
    FromProgram(Box<[u8]>),
    /// The routes are other ones.
    Routes(Arc<[Route]>),
    /// Somebody asks for all connections, and was told those of the workers before.
    Asker(Asker),
    /// The daemon ends.
    Stop,
}

/// Packets that wait for one worker at most: beyond them they are lost, as in a queue of the tun that is full.
const PACKETS: usize = 1024;

#[derive(Default)]
struct Letters {
    letters: VecDeque<Letter>,
    /// How many of them are packets.
    packets: usize,
}

/// A worker's letters.
struct Inbox {
    letters: Mutex<Letters>,
    bell: EventFd,
}

impl Inbox {
    fn letters(&self) -> MutexGuard<'_, Letters> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The letters of all workers.
pub(crate) struct Mail(Vec<Inbox>);

impl Mail {
    /// For so many workers.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new(workers: u16) -> io::Result<Mail> {
        let inbox = |_| {
            let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
            Ok(Inbox { letters: Mutex::default(), bell })
        };
        Ok(Mail((0..workers).map(inbox).collect::<io::Result<_>>()?))
    }

    /// Sends one. False: too many packets wait there already, and this one is lost.
    pub fn send(&self, to: u16, letter: Letter) -> bool {
        let Some(inbox) = self.0.get(usize::from(to)) else { return false };
        let mut letters = inbox.letters();
        if let Letter::FromProgram(_) = letter {
            if letters.packets >= PACKETS {
                return false;
            }
            letters.packets += 1;
        }
        letters.letters.push_back(letter);
        drop(letters);
        // Fails where the bell has been rung 2^64 - 2 times.
        let _ = inbox.bell.write(1);
        true
    }

    /// Takes all that have come.
    pub fn receive(&self, worker: u16) -> VecDeque<Letter> {
        let Some(inbox) = self.0.get(usize::from(worker)) else { return VecDeque::new() };
        // Before the letters are taken: one that comes behind rings again.
        let _ = inbox.bell.read();
        std::mem::take(&mut *inbox.letters()).letters
    }

    /// Readable when there are letters.
    pub fn bell(&self, worker: u16) -> BorrowedFd<'_> {
        self.0[usize::from(worker)].bell.as_fd()
    }

    /// How many workers there are.
    pub fn workers(&self) -> u16 {
        self.0.len() as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn rings(mail: &Mail, worker: u16) -> bool {
        poll(&mut [PollFd::new(mail.bell(worker), PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() > 0
    }

    #[test]
    fn letters_reach_one_worker_and_packets_are_bounded() {
        let mail = Mail::new(2).unwrap();
        let packet = || Letter::FromProgram([7].into());
        assert!(!rings(&mail, 1) && mail.send(1, Letter::Stop) && rings(&mail, 1) && !rings(&mail, 0));
        assert!(matches!(mail.receive(1).make_contiguous(), [Letter::Stop]) && !rings(&mail, 1));
        assert_eq!((0..2 * PACKETS).filter(|_| mail.send(0, packet())).count(), PACKETS);
        assert!(mail.send(0, Letter::Stop), "what must not be lost is not");
        assert_eq!(mail.receive(0).len(), PACKETS + 1);
        assert!(mail.send(0, packet()) && mail.receive(0).len() == 1 && mail.receive(0).is_empty());
        assert!(!mail.send(2, Letter::Stop));
    }
}
