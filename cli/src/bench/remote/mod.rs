//! The rows whose other end is on another host: in another network namespace, behind a veth pair whose packets have 1500 bytes at most.

mod attempts;
mod engine;
mod idle;
mod lab;
mod pair;
mod programs;
mod wake;
mod web;

pub use lab::missing;

use super::row::{BLANK, Equipment, Floor, Row};
use super::rows::{NGINX, REDIS};
use lab::Device;

/// What all need.
const TOOL: &[Equipment] = &[Equipment::Root, Equipment::Zstack];
const DAEMON: &[Equipment] = &[Equipment::Root, Equipment::Zstackd];
const DAEMON_AND_TOOL: &[Equipment] = &[Equipment::Root, Equipment::Zstackd, Equipment::Zstack];

const WIRE: &[&str] = &["ip", "ethtool", "unshare", "nsenter"];
const WEB: &[&str] = &["ip", "ethtool", "unshare", "nsenter", NGINX[0], NGINX[1]];
const STORE: &[&str] = &["ip", "ethtool", "unshare", "nsenter", REDIS[0], REDIS[1]];

const REMOTE: Row = Row { detailed: true, ..BLANK };

/// Sent by reference, beside the same copied.
const REFERENCE: Row = Row {
    beside: Some("copied"),
    unit: "segments/CPU s",
    operation: "segment",
    floor: Floor::Times(0.98),
    rounds: 2,
    needs: WIRE,
    equipment: TOOL,
    ..REMOTE
};

