use super::*;
use crate::testing::*;
use std::net::TcpListener;
use std::os::fd::AsRawFd;

fn uid() -> u32 {
    os::geteuid()
}

/// Pairs as programs make them: v4, v6, and v4-mapped on either side.
fn kinds() -> Vec<(&'static str, &'static str)> {
    let mut kinds = vec![("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.3")];
    if v6_loopback() {
        kinds.extend([("::1", "::1"), ("::", "127.0.0.1"), ("127.0.0.1", "::ffff:127.0.0.1")]);
    }
    kinds
}

#[test]
fn each_end_finds_the_other_by_its_cookie() {
    let caches = [Cache::new(place, &HOME), Cache::new(place, &HOME).settled()];
    for (cache, (listen, host)) in caches.iter().flat_map(|cache| kinds().into_iter().map(move |kind| (cache, kind))) {
        let listener = TcpListener::bind((listen, 0)).unwrap();
        let (client, server) = accepted(&listener, host);
        for (asking, other) in [(&client, &server), (&server, &client)] {
            let found = find(cache, &Tuple::of(asking.as_raw_fd(), true).unwrap()).unwrap();
            assert_eq!(found.cookie, cookie(other), "{listen} {host}");
            assert_eq!((found.uid, found.state), (uid(), 1));
            let link = std::fs::read_link(format!("/proc/self/fd/{}", other.as_raw_fd())).unwrap();
            assert_eq!(link.to_str().unwrap(), format!("socket:[{}]", found.inode));
            let tuple = Tuple::of(asking.as_raw_fd(), true).unwrap();
            assert!(!gone(cache, &tuple, cookie(other)));
            assert!(gone(cache, &tuple, cookie(other) + 1), "another socket has the ports now");
        }
    }
}

#[test]
fn a_closed_socket_is_gone_though_its_listener_lives() {
    let _guard = no_forks();
    let cache = Cache::new(place, &HOME);
    for (listen, host) in kinds() {
        let listener = TcpListener::bind((listen, 0)).unwrap();
        let (client, server) = accepted(&listener, host);
        let (of_client, of_server) =
            (Tuple::of(server.as_raw_fd(), true).unwrap(), Tuple::of(client.as_raw_fd(), true).unwrap());
        let (c, s) = (cookie(&client), cookie(&server));

        server.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(!gone(&cache, &of_server, s), "half closed is not closed");
        drop(server);
        // The client has not closed: the server's socket is an orphan in FIN_WAIT2.
        assert!(gone(&cache, &of_server, s));
        assert!(!gone(&cache, &of_client, c));
        drop(client);
        assert!(gone(&cache, &of_client, c));
        assert!(gone(&cache, &of_server, s));
    }
}

#[test]
fn what_is_unread_is_counted_behind_an_urgent_mark_and_without_the_end() {
    use std::io::{Read, Write};
    let cache = Cache::new(place, &HOME);
    for (listen, host) in kinds() {
        let listener = TcpListener::bind((listen, 0)).unwrap();
        let (mut client, server) = accepted(&listener, host);
        let (own, name) = (Tuple::of(client.as_raw_fd(), false).unwrap(), cookie(&client));
        let unread = || unread(&cache, &own, name);
        assert_eq!(unread(), Some(0));
        (&server).write_all(b"before").unwrap();
        let urgent = b"abc!";
        // SAFETY: sends a local array.
        let sent = unsafe { libc::send(server.as_raw_fd(), urgent.as_ptr().cast(), urgent.len(), libc::MSG_OOB) };
        assert_eq!(sent, 4);
        (&server).write_all(b"after").unwrap();
        assert_eq!(unread(), Some(15));
        assert_eq!(client.read(&mut [0; 4]).unwrap(), 4);
        assert_eq!(unread(), Some(11));
        server.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(unread(), Some(11), "a FIN is no byte");
        assert_eq!(super::unread(&cache, &own, name + 1), None);
    }
}

#[test]
fn an_orphan_has_no_inode() {
    let _guard = no_forks();
    let cache = Cache::new(place, &HOME);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (client, server) = accepted(&listener, "127.0.0.1");
    let tuple = Tuple::of(client.as_raw_fd(), true).unwrap();
    let before = find(&cache, &tuple).unwrap();
    drop(server);
    let after = find(&cache, &tuple).unwrap();
    assert_eq!((after.inode, after.cookie), (0, before.cookie));
    assert_ne!(after.state, before.state);
}

