//! Every state, every set of flags, numbers before, at and behind the window's edges, ACKs old, fitting and invented, with and
//! without payload: against a model that is written from RFC 9293 and RFC 5961 alone.

use super::*;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    Nothing,
    Ack,
    SynAck,
    Reset,
}

/// The numbers of a connection in a state, as [`Test::in_phase`] leaves it.
struct Numbers {
    una: i64,
    nxt: i64,
    rcv: i64,
}

const EDGE: i64 = 25_001;

fn numbers(phase: Phase) -> Numbers {
    let (una, nxt, rcv) = match phase {
        Phase::Listen => (1000, 1000, 5001),
        Phase::SynSent => (1000, 1001, 5001),
        Phase::SynReceived => (1000, 1001, 5001),
        Phase::Established => (1001, 1001, 5001),
        Phase::CloseWait => (1001, 1001, 5002),
        Phase::FinWait1 => (1001, 1002, 5001),
        Phase::FinWait2 => (1002, 1002, 5001),
        Phase::Closing | Phase::LastAck => (1001, 1002, 5002),
        Phase::TimeWait => (1002, 1002, 5002),
        Phase::Closed => (1001, 1001, 5001),
    };
    Numbers { una, nxt, rcv }
}

/// The state afterwards, the answer, and how many bytes are published.
fn model(phase: Phase, flags: Flags, seq: i64, ack: i64, len: i64) -> (Phase, Answer, i64) {
    let n = numbers(phase);
    let (syn, fin, rst, acks) =
        (flags.has(Flags::SYN), flags.has(Flags::FIN), flags.has(Flags::RST), flags.has(Flags::ACK));
    let end = seq + len + i64::from(syn) + i64::from(fin);
    let exact = seq == n.rcv;
    match phase {
        Phase::Closed => return (phase, if rst { Answer::Nothing } else { Answer::Reset }, 0),
        Phase::Listen => {
            return match (rst, acks) {
                (true, _) if exact => (Phase::Closed, Answer::Nothing, 0),
                (false, true) => (phase, Answer::Reset, 0),
                // Another attempt of the peer's.
                (false, false) if syn && !fin && seq != n.rcv - 1 => (Phase::Closed, Answer::Nothing, 0),
                _ => (phase, Answer::Nothing, 0),
            };
        }
        Phase::SynSent => {
            let fits = ack == n.nxt;
            return match (acks, rst, syn) {
                (true, true, _) if fits => (Phase::Closed, Answer::Nothing, 0),
                (_, true, _) => (phase, Answer::Nothing, 0),
                (true, false, _) if !fits => (phase, Answer::Reset, 0),
                (true, false, true) => (Phase::Established, Answer::Ack, 0),
                (false, false, true) => (Phase::SynReceived, Answer::SynAck, 0),
                (_, false, false) => (phase, Answer::Nothing, 0),
            };
        }
        Phase::TimeWait => {
            return if exact && rst {
                (Phase::Closed, Answer::Nothing, 0)
            } else if exact && end == seq || rst || syn && !acks && seq > n.rcv {
                // The last is a new connection's, which the stack would open once the name is free.
                (phase, Answer::Nothing, 0)
            } else {
                (phase, Answer::Ack, 0)
            };
        }
        _ => {}
    }
    let again = phase == Phase::SynReceived && syn && !acks && seq + 1 == n.rcv && len == 0 && !rst;
    let crossing = phase == Phase::SynReceived && syn && acks && seq + 1 == n.rcv && end == n.rcv && ack == n.nxt;
    if end < n.rcv || seq > EDGE {
        return (phase, if rst { Answer::Nothing } else { Answer::Ack }, 0);
    }
    if rst {
        return if exact { (Phase::Closed, Answer::Nothing, 0) } else { (phase, Answer::Ack, 0) };
    }
    if again {
        return (phase, Answer::SynAck, 0);
    }
    if syn && !crossing {
        return (phase, Answer::Ack, 0);
    }
    if !acks {
        return (phase, Answer::Nothing, 0);
    }
    let mut phase = phase;
    if phase == Phase::SynReceived {
        if ack != n.nxt {
            return (phase, Answer::Reset, 0);
        }
        phase = Phase::Established;
    } else if ack > n.nxt || ack < n.una - 10_000 {
        return (phase, Answer::Ack, 0);
    }
    if ack == n.nxt {
        phase = match phase {
            Phase::FinWait1 => Phase::FinWait2,
            Phase::Closing => Phase::TimeWait,
            Phase::LastAck => Phase::Closed,
            other => other,
        };
    }
    if phase >= Phase::TimeWait {
        return (phase, Answer::Nothing, 0);
    }
    if len == 0 && !fin {
        return (phase, Answer::Nothing, 0);
    }
    if !matches!(phase, Phase::Established | Phase::FinWait1 | Phase::FinWait2) {
        return (phase, Answer::Ack, 0);
    }
    let seq = seq + i64::from(syn);
    let published = if seq <= n.rcv { (seq + len - n.rcv).max(0) } else { 0 };
    if fin && seq <= n.rcv && seq + len >= n.rcv {
        phase = match phase {
            Phase::Established => Phase::CloseWait,
            Phase::FinWait1 => Phase::Closing,
            _ => Phase::TimeWait,
        };
    }
    (phase, Answer::Ack, published)
}

#[test]
fn every_state_and_every_segment() {
    let phases = [
        Phase::Listen,
        Phase::SynSent,
        Phase::SynReceived,
        Phase::Established,
        Phase::CloseWait,
        Phase::FinWait1,
        Phase::FinWait2,
        Phase::Closing,
        Phase::LastAck,
        Phase::TimeWait,
        Phase::Closed,
    ];
    let mut cases = 0;
    for phase in phases {
        let n = numbers(phase);
        for bits in 0..64u8 {
            let flags = Flags(bits);
            for seq in [n.rcv, n.rcv + 100, n.rcv - 1, n.rcv - 100, 40_000] {
                for ack in [n.una, n.nxt, n.nxt + 1, n.una - 5000, n.una - 10_100] {
                    for len in [0, 10] {
                        let (then, answer, published) = model(phase, flags, seq, ack, len);
                        let mut t = Test::in_phase(phase);
                        // Limits of answers are tested elsewhere.
                        t.cx.now = t.cx.now.after_millis(900);
                        let (received, events) = (t.cx.published, t.cx.events.len());
                        let mut segment = seg("", seq as u32, ack as u32).len(len as u32);
                        segment.header.flags = flags;
                        t.send(segment);
                        let got = match t.cx.sent.pop_front() {
                            None => Answer::Nothing,
                            Some(out) if out.header.flags.has(Flags::RST) => Answer::Reset,
                            Some(out) if out.header.flags.has(Flags::SYN) => Answer::SynAck,
                            Some(_) => Answer::Ack,
                        };
                        let case = format!("{phase:?} {flags:?} seq {seq} ack {ack} len {len}");
                        assert_eq!((t.tcb.phase(), got), (then, answer), "{case}");
                        assert_eq!(i64::try_from(t.cx.published - received).unwrap(), published, "{case}");
                        assert!(t.cx.sent.is_empty(), "{case}");
                        let ends = t.cx.events[events..].iter().filter(|e| matches!(e, Event::Ended(_))).count();
                        let was_over = phase >= Phase::TimeWait;
                        assert_eq!(ends, usize::from(!was_over && then >= Phase::TimeWait), "{case}");
                        cases += 1;
                    }
                }
            }
        }
    }
    assert_eq!(cases, 11 * 64 * 50);
}
