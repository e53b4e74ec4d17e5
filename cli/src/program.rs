//! Can this program be served by a preloaded library?
// Unsafe here: libc's calls.
#![allow(unsafe_code)]

use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::elf::{self, ElfError, Image};
use crate::exit;

/// The kernel follows this many `#!` lines (fs/exec.c, exec_binprm: ELOOP beyond a depth of 5).
const MAX_SCRIPT_DEPTH: usize = 5;
/// The kernel looks at this many bytes of a `#!` line (BINPRM_BUF_SIZE).
const SCRIPT_LINE: usize = 256;

/// A program that can run under culvert.
#[derive(Debug)]
pub struct Program {
    /// The file to execute.
    pub path: PathBuf,
    /// The file whose code runs: differs from `path` for a script.
    pub binary: PathBuf,
    /// What `binary` says about itself.
    pub image: Image,
}

/// Why a program cannot run under culvert.
#[derive(Debug)]
pub struct Refusal {
    /// The file it is about.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: Why,
}

/// See [`Refusal`].
#[derive(Debug)]
pub enum Why {
    /// No such file, or none in `PATH`.
    NotFound,
    /// No execute permission, a directory, or unreadable.
    NotExecutable(String),
    /// Neither an ELF program nor a `#!` script, or damaged, or for another machine.
    Elf(ElfError),
    /// No PT_INTERP: there is no dynamic linker to load the library.
    Static,
    /// A Go program that makes its system calls itself.
    Go,
    /// Linked with musl.
    Musl,
    /// Linked with something else that is not glibc.
    OtherLinker(PathBuf),
    /// The dynamic linker that it asks for is not installed.
    NoLinker(PathBuf),
    /// The dynamic linker ignores LD_PRELOAD paths for it; the argument says which privilege.
    Privileged(&'static str),
    /// Scripts interpreting scripts, too deep.
    ScriptLoop,
    /// `#!` without an interpreter.
    EmptyScriptLine,
}

impl Refusal {
    /// The exit code for it.
    pub fn code(&self) -> u8 {
        match self.why {
            Why::NotFound => exit::NOT_FOUND,
            _ => exit::CANNOT_EXECUTE,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.path.display())?;
        match &self.why {
            Why::NotFound => f.write_str(match self.path.as_os_str().as_bytes() {
                [b'-', ..] => "neither an option of `culvert run` (--help names those) nor a program in PATH",
                path if path.contains(&b'/') => "no such file",
                _ => "no such program in PATH; name one outside of it by its path",
            }),
            Why::NotExecutable(e) => write!(f, "cannot execute: {e}"),
            Why::Elf(ElfError::NotElf) => f.write_str("neither an ELF program nor a script with a #! line"),
            Why::Elf(e) => e.fmt(f),
            Why::Static => f.write_str("statically linked: no library can be loaded into it"),
            Why::Go => f.write_str("a Go program that does not use libc: its system calls cannot be seen"),
            Why::Musl => f.write_str("linked with musl: culvert serves programs linked with glibc"),
            Why::OtherLinker(l) => {
                write!(f, "asks for the dynamic linker {}: culvert serves programs linked with glibc", l.display())
            }
            Why::NoLinker(l) => write!(f, "its dynamic linker {} is not installed", l.display()),
            Why::Privileged(p) => {
                write!(f, "has {p}: the dynamic linker loads no foreign library into a privileged program")
            }
            Why::ScriptLoop => f.write_str("scripts nested too deep"),
            Why::EmptyScriptLine => f.write_str("its #! line names no interpreter"),
        }
    }
}

/// Finds `name` as execvp(3) does: a name with a slash is a path, any other is looked up in `path`.
pub fn resolve(name: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, Refusal> {
    let refuse = |why| Err(Refusal { path: name.into(), why });
    if name.as_bytes().contains(&b'/') {
        return executable(Path::new(name)).map(|()| name.into());
    }
    if name.is_empty() {
        return refuse(Why::NotFound);
    }
    // execvp(3) goes on after EACCES, and reports it if nothing better turns up.
    let mut denied = None;
    for dir in std::env::split_paths(path.unwrap_or(OsStr::new("/bin:/usr/bin"))) {
        let dir = if dir.as_os_str().is_empty() { PathBuf::from(".") } else { dir };
        let candidate = dir.join(name);
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Refusal { why: Why::NotFound, .. }) => {}
            Err(e) => denied = Some(e),
        }
    }
    denied.map_or_else(|| refuse(Why::NotFound), Err)
}

fn executable(path: &Path) -> Result<(), Refusal> {
    let refuse = |why| Err(Refusal { path: path.into(), why });
    let meta = match path.metadata() {
        Ok(m) => m,
        Err(e) => {
            return refuse(match e.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => Why::NotFound,
                _ => Why::NotExecutable(e.to_string()),
            });
        }
    };
    if !meta.is_file() {
        return refuse(Why::NotExecutable("not a regular file".into()));
    }
    let Ok(c) = CString::new(path.as_os_str().as_bytes()) else { return refuse(Why::NotFound) };
    // SAFETY: `c` is a terminated string that outlives the call.
    if unsafe { libc::access(c.as_ptr(), libc::X_OK) } != 0 {
        return refuse(Why::NotExecutable(std::io::Error::last_os_error().to_string()));
    }
    Ok(())
}

