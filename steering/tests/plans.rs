//! Plans, word by word, and what stands against them.

mod machine;

use machine::{Machine, ONE, TWO, card};
use std::fs;
use steering::{Card, Fault, System, VfChange};

/// The example beside the crate, for a card with two ports that has no VFs yet.
#[test]
fn a_card_with_two_ports() {
    let machine = Machine::two_ports();
    let expected = fs::read_to_string("tests/plans/example.txt").expect("the text");
    let found = machine.text(include_str!("../steer.toml"));
    assert_eq!(found, expected, "{found}");
}

/// From two VFs that somebody has made to three: by way of none, and all that the two had is noted.
#[test]
fn another_number_of_vfs() {
    let mut machine = Machine::two_ports();
    machine.system.write(&format!("bus/pci/devices/{ONE}/sriov_numvfs"), "2").expect("two VFs");
    machine.system.change_vf("eth2", 1, VfChange::Vlan(7, 2)).expect("a VLAN");
    let expected = fs::read_to_string("tests/plans/another_number.txt").expect("the text");
    let found =
        machine.text("[[port]]\ndevice = '0000:01:00.0'\nvfs = 3\n[[port.vf]]\nnumber = 2\ndriver = 'vfio-pci'\n");
    assert_eq!(found, expected, "{found}");
}

/// A VF that stays, and gets another address and another driver.
#[test]
fn another_driver() {
    let mut machine = Machine::two_ports();
    machine.system.write(&format!("bus/pci/devices/{ONE}/sriov_drivers_autoprobe"), "1").expect("the default");
    machine.system.write(&format!("bus/pci/devices/{ONE}/sriov_numvfs"), "1").expect("a VF");
    let expected = fs::read_to_string("tests/plans/another_driver.txt").expect("the text");
    let found = machine.text(
        "[[port]]\ninterface = 'eth2'\n[[port.vf]]\nnumber = 0\nmac = '02:00:00:00:00:01'\ndriver = 'vfio-pci'\n",
    );
    assert_eq!(found, expected, "{found}");
}

#[test]
fn nothing_is_to_be_done_twice() {
    let mut machine = Machine::two_ports();
    let text = include_str!("../steer.toml");
    assert!(!machine.differences(text).is_empty());
    machine.apply(text).expect("applied");
    assert_eq!(machine.differences(text), Vec::<String>::new());
    assert_eq!(machine.text(text), "");
}

const VFIO: &str = "[[port]]\ndevice = '0000:01:00.0'\nvfs = 1\n[[port.vf]]\nnumber = 0\ndriver = 'vfio-pci'\n";
const KERNEL: &str = "[[port]]\ndevice = '0000:01:00.0'\nvfs = 1\n[[port.vf]]\nnumber = 0\ndriver = 'kernel'\n";
const FLOW: &str = "[[port]]\ndevice = '0000:01:00.0'\n[[port.flow]]\nname = 'f'\nmatch = { protocol = 'tcp', destination-ports = '80' }\n";

#[track_caller]
fn has(text: &str, parts: &[&str]) {
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
}

#[test]
fn what_can_be_seen_to_be_impossible() {
    let with = |change: &dyn Fn(&mut Card<'_>)| {
        let mut card = card(ONE, "eth2");
        change(&mut card);
        Machine::new(&[card])
    };
    let machine = with(&|c| c.iommu = false);
    has(&machine.troubles(VFIO), &["needs an IOMMU", "intel_iommu=on"]);
    let machine = with(&|c| c.most = 0);
    has(&machine.troubles(VFIO), &["makes no VFs", "BIOS"]);
    let machine = with(&|c| c.up = false);
    has(&machine.troubles(KERNEL), &["is down", "up = true"]);
    assert!(machine.plan(&KERNEL.replace("vfs = 1", "vfs = 1\nup = true")).is_ok());
    let machine = with(&|_| {});
    has(&machine.troubles("[[port]]\ndevice = '0000:01:00.0'\nvfs = 8\n"), &["at most 7", "lower `vfs`"]);
    has(&machine.troubles("[[port]]\ndevice = '0000:01:00.0'\n[[port.vf]]\nnumber = 0\nvlan = 1\n"), &["no VF 0"]);
    has(&machine.troubles("[[port]]\ndevice = '0000:02:00.0'\n"), &["no device 0000:02:00.0"]);
    has(&machine.troubles("[[port]]\ninterface = 'eth9'\n"), &["no interface eth9"]);
    has(&machine.troubles(&VFIO.replace("vfio-pci", "uio_pci_generic")), &["no driver", "modprobe uio_pci_generic"]);
    let mac = VFIO.replace("driver = 'vfio-pci'", "mac = '00:1b:21:00:2e:30'");
    has(&machine.troubles(&mac), &["0000:01:00.0 has it", "auto"]);
    let machine = with(&|c| c.ntuple = false);
    has(&machine.troubles(&format!("{FLOW}to = 'queue 1'\n")), &["no n-tuple filters", "xdp"]);
}

