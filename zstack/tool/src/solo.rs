//! `solo`: what sending costs the engine and a device by themselves. Who takes the connection and acknowledges is played in this process.

mod peer;

use crate::run::Meter;
use peer::Answered;
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use zstack::endpoint::Endpoint;
use zstack::net::Address;
use zstack::port::{Medium, Port};
use zstack::sockets::{self, Error, Receive, Socket, Still};
use zstack::stack::{Config, Connect};
use zstack_port::Clock;

/// What a port has to say.
pub const WANTS: &str = "solo: whom to play? Add gateway=ADDRESS, on the same network as addr=; IPv4 both";
/// The played host's port.
const PORT: u16 = 7;
/// How long the connection may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Turns between two looks at the clock of the measurement.
const TURNS: u32 = 64;

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Bytes that are sent by a call.
    pub size: usize,
    pub time: Duration,
    /// Copied into the socket's ring, instead of sent where they are.
    pub copy: bool,
    pub json: bool,
}

/// Measures on a port that is open, and prints. `peer`: the played host's address, on the same network as ours.
///
/// # Errors
/// A line for the user.
pub fn over<P: Port>(port: P, ours: &zstack_port::Address, peer: IpAddr, plan: Plan) -> Result<(), String> {
    if port.capabilities().medium != Medium::Ethernet || !peer.is_ipv4() {
        return Err("solo: it needs a port of Ethernet frames, and IPv4".into());
    }
    let key = crate::sys::random().map_err(|e| format!("getrandom: {e}"))?;
    let mut config = Config::new(Address { ip: ours.address, prefix: ours.prefix }, key);
    config.mac = Some([2, 0, 0, 0, 0, 1]);
    let clock = Clock::start();
    let mut endpoint = Endpoint::new(config, sockets::Config::default(), Answered::new(port), clock.now())
        .map_err(|e| e.to_string())?;
    let socket = connect(&mut endpoint, &clock, SocketAddr::new(peer, PORT))?;
    let bytes: Arc<[u8]> = (0..plan.size).map(|i| (i * 7 % 251) as u8).collect();
    let piece = Still::from(bytes.clone());

    let (began, meter, before) = (Instant::now(), Meter::start(), endpoint.port().segments);
    while began.elapsed() < plan.time {
        for _ in 0..TURNS {
            if endpoint.turn(clock.now()).gone {
                return Err("the device is gone".into());
            }
            while endpoint.next_ready().is_some() {}
            fill(&mut endpoint, socket, &bytes, &piece, plan.copy)
                .map_err(|e| format!("the connection broke: {e:?}"))?;
        }
    }
    let (spent, segments) = (meter.read(), endpoint.port().segments - before);
    let ns = spent.cpu_s() * 1e9 / segments.max(1) as f64;
    let copies = endpoint.sockets().copies();
    if plan.json {
        crate::out::line(format_args!(
            "{}",
            json!({"tool": "zstack solo", "size_bytes": plan.size, "copied": plan.copy, "segments": segments,
                "cpu_s": spent.cpu_s(), "segments_per_cpu_s": segments as f64 / spent.cpu_s(), "cpu_ns": ns,
                "copied_bytes": copies.written, "referenced_bytes": copies.referenced})
        ));
    } else {
        let how = if plan.copy { "copied" } else { "sent where they are" };
        crate::out::line(format_args!("{segments} segments, {} bytes at a time {how}: {ns:.0} ns CPU each", plan.size));
    }
    Ok(())
}

fn connect<P: Port>(endpoint: &mut Endpoint<Answered<P>>, clock: &Clock, to: SocketAddr) -> Result<Socket, String> {
    let wanted = Connect::new(to, endpoint.room());
    let socket = endpoint.connect(clock.now(), wanted, Receive::Copy).map_err(|e| format!("connect: {e:?}"))?;
    let until = Instant::now() + PATIENCE;
    loop {
        if endpoint.turn(clock.now()).gone {
            return Err("the device is gone".into());
        }
        while endpoint.next_ready().is_some() {}
        if endpoint.ready(socket).writable {
            return Ok(socket);
        }
        if Instant::now() > until {
            return Err("the connection was not made within two seconds: does the device take frames?".into());
        }
    }
}

/// Hands over as much as there is room for.
fn fill<P: Port>(
    endpoint: &mut Endpoint<Answered<P>>,
    socket: Socket,
    bytes: &[u8],
    piece: &Still,
    copy: bool,
) -> Result<(), Error> {
    loop {
        let sent = match copy {
            true => endpoint.write(socket, bytes, false).map(drop),
            false => endpoint.send(socket, piece.clone(), false).map_err(|(error, _)| error),
        };
        match sent {
            Ok(()) => {}
            Err(Error::WouldBlock) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zstack_port::{Settings, pair};

    #[test]
    fn the_played_host_takes_a_connection_and_all_that_is_sent() {
        for copy in [false, true] {
            let mut settings = Settings::default();
            settings.capabilities.medium = Medium::Ethernet;
            let (port, mut nobody) = pair(settings);
            let address = Address { ip: "10.0.0.2".parse().unwrap(), prefix: 24 };
            let mut config = Config::new(address, [1; 16]);
            config.mac = Some([2, 0, 0, 0, 0, 1]);
            let clock = Clock::start();
            let mut endpoint =
                Endpoint::new(config, sockets::Config::default(), Answered::new(port), clock.now()).unwrap();
            let socket = connect(&mut endpoint, &clock, "10.0.0.1:7".parse().unwrap()).unwrap();
            let bytes: Arc<[u8]> = vec![7; 64 << 10].into();
            let piece = Still::from(bytes.clone());
            let until = Instant::now() + Duration::from_secs(30);
            while endpoint.info(socket).unwrap().tcp.acknowledged < 1 << 20 {
                assert!(Instant::now() < until, "{:?}", endpoint.info(socket));
                endpoint.turn(clock.now());
                while endpoint.next_ready().is_some() {}
                while let Ok(Some(_)) = nobody.receive() {}
                fill(&mut endpoint, socket, &bytes, &piece, copy).unwrap();
            }
            let copies = endpoint.sockets().copies();
            assert_eq!((copies.written > 0, copies.referenced > 0), (copy, !copy));
            assert!(endpoint.port().segments >= (1 << 20) / 1460);
        }
    }
}
