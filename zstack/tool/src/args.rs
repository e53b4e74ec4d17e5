//! The command line.

use crate::perf::Mode;
use clap::{Args, Parser, Subcommand};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

const AFTER: &str = "\
Ports:
  kernel                             the kernel's sockets
  tun:NAME,addr=A/P[,KEY=VALUE...]   the engine on a tun device, made if it is not there (CAP_NET_ADMIN);
  tap:NAME,...                       the same on a tap device
  dpdk:DEVICE,addr=A/P[,KEY=VALUE..] the engine on a device of DPDK's, if built with --features dpdk: net_af_packet0,iface=eth0, net_tap0,
                                     net_af_xdp0, net_memif0, net_vhost0, net_virtio_user0 or 0000:01:00.0 (bound to vfio-pci; tried on a VF of QEMU's igb);
                                     its driver's keys, and addr, gateway, mtu, mac, vlan, memory=auto|huge|none, mbufs=2048,
                                     pool=auto|pinned|dpdk (where packets arrive: in a memfd of ours, or in DPDK's
                                     memory), sleep=auto|nap|busy, offload=full|off, log=on; peer for net_tap
    addr=10.9.0.2/24   the engine's address     peer=10.9.0.1   the kernel's, set up on the device
    gateway=10.9.0.1   next hop elsewhere       mtu=1500        bytes of an IP packet
    offload=full       full, checksum, off      buffers=512     packets held at once
    queue=65536        packets in the device    mac=, vlan=     of a tap device
Sizes take the suffixes k, M and G (1024, 1024^2, 1024^3).
Examples:
  zstack --port tun:zs0,addr=10.9.0.2/24,peer=10.9.0.1 http --listen 80 /srv     then: curl http://10.9.0.2/FILE
  zstack --port tun:zs0,addr=fd09::2/64,peer=fd09::1 perf --listen 5001          then: zstack --port kernel perf --connect [fd09::2]:5001
  zstack --port tap:zs0,vlan=7,addr=10.9.0.2/24 --pcap t.pcapng ping 10.9.0.1    what crosses the wire, for Wireshark
  zstack --port tun:zs0,... --control /run/z.sock echo --listen 7                then: zstack stat --control /run/z.sock
SIGINT and SIGTERM end a tool in order: its statistics are printed.
Exit status: 0 done, or a server that was told to end; 1 the work failed, or was interrupted; 2 wrong usage or configuration.";

/// Tools over the Z-stack engine, or over the kernel's sockets, to compare
#[derive(Parser, Debug)]
#[command(name = "zstack", version, after_help = AFTER, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub port: Port,
    #[command(subcommand)]
    pub tool: Tool,
}

#[derive(Args, Debug)]
pub struct Port {
    /// What to run over: `kernel`, `tun:NAME,...`, `tap:NAME,...` or `dpdk:DEVICE,...` (see below)
    #[arg(long, global = true, value_name = "PORT", env = "ZSTACK_PORT")]
    pub port: Option<String>,
    /// Write what crosses the wire to a file, in pcapng (engine only)
    #[arg(long, global = true, value_name = "FILE")]
    pub pcap: Option<PathBuf>,
    /// Answer `zstack stat` at this Unix socket
    #[arg(long, global = true, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Checksums and segmentation left to the device: full, checksum or off [default: full] (engine only)
    #[arg(long, global = true, value_name = "WHAT")]
    pub offload: Option<String>,
    /// Largest IP packet, in bytes [default: the device's own, 1500 for a new one] (engine only)
    #[arg(long, global = true, value_name = "BYTES")]
    pub mtu: Option<u32>,
    /// Copy what is sent and received into the socket's rings, instead of sending it by reference and keeping the port's buffers until they
    /// are read (engine only; the kernel always copies)
    #[arg(long, global = true)]
    pub copy: bool,
}

