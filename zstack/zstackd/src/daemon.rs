//! The daemon: its workers, each a thread with a queue of the port, an engine and a queue of the tun; and what is done once for all of
//! them, in the main thread: what the kernel has of zstackd's is made and looked after, routes are followed, and who asks or ends it is heard.

mod ways;

use crate::common::Common;
use crate::config::{Config, Prefix};
use crate::front::{self, Front, Lane, Network, Wanted, Watch};
use crate::poller::Poller;
use crate::wire::Unbound;
use crate::worker::{self, Beginning, Counted, Letter, Mail, Worker, list};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rendezvous::registry::Kind;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;
use zstack_port::Clock;

/// Tokens of what is watched.
const SIGNALS: u64 = 0;
const WATCH: u64 = 1;
const WAYS: u64 = 2;
const ENDED: u64 = 3;
const CONTROL: u64 = 4;

/// SYNs that are written back and not accepted yet, beyond those that the configuration lets be made: workers look at the same time.
const SLACK: u32 = 1024;

/// A daemon that serves.
pub struct Daemon<U: Unbound> {
    /// Each for a worker, until that runs.
    queues: Vec<U>,
    with: Arc<Beginning>,
    poller: Poller,
    signals: SignalFd,
    /// What others do to the front.
    watch: Watch,
    /// The routes, where the kernel knows them.
    followed: Option<ways::Followed>,
    control: UnixListener,
    /// Counts the workers that have ended.
    ended: Arc<EventFd>,
    /// What has happened to each worker that has ended.
    counted: Vec<Counted>,
    /// The last: with it go the addresses, without which the resets of connections do not reach the programs.
    front: Front,
}

