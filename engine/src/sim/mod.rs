//! A simulated kernel, for the tests of this crate: nothing happens in it but what a test does, so each run is the same.
//!
//! It knows connected TCP sockets ([`tcp`]), files in memory, and doorbells. All is one thread's: a call that would sleep runs
//! what the test has left for that moment ([`Simulated::meanwhile`]), as if other processes ran; if nothing has woken the
//! sleeper then, and it has no deadline, the test fails: nobody would ever wake it. With a deadline the clock goes on to it.
//!
//! What a test does to it is below, the engine's calls are in [`calls`]; [`world`] builds connections on top.
mod calls;
pub mod faults;
mod inplace;
pub mod process;
mod state;
pub mod tcp;
pub mod world;

use faults::Want;
use state::{Object, state, unseen};
use tcp::Tcp;

/// The kernel of the tests.
pub struct Simulated;

/// What tests do to the kernel, and what they ask of it.
impl Simulated {
    /// The call after the next `after` that need `want` fails, and with `lasting` all that follow.
    pub fn refuse(want: Want, after: u32, lasting: bool) {
        state().faults.refuse(want, after, lasting);
    }

    /// No call fails any more. How many have.
    pub fn refused() -> u32 {
        state().faults.end()
    }

    /// The process with that mailbox has ended.
    pub fn lose_mailbox(name: u64) {
        state().gone.insert(name);
    }

    /// A connection: the descriptor of the end that connected, and of the one that was accepted.
    pub fn connection() -> (i32, i32) {
        let mut s = state();
        s.connections.push(Tcp::new());
        let i = s.connections.len() - 1;
        (s.open(Object::Socket(i, 0)), s.open(Object::Socket(i, 1)))
    }

    /// Does something to the connection behind `fd`: it, and which end `fd` is.
    pub fn tcp<T>(fd: i32, f: impl FnOnce(&mut Tcp, usize) -> T) -> T {
        let mut s = state();
        let (tcp, end) = s.socket(fd).expect("a socket");
        f(tcp, end)
    }

    /// Leaves something to be done while the next sleeper sleeps.
    pub fn meanwhile(f: impl FnOnce() + Send + 'static) {
        state().meanwhile.push_back(Some(Box::new(f)));
    }

    /// Leaves something to be done in the middle of the next copy: whoever copies is stopped there so long.
    pub fn in_copy(f: impl FnOnce() + Send + 'static) {
        state().in_copy = Some(Box::new(f));
    }

    /// Leaves something to be done when the next hole is about to be open.
    pub fn before_open(f: Box<dyn FnOnce() + Send>) {
        state().at_hole = Some((false, f));
    }

    /// The same when it is open, and not published.
    pub fn when_open(f: Box<dyn FnOnce() + Send>) {
        state().at_hole = Some((true, f));
    }

    /// A hole is open, or about to be.
    pub fn hole(is_open: bool) {
        let due = unseen().at_hole.take_if(|(open, _)| *open == is_open);
        if let Some((_, f)) = due {
            f();
        }
    }

    /// The next sleeper sleeps in vain, until its deadline.
    pub fn nothing_meanwhile() {
        state().meanwhile.push_back(None);
    }

    /// What was left for sleepers, and not needed, is not done.
    pub fn forget_meanwhile() {
        state().meanwhile.clear();
    }

    /// Whether a socket option was ever set.
    pub fn was_set(fd: i32, level: i32, name: i32) -> bool {
        let s = state();
        let socket = s.descriptors.get(&fd).and_then(|id| s.sockets.get(id));
        socket.is_some_and(|socket| socket.options.contains_key(&(level, name)))
    }

    /// Sets O_NONBLOCK.
    pub fn set_nonblocking(fd: i32) {
        let mut s = state();
        let id = s.descriptors[&fd];
        s.sockets.entry(id).or_default().nonblocking = true;
    }

    /// Whether all of that has been done.
    pub fn is_quiet() -> bool {
        let s = state();
        s.meanwhile.is_empty() && s.in_copy.is_none() && s.at_hole.is_none()
    }

    /// Time passes.
    pub fn pass(ns: u64) {
        state().now += ns;
    }

    /// Makes memory of the program's fault.
    pub fn spoil(memory: &[u8]) {
        let at = memory.as_ptr().addr();
        state().bad.push(at..at + memory.len());
    }

    /// No more than `pages` pages of shared memory can be had; `None`: as many as anybody wants.
    pub fn limit_memory(pages: Option<usize>) {
        state().pages = pages;
    }

    /// The signals raised since this was asked last.
    pub fn raised() -> Vec<i32> {
        core::mem::take(&mut state().raised)
    }

    /// Sleeps that lasted until their deadline, since this was asked last.
    pub fn timeouts() -> u32 {
        core::mem::take(&mut state().timeouts)
    }

    /// Receives that found nothing, since this was asked last.
    pub fn vain_receives() -> u32 {
        core::mem::take(&mut state().vain)
    }

    /// The process that runs.
    fn process() -> u32 {
        unseen().process
    }

    /// A new process with the same descriptors; the old one goes on.
    fn fork() -> u32 {
        let mut s = state();
        s.processes += 1;
        let (child, descriptors) = (s.processes, s.descriptors.clone());
        s.others.insert(child, descriptors);
        child
    }

    /// Another process runs.
    fn become_process(pid: u32) {
        let mut s = unseen();
        let theirs = s.others.remove(&pid).expect("a process");
        let ours = core::mem::replace(&mut s.descriptors, theirs);
        let was = core::mem::replace(&mut s.process, pid);
        s.others.insert(was, ours);
    }

    /// A process that does not run ends.
    fn end_process(pid: u32) {
        let mut s = unseen();
        s.locks.retain(|_, by| *by != pid);
        let descriptors = s.others.remove(&pid).unwrap_or_default();
        descriptors.into_values().for_each(|id| s.closed(id));
    }

    /// Forgets what a test has left behind in the kernel.
    fn forget() {
        let mut s = state();
        s.meanwhile.clear();
        s.in_copy = None;
        s.at_hole = None;
        s.bad.clear();
        s.raised.clear();
        s.pages = None;
        s.faults.end();
        s.timeouts = 0;
        s.vain = 0;
        s.naps = 0;
    }

    /// Nobody has a socket any more: the connections and their ports are forgotten.
    fn forget_connections() {
        let mut s = state();
        assert!(!s.objects.values().any(|o| matches!(o, Object::Socket(..))));
        s.connections.clear();
    }

    /// All is closed that a test has opened: the memory of its files goes.
    fn forget_memory() {
        state().forget_memory();
    }

    /// A test has failed, and may have left anything behind.
    fn keep_memory() {
        state().keeps_memory = true;
    }

    /// Open descriptors of sockets and of files.
    pub fn count() -> (usize, usize) {
        let s = state();
        let sockets = s.descriptors.keys().filter(|fd| matches!(s.object(**fd), Some(Object::Socket(..)))).count();
        let files = s.descriptors.keys().filter(|fd| matches!(s.object(**fd), Some(Object::File(..)))).count();
        (sockets, files)
    }

    /// Receives as the program does, without waiting.
    pub fn recv(fd: i32, n: usize, peek: bool) -> Result<Vec<u8>, i32> {
        Self::tcp(fd, |tcp, end| tcp.recv(end, n, peek))
    }
}
