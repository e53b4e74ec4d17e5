//! The command: see `zstackd --help`.

use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use zstack_port::{Device, Offload, Spec};
use zstackd::common::Common;
use zstackd::config::Config;
use zstackd::daemon::{self, Daemon};
use zstackd::policy::Policy;
use zstackd::wire::{Unbound, within};
use zstackd::{front, membership};

/// Remote peers of the programs in this network namespace, in user space
#[derive(Parser, Debug)]
#[command(name = "zstackd", version)]
struct Cli {
    /// The configuration, in TOML
    #[arg(long, global = true, value_name = "FILE", default_value = "/etc/culvert/zstackd.toml")]
    config: PathBuf,
    /// What is told on standard error: error, warn, info, debug or trace
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info")]
    log: log::LevelFilter,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Subcommand, Debug, Clone, Copy)]
enum What {
    /// Say whether the configuration is right, and what is wrong
    Check,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    env_logger::Builder::new().filter_level(cli.log).format_target(false).init();
    match serve(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, text)) => {
            eprintln!("zstackd: {text}");
            ExitCode::from(code)
        }
    }
}

/// What is wrong, with the exit status that says so.
type Failure = (u8, String);

fn serve(cli: &Cli) -> Result<(), Failure> {
    let config = read(&cli.config).map_err(|text| (2, text))?;
    let told = |text| (2, format!("{}: {text}", cli.config.display()));
    let wrong = |e: &dyn std::fmt::Display| told(format!("port: {e}"));
    // Looked for now, so that `check` tells of it.
    Policy::new(&config, Arc::new(Common::new(&config)), membership::intends).map_err(told)?;
    if config.port.starts_with("dpdk:") {
        let spec = dpdk::spec(&config).map_err(|e| wrong(&e))?;
        return if checked(cli, &config) { Ok(()) } else { run(&config, || dpdk::open(&spec)) };
    }
    let spec: Spec = config.port.parse().map_err(|e| wrong(&e))?;
    if !spec.addresses.is_empty() || !spec.gateways.is_empty() {
        return Err(wrong(&"its addresses are those of the key `addresses`: leave addr=, peer= and gateway= out"));
    }
    // What goes on to programs' kernels as it came must be whole: no checksum left out, no segments joined.
    let spec = Spec { mtu: spec.mtu.or(config.mtu), offload: Offload::Off, ..spec };
    if checked(cli, &config) {
        return Ok(());
    }
    run(&config, || Device::open_queues(&spec, config.workers).map_err(|e| e.to_string()))
}

/// Whether no more than a check was asked for; it has found nothing wrong.
fn checked(cli: &Cli, config: &Config) -> bool {
    if let Some(What::Check) = cli.what {
        println!("{}: right: zstackd would serve {}", cli.config.display(), list(&config.served()));
        return true;
    }
    false
}

fn run<U: Unbound>(config: &Config, open: impl FnOnce() -> Result<Vec<U>, String>) -> Result<(), Failure> {
    let failed = |text| (1, text);
    daemon::hold_signals().map_err(failed)?;
    let queues = within(config.port_namespace.as_deref(), open).and_then(|opened| opened).map_err(failed)?;
    queues.iter().for_each(|queue| log::info!("port: {}", queue.describe()));
    let control = format!("@culvert-zstackd-{}", std::process::id());
    // Before there is a way to it: a program that connects as soon as there is one says of its socket whose it is.
    let serving = membership::serve(config, &control).map_err(failed)?;
    let mut daemon = Daemon::new(config, queues, &control, membership::intends).map_err(failed)?;
    serving.ready().map_err(|e| failed(e.text().to_string()))?;
    log::info!("serves {} through {}", list(&config.served()), config.tun);
    front::drop_rights().map_err(|e| failed(e.to_string()))?;
    let result = daemon.run().map_err(failed);
    if config.workers > 1 {
        (0..).zip(daemon.counted_by_worker()).for_each(|(n, counted): (u16, _)| log::info!("worker {n}: {counted}"));
    }
    log::info!("counted: {}", daemon.counted());
    membership::retire();
    result
}

#[cfg(feature = "dpdk")]
mod dpdk {
    use super::Config;
    use zstack_dpdk::{Device, Spec, Unbound};

    pub fn spec(config: &Config) -> Result<Spec, String> {
        let spec: Spec = config.port.parse().map_err(|e: zstack_dpdk::SpecError| e.to_string())?;
        if !spec.addresses.is_empty() || !spec.gateways.is_empty() {
            return Err("its addresses are those of the key `addresses`: leave addr=, peer= and gateway= out".into());
        }
        if let (None, Some(interface)) = (&config.port_namespace, spec.heard_by_the_kernel()) {
            return Err(format!(
                "the kernel hears what arrives on {interface}, too, and with the programs' addresses it would answer: give the interface a network namespace of its own (`ip netns add wire && ip link set {interface} netns wire && ip -n wire link set {interface} up`), and name it as port-namespace = \"wire\""
            ));
        }
        let workers = config.workers;
        if let Some((key, queues)) = spec.asked_queues()
            && queues != workers
        {
            return Err(format!(
                "{key}={queues}, but `workers` is {workers}, and each has a queue: write {key}={workers}, or leave {key}= out"
            ));
        }
        Ok(Spec { mtu: spec.mtu.or(config.mtu), queues: workers, ..spec })
    }

    pub fn open(spec: &Spec) -> Result<Vec<Unbound>, String> {
        Device::open(spec).map(Device::queues).map_err(|e| e.to_string())
    }
}

#[cfg(not(feature = "dpdk"))]
mod dpdk {
    use super::Config;
    use std::convert::Infallible;
    use zstack_port::Unbound;

    pub fn spec(_: &Config) -> Result<Infallible, String> {
        Err("this zstackd was built without DPDK: build it with `cargo build --release -p zstackd --features dpdk`, or use tap:NAME".into())
    }

    pub fn open(none: &Infallible) -> Result<Vec<Unbound>, String> {
        match *none {}
    }
}

fn read(path: &Path) -> Result<Config, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| format!("{}: {e}: name a configuration with --config FILE", path.display()))?;
    text.parse().map_err(|e| format!("{}: {e}", path.display()))
}

fn list<T: std::fmt::Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}
