//! `culvert steer`'s plans with the program, on a veth. As root.

mod wire;

use culvert_split::{OBJECT, Split, rules};
use libbpf_rs::{MapCore, ObjectBuilder, Xdp, XdpFlags};
use std::os::fd::AsFd;
use std::path::Path;
use steering::{Config, Journal, Linux, Ntuple, System};
use wire::{HERE4, Socket, THERE4, Wire, is_root, own_sys};

/// The commands are found beside the program that runs them: cargo puts tests one directory deeper.
fn beside() {
    let own = std::env::current_exe().expect("a path");
    let link = own.parent().expect("a directory").join("culvert-split");
    let binary = Path::new(env!("CARGO_BIN_EXE_culvert-split"));
    if std::fs::read_link(&link).is_ok_and(|to| to == binary) {
        return;
    }
    // Another test process may do the same.
    let _ = std::fs::remove_file(&link);
    let _ = std::os::unix::fs::symlink(binary, &link);
}

const WANTED: &str = "[[port]]\ninterface = 'here'\n\
    [[port.flow]]\nname = 'first'\nmatch = { protocol = 'udp', destination-ports = '7001-7009' }\nto = 'queues'\n\
    [[port.flow]]\nname = 'second'\nmatch = { source = '10.9.1.0/24' }\nto = 'drop'\nby = 'xdp'\n";

/// Planned, applied, verified; with other flows applied again; undone, and nothing of it is left.
#[test]
fn an_interface_is_divided_and_put_together_again() {
    if !is_root() {
        return;
    }
    beside();
    let wire = Wire::new();
    own_sys();
    let directory = std::env::temp_dir().join(format!("culvert-steer-{}", std::process::id()));
    let mut system = Linux::new();
    let found = system.vfs("here").expect("asked");
    assert_eq!(found, []);
    let mut journal = Journal::open(&directory).expect("a journal");
    let mut apply = |system: &mut Linux, text: &str| {
        let config = Config::parse(text).expect("a file");
        let steps = steering::plan(&config, system, &journal.made()).unwrap_or_else(|e| panic!("{e:?}"));
        steering::apply(system, &mut journal, &steps, &mut |_| {}).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(steering::verify(&config, system).expect("verified"), []);
        assert_eq!(steering::plan(&config, system, &journal.made()).expect("a plan"), []);
        steps.len()
    };
    // The program, two rules for both versions of IP, one for one.
    assert_eq!(apply(&mut system, WANTED), 4);
    let split = Split::on("here").expect("asked").expect("there");
    let shown: Vec<_> = split.rules().expect("its rules").values().map(rules::text).collect();
    assert_eq!(
        shown,
        [
            "family ipv4 protocol udp destination-ports 7001-7009 to queues",
            "family ipv6 protocol udp destination-ports 7001-7009 to queues",
            "family ipv4 source 10.9.1.0/24 to drop",
        ]
    );
    let socket = Socket::new("here", 0, &split);
    let send = |to: u16| {
        wire.there(move || {
            let sender = std::net::UdpSocket::bind((THERE4, 0)).expect("a socket");
            sender.send_to(b"hello", (HERE4, to)).expect("sent");
        });
    };
    send(7005);
    assert_eq!(socket.take(1).len(), 1);
    // Another file: its flows, behind the others, and then not the others.
    assert_eq!(apply(&mut system, &WANTED.replace("7001-7009", "7002")), 6);
    send(7005);
    send(7002);
    let frames = socket.take(1);
    assert!(frames.len() == 1 && frames[0][14 + 20 + 2..][..2] == 7002_u16.to_be_bytes(), "{frames:?}");
    let undone = steering::undo(&mut system, &mut journal, &mut |_| {}).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(undone.left, Vec::<String>::new());
    assert!(Split::on("here").expect("asked").is_none());
    drop(journal);
    std::fs::remove_dir_all(&directory).expect("removed");
}

