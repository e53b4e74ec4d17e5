use super::*;
use crate::testing::*;
use proptest::prelude::*;
use std::ffi::CString;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

struct Fixture {
    dir: PathBuf,
    open: std::fs::File,
}

impl Fixture {
    fn new() -> Fixture {
        static COUNT: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(0);
        let n = COUNT.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("serving-{}-{n}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o1777)).unwrap();
        Fixture { open: std::fs::File::open(&dir).unwrap(), dir }
    }

    fn serve(&self) -> Result<Serving, CannotServe> {
        serve(&CString::new(self.dir.to_str().unwrap()).unwrap(), &NOTICE)
    }

    fn owner(&self) -> Result<u32, Unserved> {
        owner(self.open.as_raw_fd(), namespace())
    }

    fn file(&self) -> PathBuf {
        self.dir.join(format!("zstackd-{}", namespace()))
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

const NOTICE: Notice<'_> = Notice {
    control: "@culvert-zstackd-test",
    serves: &[(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 8), (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0)],
};

fn namespace() -> u64 {
    std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino()
}

fn me() -> u32 {
    os::geteuid()
}

#[test]
fn a_namespace_is_served_while_somebody_does_and_he_says_what() {
    let f = Fixture::new();
    assert_eq!(f.owner(), Err(Unserved::Nobody));
    let serving = f.serve().unwrap();
    assert_eq!(f.owner(), Ok(me()));
    assert_eq!(serving.namespace(), namespace());
    assert_eq!(std::fs::metadata(f.file()).unwrap().mode() & 0o777, 0o644);
    let said = served(f.open.as_raw_fd(), namespace()).unwrap();
    assert_eq!((said.owner, said.control()), (me(), Some(NOTICE.control)));
    let directory = CString::new(f.dir.to_str().unwrap()).unwrap();
    assert_eq!(look_at(&directory, namespace()).unwrap().control(), Some(NOTICE.control));
    assert_eq!(look_at(&directory, namespace() + 1).unwrap_err(), Unserved::Nobody);
    assert_eq!(look_at(c"/nonexistent", namespace()).unwrap_err(), Unserved::Unknown);
    assert_eq!(said.serves().collect::<Vec<_>>(), NOTICE.serves);
    assert_eq!(owner(f.open.as_raw_fd(), namespace() + 1), Err(Unserved::Nobody));
    assert_eq!(owner(f.open.as_raw_fd(), 0), Err(Unserved::Unknown));

    assert!(!said.is_ready());
    serving.ready().unwrap();
    let said = served(f.open.as_raw_fd(), namespace()).unwrap();
    assert!(
        said.is_ready() && said.control() == Some(NOTICE.control) && said.serves().eq(NOTICE.serves.iter().copied())
    );

    serving.say(&Notice { control: "/run/zstackd", serves: &[] }).unwrap();
    let said = served(f.open.as_raw_fd(), namespace()).unwrap();
    assert_eq!((said.control(), said.serves().count()), (Some("/run/zstackd"), 0));

    assert_eq!(f.serve().unwrap_err(), CannotServe::Taken);
    assert_eq!(f.owner(), Ok(me()), "asking changes nothing");
    drop(serving);
    assert_eq!(f.owner(), Err(Unserved::Nobody));
    assert!(!f.file().exists());
    drop(f.serve().unwrap());
}

#[test]
fn one_that_was_killed_serves_no_more_and_gives_way() {
    let f = Fixture::new();
    let code = in_child(|| {
        core::mem::forget(f.serve());
        f.owner().is_ok() as u8
    });
    assert_eq!(code, 1);
    assert!(f.file().exists());
    assert_eq!(f.owner(), Err(Unserved::Gone));
    assert!(served(f.open.as_raw_fd(), namespace()).is_err());
    let serving = f.serve().unwrap();
    assert_eq!(f.owner(), Ok(me()));
    drop(serving);
    assert!(!f.file().exists());
}

#[test]
fn of_many_that_come_at_a_time_one_serves() {
    let f = Fixture::new();
    for round in 0..100 {
        if round % 2 == 1 {
            // As one leaves it that was killed.
            std::fs::write(f.file(), "zstackd 1\n").unwrap();
        }
        let all: Vec<_> = std::thread::scope(|s| {
            let threads: Vec<_> = (0..4).map(|_| s.spawn(|| f.serve())).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(all.iter().filter(|s| s.is_ok()).count(), 1, "round {round}: {all:?}");
        assert_eq!(f.owner(), Ok(me()));
        drop(all);
        assert_eq!(f.owner(), Err(Unserved::Nobody));
    }
}

#[test]
fn what_a_reader_locks_neither_serves_nor_keeps_anybody_from_serving() {
    let f = Fixture::new();
    for byte in [MAKING, SERVING] {
        std::fs::write(f.file(), "zstackd 1\n").unwrap();
        let stranger = std::fs::File::open(f.file()).unwrap();
        os::lock(stranger.as_raw_fd(), libc::F_RDLCK, byte, 1).unwrap();
        assert_eq!(f.owner(), Err(Unserved::Gone));
        let serving = f.serve().unwrap();
        assert_eq!(f.owner(), Ok(me()));
        drop(serving);
    }
}

#[test]
fn links_directories_and_fifos_say_nothing_and_give_way() {
    let f = Fixture::new();
    let victim = f.dir.join("victim");
    std::fs::write(&victim, b"precious").unwrap();
    std::os::unix::fs::symlink(&victim, f.file()).unwrap();
    assert_eq!(f.owner(), Err(Unserved::NotAFile));
    drop(f.serve().unwrap());
    std::fs::hard_link(&victim, f.file()).unwrap();
    drop(f.serve().unwrap());
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    let fifo = CString::new(f.file().to_str().unwrap()).unwrap();
    // SAFETY: a NUL-terminated path.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o644) }, 0);
    assert_eq!(f.owner(), Err(Unserved::NotAFile));
    drop(f.serve().unwrap());
    std::fs::create_dir(f.file()).unwrap();
    assert_eq!(f.owner(), Err(Unserved::NotAFile));
    assert_eq!(f.serve().unwrap_err(), CannotServe::Stranger(me()));
    std::fs::remove_dir(f.file()).unwrap();
}

#[test]
fn a_stranger_is_not_believed_and_root_removes_what_he_left() {
    if !is_root() {
        return;
    }
    let f = Fixture::new();
    let as_user = |uid: u32, f: &dyn Fn() -> u8| {
        in_child(|| {
            // SAFETY: plain numbers; a raw call changes this thread alone, the child's only one.
            unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
            f()
        })
    };
    // Who asks sees what he has himself, root's, and nobody else's.
    let code = as_user(4321, &|| {
        let serving = f.serve();
        let own = f.owner() == Ok(4321);
        core::mem::forget(serving);
        own as u8
    });
    assert_eq!(code, 1);
    assert_eq!(f.owner(), Err(Unserved::Stranger(4321)));
    assert_eq!(as_user(4322, &|| (f.serve().err() == Some(CannotServe::Stranger(4321))) as u8), 1);
    let serving = f.serve().unwrap();
    assert_eq!(f.owner(), Ok(0));
    assert_eq!(as_user(4321, &|| (f.owner() == Ok(0)) as u8), 1);
    assert_eq!(as_user(4321, &|| f.serve().is_err() as u8), 1);
    drop(serving);
}

#[test]
fn one_of_another_namespace_serves_that() {
    let Some(away) = Away::new() else { return };
    let f = Fixture::new();
    let there = away.run(|| (f.serve().unwrap(), namespace()));
    assert_eq!(f.owner(), Err(Unserved::Nobody));
    assert_eq!(owner(f.open.as_raw_fd(), there.1), Ok(me()));
    drop(there);
    assert_eq!(std::fs::read_dir(&f.dir).unwrap().count(), 0, "wherever it is dropped");
}

#[test]
fn what_cannot_be_said_is_refused() {
    let long = "x".repeat(108);
    for control in ["", "@", "run/z", "@a b", "/run/\n", "@\u{e4}", &format!("/{long}")] {
        assert!(write(&Notice { control, serves: &[] }).is_none(), "{control}");
    }
    let many = vec![(IpAddr::V6(Ipv6Addr::from(u128::MAX)), 128); 100];
    assert!(write(&Notice { control: "@x", serves: &many }).is_none());
    assert!(write(&Notice { control: "@x", serves: &many[..50] }).is_some());
}

#[test]
fn a_text_of_another_version_or_with_nonsense_says_less() {
    let said = |text: &str| {
        let s = Served::read(0, text.as_bytes());
        (s.control().map(str::to_owned), s.serves().count())
    };
    let control = Some("@x".to_owned());
    assert_eq!(said("zstackd 1\ncontrol @x\nserves 10.0.0.0/8\nfuture thing\n"), (control.clone(), 1));
    assert_eq!(said("zstackd 2\ncontrol @x\nserves 10.0.0.0/8\n"), (None, 0));
    assert_eq!(said(""), (None, 0));
    let odd = "serves 10.0.0.0/33\nserves ::/129\nserves 1/8\nserves /\nserves\nservesx 10.0.0.0/8\n";
    assert_eq!(said(&format!("zstackd 1\ncontrol @x\n{odd}")), (control, 0));
    assert_eq!(said("zstackd 1\ncontrol \u{1b}[31m\n"), (None, 0));
}

proptest! {
    #[test]
    fn what_is_written_is_read(v4: [u8; 4], four in 0u8..=32, v6: [u8; 16], six in 0u8..=128, name in "[@/][!-~]{1,106}") {
        let serves = [(IpAddr::from(v4), four), (IpAddr::from(v6), six)];
        let text = write(&Notice { control: &name, serves: &serves }).unwrap();
        let said = Served::read(7, &text.bytes[..text.len]);
        prop_assert_eq!(said.control(), Some(&name[..]));
        prop_assert_eq!(said.serves().collect::<Vec<_>>(), serves);
    }
}