/// In the order of the table.
pub const ROWS: &[Row] = &[
    Row {
        id: "zstack-truth",
        title: "connect: ten hosts that answer late, refuse, are silent, unreachable",
        unit: "connected",
        floor: Floor::Same(25.0),
        operation: "attempt",
        most: 3,
        needs: WIRE,
        equipment: DAEMON,
        run: attempts::attempts,
        ..REMOTE
    },
    Row {
        id: "zstack-connect",
        title: "connect and close: CPU of program and zstackd without its port",
        unit: "us",
        higher_is_better: false,
        floor: Floor::Times(1.0 / 1.6),
        operation: "connection",
        needs: WIRE,
        equipment: DAEMON_AND_TOOL,
        run: programs::connect,
        ..REMOTE
    },
    Row {
        id: "zstack-upload",
        title: "the engine on af_xdp sends: MiB a CPU second of its side",
        unit: "MiB/CPU s",
        floor: Floor::Times(1.0),
        operation: "MiB",
        needs: WIRE,
        equipment: TOOL,
        run: |s, side| engine::throughput(s, side, Device::AfXdp, "upload"),
        ..REMOTE
    },
    Row {
        id: "zstack-download",
        title: "the engine on af_xdp receives: MiB a CPU second of its side",
        unit: "MiB/CPU s",
        floor: Floor::Times(1.0),
        operation: "MiB",
        needs: WIRE,
        equipment: TOOL,
        run: |s, side| engine::throughput(s, side, Device::AfXdp, "download"),
        ..REMOTE
    },
    Row {
        id: "zstack-memif",
        title: "two engines over memif: MiB a CPU second of both",
        unit: "MiB/CPU s",
        floor: Floor::Times(1.5),
        operation: "MiB",
        needs: WIRE,
        equipment: TOOL,
        run: engine::memif,
        ..REMOTE
    },
    Row {
        id: "zstack-stream",
        title: "two programs behind two zstackds over memif: MiB a CPU second of all four",
        unit: "MiB/CPU s",
        floor: Floor::Times(1.3),
        operation: "MiB",
        needs: WIRE,
        equipment: DAEMON_AND_TOOL,
        run: programs::stream,
        ..REMOTE
    },
    Row {
        id: "zstack-send",
        title: "the engine sends 64 KiB by reference on net_null: segments a CPU second",
        floor: Floor::Times(1.3),
        run: |s, side| engine::solo(s, side, None),
        ..REFERENCE
    },
    Row {
        id: "zstack-send-packet",
        title: "the same on af_packet",
        run: |s, side| engine::solo(s, side, Some(Device::AfPacket)),
        ..REFERENCE
    },
    Row {
        id: "zstack-send-xdp",
        title: "the same on af_xdp, which copies",
        run: |s, side| engine::solo(s, side, Some(Device::AfXdp)),
        ..REFERENCE
    },
    Row {
        id: "zstack-send-memif",
        title: "the same to another engine over memif: MiB a CPU second of both",
        unit: "MiB/CPU s",
        operation: "MiB",
        run: engine::memif_by_reference,
        ..REFERENCE
    },
    Row {
        id: "zstack-pool",
        title: "a packet that arrives in memory of ours, from net_null to its return",
        beside: Some("in DPDK's"),
        unit: "ns",
        higher_is_better: false,
        operation: "packet",
        floor: Floor::Times(0.9),
        run: engine::pool,
        ..REFERENCE
    },
    Row {
        id: "zstack-rtt-polled",
        title: "64 B round trip of an engine that polls",
        unit: "us",
        higher_is_better: false,
        floor: Floor::Times(1.0),
        operation: "round trip",
        needs: WIRE,
        equipment: TOOL,
        run: |s, side| engine::round_trip(s, side, "busy"),
        ..REMOTE
    },
    Row {
        id: "zstack-rtt",
        title: "64 B round trip of an engine that sleeps",
        unit: "us",
        higher_is_better: false,
        floor: Floor::Times(1.0 / 1.5),
        operation: "round trip",
        needs: WIRE,
        equipment: TOOL,
        run: |s, side| engine::round_trip(s, side, "auto"),
        ..REMOTE
    },
    Row {
        id: "zstack-wake",
        title: "64 B to a program that slept for 20 ms, on the slowest of eight ports",
        unit: "us",
        higher_is_better: false,
        floor: Floor::AtMostOrTimes(100.0, 1.5),
        operation: "message",
        most: 3,
        needs: WIRE,
        equipment: TOOL,
        run: wake::wake,
        ..REMOTE
    },
    Row {
        id: "zstack-rtt-program",
        title: "64 B round trip of a program behind zstackd",
        unit: "us",
        higher_is_better: false,
        floor: Floor::Reported,
        operation: "round trip",
        needs: WIRE,
        equipment: DAEMON,
        run: programs::round_trip,
        ..REMOTE
    },
    Row {
        id: "zstack-http-xdp",
        title: "zstack http on af_xdp beside nginx, 1 KiB, wrk -c 64",
        unit: "req/CPU s",
        floor: Floor::Times(1.0),
        operation: "request",
        needs: WEB,
        equipment: TOOL,
        run: |s, side| engine::http(s, side, Device::AfXdp),
        ..REMOTE
    },
    Row {
        id: "zstack-http",
        title: "zstack http on af_packet beside nginx, 1 KiB, wrk -c 64",
        unit: "req/CPU s",
        floor: Floor::Reported,
        operation: "request",
        needs: WEB,
        equipment: TOOL,
        run: |s, side| engine::http(s, side, Device::AfPacket),
        ..REMOTE
    },
    Row {
        id: "zstack-nginx",
        title: "nginx behind zstackd on af_packet, 1 KiB, wrk -c 32",
        unit: "req/CPU s",
        floor: Floor::Reported,
        operation: "request",
        needs: WEB,
        equipment: DAEMON,
        run: |s, side| programs::nginx_behind(s, side, Device::AfPacket),
        ..REMOTE
    },
    Row {
        id: "zstack-nginx-xdp",
        title: "the same on af_xdp",
        unit: "req/CPU s",
        floor: Floor::Reported,
        operation: "request",
        needs: WEB,
        equipment: DAEMON,
        run: |s, side| programs::nginx_behind(s, side, Device::AfXdp),
        ..REMOTE
    },
    Row {
        id: "zstack-redis",
        title: "redis behind zstackd on af_packet, SET and GET 64 B, -c 50",
        unit: "ops/CPU s",
        floor: Floor::Reported,
        operation: "command",
        needs: STORE,
        equipment: DAEMON,
        run: |s, side| programs::redis_behind(s, side, Device::AfPacket),
        ..REMOTE
    },
    Row {
        id: "zstack-redis-xdp",
        title: "the same on af_xdp",
        unit: "ops/CPU s",
        floor: Floor::Reported,
        operation: "command",
        needs: STORE,
        equipment: DAEMON,
        run: |s, side| programs::redis_behind(s, side, Device::AfXdp),
        ..REMOTE
    },
    Row {
        id: "zstack-idle",
        title: "10,000 idle connections: memory of zstackd and the kernel for it",
        unit: "B/conn",
        higher_is_better: false,
        floor: Floor::AtMost(16_384.0, 5_000.0),
        operation: "second",
        most: 1,
        needs: WIRE,
        equipment: DAEMON,
        run: idle::idle,
        ..REMOTE
    },
];
