use super::*;
use crate::message::VERSION;
use crate::testing::*;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

struct Post {
    fd: OwnedFd,
    name: u64,
}

impl Post {
    fn new() -> Post {
        Post::of(open(place, None, &HOME).unwrap())
    }
    fn answer_box(key: u64) -> Post {
        Post::of(open(place, Some(key), &HOME).unwrap())
    }
    fn of(m: Mailbox) -> Post {
        Post { fd: own(m.fd), name: m.name }
    }
    fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
    fn send(&self, to: &Post, message: &Message) -> Result<(), SendError> {
        send(self.raw(), Some(to.name), message, None)
    }
    fn recv(&self) -> Option<Received> {
        match recv(self.raw()) {
            Incoming::Message(m) => Some(m),
            Incoming::Empty => None,
            other => panic!("{other:?}"),
        }
    }
    fn answer(&self) -> Option<(Received, OwnedFd)> {
        match recv_answer(self.raw()) {
            Answer::Channel(m, fd) => Some((m, own(fd))),
            Answer::Empty => None,
            other => panic!("{other:?}"),
        }
    }
    /// Sends anything, as a hostile process might.
    fn send_raw(&self, to: &Post, bytes: &[u8], fds: &[i32]) -> Result<usize, i32> {
        let mut control = vec![0u8; CMSG_HEADER + (4 * fds.len()).next_multiple_of(8)];
        put_cmsg(&mut control, 0, libc::SCM_RIGHTS, 4 * fds.len());
        for (i, fd) in fds.iter().enumerate() {
            os::put(&mut control, CMSG_HEADER + 4 * i, &fd.to_ne_bytes());
        }
        let control = if fds.is_empty() { &[][..] } else { &control[..] };
        os::sendmsg(self.raw(), bytes, &address(to.name), control)
    }
}

fn knock(from: &Post) -> Message {
    Message::Knock { from: from.name, nonce: 5, connector: 6, acceptor: 7 }
}

fn channel(from: &Post, key: u64) -> Message {
    Message::Channel { from: from.name, nonce: key, channel: 2, ring: 4096 }
}

fn memory() -> OwnedFd {
    // SAFETY: a terminated name.
    own(unsafe { libc::memfd_create(c"cv-test".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) })
}

/// Whether the kernel lets a socket refuse descriptors.
fn refuses() -> bool {
    let (a, b) = (Post::new(), Post::new());
    a.send_raw(&b, &knock(&a).encode(), &[a.raw()]) == Err(libc::EPERM)
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
fn every_question_arrives_with_credentials() {
    let (a, b) = (Post::new(), Post::new());
    for message in [knock(&a), Message::Welcome { from: a.name, nonce: 1, answer: 2, key: 3 }] {
        a.send(&b, &message).unwrap();
        let got = b.recv().unwrap();
        assert_eq!(got, Received { message, uid: os::geteuid(), pid: std::process::id() });
    }
}

#[test]
fn an_answer_box_takes_one_memfd_with_its_key_and_no_question() {
    let (a, b, m) = (Post::new(), Post::answer_box(77), memory());
    a.send(&b, &knock(&a)).unwrap();
    a.send(&b, &Message::Welcome { from: a.name, nonce: 77, answer: 2, key: 3 }).unwrap();
    for wrong in [0, 76, 77 << 32, !77] {
        send(a.raw(), Some(b.name), &channel(&a, wrong), Some(m.as_raw_fd())).unwrap();
    }
    assert!(b.answer().is_none(), "the filter lets nothing of it in");
    send(a.raw(), Some(b.name), &channel(&a, 77), Some(m.as_raw_fd())).unwrap();
    let (got, fd) = b.answer().unwrap();
    assert_eq!(got, Received { message: channel(&a, 77), uid: os::geteuid(), pid: std::process::id() });
    assert_eq!(os::fstat(fd.as_raw_fd()).unwrap().ino, os::fstat(m.as_raw_fd()).unwrap().ino);
    // SAFETY: a plain query.
    assert_eq!(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) }, libc::FD_CLOEXEC);
    assert!(b.answer().is_none());
    // The sender refuses what the message does not announce.
    assert_eq!(send(a.raw(), Some(b.name), &channel(&a, 77), None), Err(SendError::Other(libc::EINVAL)));
    assert_eq!(send(a.raw(), Some(b.name), &knock(&a), Some(0)), Err(SendError::Other(libc::EINVAL)));
}

#[test]
fn a_descriptor_beside_a_question_is_refused_or_spoils_the_mailbox() {
    let (a, b) = (Post::new(), Post::new());
    let pipe = Pipe::new();
    for n in [1, 2, 253] {
        let sent = a.send_raw(&b, &knock(&a).encode(), &vec![pipe.write.as_raw_fd(); n]);
        if refuses() {
            assert_eq!((sent, recv(b.raw())), (Err(libc::EPERM), Incoming::Empty));
            assert_eq!(pipe.copies(), 2);
        } else {
            // Taken out, it would be dropped, and that may wait for whoever it belongs to.
            assert_eq!((sent, recv(b.raw()), recv(b.raw())), (Ok(LEN), Incoming::Spoilt, Incoming::Spoilt));
        }
    }
}

