//! `culvert zstackd`: become zstackd, under the library.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::args::ZstackdArgs;
use crate::visible::visible;
use crate::{exit, library, run};

const NAME: &str = "zstackd";

/// Names the binary.
pub const VARIABLE: &str = "CULVERT_ZSTACKD";

/// Runs zstackd; returns only if that failed, with the exit code.
pub fn main(args: ZstackdArgs) -> u8 {
    let path = match locate() {
        Ok(path) => path,
        Err((code, e)) => {
            eprintln!("culvert: {}", visible(&e));
            return code;
        }
    };
    let library = match library::find(None) {
        Ok(path) => path,
        Err(e) => {
            eprintln!("culvert: {}; zstackd meets programs through it: `cargo build --release` builds it", visible(&e));
            return exit::FAILED;
        }
    };
    let env = run::environment(std::env::vars_os().collect(), &library, settings(std::env::var_os("CULVERT_SPIN")));
    let argv = [NAME.into()].into_iter().chain(args.args).collect();
    run::become_program(&path, argv, env)
}

/// What the library is told: its sockets stand in for other hosts, and it is a peer to every user. The rest is as whoever runs it has set
/// it: it spins, as every program, as long as that pays off, unless CULVERT_SPIN says otherwise.
fn settings(spin: Option<OsString>) -> Vec<(OsString, OsString)> {
    let fixed = [("CULVERT_PATH", "shm"), ("CULVERT_STANDIN", "1"), ("CULVERT_PEERS", "any"), ("CULVERT_EAGER", "0")];
    let fixed = fixed.map(|(k, v)| (k.into(), v.into()));
    fixed.into_iter().chain([("CULVERT_SPIN".into(), spin.unwrap_or("auto".into()))]).collect()
}

/// Where the binary is, or the exit code and the reason.
pub fn locate() -> Result<PathBuf, (u8, String)> {
    let named = std::env::var_os(VARIABLE);
    find(named.as_deref(), std::env::current_exe().ok().as_deref(), std::env::var_os("PATH").as_deref())
}

/// The binary: the one that the variable names, or else beside this command, or on PATH.
fn find(named: Option<&OsStr>, command: Option<&Path>, search: Option<&OsStr>) -> Result<PathBuf, (u8, String)> {
    if let Some(path) = named.filter(|n| !n.is_empty()).map(PathBuf::from) {
        return match is_program(&path) {
            true => Ok(path),
            false => Err((
                exit::CANNOT_EXECUTE,
                format!("{VARIABLE}={}: no program; unset it, or name zstackd", path.display()),
            )),
        };
    }
    let beside = command.and_then(Path::parent).map(|dir| dir.join(NAME));
    let on_path = search.into_iter().flat_map(|s| s.as_bytes().split(|b| *b == b':'));
    // An empty entry is the working directory, where nobody keeps daemons.
    let on_path = on_path.filter(|dir| dir.starts_with(b"/")).map(|dir| Path::new(OsStr::from_bytes(dir)).join(NAME));
    beside.into_iter().chain(on_path).find(|p| is_program(p)).ok_or_else(|| {
        let text = "zstackd was not found beside this command nor on PATH: build it with `cargo build --release -p zstackd`, or name it \
                    in CULVERT_ZSTACKD";
        (exit::NOT_FOUND, text.into())
    })
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_then_beside_the_command_then_path() {
        let dir = std::env::temp_dir().join(format!("culvert-zstackd-{}", std::process::id()));
        let (bin, sbin) = (dir.join("bin"), dir.join("sbin"));
        for d in [&bin, &sbin] {
            std::fs::create_dir_all(d).unwrap();
        }
        let program = |at: &Path, mode: u32| {
            std::fs::write(at, "#!/bin/sh\n").unwrap();
            std::fs::set_permissions(at, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let command = bin.join("culvert");
        let search = OsString::from(format!(":relative:{}:{}", dir.display(), sbin.display()));
        let found = |named: Option<&Path>| find(named.map(Path::as_os_str), Some(&command), Some(&search));
        let (code, text) = found(None).unwrap_err();
        assert!(code == exit::NOT_FOUND && text.contains("cargo build"), "{text}");
        program(&sbin.join(NAME), 0o755);
        assert_eq!(found(None), Ok(sbin.join(NAME)));
        program(&bin.join(NAME), 0o644);
        assert_eq!(found(None), Ok(sbin.join(NAME)), "no program");
        program(&bin.join(NAME), 0o755);
        assert_eq!(found(None), Ok(bin.join(NAME)));
        let other = dir.join("other");
        assert_eq!(
            found(Some(&other)).unwrap_err().0,
            exit::CANNOT_EXECUTE,
            "what is named is not looked for elsewhere"
        );
        program(&other, 0o755);
        assert_eq!(found(Some(&other)), Ok(other));
        assert_eq!(found(Some(Path::new(""))), Ok(bin.join(NAME)));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn its_settings_are_its_own_but_for_spinning() {
        let of = |spin: Option<&str>| {
            let inherited = [("CULVERT_PATH", "kernel"), ("CULVERT_PEERS", "own"), ("CULVERT_RING", "65536")];
            let inherited = inherited.map(|(k, v)| (k.into(), v.into())).to_vec();
            let all = run::environment(inherited, Path::new("/x/libculvert.so"), settings(spin.map(Into::into)));
            let get = |key: &str| all.iter().find(|(k, _)| k == key).map(|(_, v)| v.to_str().unwrap().to_owned());
            ["CULVERT_PATH", "CULVERT_PEERS", "CULVERT_STANDIN", "CULVERT_RING", "CULVERT_SPIN", "LD_PRELOAD"]
                .map(|k| get(k).unwrap())
        };
        assert_eq!(of(None), ["shm", "any", "1", "65536", "auto", "/x/libculvert.so"]);
        assert_eq!(of(Some("20"))[4], "20");
    }
}