/// The names of two ports have been exchanged since the file was written.
#[test]
fn swapped_names() {
    let machine = Machine::new(&[card(ONE, "eth3"), card(TWO, "eth2")]);
    let found = machine.troubles("[[port]]\ndevice = '0000:01:00.0'\ninterface = 'eth2'\nvfs = 1\n");
    has(&found, &["the interface of 0000:01:00.0 is eth3, not eth2, and eth2 is at 0000:01:00.1", "swap"]);
}

#[test]
fn a_vf_in_use_is_not_taken_away() {
    let mut machine = Machine::two_ports();
    machine.apply(KERNEL).expect("applied");
    machine.system.set_up("eth2v0", true).expect("up");
    let three = KERNEL.replace("vfs = 1", "vfs = 3");
    has(&machine.troubles(&three), &["VF 0 is used by its interface eth2v0, which is up"]);
    has(&machine.troubles(VFIO), &["VF 0 of 0000:01:00.0 is used by its interface eth2v0"]);
    let trouble = machine.undo().expect_err("in use");
    has(&trouble.to_string(), &["eth2v0, which is up", "undo again"]);
    machine.system.set_up("eth2v0", false).expect("down");
    machine.undo().expect("undone");
    // One that a process has opened by vfio.
    machine.apply(VFIO).expect("applied");
    machine.system.write("bus/pci/devices/0000:01:10.0/enable", "1").expect("opened");
    has(&machine.troubles(&three), &["a process that has opened it by vfio-pci"]);
    has(&machine.undo().expect_err("in use").to_string(), &["vfio-pci"]);
    // One whose interface was moved into a container.
    let mut machine = Machine::two_ports();
    machine.apply(KERNEL).expect("applied");
    fs::remove_dir(machine.root().join("sys/bus/pci/devices/0000:01:10.0/net/eth2v0")).expect("moved");
    has(&machine.troubles(&three), &["another network namespace"]);
}

/// What the kernel accepts and does not do.
#[test]
fn a_driver_that_does_not_start() {
    let mut machine = Machine::two_ports();
    let steps = machine.plan(VFIO).expect("a plan").len() as u32;
    // The last change is that of the driver.
    let changes = steps;
    machine.system.fault = Some((changes, Fault::Forget));
    let trouble = machine.apply(VFIO).expect_err("not taken");
    has(&trouble.to_string(), &["driver: vfio-pci was accepted, but it is \"none\"", "dmesg"]);
}

#[test]
fn drivers_that_do_not_start_by_themselves() {
    let mut machine = Machine::two_ports();
    machine.system.write(&format!("bus/pci/devices/{ONE}/sriov_drivers_autoprobe"), "0").expect("off");
    has(&machine.troubles(KERNEL), &["drivers do not start there by themselves", "name the driver"]);
    let named = KERNEL.replace("'kernel'", "'igbvf'");
    machine.apply(&named).expect("an override is enough");
    assert_eq!(machine.differences(&named), Vec::<String>::new());
}

/// A card refuses a filter, or takes it and does not have it.
#[test]
fn a_filter_that_is_not_there_afterwards() {
    for (fault, said) in [
        (Fault::Forget, "present was accepted, but it is \"absent\""),
        (Fault::Refuse(nix::errno::Errno::EOPNOTSUPP as i32), "present was refused: Operation not supported"),
        (Fault::Refuse(nix::errno::Errno::ENOSPC as i32), "no room for more filters"),
    ] {
        let mut machine = Machine::two_ports();
        machine.system.fault = Some((2, fault));
        let trouble = machine.apply(&format!("{FLOW}to = 'drop'\n")).expect_err("not there");
        has(&trouble.to_string(), &[said, "xdp"]);
    }
}

