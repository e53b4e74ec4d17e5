use super::*;
use crate::wire::{Settings, Wire, pair};
use std::fs;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use zstack::payload::{Region, Span};
use zstack::port::Checksum;

/// A file of this test's own, removed at its end.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Temporary {
        Temporary(std::env::temp_dir().join(format!("zstack-port-{}-{name}", std::process::id())))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[allow(unsafe_code)]
fn send<P: Port>(port: &mut P, head: &[u8], payload: &'static [u8]) -> Result<(), Refused> {
    let span = Span { start: payload.as_ptr(), len: payload.len() as u32, region: Region(0) };
    let frame = Frame { head, payload: Spans([span, Span::EMPTY]), checksum: Checksum::Complete, cut: 0 };
    // SAFETY: the payload is static.
    unsafe { port.send(&frame) }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// The blocks of a capture: type and body. Checks both lengths of each.
fn blocks(bytes: &[u8]) -> Vec<(u32, &[u8])> {
    let mut blocks = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let len = word(rest, 4) as usize;
        assert_eq!(len % 4, 0);
        assert_eq!(word(rest, len - 4) as usize, len, "the lengths before and behind a block");
        blocks.push((word(rest, 0), &rest[8..len - 4]));
        rest = &rest[len..];
    }
    blocks
}

/// Direction and bytes of a packet.
fn packet(body: &[u8]) -> (u32, &[u8]) {
    let len = word(body, 12) as usize;
    assert_eq!(word(body, 16) as usize, len);
    let options = 20 + len.next_multiple_of(4);
    assert_eq!(body[options..options + 4], [2u16.to_ne_bytes(), 4u16.to_ne_bytes()].concat()[..]);
    (word(body, options + 4), &body[20..20 + len])
}

#[test]
fn both_directions_are_in_the_file() {
    let file = Temporary::new("both");
    let (mut far, near) = pair(Settings::default());
    let mut near = Captured::to_file(near, &file.0, "wire0").unwrap();
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    send(&mut near, b"head", b"payload").unwrap();
    send(&mut far, b"answer", b"").unwrap();
    assert!(near.receive().unwrap().is_some());
    near.flush();
    let after = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;

    let bytes = fs::read(&file.0).unwrap();
    let all = blocks(&bytes);
    assert_eq!(all.iter().map(|b| b.0).collect::<Vec<_>>(), [0x0a0d_0d0a, 1, 6, 6]);
    let interface = all[1].1;
    assert_eq!(word(interface, 0), 101, "link type RAW");
    assert!(interface.windows(5).any(|w| w == b"wire0"));
    assert!(interface.windows(5).any(|w| w == [&9u16.to_ne_bytes()[..], &1u16.to_ne_bytes(), &[9]].concat()));
    assert_eq!(packet(all[2].1), (2, &b"headpayload"[..]));
    assert_eq!(packet(all[3].1), (1, &b"answer"[..]));
    let time = |body| (u64::from(word(body, 4)) << 32) | u64::from(word(body, 8));
    assert!(before <= time(all[2].1) && time(all[2].1) <= time(all[3].1) && time(all[3].1) <= after);
}

#[test]
fn a_frame_that_the_port_has_not_taken_is_not_in_the_file() {
    let file = Temporary::new("refused");
    let (_far, near) = pair(Settings { buffers: 1, ..Settings::default() });
    let mut near = Captured::to_file(near, &file.0, "wire0").unwrap();
    send(&mut near, b"one", b"").unwrap();
    assert_eq!(send(&mut near, b"two", b""), Err(Refused::Full));
    drop(near);
    let bytes = fs::read(&file.0).unwrap();
    let all = blocks(&bytes);
    assert_eq!(all.len(), 3, "the drop has written what was gathered");
    assert_eq!(packet(all[2].1).1, b"one");
}

#[test]
fn a_full_disk_ends_the_capture_and_not_the_port() {
    let (mut far, near) = pair(Settings::default());
    // Every write to it fails with ENOSPC.
    assert_eq!(
        Captured::to_file(pair(Settings::default()).0, Path::new("/dev/full"), "w").err().unwrap().raw_os_error(),
        Some(libc::ENOSPC)
    );
    let file = Temporary::new("full");
    let mut near: Captured<Wire> = Captured::to_file(near, &file.0, "w").unwrap();
    near.writer.as_mut().unwrap().file = File::options().write(true).open("/dev/full").unwrap();
    send(&mut near, b"one", b"").unwrap();
    near.flush();
    assert_eq!(near.failure().unwrap().raw_os_error(), Some(libc::ENOSPC));
    send(&mut near, b"two", b"").unwrap();
    assert!(far.receive().unwrap().is_some() && far.receive().unwrap().is_some());
    assert_eq!(blocks(&fs::read(&file.0).unwrap()).len(), 2, "the file is whole");
}

#[test]
fn without_a_file_nothing_is_written() {
    let (mut far, near) = pair(Settings::default());
    let mut near = Captured::off(near);
    send(&mut near, b"one", b"").unwrap();
    near.flush();
    assert!(far.receive().unwrap().is_some() && near.failure().is_none());
}
