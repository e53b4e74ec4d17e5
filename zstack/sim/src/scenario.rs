//! A scenario: everything that happens in a run, apart from what the engine does, as plain data made from a seed. It can be
//! written to a file, read, and made smaller.

use crate::card::CardPlan;
use crate::rng::Rng;
use serde::{Deserialize, Serialize};

/// A run's contents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scenario {
    /// What the network's and the programs' own dice are thrown with.
    pub seed: u64,
    /// The two hosts.
    pub sides: [SidePlan; 2],
    /// The way from each host to the other.
    pub links: [LinkPlan; 2],
    /// Whether a router stands between the hosts, in networks of their own.
    pub routed: bool,
    /// The VLAN that both are in, on Ethernet.
    pub vlan: Option<u16>,
    /// The connections.
    pub conns: Vec<ConnPlan>,
    /// Packets from nowhere.
    pub noise: Vec<Noise>,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SidePlan {
    /// Its card.
    pub card: CardPlan,
    /// When the process stands still (SIGSTOP, suspend): from, for how long, in microseconds.
    pub stops: Vec<(u64, u64)>,
    /// When its device vanishes.
    pub vanishes: Option<u64>,
    /// Half-open connections that it keeps before it answers with cookies.
    pub half_open: u32,
    /// What its clock shows.
    #[serde(default)]
    pub clock: Clock,
}

/// What a host's clock shows when the run begins. Sequence numbers and timestamps follow from it, and its low bits are timers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Clock {
    /// So many microseconds.
    At(u64),
    /// What makes the host's initial sequence number this, if its SYN or SYN-ACK of the first connection leaves when that begins.
    Number(u32),
    /// What makes the host's timestamps this, for the first connection, when that begins.
    Stamp(u32),
}

impl Default for Clock {
    fn default() -> Clock {
        Clock::At(0)
    }
}

/// One direction of the network. Shares are of 10,000 packets; times are microseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkPlan {
    /// How long a packet is under way.
    pub delay: u64,
    /// Up to so much more, for each packet anew; what overtakes arrives first only if `overtake`.
    pub jitter: u64,
    /// Whether jitter changes the order.
    pub overtake: bool,
    /// Bytes a millisecond; 0: no limit.
    pub rate: u64,
    /// Bytes that wait at the bottleneck; more are dropped.
    pub queue: u64,
    /// Lost.
    pub loss: u32,
    /// A stretch of losses begins, and its length in packets.
    pub burst: (u32, u32),
    /// Delivered twice.
    pub twice: u32,
    /// Held up, and for how long.
    pub late: (u32, u64),
    /// Some bits of it are turned over.
    pub corrupt: u32,
    /// From when on no packet is longer than so many bytes.
    pub mtu: Vec<(u64, u16)>,
    /// Whether the sender of a packet that is too long is told.
    pub icmp: bool,
    /// Nothing gets through from, until.
    pub dead: Vec<(u64, u64)>,
}

impl LinkPlan {
    /// A link that does nothing to packets but delay them.
    pub fn clear(delay: u64) -> LinkPlan {
        LinkPlan {
            delay,
            jitter: 0,
            overtake: false,
            rate: 0,
            queue: 0,
            loss: 0,
            burst: (0, 0),
            twice: 0,
            late: (0, 0),
            corrupt: 0,
            mtu: Vec::new(),
            icmp: true,
            dead: Vec::new(),
        }
    }
}

/// A packet that neither host sent, with the addresses and ports of a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    /// When.
    pub at: u64,
    /// To which side.
    pub to: usize,
    /// Which connection.
    pub conn: usize,
    /// Control bits.
    pub flags: u8,
    /// Random payload.
    pub len: u16,
    /// What whoever sent it knows.
    #[serde(default)]
    pub knows: Knows,
}

/// What the sender of a packet from nowhere knows of the connection, besides addresses and ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Knows {
    /// No number.
    #[default]
    Nothing,
    /// What is in flight, which it acknowledges; its own number lies behind the window.
    Flight,
    /// All numbers: it is a segment from before these numbers came round (RFC 7323, section 5), and its timestamp is as old.
    Everything,
    /// All numbers and timestamps, and so it can say what comes close to the truth.
    Lies(Lie),
}