/// An interface is taken down, and is up again when that is undone.
#[test]
fn an_interface_goes_down_and_up_again() {
    if !is_root() {
        return;
    }
    let _wire = Wire::new();
    own_sys();
    let directory = std::env::temp_dir().join(format!("culvert-steer-up-{}", std::process::id()));
    let (mut system, mut journal) = (Linux::new(), Journal::open(&directory).expect("a journal"));
    let flags = |system: &Linux| system.read("class/net/here/flags").expect("its flags");
    let found = flags(&system);
    let config = Config::parse("[[port]]\ninterface = 'here'\nup = false\n").expect("a file");
    let steps = steering::plan(&config, &system, &[]).unwrap_or_else(|e| panic!("{e:?}"));
    steering::apply(&mut system, &mut journal, &steps, &mut |_| {}).unwrap_or_else(|e| panic!("{e}"));
    assert_ne!(flags(&system), found);
    let undone = steering::undo(&mut system, &mut journal, &mut |_| {}).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((undone.restored.len(), flags(&system)), (1, found));
    // What a veth does not have is said, and nothing is done.
    let config = Config::parse("[[port]]\ninterface = 'here'\nvfs = 1\n").expect("a file");
    let troubles = steering::plan(&config, &system, &[]).expect_err("it has none");
    assert!(troubles[0].what.contains("makes no VFs"), "{troubles:?}");
    let config = Config::parse(
        "[[port]]\ninterface = 'here'\n[[port.flow]]\nname = 'f'\nmatch = { protocol = 'tcp' }\nto = 'drop'\n",
    );
    let troubles = steering::plan(&config.expect("a file"), &system, &[]).expect_err("it has none");
    assert!(troubles[0].what.contains("no n-tuple filters"), "{troubles:?}");
    // The kernel's own refusals.
    let refused = Some(nix::errno::Errno::EOPNOTSUPP as i32);
    assert_eq!(system.ntuple("here").expect("asked"), Ntuple::None);
    assert!(system.filters("here").expect("asked").is_empty());
    assert_eq!(system.set_ntuple("here", true).expect_err("none").raw_os_error(), refused);
    let packets = steering::Match { protocol: Some(steering::Protocol::Tcp), ..Default::default() };
    for rule in steering::Rule::of(&packets, &steering::Target::Drop, steering::Backend::Ntuple) {
        assert_eq!(system.set_filter("here", 0, Some(&rule.filter())).expect_err("none").raw_os_error(), refused);
    }
    assert_eq!(system.set_filter("here", 0, None).expect_err("none").raw_os_error(), refused);
    let unknown = Some(nix::errno::Errno::ENODEV as i32);
    assert_eq!(system.ntuple("nowhere").expect_err("no such interface").raw_os_error(), unknown);
    assert_eq!(system.filters("nowhere").expect_err("no such interface").raw_os_error(), unknown);
    drop(journal);
    std::fs::remove_dir_all(&directory).expect("removed");
}

/// A program that DPDK's net_af_xdp has loaded from the file, with its socket in its map, takes rules as our own.
#[test]
fn the_program_of_dpdk_takes_rules() {
    if !is_root() {
        return;
    }
    let wire = Wire::new();
    let object = ObjectBuilder::default().open_memory(OBJECT).expect("the object").load().expect("loaded");
    let program = object.progs().next().expect("a program");
    let index = nix::net::if_::if_nametoindex("here").expect("an interface");
    Xdp::new(program.as_fd()).attach(index as i32, XdpFlags::UPDATE_IF_NOEXIST).expect("attached");
    let split = Split::on("here").expect("asked").expect("it is ours");
    let socket = Socket::new("here", 0, &split);
    // DPDK enters its own by this name.
    let sockets = object.maps().find(|map| map.name() == "xsks_map").expect("the map");
    assert!(sockets.info().expect("asked").info.id == split.sockets().expect("the map").info().expect("asked").info.id);
    let words: Vec<String> = "protocol udp destination-ports 7001 to queues".split(' ').map(str::to_owned).collect();
    split.change(&[(0, rules::parse(&words).expect("a rule"))].into()).expect("changed");
    wire.there(|| {
        let sender = std::net::UdpSocket::bind((THERE4, 0)).expect("a socket");
        sender.send_to(b"hello", (HERE4, 7001)).expect("sent");
    });
    assert_eq!(socket.take(1).len(), 1);
    Split::on("here").expect("asked").expect("there").detach().expect("detached");
}
