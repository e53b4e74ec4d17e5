//! `cargo xtask demo steer`: a plan for a card that is imagined; one interface that zstackd and the kernel share; and a middlebox that is inserted in front of a
//! server while it runs, and removed again. What is seen is compared with what is to be seen, and a table of it ends the demonstration.
//!
//! The namespaces have no names: they, the devices and the servers go with their processes, which end with this one, however it ends.

mod imagined;
mod inserted;
mod shared;

use crate::step::{self, Tally};
use crate::zstack_demo::lab::{self, Files, Namespace};
use crate::{build, culvert, debian, target, with_dpdk};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

const PROGRAMS: &[&str] =
    &["curl", "nginx", "haproxy", "iproute2", "nftables", "util-linux", "ethtool", "libnftables1"];

/// False if something did not work, or was not as it is to be.
pub fn demo() -> bool {
    debian::install(PROGRAMS) && with_dpdk::ready() && build(&mut Tally::default()) && helpers() && show()
}

/// Builds what `culvert steer` uses.
fn helpers() -> bool {
    if std::env::var_os("CULVERT_BIN").is_some() {
        return true;
    }
    let mut c = crate::cargo();
    c.args(["build", "--release", "-p", "culvert-split", "-p", "culvert-redirect"]);
    step::Step::new("build what steers", c, Duration::from_secs(600)).run(&mut Tally::default())
}

/// A command that is built beside `culvert`.
fn beside(name: &str) -> PathBuf {
    culvert().parent().map_or_else(|| target().join(name), |directory| directory.join(name))
}

fn show() -> bool {
    let began = Instant::now();
    lab::sweep();
    let mut seen = Seen::default();
    let result = Files::new().and_then(|files| {
        imagined::show(&files, &mut seen)?;
        shared::show(&files, &mut seen)?;
        inserted::show(&files, &mut seen)
    });
    let good = seen.table();
    println!("\n# {:.0} s", began.elapsed().as_secs_f64());
    if let Err(text) = &result {
        eprintln!("demo steer: {text}");
    }
    result.is_ok() && good
}

/// What was seen.
#[derive(Default)]
struct Seen(Vec<(String, String, bool)>);

impl Seen {
    /// Something, and whether it is as it is to be.
    fn note(&mut self, what: &str, seen: impl Into<String>, good: bool) {
        let seen = seen.into();
        println!("{} {what}: {seen}", if good { "#  ok " } else { "# NOT" });
        self.0.push((what.into(), seen, good));
    }

    /// A text that is to be another's equal.
    fn is(&mut self, what: &str, seen: &str, wanted: &str) {
        let good = seen == wanted;
        let text = if good { seen.to_owned() } else { format!("{seen:?} instead of {wanted:?}") };
        self.note(what, text, good);
    }

    /// Prints all; whether all is as it is to be.
    fn table(&self) -> bool {
        println!("\n{:<62} {:<8} seen", "what", "as said");
        for (what, seen, good) in &self.0 {
            println!("{what:<62} {:<8} {}", if *good { "yes" } else { "NO" }, seen.trim_end().replace('\n', "; "));
        }
        !self.0.is_empty() && self.0.iter().all(|(_, _, good)| *good)
    }
}

/// Runs `culvert steer`, which prints what it does.
fn steer(mut command: Command, words: &[&str]) -> Result<String, String> {
    command.args(words);
    println!("\n# culvert {}", words.join(" "));
    let text = lab::output(command)?;
    print!("{text}");
    Ok(text)
}

/// `culvert` in a namespace.
fn culvert_in(namespace: &Namespace) -> Command {
    namespace.command(culvert())
}
