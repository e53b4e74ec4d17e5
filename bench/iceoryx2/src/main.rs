//! The other side of rows of `culvert bench`: messages of one size by iceoryx2's publish-subscribe, polled, one way or there and back.
//!
//! Of each message the first word alone is written and read, as by `culvert workload message-client --calls polled`; and both programs
//! look at the clock as often, and print the same figures.

use iceoryx2::prelude::*;
use serde_json::json;
use std::error::Error;
use std::io::Write;
use std::time::{Duration, Instant};

type Publisher = iceoryx2::port::publisher::Publisher<ipc::Service, [u8], ()>;
type Subscriber = iceoryx2::port::subscriber::Subscriber<ipc::Service, [u8], ()>;

#[derive(clap::Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
    /// Names the services of this run
    #[arg(long)]
    name: String,
    #[arg(long)]
    pattern: Pattern,
    /// Bytes of a message
    #[arg(long)]
    size: usize,
}

#[derive(clap::Subcommand)]
enum Role {
    Server,
    Client {
        /// Length of the measurement
        #[arg(long)]
        seconds: u32,
    },
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Pattern {
    OneWay,
    RoundTrip,
}

/// Messages that a subscriber may have waiting.
const QUEUE: usize = 64;
/// The last message.
const END: u64 = u64::MAX;

/// One end: what it sends by, and what it receives by.
struct End {
    to: Publisher,
    from: Subscriber,
    size: usize,
    _node: Node<ipc::Service>,
}

impl End {
    fn new(a: &Arguments, server: bool) -> Result<End, Box<dyn Error>> {
        let node = NodeBuilder::new().create::<ipc::Service>()?;
        let service = |way: &str| {
            let name = ServiceName::new(&format!("{}/{way}", a.name))?;
            // No message is dropped, so that all are counted.
            let builder = node.service_builder(&name).publish_subscribe::<[u8]>().enable_safe_overflow(false);
            let builder = builder.subscriber_max_buffer_size(QUEUE).history_size(0).max_publishers(1).max_subscribers(1);
            Ok::<_, Box<dyn Error>>(builder.payload_alignment(Alignment::new(64).ok_or("64")?).open_or_create()?)
        };
        let (there, back) = (service("there")?, service("back")?);
        let (out, into) = if server { (&back, &there) } else { (&there, &back) };
        let to = out.publisher_builder().initial_max_slice_len(a.size.max(8)).backpressure_strategy(BackpressureStrategy::RetryUntilDelivered).create()?;
        let from = into.subscriber_builder().create()?;
        Ok(End { to, from, size: a.size.max(8), _node: node })
    }

    fn send(&self, value: u64) -> Result<(), Box<dyn Error>> {
        let mut sample = self.to.loan_slice_uninit(self.size)?;
        for (to, byte) in sample.payload_mut()[..8].iter_mut().zip(value.to_ne_bytes()) {
            to.write(byte);
        }
        // SAFETY: bytes, whatever they are: shared memory that was zeroed, or an earlier message.
        unsafe { sample.assume_init() }.send()?;
        Ok(())
    }

    fn receive(&self) -> Result<u64, Box<dyn Error>> {
        let mut tries = 0u32;
        loop {
            if let Some(sample) = self.from.receive()? {
                return Ok(u64::from_ne_bytes(sample.payload()[..8].try_into()?));
            }
            tries += 1;
            // As the other side: a program that polls goes on, and leaves the processor now and then.
            if tries % 1024 == 0 { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    }
}

fn say(line: impl std::fmt::Display) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

fn server(a: &Arguments) -> Result<(), Box<dyn Error>> {
    let end = End::new(a, true)?;
    say("ready")?;
    let mut n = 0u64;
    loop {
        match end.receive()? {
            END => return end.send(n),
            value => {
                n += 1;
                if value != n {
                    return Err(format!("message {n} is {value}").into());
                }
                // The first one is answered in any case: until a subscriber has seen its publisher, messages are dropped behind a full queue.
                if a.pattern == Pattern::RoundTrip || n == 1 {
                    end.send(n)?;
                }
            }
        }
    }
}

fn client(a: &Arguments, length: Duration) -> Result<(), Box<dyn Error>> {
    let end = End::new(a, false)?;
    let warm = Duration::from_millis(300);
    let mut n = 0u64;
    let (begun, mut from, mut counted) = (Instant::now(), None, 0u64);
    loop {
        n += 1;
        end.send(n)?;
        if (a.pattern == Pattern::RoundTrip || n == 1) && end.receive()? != n {
            return Err("another message".into());
        }
        if n % 16 == 0 {
            let now = begun.elapsed();
            match from {
                None if now > warm => (from, counted) = (Some(now), n),
                Some(from) if now - from > length => break,
                _ => {}
            }
        }
    }
    let from = from.unwrap_or_default();
    let mut took = begun.elapsed() - from;
    end.send(END)?;
    if end.receive()? != n {
        return Err("messages were lost".into());
    }
    if a.pattern == Pattern::OneWay {
        took = begun.elapsed() - from;
    }
    let done = (n - counted) as f64;
    say(json!({ "rate": done / took.as_secs_f64(), "us": took.as_secs_f64() * 1e6 / done, "all_operations": n }))
}

fn main() -> Result<(), Box<dyn Error>> {
    let a = <Arguments as clap::Parser>::parse();
    match a.role {
        Role::Server => server(&a),
        Role::Client { seconds } => client(&a, Duration::from_secs(seconds.into())),
    }
}
