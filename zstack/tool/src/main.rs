//! The tools of the Z-stack engine: `zstack --help`.

mod args;
mod bare;
mod control;
mod http;
mod out;
mod pattern;
mod perf;
mod ping;
mod run;
mod solo;
mod stream;
#[allow(unsafe_code)]
mod sys;
mod table;
mod transport;

use args::{Cli, Side, Tool};
use clap::Parser;
use control::Control;
use pattern::Pattern;
use run::App;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Duration;
use stream::{Role, Streams, Work};
use transport::Transport;
use transport::engine::{Engine, Sleep};
use transport::kernel::Kernel;
use zstack_port::{Device, Spec};

/// Why it did not do what was wanted: a line for the user.
enum Failure {
    /// Wrong usage or configuration.
    Setup(String),
    /// The work failed.
    Work(String),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = run(cli).and_then(|()| match out::failure() {
        None => Ok(()),
        Some(e) => Err(Failure::Work(format!("standard output: {e}: what the tool was to print is not all there"))),
    });
    let (line, code) = match result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Setup(line)) => (line, 2),
        Err(Failure::Work(line)) => (line, 1),
    };
    out::complain(&line);
    ExitCode::from(code)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let control = cli.port.control.as_deref();
    if let Tool::Stat { json } = cli.tool {
        let Some(path) = control else {
            return Err(Failure::Setup("stat: whom to ask? Give the --control PATH of the zstack that runs".into()));
        };
        return control::stat(path, Duration::from_secs(5), json).map_err(Failure::Work);
    }
    let Some(port) = &cli.port.port else {
        return Err(Failure::Setup(
            "what to run over? Give --port kernel or --port tun:NAME,addr=ADDRESS/PREFIX".into(),
        ));
    };
    let signals = sys::signals().map_err(|e| Failure::Setup(format!("signalfd: {e}")))?;
    let control = control.map(Control::new).transpose().map_err(Failure::Setup)?;
    if port == "kernel" {
        if cli.port.pcap.is_some() || cli.port.mtu.is_some() || cli.port.offload.is_some() {
            let text = "--pcap, --mtu and --offload are the engine's: leave them out, or give --port tun:NAME";
            return Err(Failure::Setup(text.into()));
        }
        if matches!(cli.tool, Tool::Echo { deferred: true, .. }) {
            return Err(Failure::Setup("--deferred is the engine's: leave it out, or give --port tun:NAME".into()));
        }
        if let Tool::Solo { .. } = cli.tool {
            return Err(Failure::Setup(
                "solo measures the engine: give --port dpdk:net_null0,addr=10.9.0.2/24,gateway=10.9.0.1".into(),
            ));
        }
        if let Tool::Bare { .. } = cli.tool {
            return Err(Failure::Setup(
                "bare measures a device: give --port tun:NAME,addr=10.9.0.2/24,peer=10.9.0.1".into(),
            ));
        }
        return with_kernel(cli, &signals, control);
    }
    if port.starts_with("dpdk:") {
        return with_dpdk(cli, &signals, control);
    }
    let spec = spec(&cli).map_err(Failure::Setup)?;
    if let Tool::Bare { size, seconds, json, held } = cli.tool {
        if held.is_some() {
            return Err(Failure::Setup(
                "bare --held: give --port dpdk:net_null0,no-rx=0,size=64,addr=10.9.0.2/24".into(),
            ));
        }
        let plan = bare::Plan { size, time: Duration::from_secs_f64(seconds), json };
        return bare::run(&spec, plan).map_err(Failure::Setup);
    }
    if let Some(plan) = solo_plan(&cli).map_err(Failure::Setup)? {
        let (Some(ours), Some(peer)) = (spec.addresses.first(), spec.gateways.first()) else {
            return Err(Failure::Setup(solo::WANTS.into()));
        };
        let device = Device::open(&spec).map_err(|e| Failure::Setup(e.to_string()))?;
        return solo::over(device, ours, *peer, plan).map_err(Failure::Setup);
    }
    let engine = Engine::open(&spec, cli.port.pcap.as_deref()).map_err(Failure::Setup)?;
    with_engine(engine, cli, &signals, control)
}