#[test]
fn a_socket_that_a_process_holds_is_no_orphan_whatever_became_of_the_connection() {
    use std::io::Write;
    let _guard = no_forks();
    let cache = Cache::new(place, &HOME);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for client_first in [false, true] {
        for how in ["drop", "reset", "finish"] {
            let (client, mut server) = accepted(&listener, "127.0.0.1");
            let (tuple, cookie) = (Tuple::of(client.as_raw_fd(), true).unwrap(), cookie(&server));
            let is_orphan = || is_orphan(&cache, &tuple, cookie);
            assert!(!is_orphan());
            let finish = |s: &std::net::TcpStream| s.shutdown(std::net::Shutdown::Write).unwrap();
            if client_first {
                finish(&client);
            }
            match how {
                "drop" => {
                    drop(server);
                    // A connection that both ends have finished is forgotten.
                    assert_eq!(is_orphan(), !client_first);
                }
                "reset" => {
                    server.write_all(b"unread").unwrap();
                    drop(client);
                    assert!(!is_orphan(), "reset, and held");
                }
                _ => {
                    finish(&server);
                    if !client_first {
                        finish(&client);
                    }
                    assert!(!is_orphan(), "finished by both, and held");
                }
            }
        }
    }
}

#[test]
fn a_listener_is_not_the_answer_and_nonsense_is_not_found() {
    let cache = Cache::new(place, &HOME);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut t = Tuple { src: mapped([127, 0, 0, 1]), dst: mapped([127, 0, 0, 1]), sport: port, dport: 1, scope: 0 };
    assert_eq!(find(&cache, &t), Err(Miss::NotFound));
    t.sport = 1;
    assert_eq!(find(&cache, &t), Err(Miss::NotFound));
    let six = Tuple { src: [0xfe; 16], dst: [0xfd; 16], sport: 1, dport: 1, scope: 0 };
    assert_eq!(find(&cache, &six), Err(Miss::NotFound));
}

#[test]
fn a_socket_bound_to_a_device_is_not_gone() {
    let _guard = no_forks();
    let cache = Cache::new(place, &HOME);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (client, server) = accepted(&listener, "127.0.0.1");
    // SAFETY: three bytes of name.
    let ret = unsafe {
        libc::setsockopt(server.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, c"lo".as_ptr().cast(), 3)
    };
    assert_eq!(ret, 0);
    let tuple = Tuple::of(client.as_raw_fd(), true).unwrap();
    assert_eq!(find(&cache, &tuple), Err(Miss::NotFound));
    assert!(!gone(&cache, &tuple, cookie(&server)));
    let c = cookie(&server);
    drop(server);
    assert!(gone(&cache, &tuple, c));
}

#[test]
fn a_held_v4_mapped_socket_is_seen_by_the_search() {
    if !v6_loopback() {
        return;
    }
    let listener = TcpListener::bind("[::]:0").unwrap();
    let (client, server) = accepted(&listener, "127.0.0.1");
    let tuple = Tuple::of(client.as_raw_fd(), true).unwrap();
    assert_eq!(searched(&HOME, &tuple, cookie(&server)), Ok(false));
    assert_eq!(searched(&HOME, &tuple, cookie(&server) + 1), Ok(true));
}

/// Two connections with the same addresses, in two namespaces.
#[test]
fn a_connection_that_lives_elsewhere_is_not_taken_for_the_one_at_home() {
    let Some(away) = Away::new() else { return };
    static OLD: Home = Home::on_an_old_kernel();
    assert_eq!(OLD.is_here(), Ok(true));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (client, server) = accepted(&listener, "127.0.0.1");
    let (theirs, ours) = (client.local_addr().unwrap(), listener.local_addr().unwrap());
    let (_listener, their_client, their_server) = away.run(|| {
        let listener = TcpListener::bind(ours).unwrap();
        let client = own(os::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap());
        let address = |a: std::net::SocketAddr| {
            let mut b = [0; 16];
            os::put(&mut b, 0, &(libc::AF_INET as u16).to_ne_bytes());
            os::put(&mut b, 2, &a.port().to_be_bytes());
            os::put(&mut b, 4, &[127, 0, 0, 1]);
            b
        };
        os::bind(client.as_raw_fd(), &address(theirs)).unwrap();
        assert_eq!(os::connect(client.as_raw_fd(), &address(ours)), Err(libc::EINPROGRESS));
        let (server, _) = listener.accept().unwrap();
        (listener, std::net::TcpStream::from(client), server)
    });
    assert_eq!(their_client.peer_addr().unwrap(), ours);
    for home in [&HOME, &OLD] {
        let (cache, fresh) = (Cache::new(place, home), Cache::new(place, home));
        for (fd, lives_here) in [(&client, true), (&server, true), (&their_client, false), (&their_server, false)] {
            let tuple = Tuple::of(fd.as_raw_fd(), false).unwrap();
            assert_eq!(is_at_home(&cache, fd.as_raw_fd(), &tuple), Ok(lives_here));
            // Whoever asks, as far as he can.
            let kept = find(&cache, &tuple).unwrap();
            away.run(|| {
                assert_eq!(is_at_home(&cache, fd.as_raw_fd(), &tuple), Ok(lives_here));
                assert_eq!(find(&cache, &tuple), Ok(kept));
                assert_eq!(find(&fresh, &tuple), Err(Miss::Elsewhere));
                assert!(!gone(&cache, &tuple, kept.cookie));
                assert!(gone(&fresh, &tuple, kept.cookie), "nobody can be asked");
            });
        }
        let elsewhere = Tuple { sport: 1, ..Tuple::of(client.as_raw_fd(), false).unwrap() };
        away.run(|| assert!(gone(&cache, &elsewhere, 1)));
        cache.forget();
    }
}