/// Looks at the file that executing `path` with `args` would run, through `#!` lines and `env`.
pub fn check(path: &Path, args: &[OsString]) -> Result<Program, Refusal> {
    let (binary, image) = follow(path, args, 0)?;
    Ok(Program { path: path.into(), binary, image })
}

fn follow(path: &Path, args: &[OsString], depth: usize) -> Result<(PathBuf, Image), Refusal> {
    let refuse = |why| Err(Refusal { path: path.into(), why });
    if depth > MAX_SCRIPT_DEPTH {
        return refuse(Why::ScriptLoop);
    }
    match script_line(path) {
        Err(e) => return refuse(Why::NotExecutable(e.to_string())),
        Ok(Some((interpreter, words))) => {
            if interpreter.as_os_str().is_empty() {
                return refuse(Why::EmptyScriptLine);
            }
            executable(&interpreter)?;
            let (binary, image) = follow(&interpreter, &[], depth + 1)?;
            // `#!/usr/bin/env python3`: what runs in the end is python3.
            return match runs_through_env(&interpreter, &words) {
                Some(name) => follow(&resolve(&name, std::env::var_os("PATH").as_deref())?, &[], depth + 1),
                None => Ok((binary, image)),
            };
        }
        Ok(None) => {}
    }
    let image = elf::read(path).map_err(|e| Refusal { path: path.into(), why: Why::Elf(e) })?;
    if let Some(privilege) = privilege(path) {
        return refuse(Why::Privileged(privilege));
    }
    let libc_linked = image.needed.iter().any(|n| n.starts_with("libc.so."));
    let Some(linker) = &image.interpreter else {
        // `/lib64/ld-linux-x86-64.so.2 PROGRAM`: the dynamic linker itself has no interpreter.
        return match (&image.soname, args.first()) {
            (Some(s), Some(program)) if s.starts_with("ld-linux") && !program.as_bytes().starts_with(b"-") => {
                follow(Path::new(program), &args[1..], depth + 1)
            }
            _ => refuse(if image.go { Why::Go } else { Why::Static }),
        };
    };
    match linker.file_name().map(OsStr::as_bytes) {
        Some(b"ld-linux-x86-64.so.2") => {}
        Some(n) if n.starts_with(b"ld-musl") => return refuse(Why::Musl),
        _ => return refuse(Why::OtherLinker(linker.clone())),
    }
    if !linker.exists() {
        return refuse(Why::NoLinker(linker.clone()));
    }
    if image.go && !libc_linked {
        return refuse(Why::Go);
    }
    Ok((path.into(), image))
}

/// The interpreter and the words after it, if `path` is a script. The kernel passes those words as one
/// argument; `env -S` splits it.
fn script_line(path: &Path) -> std::io::Result<Option<(PathBuf, Vec<OsString>)>> {
    let mut head = Vec::new();
    std::fs::File::open(path)?.take(SCRIPT_LINE as u64).read_to_end(&mut head)?;
    let Some(line) = head.strip_prefix(b"#!") else { return Ok(None) };
    let line = line.split(|b| *b == b'\n').next().unwrap_or_default();
    let mut words =
        line.split(|b| b" \t".contains(b)).filter(|w| !w.is_empty()).map(|w| OsString::from_vec(w.to_vec()));
    let interpreter = PathBuf::from(words.next().unwrap_or_default());
    Ok(Some((interpreter, words.collect())))
}

fn runs_through_env(interpreter: &Path, words: &[OsString]) -> Option<OsString> {
    if interpreter.file_name() != Some(OsStr::new("env")) {
        return None;
    }
    words.iter().find(|w| !w.as_bytes().starts_with(b"-") && !w.as_bytes().contains(&b'=')).cloned()
}

/// What makes the kernel set AT_SECURE for `path`, if anything. Whether it does also depends on the
/// caller's uid, on mount options and on no_new_privs; a command line that works for one user and is
/// silently not accelerated for another helps nobody, so the file alone decides.
fn privilege(path: &Path) -> Option<&'static str> {
    let mode = path.metadata().ok()?.permissions().mode();
    if mode & libc::S_ISUID != 0 {
        return Some("the setuid bit");
    }
    // Without group execute the bit means mandatory locking, not setgid (inode(7)).
    if mode & libc::S_ISGID != 0 && mode & libc::S_IXGRP != 0 {
        return Some("the setgid bit");
    }
    let c = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: both names are terminated strings; a null buffer of size 0 asks for the length only.
    let len = unsafe { libc::getxattr(c.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) };
    (len > 0).then_some("file capabilities")
}

