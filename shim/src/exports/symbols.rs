//! The symbol matrix: every libc symbol that the library exports and what becomes of a call, and every
//! other libc symbol that has to do with a socket's bytes, events or descriptor and why it is left alone.
//!
//! Plain data: the test in tests/symbols includes this file, compares the first table with what the library
//! exports, and both with what programs import and with the names that libc itself has.

/// What becomes of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// On a socket of ours it is carried out by the endpoint, else by libc.
    Endpoint,
    /// Readiness of our sockets and of the kernel's descriptors, merged.
    Wait,
    /// Options and flags: the endpoint's view and the kernel's, merged.
    Option,
    /// The table of descriptors follows what libc does.
    Table,
    /// A new descriptor that is no TCP socket: whatever the table had for its number is forgotten.
    Reset,
    /// The socket goes to the kernel for good, then libc does the call.
    Retire,
    /// Sockets that a new program image would hold go to the kernel, then libc does the call.
    Exec,
    /// A process is born or ends: the family is told.
    Process,
    /// Handlers are wrapped and their runs counted.
    Signal,
    /// By the number of the system call, as the named function.
    Number,
    /// Who asks libc for one of these functions gets the library's.
    Lookup,
}

/// One file of this directory.
pub struct Family {
    /// Its name, without the suffix.
    pub file: &'static str,
    /// What it exports.
    pub symbols: &'static [(&'static str, Route)],
}

use Route::*;

