//! Runs a tool over a transport until it has finished or a signal comes.

use crate::control::Control;
use crate::sys;
use crate::transport::{Event, Transport};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// A tool.
pub trait App {
    /// Listens, or begins to connect.
    ///
    /// # Errors
    /// A line for the user.
    fn start(&mut self, transport: &mut dyn Transport) -> Result<(), String>;

    /// Something has happened.
    fn event(&mut self, transport: &mut dyn Transport, event: Event);

    /// When `tick` is to be called if nothing happens before.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Called when the deadline has passed.
    fn tick(&mut self, _transport: &mut dyn Transport) {}

    /// Whether there is nothing more to do.
    fn finished(&self) -> bool;

    /// Prints statistics; `interrupted`: a signal came before it had finished.
    ///
    /// # Errors
    /// What it was for has failed: a line for the user.
    fn end(&mut self, transport: &mut dyn Transport, interrupted: bool) -> Result<(), String>;
}

/// Runs `app`, which was started. SIGINT and SIGTERM end it in order.
///
/// # Errors
/// A line for the user.
pub fn run(
    app: &mut dyn App,
    transport: &mut dyn Transport,
    signals: &OwnedFd,
    mut control: Option<Control>,
) -> Result<(), String> {
    let signal = signals.as_raw_fd();
    transport.watch(signal)?;
    if let Some(control) = &control {
        transport.watch(control.fd())?;
    }
    let mut events = Vec::with_capacity(256);
    let mut interrupted = false;
    while !interrupted && !app.finished() {
        let limit = app.deadline().map(|d| d.saturating_duration_since(Instant::now()));
        transport.poll(&mut events, limit)?;
        for event in events.drain(..) {
            match event {
                Event::Watched(fd) if fd == signal => interrupted = true,
                Event::Watched(_) => control.as_mut().into_iter().for_each(|c| c.answer(transport)),
                event => app.event(transport, event),
            }
        }
        if app.deadline().is_some_and(|d| d <= Instant::now()) {
            app.tick(transport);
        }
    }
    let result = app.end(transport, interrupted);
    linger(transport);
    result
}

/// What was written last, and the ends of connections, are still to be sent.
fn linger(transport: &mut dyn Transport) {
    let until = Instant::now() + Duration::from_millis(50);
    let mut events = Vec::new();
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        if transport.idle() || transport.poll(&mut events, Some(left)).is_err() {
            break;
        }
        events.clear();
    }
}

/// CPU and time since a moment.
#[derive(Clone, Copy)]
pub struct Meter {
    began: Instant,
    user: Duration,
    system: Duration,
    softirq: Duration,
}

/// What a [`Meter`] has measured, in seconds.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Spent {
    pub wall_s: f64,
    pub user_s: f64,
    pub system_s: f64,
    /// Of the machine, in softirqs; 0 where the kernel does not tell.
    #[serde(default)]
    pub softirq_s: f64,
}

impl Spent {
    /// User and system time.
    pub fn cpu_s(&self) -> f64 {
        self.user_s + self.system_s
    }
}

impl Meter {
    pub fn start() -> Meter {
        let (user, system) = sys::cpu();
        Meter { began: Instant::now(), user, system, softirq: sys::softirq().unwrap_or_default() }
    }

    pub fn read(&self) -> Spent {
        let (user, system) = sys::cpu();
        Spent {
            wall_s: self.began.elapsed().as_secs_f64(),
            user_s: (user - self.user).as_secs_f64(),
            system_s: (system - self.system).as_secs_f64(),
            softirq_s: sys::softirq().unwrap_or_default().saturating_sub(self.softirq).as_secs_f64(),
        }
    }
}

/// A line of a tool that moved bytes.
pub fn summary(what: &str, bytes: u64, spent: Spent, copied: Option<u64>) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    let copied = copied.map_or(String::new(), |n| format!(", {n} payload bytes copied"));
    format!(
        "{what}: {bytes} bytes in {:.3} s ({:.1} MiB/s), CPU {:.3} s user, {:.3} s system{copied}",
        spent.wall_s,
        mib / spent.wall_s.max(1e-9),
        spent.user_s,
        spent.system_s
    )
}