#[test]
fn what_was_not_asked_for_stays() {
    let mut machine = Machine::two_ports();
    machine.system.set_ntuple("eth2", true).expect("on");
    machine.system.set_filter("eth2", 0, Some(&machine::dns())).expect("a filter");
    let before = machine.tree();
    let text = format!("{FLOW}to = 'queue 1'\n");
    machine.apply(&text).expect("applied");
    // The other's filter has its place, ours are behind it.
    let ports = |machine: &Machine| -> Vec<(u32, u8)> {
        let all = machine.system.filters("eth2").expect("filters");
        // The lower byte of the port, over either version of IP.
        all.iter().map(|(at, f)| (*at, f.value[11].max(f.value[35]))).collect()
    };
    assert_eq!(ports(&machine), [(0, 53), (1, 80), (2, 80)]);
    // What an earlier file wanted goes when it is not wanted any more.
    machine.apply(&text.replace("'80'", "'81'")).expect("applied");
    assert_eq!(ports(&machine), [(0, 53), (3, 81), (4, 81)]);
    machine.undo().expect("undone");
    assert_eq!(machine.tree(), before);
}

/// What somebody has changed since is his.
#[test]
fn another_s_change_is_not_undone() {
    let mut machine = Machine::two_ports();
    machine.system.write(&format!("bus/pci/devices/{ONE}/sriov_numvfs"), "1").expect("a VF");
    let text = "[[port]]\ndevice = '0000:01:00.0'\n[[port.vf]]\nnumber = 0\ntrust = true\nmax-rate = 100\n";
    machine.apply(text).expect("applied");
    machine.system.change_vf("eth2", 0, VfChange::Rate(0, 50)).expect("changed");
    assert_eq!(machine.differences(text), ["0000:01:00.0 VF 0: Mbit/s, least and most: wanted 0-100, is 0-50"]);
    let undone = machine.undo().expect("undone");
    assert_eq!((undone.restored.len(), undone.left.len()), (1, 1), "{undone:?}");
    has(&undone.left[0], &["it was \"0-0\", became \"0-100\", and somebody has made it \"0-50\" since"]);
    assert!(!machine.system.vfs("eth2").expect("VFs")[0].trust);
}

/// The address is the same each time, this machine's own, and nobody else's.
#[test]
fn addresses_are_remembered_and_unique() {
    let text = "[[port]]\ndevice = '0000:01:00.0'\nvfs = 3\n".to_owned()
        + &(0..3).map(|n| format!("[[port.vf]]\nnumber = {n}\nmac = 'auto'\n")).collect::<String>();
    let macs = || {
        let mut machine = Machine::two_ports();
        machine.apply(&text).expect("applied");
        machine.system.vfs("eth2").expect("VFs").iter().map(|vf| vf.mac).collect::<Vec<_>>()
    };
    let found = macs();
    assert_eq!(found, macs());
    assert!(found.iter().all(|mac| mac.0[0] == 2), "{found:?}");
    assert!(found[0] != found[1] && found[1] != found[2] && found[0] != found[2], "{found:?}");
    // One that another already has is not chosen.
    let mut machine = Machine::two_ports();
    machine
        .apply(&format!("[[port]]\ndevice = '{TWO}'\nvfs = 1\n[[port.vf]]\nnumber = 0\nmac = '{}'\n", found[0]))
        .expect("applied");
    machine.apply(&text).expect("applied");
    assert_ne!(machine.system.vfs("eth2").expect("VFs")[0].mac, found[0]);
}

/// A card's link pauses when its VFs are made, and igb refuses a rate meanwhile (found on QEMU's): it is waited for.
#[test]
fn a_rate_waits_for_the_link() {
    let mut machine = Machine::two_ports();
    let found = machine.tree();
    let wanted = format!("[[port]]\ndevice = '{ONE}'\nup = true\nvfs = 1\n[[port.vf]]\nnumber = 0\nmax-rate = 200\n");
    machine.apply(&wanted).expect("applied");
    assert_eq!(machine.differences(&wanted), Vec::<String>::new());
    machine.undo().expect("undone");
    assert_eq!(machine.tree(), found);
}
