//! Several processes of one family, one at a time: each is an image of the engine's statics, with a table of descriptors and locks of
//! its own in the simulated kernel. What they share is what a fork shares: files in memory, sockets.
//!
//! A process can be stopped, for good, at any call that it makes of the kernel: with the tokens and locks that it has then.
// Unsafe here: it keeps pointers that are words of a stopped process's statics.
#![allow(unsafe_code)]

use super::Simulated;
use crate::{attach, channel, closing, endpoint, family, members, own, poller, sleepers, table};
use core::cell::RefCell;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize};
use shmring::word::{Code, Coded, Width};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, MutexGuard};

/// A word of the engine's that each process has for itself.
#[derive(Clone, Copy)]
pub enum Word {
    Small(&'static AtomicU32),
    Signed(&'static AtomicI32),
    Wide(&'static AtomicU64),
    Size(&'static AtomicUsize),
    Flag(&'static AtomicBool),
    Place(&'static AtomicPtr<u8>),
}

macro_rules! words {
    ($($variant:ident $atomic:ty),*) => {
        $(impl From<&'static $atomic> for Word {
            fn from(w: &'static $atomic) -> Word {
                Word::$variant(w)
            }
        })*
    };
}

words!(Small AtomicU32, Signed AtomicI32, Wide AtomicU64, Size AtomicUsize, Flag AtomicBool, Place AtomicPtr<u8>);

impl<T: Code> From<&'static Coded<T>> for Word
where
    &'static <T::Bits as Width>::Atomic: Into<Word>,
{
    fn from(w: &'static Coded<T>) -> Word {
        w.word().into()
    }
}

#[derive(Clone, Copy)]
enum Value {
    Number(u64),
    Place(*mut u8),
}

// SAFETY: a pointer that is only kept.
unsafe impl Send for Value {}

impl Word {
    fn get(self) -> Value {
        match self {
            Word::Small(w) => Value::Number(w.load(Relaxed).into()),
            Word::Signed(w) => Value::Number(w.load(Relaxed) as u32 as u64),
            Word::Wide(w) => Value::Number(w.load(Relaxed)),
            Word::Size(w) => Value::Number(w.load(Relaxed) as u64),
            Word::Flag(w) => Value::Number(w.load(Relaxed).into()),
            Word::Place(w) => Value::Place(w.load(Relaxed)),
        }
    }

    fn set(self, v: Value) {
        match (self, v) {
            (Word::Small(w), Value::Number(n)) => w.store(n as u32, Relaxed),
            (Word::Signed(w), Value::Number(n)) => w.store(n as i32, Relaxed),
            (Word::Wide(w), Value::Number(n)) => w.store(n, Relaxed),
            (Word::Size(w), Value::Number(n)) => w.store(n as usize, Relaxed),
            (Word::Flag(w), Value::Number(n)) => w.store(n != 0, Relaxed),
            (Word::Place(w), Value::Place(p)) => w.store(p, Relaxed),
            // Of a channel that this process has never had.
            (Word::Place(w), Value::Number(_)) => w.store(core::ptr::null_mut(), Relaxed),
            _ => unreachable!("a place in a number"),
        }
    }
}

/// All of them: those of channels, of which there are more and more, at the end.
fn words() -> Vec<Word> {
    let mut all = Vec::new();
    let each = &mut |word| all.push(word);
    let tls = host::tls::tls();
    each(Word::Wide(&tls.owner));
    members::words(each);
    family::words(each);
    table::words(each);
    own::words(each);
    poller::words(each);
    sleepers::words(each);
    endpoint::words(each);
    crate::mail::RENDEZVOUS.words(each);
    crate::lifeline::INLINE.words(each);
    channel::words(each);
    all
}

/// A process that does not run.
struct Image {
    values: Vec<Value>,
    critical: u32,
}

impl Image {
    fn taken() -> Image {
        Image { values: words().into_iter().map(Word::get).collect(), critical: host::tls::tls().critical.get() }
    }

    fn put(&self) {
        for (i, word) in words().into_iter().enumerate() {
            word.set(self.values.get(i).copied().unwrap_or(Value::Number(0)));
        }
        host::tls::tls().critical.set(self.critical);
    }
}

/// Processes by pid, as far as they do not run.
static IMAGES: Mutex<Vec<(u32, Image)>> = Mutex::new(Vec::new());

fn images() -> MutexGuard<'static, Vec<(u32, Image)>> {
    IMAGES.lock().unwrap_or_else(|e| e.into_inner())
}

/// A process that was forked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Process(u32);

/// The first process, which tests run in.
pub(super) const FIRST: u32 = 1;

/// Makes `pid` the process that runs.
fn switch_to(pid: u32) -> u32 {
    let was = Simulated::process();
    if was == pid {
        return was;
    }
    let image = {
        let mut images = images();
        images.push((was, Image::taken()));
        let i = images.iter().position(|(p, _)| *p == pid).expect("a process that lives");
        images.swap_remove(i).1
    };
    Simulated::become_process(pid);
    image.put();
    was
}

/// Switches back when it goes, also if the test fails.
struct Back(u32);

impl Drop for Back {
    fn drop(&mut self) {
        switch_to(self.0);
    }
}

std::thread_local! {
    /// What happens to the process that runs, and after how many calls.
    static FATE: RefCell<Option<(u32, Fate)>> = const { RefCell::new(None) };
}

enum Fate {
    /// It is stopped.
    Stops,
    /// The first process runs meanwhile.
    Waits(Box<dyn FnOnce()>),
}

/// What unwinds a process that is stopped.
struct Stopped;

/// The process that runs makes a call.
pub fn call() {
    let due = FATE.with_borrow_mut(|fate| match fate {
        Some((0, _)) => fate.take(),
        Some((left, _)) => {
            *left -= 1;
            None
        }
        None => None,
    });
    match due {
        Some((_, Fate::Stops)) => resume_unwind(Box::new(Stopped)),
        Some((_, Fate::Waits(f))) => {
            let _back = Back(switch_to(FIRST));
            f();
        }
        None => {}
    }
}

impl Process {
    /// `fork` of the process that runs, as `shim::processes` does it.
    pub fn fork() -> Process {
        attach::before_fork();
        assert!(family::keep_place());
        channel::own().for_each(channel::Chan::note_fork);
        family::before_fork();
        channel::before_fork();
        let child = Process(Simulated::fork());
        images().push((child.0, Image::taken()));
        channel::after_fork_parent();
        family::after_fork_parent();
        attach::after_fork_parent();
        child.run(|| {
            host::tls::tls().after_fork_child();
            family::after_fork_child();
            poller::after_fork_child();
            sleepers::after_fork_child();
            attach::after_fork_child();
            family::held().for_each(closing::let_go);
        });
        child
    }

    /// All but the first, and the one that runs.
    pub fn others() -> Vec<Process> {
        images().iter().map(|(pid, _)| Process(*pid)).filter(|p| p.0 != FIRST).collect()
    }

    /// Runs `f` in it.
    pub fn run<T>(self, f: impl FnOnce() -> T) -> T {
        let _back = Back(switch_to(self.0));
        f()
    }

    /// Runs `f` in it until it has made `calls` calls; there it is stopped. `None`: it was.
    pub fn run_for<T>(self, calls: u32, f: impl FnOnce() -> T) -> Option<T> {
        let _back = Back(switch_to(self.0));
        FATE.set(Some((calls, Fate::Stops)));
        let r = catch_unwind(AssertUnwindSafe(f));
        FATE.set(None);
        match r {
            Ok(v) => Some(v),
            Err(e) if e.is::<Stopped>() => None,
            Err(e) => resume_unwind(e),
        }
    }

    /// Runs `f` in it, and `meanwhile` in the first process once that has made `calls` calls. True: it made so many.
    pub fn run_across(self, calls: u32, f: impl FnOnce(), meanwhile: impl FnOnce() + 'static) -> bool {
        let _back = Back(switch_to(self.0));
        FATE.set(Some((calls, Fate::Waits(Box::new(meanwhile)))));
        f();
        FATE.take().is_none()
    }

    /// It is killed.
    pub fn kill(self) {
        assert_ne!(self.0, FIRST);
        images().retain(|(pid, _)| *pid != self.0);
        Simulated::end_process(self.0);
    }
}

/// Runs `f`, and `meanwhile` as another thread does once `f` has made `calls` calls. True: it made so many.
pub fn interleaved(calls: u32, f: impl FnOnce(), meanwhile: impl FnOnce() + 'static) -> bool {
    FATE.set(Some((calls, Fate::Waits(Box::new(meanwhile)))));
    f();
    FATE.take().is_none()
}

/// Only the first process is left.
pub fn forget() {
    switch_to(FIRST);
    let others: Vec<u32> = images().iter().map(|(pid, _)| *pid).collect();
    others.into_iter().for_each(|pid| Process(pid).kill());
    host::tls::tls().critical.set(0);
}
