//! Dispositions of signals, which DPDK and its drivers must leave as they were.

use std::mem::MaybeUninit;

/// The dispositions of all signals at a moment.
pub(crate) struct Dispositions(Vec<(i32, libc::sigaction)>);

fn get(signal: i32) -> Option<libc::sigaction> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: sigaction(2) with no new action writes the old one to memory of this frame.
    let result = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all zeroes are a valid `sigaction`, and the call has filled it in.
    (result == 0).then(|| unsafe { action.assume_init() })
}

fn set(signal: i32, action: &libc::sigaction) {
    // SAFETY: the action was the kernel's answer for this signal, or has a handler that lives as long as the program.
    unsafe { libc::sigaction(signal, action, std::ptr::null_mut()) };
}

impl Dispositions {
    /// Those of now.
    pub(crate) fn now() -> Dispositions {
        Dispositions((1..=libc::SIGRTMAX()).filter_map(|s| Some((s, get(s)?))).collect())
    }

    /// Puts back what has changed since.
    pub(crate) fn restore(&self) {
        for (signal, before) in &self.0 {
            if get(*signal)
                .is_some_and(|now| now.sa_sigaction != before.sa_sigaction || now.sa_flags != before.sa_flags)
            {
                set(*signal, before);
            }
        }
    }
}

/// Runs `work` while this thread takes no signal, so that threads that it starts, which are DPDK's, never take one that is the program's. Those
/// that tell of the thread's own mistakes stay: DPDK looks for hugepages that are not there by SIGBUS.
pub(crate) fn with_all_blocked<R>(work: impl FnOnce() -> R) -> R {
    let mut all = MaybeUninit::<libc::sigset_t>::zeroed();
    let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: both sets are of this frame; the calls fill them in, and change this thread's mask alone.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        for own in [libc::SIGBUS, libc::SIGSEGV, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS] {
            libc::sigdelset(all.as_mut_ptr(), own);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), before.as_mut_ptr());
    }
    let result = work();
    // SAFETY: the mask is that of before, which the call above has filled in.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    result
}

extern "C" fn nothing(_: i32) {}

/// Runs `work` while every real-time signal seems to be in use: net_tap then does without the one that it would make interrupt us for every
/// packet (tun_alloc in rte_eth_tap.c takes the first whose disposition is the default), and looks at its descriptor instead.
pub(crate) fn with_all_taken<R>(work: impl FnOnce() -> R) -> R {
    let before = Dispositions::now();
    for (signal, action) in &before.0 {
        if *signal >= libc::SIGRTMIN() && action.sa_sigaction == libc::SIG_DFL {
            // Not SIG_IGN: that would throw away signals that are blocked and pending.
            let action = libc::sigaction {
                sa_sigaction: nothing as extern "C" fn(i32) as usize,
                sa_flags: libc::SA_RESTART,
                ..*action
            };
            set(*signal, &action);
        }
    }
    let result = work();
    before.restore();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_started_meanwhile_takes_no_signal() {
        let blocked = || {
            let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let mask = text.lines().find_map(|l| l.strip_prefix("SigBlk:")).unwrap().trim().to_owned();
            u64::from_str_radix(&mask, 16).unwrap()
        };
        let bit = |signal: i32| 1u64 << (signal - 1);
        let before = blocked();
        let within = with_all_blocked(|| std::thread::spawn(blocked).join().unwrap());
        assert_eq!(within & bit(libc::SIGTERM), bit(libc::SIGTERM));
        assert_eq!(within & bit(libc::SIGBUS), 0);
        assert_eq!(blocked(), before);
    }

    #[test]
    fn dispositions_are_as_before() {
        let signal = libc::SIGRTMAX() - 3;
        let kind = || get(signal).unwrap().sa_sigaction;
        let before = kind();
        assert_eq!(before, libc::SIG_DFL);
        let within = with_all_taken(kind);
        assert_ne!(within, libc::SIG_DFL);
        assert_eq!(kind(), before);
    }
}
