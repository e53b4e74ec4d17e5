//! Calls that wait for readiness: the poll, select and epoll families.

use std::ptr;
use std::sync::atomic::Ordering::SeqCst;

use super::{Args, FDS, call, fd_in, shown, slot_named};

pub fn perform(op: &str, a: &mut Args) -> Option<String> {
    Some(match op {
        "poll" => poll(a),
        "select" => select(a),
        "epcreate" => {
            let slot = a.slot();
            let (r, text) = shown(|| i64::from(call!(epoll_create1(0))));
            FDS[slot].store(r as i32, SeqCst);
            text
        }
        "epctl" => {
            let (ep, command, fd, events, data) = (a.fd(), a.word(), a.fd(), a.int() as u32, a.int() as u64);
            let command = match command {
                "add" => libc::EPOLL_CTL_ADD,
                "mod" => libc::EPOLL_CTL_MOD,
                "del" => libc::EPOLL_CTL_DEL,
                _ => 77,
            };
            let mut event = libc::epoll_event { events, u64: data };
            shown(|| i64::from(call!(epoll_ctl(ep, command, fd, &raw mut event)))).1
        }
        "epfault" => {
            let (ep, fd) = (a.fd(), a.fd());
            shown(|| i64::from(call!(epoll_ctl(ep, libc::EPOLL_CTL_MOD, fd, 16 as *mut libc::epoll_event)))).1
        }
        "epwait" => epoll_wait(a),
        _ => return None,
    })
}

/// `kind timeout v1:events,v2:events`; a slot of `-` is a negative descriptor, which poll ignores.
fn poll(a: &mut Args) -> String {
    let (kind, timeout, list) = (a.word(), a.int() as i32, a.word());
    let mut fds: Vec<libc::pollfd> = list
        .split(',')
        .map(|item| {
            let (slot, events) = item.split_once(':').expect("slot:events");
            let fd = if slot == "-" { -1 } else { fd_in(slot_named(slot)) };
            libc::pollfd { fd, events: events.parse().expect("events"), revents: 0x7777 }
        })
        .collect();
    let (p, n) = (fds.as_mut_ptr(), fds.len() as u64);
    let (r, text) = if kind == "poll" {
        shown(|| i64::from(call!(poll(p, n, timeout))))
    } else {
        let time = timespec(timeout);
        let t = if timeout < 0 { ptr::null() } else { &raw const time };
        let mask = empty_mask();
        let m = if kind == "ppollmask" { &raw const mask } else { ptr::null() };
        shown(|| i64::from(call!(ppoll(p, n, t, m))))
    };
    if r < 0 {
        return text;
    }
    let revents: Vec<String> = fds.iter().map(|f| format!("{:x}", f.revents)).collect();
    format!("{text} [{}]", revents.join(","))
}

/// `kind timeout v1:rwe,v2:r`: which sets each descriptor is put into.
fn select(a: &mut Args) -> String {
    let (kind, timeout, list) = (a.word(), a.int() as i32, a.word());
    // SAFETY: an fd_set is a plain bit array; zero is the empty set.
    let mut sets: [libc::fd_set; 3] = unsafe { std::mem::zeroed() };
    let mut wanted = Vec::new();
    let mut top = 0;
    for item in list.split(',') {
        let (slot, letters) = item.split_once(':').expect("slot:letters");
        let fd = fd_in(slot_named(slot));
        if !(0..libc::FD_SETSIZE as i32).contains(&fd) {
            return "not selectable".into();
        }
        top = top.max(fd + 1);
        for (i, letter) in ['r', 'w', 'e'].into_iter().enumerate() {
            if letters.contains(letter) {
                // SAFETY: fd is within the set's size.
                unsafe { libc::FD_SET(fd, &raw mut sets[i]) };
                wanted.push((i, fd, format!("{slot}{letter}")));
            }
        }
    }
    let [rd, wr, ex] = sets.each_mut().map(|s| &raw mut *s);
    let (r, text) = if kind == "select" {
        let mut time = libc::timeval { tv_sec: i64::from(timeout / 1000), tv_usec: i64::from(timeout % 1000) * 1000 };
        let t = if timeout < 0 { ptr::null_mut() } else { &raw mut time };
        shown(|| i64::from(call!(select(top, rd, wr, ex, t))))
    } else {
        let time = timespec(timeout);
        let t = if timeout < 0 { ptr::null() } else { &raw const time };
        shown(|| i64::from(call!(pselect(top, rd, wr, ex, t, ptr::null()))))
    };
    if r < 0 {
        return text;
    }
    // SAFETY: as for FD_SET.
    let set = wanted.iter().filter(|(i, fd, _)| unsafe { libc::FD_ISSET(*fd, &raw const sets[*i]) });
    format!("{text} [{}]", set.map(|(_, _, name)| name.as_str()).collect::<Vec<_>>().join(","))
}

/// `v timeout kind max`: the events in order of their data, as the kernel promises no order.
fn epoll_wait(a: &mut Args) -> String {
    let (ep, timeout, kind, max) = (a.fd(), a.int() as i32, a.word(), a.int() as i32);
    let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; max.clamp(1, 64) as usize];
    let p = events.as_mut_ptr();
    let mask = empty_mask();
    let (r, text) = match kind {
        "wait" => shown(|| i64::from(call!(epoll_wait(ep, p, max, timeout)))),
        "pwait" => shown(|| i64::from(call!(epoll_pwait(ep, p, max, timeout, &raw const mask)))),
        _ => {
            let time = timespec(timeout);
            let t = if timeout < 0 { ptr::null() } else { &raw const time };
            shown(|| i64::from(call!(epoll_pwait2(ep, p, max, t, ptr::null()))))
        }
    };
    if r < 0 {
        return text;
    }
    let mut seen: Vec<(u64, u32)> = events[..r as usize].iter().map(|e| (e.u64, e.events)).collect();
    seen.sort_unstable();
    let seen: Vec<String> = seen.iter().map(|(d, e)| format!("{d}:{e:x}")).collect();
    format!("{text} [{}]", seen.join(","))
}

fn timespec(ms: i32) -> libc::timespec {
    libc::timespec { tv_sec: i64::from(ms / 1000), tv_nsec: i64::from(ms % 1000) * 1_000_000 }
}

fn empty_mask() -> libc::sigset_t {
    // SAFETY: a sigset_t of zeros is the empty set on Linux.
    unsafe { std::mem::zeroed() }
}
