//! The command: see `zstackd --help`.

use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use zstack_port::{Device, Offload, Spec};
use zstackd::config::Config;
use zstackd::daemon::Daemon;
use zstackd::membership;
use zstackd::wire::{Wire, within};

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

fn serve(cli: &Cli) -> Result<(), (u8, String)> {
    let config = read(&cli.config).map_err(|text| (2, text))?;
    let spec: Spec = config.port.parse().map_err(|e| (2, format!("{}: port: {e}", cli.config.display())))?;
    if let Some(What::Check) = cli.what {
        println!("{}: right: zstackd would serve {}", cli.config.display(), list(&config.served()));
        return Ok(());
    }
    // What goes on to programs' kernels as it came must be whole: no checksum left out, no segments joined.
    let spec = Spec { mtu: spec.mtu.or(config.mtu), offload: Offload::Off, ..spec };
    let port = within(config.port_namespace.as_deref(), || Device::open(&spec))
        .and_then(|opened| opened.map_err(|e| e.to_string()))
        .map_err(|text| (1, text))?;
    log::info!("port {}", port.describe());
    let control = format!("@culvert-zstackd-{}", std::process::id());
    let mut daemon = Daemon::new(&config, port, &control, membership::intends).map_err(|text| (1, text))?;
    let _serving = membership::serve(&config, &control).map_err(|text| (1, text))?;
    log::info!("serves {} through {}", list(&config.served()), config.tun);
    let result = daemon.run().map_err(|text| (1, text));
    log::info!("counted: {}", daemon.counted());
    result
}

fn read(path: &Path) -> Result<Config, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| format!("{}: {e}: name a configuration with --config FILE", path.display()))?;
    text.parse().map_err(|e| format!("{}: {e}", path.display()))
}

fn list<T: std::fmt::Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}
