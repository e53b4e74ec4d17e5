use super::*;
use crate::message::VERSION;
use crate::testing::*;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use shmring::layout::Role;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

struct Post {
    fd: OwnedFd,
    name: u64,
}

impl Post {
    fn new() -> Post {
        let m = open(place).unwrap();
        Post { fd: own(m.fd), name: m.name }
    }
    fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
    fn send(&self, to: &Post, message: &Message, fds: &[i32]) -> Result<(), SendError> {
        send(self.raw(), to.name, message, fds)
    }
    fn recv(&self) -> Option<(Incoming, Vec<OwnedFd>)> {
        let mut fds = [-1; MAX_FDS];
        let incoming = recv(self.raw(), &mut fds)?;
        let n = match incoming {
            Incoming::Message(m) => m.nfds,
            Incoming::VersionMismatch { .. } => 0,
        };
        Some((incoming, fds[..n].iter().map(|fd| own(*fd)).collect()))
    }
    /// Sends anything, as a hostile process might.
    fn send_raw(&self, to: &Post, bytes: &[u8], fds: &[i32]) {
        let mut control = vec![0u8; CMSG_HEADER + (4 * fds.len()).next_multiple_of(8)];
        put_cmsg(&mut control, 0, libc::SCM_RIGHTS, 4 * fds.len());
        for (i, fd) in fds.iter().enumerate() {
            os::put(&mut control, CMSG_HEADER + 4 * i, &fd.to_ne_bytes());
        }
        let control = if fds.is_empty() { &[][..] } else { &control[..] };
        os::sendmsg(self.raw(), bytes, &address(to.name), control).unwrap();
    }
}

fn knock(from: &Post) -> Message {
    Message::Knock { from: from.name, nonce: 5 }
}

#[test]
fn a_mailbox_is_high_close_on_exec_and_nameless_on_disk() {
    let m = Post::new();
    assert!(m.raw() >= HIGH && m.name != 0);
    // SAFETY: plain queries.
    let flags = unsafe { (libc::fcntl(m.raw(), libc::F_GETFD), libc::fcntl(m.raw(), libc::F_GETFL)) };
    assert_eq!(flags.0, libc::FD_CLOEXEC);
    assert_ne!(flags.1 & libc::O_NONBLOCK, 0);
    let listed = std::fs::read_to_string("/proc/net/unix").unwrap();
    assert!(listed.contains(&format!("@cv-test-{:016x}", m.name)));
    assert!(m.recv().is_none());
}

#[test]
fn every_message_arrives_with_credentials() {
    let (a, b) = (Post::new(), Post::new());
    let messages = [
        knock(&a),
        Message::Welcome { from: a.name, nonce: 1, pollers: 0 },
        Message::VersionNo { from: a.name, nonce: 2, version: 3 },
    ];
    for message in messages {
        a.send(&b, &message, &[]).unwrap();
        let (Incoming::Message(got), _) = b.recv().unwrap() else { panic!() };
        assert_eq!((got.message, got.nfds), (message, 0));
        assert_eq!((got.uid, got.pid), (os::geteuid(), std::process::id()));
    }
}

#[test]
fn descriptors_arrive_in_order_and_close_on_exec() {
    let (a, b) = (Post::new(), Post::new());
    let pipes = [Pipe::new(), Pipe::new(), Pipe::new()];
    let message = Message::Channel { from: a.name, nonce: 1, channel: 2, ring: 4096, pollers: 1 << 63 | 1 };
    a.send(&b, &message, &pipes.each_ref().map(|p| p.write.as_raw_fd())).unwrap();
    let (Incoming::Message(got), fds) = b.recv().unwrap() else { panic!() };
    assert_eq!((got.message, got.nfds, fds.len()), (message, 3, 3));
    for (i, fd) in fds.iter().enumerate() {
        // SAFETY: a plain query.
        assert_eq!(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) }, libc::FD_CLOEXEC);
        assert_eq!(os::sendmsg(fd.as_raw_fd(), b"", &[], &[]), Err(libc::ENOTSOCK));
        let file = std::fs::File::from(fd.try_clone().unwrap());
        std::io::Write::write_all(&mut &file, &[i as u8]).unwrap();
        assert_eq!(pipes[i].drain(), [i as u8]);
    }
}

#[test]
fn the_largest_set_of_descriptors_fits() {
    let (a, b) = (Post::new(), Post::new());
    let pipe = Pipe::new();
    let fds = [pipe.write.as_raw_fd(); MAX_FDS];
    let message = Message::Channel { from: a.name, nonce: 1, channel: 2, ring: 4096, pollers: u64::MAX };
    a.send(&b, &message, &fds).unwrap();
    let (Incoming::Message(got), came) = b.recv().unwrap() else { panic!() };
    assert_eq!((got.nfds, pipe.copies()), (MAX_FDS, 2 + MAX_FDS));
    drop(came);
    assert_eq!(pipe.copies(), 2);
    // The sender refuses what the message does not announce.
    assert_eq!(a.send(&b, &message, &fds[1..]), Err(SendError::Other(libc::EINVAL)));
    assert_eq!(a.send(&b, &knock(&a), &fds[..1]), Err(SendError::Other(libc::EINVAL)));
}