/// All that the library exports.
pub const SYMBOLS: &[Family] = &[
    Family {
        file: "bytes",
        symbols: &[
            ("read", Endpoint),
            ("__read", Endpoint),
            ("__read_chk", Endpoint),
            ("readv", Endpoint),
            ("preadv2", Endpoint),
            ("preadv64v2", Endpoint),
            ("recv", Endpoint),
            ("__recv_chk", Endpoint),
            ("recvfrom", Endpoint),
            ("__recvfrom_chk", Endpoint),
            ("write", Endpoint),
            ("__write", Endpoint),
            ("writev", Endpoint),
            ("pwritev2", Endpoint),
            ("pwritev64v2", Endpoint),
            ("send", Endpoint),
            ("__send", Endpoint),
            ("sendto", Endpoint),
            ("sendfile", Endpoint),
            ("sendfile64", Endpoint),
            ("splice", Retire),
        ],
    },
    Family {
        file: "msg",
        symbols: &[("recvmsg", Endpoint), ("sendmsg", Endpoint), ("sendmmsg", Endpoint), ("recvmmsg", Endpoint)],
    },
    Family {
        file: "addr",
        symbols: &[
            ("socket", Table),
            ("socketpair", Reset),
            ("accept", Table),
            ("accept4", Table),
            ("connect", Table),
            ("__connect", Table),
            ("shutdown", Endpoint),
        ],
    },
    Family {
        file: "waits",
        symbols: &[
            ("epoll_create", Table),
            ("epoll_create1", Table),
            ("epoll_ctl", Wait),
            ("epoll_wait", Wait),
            ("epoll_pwait", Wait),
            ("epoll_pwait2", Wait),
        ],
    },
    Family {
        file: "waits",
        symbols: &[
            ("poll", Wait),
            ("__poll", Wait),
            ("__poll_chk", Wait),
            ("ppoll", Wait),
            ("__ppoll_chk", Wait),
            ("select", Wait),
            ("__select", Wait),
            ("pselect", Wait),
        ],
    },
    Family {
        file: "sockopt",
        symbols: &[
            ("getsockopt", Option),
            ("setsockopt", Option),
            ("ioctl", Option),
            ("fcntl", Option),
            ("fcntl64", Option),
            ("__fcntl", Option),
            ("sockatmark", Option),
        ],
    },
    Family {
        file: "fd",
        symbols: &[
            ("close", Table),
            ("__close", Table),
            ("close_range", Table),
            ("closefrom", Table),
            ("dup", Table),
            ("dup2", Table),
            ("__dup2", Table),
            ("dup3", Table),
            ("pidfd_getfd", Table),
        ],
    },
    Family {
        file: "create",
        symbols: &[
            ("open", Reset),
            ("open64", Reset),
            ("__open", Reset),
            ("__open64", Reset),
            ("__open_2", Reset),
            ("__open64_2", Reset),
            ("openat", Reset),
            ("openat64", Reset),
            ("__openat_2", Reset),
            ("__openat64_2", Reset),
            ("creat", Reset),
            ("creat64", Reset),
            ("open_by_handle_at", Reset),
            ("open_tree", Reset),
            ("fsopen", Reset),
            ("fsmount", Reset),
            ("fspick", Reset),
            ("pipe", Reset),
            ("__pipe", Reset),
            ("pipe2", Reset),
            ("eventfd", Reset),
            ("timerfd_create", Reset),
            ("signalfd", Reset),
            ("inotify_init", Reset),
            ("inotify_init1", Reset),
            ("fanotify_init", Reset),
            ("memfd_create", Reset),
            ("pidfd_open", Reset),
            ("shm_open", Reset),
            ("mq_open", Reset),
            ("__mq_open_2", Reset),
            ("posix_openpt", Reset),
            ("getpt", Reset),
            ("openpty", Reset),
            ("login_tty", Reset),
            ("forkpty", Reset),
            ("daemon", Reset),
            ("mkstemp", Reset),
            ("mkstemp64", Reset),
            ("mkostemp", Reset),
            ("mkostemp64", Reset),
            ("mkstemps", Reset),
            ("mkstemps64", Reset),
            ("mkostemps", Reset),
            ("mkostemps64", Reset),
            ("fopen", Reset),
            ("fopen64", Reset),
            ("_IO_fopen", Reset),
            ("freopen", Retire),
            ("freopen64", Retire),
            ("tmpfile", Reset),
            ("tmpfile64", Reset),
            ("opendir", Reset),
        ],
    },
    Family {
        file: "stdio",
        symbols: &[
            ("fdopen", Retire),
            ("_IO_fdopen", Retire),
            ("fclose", Table),
            ("_IO_fclose", Table),
            ("vdprintf", Retire),
            ("__vdprintf_chk", Retire),
        ],
    },
    Family {
        file: "aio",
        symbols: &[
            ("aio_read", Retire),
            ("aio_read64", Retire),
            ("aio_write", Retire),
            ("aio_write64", Retire),
            ("lio_listio", Retire),
            ("lio_listio64", Retire),
        ],
    },
    Family {
        file: "trampoline",
        symbols: &[
            ("dprintf", Retire),
            ("__dprintf_chk", Retire),
            ("execl", Exec),
            ("execle", Exec),
            ("execlp", Exec),
            ("dlopen", Process),
            ("dlmopen", Process),
            ("vfork", Process),
            ("__vfork", Process),
        ],
    },
    Family {
        file: "process",
        symbols: &[
            ("execve", Exec),
            ("execv", Exec),
            ("execvp", Exec),
            ("execvpe", Exec),
            ("execveat", Exec),
            ("fexecve", Exec),
            ("posix_spawn", Exec),
            ("posix_spawnp", Exec),
            ("posix_spawn_file_actions_adddup2", Retire),
            ("system", Exec),
            ("popen", Exec),
            ("_IO_popen", Exec),
            ("_IO_proc_open", Exec),
            ("_Fork", Process),
            ("clone", Process),
            ("__clone", Process),
            ("_exit", Process),
            ("_Exit", Process),
            ("quick_exit", Process),
            ("prctl", Process),
            ("mlockall", Process),
            ("munlockall", Process),
            ("unshare", Process),
        ],
    },
    Family {
        file: "signal",
        symbols: &[
            ("sigaction", Signal),
            ("__sigaction", Signal),
            ("signal", Signal),
            ("bsd_signal", Signal),
            ("ssignal", Signal),
            ("sysv_signal", Signal),
            ("__sysv_signal", Signal),
            ("siginterrupt", Signal),
            ("sigset", Signal),
        ],
    },
    Family { file: "raw", symbols: &[("syscall", Number)] },
    Family { file: "lookup", symbols: &[("dlsym", Lookup), ("dlvsym", Lookup)] },
];

/// Names that the library exports and that are not libc's, with the reason.
pub const OWN: &[(&str, &str)] = &[(
    "__asan_default_options",
    "asked for by AddressSanitizer's runtime, which would refuse to start behind another preloaded library",
)];

const NAME: &str = "the kernel socket keeps its names, and they are the connection's";
const FILE: &str = "answers for the kernel socket what it answers for the connection";
const SEEK: &str = "a socket cannot seek: the kernel refuses it (ESPIPE), whatever the connection's state";
const NOT_SOCKET: &str = "refused by the kernel for sockets";
const HANDLERS: &str = "runs the handlers of pthread_atfork, which tell the family";
const STREAM: &str = "works on a stream; a stream on a socket was made by fdopen, which took the socket to the kernel";
const NO_DESCRIPTOR: &str = "moves no byte of a socket and makes, copies or closes no descriptor of the program";
const ONLY_LIBC: &str = "GLIBC_PRIVATE: imported by libc's own libraries alone, which use their own sockets";
const RESOLVER: &str = "uses sockets of its own inside libc, closed before it returns";
const RPC: &str = "Sun RPC, for old binaries only: its sockets live inside libc and are never seen, hence never ours";