/// What somebody says who knows all numbers of a connection, but cannot hold back what the peers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lie {
    /// It acknowledges what was never sent.
    AckAhead,
    /// SACK blocks that begin below what is acknowledged, reach beyond what was sent, or contain nothing.
    Sack,
    /// Bytes behind the window's right edge, or a FIN there.
    Beyond,
    /// Bytes, or a FIN, that all lie before what has arrived.
    Before,
    /// An RST in or near the window, but not at its left edge (RFC 5961, section 3.2).
    Reset,
    /// A SYN in or near the window (RFC 5961, section 4.2).
    Syn,
    /// An ACK that came before others, with a window of nothing.
    OldAck,
    /// An ACK that is true: it ends inside what the peer has got.
    Part,
    /// An RST at the left edge of the window: the connection ends.
    Kill,
    /// It acknowledges all that was handed to the port, whether or not it has left or arrived.
    Early,
}

impl Lie {
    /// All of them.
    pub const ALL: [Lie; 10] = [
        Lie::AckAhead,
        Lie::Sack,
        Lie::Beyond,
        Lie::Before,
        Lie::Reset,
        Lie::Syn,
        Lie::OldAck,
        Lie::Part,
        Lie::Kill,
        Lie::Early,
    ];
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnPlan {
    /// When it begins.
    pub start: u64,
    /// Which side connects.
    pub opener: usize,
    /// Whether the other side connects too, at the same moment and to the same ports, instead of listening.
    pub both: bool,
    /// IPv6.
    pub v6: bool,
    /// What the listener decides, if the decision is deferred.
    pub decision: Option<Decision>,
    /// The programs at both ends: the opener's, the other's.
    pub apps: [AppPlan; 2],
    /// When the opener's connection is taken out of its stack as numbers and adopted by it again.
    pub adopt: Option<u64>,
    /// By how much the positions in its streams, outgoing and incoming, grow on that occasion.
    #[serde(default)]
    pub shift: (u64, u64),
}

/// What a program decides on a SYN, and after how long.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// How long it thinks.
    pub after: u64,
    /// Whether it takes the connection.
    pub accept: bool,
}

/// What a program does with a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AppPlan {
    /// How many bytes it sends.
    pub send: u64,
    /// The sizes of its writes.
    pub write: (u64, u64),
    /// It waits so long between writes.
    pub pause: (u64, u64),
    /// How many of 10,000 writes are pushed; the last one always is, unless `cork`.
    pub push: u32,
    /// The sizes of its memory for sending and for receiving.
    pub rings: (u32, u32),
    /// Sending memory consists of buffers of so many bytes; 0: it is a ring.
    pub piece: u32,
    /// The most that it reads at once.
    pub read: u64,
    /// At which positions it stops reading, and for how long.
    pub stalls: Vec<(u64, u64)>,
    /// How many of 10,000 placings it refuses.
    pub refuse: u32,
    /// It keeps so many buffers at most until it reads, instead of copying.
    pub keep: u32,
    /// How it ends.
    pub end: End,
    /// Its settings.
    pub options: AppOptions,
    /// Settings change so many times while it sends.
    pub change: u32,
}

/// How a program ends its connection.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum End {
    /// It ends its direction when all is sent, reads to the end, and closes.
    HalfClose,
    /// It reads to the end of the peer's stream first, then closes.
    AfterPeer,
    /// It closes when all is sent and so many bytes are read, whatever still comes.
    Close(u64),
    /// It aborts when it has written and read so many bytes together.
    Abort(u64),
}

/// Settings of a connection; times in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct AppOptions {
    pub nodelay: bool,
    pub cork: bool,
    pub keepalive: Option<(u32, u32, u8)>,
    pub user_timeout: u32,
    pub timestamps: bool,
    pub sack: bool,
    pub scaling: bool,
    pub mss: u16,
    pub reno: bool,
}

