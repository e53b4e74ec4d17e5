//! Echo requests of ours, and their answers: what `ping` does.

use super::Stack;
use crate::net::Unsent;
use crate::port::Port;
use crate::time::Time;
use std::collections::VecDeque;
use std::net::IpAddr;

/// Answers that wait to be taken; more are dropped.
const MOST: usize = 64;

/// An answer to an echo request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Echoed {
    /// Who sent it.
    pub from: IpAddr,
    /// The number of the request.
    pub sequence: u16,
    /// TTL or hop limit that was left.
    pub hops: u8,
    /// What the request carried.
    pub data: Vec<u8>,
}

/// Whose answers are wanted.
#[derive(Debug)]
pub(super) struct Echoes {
    id: u16,
    answers: VecDeque<Echoed>,
}

impl Stack {
    /// Sends an ICMP echo request with identifier `id`, at once; answers to it, and to no other identifier from now on, are kept
    /// for [`Stack::next_echo`].
    ///
    /// # Errors
    /// It was not sent. [`Unsent::Unresolved`]: a neighbour is being asked for; ask again a little later.
    pub fn echo<P: Port>(
        &mut self,
        now: Time,
        port: &mut P,
        to: IpAddr,
        (id, sequence): (u16, u16),
        data: &[u8],
    ) -> Result<(), Unsent> {
        match &mut self.echoes {
            Some(echoes) if echoes.id == id => {}
            echoes => *echoes = Some(Box::new(Echoes { id, answers: VecDeque::new() })),
        }
        let core = &mut self.core;
        let len = core.net.echo(now, &mut core.reply, None, to, id, sequence, data)?;
        // Whoever asked asks again if there is no room.
        let _ = core.send_reply(port, len);
        port.flush();
        Ok(())
    }

    /// The next answer.
    pub fn next_echo(&mut self) -> Option<Echoed> {
        self.echoes.as_mut()?.answers.pop_front()
    }

    /// An answer has come. False: to no request of ours.
    pub(super) fn echoed(&mut self, id: u16, answer: impl FnOnce() -> Echoed) -> bool {
        let Some(echoes) = self.echoes.as_mut().filter(|e| e.id == id) else { return false };
        if echoes.answers.len() < MOST {
            echoes.answers.push_back(answer());
        }
        true
    }
}
