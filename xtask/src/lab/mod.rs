//! `cargo xtask lab`: `culvert steer` on cards with SR-IOV that this machine need not have: a virtual machine has two ports of QEMU's igb on one
//! wire. VFs are made there, given to the kernel, to a network namespace and to DPDK, spoken with, and taken away again.

pub mod inside;
mod machine;
mod packages;

use crate::step::Tally;
use crate::{build, debian, with_dpdk};
use machine::Machine;
use std::time::{Duration, Instant};

const PROGRAMS: &[&str] = &["iproute2", "iputils-ping", "ethtool", "util-linux"];

/// False if something did not work.
pub fn lab(words: &[&str]) -> bool {
    let cases: Vec<&str> =
        if words.is_empty() { inside::CASES.iter().map(|case| case.name).collect() } else { words.to_vec() };
    if let Some(unknown) = cases.iter().find(|name| inside::case(name).is_none()) {
        let names: Vec<_> = inside::CASES.iter().map(|case| case.name).collect();
        eprintln!("lab: there is no case {unknown}; there are {}", names.join(", "));
        return false;
    }
    let began = Instant::now();
    let result = prepare().and_then(|()| cases.iter().try_for_each(|name| run(name)));
    println!("\n# {:.0} s", began.elapsed().as_secs_f64());
    if let Err(text) = &result {
        eprintln!("lab: {text}");
    }
    result.is_ok()
}

fn prepare() -> Result<(), String> {
    let ready = debian::install(PROGRAMS) && with_dpdk::ready() && build(&mut Tally::default());
    if !ready {
        return Err("what the lab tries could not be built".into());
    }
    packages::ready()
}

fn run(name: &str) -> Result<(), String> {
    let case = inside::case(name).ok_or("no such case")?;
    println!("\n== {name}: {}", case.about);
    let machine =
        Machine { iommu: case.iommu, runs: vec![inside::CHORE.into(), name.into()], limit: Duration::from_secs(600) };
    match machine.run(|line| println!("   {line}"))? {
        true => Ok(()),
        false => Err(format!("{name}: failed, as told above")),
    }
}
