use super::*;
use std::path::Path;

type Target = fn(&[u8]);

const TARGETS: &[(&str, Target)] = &[("engine-frames", frames), ("engine-segments", segments)];

/// What the fuzzer does, without knowing which way the engine goes: it finds less, and needs no instrumented build.
#[test]
fn seeds_and_what_is_near_them() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/seeds");
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: usize| {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize % below.max(1)
    };
    let tries = std::env::var("ENGINE_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    for (name, target) in TARGETS {
        let files: Vec<_> = std::fs::read_dir(seeds.join(name)).expect(name).map(|f| f.unwrap().path()).collect();
        assert!(!files.is_empty(), "{name} has no seeds");
        for file in files {
            let seed = std::fs::read(&file).unwrap();
            target(&seed);
            for _ in 0..tries {
                let mut bytes = seed.clone();
                for _ in 0..=random(8) {
                    let at = random(bytes.len());
                    match random(4) {
                        0 => bytes[at] ^= 1 << random(8),
                        1 => bytes[at] = random(256) as u8,
                        2 => bytes.truncate(at.max(20)),
                        _ => bytes.insert(at, random(256) as u8),
                    }
                }
                target(&bytes);
            }
        }
    }
}
