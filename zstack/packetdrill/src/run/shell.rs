//! What a script's commands for a shell mean for the engine.

use crate::face::Setup;
use zstack::tcp::Options;
use zstack::tcp::recovery::Algorithm;

/// Applies the sysctls among the commands, and what ethtool(8) says of offloads.
///
/// # Errors
/// One that the engine has nothing for, and that matters.
pub(super) fn apply(commands: &str, setup: &mut Setup) -> Result<(), String> {
    for command in commands.split(['\n', ';', '&']).map(|c| c.trim().trim_end_matches('\\')) {
        let word = command.split_whitespace().next().unwrap_or("");
        match word {
            "ethtool" if command.contains("tso off") => setup.tso = 0,
            "ip" if command.starts_with("ip tcp_metrics") => {}
            // fq and pfifo send in order; pacing is seen in no virtual time.
            "tc" if command.contains("fifo") && !command.contains("limit 0") => {}
            "ethtool" | "ip" | "tc" | "iptables" | "ip6tables" | "nstat" | "cat" | "python" => {
                return Err(format!("command {command}"));
            }
            _ => {}
        }
        for setting in command.split_whitespace().filter_map(|w| w.split_once('=')) {
            let name = setting.0.rsplit(['/', '.']).next().unwrap_or("");
            sysctl(name, setting.1.trim_matches(['"', '\'']), &mut setup.options)?;
        }
    }
    Ok(())
}

fn sysctl(name: &str, value: &str, o: &mut Options) -> Result<(), String> {
    let on = value != "0";
    let wanted = |fits: bool| if fits { Ok(()) } else { Err(format!("sysctl {name}={value}")) };
    let seconds = || value.parse::<u32>().map(|s| s * 1000).map_err(|_| format!("sysctl {name}={value}"));
    match name {
        "tcp_timestamps" => o.timestamps = on,
        "tcp_sack" => o.sack = on,
        "tcp_window_scaling" => o.scaling = on,
        "tcp_congestion_control" => {
            o.congestion = match value {
                "reno" => Algorithm::Reno,
                "cubic" => Algorithm::Cubic,
                _ => return wanted(false),
            }
        }
        "tcp_fin_timeout" => o.fin_wait = seconds()?,
        "tcp_keepalive_time" => o.keepalive_idle = seconds()?,
        "tcp_keepalive_intvl" => o.keepalive_interval = seconds()?,
        // How a host shares its memory and its device among connections: nothing that one connection shows.
        "tcp_min_tso_segs"
        | "tcp_tso_win_divisor"
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
        "tcp_early_retrans" => return wanted(value == "3" || value == "4"),
        "tcp_recovery" => return wanted(value == "1"),
        "tcp_reordering" => return wanted(value == "3"),
        "tcp_dsack" | "tcp_frto" => return wanted(on),
        "tcp_ecn" | "tcp_fack" | "tcp_fastopen" | "tcp_mtu_probing" | "tcp_thin_linear_timeouts" => {
            return wanted(!on);
        }
        _ => return wanted(false),
    }
    Ok(())
}
