//! A worker that panics: the whole daemon ends with it, and says so. Its connections would else be nobody's, and what the kernel brings to
//! its queues would be lost for as long as the others serve. Where a panic aborts the process (the profiles `dev` and `release`) there is
//! nothing to be tested; a test program unwinds.

#[path = "../../port/tests/lab/mod.rs"]
mod lab;

use lab::{Namespace, bounded, soon};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;
use zstack::port::{Capabilities, Frame, Port, Received, Refused};
use zstack_port::{Device, Packet, Spec};
use zstackd::config::Config;
use zstackd::daemon::{Daemon, hold_signals};
use zstackd::poller::{Event, Poller};
use zstackd::wire::{Unbound, Wire};

const LIMIT: Duration = Duration::from_secs(60);
const CONFIG: &str = "port = \"tap:w0\"\naddresses = [\"10.1.0.1/24\"]\nworkers = 2\nprograms = \"all\"\n";

/// What the test and the queues of the port tell each other.
#[derive(Default)]
struct Told {
    /// One worker is to panic.
    fail: AtomicBool,
    /// How many workers have come to sleep.
    slept: AtomicUsize,
    /// How many have given their queue back.
    given_back: AtomicUsize,
}

/// A queue of a tap, as it is before and after it is bound.
struct Queue<T> {
    queue: T,
    fails: bool,
    slept: bool,
    told: Arc<Told>,
}

impl Unbound for Queue<zstack_port::Unbound> {
    type Wire = Bound;

    fn bind(self) -> Bound {
        Bound(Queue { queue: self.queue.bind(), fails: self.fails, slept: false, told: self.told })
    }

    fn mtu(&self) -> u16 {
        Unbound::mtu(&self.queue)
    }

    fn describe(&self) -> String {
        self.queue.describe()
    }
}

struct Bound(Queue<Device>);

impl Drop for Bound {
    fn drop(&mut self) {
        self.0.told.given_back.fetch_add(1, SeqCst);
    }
}

impl Port for Bound {
    type Buffer = Packet;

    fn capabilities(&self) -> Capabilities {
        self.0.queue.capabilities()
    }

    fn receive(&mut self) -> Result<Option<Received<Packet>>, Refused> {
        self.0.queue.receive()
    }

    unsafe fn send(&mut self, frame: &Frame<'_>) -> Result<(), Refused> {
        // SAFETY: the contract is handed on, and so is what ends it (`completed`).
        unsafe { self.0.queue.send(frame) }
    }

    fn completed(&mut self) -> u64 {
        self.0.queue.completed()
    }
}

impl Wire for Bound {
    fn watch(&self, poller: &Poller) -> io::Result<()> {
        self.0.queue.watch(poller)
    }

    fn sleep(&mut self, poller: &mut Poller, limit: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        let Queue { queue, fails, slept, told } = &mut self.0;
        if !std::mem::replace(slept, true) {
            told.slept.fetch_add(1, SeqCst);
        }
        assert!(!*fails || !told.fail.load(SeqCst), "this worker was told to panic");
        // It looks now and then whether it is to.
        let look = Duration::from_millis(10);
        queue.sleep(poller, Some(limit.map_or(look, |limit| limit.min(look))), events)
    }

    fn hand_over(&self, to: u16, buffer: &[u8]) -> bool {
        Wire::hand_over(&self.0.queue, to, buffer)
    }

    fn kind(&self) -> &str {
        self.0.queue.kind()
    }

    fn describe(&self) -> String {
        Wire::describe(&self.0.queue)
    }
}

/// The daemon ends by itself when the worker with this number panics, while the other one has nothing to do.
fn ends_with(failing: usize) {
    let (here, there) = (Namespace::new(), Namespace::new());
    let told = Arc::new(Told::default());
    let (again, to_queues) = (here.again(), told.clone());
    let daemon = thread::spawn(move || {
        let config: Config = CONFIG.parse().expect("a configuration");
        let spec: Spec = config.port.parse().expect("a spec");
        let queues = there.within(|| Device::open_queues(&spec, config.workers)).expect("a tap with two queues");
        let queues = queues.into_iter().enumerate().map(|(number, queue)| Queue {
            queue,
            fails: number == failing,
            slept: false,
            told: to_queues.clone(),
        });
        again.enter();
        hold_signals().expect("a mask");
        let mut daemon = Daemon::new(&config, queues.collect(), "@panics", |_, _, _| false).expect("a daemon");
        daemon.run()
    });
    soon("two workers with nothing to do", LIMIT, || (told.slept.load(SeqCst) == 2).then_some(()));
    assert!(!daemon.is_finished() && told.given_back.load(SeqCst) == 0, "both serve");
    assert!(here.run("ip link").contains("cv0"), "there is a way to it");
    told.fail.store(true, SeqCst);
    soon("the end of the daemon", LIMIT / 2, || daemon.is_finished().then_some(()));
    let end = daemon.join().expect("the main thread does not panic");
    assert_eq!(end, Err("a worker has failed".to_owned()));
    assert_eq!(told.given_back.load(SeqCst), 2, "the other worker has ended, too");
    assert!(!here.run("ip link").contains("cv0"), "programs have no way to what does not serve");
}

#[test]
fn the_daemon_ends_with_any_of_its_workers() {
    need_root!();
    bounded(2 * LIMIT, || {
        ends_with(0);
        ends_with(1);
    });
}