/// Closing them could wait for their owner: a lingering socket, a file of a file system in another user's process.
#[test]
fn what_is_no_memory_is_neither_taken_out_nor_closed() {
    let a = Post::new();
    let pipe = Pipe::new();
    let m = memory();
    for fds in
        [vec![], vec![pipe.write.as_raw_fd()], vec![m.as_raw_fd(), pipe.write.as_raw_fd()], vec![m.as_raw_fd(); 253]]
    {
        let b = Post::answer_box(1);
        a.send_raw(&b, &channel(&a, 1).encode(), &fds).unwrap();
        let Answer::Spoilt(fd) = recv_answer(b.raw()) else { panic!("{fds:?}") };
        assert_eq!(fd >= 0, !fds.is_empty(), "{fds:?}");
        if fds.len() == 1 {
            assert_eq!(pipe.copies(), 3, "the two of the test, and the one that must stay open");
        }
        drop((b, (fd >= 0).then(|| own(fd))));
    }
}

#[test]
fn junk_takes_no_room_and_wakes_nobody() {
    let (a, b) = (Post::new(), Post::new());
    let mut other = knock(&a).encode();
    os::put(&mut other, 8, &(VERSION + 1).to_ne_bytes());
    let channel = channel(&a, 0).encode();
    let long = [&knock(&a).encode()[..], &[0]].concat();
    let nonsense = [0xff; LEN];
    for _ in 0..1000 {
        for bytes in [&b""[..], b"KNOCK", &knock(&a).encode()[..63], &other, &channel, &long, &nonsense] {
            assert_eq!(a.send_raw(&b, bytes, &[]), Ok(bytes.len()), "its sender learns nothing");
        }
    }
    assert_eq!(recv(b.raw()), Incoming::Empty);
    a.send(&b, &knock(&a)).unwrap();
    assert!(b.recv().is_some());
}

#[test]
fn a_line_leads_to_the_mailbox_and_not_to_its_name() {
    let _guard = no_forks();
    let (a, b) = (Post::new(), Post::new());
    let l = own(line(b.name, &HOME).unwrap());
    send(l.as_raw_fd(), None, &knock(&a), None).unwrap();
    assert_eq!(b.recv().unwrap().message, knock(&a));
    assert!(exists(a.raw(), b.name));
    assert!(b.recv().is_none(), "to ask leaves nothing there");
    let name = b.name;
    drop(b);
    // A stranger takes the name.
    let thief = own(os::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).unwrap());
    os::bind(thief.as_raw_fd(), &address(name)).unwrap();
    for _ in 0..3 {
        assert!(send(l.as_raw_fd(), None, &knock(&a), None).is_err());
    }
    assert_eq!(recv(thief.as_raw_fd()), Incoming::Empty);
    assert!(exists(a.raw(), name));
    drop(thief);
    assert_eq!(line(name, &HOME), Err(SendError::Gone));
    assert!(!exists(a.raw(), name));
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
        match a.send(&b, &knock(&a)) {
            Ok(()) => 0,
            Err(SendError::Other(errno)) => errno as u8,
            Err(SendError::Full) => 251,
            Err(SendError::Gone) => 252,
        }
    });
    assert_eq!(code, 0);
    assert_eq!(b.recv().unwrap().uid, 1234);
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
fn a_full_queue_and_a_dead_mailbox_are_told_at_once() {
    let _guard = no_forks();
    let (a, b) = (Post::new(), Post::new());
    // The queue is bounded (unix(7), max_dgram_qlen; and the sender's buffer): this ends, or the test hangs
    // because a send waited.
    let mut sent = 0u32;
    let error = loop {
        match a.send(&b, &knock(&a)) {
            Ok(()) => sent += 1,
            Err(e) => break e,
        }
        assert!(sent < 1_000_000);
    };
    assert_eq!(error, SendError::Full);
    assert!(b.recv().is_some());
    a.send(&b, &knock(&a)).unwrap();
    let name = b.name;
    drop(b);
    assert_eq!(send(a.raw(), Some(name), &knock(&a), None), Err(SendError::Gone));
}

#[test]
fn no_datagram_is_taken_for_another() {
    let (a, b) = (Post::new(), Post::new());
    let bytes = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..130),
        // Sound messages, with one byte changed or none.
        (crate::message::tests::any_message(), 0..LEN, any::<u8>()).prop_map(|(m, at, x)| {
            let mut b = m.encode().to_vec();
            b[at] ^= x & 1;
            b
        }),
    ];
    let mut runner = TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() });
    runner
        .run(&bytes, |bytes| {
            a.send_raw(&b, &bytes, &[]).unwrap();
            match recv(b.raw()) {
                Incoming::Message(got) => prop_assert_eq!(&got.message.encode()[..], &bytes[..]),
                Incoming::Junk | Incoming::Empty => {
                    prop_assert!(Message::decode(&bytes).is_err() || bytes[12] == message::CHANNEL as u8);
                }
                Incoming::Spoilt => prop_assert!(false),
            }
            prop_assert_eq!(recv(b.raw()), Incoming::Empty);
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_whole_meeting() {
    let (acceptor, connector) = (Post::new(), Post::new());
    let m = memory();
    let l = own(line(connector.name, &HOME).unwrap());
    let knock = Message::Knock { from: acceptor.name, nonce: 77, connector: 1, acceptor: 2 };
    send(l.as_raw_fd(), None, &knock, None).unwrap();

    assert_eq!(connector.recv().unwrap().message, knock);
    let answer = Post::answer_box(99);
    let welcome = Message::Welcome { from: connector.name, nonce: 77, answer: answer.name, key: 99 };
    send(connector.raw(), Some(acceptor.name), &welcome, None).unwrap();

    assert_eq!(acceptor.recv().unwrap().message, welcome);
    let channel = Message::Channel { from: acceptor.name, nonce: 99, channel: 1, ring: 8192 };
    send(l.as_raw_fd(), Some(answer.name), &channel, Some(m.as_raw_fd())).unwrap();

    assert_eq!(answer.answer().unwrap().0.message, channel);
}
