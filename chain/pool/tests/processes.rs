//! Two processes share a pool and an edge: what one lays into a chunk the other reads, a monitor cannot write, and one that dies leaves
//! nothing behind.
#![cfg(not(any(loom, miri)))]

use pool::{Access, Descriptor, Edge, End, MANAGER, Owners, Party, Pool, Receiver, Sender};

const LEN: usize = 2048;

#[test]
fn a_monitor_cannot_write() {
    let pool = Pool::new(4, LEN).unwrap();
    let monitor = Pool::open(pool.read_only_fd().unwrap(), LEN, Access::ReadOnly).unwrap();
    let d = Descriptor { chunk: 1, offset: 128, len: 5, ..Descriptor::default() };
    assert!(pool.write(&d, 0, b"hello"));
    let mut seen = [0; 5];
    assert!(monitor.read(&d, 0, &mut seen));
    assert_eq!(&seen, b"hello");
    assert!(!monitor.write(&d, 0, b"x"));
    // What it was sent does not allow more, either.
    assert!(Pool::open(pool.read_only_fd().unwrap(), LEN, Access::Full).is_err());
}

#[test]
fn nothing_is_read_or_written_outside_of_what_is_named() {
    let pool = Pool::new(4, LEN).unwrap();
    let named = |chunk, offset, len| Descriptor { chunk, offset, len, ..Descriptor::default() };
    let mut bytes = [0; 64];
    for (d, at, n, there) in [
        (named(0, 0, 64), 0, 64, true),
        (named(0, 0, 64), 1, 64, false),
        (named(0, 0, 64), usize::MAX, 1, false),
        (named(3, 2047, 1), 0, 1, true),
        (named(3, 2047, 2), 0, 1, false),
        (named(4, 0, 64), 0, 1, false),
        (named(u32::MAX, 0, 64), 0, 1, false),
    ] {
        assert_eq!(pool.read(&d, at, &mut bytes[..n]), there, "{d:?} from {at}");
        assert_eq!(pool.write(&d, at, &bytes[..n]), there, "{d:?} from {at}");
    }
}

/// A packet goes to a function and back, which changes it; then a thousand, more than the rings hold.
#[test]
fn packets_go_through_a_function() {
    const FUNCTION: Party = Party(1);
    let pool = Pool::new(64, LEN).unwrap();
    let edge = Edge::new(16).unwrap();
    let mut owners = Owners::new(pool.chunks(), LEN, 2);
    let (pool_fd, edge_fd) = [pool.fd(), edge.fd()].map(|fd| fd.try_clone_to_owned().unwrap()).into();
    let function = std::thread::spawn(move || {
        let pool = Pool::open(pool_fd, LEN, Access::Full).unwrap();
        let edge = Edge::open(edge_fd).unwrap();
        let mut from = Receiver::new(edge.incoming(End::Function), 0);
        let mut to = Sender::new(edge.outgoing(End::Function), 0);
        let mut done = 0;
        while done < 1000 {
            let Some(d) = from.pop().unwrap() else {
                std::thread::yield_now();
                continue;
            };
            from.give_back();
            let mut byte = [0];
            assert!(pool.read(&d, 0, &mut byte) && pool.write(&d, 0, &[!byte[0]]));
            while !to.push(d).unwrap() {
                std::thread::yield_now();
            }
            let _ = to.publish();
            done += 1;
        }
    });
    let mut to = Sender::new(edge.outgoing(End::Manager), 0);
    let mut from = Receiver::new(edge.incoming(End::Manager), 0);
    let (mut sent, mut back) = (0u32, 0u32);
    while back < 1000 {
        while sent < 1000
            && to.room().unwrap() > 0
            && let Some(d) = owners.take()
        {
            let d = Descriptor { offset: 128, len: 1, mark: sent, ..d };
            assert!(pool.write(&d, 0, &[sent as u8]));
            assert!(to.push(owners.hand(d, MANAGER, FUNCTION).unwrap()).unwrap());
            sent += 1;
        }
        let _ = to.publish();
        while let Some(d) = from.pop().unwrap() {
            let d = owners.hand(d, FUNCTION, MANAGER).unwrap();
            let mut byte = [0];
            assert!(pool.read(&d, 0, &mut byte));
            assert_eq!((d.mark, byte[0]), (back, !(back as u8)));
            owners.give_back(d, MANAGER).unwrap();
            back += 1;
        }
        from.give_back();
        if back < 1000 {
            std::thread::yield_now();
        }
    }
    function.join().unwrap();
    assert_eq!((owners.free(), owners.held(FUNCTION)), (64, 0));
}
