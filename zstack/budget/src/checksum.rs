//! The checksum of a payload of 1,448 bytes.

use crate::Scenario;
use std::hint::black_box;
use zstack_wire::checksum::Sum;

const SEGMENTS: u32 = 16;
const PAYLOAD: usize = 1448;

struct Checksum {
    memory: Vec<u8>,
    from: usize,
}

impl Scenario for Checksum {
    fn segments(&self) -> u32 {
        SEGMENTS
    }

    fn work(&mut self) {
        for _ in 0..SEGMENTS {
            black_box(Sum::ZERO.bytes(black_box(&self.memory[self.from..self.from + PAYLOAD])).field());
        }
    }
}

fn at(odd: usize) -> Box<dyn Scenario> {
    let memory: Vec<u8> = (0..PAYLOAD + 64).map(|n| n as u8).collect();
    let from = memory.as_ptr().align_offset(16) + odd;
    Box::new(Checksum { memory, from })
}

/// At a multiple of 16.
pub fn aligned() -> Box<dyn Scenario> {
    at(0)
}

/// At an odd address.
pub fn odd() -> Box<dyn Scenario> {
    at(1)
}