/// Anybody may try to connect a socket of any addresses that are this host's.
#[test]
fn a_socket_that_was_never_connected_proves_nobody() {
    let cache = Cache::new(place, &HOME);
    let listener = own(os::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap());
    let address = |port: u16| {
        let mut b = [0; 16];
        os::put(&mut b, 0, &(libc::AF_INET as u16).to_ne_bytes());
        os::put(&mut b, 2, &port.to_be_bytes());
        os::put(&mut b, 4, &[127, 0, 0, 1]);
        b
    };
    os::bind(listener.as_raw_fd(), &address(0)).unwrap();
    // SAFETY: plain numbers.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let bound = os::address_of(listener.as_raw_fd(), os::End::Local).unwrap();
    let port = u16::from_be_bytes(os::array(bound.bytes(), 2));
    // One more than the queue takes stay half open.
    let tries: Vec<_> = (0..3)
        .map(|_| {
            let s = own(os::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap());
            assert_eq!(os::connect(s.as_raw_fd(), &address(port)), Err(libc::EINPROGRESS));
            s
        })
        .collect();
    let own_port = |fd: i32| u16::from_be_bytes(os::array(os::address_of(fd, os::End::Local).unwrap().bytes(), 2));
    let mut states = Vec::new();
    for s in &tries {
        let v4 = mapped([127, 0, 0, 1]);
        let tuple = Tuple { src: v4, dst: v4, sport: own_port(s.as_raw_fd()), dport: port, scope: 0 };
        let found = find(&cache, &tuple).unwrap();
        assert_ne!(found.inode, 0);
        assert_eq!(found.is_held_by(uid()), found.state == 1);
        states.push(found.state);
    }
    assert!(states.contains(&1) && states.contains(&2), "{states:?}");
}

#[test]
fn the_socket_is_kept_and_recognised() {
    let cache = Cache::new(place, &HOME);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (client, server) = accepted(&listener, "127.0.0.1");
    let tuple = Tuple::of(client.as_raw_fd(), true).unwrap();
    find(&cache, &tuple).unwrap();
    let kept = cache.socket.share().unwrap();
    assert!(kept >= HIGH);
    find(&cache, &tuple).unwrap();
    assert_eq!(cache.socket.share(), Some(kept), "the same socket served twice");

    // The program replaces it by a pipe: the pipe must survive and stay empty.
    let pipe = Pipe::new();
    // SAFETY: plain numbers; `kept` is open.
    unsafe { libc::dup3(pipe.write.as_raw_fd(), kept, libc::O_CLOEXEC) };
    assert_eq!(find(&cache, &tuple).unwrap().cookie, cookie(&server));
    assert_eq!(pipe.copies(), 3);
    drop(own(kept));
    cache.forget();
    assert!(cache.socket.is_empty());
}

#[test]
fn a_forked_child_asks_through_a_socket_of_its_own() {
    let cache = Cache::new(place, &HOME);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (client, server) = accepted(&listener, "127.0.0.1");
    let tuple = Tuple::of(client.as_raw_fd(), true).unwrap();
    let expected = cookie(&server);
    find(&cache, &tuple).unwrap();
    let inode = os::fstat(cache.socket.share().unwrap()).unwrap().ino;
    let code = in_child(|| {
        let found = find(&cache, &tuple).is_ok_and(|f| f.cookie == expected);
        let now = cache.socket.share().and_then(|fd| os::fstat(fd).ok()).map_or(0, |st| st.ino);
        found as u8 | ((now != 0 && now != inode) as u8) << 1
    });
    assert_eq!(code, 3);
    assert_eq!(os::fstat(cache.socket.share().unwrap()).unwrap().ino, inode);
}