#[test]
fn unannounced_surplus_and_missing_descriptors_spoil_a_message() {
    let (a, b) = (Post::new(), Post::new());
    let pipe = Pipe::new();
    let w = pipe.write.as_raw_fd();
    let channel = Message::Channel { from: a.name, nonce: 1, channel: 2, ring: 4096, pollers: 3 };
    let all = Message::Channel { from: a.name, nonce: 1, channel: 2, ring: 4096, pollers: u64::MAX };
    for (message, n) in [
        (knock(&a), 1),
        (knock(&a), 253),
        (channel, 0),
        (channel, 2),
        (channel, 4),
        (channel, 253),
        (all, MAX_FDS + 1),
        (all, 253),
    ] {
        a.send_raw(&b, &message.encode(), &vec![w; n]);
        assert_eq!(b.recv().map(|(i, _)| i), None, "{message:?} with {n}");
        assert_eq!(pipe.copies(), 2, "{message:?} with {n}");
    }
    a.send_raw(&b, &channel.encode(), &[w; 3]);
    assert!(b.recv().is_some());
}

#[test]
fn a_full_descriptor_table_spoils_a_message_but_not_the_mailbox() {
    let (a, b) = (Post::new(), Post::new());
    let pipe = Pipe::new();
    let message = Message::Welcome { from: a.name, nonce: 1, pollers: 0xff };
    a.send(&b, &message, &[pipe.write.as_raw_fd(); 8]).unwrap();
    let code = in_child(|| {
        let old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a valid limit.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &old) };
        let mut fds = [-1; MAX_FDS];
        recv(b.raw(), &mut fds).is_none() as u8
    });
    assert_eq!(code, 1);
    assert!(b.recv().is_none(), "it is gone, not stuck");
    a.send(&b, &knock(&a), &[]).unwrap();
    assert!(b.recv().is_some());
}

#[test]
fn a_borrowed_name_is_noticed() {
    let (a, b, thief) = (Post::new(), Post::new(), Post::new());
    thief.send(&b, &knock(&a), &[]).unwrap();
    assert!(b.recv().is_none());
    // Nor does a socket without a name count.
    let nameless = std::os::unix::net::UnixDatagram::unbound().unwrap();
    let sent = os::sendmsg(nameless.as_raw_fd(), &knock(&a).encode(), &address(b.name), &[]);
    assert_eq!(sent, Ok(LEN));
    assert!(b.recv().is_none());
}

#[test]
fn the_effective_uid_is_what_counts_and_cannot_be_forged() {
    if !is_root() {
        return;
    }
    let (a, b) = (Post::new(), Post::new());
    let code = in_child(|| {
        // SAFETY: plain numbers; the child has one thread. Real uid 0, effective 1234, saved 1234.
        unsafe { libc::syscall(libc::SYS_setresuid, 0, 1234, 1234) };
        match a.send(&b, &knock(&a), &[]) {
            Ok(()) => 0,
            Err(SendError::Other(errno)) => errno as u8,
            Err(SendError::Full) => 251,
            Err(SendError::Gone) => 252,
        }
    });
    assert_eq!(code, 0);
    let (Incoming::Message(got), _) = b.recv().unwrap() else { panic!() };
    assert_eq!(got.uid, 1234);
    let code = in_child(|| {
        // SAFETY: as above, without a way back.
        unsafe { libc::syscall(libc::SYS_setresuid, 1234, 1234, 1234) };
        let mut control = Control([0; _]);
        put_cmsg(&mut control.0, 0, libc::SCM_CREDENTIALS, UCRED);
        os::put(&mut control.0, CMSG_HEADER, &os::getpid().to_ne_bytes());
        let sent = os::sendmsg(a.raw(), &knock(&a).encode(), &address(b.name), &control.0[..CREDENTIALS_SPACE]);
        (sent == Err(libc::EPERM)) as u8
    });
    assert_eq!(code, 1, "1234 cannot claim to be 0");
    assert!(b.recv().is_none());
}

#[test]
fn another_version_is_reported_and_its_descriptors_dropped() {
    let (a, b) = (Post::new(), Post::new());
    let pipe = Pipe::new();
    let mut bytes = knock(&a).encode().to_vec();
    os::put(&mut bytes, 8, &(VERSION + 1).to_ne_bytes());
    let expected = Incoming::VersionMismatch { from: a.name, nonce: 5, version: VERSION + 1, refusal: false };
    for extra in [0, 100] {
        bytes.resize(LEN + extra, 1);
        a.send_raw(&b, &bytes, &[pipe.write.as_raw_fd()]);
        assert_eq!(b.recv().unwrap().0, expected);
        assert_eq!(pipe.copies(), 2);
    }
    // With a borrowed name it would make us write to somebody uninvolved.
    Post::new().send_raw(&b, &bytes, &[]);
    assert!(b.recv().is_none());
}

