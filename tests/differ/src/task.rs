//! What the kernel says about other threads: asleep or not, dead or not.

use std::fs;

/// State letter of thread `tid` of process `pid` (`R`, `S`, `Z`...); `None` when it is gone.
pub fn state(pid: i32, tid: i32) -> Option<char> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    // The name in parentheses may itself contain parentheses and spaces.
    text[text.rfind(')')? + 1..].trim_start().chars().next()
}

/// True when the process has released its files: it is gone, or a zombie with no other thread left.
pub fn dead(pid: i32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    tasks.flatten().all(|t| {
        let tid = t.file_name().to_string_lossy().parse().unwrap_or(0);
        matches!(state(pid, tid), None | Some('Z' | 'X'))
    })
}

/// True when no thread of `pid` runs any more until it is told to go on.
pub fn stopped(pid: i32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    tasks.flatten().all(|t| {
        let tid = t.file_name().to_string_lossy().parse().unwrap_or(0);
        matches!(state(pid, tid), None | Some('T' | 'Z' | 'X'))
    })
}

/// The thread of `pid` that is called `its_tid` in its own pid namespace.
pub fn named(pid: i32, its_tid: i32) -> Option<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    tasks.flatten().find_map(|t| {
        let status = fs::read_to_string(t.path().join("status")).ok()?;
        let names = status.lines().find(|l| l.starts_with("NSpid:"))?;
        let innermost: i32 = names.split_whitespace().last()?.parse().ok()?;
        if innermost == its_tid { t.file_name().to_string_lossy().parse().ok() } else { None }
    })
}

/// True when a culvert channel is mapped in `pid`: at least one connection of it was offered a ring.
pub fn has_channel(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/maps"))
        .is_ok_and(|maps| maps.lines().any(|l| l.contains("memfd:culvert") && !l.contains("culvert-family")))
}

/// Where each thread of `pid` sleeps, for reports about stalls.
pub fn whereabouts(pid: i32) -> String {
    let mut out = String::new();
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return format!("{pid}: gone") };
    for t in tasks.flatten() {
        let dir = t.path();
        let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
        let tid = t.file_name().to_string_lossy().parse().unwrap_or(0);
        let stack = read("stack").lines().take(4).collect::<Vec<_>>().join(" <- ");
        out.push_str(&format!(
            "{pid}/{tid} state {:?} wchan {} syscall {} stack {stack}\n",
            state(pid, tid),
            read("wchan"),
            read("syscall").trim(),
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_thread_is_not_asleep_and_a_missing_process_is_dead() {
        let (pid, tid) = (crate::raw::getpid(), crate::raw::gettid());
        assert_eq!(state(pid, tid), Some('R'));
        assert!(!dead(pid));
        assert!(dead(i32::MAX));
    }
}
