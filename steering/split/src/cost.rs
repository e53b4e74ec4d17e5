//! What a packet costs, at worst: every dimension of it is looked up.

use culvert_split::rules::{self, Rules};

/// So many runs of the program are timed as one.
const REPEAT: u32 = 200_000;

/// Nanoseconds for a packet under so many rules, none of which takes it: each dimension leaves some of them, and all together none.
pub fn of(count: u32, udp: bool, tagged: bool) -> Result<u128, String> {
    let protocol = if udp { "udp" } else { "tcp" };
    let rule = |n: u32| {
        // Half of them are ruled out by the source, the others by the destination.
        let (source, destination) = if n.is_multiple_of(2) { (n % 16, 2) } else { (200, 3 + n / 16) };
        let vlan = if tagged || n % 4 == 3 { "vlan 5 " } else { "" };
        let text = format!(
            "family ipv4 protocol {protocol} source 10.{source}.0.0/16 destination 10.{destination}.0.1/32 source-ports 1-{} destination-ports {}-9 {vlan}to drop",
            n + 9,
            1 + n % 5
        );
        rules::parse(&text.split(' ').map(str::to_owned).collect::<Vec<_>>()).map(|rule| (n, rule))
    };
    let rules = (0..count).map(rule).collect::<Result<Rules, _>>()?;
    culvert_split::cost(&rules, &packet(udp, tagged), REPEAT).map(|time| time.as_nanos())
}

/// From 10.200.0.1 port 5 to 10.2.0.1 port 6, in VLAN 5 or in none; of TCP, one in the middle of a connection.
fn packet(udp: bool, tagged: bool) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    bytes.extend(if tagged { &[0x81, 0, 0, 5][..] } else { &[] });
    bytes.extend([8, 0, 0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, if udp { 17 } else { 6 }, 0, 0, 10, 200, 0, 1, 10, 2, 0, 1]);
    bytes.extend([0, 5, 0, 6, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0, 0, 0, 0, 0, 0]);
    bytes
}
