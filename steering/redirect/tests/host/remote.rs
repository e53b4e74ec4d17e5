//! Another host: a thread in a network namespace of its own, at the other end of a veth.

use super::run;
use nix::sched::{CloneFlags, unshare};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;

type Job = Box<dyn FnOnce() + Send>;

/// Does there what it is told. The caller's end has the address 10.N.0.1, the other one 10.N.0.2; fdN::1 and fdN::2.
pub struct Remote(Sender<Job>);

impl Remote {
    /// At an interface of this name in the caller's namespace.
    pub fn new(interface: &str, net: u8) -> Remote {
        let (jobs, todo) = channel::<Job>();
        let (tell, told) = channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            tell.send(nix::unistd::gettid()).expect("told");
            todo.into_iter().for_each(|job| job());
        });
        let there = told.recv().expect("a thread");
        run(&format!("ip link add {interface} type veth peer name there"));
        run(&format!("ip link set there netns {there}"));
        run(&format!("ip addr add 10.{net}.0.1/24 dev {interface}"));
        run(&format!("ip addr add fd{net}::1/64 dev {interface} nodad"));
        run(&format!("ip link set {interface} up"));
        let remote = Remote(jobs);
        remote.run(&format!("ip addr add 10.{net}.0.2/24 dev there"));
        remote.run(&format!("ip addr add fd{net}::2/64 dev there nodad"));
        for text in ["ip link set lo up", "ip link set there up"] {
            remote.run(text);
        }
        remote.run(&format!("ip route add default via 10.{net}.0.1"));
        remote.run(&format!("ip route add default via fd{net}::1"));
        remote
    }

    /// Does something in its namespace.
    pub fn does<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, answered) = channel();
        let job = Box::new(move || answer.send(job()).expect("told"));
        self.0.send(job).expect("a thread");
        answered.recv().expect("an answer")
    }

    /// Runs a command there, which succeeds.
    pub fn run(&self, text: &str) {
        let text = text.to_owned();
        self.does(move || run(&text));
    }

    /// What a command prints there.
    pub fn says(&self, words: &[&str]) -> String {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        self.does(move || {
            let mut command = Command::new("timeout");
            let out = command.args(["-k", "1", "30"]).args(words).stdin(Stdio::null()).output().expect("a command");
            let text = [out.stdout, out.stderr].concat();
            String::from_utf8_lossy(&text).trim_end().to_owned()
        })
    }
}