fn with_engine<P: Sleep>(
    mut engine: Engine<P>,
    cli: Cli,
    signals: &OwnedFd,
    control: Option<Control>,
) -> Result<(), Failure> {
    if let Tool::Ping { .. } = cli.tool {
        return ping::run(&ping_plan(&cli.tool), &mut engine, signals).map_err(Failure::Work);
    }
    if cli.port.copy {
        engine.copy_received();
    }
    if matches!(cli.tool, Tool::Echo { deferred: true, .. }) {
        engine.defer();
    }
    let mut app = app(cli, "engine").map_err(Failure::Setup)?;
    work(&mut *app, &mut engine, signals, control)
}

#[cfg(feature = "dpdk")]
fn with_dpdk(cli: Cli, signals: &OwnedFd, control: Option<Control>) -> Result<(), Failure> {
    use transport::dpdk;
    let spec = dpdk::spec(&settings(&cli)).map_err(Failure::Setup)?;
    if let Tool::Bare { seconds, json, held: Some(held), .. } = cli.tool {
        let mut queue = dpdk::queue(&spec).map_err(Failure::Setup)?;
        return bare::received(&mut queue, held as usize, Duration::from_secs_f64(seconds), json)
            .map_err(Failure::Setup);
    }
    if let Tool::Bare { size, seconds, json, held: None } = cli.tool {
        let plan = bare::Plan { size, time: Duration::from_secs_f64(seconds), json };
        let (mut queue, ends) = dpdk::device(&spec).map_err(Failure::Setup)?;
        let (name, mac) = (queue.name().to_owned(), queue.mac().unwrap_or([2, 0, 0, 0, 0, 2]));
        return bare::over(&mut queue, &name, ends, Some(mac), plan).map_err(Failure::Setup);
    }
    if let Some(plan) = solo_plan(&cli).map_err(Failure::Setup)? {
        let (Some(ours), Some(peer)) = (spec.addresses.first(), spec.gateways.first()) else {
            return Err(Failure::Setup(solo::WANTS.into()));
        };
        return solo::over(dpdk::queue(&spec).map_err(Failure::Setup)?, ours, *peer, plan).map_err(Failure::Setup);
    }
    let engine = dpdk::open(&spec, cli.port.pcap.as_deref()).map_err(Failure::Setup)?;
    with_engine(engine, cli, signals, control)
}

#[cfg(not(feature = "dpdk"))]
fn with_dpdk(cli: Cli, _signals: &OwnedFd, _control: Option<Control>) -> Result<(), Failure> {
    Err(Failure::Setup(format!(
        "--port {}: this zstack was built without DPDK: apt-get install libdpdk-dev libclang1-14 clang-14, then \
         cargo build --release -p zstack-tool --features dpdk",
        settings(&cli)
    )))
}

/// What `--port` says, with what the other options change: an option goes before what the port says.
fn settings(cli: &Cli) -> String {
    let port = cli.port.port.as_deref().unwrap_or_default();
    let mtu = cli.port.mtu.map(|mtu| mtu.to_string());
    let changes: Vec<(&str, &String)> = [("mtu", mtu.as_ref()), ("offload", cli.port.offload.as_ref())]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .collect();
    let changed = |part: &&str| part.split_once('=').is_some_and(|(key, _)| changes.iter().any(|(k, _)| *k == key));
    let mut parts: Vec<String> = port.split(',').filter(|part| !changed(part)).map(str::to_owned).collect();
    parts.extend(changes.iter().map(|(key, value)| format!("{key}={value}")));
    parts.join(",")
}

/// The device that `--port` names.
fn spec(cli: &Cli) -> Result<Spec, String> {
    let parse = |text: &str| text.parse().map_err(|e| format!("--port {text}: {e}"));
    // What is wrong with the port itself is said first.
    let spec: Spec = parse(cli.port.port.as_deref().unwrap_or_default())?;
    let text = settings(cli);
    if Some(&text) == cli.port.port.as_ref() { Ok(spec) } else { parse(&text) }
}

