//! Room and views on an endpoint's sockets: what is filled in place is sent, what is looked at stays until it is released.

use std::collections::VecDeque;
use zstack::endpoint::Endpoint;
use zstack::inplace;
use zstack::net::Address;
use zstack::sockets::{self, Error, Receive, Socket};
use zstack::stack::{Config, Connect, Listen};
use zstack::time::Time;
use zstack_port::{Settings, Wire, pair};

/// Two endpoints with a wire between them, and a connection from one to the other.
struct Both {
    now: Time,
    server: Endpoint<Wire>,
    client: Endpoint<Wire>,
    /// The connection's two ends.
    theirs: Socket,
    ours: Socket,
}

impl Both {
    fn new(receive: Receive) -> Both {
        let (left, right) = pair(Settings::default());
        let address = |ip: &str| Address { ip: ip.parse().expect("an address"), prefix: 24 };
        let endpoint = |ip, key, port| {
            // What is above this is counted.
            let sockets = sockets::Config { assured: 4096, ..sockets::Config::default() };
            Endpoint::new(Config::new(address(ip), [key; 16]), sockets, port, Time(0)).expect("an endpoint")
        };
        let (mut server, mut client) = (endpoint("10.0.0.1", 1, left), endpoint("10.0.0.2", 2, right));
        let listener = server.listen(Listen::new(7, server.room()), receive).expect("a listener");
        let to = Connect::new("10.0.0.1:7".parse().expect("an address"), client.room());
        let ours = client.connect(Time(0), to, Receive::Copy).expect("a connection");
        let mut now = Time(0);
        let theirs = loop {
            now = Time(now.0 + 100);
            client.turn(now);
            server.turn(now);
            if let Some(theirs) = server.accept(listener) {
                break theirs;
            }
            assert!(now < Time(1_000_000), "no connection");
        };
        let mut both = Both { now, server, client, theirs, ours };
        both.turns();
        both
    }

    /// Some turns of both.
    fn turns(&mut self) {
        for _ in 0..20 {
            self.now = Time(self.now.0 + 1_000);
            self.client.turn(self.now);
            self.server.turn(self.now);
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        let mut room = inplace::reserve(&mut self.client, self.ours, bytes.len()).expect("room");
        assert_eq!((room.len(), room.write(0, bytes)), (bytes.len(), bytes.len()));
        assert_eq!(room.commit(bytes.len()), Ok(bytes.len()));
        self.turns();
    }

    fn seen(&mut self, min: usize) -> Result<Vec<u8>, Error> {
        let view = inplace::look(&mut self.server, self.theirs, min)?;
        let mut bytes = vec![0; view.len()];
        assert_eq!(view.copy_to(0, &mut bytes), view.len());
        let (first, second) = view.as_slices();
        assert_eq!(bytes, [first, second].concat());
        Ok(bytes)
    }
}

#[test]
fn what_is_committed_is_sent_and_what_is_released_is_read() {
    for receive in [Receive::Copy, Receive::Keep] {
        let mut both = Both::new(receive);
        assert_eq!(both.seen(1), Err(Error::WouldBlock));
        both.send(b"hello ");
        both.send(b"world");
        assert_eq!(both.seen(1), Ok(b"hello world".to_vec()));
        assert_eq!(both.seen(12), Err(Error::WouldBlock));
        inplace::look(&mut both.server, both.theirs, 11).expect("a view").release(6).expect("its bytes");
        // Dropped, a view reads nothing.
        assert_eq!((both.seen(0), both.seen(5)), (Ok(b"world".to_vec()), Ok(b"world".to_vec())));
        both.client.shutdown(both.ours);
        both.turns();
        // Behind these is the end.
        assert_eq!(both.seen(99), Ok(b"world".to_vec()));
        inplace::look(&mut both.server, both.theirs, 1).expect("a view").release(99).expect("its bytes");
        assert_eq!(both.seen(1), Ok(vec![]));
        let (sent, received) = (both.client.sockets().copies(), both.server.sockets().copies());
        assert_eq!((sent.committed, sent.written, received.read), (11, 0, 0));
    }
}

#[test]
fn room_that_is_dropped_is_given_back() {
    let mut both = Both::new(Receive::Copy);
    let idle = both.client.sockets().budget().taken();
    for _ in 0..3 {
        let mut room = inplace::reserve(&mut both.client, both.ours, 100).expect("room");
        assert_eq!(room.write(98, b"not sent"), 2);
    }
    both.turns();
    assert_eq!(both.client.sockets().budget().taken(), idle, "an idle socket has no ring");
    let mut room = inplace::reserve(&mut both.client, both.ours, 100).expect("room");
    room.write(0, b"some");
    assert_eq!(room.commit_more(3), Ok(3));
    both.send(b"ething");
    assert_eq!(both.seen(1), Ok(b"something".to_vec()));
    assert!(inplace::reserve(&mut both.client, both.ours, 0).expect("none").is_empty());
}

/// A stream through a ring that wraps, with room and views that are used in part.
#[test]
fn a_stream_is_one_whatever_is_reserved_and_released() {
    let mut both = Both::new(Receive::Copy);
    let (mut sent, mut got) = (0u32, VecDeque::new());
    let mut expected = 0u32;
    for round in 0..3_000usize {
        let want = 1 + round * 7_919 % 40_000;
        match inplace::reserve(&mut both.client, both.ours, want) {
            Ok(mut room) => {
                let n = room.len() - room.len() * (round % 3) / 4;
                let bytes: Vec<u8> = (sent..sent + n as u32).map(|i| (i ^ i >> 8 ^ i >> 16) as u8).collect();
                assert_eq!(room.write(0, &bytes), n);
                assert_eq!(room.commit(n), Ok(n));
                sent += n as u32;
            }
            Err(error) => assert_eq!(error, Error::WouldBlock),
        }
        both.turns();
        if let Ok(view) = inplace::look(&mut both.server, both.theirs, 1) {
            let mut bytes = vec![0; view.len() - view.len() * (round % 5) / 8];
            view.copy_to(0, &mut bytes);
            view.release(bytes.len()).expect("its bytes");
            got.extend(bytes);
        }
        for byte in got.drain(..) {
            assert_eq!(byte, (expected ^ expected >> 8 ^ expected >> 16) as u8, "at {expected}");
            expected += 1;
        }
    }
    assert!(expected > 1 << 20 && sent - expected < 1 << 20, "{sent} {expected}");
}

#[test]
fn a_connection_that_has_ended_is_an_error() {
    let mut both = Both::new(Receive::Copy);
    both.server.abort(both.theirs);
    both.turns();
    assert!(matches!(inplace::reserve(&mut both.client, both.ours, 9).map(|_| ()), Err(Error::Ended(_))));
    assert!(matches!(inplace::look(&mut both.client, both.ours, 1).map(|_| ()), Err(Error::Ended(_))));
    assert!(matches!(inplace::look(&mut both.server, both.theirs, 1).map(|_| ()), Err(Error::Stale)));
}