/// Which side begins.
#[derive(Args, Debug, Clone)]
#[group(required = true, multiple = false)]
pub struct Side {
    /// Connect to ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub connect: Option<SocketAddr>,
    /// Listen at PORT, or at ADDRESS:PORT
    #[arg(long, value_name = "PORT", value_parser = place)]
    pub listen: Option<SocketAddr>,
}

#[derive(Subcommand, Debug)]
pub enum Tool {
    /// Send back what comes, over the engine from the buffers that it came in
    Echo {
        #[command(flatten)]
        side: Side,
        /// Listen with a deferred decision: a SYN is answered only because the tool accepts it (engine only)
        #[arg(long, requires = "listen")]
        deferred: bool,
        /// Connections to make, or after which a listening echo ends (0: it never does) [default: 1, or 0]
        #[arg(long, value_name = "N")]
        connections: Option<u32>,
    },
    /// Read to the end; with a seed, check every byte
    Sink {
        #[command(flatten)]
        side: Side,
        /// Connections to make, or after which a listening sink ends (0: it never does) [default: 1, or 0]
        #[arg(long, value_name = "N")]
        connections: Option<u32>,
        /// Bytes that each connection must bring [default: any number]
        #[arg(long, value_name = "SIZE", value_parser = size)]
        bytes: Option<u64>,
        /// Check the pattern that `source` sends for this seed
        #[arg(long, value_name = "N")]
        seed: Option<u64>,
    },
    /// Send a pattern, then wait for the peer's end
    Source {
        #[command(flatten)]
        side: Side,
        /// Connections to make, or after which a listening source ends (0: it never does) [default: 1, or 0]
        #[arg(long, value_name = "N")]
        connections: Option<u32>,
        /// Bytes on each connection (0: no end)
        #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = size)]
        bytes: u64,
        /// What the pattern is made of
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
    },
    /// Send ICMP echo requests
    Ping {
        /// Whom to ask
        to: IpAddr,
        /// Requests (0: until a signal comes)
        #[arg(long, short = 'c', value_name = "N", default_value_t = 4)]
        count: u32,
        /// Seconds between two requests
        #[arg(long, short = 'i', value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
        interval: f64,
        /// Seconds that the last answer is waited for
        #[arg(long, short = 'W', value_name = "SECONDS", default_value_t = 2.0, value_parser = seconds)]
        timeout: f64,
        /// Bytes of payload
        #[arg(long, short = 's', value_name = "BYTES", default_value_t = 56, value_parser = clap::value_parser!(u16).range(0..=65000))]
        size: u16,
    },
    /// Serve the files of a directory over HTTP/1.1: GET and HEAD, keep-alive, pipelining, ranges, conditions
    Http {
        /// Listen at PORT, or at ADDRESS:PORT
        #[arg(long, value_name = "PORT", value_parser = place)]
        listen: SocketAddr,
        /// Memory for pieces of files
        #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = size)]
        cache: u64,
        /// The directory; a file is looked at again after a second
        directory: PathBuf,
    },
    /// Measure throughput, round trips or connections a second against another `zstack perf --listen`
    Perf {
        #[command(flatten)]
        side: Side,
        /// What to measure
        #[arg(long, value_enum, default_value = "upload")]
        mode: Mode,
        /// Seconds of load
        #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = seconds)]
        seconds: f64,
        /// Bytes of a message (exchange and connect)
        #[arg(long, value_name = "SIZE", default_value = "64", value_parser = size)]
        size: u64,
        /// Connections at once
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=60000))]
        connections: u32,
        /// Seconds before each message (wake)
        #[arg(long, value_name = "SECONDS", default_value_t = 0.02, value_parser = seconds)]
        pause: f64,
        /// Print JSON: seconds, bytes, latencies in microseconds, CPU seconds of both processes, and of each one's machine in softirqs meanwhile
        #[arg(long)]
        json: bool,
    },
    /// Measure what a tun device, or one of DPDK's, itself costs, without the engine: packets written, and to the kernel's ICMP and back
    Bare {
        /// Bytes of an IP packet
        #[arg(long, value_name = "BYTES", default_value_t = 92)]
        size: usize,
        /// Seconds for each of both
        #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
        seconds: f64,
        /// Instead of both: packets that come without being asked for (dpdk:net_null0,no-rx=0,size=64,addr=10.9.0.2/24), from the driver to their return, of
        /// which so many are held at a time
        #[arg(long, value_name = "PACKETS", value_parser = clap::value_parser!(u32).range(1..=1024))]
        held: Option<u32>,
        /// Print JSON: microseconds for each packet
        #[arg(long)]
        json: bool,
    },
    /// Measure what sending costs the engine and a device by themselves: whom gateway= names is played in this process, and acknowledges
    Solo {
        /// Bytes that are sent by a call
        #[arg(long, value_name = "SIZE", default_value = "64k", value_parser = size)]
        size: u64,
        /// Seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
        seconds: f64,
        /// Print JSON: segments, and segments for a CPU second
        #[arg(long)]
        json: bool,
    },
    /// Show the counters and connections of a zstack that runs with the same --control
    Stat {
        /// Print what it answered, in JSON: {"counters": {NAME: N}, "connections": [{local, remote, state, cwnd and ssthresh (bytes),
        /// srtt_us, retransmits, in_flight (bytes)}]}
        #[arg(long)]
        json: bool,
    },
}

