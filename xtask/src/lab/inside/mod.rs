//! What runs in the machine, as its first process: it makes the machine usable, runs a case, and ends the machine with its outcome.

mod cases;
mod traffic;
mod world;

use super::machine::{EXIT, PASSED};
use super::packages::{self, said};
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::process::Command;

/// The chore by which the machine runs a case.
pub const CHORE: &str = "lab-inside";

/// Something to try.
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// Whether its machine has an IOMMU.
    pub iommu: bool,
    run: fn() -> Outcome,
}

type Outcome = Result<(), String>;

/// All of them, each with a machine of its own.
pub const CASES: &[Case] = &[
    Case {
        name: "divided",
        about: "a port is divided between the kernel, a namespace and DPDK; all three talk at once; then it is undone",
        iommu: true,
        run: cases::divided,
    },
    Case {
        name: "killed",
        about: "apply is killed at each step, then undone: the VFs that were there before are there again",
        iommu: true,
        run: cases::killed,
    },
    Case {
        name: "refused",
        about: "what the kernel and the driver refuse is said, with what helps",
        iommu: false,
        run: cases::refused,
    },
];

/// One of them.
pub fn case(name: &str) -> Option<&'static Case> {
    CASES.iter().find(|case| case.name == name)
}

/// Runs a case, or a part of one, inside.
pub fn chore(words: &[&str]) -> bool {
    match words {
        ["exchange", to, bytes] => match traffic::exchange(to, bytes) {
            Ok(()) => true,
            Err(why) => {
                eprintln!("{to}: {why}");
                false
            }
        },
        [name] if std::process::id() == 1 => {
            let result = start().and_then(|()| (case(name).ok_or("no such case")?.run)());
            if let Err(why) = &result {
                let log = Command::new("dmesg").output().map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
                let log = log.unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                println!("{}\nFAILED: {why}", lines[lines.len().saturating_sub(20)..].join("\n"));
            }
            end(result.is_ok())
        }
        _ => {
            eprintln!("{CHORE} runs in the lab's machine alone: cargo xtask lab");
            false
        }
    }
}

/// What an init does.
fn start() -> Outcome {
    fs::create_dir_all("/lib/modules").map_err(|e| e.to_string())?;
    let modules = packages::root().join("lib/modules");
    sh("mount -t proc proc /proc")?;
    sh("mount -t sysfs sys /sys")?;
    for (kind, at) in [("tmpfs", "/run"), ("tmpfs", "/tmp"), ("tmpfs", "/dev/shm"), ("hugetlbfs", "/dev/hugepages")] {
        fs::create_dir_all(at).map_err(|e| format!("{at}: {e}"))?;
        sh(&format!("mount -t {kind} {kind} {at}"))?;
    }
    sh(&format!("mount --bind {} /lib/modules", modules.display()))?;
    fs::write("/proc/sys/vm/nr_hugepages", "64").map_err(|e| format!("hugepages: {e}"))?;
    for module in ["igb", "igbvf", "vfio-pci", "8021q", "veth"] {
        said(Command::new(packages::program("modprobe")?).arg(module))?;
    }
    sh("ip link set lo up").map(drop)
}

/// Ends the machine.
fn end(passed: bool) -> ! {
    crate::step::drain();
    let value = if passed { PASSED } else { PASSED + 1 };
    let ended = fs::OpenOptions::new().write(true).open("/dev/port").and_then(|mut port| {
        port.seek(SeekFrom::Start(EXIT))?;
        port.write_all(&[value])
    });
    // It takes a moment.
    std::thread::sleep(std::time::Duration::from_secs(5));
    println!("the machine does not end: {ended:?}");
    std::process::exit(1)
}

/// Runs a command of plain words.
fn sh(text: &str) -> Result<String, String> {
    let mut words = text.split_whitespace();
    said(Command::new(words.next().ok_or("no command")?).args(words))
}

/// Says what has been seen to be so.
fn good(what: &str) {
    println!("ok: {what}");
}

/// It is so, or the case has failed.
fn must(so: bool, what: &str, detail: impl std::fmt::Display) -> Outcome {
    match so {
        true => {
            good(what);
            Ok(())
        }
        false => Err(format!("not so: {what}: {detail}")),
    }
}
