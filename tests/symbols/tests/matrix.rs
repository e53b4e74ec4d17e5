//! The symbol matrix against the library, against libc, and against what programs import.

use culvert_symbols_tests::symbols::{LEFT_ALONE, OWN, SYMBOLS};
use culvert_symbols_tests::{Dynamic, culvert, libc, plugins, program, stem, with_libraries};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Names through which a byte, an event or a descriptor of a socket can pass, from the manual pages and
/// from what other interposing libraries cover. Kept apart from the matrix, which must account for each.
const CARRIERS: &str = "
    socket socketpair bind listen accept accept4 connect getsockname getpeername shutdown
    read write readv writev pread pwrite preadv pwritev preadv64 pwritev64 preadv2 pwritev2 preadv64v2 pwritev64v2
    recv send recvfrom sendto recvmsg sendmsg recvmmsg sendmmsg sendfile sendfile64 splice tee vmsplice copy_file_range
    process_vm_readv process_vm_writev
    __read_chk __recv_chk __recvfrom_chk __poll_chk __ppoll_chk __fdelt_chk __vdprintf_chk __dprintf_chk
    __read __write __close __connect __send __poll __select __fcntl __dup2
    fdopen freopen dprintf vdprintf popen fclose
    getsockopt setsockopt ioctl fcntl fcntl64 isatty fstat fstat64 __fxstat __fxstat64 statx lseek sockatmark isfdtype
    close dup dup2 dup3 close_range closefrom pidfd_getfd
    open open64 openat openat64 creat creat64 pipe pipe2 eventfd timerfd_create signalfd inotify_init inotify_init1
    memfd_create fanotify_init mq_open shm_open mkstemp mkostemp fopen fopen64 tmpfile opendir
    epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 poll ppoll select pselect
    aio_read aio_write lio_listio aio_read64 aio_write64 lio_listio64
    fork vfork clone _Fork daemon forkpty login_tty posix_spawn posix_spawnp posix_spawn_file_actions_adddup2 system
    execve execv execvp execvpe execl execle execlp fexecve execveat _exit _Exit exit quick_exit pthread_atfork
    unshare setns chroot setuid seteuid setreuid setresuid setfsuid setgid setegid setregid setresgid setgroups initgroups setrlimit prlimit prctl
    sigaction signal sysv_signal __sysv_signal bsd_signal siginterrupt sigset sigprocmask pthread_sigmask
    syscall getaddrinfo
";

/// The programs that culvert is tested with, and what they load at run time.
const PROGRAMS: [&str; 12] = [
    "redis-server",
    "redis-cli",
    "redis-benchmark",
    "nginx",
    "memcached",
    "iperf3",
    "curl",
    "wrk",
    "ab",
    "socat",
    "python3.11",
    "haproxy",
];
const PLUGIN_DIRS: [&str; 2] = ["/usr/lib/python3.11/lib-dynload", "/usr/lib/nginx/modules"];

/// What the library may import: none of it is a hook of ours or touches a descriptor, and every libc has it. A dynamic
/// linker that misses a name does not start the program, and musl's obeys LD_PRELOAD, too.
const MAY_IMPORT: [&str; 15] = [
    "__errno_location",
    "fileno",
    "dirfd",
    "__cxa_finalize",
    "malloc",
    "free",
    "memcpy",
    "memmove",
    "memset",
    "memcmp",
    "bcmp",
    "strlen",
    "abort",
    "getauxval",
    "environ",
];

fn hooked() -> BTreeSet<&'static str> {
    SYMBOLS.iter().flat_map(|f| f.symbols).map(|&(name, _)| name).collect()
}

fn left_alone() -> BTreeSet<&'static str> {
    LEFT_ALONE.iter().map(|&(name, _)| name).collect()
}

fn carriers() -> impl Iterator<Item = &'static str> {
    CARRIERS.split_whitespace()
}

/// Names that have no line in the matrix.
fn unaccounted<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let (hooked, left) = (hooked(), left_alone());
    names.into_iter().filter(|n| !hooked.contains(n) && !left.contains(n)).collect()
}

#[test]
fn every_name_has_one_line() {
    let mut seen = BTreeSet::new();
    let all = SYMBOLS.iter().flat_map(|f| f.symbols).map(|s| s.0).chain(LEFT_ALONE.iter().map(|s| s.0));
    for name in all {
        assert!(seen.insert(name), "{name} has two lines");
    }
    for (name, why) in LEFT_ALONE {
        assert!(!why.is_empty(), "{name} is left alone without a reason");
    }
    for f in SYMBOLS {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shim/src/exports/").to_owned() + f.file + ".rs";
        let text = std::fs::read_to_string(&source).unwrap_or_else(|e| panic!("{source}: {e}"));
        for (name, _) in f.symbols {
            let word = |c: char| !(c.is_alphanumeric() || c == '_');
            assert!(text.split(word).any(|w| w == *name), "{name} is not in {source}");
        }
    }
}

