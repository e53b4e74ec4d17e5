use super::*;
use crate::testing::*;
use crate::tuple::mapped;
use proptest::prelude::*;
use std::ffi::CString;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// A directory like /dev/shm, and a registry in it.
struct Fixture {
    dir: PathBuf,
    registry: Registry,
}

impl Fixture {
    fn new() -> Fixture {
        static COUNT: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("rendezvous-{}-{n}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o1777)).unwrap();
        let f = Fixture { registry: Registry::new(place), dir };
        f.registry.configure(&c(&f.dir), true).unwrap();
        f
    }

    fn another(&self) -> Registry {
        let r = Registry::new(place);
        r.configure(&c(&self.dir), true).unwrap();
        r
    }

    fn file(&self, uid: u32) -> PathBuf {
        self.dir.join(format!("culvert-{uid}"))
    }

    fn own_file(&self) -> PathBuf {
        self.file(me())
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.registry.forget();
        self.registry.directory.drop_kept();
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

fn c(path: &Path) -> CString {
    CString::new(path.to_str().unwrap()).unwrap()
}

fn me() -> u32 {
    os::geteuid()
}

fn tuple(sport: u16) -> Tuple {
    Tuple { src: mapped([127, 0, 0, 1]), dst: mapped([127, 0, 0, 1]), sport, dport: 80, scope: 0 }
}

/// `n` different tuples that share a bucket.
fn crowded(n: usize) -> Vec<Tuple> {
    let bucket = bucket_at(&tuple(1));
    let all = (1..100).flat_map(|dport| (1..=u16::MAX).map(move |sport| Tuple { dport, ..tuple(sport) }));
    all.filter(|t| bucket_at(t) == bucket).take(n).collect()
}

#[test]
fn what_is_published_is_found_until_withdrawn() {
    let f = Fixture::new();
    let reader = f.another();
    let t = tuple(4000);
    assert_eq!(reader.lookup(me(), &t, 7), Ok(None), "no file yet");
    assert_eq!(f.registry.withdraw(&t, 7), Ok(()));
    assert!(!f.own_file().exists(), "withdrawing creates nothing");

    f.registry.publish(&t, 7, 99).unwrap();
    for r in [&reader, &f.registry] {
        assert_eq!(r.lookup(me(), &t, 7), Ok(Some(99)));
        assert_eq!(r.lookup(me(), &t, 8), Ok(None), "another socket");
        assert_eq!(r.lookup(me(), &t.reversed(), 7), Ok(None), "the other end");
        assert_eq!(r.lookup(me(), &tuple(4001), 7), Ok(None));
    }
    f.registry.publish(&t, 8, 100).unwrap();
    assert_eq!(reader.lookup(me(), &t, 7), Ok(None), "the ports were used again");
    assert_eq!(reader.lookup(me(), &t, 8), Ok(Some(100)));

    f.registry.withdraw(&t, 7).unwrap();
    assert_eq!(reader.lookup(me(), &t, 8), Ok(Some(100)), "a late withdrawal hits nobody else");
    f.registry.withdraw(&t, 8).unwrap();
    assert_eq!(reader.lookup(me(), &t, 8), Ok(None));
}

#[test]
fn the_file_is_sparse_readable_and_named_after_user_and_namespace() {
    let f = Fixture::new();
    let code = in_child(|| {
        // SAFETY: no memory involved; the child's own umask.
        unsafe { libc::umask(0o077) };
        f.registry.publish(&tuple(1), 1, 1).is_ok() as u8
    });
    assert_eq!(code, 1);
    let meta = std::fs::metadata(f.own_file()).unwrap();
    assert_eq!((meta.len(), meta.mode() & 0o777, meta.uid()), (WHOLE, 0o644, me()));
    assert!(meta.blocks() * 512 < LEN / 4, "{}", meta.blocks());

    let per_namespace = Registry::new(place);
    per_namespace.configure(&c(&f.dir), false).unwrap();
    per_namespace.publish(&tuple(1), 1, 1).unwrap();
    let inode = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
    assert!(f.dir.join(format!("culvert-{}-{inode}", me())).is_file());
    per_namespace.forget();
    per_namespace.directory.drop_kept();
}

#[test]
fn a_registry_that_was_opened_elsewhere_is_the_one_at_home() {
    let Some(away) = Away::new() else { return };
    let f = Fixture::new();
    let registry = Registry::new(place);
    away.run(|| registry.configure(&c(&f.dir), false).unwrap());
    registry.come_home();
    away.run(|| registry.publish(&tuple(1), 1, 1).unwrap());
    let inode = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
    assert!(f.dir.join(format!("culvert-{}-{inode}", me())).is_file());
    registry.forget();
    registry.directory.drop_kept();
}

#[test]
fn names_are_decimal_and_fit() {
    assert_eq!(Name::new(0, None).as_cstr(), c"culvert-0");
    assert_eq!(Name::new(1000, Some(4026531840)).as_cstr(), c"culvert-1000-4026531840");
    let longest = Name::new(u32::MAX, Some(u64::MAX));
    assert_eq!(longest.as_cstr(), c"culvert-4294967295-18446744073709551615");
}

#[test]
fn a_full_bucket_gives_way_in_turn() {
    let f = Fixture::new();
    let tuples = crowded(WAYS + 2);
    assert_eq!(tuples.len(), WAYS + 2);
    let present = || -> Vec<bool> {
        (0..tuples.len())
            .map(|i| f.registry.lookup(me(), &tuples[i], i as u64).unwrap() == Some(i as u64 + 50))
            .collect()
    };
    for (i, t) in tuples.iter().enumerate() {
        f.registry.publish(t, i as u64, i as u64 + 50).unwrap();
        assert!(present()[i], "the newest is always there");
    }
    assert_eq!(present(), [false, false, true, true, true, true], "the two oldest went");
    f.registry.withdraw(&tuples[3], 3).unwrap();
    f.registry.publish(&tuples[0], 0, 50).unwrap();
    assert_eq!(present(), [true, false, true, false, true, true], "a gap is filled first");
}

#[test]
fn torn_and_foreign_entries_are_empty() {
    let f = Fixture::new();
    let t = tuple(5);
    f.registry.publish(&t, 1, 2).unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(f.own_file()).unwrap();
    use std::os::unix::fs::FileExt;
    let at = bucket_at(&t);
    let mut good = [0; ENTRY];
    file.read_exact_at(&mut good, at).unwrap();
    assert_eq!(decode(&good), Some(Entry { tuple: t, cookie: 1, mailbox: 2, version: VERSION }));

    for i in 0..ENTRY {
        let mut torn = good;
        torn[i] ^= 0x10;
        file.write_all_at(&torn, at).unwrap();
        assert_eq!(f.registry.lookup(me(), &t, 1), Ok(None), "byte {i}");
    }
    // The first half of one entry before the second half of another.
    let mut mixed = encode(&Entry { tuple: tuple(6), cookie: 3, mailbox: 4, version: VERSION });
    mixed[..32].copy_from_slice(&good[..32]);
    file.write_all_at(&mixed, at).unwrap();
    assert_eq!(f.registry.lookup(me(), &t, 1), Ok(None));
    // A sound entry of another version.
    let mut newer = good;
    os::put(&mut newer, 56, &(VERSION + 1).to_ne_bytes());
    let sum = checksum(&newer);
    os::put(&mut newer, 60, &sum.to_ne_bytes());
    file.write_all_at(&newer, at).unwrap();
    assert_eq!(f.registry.lookup(me(), &t, 1), Err(Error::OtherVersion));
    assert_eq!(f.registry.lookup(me(), &t, 2), Ok(None), "of another connection");
    f.registry.publish(&t, 1, 2).unwrap();
    assert_eq!(f.registry.lookup(me(), &t, 1), Ok(Some(2)), "garbage is overwritten");
}

proptest! {
    #[test]
    fn random_bytes_are_no_entry(b in any::<[u8; 32]>(), c in any::<[u8; 32]>()) {
        let mut bytes = [0; ENTRY];
        bytes[..32].copy_from_slice(&b);
        bytes[32..].copy_from_slice(&c);
        os::put(&mut bytes, 56, &VERSION.to_ne_bytes());
        prop_assert_eq!(decode(&bytes), None);
    }

    #[test]
    fn entries_keep_every_field(src: [u8; 16], dst: [u8; 16], sport: u16, dport: u16, scope: u32, cookie: u64, mailbox: u64, version in 1..=u32::MAX) {
        let e = Entry { tuple: Tuple { src, dst, sport, dport, scope }, cookie, mailbox, version };
        prop_assert_eq!(decode(&encode(&e)), Some(e));
    }
}

#[test]
fn a_truncated_file_loses_entries_and_recovers() {
    let f = Fixture::new();
    let reader = f.another();
    let t = tuple(9);
    f.registry.publish(&t, 1, 2).unwrap();
    assert_eq!(reader.lookup(me(), &t, 1), Ok(Some(2)));
    let file = std::fs::OpenOptions::new().write(true).open(f.own_file()).unwrap();
    file.set_len(0).unwrap();
    assert_eq!(reader.lookup(me(), &t, 1), Ok(None));
    assert_eq!(f.registry.lookup(me(), &t, 1), Ok(None));
    f.registry.publish(&t, 1, 3).unwrap();
    assert_eq!(reader.lookup(me(), &t, 1), Ok(Some(3)));
    // Who opens it anew accepts the odd length and mends it.
    let third = f.another();
    third.publish(&tuple(10), 1, 4).unwrap();
    assert_eq!(std::fs::metadata(f.own_file()).unwrap().len(), WHOLE);
}

#[test]
fn a_removed_file_is_made_anew() {
    let f = Fixture::new();
    let reader = f.another();
    f.registry.publish(&tuple(1), 1, 1).unwrap();
    assert_eq!(reader.lookup(me(), &tuple(1), 1), Ok(Some(1)));
    std::fs::remove_file(f.own_file()).unwrap();
    f.registry.publish(&tuple(2), 2, 2).unwrap();
    assert!(f.own_file().exists());
    assert_eq!(reader.lookup(me(), &tuple(2), 2), Ok(Some(2)), "the reader notices too");
}

#[test]
fn links_fifos_directories_and_second_names_are_refused() {
    let f = Fixture::new();
    let victim = f.dir.join("victim");
    type Attack = fn(&Path, &Path);
    let attacks: [(&str, Attack); 5] = [
        ("symlink", |victim, name| symlink(victim, name).unwrap()),
        ("dangling", |_, name| symlink("nowhere", name).unwrap()),
        ("hard link", |victim, name| std::fs::hard_link(victim, name).unwrap()),
        ("directory", |_, name| std::fs::create_dir(name).unwrap()),
        ("fifo", |_, name| {
            // SAFETY: a NUL-terminated path.
            assert_eq!(unsafe { libc::mkfifo(c(name).as_ptr(), 0o644) }, 0);
        }),
    ];
    for (what, attack) in attacks {
        std::fs::write(&victim, b"precious").unwrap();
        attack(&victim, &f.own_file());
        assert_eq!(f.registry.publish(&tuple(1), 1, 1), Err(Error::NotATable), "{what}");
        assert_eq!(f.registry.withdraw(&tuple(1), 1), Err(Error::NotATable), "{what}");
        assert_eq!(f.registry.lookup(me(), &tuple(1), 1), Err(Error::NotATable), "{what}");
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious", "{what}");
        assert!(!f.dir.join("nowhere").exists());
        let name = f.own_file();
        if name.is_dir() && !name.is_symlink() {
            std::fs::remove_dir(name).unwrap()
        } else {
            std::fs::remove_file(name).unwrap()
        }
    }
    std::fs::write(f.own_file(), b"not a table").unwrap();
    assert_eq!(f.registry.publish(&tuple(1), 1, 1), Err(Error::NotATable));
    assert_eq!(std::fs::read(f.own_file()).unwrap(), b"not a table");
}

#[test]
fn a_file_named_after_another_user_is_refused() {
    let f = Fixture::new();
    f.registry.publish(&tuple(1), 1, 1).unwrap();
    // We pretend to be user me + 1.
    std::fs::copy(f.own_file(), f.file(me() + 1)).unwrap();
    assert_eq!(f.registry.lookup(me() + 1, &tuple(1), 1), Err(Error::WrongOwner(me())));
    if is_root() {
        std::os::unix::fs::chown(f.own_file(), Some(1234), None).unwrap();
        assert_eq!(f.another().publish(&tuple(2), 2, 2), Err(Error::WrongOwner(1234)));
        assert_eq!(f.registry.publish(&tuple(2), 2, 2), Err(Error::WrongOwner(1234)), "also when it was open");
    }
}

#[test]
fn each_effective_uid_has_its_own_file() {
    if !is_root() {
        return;
    }
    let f = Fixture::new();
    f.registry.publish(&tuple(1), 1, 1).unwrap();
    let code = in_child(|| {
        // SAFETY: plain numbers; a raw call changes this thread alone, the child's only one.
        unsafe { libc::syscall(libc::SYS_setresuid, 4321, 4321, 4321) };
        let published = f.registry.publish(&tuple(2), 2, 2).is_ok();
        let own = f.registry.lookup(4321, &tuple(2), 2) == Ok(Some(2));
        let other = f.registry.lookup(0, &tuple(1), 1) == Ok(Some(1));
        published as u8 | (own as u8) << 1 | (other as u8) << 2
    });
    assert_eq!(code, 7);
    assert_eq!(std::fs::metadata(f.file(4321)).unwrap().uid(), 4321);
    assert_eq!(f.registry.lookup(4321, &tuple(2), 2), Ok(Some(2)));
    assert_eq!(f.registry.lookup(0, &tuple(2), 2), Ok(None));
    assert_eq!(f.registry.lookup(0, &tuple(1), 1), Ok(Some(1)));
}

#[test]
fn it_works_on_after_chroot() {
    if !is_root() {
        return;
    }
    let f = Fixture::new();
    std::fs::create_dir(f.dir.join("jail")).unwrap();
    let jail = c(&f.dir.join("jail"));
    let code = in_child(|| {
        // SAFETY: a NUL-terminated path.
        let jailed = unsafe { libc::chroot(jail.as_ptr()) } == 0;
        jailed as u8 | (f.registry.publish(&tuple(1), 1, 1).is_ok() as u8) << 1
    });
    assert_eq!(code, 3);
    assert_eq!(f.registry.lookup(me(), &tuple(1), 1), Ok(Some(1)));
}

#[test]
fn a_file_size_limit_is_an_error_and_not_a_signal() {
    let f = Fixture::new();
    let code = in_child(|| {
        let limit = libc::rlimit { rlim_cur: 4096, rlim_max: 4096 };
        // SAFETY: a valid limit.
        unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) };
        let published = f.registry.publish(&tuple(1), 1, 1) == Err(Error::SizeLimit);
        let withdrawn = f.registry.withdraw(&tuple(1), 1) == Err(Error::SizeLimit);
        published as u8 | (withdrawn as u8) << 1
    });
    assert_eq!(code, 3, "254: killed by SIGXFSZ");
}

#[test]
fn no_descriptor_left_is_an_error() {
    let f = Fixture::new();
    let code = in_child(|| {
        let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a valid limit.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
        (f.registry.publish(&tuple(1), 1, 1) == Err(Error::NoDescriptor)) as u8
    });
    assert_eq!(code, 1);
}

#[test]
fn a_full_file_system_is_an_error() {
    if !is_root() {
        return;
    }
    let f = Fixture::new();
    let dir = c(&f.dir);
    let code = in_child(|| {
        // SAFETY: a mount namespace of the child's own; NUL-terminated strings.
        let mounted = unsafe {
            libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(
                    c"none".as_ptr(),
                    c"/".as_ptr(),
                    core::ptr::null(),
                    libc::MS_REC | libc::MS_PRIVATE,
                    core::ptr::null(),
                ) == 0
                && libc::mount(c"t".as_ptr(), dir.as_ptr(), c"tmpfs".as_ptr(), 0, c"size=4096".as_ptr().cast()) == 0
        };
        if !mounted || f.registry.configure(&dir, true).is_err() {
            return 1;
        }
        // One page fits; entries of other pages do not.
        let mut full = 0;
        for sport in 1..200 {
            match f.registry.publish(&tuple(sport), 1, 1) {
                Ok(()) => {}
                Err(Error::Full) => full += 1,
                Err(_) => return 2,
            }
        }
        if full > 0 { 3 } else { 4 }
    });
    // 1: this environment forbids mounts, and there is nothing to see.
    assert!(code == 3 || code == 1, "{code}");
}

#[test]
fn a_missing_directory_is_an_error_every_time() {
    let r = Registry::new(place);
    assert_eq!(r.publish(&tuple(1), 1, 1), Err(Error::NoDirectory), "not configured");
    assert_eq!(r.configure(c"/nonexistent/culvert", false), Err(Error::NoDirectory));
    assert_eq!(r.publish(&tuple(1), 1, 1), Err(Error::NoDirectory));
    assert_eq!(r.lookup(me(), &tuple(1), 1), Err(Error::NoDirectory));
    assert_eq!(r.configure(c"/proc/self/status", false), Err(Error::NoDirectory));
}

#[test]
fn descriptors_are_few_high_and_never_somebody_elses() {
    let f = Fixture::new();
    let reader = f.another();
    f.registry.publish(&tuple(1), 1, 1).unwrap();
    reader.lookup(me(), &tuple(1), 1).unwrap();
    for slot in [&f.registry.directory, &f.registry.own, &reader.seen] {
        let fd = slot.share().unwrap();
        assert!(fd >= HIGH);
        // SAFETY: a plain query.
        assert_eq!(unsafe { libc::fcntl(fd, libc::F_GETFD) }, libc::FD_CLOEXEC);
    }
    assert!(f.registry.seen.is_empty() && reader.own.is_empty());

    // The program puts files of its own there: they must not change, and stay open.
    let own = f.registry.own.share().unwrap();
    let precious = f.dir.join("precious");
    std::fs::write(&precious, vec![0; LEN as usize]).unwrap();
    let theirs = std::fs::OpenOptions::new().read(true).write(true).open(&precious).unwrap();
    // SAFETY: plain numbers, both open.
    unsafe { libc::dup3(theirs.as_raw_fd(), own, libc::O_CLOEXEC) };
    f.registry.publish(&tuple(2), 2, 2).unwrap();
    assert!(std::fs::read(&precious).unwrap().iter().all(|b| *b == 0));
    assert_eq!(os::fstat(own).unwrap().ino, std::fs::metadata(&precious).unwrap().ino());
    assert_eq!(reader.lookup(me(), &tuple(2), 2), Ok(Some(2)));
    // The same for the directory: nothing is created in theirs.
    let dir = f.registry.directory.share().unwrap();
    let jail = f.dir.join("theirs");
    std::fs::create_dir(&jail).unwrap();
    let handle = std::fs::File::open(&jail).unwrap();
    f.registry.forget();
    // SAFETY: plain numbers, both open.
    unsafe { libc::dup3(handle.as_raw_fd(), dir, libc::O_CLOEXEC) };
    assert_eq!(f.registry.publish(&tuple(3), 3, 3), Err(Error::NoDirectory));
    assert_eq!(std::fs::read_dir(&jail).unwrap().count(), 0);
    drop((crate::testing::own(own), crate::testing::own(dir)));
}

#[test]
fn the_last_to_use_a_file_removes_it() {
    let f = Fixture::new();
    let (second, third) = (f.another(), f.another());
    f.registry.publish(&tuple(1), 1, 1).unwrap();
    second.publish(&tuple(2), 2, 2).unwrap();
    assert_eq!(third.lookup(me(), &tuple(1), 1), Ok(Some(1)));
    f.registry.retire();
    assert_eq!(third.lookup(me(), &tuple(2), 2), Ok(Some(2)), "it is still used");
    second.retire();
    assert!(!f.own_file().exists());
    second.publish(&tuple(3), 3, 3).unwrap();
    assert_eq!(third.lookup(me(), &tuple(3), 3), Ok(Some(3)), "the reader notices that it is another file");
    second.retire();
    third.retire();
    assert!(!f.own_file().exists());
    // Whoever may read it, as another user may, neither keeps it from being used nor from being removed.
    std::fs::write(f.own_file(), []).unwrap();
    let stranger = std::fs::File::open(f.own_file()).unwrap();
    assert_eq!(os::lock(stranger.as_raw_fd(), libc::F_WRLCK, 0, 0), Err(libc::EBADF));
    os::lock(stranger.as_raw_fd(), libc::F_RDLCK, 0, 0).unwrap();
    second.publish(&tuple(4), 4, 4).unwrap();
    assert_eq!(third.lookup(me(), &tuple(4), 4), Ok(Some(4)));
    second.retire();
    assert!(!f.own_file().exists());
}

#[test]
fn two_that_end_at_a_time_leave_nothing() {
    let f = Fixture::new();
    for i in 0..200 {
        let all: Vec<_> = (0..3).map(|_| f.another()).collect();
        all.iter().for_each(|r| r.publish(&tuple(1), 1, 1).unwrap());
        std::thread::scope(|s| all.iter().for_each(|r| drop(s.spawn(|| r.retire()))));
        assert!(!f.own_file().exists(), "round {i}");
    }
}

#[test]
fn what_the_killed_left_is_removed_by_the_next_and_nothing_else_is() {
    let f = Fixture::new();
    let ns = f.registry.namespace.load(Ordering::Relaxed);
    let file = |name: String| f.dir.join(name);
    let left = file(format!("culvert-{}-{}", me(), ns + 1));
    let used = file(format!("culvert-{}-{}", me(), ns + 2));
    let kept = [
        file(format!("culvert-{}-0{}", me(), ns + 1)),
        file(format!("culvert-{}-", me())),
        file(format!("culvert-{}-1-2", me())),
        file("culvert-x".into()),
        file("culvert-4294967296-1".into()),
    ];
    for path in kept.iter().chain([&left, &used]) {
        std::fs::write(path, [0; ENTRY]).unwrap();
    }
    let link = file(format!("culvert-{}-{}", me(), ns + 3));
    std::os::unix::fs::symlink(&left, &link).unwrap();
    let user = std::fs::OpenOptions::new().write(true).open(&used).unwrap();
    assert!(in_use(user.as_raw_fd()));
    f.registry.publish(&tuple(1), 1, 1).unwrap();
    assert!(!left.exists());
    assert!(used.exists() && link.symlink_metadata().is_ok() && f.own_file().exists());
    assert!(kept.iter().all(|p| p.exists()));
}

#[test]
fn root_looks_at_a_few_of_another_users_files() {
    if !is_root() {
        return;
    }
    let f = Fixture::new();
    let names = (1..100).map(|n| f.dir.join(format!("culvert-4321-{n}")));
    let files: Vec<_> = names.collect();
    for path in &files {
        std::fs::write(path, [0; ENTRY]).unwrap();
        std::os::unix::fs::chown(path, Some(4321), None).unwrap();
    }
    f.registry.publish(&tuple(1), 1, 1).unwrap();
    let left = files.iter().filter(|p| p.exists()).count();
    assert_eq!(left, files.len() - OTHERS as usize);
}

/// One that begins to use a file while the last one of before leaves it is not left with one that nobody finds.
#[test]
fn what_is_published_while_another_leaves_is_found() {
    let f = Fixture::new();
    for i in 1..500 {
        let (leaves, comes) = (f.another(), f.another());
        leaves.publish_intent(i, Kind::Listen).unwrap();
        std::thread::scope(|s| {
            s.spawn(|| leaves.retire());
            s.spawn(|| comes.publish_intent(i, Kind::Listen).unwrap());
        });
        assert_eq!(f.registry.has_intent(me(), i, Kind::Listen), Ok(true), "round {i}");
        comes.retire();
    }
}

#[test]
fn a_forked_child_that_ends_leaves_its_parents_file() {
    let f = Fixture::new();
    f.registry.publish(&tuple(1), 1, 1).unwrap();
    let code = in_child(|| {
        f.registry.forget();
        f.registry.publish(&tuple(2), 2, 2).unwrap();
        f.registry.retire();
        0
    });
    assert_eq!(code, 0);
    assert_eq!(f.another().lookup(me(), &tuple(1), 1), Ok(Some(1)));
}

#[test]
fn many_threads_and_processes_share_one_file() {
    let f = Fixture::new();
    std::thread::scope(|s| {
        for thread in 0..4u16 {
            let f = &f;
            s.spawn(move || {
                for i in 0..200u16 {
                    let t = tuple(thread * 1000 + i + 1);
                    f.registry.publish(&t, i as u64, 5).unwrap();
                    // Another thread may have taken the last gap of the bucket in the same moment.
                    let found = f.registry.lookup(me(), &t, i as u64).unwrap();
                    assert!(found.is_none_or(|mailbox| mailbox == 5));
                    f.registry.withdraw(&t, i as u64).unwrap();
                    assert_eq!(f.registry.lookup(me(), &t, i as u64), Ok(None));
                }
            });
        }
    });
    let code = in_child(|| f.registry.publish(&tuple(7), 7, 7).is_ok() as u8);
    assert_eq!(code, 1);
    assert_eq!(f.registry.lookup(me(), &tuple(7), 7), Ok(Some(7)));
}

#[test]
fn an_intent_is_known_to_all_until_withdrawn() {
    let f = Fixture::new();
    let reader = f.another();
    for kind in [Kind::Connect, Kind::Listen, Kind::StandIn] {
        assert_eq!(reader.has_intent(me(), 7, kind), Ok(false));
    }
    assert_eq!(f.registry.withdraw_intent(7, Kind::Connect), Ok(()));
    assert!(!f.own_file().exists(), "withdrawing creates nothing");
    f.registry.publish(&tuple(1), 7, 99).unwrap();
    for kind in [Kind::Connect, Kind::Listen, Kind::StandIn] {
        f.registry.publish_intent(7, kind).unwrap();
        assert_eq!(reader.has_intent(me(), 7, kind), Ok(true));
        assert_eq!(reader.has_intent(me(), 8, kind), Ok(false));
        f.registry.withdraw_intent(7, kind).unwrap();
        assert_eq!(f.registry.has_intent(me(), 7, kind), Ok(false));
    }
    assert_eq!(reader.lookup(me(), &tuple(1), 7), Ok(Some(99)));
    assert_eq!(std::fs::metadata(f.own_file()).unwrap().len(), WHOLE);
    assert_eq!(reader.has_intent(me() + 1, 7, Kind::Listen), Ok(false), "another user has no file");
}

#[test]
fn a_shorter_file_is_a_registry_and_grows() {
    let f = Fixture::new();
    for len in [0, LEN] {
        std::fs::File::create(f.own_file()).unwrap().set_len(len).unwrap();
        let r = f.another();
        assert_eq!(r.has_intent(me(), 7, Kind::Listen), Ok(false));
        r.publish_intent(7, Kind::Listen).unwrap();
        assert_eq!(r.has_intent(me(), 7, Kind::Listen), Ok(true));
        assert_eq!(std::fs::metadata(f.own_file()).unwrap().len(), WHOLE);
        std::fs::remove_file(f.own_file()).unwrap();
    }
    // With one byte too many it is something else.
    std::fs::File::create(f.own_file()).unwrap().set_len(WHOLE + 1).unwrap();
    assert_eq!(f.another().publish_intent(7, Kind::Listen), Err(Error::NotATable));
}

#[test]
fn a_limit_between_the_tables_leaves_connections_and_no_intents() {
    let f = Fixture::new();
    let code = in_child(|| {
        let limit = libc::rlimit { rlim_cur: LEN, rlim_max: LEN };
        // SAFETY: a valid limit.
        unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) };
        let published = f.registry.publish(&tuple(1), 1, 1) == Ok(());
        let intended = f.registry.publish_intent(1, Kind::Connect) == Err(Error::SizeLimit);
        let withdrawn = f.registry.withdraw_intent(1, Kind::Connect) == Err(Error::SizeLimit);
        published as u8 | (intended as u8) << 1 | (withdrawn as u8) << 2
    });
    assert_eq!(code, 7, "254: killed by SIGXFSZ");
}

#[test]
fn who_serves_is_seen_by_every_registry_of_the_namespace() {
    let f = Fixture::new();
    let per_namespace = Registry::new(place);
    per_namespace.configure(&c(&f.dir), false).unwrap();
    for r in [&f.registry, &per_namespace] {
        assert_eq!(r.server(), Err(Unserved::Nobody));
        let serving = serve(&c(&f.dir), &Notice { control: "@z", serves: &[] }).unwrap();
        assert_eq!(r.server(), Ok(me()));
        assert_eq!(r.served().unwrap().control(), Some("@z"));
        r.publish(&tuple(1), 1, 1).unwrap();
        drop(serving);
        assert_eq!(r.server(), Err(Unserved::Nobody));
    }
    assert_eq!(Registry::new(place).server(), Err(Unserved::Unknown));
    per_namespace.forget();
    per_namespace.directory.drop_kept();
}
