//! The pools of a queue: how many buffers of which size, and where those lie in which packets arrive.

use crate::driver::{Driver, Takes};
use crate::memory::Buffers;
use crate::raw::pool::{HEADROOM, Pool};
use crate::spec::Spec;

/// Link header with a VLAN tag, and the trailer that some drivers count.
pub(crate) const LINK: u32 = 18 + 4;
/// Descriptors of a ring, where the driver has a choice.
const DESCRIPTORS: u16 = 512;

/// How many buffers of which size.
pub(crate) struct Sizes {
    /// Bytes of a buffer, the headroom among them.
    pub room: u32,
    /// Buffers that the driver may have, beside those that are in use.
    pub driver: u32,
    pub rx: u32,
    pub tx: u32,
    pub segments: u32,
    pub descriptors: (u16, u16),
}

impl Sizes {
    pub(crate) fn new(spec: &Spec, driver: Driver, mtu: u16) -> Sizes {
        let frame = u32::from(mtu) + LINK;
        // net_af_packet wants room for a whole frame of the kernel's ring.
        let ring = spec.argument("framesz").and_then(|v| v.parse().ok()).filter(|_| driver == Driver::AfPacket);
        // The kernel leaves bytes free before each packet that it puts into a net_af_xdp's frame (XDP_PACKET_HEADROOM).
        let before = if driver == Driver::AfXdp { 256 } else { 0 };
        let room = HEADROOM + (before + frame.max(ring.unwrap_or(0))).max(2048);
        let descriptors = match driver {
            // One system call for a packet anyway.
            Driver::Tap => (64, 64),
            _ => (DESCRIPTORS, DESCRIPTORS),
        };
        // net_af_xdp fills rings of its own size, and sends out of the same pool.
        let rings = if driver == Driver::AfXdp { 3 * 2048 + 1024 } else { u32::from(descriptors.0) };
        // What lies in the caches of threads is nobody's.
        let rx = rings + spec.mbufs + 512;
        Sizes { room, driver: rings, rx, tx: 2048, segments: 4096, descriptors }
    }

    pub(crate) fn cost(&self, queues: u16) -> u64 {
        u64::from(queues)
            * (Pool::cost(self.rx, self.room) + Pool::cost(self.tx, self.room) + Pool::cost(self.segments, 0))
    }
}

/// What a queue receives into, and where its buffers lie, for people. Where they could lie in memory of ours and there is none, they lie in
/// DPDK's, unless the user wants ours.
pub(crate) fn receive(spec: &Spec, driver: Driver, sizes: &Sizes, huge: bool) -> Result<(Pool, String), String> {
    let (count, room) = (sizes.rx, sizes.room);
    let takes = driver.takes(spec.shares());
    let ours = match (spec.pool, takes) {
        (Buffers::Dpdk, _) => Err("pool=dpdk says so".to_owned()),
        (Buffers::Auto, Takes::Told(why)) | (_, Takes::Dpdks(why)) => Err(why.to_owned()),
        (_, Takes::Whole) => Pool::whole(count, room, huge),
        (_, Takes::Pinned) => Pool::pinned(count, room, huge, false),
        (Buffers::Pinned, Takes::Told(_)) => Pool::pinned(count, room, huge, true),
    };
    match ours {
        Ok(pool) => {
            let kind = if takes == Takes::Whole { "the pool itself" } else { "pinned external buffers" };
            let pages = if pool.region().is_some_and(|region| region.is_huge()) { " of hugepages" } else { "" };
            let told = if matches!(takes, Takes::Told(_)) { ", of which DPDK was told" } else { "" };
            Ok((pool, format!("{kind} in memory of ours (a sealed memfd{pages}){told}")))
        }
        Err(why) if spec.pool == Buffers::Pinned => Err(format!("pool=pinned: {why}: leave pool= out")),
        Err(why) if driver == Driver::AfXdp && !huge && spec.pool == Buffers::Auto => Err(format!(
            "net_af_xdp needs a pool in memory of ours where there are no hugepages, and there is none: {why}"
        )),
        Err(why) => Ok((Pool::new(count, room)?, format!("in DPDK's memory, since {why}"))),
    }
}
