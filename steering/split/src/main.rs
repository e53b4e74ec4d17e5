//! `culvert-split`: the XDP program of an interface, and its rules. `culvert steer` uses it for flows that are divided `by = "xdp"`.

mod cost;

use clap::{Parser, Subcommand};
use culvert_split::rules::{self, RULES};
use culvert_split::{OBJECT, OTHERS, Split};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser, Debug)]
#[command(name = "culvert-split", version, about = "Divides the packets of an interface between the kernel and AF_XDP")]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Put the program on an interface; without rules it lets all packets pass
    Attach {
        /// The interface
        interface: String,
    },
    /// Take it away
    Detach {
        /// The interface
        interface: String,
    },
    /// Say whether it is there: exit status 0 if so, 1 if not
    Status {
        /// The interface
        interface: String,
    },
    /// Show its rules, each at its place; the lowest that a packet is under decides
    Show {
        /// The interface
        interface: String,
    },
    /// Show how many packets and bytes came under each rule, and under none
    Count {
        /// The interface
        interface: String,
    },
    /// Enter a rule: TCP connections that have begun stay where they are, everything else moves with the next packet. Behind `stateless`
    /// they move, too: for packets that are only forwarded
    #[command(
        after_help = "RULE: [family ipv4|ipv6] [protocol tcp|udp] [source NETWORK] [destination NETWORK] [source-ports \
        FIRST-LAST] [destination-ports FIRST-LAST] [vlan NUMBER] to queue NUMBER|queues|kernel|drop|back [stateless]"
    )]
    Add {
        /// The interface
        interface: String,
        /// Its place, below 256
        place: u32,
        /// The rule
        #[arg(required = true, trailing_var_arg = true)]
        rule: Vec<String>,
    },
    /// Write the program to a file, for DPDK: dpdk:net_af_xdp0,iface=INTERFACE,xdp_prog=FILE. It is then this one, and takes rules
    Object {
        /// The file
        file: PathBuf,
    },
    /// Say what a packet costs the program, in nanoseconds, on this machine now: one that is under none of so many rules that name everything
    /// there is, and is found so only at the last look-up
    Cost {
        /// How many rules
        #[arg(value_parser = clap::value_parser!(u32).range(0..=256))]
        rules: u32,
        /// A UDP packet; else it is one of a TCP connection
        #[arg(long)]
        udp: bool,
        /// One in a VLAN, of which all rules are
        #[arg(long)]
        tagged: bool,
    },
    /// Take a rule away
    Delete {
        /// The interface
        interface: String,
        /// Its place
        place: u32,
    },
}

fn main() -> ExitCode {
    match run(&Cli::parse().action) {
        Ok(code) => code,
        Err(why) => {
            eprintln!("culvert-split: {why}");
            ExitCode::FAILURE
        }
    }
}

fn on(interface: &str) -> Result<Split, String> {
    Split::on(interface)?
        .ok_or_else(|| format!("{interface} does not have the program: culvert-split attach {interface}"))
}

fn run(action: &Action) -> Result<ExitCode, String> {
    match action {
        Action::Attach { interface } => Split::attach(interface).map(drop)?,
        Action::Detach { interface } => on(interface)?.detach()?,
        Action::Status { interface } => {
            if Split::on(interface)?.is_none() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Action::Show { interface } => {
            for (at, rule) in on(interface)?.rules()? {
                println!("{at} {}", rules::text(&rule));
            }
        }
        Action::Count { interface } => {
            let split = on(interface)?;
            let (of_rules, others) = split.counts()?;
            for (at, rule) in split.rules()? {
                let count = of_rules.get(at as usize).copied().unwrap_or_default();
                println!("{:>12} packets {:>15} bytes  {at} {}", count.packets, count.bytes, rules::text(&rule));
            }
            for (count, what) in others.iter().zip(OTHERS) {
                println!("{:>12} packets {:>15} bytes  {what}", count.packets, count.bytes);
            }
        }
        Action::Add { interface, place, rule } => {
            let split = on(interface)?;
            let mut all = split.rules()?;
            if *place as usize >= RULES {
                return Err(format!("place {place}: they are numbered from 0 to {}", RULES - 1));
            }
            if all.insert(*place, rules::parse(rule)?).is_some() {
                return Err(format!("place {place} has a rule: culvert-split delete {interface} {place}"));
            }
            split.change(&all)?;
        }
        Action::Object { file } => std::fs::write(file, OBJECT).map_err(|e| format!("{}: {e}", file.display()))?,
        Action::Cost { rules, udp, tagged } => println!("{}", cost::of(*rules, *udp, *tagged)?),
        Action::Delete { interface, place } => {
            let split = on(interface)?;
            let mut all = split.rules()?;
            all.remove(place).ok_or_else(|| format!("place {place} has no rule"))?;
            split.change(&all)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