impl<U: Unbound> Daemon<U> {
    /// Makes what a daemon needs in the kernel of this namespace, and begins to serve: programs that come before [`Daemon::run`] wait.
    /// [`hold_signals`] comes first. `queues`: a worker's each, of the same device.
    ///
    /// # Errors
    /// A line for the user.
    ///
    /// # Panics
    /// If there is no queue.
    pub fn new(
        config: &Config,
        queues: Vec<U>,
        control: &str,
        intends: fn(u32, u64, Kind) -> bool,
    ) -> Result<Daemon<U>, String> {
        let io = |what: &'static str| move |e: std::io::Error| format!("{what}: {e}");
        let key = random().map_err(io("/dev/urandom"))?;
        let port = queues.first().expect("a port has a queue");
        let mtu = config.mtu.unwrap_or(port.mtu());
        if mtu > port.mtu() {
            return Err(format!("mtu: {mtu} is more than the port takes: give at most {}", port.mtu()));
        }
        let followed = ways::Followed::new(config, port.interface())?;
        let network = |prefix: &Prefix| Network { address: prefix.ip, prefix: prefix.len };
        let configured = || config.served().iter().map(network).collect();
        let wanted = Wanted {
            name: config.tun.clone(),
            mtu: mtu.into(),
            addresses: config.addresses.iter().map(network).collect(),
            served: followed.as_ref().map_or_else(configured, ways::Followed::served),
            lanes: queues.len(),
            held: config.pending.saturating_add(SLACK),
            ..Wanted::default()
        };
        let with = Beginning {
            config: config.clone(),
            key,
            clock: Clock::start(),
            routes: followed.as_ref().map_or_else(|| config.routes(), ways::Followed::routes),
            intends,
            common: Arc::new(Common::new(config)),
            mail: Mail::new(queues.len() as u16).map_err(io("eventfd"))?,
        };
        let front = Front::make(&wanted).map_err(|e| e.to_string())?;
        let poller = Poller::new().map_err(io("epoll"))?;
        let signals = SignalFd::with_flags(&signals(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(|e| format!("signalfd: {e}"))?;
        let control = worker::open(control).map_err(|e| format!("the control socket {control}: {e}"))?;
        poller.watch_edges(&control, CONTROL).map_err(io("epoll_ctl"))?;
        poller.watch(&signals, SIGNALS).map_err(io("epoll_ctl"))?;
        let watch = front.watch().map_err(|e| e.to_string())?;
        poller.watch(&watch, WATCH).map_err(io("epoll_ctl"))?;
        if let Some(followed) = &followed {
            poller.watch(followed.fd(), WAYS).map_err(io("epoll_ctl"))?;
        }
        let ended = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let ended = Arc::new(ended.map_err(|e| format!("eventfd: {e}"))?);
        poller.watch(&*ended, ENDED).map_err(io("epoll_ctl"))?;
        let (with, counted) = (Arc::new(with), Vec::new());
        Ok(Daemon { queues, with, poller, signals, watch, followed, control, ended, counted, front })
    }

    /// Serves until SIGTERM or SIGINT comes.
    ///
    /// # Errors
    /// A line for the user: a worker had to end, or what the kernel has of zstackd's is gone.
    pub fn run(&mut self) -> Result<(), String> {
        let (queues, with, ended) = (std::mem::take(&mut self.queues), self.with.clone(), self.ended.clone());
        thread::scope(|scope| {
            let stop = Stop(&with);
            let mut workers = Vec::new();
            for (number, queue) in (0..).zip(queues) {
                let (lane, with, ended) = (self.front.lane(usize::from(number)).clone(), &with, &ended);
                let run = move || {
                    let _ended = Ended(ended);
                    work(number, with, queue, lane)
                };
                let builder = thread::Builder::new().name(format!("worker {number}"));
                workers.push(builder.spawn_scoped(scope, run).map_err(|e| format!("a thread: {e}"))?);
            }
            let mut result = self.serve();
            drop(stop);
            for worker in workers {
                // One that panics has said so.
                let (counted, end) =
                    worker.join().unwrap_or_else(|_| (Counted::new(), Err("a worker has failed".into())));
                self.counted.push(counted);
                result = result.and(end);
            }
            result
        })
    }

    /// Does the main thread's part, until somebody ends the daemon, or a worker ends.
    fn serve(&mut self) -> Result<(), String> {
        let mut events = Vec::new();
        loop {
            events.clear();
            self.poller.wait(None, &mut events).map_err(|e| format!("epoll_wait: {e}"))?;
            for event in &events {
                match event.token {
                    SIGNALS if matches!(self.signals.read_signal(), Ok(Some(_))) => return Ok(()),
                    ENDED => return Ok(()),
                    WATCH => self.front_changed()?,
                    WAYS => self.routes_changed()?,
                    CONTROL => {
                        while let Some(asker) = worker::accept(&self.control) {
                            self.with.mail.send(0, Letter::Asker(asker));
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// Somebody has done something to the interface, or to what belongs to it: a network manager that is restarted, for example.
    fn front_changed(&mut self) -> Result<(), String> {
        let name = self.front.name().to_string();
        while let Some(event) = self.watch.next_event().map_err(|e| format!("netlink: {e}"))? {
            match event {
                front::Event::Removed => return Err(format!("the interface {name} was removed by somebody")),
                front::Event::Link(link) if link.up => {}
                front::Event::Link(_) | front::Event::Altered => {
                    log::warn!(
                        "{name}: somebody has set it down, or removed addresses, routes or rules: they are made again"
                    );
                    self.front.restore().map_err(|e| e.to_string())?;
                }
            }
        }
        Ok(())
    }

    /// What has happened to all workers that have ended, here and in the engines, by name; what has not is left out.
    pub fn counted(&self) -> String {
        let mut sum = Counted::new();
        for (name, n) in self.counted.iter().flatten() {
            match sum.iter_mut().find(|(other, _)| other == name) {
                Some((_, all)) => *all += n,
                None => sum.push((name, *n)),
            }
        }
        list(&sum)
    }

    /// The same of each worker.
    pub fn counted_by_worker(&self) -> impl Iterator<Item = String> {
        self.counted.iter().map(list)
    }
}

/// A worker's thread, and how it has ended.
fn work<U: Unbound>(number: u16, with: &Arc<Beginning>, queue: U, lane: Arc<Lane>) -> (Counted, Result<(), String>) {
    match Worker::new(number, with, queue.bind(), lane) {
        Ok(mut worker) => {
            let end = worker.run();
            (worker.counted(), end)
        }
        Err(e) => (Counted::new(), Err(e)),
    }
}

/// Tells all workers to stop, when this is dropped, whatever the reason.
struct Stop<'a>(&'a Beginning);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        (0..self.0.mail.workers()).for_each(|worker| _ = self.0.mail.send(worker, Letter::Stop));
    }
}

/// Tells the main thread that a worker has ended, when this is dropped, whatever the reason.
struct Ended<'a>(&'a EventFd);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        // Fails where that has been told 2^64 - 2 times.
        let _ = self.0.write(1);
    }
}

/// Those that end it in order.
fn signals() -> SigSet {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT])
}

/// From now on the signals that end a daemon in order wait for it, in the calling thread and those that it makes: to be called before
/// DPDK makes its own, which would take them.
///
/// # Errors
/// A line for the user.
pub fn hold_signals() -> Result<(), String> {
    signals().thread_block().map_err(|e| format!("pthread_sigmask: {e}"))
}

fn random() -> std::io::Result<[u8; 16]> {
    let mut key = [0; 16];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut key)?;
    Ok(key)
}