impl Scenario {
    /// The scenario of a seed.
    pub fn new(seed: u64) -> Scenario {
        let mut rng = Rng::new(seed);
        let r = &mut rng;
        let wild = r.below(4);
        let sides = [side(r), side(r)];
        let links = [link(r, wild), link(r, wild)];
        let count = if r.often(700) { r.between(5, 24) } else { r.between(1, 3) };
        let size = if r.often(300) && count < 4 { 400_000 } else { 40_000 / count.min(4) };
        let small = sides.iter().any(|s| s.card.mtu < 1280) || links.iter().any(|l| l.mtu.iter().any(|m| m.1 < 1280));
        let mut conns: Vec<ConnPlan> = (0..count).map(|_| conn(r, size, small)).collect();
        if r.often(1000) {
            // Many settings have one side only.
            conns[0].apps[1].send = 0;
        }
        let noise = if r.often(3000) {
            let kinds = [4, 20, 16, 24, 17, 2, 18, 1, 0, 63];
            // Some lies end connections, or make them come to nothing: few seeds have all kinds.
            let lies = if r.often(2000) { 10 } else { 8 };
            (0..r.between(1, 20))
                .map(|_| Noise {
                    at: r.scale(1_000, 5_000_000),
                    to: r.below(2) as usize,
                    conn: r.below(count) as usize,
                    flags: r.pick(&kinds),
                    len: r.pick(&[0, 0, 1, 100, 500]),
                    knows: match r.below(8) {
                        0..=1 => Knows::Nothing,
                        2 => Knows::Flight,
                        3 => Knows::Everything,
                        _ => Knows::Lies(r.pick(&Lie::ALL[..lies])),
                    },
                })
                .collect()
        } else {
            Vec::new()
        };
        let routed = r.often(4000) || sides[0].card.ethernet != sides[1].card.ethernet;
        Scenario { seed: r.draw(), sides, links, routed, vlan: r.often(2000).then_some(12), conns, noise }
    }

    /// Whether every packet gets through in the end, so that connections must end well unless a program ends them otherwise.
    pub fn lives(&self) -> bool {
        self.links.iter().all(|l| l.icmp || l.mtu.is_empty())
            && self.links.iter().all(|l| l.dead.iter().all(|d| d.1 - d.0 < 20_000_000))
            && self.sides.iter().all(|s| s.vanishes.is_none())
    }
}

fn side(r: &mut Rng) -> SidePlan {
    let tso = if r.often(3000) { r.pick(&[4_000, 16_384, 65_000]) } else { 0 };
    let card = CardPlan {
        ethernet: r.often(4000),
        mtu: if r.often(6000) { 1500 } else { r.pick(&[576, 700, 1280, 1400, 4000, 9000]) },
        checksum: r.often(5000),
        verify: r.often(5000),
        tso,
        late: r.often(5000).then(|| {
            let most = r.scale(10, 400_000) as u32;
            (1 + most / 10, most)
        }),
        join: if r.often(3000) { r.pick(&[3_000, 16_000, 65_535]) } else { 0 },
        full: if r.often(2000) { r.scale(10, 5_000) as u32 } else { 0 },
        queue: r.pick(&[2, 8, 64, 512]),
        scarce: if r.often(2000) { r.scale(10, 10_000) as u32 } else { 0 },
    };
    let stops = if r.often(500) { vec![(r.scale(1_000, 3_000_000), r.scale(10_000, 200_000_000))] } else { Vec::new() };
    SidePlan {
        card,
        stops,
        vanishes: r.often(150).then(|| r.scale(1_000, 3_000_000)),
        half_open: r.pick(&[1, 2, 64, 64, 64]),
        clock: clock(r),
    }
}

/// Half of all runs see numbers, timestamps or timers of 32 bits come round.
fn clock(r: &mut Rng) -> Clock {
    let wrap = r.pick(&[0u32, 0, 1 << 31]);
    match r.below(8) {
        0..=2 => Clock::At(r.scale(1, 1 << 44)),
        3 => Clock::At(((1 + r.below(1000)) << 32) - r.scale(1, 60_000_000)),
        4..=6 => Clock::Number(wrap.wrapping_sub(r.scale(1, 200_000) as u32)),
        _ => Clock::Stamp(wrap.wrapping_sub(r.scale(1, 20_000) as u32)),
    }
}

fn link(r: &mut Rng, wild: u64) -> LinkPlan {
    let delay = r.scale(5, 150_000);
    let mut link = LinkPlan::clear(delay);
    if wild == 0 {
        return link;
    }
    if r.often(4000) {
        link.jitter = r.scale(1, delay.max(2) * 2);
        link.overtake = r.often(4000);
    }
    if r.often(3000) {
        link.rate = r.scale(20, 20_000);
        link.queue = r.scale(3_000, 200_000);
    }
    if r.often(5000) {
        link.loss = r.scale(5, if wild == 3 { 3_000 } else { 500 }) as u32;
    }
    if r.often(1500) {
        link.burst = (r.scale(5, 200) as u32, r.scale(2, 12) as u32);
    }
    if r.often(3000) {
        link.twice = r.scale(5, 2_000) as u32;
    }
    if r.often(3000) {
        link.late = (r.scale(5, 2_000) as u32, r.scale(10, delay * 4 + 10_000));
    }
    if r.often(2000) {
        link.corrupt = r.scale(5, 500) as u32;
    }
    if r.often(1500) {
        link.mtu.push((r.scale(1, 2_000_000), r.pick(&[600, 1280, 1280, 1400])));
        link.icmp = r.often(8000);
    }
    if r.often(800) {
        let from = r.scale(1, 3_000_000);
        let len = if r.often(3000) { 100_000_000_000 } else { r.scale(10_000, 15_000_000) };
        link.dead.push((from, from + len));
    }
    link
}

