//! Whether something is on its way, where the actors' connections go over a wire (`tests/remote`).

use std::fs;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// For how long zstackd does nothing when nothing is on its way: longer than it holds an acknowledgement back that a sender waits for
/// (40 ms).
const IDLE: Duration = Duration::from_millis(50);

/// Waits until nothing is on its way, which is at once where there is no wire. Whether something was.
pub fn quiet() -> bool {
    static ZSTACKD: OnceLock<Option<String>> = OnceLock::new();
    let Some(pid) = ZSTACKD.get_or_init(|| std::env::var("CULVERT_REMOTE_PID").ok()) else { return false };
    let begin = Instant::now();
    let (mut last, mut since, mut moved) = (slept(pid), begin, false);
    while since.elapsed() < IDLE && begin.elapsed() < crate::conductor::WATCHDOG {
        std::thread::sleep(Duration::from_millis(2));
        let now = slept(pid);
        if now != last || !now.0 {
            (last, since, moved) = (now, Instant::now(), true);
        }
    }
    moved
}

/// How often it has gone to sleep, and whether it sleeps.
fn slept(pid: &str) -> (bool, String) {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("zstackd runs");
    let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("").trim().to_owned();
    (field("State:").starts_with('S'), field("voluntary_ctxt_switches:"))
}
