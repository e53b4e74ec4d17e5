//! Every change fails in every way, and undoing restores what was there, byte for byte.

mod machine;

use machine::{Machine, ONE};
use proptest::prelude::*;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use steering::{Fault, System, Vf, VfChange};

/// What there is before.
#[derive(Clone, Debug)]
struct Before {
    autoprobe: bool,
    up: bool,
    vfs: u16,
    /// Of each function: VLAN, trust, whether it has a driver, whether one is laid down for it.
    functions: Vec<(u16, bool, bool, bool)>,
    filters: bool,
}

impl Before {
    fn machine(&self) -> Machine {
        let mut card = machine::card(ONE, "eth2");
        card.up = self.up;
        let mut machine = Machine::new(&[card, machine::card(machine::TWO, "eth3")]);
        let system = &mut machine.system;
        let port = format!("bus/pci/devices/{ONE}");
        system.write(&format!("{port}/sriov_numvfs"), &self.vfs.to_string()).expect("VFs");
        for (vf, (vlan, trust, driver, only)) in (0..self.vfs).zip(&self.functions) {
            let at = format!("bus/pci/devices/{}", system.link(&format!("{port}/virtfn{vf}")).expect("a VF"));
            system.change_vf("eth2", vf, VfChange::Vlan(*vlan, 1)).expect("a VLAN");
            system.change_vf("eth2", vf, VfChange::Trust(*trust)).expect("trust");
            if !driver && system.link(&format!("{at}/driver")).is_ok() {
                system.write(&format!("{at}/driver/unbind"), "").expect("unbound");
            }
            if *only {
                system.write(&format!("{at}/driver_override"), "igbvf").expect("an override");
            }
        }
        if !self.autoprobe {
            system.write(&format!("{port}/sriov_drivers_autoprobe"), "0").expect("off");
        }
        if self.filters {
            system.set_ntuple("eth2", true).expect("on");
            system.set_filter("eth2", 1, Some(&machine::dns())).expect("a filter");
        }
        system.changes = 0;
        machine
    }
}

fn before() -> impl Strategy<Value = Before> {
    let function = (0u16..3, any::<bool>(), any::<bool>(), any::<bool>());
    (any::<bool>(), any::<bool>(), 0u16..4, proptest::collection::vec(function, 4), any::<bool>())
        .prop_map(|(autoprobe, up, vfs, functions, filters)| Before { autoprobe, up, vfs, functions, filters })
}

fn function(number: usize) -> impl Strategy<Value = String> {
    let line = |text: &'static [&'static str]| proptest::sample::select(text);
    let mac = line(&["", "mac = 'auto'\n"]);
    let vlan = line(&["", "vlan = 0\n", "vlan = 7\nqos = 3\n"]);
    let trust =
        line(&["", "trust = true\n", "trust = false\n", "spoof-check = false\n", "max-rate = 100\nmin-rate = 10\n"]);
    let driver = line(&["", "driver = 'none'\n", "driver = 'igbvf'\n", "driver = 'vfio-pci'\n", "driver = 'kernel'\n"]);
    (mac, vlan, trust, driver).prop_map(move |(a, b, c, d)| format!("[[port.vf]]\nnumber = {number}\n{a}{b}{c}{d}"))
}

