//! Where DPDK's memory comes from.

use std::fs;

/// Where DPDK's memory comes from. All devices of a process share it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Memory {
    /// Hugepages if enough of them are free, else none.
    #[default]
    Auto,
    /// Hugepages.
    Huge,
    /// Ordinary pages.
    None,
}

/// Where the buffers of packets that arrive lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Buffers {
    /// In memory of our own where the driver is known to take that, else in DPDK's.
    #[default]
    Auto,
    /// In memory of our own, or the device is refused.
    Pinned,
    /// In DPDK's memory.
    Dpdk,
}

/// Bytes of DPDK's own tables, beside the pools.
pub(crate) const BASE: u64 = 24 << 20;

/// Bytes of free hugepages of the size that the machine uses by default.
pub(crate) fn free_hugepages() -> u64 {
    let Ok(meminfo) = fs::read_to_string("/proc/meminfo") else { return 0 };
    let field = |name: &str| -> u64 {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(name));
        line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    field("HugePages_Free:").saturating_sub(field("HugePages_Rsvd:")) * field("Hugepagesize:") * 1024
}

/// How to get `bytes` of hugepages.
pub(crate) fn remedy(bytes: u64) -> String {
    let pages = bytes.div_ceil(2 << 20);
    format!(
        "have root set {pages} of 2 MiB aside (echo {pages} > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_names_pages() {
        assert!(remedy(64 << 20).contains("echo 32 >"));
        assert!(remedy(1).contains("echo 1 >"));
    }
}