fn with_kernel(cli: Cli, signals: &OwnedFd, control: Option<Control>) -> Result<(), Failure> {
    if let Tool::Ping { to, .. } = cli.tool {
        let mut pinger = ping::Kernel::new(to).map_err(Failure::Setup)?;
        return ping::run(&ping_plan(&cli.tool), &mut pinger, signals).map_err(Failure::Work);
    }
    let mut kernel = Kernel::new().map_err(Failure::Setup)?;
    let mut app = app(cli, "kernel").map_err(Failure::Setup)?;
    work(&mut *app, &mut kernel, signals, control)
}

fn work(
    app: &mut dyn App,
    transport: &mut dyn Transport,
    signals: &OwnedFd,
    control: Option<Control>,
) -> Result<(), Failure> {
    app.start(transport).map_err(Failure::Setup)?;
    run::run(app, transport, signals, control).map_err(Failure::Work)
}

fn ping_plan(tool: &Tool) -> ping::Plan {
    let Tool::Ping { to, count, interval, timeout, size } = tool else { unreachable!("looked at before") };
    ping::Plan {
        to: *to,
        count: *count,
        interval: Duration::from_secs_f64(*interval),
        patience: Duration::from_secs_f64(*timeout),
        size: usize::from(*size),
    }
}

/// The tool that was asked for.
fn app(cli: Cli, transport: &'static str) -> Result<Box<dyn App>, String> {
    let copy = cli.port.copy;
    let streams = |side: &Side, work, connections: Option<u32>, bytes, seed: Option<u64>| {
        let role = role(side);
        let default = u32::from(matches!(role, Role::Connect(_)));
        let mut streams = Streams::new(role, work, connections.unwrap_or(default), bytes, seed.map(Pattern::new));
        streams.copy = copy;
        Box::new(streams)
    };
    Ok(match cli.tool {
        Tool::Echo { side, connections, deferred: _ } => streams(&side, Work::Echo, connections, None, None),
        Tool::Sink { side, connections, bytes, seed } => streams(&side, Work::Sink, connections, bytes, seed),
        Tool::Source { side, connections, bytes, seed } => {
            let bytes = (bytes > 0).then_some(bytes);
            streams(&side, Work::Source, connections, bytes, Some(seed))
        }
        Tool::Http { listen, cache, directory } => Box::new(http::Http::new(listen, &directory, cache)?),
        Tool::Perf { side, mode, seconds, size, connections, pause, json } => match role(&side) {
            Role::Listen(at) => Box::new(perf::Server::new(at, copy)),
            Role::Connect(to) => {
                let fits = u32::try_from(size).ok().filter(|s| (1..=1 << 30).contains(s));
                let size = fits.ok_or_else(|| format!("--size {size}: give 1 byte to 1 GiB"))?;
                if mode == perf::Mode::Wake && size < perf::STAMP {
                    return Err(format!(
                        "--size {size}: give at least {}, for the moment when it was sent",
                        perf::STAMP
                    ));
                }
                let (time, pause) = (Duration::from_secs_f64(seconds), Duration::from_secs_f64(pause));
                let plan = perf::Plan { to, mode, time, size, connections, pause, copy, json, transport };
                Box::new(perf::Client::new(plan))
            }
        },
        Tool::Ping { .. } | Tool::Stat { .. } | Tool::Bare { .. } | Tool::Solo { .. } => {
            unreachable!("looked at before")
        }
    })
}

/// What `solo` is to do, if it was asked for.
fn solo_plan(cli: &Cli) -> Result<Option<solo::Plan>, String> {
    let Tool::Solo { size, seconds, json } = cli.tool else { return Ok(None) };
    let size = usize::try_from(size).ok().filter(|size| (1..=1 << 20).contains(size));
    let size = size.ok_or("solo: --size: give 1 byte to 1 MiB")?;
    Ok(Some(solo::Plan { size, time: Duration::from_secs_f64(seconds), copy: cli.port.copy, json }))
}

fn role(side: &Side) -> Role {
    match (side.connect, side.listen) {
        (Some(to), _) => Role::Connect(to),
        (None, at) => Role::Listen(at.unwrap_or(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0))),
    }
}
