//! What a script's commands for a shell mean for the engine.

use crate::face::Setup;
use zstack::tcp::Options;
use zstack::tcp::recovery::Algorithm;

/// What the commands set.
#[derive(Debug)]
pub(super) struct Wanted {
    pub setup: Setup,
    /// How many segments Linux sends in one packet at least, where it sends more than one (tcp_min_tso_segs): at the rates of these
    /// scripts, at most, too.
    pub segments: u32,
    /// Packets are seen as a device sends them that cuts none: Linux does it before (`ethtool -K DEVICE tso off`).
    pub cut: bool,
    /// The room for what arrives is not the default one (tcp_rmem, tcp_shrink_window).
    pub room: bool,
}

impl Default for Wanted {
    fn default() -> Wanted {
        Wanted { setup: Setup::default(), segments: 2, cut: false, room: false }
    }
}

/// Applies the sysctls among the commands, and what ethtool(8) says of offloads.
///
/// # Errors
/// One that the engine has nothing for, and that matters.
pub(super) fn apply(commands: &str, wanted: &mut Wanted) -> Result<(), String> {
    for command in commands.split(['\n', ';', '&']).map(|c| c.trim().trim_end_matches('\\')) {
        let word = command.split_whitespace().next().unwrap_or("");
        match word {
            "ethtool" if command.contains("tso off") => wanted.cut = true,
            "ip" if command.starts_with("ip tcp_metrics") => {}
            "tc" if command.contains("limit 0") => return Err("a queue of the host that drops".to_owned()),
            "tc" if command.contains("fifo") || command.contains("qdisc delete") => {}
            "tc" if command.ends_with(" fq") => return Err("pacing (the queue fq)".to_owned()),
            "nstat" => return Err("Linux's counters (nstat)".to_owned()),
            "ethtool" | "ip" | "tc" | "iptables" | "ip6tables" | "cat" | "python" => {
                return Err(format!("command {command}"));
            }
            _ => {}
        }
        for (name, value) in settings(command) {
            sysctl(name, value, wanted)?;
        }
    }
    Ok(())
}

/// `net.ipv4.NAME=VALUE` and `/proc/sys/net/ipv4/NAME=VALUE`, the value with or without quotes.
fn settings(command: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = command;
    std::iter::from_fn(move || {
        loop {
            let at = rest.find('=')?;
            let path = rest[..at].rsplit(char::is_whitespace).next().unwrap_or("");
            let behind = &rest[at + 1..];
            let end = match behind.strip_prefix('"') {
                Some(quoted) => quoted.find('"').map_or(behind.len(), |end| end + 2),
                None => behind.find(char::is_whitespace).unwrap_or(behind.len()),
            };
            rest = &behind[end..];
            if path.contains("net.") || path.contains("net/") {
                let name = path.rsplit(['/', '.']).next().unwrap_or("");
                return Some((name, behind[..end].trim_matches(['"', '\''])));
            }
        }
    })
}

fn sysctl(name: &str, value: &str, wanted: &mut Wanted) -> Result<(), String> {
    let on = value != "0";
    let refused = || format!("sysctl {name}={value}");
    let only = |fits: bool| if fits { Ok(()) } else { Err(refused()) };
    let seconds = || value.parse::<u32>().map(|s| s * 1000).map_err(|_| refused());
    let o: &mut Options = &mut wanted.setup.options;
    match name {
        "tcp_timestamps" => o.timestamps = on,
        "tcp_sack" => o.sack = on,
        "tcp_window_scaling" => o.scaling = on,
        "tcp_congestion_control" => {
            o.congestion = match value {
                "reno" => Algorithm::Reno,
                "cubic" => Algorithm::Cubic,
                _ => return only(false),
            }
        }
        "tcp_fin_timeout" => o.fin_wait = seconds()?,
        "tcp_keepalive_time" => o.keepalive_idle = seconds()?,
        "tcp_keepalive_intvl" => o.keepalive_interval = seconds()?,
        "tcp_min_tso_segs" => wanted.segments = value.parse().map_err(|_| refused())?,
        "tcp_rmem" => {
            // The window scale follows from the largest buffer (`tcp_select_initial_window`).
            let most = value.split_whitespace().last().and_then(product).filter(|most| *most >= 1 << 16);
            wanted.setup.room = 1 << most.ok_or_else(refused)?.ilog2();
            wanted.room = true;
        }
        // How a host shares its memory and its device among connections: nothing that one connection shows.
        "tcp_tso_win_divisor"
        | "tcp_limit_output_bytes"
        | "tcp_autocorking"
        | "tcp_no_metrics_save"
        | "tcp_moderate_rcvbuf"
        | "tcp_pacing_ss_ratio"
        | "tcp_pacing_ca_ratio"
        | "tcp_slow_start_after_idle"
        | "tcp_invalid_ratelimit"
        | "tcp_syncookies"
        | "tcp_tso_rtt_log"
        | "optmem_max"
        | "tcp_comp_sack_nr"
        | "tcp_comp_sack_delay_ns"
        | "tcp_challenge_ack_limit" => {}
        "tcp_wmem" => return Err("what Linux's send buffer holds beside payload".to_owned()),
        "tcp_shrink_window" => return Err("a window that shrinks (tcp_shrink_window)".to_owned()),
        "tcp_early_retrans" => return only(value == "3" || value == "4"),
        "tcp_recovery" | "tcp_tw_reuse" => return only(value == "1"),
        "tcp_tw_reuse_delay" => return only(value == "1000"),
        "tcp_reordering" => return only(value == "3"),
        "tcp_dsack" | "tcp_frto" => return only(on),
        // A server that nothing asks for it.
        "tcp_fastopen" => {}
        "tcp_ecn" | "tcp_fack" | "tcp_purge_receive_queue" | "tcp_mtu_probing" | "tcp_thin_linear_timeouts" => {
            return only(!on);
        }
        _ => return only(false),
    }
    Ok(())
}

/// A number, or `$((A*B*C))`.
fn product(text: &str) -> Option<u32> {
    text.trim_matches(['$', '(', ')']).split('*').map(|n| n.trim().parse::<u32>().ok()).product()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_understood_or_refused() {
        let mut wanted = Wanted::default();
        let commands = "./defaults.sh\nethtool -K tun0 tso off gso off\nsysctl -q net.ipv4.tcp_sack=0\n\
            ./set_sysctls.py /proc/sys/net/ipv4/tcp_min_tso_segs=10 \\\n /proc/sys/net/ipv4/tcp_timestamps=0\n\
            sysctl -q net.ipv4.tcp_rmem=\"4096 131072 $((32*1024*1024))\"\n/bin/dd bs=1 count=5 of=/tmp/x";
        apply(commands, &mut wanted).unwrap();
        assert_eq!((wanted.segments, wanted.cut, wanted.room, wanted.setup.room), (10, true, true, 1 << 25));
        assert!(!wanted.setup.options.sack && !wanted.setup.options.timestamps);
        for (command, named) in [
            ("sysctl -q net.ipv4.tcp_ecn=1", "tcp_ecn"),
            ("tc qdisc replace dev tun0 root fq", "pacing"),
            ("tc qdisc add dev tun0 root pfifo limit 0", "drops"),
            ("sysctl net.ipv4.tcp_rmem=x", "tcp_rmem"),
        ] {
            assert!(apply(command, &mut wanted).unwrap_err().contains(named), "{command}");
        }
    }
}
