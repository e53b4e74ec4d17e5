//! The cases.

use super::traffic::{answers, exchange_all, ping_all, start};
use super::world::{
    HERE, IN_VLAN, PORT, VLAN, device, driver, found, function, interface, refuses, steer, steers, told, wanted, wire,
};
use super::{Outcome, good, must, sh};
use crate::{culvert, with_dpdk};
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// The address of DPDK's function.
const BY_DPDK: &str = "10.0.0.3";

/// A VF for a network namespace, one for DPDK, one for later.
const DIVIDED: &str = "up = true\nvfs = 3\n\
    [[port.vf]]\nnumber = 0\nmac = '02:00:5e:10:00:01'\nvlan = 100\nqos = 3\nspoof-check = true\ntrust = true\nmax-rate = 200\ndriver = 'kernel'\n\
    [[port.vf]]\nnumber = 1\nmac = 'auto'\nvlan = 0\ndriver = 'vfio-pci'\n\
    [[port.vf]]\nnumber = 2\nmac = '02:00:5e:10:00:03'\ndriver = 'none'\n";

pub fn divided() -> Outcome {
    wire()?;
    let before = found()?;
    let file = wanted("divided", DIVIDED)?;
    println!("{}", steers(&format!("plan {file}"))?);
    println!("{}", steers(&format!("apply {file}"))?);
    steers(&format!("verify {file}"))?;
    must(steers(&format!("plan {file}"))?.contains("as wanted"), "nothing is left to do", "there is")?;
    // What others say of it.
    let now = told()?;
    let of = &now["vfinfo_list"];
    must(of.as_array().is_some_and(|all| all.len() == 3), "there are 3 VFs", of)?;
    let first = &of[0];
    must(first["address"] == "02:00:5e:10:00:01", "VF 0 has its address", first)?;
    must(first["vlan_list"][0]["vlan"] == VLAN && first["vlan_list"][0]["qos"] == 3, "VF 0 has its VLAN", first)?;
    must(first["trust"] == true && first["spoofchk"] == true, "VF 0 is trusted, and checked", first)?;
    must(first["rate"]["max_tx"] == 200, "VF 0 has its rate", first)?;
    let drivers = (0..3).map(|vf| function(vf).map(|at| driver(&at))).collect::<Result<Vec<_>, _>>()?;
    let wanted_drivers = [Some("igbvf".to_owned()), Some("vfio-pci".to_owned()), None];
    must(drivers == wanted_drivers, "igbvf has VF 0, vfio-pci VF 1, nobody VF 2", format!("{drivers:?}"))?;

    let (first, dpdk) = (interface(&function(0)?)?, function(1)?);
    sh("ip netns add inner")?;
    sh(&format!("ip link set {first} netns inner"))?;
    sh(&format!("ip -n inner addr add {IN_VLAN}/24 dev {first}"))?;
    sh(&format!("ip -n inner link set {first} up"))?;
    let echo = |port: &str| ["--port", port, "echo", "--listen", "7"].map(str::to_owned);
    let run = |namespace: Option<&str>, port: &str| {
        let args = echo(port);
        start(namespace, &with_dpdk::zstack(), &args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let servers = [
        run(None, "kernel")?,
        run(Some("inner"), "kernel")?,
        run(None, &format!("dpdk:{dpdk},addr={BY_DPDK}/24,log=on"))?,
    ];
    let all = [HERE, IN_VLAN, BY_DPDK];
    all.iter().try_for_each(|to| answers(to))?;
    ping_all(&all, 100)?;
    exchange_all(&all.map(|to| format!("{to}:7")).each_ref().map(String::as_str), 256 << 10)?;

    refuses("undo", &["VF 0 of", "is used by"])?;
    must(driver(&function(1)?).as_deref() == Some("vfio-pci"), "DPDK's function stays", "gone")?;
    ping_all(&[BY_DPDK], 20)?;
    sh(&format!("ip -n inner link set {first} netns 1"))?;
    refuses("undo", &["opened it by vfio-pci", "VF 1"])?;
    drop(servers);
    // The addresses that this case has given go with their interfaces.
    println!("{}", steers("undo")?);
    let after = found()?;
    must(after == before, "everything is as it was found", format!("{before}\n{after}"))?;
    must(steers("status")?.contains("Nothing is applied"), "the journal is empty", "it is not")
}

/// What was there before: two VFs of somebody else's.
fn two_others() -> Outcome {
    let port = device(PORT);
    let name = interface(PORT)?;
    sh(&format!("ip link set {name} up"))?;
    fs::write(format!("{port}/sriov_numvfs"), "2").map_err(|e| format!("two VFs: {e}"))?;
    for line in [
        format!("ip link set dev {name} vf 0 mac 02:00:00:00:aa:01"),
        format!("ip link set dev {name} vf 0 vlan 7 qos 2"),
        format!("ip link set dev {name} vf 1 mac 02:00:00:00:aa:02"),
        format!("ip link set dev {name} vf 1 trust on"),
        format!("ip link set dev {name} vf 1 spoofchk off"),
    ] {
        sh(&line)?;
    }
    let second = function(1)?;
    let write = |path: String, text: &str| fs::write(&path, text).map_err(|e| format!("{path}: {e}"));
    if driver(&second).is_some() {
        write(format!("{}/driver/unbind", device(&second)), &second)?;
    }
    write(format!("{}/driver_override", device(&second)), "vfio-pci")?;
    write("/sys/bus/pci/drivers_probe".into(), &second)
}

pub fn killed() -> Outcome {
    two_others()?;
    let file = wanted("divided", DIVIDED)?;
    let before = found()?;
    println!("before: {before}");
    let steps =
        steers(&format!("plan {file}"))?.lines().filter(|line| !line.is_empty() && !line.starts_with(' ')).count();
    for at in 1..=steps {
        let mut c = Command::new(culvert());
        c.args(["steer", "apply", &file]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = c.spawn().map_err(|e| e.to_string())?;
        let told = BufReader::new(child.stdout.take().ok_or("no pipe")?).lines();
        let last = told.take(at).last().and_then(Result::ok).unwrap_or_default();
        child.kill().and_then(|()| child.wait()).map_err(|e| e.to_string())?;
        let (done, text) = steer("undo")?;
        let after = found()?;
        must(
            done && after == before,
            &format!("killed at step {at} of {steps} ({last}), and undone"),
            format!("{text}\n{before}\n{after}"),
        )?;
    }
    steers(&format!("apply {file}"))?;
    steers(&format!("verify {file}"))?;
    steers("undo")?;
    let after = found()?;
    must(after == before, "applied to the end, and undone", format!("{before}\n{after}"))
}

pub fn refused() -> Outcome {
    let name = interface(PORT)?;
    let before = found()?;
    let plan = |what: &str, text: &str, says: &[&str]| refuses(&format!("plan {}", wanted(what, text)?), says);
    plan("many", "up = true\nvfs = 8\n", &["at most 7"])?;
    plan("none", "up = true\nvfs = 1\n[[port.vf]]\nnumber = 3\nvlan = 1\n", &["numbered from 0"])?;
    plan("iommu", "up = true\nvfs = 1\n[[port.vf]]\nnumber = 0\ndriver = 'vfio-pci'\n", &["IOMMU"])?;
    plan(
        "driver",
        "up = true\nvfs = 1\n[[port.vf]]\nnumber = 0\ndriver = 'nobodys'\n",
        &["no driver nobodys", "modprobe"],
    )?;
    plan("down", "vfs = 1\n[[port.vf]]\nnumber = 0\ndriver = 'kernel'\n", &["is down"])?;
    // Its driver has no such filters, and ethtool(8) is told the same.
    let shown = sh(&format!("ethtool -k {name}"))?;
    must(shown.contains("ntuple-filters: off [fixed]"), "ethtool shows that the card has no n-tuple filters", &shown)?;
    let filter = "up = true\n[[port.flow]]\nname = 'web'\nmatch = { protocol = 'tcp', destination-ports = '80' }\nto = 'queue 1'\n";
    let (done, text) = steer(&format!("apply {}", wanted("filter", filter)?))?;
    println!("{text}");
    must(
        !done && text.contains("no n-tuple filters") && text.contains("by = \"xdp\""),
        "that it has none is told, with what helps",
        &text,
    )?;
    steers("undo")?;
    let after = found()?;
    must(after == before, "what was done until then is undone", format!("{before}\n{after}"))?;
    // Somebody makes VFs between plan and apply: the number can only be changed by way of 0.
    sh(&format!("ip link set {name} up"))?;
    fs::write(format!("{}/sriov_numvfs", device(PORT)), "2").map_err(|e| e.to_string())?;
    let busy = fs::write(format!("{}/sriov_numvfs", device(PORT)), "3");
    must(
        busy.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EBUSY)),
        "the kernel refuses 2 -> 3",
        format!("{busy:?}"),
    )?;
    steers(&format!("apply {}", wanted("three", "up = true\nvfs = 3\n")?))?;
    steers("undo")?;
    let count = fs::read_to_string(format!("{}/sriov_numvfs", device(PORT))).unwrap_or_default();
    must(count.trim() == "2", "2 -> 3 by way of 0, and back", count)?;
    good("all refusals are told");
    Ok(())
}
