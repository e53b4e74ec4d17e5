//! How a connection ends: close, half-close, a peer that is killed, resets.

use super::*;
use libc::{EAGAIN, ECONNRESET, EPIPE, POLLHUP, POLLIN, POLLOUT, POLLRDHUP, SHUT_WR};

#[test]
fn what_was_sent_before_a_close_is_read_and_then_the_end() {
    let world = World::new();
    let pair = warmed(&world);
    assert_eq!(pair.a.send(&bytes(0, 5_000)), Ok(5_000));
    pair.a.close();
    assert_eq!(pair.b.recv(3_000), Ok(bytes(0, 3_000)));
    assert_eq!(pair.b.recv(3_000), Ok(bytes(3_000, 2_000)));
    assert_eq!(pair.b.recv(6_000), Ok(vec![]));
    assert_eq!(pair.b.recv(6_000), Ok(vec![]));
    pair.b.close();
}

#[test]
fn a_half_closed_connection_goes_on_the_other_way() {
    let world = World::new();
    let pair = warmed(&world);
    assert_eq!(pair.a.send(b"last"), Ok(4));
    assert_eq!(pair.a.shutdown(SHUT_WR), Ok(()));
    assert_eq!(pair.a.send(b"more"), Err(EPIPE));
    assert_eq!(pair.b.poll(POLLIN | POLLOUT | POLLRDHUP), POLLIN | POLLOUT | POLLRDHUP);
    assert_eq!(pair.b.recv(9), Ok(b"last".to_vec()));
    assert_eq!(pair.b.recv(9), Ok(vec![]));
    for i in 0..20 {
        assert_eq!(pair.b.send(&bytes(i, 500)), Ok(500));
        assert_eq!(pair.a.recv(999), Ok(bytes(i, 500)));
    }
    assert_eq!(pair.a.recv(9), Err(EAGAIN));
    assert_eq!(pair.b.shutdown(SHUT_WR), Ok(()));
    assert_eq!(pair.a.recv(9), Ok(vec![]));
    assert_ne!(pair.a.poll(POLLIN) & POLLHUP, 0);
    pair.close();
}

#[test]
fn a_close_with_bytes_unread_resets() {
    let world = World::new();
    let pair = warmed(&world);
    assert_eq!(pair.a.send(b"unread"), Ok(6));
    pair.b.close();
    assert_eq!(pair.a.recv(9), Err(ECONNRESET));
    assert_eq!(pair.a.recv(9), Ok(vec![]));
    assert_eq!(pair.a.send(b"x"), Err(EPIPE));
    pair.a.close();
}

#[test]
fn what_a_killed_peer_had_sent_is_read() {
    let world = World::new();
    let pair = warmed(&world);
    assert_eq!(pair.a.send(&bytes(0, 3_000)), Ok(3_000));
    pair.a.die();
    assert_eq!(pair.b.recv(1_000), Ok(bytes(0, 1_000)));
    assert_eq!(pair.b.recv(9_000), Ok(bytes(1_000, 2_000)));
    assert_eq!(pair.b.recv(9), Ok(vec![]));
    pair.b.close();
}

#[test]
fn a_sender_hears_of_a_killed_peer() {
    let world = World::new();
    let pair = warmed(&world);
    pair.b.die();
    let mut last = Ok(0);
    for _ in 0..100 {
        last = pair.a.send(b"x");
        Simulated::pass(10_000);
        if last.is_err() {
            break;
        }
    }
    assert!(matches!(last, Err(EPIPE | ECONNRESET)), "{last:?}");
    assert_eq!(pair.a.send(b"x"), Err(EPIPE));
    pair.a.close();
}

#[test]
fn a_reset_of_the_lifeline_is_told_after_the_bytes() {
    let world = World::new();
    let pair = warmed(&world);
    assert_eq!(pair.a.send(b"bytes"), Ok(5));
    Simulated::tcp(pair.a.fd, |tcp, end| tcp.close(end, true));
    assert_eq!(pair.b.recv(9), Ok(b"bytes".to_vec()));
    assert_eq!(pair.b.recv(9), Err(ECONNRESET));
    assert_eq!(pair.b.recv(9), Ok(vec![]));
    assert_eq!(pair.b.send(b"x"), Err(EPIPE));
    pair.close();
}