fn conn(r: &mut Rng, size: u64, small: bool) -> ConnPlan {
    let both = r.often(500);
    ConnPlan {
        start: if r.often(5000) { 0 } else { r.scale(1, 1_000_000) },
        opener: r.below(2) as usize,
        both,
        // RFC 8200, section 5: every link of IPv6 carries 1280 bytes.
        v6: !small && r.often(4000),
        decision: r.often(2000).then(|| Decision { after: r.scale(1, 8_000_000), accept: r.often(8000) }),
        apps: [app(r, size), app(r, size)],
        adopt: r.often(800).then(|| r.scale(1_000, 3_000_000)),
        shift: (shift(r), shift(r)),
    }
}

/// Streams may be longer than 4 GiB.
fn shift(r: &mut Rng) -> u64 {
    match r.below(3) {
        0 => 0,
        1 => (1 << 32) - r.scale(1, 40_000),
        _ => r.below(1 << 60),
    }
}

fn app(r: &mut Rng, size: u64) -> AppPlan {
    let send = if r.often(1500) { 0 } else { r.scale(1, size) };
    let rings = (r.scale(300, 131_072) as u32, r.scale(300, 262_144) as u32);
    let small = r.often(2000);
    let most = if small { 60 } else { r.scale(1, 30_000) };
    let few = r.below(if small { 200 } else { 20_000 });
    let send = if small { send.min(3_000) } else { send };
    AppPlan {
        send,
        write: (most / 4 + 1, most.max(send / 400) + 1),
        pause: if r.often(6000) { (0, 0) } else { (0, few) },
        push: if r.often(7000) { 10_000 } else { r.below(10_000) as u32 },
        rings,
        piece: if r.often(3000) { r.scale(16, 20_000) as u32 } else { 0 },
        read: if r.often(6000) { u64::MAX } else { r.scale(1 + send / 1000, 20_000) },
        stalls: (0..if r.often(3000) { r.between(1, 2) } else { 0 })
            .map(|_| (r.below(size), r.scale(100_000, 90_000_000)))
            .collect(),
        refuse: if r.often(1000) { r.scale(10, 3_000) as u32 } else { 0 },
        keep: if r.often(3000) { r.scale(1, 64) as u32 } else { 0 },
        end: match r.below(20) {
            0..=9 => End::HalfClose,
            10..=14 => End::AfterPeer,
            15..=16 => End::Close(u64::MAX),
            17..=18 => End::Close(r.below(size)),
            _ => End::Abort(r.below(size)),
        },
        options: AppOptions {
            nodelay: r.often(5000),
            cork: r.often(500),
            keepalive: r
                .often(1000)
                .then(|| (r.scale(100, 20_000) as u32, r.scale(100, 10_000) as u32, r.between(2, 9) as u8)),
            user_timeout: if r.often(500) { r.scale(500, 60_000) as u32 } else { 0 },
            timestamps: r.often(7500),
            sack: r.often(7500),
            scaling: r.often(8000),
            mss: if r.often(1000) { r.between(536, 1400) as u16 } else { 0 },
            reno: r.often(3000),
        },
        change: if r.often(500) { r.between(1, 8) as u32 } else { 0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_one_scenario_and_a_file_keeps_it() {
        let mut seen = std::collections::HashSet::new();
        for seed in 0..200 {
            let scenario = Scenario::new(seed);
            let text = serde_json::to_string(&scenario).unwrap();
            assert_eq!(text, serde_json::to_string(&Scenario::new(seed)).unwrap());
            assert_eq!(serde_json::from_str::<Scenario>(&text).unwrap(), scenario);
            seen.insert(text);
        }
        assert_eq!(seen.len(), 200);
    }
}