/// True if the file belongs to the caller; used by `doctor` for the registry.
pub fn owned_by_caller(meta: &std::fs::Metadata) -> bool {
    // SAFETY: takes no arguments and cannot fail.
    meta.uid() == unsafe { libc::geteuid() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::tests::tiny;

    const GLIBC: &str = "/lib64/ld-linux-x86-64.so.2";

    /// A directory of the test's own, removed at its end.
    struct Dir(PathBuf);
    impl Dir {
        fn new(name: &str) -> Dir {
            let path = std::env::temp_dir().join(format!("culvert-test-{}-{name}", std::process::id()));
            std::fs::create_dir(&path).unwrap();
            Dir(path)
        }
        fn file(&self, name: &str, bytes: &[u8], mode: u32) -> PathBuf {
            let path = self.0.join(name);
            std::fs::write(&path, bytes).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        }
    }
    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn why(path: &Path) -> Why {
        check(path, &[]).unwrap_err().why
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_reason() {
        let d = Dir::new("refused");
        assert!(matches!(why(&d.file("static", &tiny(2, 62, None), 0o755)), Why::Static));
        assert!(matches!(why(&d.file("musl", &tiny(2, 62, Some("/lib/ld-musl-x86_64.so.1")), 0o755)), Why::Musl));
        assert!(matches!(
            why(&d.file("bionic", &tiny(2, 62, Some("/system/bin/linker64")), 0o755)),
            Why::OtherLinker(_)
        ));
        assert!(matches!(
            why(&d.file("gone", &tiny(2, 62, Some("/nix/ld-linux-x86-64.so.2")), 0o755)),
            Why::NoLinker(_)
        ));
        assert!(matches!(why(&d.file("arm", &tiny(2, 183, Some(GLIBC)), 0o755)), Why::Elf(ElfError::Foreign(_))));
        assert!(matches!(why(&d.file("text", b"hello", 0o755)), Why::Elf(ElfError::NotElf)));
        assert!(matches!(why(&d.file("suid", &tiny(2, 62, Some(GLIBC)), 0o4755)), Why::Privileged("the setuid bit")));
        assert!(matches!(why(&d.file("sgid", &tiny(2, 62, Some(GLIBC)), 0o2755)), Why::Privileged("the setgid bit")));
        assert!(matches!(why(&d.file("empty", b"#! \n", 0o755)), Why::EmptyScriptLine));
    }

    #[test]
    fn scripts_are_judged_by_their_interpreter() {
        let d = Dir::new("scripts");
        let bad = d.file("static", &tiny(2, 62, None), 0o755);
        let script = d.file("a", format!("#! {} -x\nbody", bad.display()).as_bytes(), 0o755);
        let nested = d.file("b", format!("#!{}\n", script.display()).as_bytes(), 0o755);
        let refusal = check(&nested, &[]).unwrap_err();
        assert!(matches!(refusal.why, Why::Static));
        assert_eq!(refusal.path, bad);
        let shell = d.file("c", b"#!/bin/sh\n", 0o755);
        assert_eq!(check(&shell, &[]).unwrap().binary, Path::new("/bin/sh"));
        let env = d.file("d", b"#!/usr/bin/env -S X=1 sh -e\n", 0o755);
        assert_eq!(check(&env, &[]).unwrap().binary.file_name().unwrap(), "sh");
        let missing = d.file("e", b"#!/nonexistent/sh\n", 0o755);
        assert_eq!(check(&missing, &[]).unwrap_err().code(), exit::NOT_FOUND);
    }

    #[test]
    fn a_script_that_interprets_itself_ends() {
        let d = Dir::new("loop");
        let path = d.0.join("a");
        d.file("a", format!("#!{}\n", path.display()).as_bytes(), 0o755);
        assert!(matches!(why(&path), Why::ScriptLoop));
    }

    #[test]
    fn the_dynamic_linker_may_be_named_as_the_program() {
        let linker = Path::new(GLIBC);
        assert_eq!(check(linker, &["/bin/sh".into()]).unwrap().binary, Path::new("/bin/sh"));
        assert!(matches!(check(linker, &[]).unwrap_err().why, Why::Static));
    }

    #[test]
    fn names_are_looked_up_as_execvp_does() {
        let d = Dir::new("path");
        d.file("tool", b"", 0o644);
        let find = |name: &str, path: &OsStr| resolve(OsStr::new(name), Some(path));
        assert_eq!(find("tool", d.0.as_os_str()).unwrap_err().code(), exit::CANNOT_EXECUTE);
        assert_eq!(find("other", d.0.as_os_str()).unwrap_err().code(), exit::NOT_FOUND);
        let mut both = d.0.clone().into_os_string();
        both.push(":/bin");
        assert_eq!(find("sh", &both).unwrap(), Path::new("/bin/sh"));
        assert_eq!(find("/bin", &both).unwrap_err().code(), exit::CANNOT_EXECUTE);
        assert_eq!(find("", &both).unwrap_err().code(), exit::NOT_FOUND);
    }
}
