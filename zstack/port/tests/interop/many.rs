//! Many connections.

use crate::*;

/// Raises the limit of open files as far as it goes.
fn many_files(needed: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure lives through both calls.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
    assert!(limit.rlim_cur >= needed, "{needed} open files are needed: ulimit -Hn says {}", limit.rlim_cur);
}

#[test]
fn ten_thousand_connections_at_once() {
    need_root!();
    many_files(10_500);
    with_kernel(Duration::from_secs(150), |namespace| {
        // Else the kernel answers some with cookies, and drops handshakes while the queue of its listener is full.
        namespace.sysctl("core/somaxconn", "16384");
        namespace.sysctl("ipv4/tcp_max_syn_backlog", "16384");
        const COUNT: usize = 10_000;
        let mut engine = Engine::start(&spec(1500, "on"));
        let began = Instant::now();
        let mut streams: Vec<TcpStream> = (0..COUNT).map(|_| kernel::connect(at(ENGINE[0], ECHO))).collect();
        println!("{COUNT} connections after {:?}", began.elapsed());
        let message = |i: usize| [(i as u64).to_le_bytes(); 8].concat();
        for (i, stream) in streams.iter_mut().enumerate() {
            stream.write_all(&message(i)).unwrap();
        }
        for (i, stream) in streams.iter_mut().enumerate() {
            let mut back = [0; 64];
            stream.read_exact(&mut back).unwrap();
            assert_eq!(back[..], message(i));
        }
        let open = engine.look().connections.len();
        assert!(open >= COUNT, "{open}");
        println!("all have exchanged after {:?}", began.elapsed());
        drop(streams);
        soon("the end of all", LIMIT, || engine.look().connections.is_empty().then_some(()));

        // The engine connects; a thread accepts and sends back.
        let listener = kernel::listen(ip(KERNEL[1]));
        // SAFETY: listen again with a longer backlog: the descriptor is open.
        assert_eq!(unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), 16_384) }, 0);
        let to = listener.local_addr().unwrap();
        let began = Instant::now();
        let acceptor = std::thread::spawn(move || {
            let mut streams: Vec<TcpStream> = (0..COUNT).map(|_| kernel::accept(&listener)).collect();
            for stream in &mut streams {
                let mut message = [0; 64];
                stream.read_exact(&mut message).unwrap();
                stream.write_all(&message).unwrap();
            }
            streams
        });
        for _ in 0..COUNT {
            engine.connect(to, Job::Exchange(64));
        }
        for _ in 0..COUNT {
            let outcome = engine.outcome(LIMIT, |o| o.job == Job::Exchange(64));
            assert_eq!((outcome.cause, outcome.received, outcome.wrong), (Cause::Done, 64, None));
        }
        println!("{COUNT} from the engine after {:?}", began.elapsed());
        drop(acceptor.join().unwrap());
    });
}
