//! How much memory there is: the machine's, or what zstackd's control group (cgroups(7), version 2) may have, if that is less.

use std::fs::read_to_string;

/// Of which connections' buffers may have this part, if the configuration does not say.
const PART: u64 = 4;

/// What connections' buffers may take, if the configuration does not say.
pub fn share() -> u64 {
    let machine = read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
    let group = read_to_string("/proc/self/cgroup").ok();
    let group = group.as_deref().and_then(path).into_iter().flat_map(limits);
    machine.into_iter().chain(group).min().unwrap_or(1 << 30) / PART
}

/// Bytes, by /proc/meminfo.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let number: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(number << 10)
}

/// The group's path, by /proc/PID/cgroup.
fn path(cgroup: &str) -> Option<&str> {
    cgroup.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The limits of a group, and of those that it is in.
fn limits(path: &str) -> Vec<u64> {
    let groups = std::path::Path::new(path).ancestors();
    let limit = |group: &std::path::Path| {
        let file = format!("/sys/fs/cgroup{}/memory.max", group.to_str()?.trim_end_matches('/'));
        // `max` is none.
        read_to_string(file).ok()?.trim().parse().ok()
    };
    groups.filter_map(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_some() {
        assert_eq!(total("MemFree: 1 kB\nMemTotal:       2048 kB\n"), Some(2 << 20));
        assert_eq!(path("1:cpu:/a\n0::/b/c\n"), Some("/b/c"));
        let machine = total(&read_to_string("/proc/meminfo").unwrap()).unwrap();
        assert!((1 << 20..=machine / PART).contains(&share()), "{}", share());
    }
}
