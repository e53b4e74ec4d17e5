//! What a uid proves.

use crate::os;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use shmring::{lnx, sys};

/// The number by which the kernel calls every user who has none in our user namespace, unless the machine's administrator
/// has chosen another (`/proc/sys/kernel/overflowuid`).
const OVERFLOW: u32 = 65534;

/// Whether two answers of the kernel's that name `uid` mean the same user.
///
/// Every user whose uid our user namespace does not map is called by the overflow uid (user_namespaces(7)), in
/// SCM_CREDENTIALS, in socket diagnostics and as the owner of a file. It is a user like others only where all uids are mapped:
/// the map then is a single line, of all 2^32 - 1 of them. A namespace can map only what its parent maps, so such a map is
/// the initial namespace's, handed down.
pub fn proves(uid: u32) -> bool {
    uid != OVERFLOW && uid != overflow() || all_are_mapped()
}

/// Our own effective uid.
pub fn own() -> u32 {
    os::geteuid()
}

/// Whether this process is one user's. One that acts for a user (`seteuid`), and has or can take the rights of another, must not
/// take that user's processes for its own user's: they can do nothing to it.
pub fn is_one() -> bool {
    lnx::users().is_some_and(|[real, effective, saved]| real == effective && effective == saved)
}

/// Read once in 2^31 cycles, which is about a second: each connection to another host asks several times, and the clock would be a system
/// call.
fn overflow() -> u32 {
    /// What was read, below when it was; 0: never.
    static KNOWN: AtomicU64 = AtomicU64::new(0);
    let when = ((sys::cycles() >> 31) + 1) & u64::from(u32::MAX);
    let known = KNOWN.load(Relaxed);
    if known >> 32 == when {
        return known as u32;
    }
    let mut b = [0; 16];
    let n = os::read_file(c"/proc/sys/kernel/overflowuid", &mut b);
    let uid = number(b.get(..n).unwrap_or(&[])).map_or(OVERFLOW, |(n, _)| n);
    KNOWN.store(when << 32 | u64::from(uid), Relaxed);
    uid
}

/// The number at the beginning of `text`, behind blanks, and what follows it.
fn number(text: &[u8]) -> Option<(u32, &[u8])> {
    let text = text.trim_ascii_start();
    let digits = text.iter().take_while(|b| b.is_ascii_digit()).count();
    let (number, rest) = text.split_at_checked(digits).filter(|(n, _)| !n.is_empty())?;
    let number = number.iter().try_fold(0u32, |n, b| n.checked_mul(10)?.checked_add(u32::from(b - b'0')))?;
    Some((number, rest))
}

fn all_are_mapped() -> bool {
    let mut b = [0; 128];
    let n = os::read_file(c"/proc/self/uid_map", &mut b);
    maps_all(b.get(..n).unwrap_or(&[]))
}

/// Whether `map`, as in `/proc/PID/uid_map`, is one line that maps every uid.
fn maps_all(map: &[u8]) -> bool {
    let fields = number(map).and_then(|(inside, rest)| {
        let (outside, rest) = number(rest)?;
        let (count, rest) = number(rest)?;
        Some((inside, outside, count, rest.trim_ascii().is_empty()))
    });
    fields == Some((0, 0, u32::MAX, true))
}

/// Whether a process whose real, effective and saved user ids were `before` has lost a user by what they are `now`: one that it could be again would be no loss. Root can be
/// anybody.
pub fn has_lost(before: [u32; 3], now: [u32; 3]) -> bool {
    !now.contains(&0) && before.iter().any(|id| !now.contains(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_users_are_who_they_are() {
        for uid in [0, 1, 1000, 65533, 65535, 100_000] {
            assert!(proves(uid));
        }
    }

    #[test]
    fn only_the_map_of_all_maps_all() {
        assert!(maps_all(b"         0          0 4294967295\n"));
        for map in [
            &b""[..],
            b"         0       1001          1\n",
            b"         0     100000      65536\n",
            b"         0          1 4294967295\n",
            b"         0          0 4294967294\n",
            b"0 0 4294967295\n1 1 1\n",
            b"0 0 4294967295 x",
            b"0 0 42949672950",
            b"0 0 -1",
        ] {
            assert!(!maps_all(map), "{}", String::from_utf8_lossy(map));
        }
    }

    #[test]
    fn a_user_that_can_be_taken_again_is_not_lost() {
        assert!(!has_lost([0, 0, 0], [0, 33, 0]));
        assert!(!has_lost([0, 33, 0], [0, 0, 0]));
        assert!(!has_lost([0, 0, 0], [33, 33, 0]));
        assert!(!has_lost([33, 33, 33], [33, 33, 33]));
    }

    #[test]
    fn one_that_cannot_is() {
        assert!(has_lost([0, 0, 0], [33, 33, 33]));
        assert!(has_lost([0, 33, 0], [33, 33, 33]));
        assert!(has_lost([1000, 7, 1000], [1000, 1000, 1000]));
    }
}
