//! How the two ends of a TCP connection find out that both run under culvert, prove it, and exchange
//! what they need to share memory. No byte of the connection passes through here.
//!
//! 1. **Publish.** The side that connected writes *tuple, socket cookie, mailbox* into its user's
//!    [`registry`] file. Nothing in the file is trusted by anybody: an entry may be stale, belong to an
//!    earlier connection of the same ports, or be a lie.
//! 2. **Look up, and let the kernel decide.** The side that accepted asks the kernel's socket
//!    diagnostics ([`diag`]) about the socket at the other end: its cookie and its owner's uid. It reads
//!    *that* uid's registry, and an entry counts only if it carries that very cookie. A cookie is never
//!    used twice while the machine is up, so this one answer settles stale entries, port reuse and
//!    identity at once.
//! 3. **Knock.** The acceptor sends [`Knock`](message::Message::Knock), which names the connection by its two cookies, to
//!    the [`mailbox`] in the entry. The connector looks whether it has published exactly this connection, and asks the kernel
//!    ([`diag`]) about its other end: the datagram, which the kernel stamps with its sender's uid, must come from a process
//!    of the user who holds that socket. Nobody else is answered, nor told why. The answer is
//!    [`Welcome`](message::Message::Welcome), whose uid must be that of step 2; it names a mailbox made for this one answer,
//!    to which the acceptor sends [`Channel`](message::Message::Channel): the shared memory.
//! 4. Pairs of processes that have a channel do not come here again, but for [`diag::find`] when a connection is offered
//!    there. They wake each other by [`bell`]s, whose names and keys they tell each other in the shared memory.
//!
//! # A process that stands in for other hosts
//! Where a process serves a network namespace ([`serving`]: zstackd), the other end of a connection to another host may be a
//! socket of that process's: one that has the other host's address (IP_TRANSPARENT). The steps are the same; what is said besides is in the [`intent`]s.
//! - *Whoever serves* says so ([`registry::serve`]). Before it stands in, it asks whether the program's process takes part: the
//!   socket whose SYN it holds, or the listener that a SYN from outside is for, is known to the kernel by cookie and uid, and
//!   that user's registry says so of it ([`registry::Registry::has_intent`], `Connect` or `Listen`).
//! - Of each of its own sockets that stands in, as soon as it has accepted it, or before it connects it, it says that it does
//!   (`publish_intent`, `StandIn`): under culvert the library does that if `CULVERT_STANDIN=1`. A program's process whose peer has an address of another network takes it for a peer only if it
//!   is a socket of the user who serves, who says that of it: a proxy that takes its client's address has two sockets of which
//!   each seems to be the other one's peer ([`route`]).
//!
//! The shared memory is all that two processes have in common: no other open file passes from one to the other, so that
//! nobody can make the other wait by what he does to it. Two answers of the kernel's are compared only if they are of the
//! same namespaces, and name a user who has a number there ([`uid`], [`home`]).
//!
//! Nobody waits for anybody: every call here returns at once, and "full", "not there" or "not yet" leaves
//! the connection on the kernel, where it already works.
//!
//! # What callers may rely on
//! No allocation, no lock, no `errno`, no libc call: only raw system calls, so everything may be called
//! inside the hooks, in a signal handler, and in the child of a threaded program that forked.
//! Descriptors kept between calls ([`registry::Registry`], [`diag::Cache`]) are taken out of their slot
//! while in use, so that two threads never share one; a thread that finds the slot empty works with a
//! temporary descriptor. If another thread forks in that moment, the child loses track of one descriptor
//! (close-on-exec) and opens another. A kept descriptor is recognised by device and inode before each use:
//! should the program have closed it behind our back and reused the number, the program's file is left
//! alone. The caller must not come here from a child that shares our memory (`vfork`).
#![cfg_attr(not(test), no_std)]
#![cfg_attr(not(test), deny(unsafe_code))]

pub mod bell;
pub mod diag;
#[doc(hidden)]
pub mod fuzzing;
pub mod home;
pub mod intent;
pub mod mailbox;
pub mod message;
pub mod registry;
pub mod route;
pub mod serving;
pub mod tuple;
pub mod uid;

mod keep;
mod netlink;
#[allow(unsafe_code)]
mod os;

#[cfg(test)]
mod testing;

pub use tuple::Tuple;

/// Moves a descriptor of ours out of the program's way (to a high number, close-on-exec kept) and returns
/// where it is now; on failure it returns the number it was given. The old number is closed.
pub type Place = fn(i32) -> i32;