#[test]
fn a_full_queue_and_a_dead_mailbox_are_told_at_once() {
    let _guard = no_forks();
    let (a, b) = (Post::new(), Post::new());
    // The queue is bounded (unix(7), max_dgram_qlen; and the sender's buffer): this ends, or the test hangs
    // because a send waited.
    let mut sent = 0u32;
    let error = loop {
        match a.send(&b, &knock(&a), &[]) {
            Ok(()) => sent += 1,
            Err(e) => break e,
        }
        assert!(sent < 1_000_000);
    };
    assert_eq!(error, SendError::Full);
    assert!(b.recv().is_some());
    a.send(&b, &knock(&a), &[]).unwrap();
    drop(b.fd);
    assert_eq!(send(a.raw(), b.name, &knock(&a), &[]), Err(SendError::Gone));
}

#[test]
fn junk_does_not_hide_a_message() {
    let (a, b) = (Post::new(), Post::new());
    let pipe = Pipe::new();
    // The default queue takes about ten datagrams.
    for i in 0..9 {
        let fds = [pipe.write.as_raw_fd(); 2];
        a.send_raw(&b, &vec![i as u8; i * 20], if i % 2 == 0 { &fds[..] } else { &[] });
    }
    a.send(&b, &knock(&a), &[]).unwrap();
    assert!(matches!(b.recv(), Some((Incoming::Message(_), _))));
    assert!(b.recv().is_none());
    assert_eq!(pipe.copies(), 2);
}

#[test]
fn no_datagram_leaks_descriptors_or_is_taken_for_another() {
    let (a, b) = (Post::new(), Post::new());
    let pipe = Pipe::new();
    let bytes = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..130),
        // Sound messages under our name, with one byte changed or none.
        (crate::message::tests::any_message(), 0..LEN, any::<u8>()).prop_map(|(m, at, x)| {
            let mut b = m.encode().to_vec();
            b[at] ^= x & 1;
            b
        }),
    ];
    let mut runner = TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() });
    runner
        .run(&(bytes, 0usize..80, any::<bool>()), |(mut bytes, n, signed)| {
            if signed {
                let name = a.name.to_ne_bytes();
                os::put(&mut bytes, 16, &name);
            }
            a.send_raw(&b, &bytes, &vec![pipe.write.as_raw_fd(); n]);
            match b.recv() {
                Some((Incoming::Message(got), fds)) => {
                    prop_assert_eq!(&got.message.encode()[..], &bytes[..]);
                    prop_assert_eq!((got.message.from(), got.nfds, fds.len()), (a.name, n, n));
                    prop_assert_eq!(pipe.copies(), 2 + n);
                }
                Some((Incoming::VersionMismatch { from, .. }, _)) => prop_assert_eq!(from, a.name),
                None => {}
            }
            prop_assert_eq!(pipe.copies(), 2);
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_whole_meeting() {
    let (acceptor, connector) = (Post::new(), Post::new());
    let (memory, bells) = (Pipe::new(), [Pipe::new(), Pipe::new()]);
    acceptor.send(&connector, &Message::Knock { from: acceptor.name, nonce: 77 }, &[]).unwrap();

    let (Incoming::Message(got), _) = connector.recv().unwrap() else { panic!() };
    let Message::Knock { from, nonce } = got.message else { panic!() };
    let welcome = Message::Welcome { from: connector.name, nonce, pollers: 4 };
    send(connector.raw(), from, &welcome, &[bells[0].write.as_raw_fd()]).unwrap();

    let (Incoming::Message(got), of_connector) = acceptor.recv().unwrap() else { panic!() };
    assert_eq!((got.message, of_connector.len()), (welcome, 1));
    let channel = Message::Channel { from: acceptor.name, nonce, channel: 1, ring: 8192, pollers: 1 };
    acceptor.send(&connector, &channel, &[memory.read.as_raw_fd(), bells[1].write.as_raw_fd()]).unwrap();
    let more = Message::Doorbell { from: acceptor.name, channel: 1, role: Role::Acceptor, pollers: 2 };
    acceptor.send(&connector, &more, &[bells[0].write.as_raw_fd()]).unwrap();

    let (Incoming::Message(got), fds) = connector.recv().unwrap() else { panic!() };
    assert_eq!((got.message, fds.len(), memory.copies()), (channel, 2, 3));
    let (Incoming::Message(got), fds) = connector.recv().unwrap() else { panic!() };
    assert_eq!((got.message, fds.len()), (more, 1));
}