/// `PORT` or `ADDRESS:PORT`.
fn place(text: &str) -> Result<SocketAddr, String> {
    let at = match text.parse::<u16>() {
        Ok(port) => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port),
        Err(_) => text.parse().map_err(|_| "write PORT, ADDRESS:PORT or [ADDRESS]:PORT".to_owned())?,
    };
    if at.port() == 0 { Err("port 0 is no port to listen at".into()) } else { Ok(at) }
}

fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let n: u64 = digits.parse().map_err(|_| "write a number, and k, M or G behind it if you like".to_owned())?;
    n.checked_mul(1 << shift).ok_or_else(|| "too large".into())
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(n) if n.is_finite() && (0.001..=1e6).contains(&n) => Ok(n),
        _ => Err("write seconds, 0.001 to 1000000".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_setting_of_a_port_that_the_help_names_is_one() {
        let lines = AFTER.lines().skip_while(|l| !l.contains("addr=10")).take_while(|l| l.starts_with("    "));
        let settings: Vec<_> = lines.flat_map(str::split_whitespace).filter(|word| word.contains('=')).collect();
        assert!(settings.len() >= 9, "{settings:?}");
        for setting in settings.iter().flat_map(|s| s.split(',')).filter(|s| s.contains('=')) {
            let error = format!("tap:x,addr=10.9.0.3/24,{setting}").parse::<zstack_port::Spec>().err();
            let text = error.map(|e| e.to_string()).unwrap_or_default();
            assert!(
                !text.contains("is no setting") && (text.is_empty() || setting.ends_with('=')),
                "{setting}: {text}"
            );
        }
    }

    #[test]
    fn sizes_and_places() {
        assert_eq!(size("3"), Ok(3));
        assert_eq!(size("64k"), Ok(65536));
        assert_eq!(size("10G"), Ok(10 << 30));
        assert!(size("k").is_err() && size("-1").is_err() && size("99999999999999999G").is_err());
        assert_eq!(place("80").unwrap().port(), 80);
        assert_eq!(place("[::1]:80").unwrap(), "[::1]:80".parse().unwrap());
        assert!(place("0").is_err() && place("host:80").is_err());
        let cli =
            Cli::try_parse_from(["zstack", "source", "--port", "kernel", "--connect", "10.0.0.1:9", "--bytes", "1G"]);
        assert!(matches!(cli.unwrap().tool, Tool::Source { bytes: 1_073_741_824, .. }));
        assert!(Cli::try_parse_from(["zstack", "echo", "--listen", "1", "--connect", "10.0.0.1:9"]).is_err());
        assert!(Cli::try_parse_from(["zstack", "echo"]).is_err());
    }
}