fn wanted() -> impl Strategy<Value = String> {
    let flow = proptest::sample::select(
        &[
            "",
            "[[port.flow]]\nname = 'a'\nmatch = { protocol = 'tcp', destination = '192.0.2.0/24', destination-ports = '80-83' }\nto = 'queue 1'\n",
            "[[port.flow]]\nname = 'b'\nmatch = { vlan = 5, source = '2001:db8::/32' }\nto = 'drop'\n",
            "[[port.flow]]\nname = 'c'\nmatch = { protocol = 'udp', source-ports = '1-9' }\nto = 'interface mb0'\n",
            "[[port.flow]]\nname = 'd'\nmatch = { protocol = 'udp' }\nto = 'queue 0'\nby = 'xdp'\n",
        ][..],
    );
    let functions = (function(0), function(1), function(2)).prop_map(|(a, b, c)| [a, b, c]);
    (0usize..4, functions, flow.clone(), flow).prop_map(|(vfs, functions, first, second)| {
        let mut text = format!("[[port]]\ndevice = '{ONE}'\nup = true\nvfs = {vfs}\n");
        for function in &functions[..vfs] {
            text += function;
        }
        let _ = write!(text, "{first}");
        if second != first {
            text += second;
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Applied, it is as wanted and nothing is left to do; undone, it is as found.
    #[test]
    fn there_and_back(before in before(), wanted in wanted(), then in wanted()) {
        let mut machine = before.machine();
        let found = machine.tree();
        for wanted in [wanted, then] {
            if machine.plan(&wanted).is_err() {
                // A driver that cannot be had.
                prop_assert!(!before.autoprobe && wanted.contains("kernel"), "{:?}", machine.plan(&wanted));
                continue;
            }
            machine.apply(&wanted).expect("applied");
            prop_assert_eq!(machine.differences(&wanted), Vec::<String>::new());
            prop_assert_eq!(machine.text(&wanted), "");
        }
        let undone = machine.undo().expect("undone");
        prop_assert_eq!(undone.left, Vec::<String>::new());
        prop_assert_eq!(machine.tree(), found);
        prop_assert!(machine.journal().steps().is_empty());
    }

    /// The process is killed at any change of applying, and again at any change of undoing.
    #[test]
    fn killed_anywhere(before in before(), wanted in wanted(), at in 1u32..60, again in 1u32..60, after: bool) {
        let mut machine = before.machine();
        let found = machine.tree();
        if machine.plan(&wanted).is_ok() {
            let fault = if after { Fault::DieAfter } else { Fault::DieBefore };
            machine.system.fault = Some((at, fault));
            let _ = catch_unwind(AssertUnwindSafe(|| machine.apply(&wanted)));
            machine.system.changes = 0;
            machine.system.fault = Some((again, fault));
            let _ = catch_unwind(AssertUnwindSafe(|| machine.undo()));
            machine.system.fault = None;
            let undone = machine.undo().expect("undone");
            prop_assert_eq!(undone.left, Vec::<String>::new());
            prop_assert_eq!(machine.tree(), found);
        }
    }
}

/// A plan with a step of each kind.
const RICH: &str = include_str!("../steer.toml");

fn rich() -> Machine {
    let machine =
        Before { autoprobe: true, up: false, vfs: 2, functions: vec![(7, true, true, false); 2], filters: true }
            .machine();
    machine.system.plug(&machine::card("0000:02:00.0", "eth4")).expect("a card");
    machine
}

fn all_kinds() -> String {
    RICH.to_owned()
        + "[[port]]\ndevice = '0000:02:00.0'\n[[port.flow]]\nname = 'x'\nmatch = { vlan = 9 }\nto = 'interface mb0'\n"
}

/// How many changes the rich plan makes.
fn changes() -> u32 {
    let mut machine = rich();
    machine.apply(&all_kinds()).expect("applied");
    assert_eq!(machine.differences(&all_kinds()), Vec::<String>::new());
    machine.system.changes
}

/// Each change of a plan with all kinds of steps: refused with each errno, forgotten, the last before the end, and the first after it.
#[test]
fn each_change_fails_in_each_way() {
    let changes = changes();
    assert!(changes > 20, "{changes}");
    let errnos = [
        nix::libc::EBUSY,
        nix::libc::ERANGE,
        nix::libc::EINVAL,
        nix::libc::ENODEV,
        nix::libc::EOPNOTSUPP,
        nix::libc::EPERM,
    ];
    let faults = errnos.map(Fault::Refuse).into_iter().chain([Fault::Forget, Fault::DieBefore, Fault::DieAfter]);
    let mut said = std::collections::BTreeSet::new();
    let mut again = 0;
    for fault in faults {
        for at in 1..=changes {
            let mut machine = rich();
            let found = machine.tree();
            machine.system.fault = Some((at, fault));
            let applied = catch_unwind(AssertUnwindSafe(|| machine.apply(&all_kinds())));
            match (fault, applied) {
                (Fault::DieBefore | Fault::DieAfter, Err(_)) => {}
                (Fault::Refuse(_), Ok(Err(trouble))) => {
                    assert!(!trouble.remedy.is_empty());
                    said.insert(trouble.to_string());
                }
                (Fault::Forget, Ok(Err(trouble))) => {
                    assert!(trouble.what.contains("accepted") || trouble.what.contains("wanted"), "{trouble}")
                }
                // A rate that is refused while the link pauses is tried again.
                (Fault::Refuse(nix::libc::EINVAL), Ok(Ok(_))) => again += 1,
                // Nothing can be read back of a reset, nor of a driver that need not start.
                (Fault::Forget, Ok(Ok(_))) => {}
                (fault, applied) => panic!("{fault:?} at {at}: {applied:?}"),
            }
            machine.system.fault = None;
            let undone = machine.undo().unwrap_or_else(|e| panic!("{fault:?} at {at}: {e}"));
            assert_eq!(undone.left, Vec::<String>::new(), "{fault:?} at {at}");
            assert_eq!(machine.tree(), found, "{fault:?} at {at}");
        }
    }
    assert_eq!(again, 1, "the plan has one rate");
    assert!(said.len() > 60, "{}: {said:#?}", said.len());
    let text: Vec<_> = said.into_iter().collect();
    let text = text.join("\n");
    for remedy in [
        "by way of 0",
        "at most 7 VFs",
        "takes root",
        "leave it out of the file",
        "name the driver",
        "`vfs` large enough",
    ] {
        assert!(text.contains(remedy), "{remedy}\n{text}");
    }
}

/// Also undoing can be killed at each change, before and after it.
#[test]
fn undoing_is_killed_at_each_change() {
    let count = {
        let mut machine = rich();
        machine.apply(&all_kinds()).expect("applied");
        machine.system.changes = 0;
        machine.undo().expect("undone");
        machine.system.changes
    };
    assert!(count > 15, "{count}");
    for fault in [Fault::DieBefore, Fault::DieAfter] {
        for at in 1..=count {
            let mut machine = rich();
            let found = machine.tree();
            machine.apply(&all_kinds()).expect("applied");
            machine.system.changes = 0;
            machine.system.fault = Some((at, fault));
            catch_unwind(AssertUnwindSafe(|| machine.undo())).expect_err("killed");
            machine.system.fault = None;
            let undone = machine.undo().expect("undone");
            assert_eq!(undone.left, Vec::<String>::new(), "{fault:?} at {at}");
            assert_eq!(machine.tree(), found, "{fault:?} at {at}");
        }
    }
}

/// A file that a killed process has left half-written is not the journal.
#[test]
fn a_torn_journal_is_none() {
    let mut machine = rich();
    let found = machine.tree();
    machine.apply(&all_kinds()).expect("applied");
    std::fs::write(machine.state().join("journal.next"), "{\"version\":1,\"st").expect("torn");
    machine.undo().expect("undone");
    assert_eq!(machine.tree(), found);
    std::fs::write(machine.state().join("journal.json"), "{\"version\":2,\"complete\":true,\"steps\":[]}")
        .expect("another");
    let trouble = steering::Journal::open(&machine.state()).err().expect("another version's");
    assert!(trouble.what.contains("version 2"), "{trouble}");
}

/// Two at once would write into each other's journal.
#[test]
fn only_one_works_at_a_time() {
    let machine = rich();
    let first = machine.journal();
    let trouble = steering::Journal::open(&machine.state()).err().expect("one is at work");
    assert!(trouble.what.contains("another"), "{trouble}");
    drop(first);
    machine.journal();
    let _: Vec<Vf> = machine.system.vfs("eth2").expect("VFs");
}