/// libc symbols that have to do with a socket's bytes, events or descriptor, or are named like one of the
/// above, and that the library does not export, with the reason.
pub const LEFT_ALONE: &[(&str, &str)] = &[
    ("bind", NAME),
    ("listen", NAME),
    ("getsockname", NAME),
    ("getpeername", NAME),
    ("isfdtype", FILE),
    ("isatty", FILE),
    ("fstat", FILE),
    ("fstat64", FILE),
    ("__fxstat", FILE),
    ("__fxstat64", FILE),
    ("statx", FILE),
    ("lseek", SEEK),
    ("lseek64", SEEK),
    ("__lseek", SEEK),
    ("llseek", SEEK),
    ("pread", SEEK),
    ("pread64", SEEK),
    ("__pread64", SEEK),
    ("__pread_chk", SEEK),
    ("__pread64_chk", SEEK),
    ("__libc_pread", ONLY_LIBC),
    ("__pread64_nocancel", ONLY_LIBC),
    ("pwrite", SEEK),
    ("pwrite64", SEEK),
    ("__pwrite64", SEEK),
    ("__libc_pwrite", ONLY_LIBC),
    ("preadv", SEEK),
    ("preadv64", SEEK),
    ("pwritev", SEEK),
    ("pwritev64", SEEK),
    ("tee", "both ends must be pipes"),
    ("vmsplice", "works on pipes only"),
    ("copy_file_range", "works on regular files only"),
    ("fdopendir", "works on directories only"),
    ("process_vm_readv", "reads memory, not descriptors; what lies in a ring is not addressable by the program"),
    ("process_vm_writev", "as process_vm_readv"),
    ("__fdelt_chk", "computes an index from a descriptor's number and touches no descriptor"),
    ("__fdelt_warn", "as __fdelt_chk"),
    ("fork", HANDLERS),
    ("__fork", HANDLERS),
    ("__libc_fork", HANDLERS),
    ("exit", "runs the library's destructor"),
    ("pthread_atfork", "the program's handlers run beside the library's"),
    ("__register_atfork", "as pthread_atfork"),
    ("fcloseall", STREAM),
    ("pclose", "the stream is a pipe's"),
    ("fread", STREAM),
    ("fwrite", STREAM),
    ("getline", STREAM),
    ("__getdelim", STREAM),
    ("getdelim", STREAM),
    (
        "_IO_file_fopen",
        "libstdc++ before GCC 3; resets nothing, and an entry is stale only if a socket was closed by a system call of the program's own",
    ),
    ("_IO_file_open", "as _IO_file_fopen"),
    ("_IO_file_attach", "libstdc++ before GCC 3; nothing built since imports it"),
    ("_IO_file_read", STREAM),
    ("_IO_file_write", STREAM),
    ("_IO_file_close", STREAM),
    ("closedir", "the descriptor is a directory's"),
    ("aio_fsync", NOT_SOCKET),
    ("aio_fsync64", NOT_SOCKET),
    ("aio_error", NO_DESCRIPTOR),
    ("aio_return", NO_DESCRIPTOR),
    ("aio_suspend", NO_DESCRIPTOR),
    ("aio_cancel", NO_DESCRIPTOR),
    ("sigprocmask", "the mask belongs to the kernel; waiting passes it on"),
    ("pthread_sigmask", "as sigprocmask"),
    ("setns", "a connection outlives its maker's namespaces; a later one finds no registry and stays on the kernel"),
    ("chroot", "what is needed from the file system is open before it"),
    ("setuid", "the peer proved its uid when the channel was made; the kernel does not ask again either"),
    ("setrlimit", "descriptors are had before, or the connection stays on the kernel"),
    ("setrlimit64", "as setrlimit"),
    ("prlimit", "as setrlimit"),
    ("prlimit64", "as setrlimit"),
    ("getaddrinfo", RESOLVER),
    ("gethostbyname", RESOLVER),
    ("gethostbyname_r", RESOLVER),
    ("res_send", RESOLVER),
    ("__res_send", RESOLVER),
    ("rcmd", "connects inside libc and returns a socket that was never seen, hence never ours"),
    ("rcmd_af", "as rcmd"),
    ("rexec", "as rcmd"),
    ("rexec_af", "as rcmd"),
    ("rresvport", "as rcmd"),
    ("rresvport_af", "as rcmd"),
    ("bindresvport", NAME),
    ("clnttcp_create", RPC),
    ("svctcp_create", RPC),
    ("__recv", ONLY_LIBC),
    ("__socket", ONLY_LIBC),
    ("__sendmmsg", ONLY_LIBC),
    ("__libc_fcntl64", ONLY_LIBC),
    ("__libc_sigaction", ONLY_LIBC),
    ("__libc_system", ONLY_LIBC),
    ("__close_nocancel", ONLY_LIBC),
    ("__read_nocancel", ONLY_LIBC),
    ("__write_nocancel", ONLY_LIBC),
    ("__open_nocancel", ONLY_LIBC),
    ("__open64_nocancel", ONLY_LIBC),
];