#[test]
fn the_library_exports_the_matrix_and_nothing_else() {
    let lib = culvert();
    let exported: BTreeSet<&str> = lib.exports.iter().map(String::as_str).collect();
    let hooked: BTreeSet<&str> = hooked().into_iter().chain(OWN.iter().map(|o| o.0)).collect();
    let missing: Vec<_> = hooked.difference(&exported).collect();
    let extra: Vec<_> = exported.difference(&hooked).collect();
    assert!(missing.is_empty(), "in the matrix, not exported: {missing:?}");
    assert!(extra.is_empty(), "exported, not in the matrix: {extra:?}");
}

#[test]
fn the_library_needs_libc_alone() {
    let lib = culvert();
    let others: Vec<_> =
        lib.needed.iter().filter(|n| !["libc.so.6", "ld-linux-x86-64.so.2"].contains(&n.as_str())).collect();
    assert!(others.is_empty(), "needs {others:?}");
    assert!(lib.needed.iter().any(|n| n == "libc.so.6"), "needs {:?}: is this a static library?", lib.needed);
    let strange: Vec<_> = lib.imports.iter().filter(|n| !MAY_IMPORT.contains(&n.as_str()) && !weak_tool(n)).collect();
    assert!(strange.is_empty(), "calls {strange:?} directly");
}

/// Weak references: those that the linker puts into every shared object for tools to fill in, and the names under which
/// the dynamic linkers of glibc and musl keep the list of what is loaded.
fn weak_tool(name: &str) -> bool {
    const TOOLS: [&str; 3] = ["__gmon_start__", "_ITM_registerTMCloneTable", "_ITM_deregisterTMCloneTable"];
    TOOLS.contains(&name) || ["_r_debug", "_dl_debug_addr"].contains(&name)
}

/// A program that has a `write` of its own would be called where the library means its own.
#[test]
fn names_inside_the_library_bind_inside() {
    let lib = culvert();
    assert!(lib.bound.contains("environ"), "the reader of relocations is broken: {:?}", lib.bound);
    let open: Vec<_> = lib.bound.intersection(&lib.exports).collect();
    assert!(open.is_empty(), "bound by the dynamic linker: {open:?}");
}

#[test]
fn libc_has_every_hooked_name() {
    let libc = libc();
    let unknown: Vec<_> = hooked().into_iter().filter(|n| !libc.exports.contains(*n)).collect();
    assert!(
        unknown.is_empty(),
        "libc has no {unknown:?}: a slip of the pen, or another libc than the matrix was made for"
    );
}

#[test]
fn every_carrier_is_accounted_for() {
    let missing = unaccounted(carriers());
    assert!(missing.is_empty(), "no line in the matrix: {missing:?}");
}

#[test]
fn variants_of_hooked_names_are_accounted_for() {
    let libc = libc();
    let hooked = hooked();
    let variants = libc.exports.iter().map(String::as_str).filter(|n| stem(n) != *n && hooked.contains(stem(n)));
    let missing = unaccounted(variants);
    assert!(missing.is_empty(), "libc has variants of hooked names that have no line in the matrix: {missing:?}");
}

#[test]
fn what_programs_import_is_accounted_for() {
    let names: BTreeSet<&str> = carriers().chain(hooked()).collect();
    let mut files: Vec<PathBuf> = Vec::new();
    for name in PROGRAMS {
        match program(name) {
            Some(path) => files.push(path),
            None => eprintln!("not installed: {name}"),
        }
    }
    assert!(!files.is_empty(), "none of the programs is installed");
    files.extend(PLUGIN_DIRS.iter().flat_map(|d| plugins(d)));
    let objects: Vec<Dynamic> = with_libraries(&files).expect("programs and libraries can be read");

    let mut carried = 0;
    for o in &objects {
        // A program that defines the name itself calls its own.
        let imports: Vec<&str> =
            o.imports.iter().map(String::as_str).filter(|n| names.contains(n) || names.contains(stem(n))).collect();
        carried += imports.len();
        let missing = unaccounted(imports);
        assert!(missing.is_empty(), "{} imports {missing:?}, which have no line in the matrix", o.name());
    }
    assert!(carried > 100, "only {carried} imports looked at in {} objects: the reader is broken", objects.len());
    println!("{} objects, {carried} imports that have to do with descriptors", objects.len());
}
