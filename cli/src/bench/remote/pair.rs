//! Two hosts with programs: behind a zstackd each, with memif between these, or on two kernels with a veth between them.

use std::fs;
use std::io;
use std::net::SocketAddrV4;
use std::process::Command;
use std::time::Duration;

use super::super::procs::{Job, Side};
use super::super::row::{Setup, workload};
use super::engine::listens;
use super::lab::{FAR, NEAR, Namespace, Wire, run, serve};

/// One of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The one that connects.
    Near,
    /// The other one.
    Far,
}

/// Two hosts.
pub enum Pair {
    /// Two kernels.
    Kernels(Wire),
    /// The near host and the far one, each with its zstackd.
    Zstackds([(Namespace, Job); 2]),
}

impl Pair {
    /// A new one.
    pub fn new(s: &Setup, side: Side) -> io::Result<Pair> {
        if side == Side::Kernel {
            return Wire::of_kernels(s).map(Pair::Kernels);
        }
        let socket = s.scratch.join("memif.sock");
        // That of the round before.
        let _ = fs::remove_file(&socket);
        let zstackd = |role: &str, n: u32, address, other| -> io::Result<(Namespace, Job)> {
            let here = Namespace::new(s)?;
            let text = format!(
                "port = \"dpdk:net_memif0,role={role},id=0,socket={},socket-abstract=no,mac=02:00:00:00:00:0{n},memory=none\"\n\
                 addresses = [\"{address}/24\"]\ngateways = [\"{other}\"]\n",
                socket.display()
            );
            let daemon = serve(s, &here, &format!("{role}.toml"), &text)?;
            Ok((here, daemon))
        };
        let mut far = zstackd("server", 2, FAR, NEAR)?;
        far.1.wait_until(|job| listens(job, &socket).then_some(()))?;
        Ok(Pair::Zstackds([zstackd("client", 1, NEAR, FAR)?, far]))
    }

    /// Starts a program.
    pub fn start(&self, s: &Setup, end: End, command: Command) -> io::Result<Job> {
        match self {
            Pair::Kernels(wire) => if end == End::Near { &wire.near } else { &wire.far }.start(s, command),
            Pair::Zstackds(hosts) => run(s, &hosts[end as usize].0, command),
        }
    }

    /// Returns when something listens there, as seen from the near host.
    pub fn knock(&self, s: &Setup, to: SocketAddrV4) -> io::Result<()> {
        let job = self.start(s, End::Near, workload(&["remote", "knock", &to.to_string()]))?;
        job.finish(Duration::from_secs(20)).map(drop)
    }

    /// CPU time of the zstackds so far.
    pub fn cpu(&self) -> [Duration; 2] {
        match self {
            Pair::Kernels(_) => [Duration::ZERO; 2],
            Pair::Zstackds(hosts) => [hosts[0].1.cpu(), hosts[1].1.cpu()],
        }
    }
}
