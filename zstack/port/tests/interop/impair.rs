//! A link between two tun devices that delays, reorders, duplicates and loses packets, from a seed.

use crate::lab::Namespace;
use std::collections::BinaryHeap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use zstack::payload::{Buffer, Spans};
use zstack::port::{Checksum, Frame, Port};
use zstack_port::{Device, Interest, Spec, wait_any};

/// What happens to packets, each way.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// All are delayed by so much.
    pub delay: Duration,
    /// So many of a thousand are delayed by up to `late` more: others overtake them.
    pub reordered: u64,
    pub late: Duration,
    /// So many of a thousand come twice.
    pub doubled: u64,
    /// So many of a thousand are lost.
    pub lost: u64,
    pub seed: u64,
}

/// What has happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    pub packets: u64,
    pub reordered: u64,
    pub doubled: u64,
    pub lost: u64,
}

/// The link, which runs in a thread until this is dropped.
pub struct Impairer {
    stop: Arc<AtomicBool>,
    done: Arc<Mutex<Done>>,
    thread: Option<JoinHandle<()>>,
}

/// A packet on its way: the earliest is the greatest.
#[derive(PartialEq, Eq)]
struct Flying {
    at: Instant,
    number: u64,
    to: usize,
    bytes: Vec<u8>,
}

impl Ord for Flying {
    fn cmp(&self, other: &Flying) -> std::cmp::Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl PartialOrd for Flying {
    fn partial_cmp(&self, other: &Flying) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Impairer {
    /// Opens both devices, each by a function that enters its namespace. Their packets are complete: no offloads.
    pub fn start(a: (&Namespace, Spec), b: (&Namespace, Spec), faults: Faults) -> Impairer {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(Mutex::new(Done::default()));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&done));
        let (first, second) = (a.0.again(), b.0.again());
        let thread = std::thread::spawn(move || {
            let open = |namespace: &Namespace, spec: &Spec| {
                namespace.enter();
                Device::open(spec).unwrap_or_else(|e| panic!("{e}"))
            };
            let mut ends = [open(&first, &a.1), open(&second, &b.1)];
            ready.send(()).expect("the starter waits");
            run(&mut ends, faults, &stopped, &counted);
        });
        if is_ready.recv().is_err() {
            std::panic::resume_unwind(thread.join().expect_err("it did not say that it is ready"));
        }
        Impairer { stop, done, thread: Some(thread) }
    }

    pub fn done(&self) -> Done {
        *self.done.lock().expect("the thread has not panicked")
    }
}

impl Drop for Impairer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the impairer has panicked");
        }
    }
}

fn run(ends: &mut [Device; 2], faults: Faults, stop: &AtomicBool, done: &Mutex<Done>) {
    let mut state = faults.seed | 1;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) % below
    };
    let mut flying = BinaryHeap::new();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        let mut counts = done.lock().expect("nobody panics with it");
        for (from, end) in ends.iter_mut().enumerate() {
            for _ in 0..64 {
                let Some(packet) = end.receive().expect("the device is there") else { break };
                counts.packets += 1;
                if random(1000) < faults.lost {
                    counts.lost += 1;
                    continue;
                }
                let copies = if random(1000) < faults.doubled { 2 } else { 1 };
                counts.doubled += copies - 1;
                for _ in 0..copies {
                    let mut at = now + faults.delay;
                    if random(1000) < faults.reordered {
                        at += Duration::from_nanos(random(faults.late.as_nanos().max(1) as u64));
                        counts.reordered += 1;
                    }
                    let bytes = packet.buffer.bytes()[packet.range.clone()].to_vec();
                    number += 1;
                    flying.push(Flying { at, number, to: 1 - from, bytes });
                }
            }
        }
        drop(counts);
        while flying.peek().is_some_and(|f: &Flying| f.at <= Instant::now()) {
            let Some(packet) = flying.pop() else { break };
            let frame = Frame { head: &packet.bytes, payload: Spans::EMPTY, checksum: Checksum::Complete, cut: 0 };
            // SAFETY: there is no payload beside the head.
            let _ = unsafe { ends[packet.to].send(&frame) };
        }
        // The stop is looked for every 20 ms.
        let limit = flying.peek().map_or(Duration::from_millis(20), |f| f.at.saturating_duration_since(Instant::now()));
        let mut interests = [Interest::read(ends[0].as_fd()), Interest::read(ends[1].as_fd())];
        wait_any(&mut interests, Some(limit.min(Duration::from_millis(20)))).expect("ppoll");
    }
}
