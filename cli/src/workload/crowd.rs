//! Many threads, many descriptors in one call, or other programs that want the CPU: where taking bytes around the kernel
//! could cost more than it saves.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{MESSAGE, WARM_UP, announce, connect, exchange, raise_descriptor_limit};

/// Each of `threads` threads opens `connections` connections and, after a warm-up, exchanges messages on one after the
/// other, as fast as they are answered.
pub fn rate_client(port: u16, threads: u32, connections: u32, length: Duration) -> io::Result<()> {
    raise_descriptor_limit();
    // On each connection enough for it to settle on its path.
    let warm_up = (WARM_UP / (threads * connections)).max(100);
    let (stop, all, measured) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let ready = Barrier::new(threads as usize + 1);
    let ask = || -> io::Result<()> {
        let mut buffer = [b'x'; MESSAGE];
        let opened = (0..connections).map(|_| connect(port)).collect::<io::Result<Vec<_>>>();
        let warmed = opened.and_then(|mut opened| {
            for _ in 0..warm_up {
                opened.iter_mut().try_for_each(|s| exchange(s, &mut buffer))?;
            }
            Ok(opened)
        });
        // Also with an error: the others wait for this thread.
        ready.wait();
        let mut count = 0;
        let mut opened = warmed?;
        let mut turn = (0..opened.len()).cycle();
        while !stop.load(Relaxed) {
            let i = turn.next().unwrap_or(0);
            exchange(&mut opened[i], &mut buffer)?;
            count += 1;
        }
        measured.fetch_add(count, Relaxed);
        all.fetch_add(count + u64::from(warm_up * connections), Relaxed);
        Ok(())
    };
    let took = std::thread::scope(|scope| {
        let asking = (0..threads)
            .map(|_| std::thread::Builder::new().stack_size(128 << 10).spawn_scoped(scope, ask))
            .collect::<io::Result<Vec<_>>>()?;
        ready.wait();
        let begin = Instant::now();
        std::thread::sleep(length);
        stop.store(true, Relaxed);
        let took = begin.elapsed();
        asking.into_iter().try_for_each(|a| a.join().map_err(|_| io::Error::other("a thread failed"))?)?;
        Ok::<_, io::Error>(took)
    })?;
    let rate = measured.load(Relaxed) as f64 / took.as_secs_f64();
    announce(json!({ "rate": rate, "all_operations": all.load(Relaxed) }))
}

/// Echo server on one thread, which waits in `select` for all its connections.
pub fn select_server() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    announce(listener.local_addr()?.port())?;
    let mut connections: Vec<TcpStream> = Vec::new();
    let mut buffer = [0; 64 << 10];
    loop {
        let fds = || connections.iter().map(AsRawFd::as_raw_fd).chain([listener.as_raw_fd()]);
        let highest = fds().max().unwrap_or(0);
        if highest >= libc::FD_SETSIZE as i32 {
            return Err(io::Error::other(format!("descriptor {highest} does not fit select's sets")));
        }
        // SAFETY: an fd_set is plain bits, and all zero the empty set; every number put into it is below FD_SETSIZE.
        let mut readable: libc::fd_set = unsafe { std::mem::zeroed() };
        for fd in fds() {
            // SAFETY: see above.
            unsafe { libc::FD_SET(fd, &mut readable) };
        }
        let none = std::ptr::null_mut();
        // SAFETY: `readable` outlives the call; the other sets and the timeout are not given.
        if unsafe { libc::select(highest + 1, &mut readable, none, none, std::ptr::null_mut()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: see above.
        let is_readable = |s: &dyn AsRawFd| unsafe { libc::FD_ISSET(s.as_raw_fd(), &readable) };
        let mut error = None;
        connections.retain_mut(|s| {
            if !is_readable(s) {
                return true;
            }
            match s.read(&mut buffer) {
                Ok(0) => false,
                Ok(n) => s.write_all(&buffer[..n]).map_err(|e| error = Some(e)).is_ok(),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => true,
                Err(_) => false,
            }
        });
        if let Some(e) = error {
            return Err(e);
        }
        if is_readable(&listener) {
            while let Ok((s, _)) = listener.accept() {
                s.set_nonblocking(true)?;
                s.set_nodelay(true)?;
                connections.push(s);
            }
        }
    }
}

/// Wants a CPU all the time.
pub fn hog() -> io::Result<()> {
    announce("ready")?;
    loop {
        std::hint::spin_loop();
    }
}
