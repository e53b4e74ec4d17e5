use crate::tls::{tid, tls};
use core::sync::atomic::Ordering::Relaxed;

#[test]
fn each_thread_has_its_own_and_it_begins_with_zeros() {
    let mine = tls();
    mine.vfork.set(3);
    mine.owner.store(7, Relaxed);
    mine.wait.frame.store(11, Relaxed);
    let (theirs, clean) = std::thread::spawn(|| {
        let t = tls();
        let clean = t.vfork.get() == 0 && t.owner.load(Relaxed) == 0 && t.wait.frame.load(Relaxed) == 0;
        t.vfork.set(5);
        (core::ptr::from_ref(t).addr(), clean && tls().vfork.get() == 5)
    })
    .join()
    .unwrap();
    assert!(clean);
    assert_ne!(theirs, core::ptr::from_ref(mine).addr());
    assert_eq!((mine.vfork.get(), mine.owner.load(Relaxed), mine.wait.frame.load(Relaxed)), (3, 7, 11));
    assert_eq!(core::ptr::from_ref(mine).addr() % 64, 0);
    mine.after_fork_child();
    assert_eq!((mine.vfork.get(), mine.owner.load(Relaxed)), (0, 0));
    mine.wait.frame.store(0, Relaxed);
}

#[test]
fn a_threads_id_is_the_kernels() {
    let id = tid();
    assert_eq!(id, shmring::sys::gettid());
    assert_ne!(std::thread::spawn(tid).join().unwrap(), id);
    // SAFETY: the child makes no call but these.
    let child = unsafe { libc::fork() };
    if child == 0 {
        tls().after_fork_child();
        let asked = tid() == shmring::sys::gettid() && tid() != id;
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(i32::from(!asked)) };
    }
    let mut status = -1;
    // SAFETY: a local.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0);
}

#[test]
fn counters_wrap() {
    let w = &tls().runs;
    w.set(u32::MAX);
    w.add(2);
    assert_eq!(w.get(), 1);
}