#[test]
fn threads_never_get_each_others_answers() {
    let cache = Cache::new(place, &HOME);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let pairs: Vec<_> = (0..4).map(|_| accepted(&listener, "127.0.0.1")).collect();
    std::thread::scope(|s| {
        for (client, server) in &pairs {
            let cache = &cache;
            s.spawn(move || {
                let tuple = Tuple::of(client.as_raw_fd(), true).unwrap();
                for _ in 0..500 {
                    assert_eq!(find(cache, &tuple).unwrap().cookie, cookie(server));
                }
            });
        }
    });
}

#[test]
fn stray_and_short_answers_are_skipped() {
    let t = Tuple { src: mapped([1, 2, 3, 4]), dst: mapped([5, 6, 7, 8]), sport: 9, dport: 10, scope: 0 };
    let mut b = [0u8; REPLY];
    os::put(&mut b, 4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    os::put(&mut b, 8, &7u32.to_ne_bytes());
    b[16] = libc::AF_INET as u8;
    os::put(&mut b, 20, &9u16.to_be_bytes());
    os::put(&mut b, 22, &10u16.to_be_bytes());
    os::put(&mut b, 24, &[1, 2, 3, 4]);
    os::put(&mut b, 40, &[5, 6, 7, 8]);
    assert!(matches!(parse(&b, &t, Wanted::Connection, 7), Some(Ok(_))));
    assert_eq!(parse(&b, &t, Wanted::Connection, 8), None);
    assert_eq!(parse(&b, &t.reversed(), Wanted::Connection, 7), Some(Err(Miss::NotFound)));
    for short in 0..REPLY {
        assert_eq!(parse(&b[..short], &t, Wanted::Connection, 7), None);
    }
}

#[test]
fn the_control_group_is_found_among_attributes() {
    let attribute_of = |kind: u16, value: &[u8]| {
        let mut b = [(value.len() as u16 + 4).to_ne_bytes(), kind.to_ne_bytes()].concat();
        b.extend(value);
        b.resize(b.len().next_multiple_of(4), 0);
        b
    };
    let group = attribute_of(CGROUP_ID, &77u64.to_ne_bytes());
    let all = [attribute_of(5, &[1]), group.clone(), attribute_of(22, &[0; 8])].concat();
    assert_eq!(number(&all, CGROUP_ID), Some(77));
    for short in 0..8 + group.len() {
        assert_eq!(number(&all[..short], CGROUP_ID), None, "{short}");
    }
    assert_eq!(number(&attribute_of(CGROUP_ID, &[1; 4]), CGROUP_ID), None, "of another size");
    assert_eq!(number(&[0; 16], CGROUP_ID), None, "a length that cannot be");
}

#[test]
fn a_listener_is_found_by_the_connection_that_it_would_make() {
    let cache = Cache::new(place, &HOME);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (local, remote) = (mapped([127, 0, 0, 1]), mapped([127, 9, 9, 9]));
    let tuple = |sport| Tuple { src: local, dst: remote, sport, dport: 4242, scope: 0 };
    let found = find_listener(&cache, &tuple(port)).unwrap();
    assert_eq!(found.cookie, os::cookie_of(listener.as_raw_fd()).unwrap());
    assert_eq!(find(&cache, &tuple(port)), Err(Miss::NotFound));
    drop(listener);
    assert_eq!(find_listener(&cache, &tuple(port)), Err(Miss::NotFound));
    // One that is connected already gets no SYN.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let own = Tuple::of(client.as_raw_fd(), true).unwrap();
    assert_eq!(find_listener(&cache, &own), Err(Miss::NotFound));
}

#[test]
fn keep_alive_is_told() {
    let cache = Cache::new(place, &HOME);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let own = Tuple::of(client.as_raw_fd(), false).unwrap();
    let told = || [find(&cache, &own), find_program(&cache, &own)].map(|found| found.unwrap().keep_alive);
    assert_eq!(told(), [KeepAlive::Off; 2]);
    let set = |level, name, value: libc::c_int| {
        // SAFETY: the value and its length.
        let done = unsafe { libc::setsockopt(client.as_raw_fd(), level, name, (&raw const value).cast(), 4) };
        assert_eq!(done, 0);
    };
    set(libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    set(libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 500);
    let [KeepAlive::After(left), KeepAlive::After(chosen)] = told() else { panic!("{:?}", told()) };
    // The kernel's clock ticks every ten milliseconds at most, and has done so once or twice meanwhile.
    assert!(left <= 500_020 && chosen.abs_diff(500_000) <= 100, "{left} {chosen}");
}
