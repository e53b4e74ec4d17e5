//! `culvert run`: put the library into LD_PRELOAD and become the program.
// Unsafe here: libc's calls.
#![allow(unsafe_code)]

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use crate::args::RunArgs;
use crate::settings::PathChoice;
use crate::visible::visible;
use crate::{exit, library, program, serving};

/// Runs the program; returns only if that failed, with the exit code.
pub fn main(args: RunArgs) -> u8 {
    if args.path == Some(PathChoice::Zstack)
        && let Err(why) = serving::ready()
    {
        eprintln!(
            "culvert: --path zstack: {}; {}, or use --path auto",
            visible(&serving::text(why)),
            serving::remedy(why)
        );
        return exit::FAILED;
    }
    let library = match library::find(args.library.as_deref()) {
        Ok(path) => path,
        Err(e) => {
            eprintln!("culvert: {}", visible(&e.to_string()));
            return exit::FAILED;
        }
    };
    let search = std::env::var_os("PATH");
    let checked = program::resolve(&args.program[0], search.as_deref())
        .and_then(|path| program::check(&path, &args.program[1..]));
    let program = match checked {
        Ok(p) => p,
        Err(e) => {
            eprintln!("culvert: {}", visible(&e.to_string()));
            return e.code();
        }
    };
    let set = [
        ("CULVERT_PATH", args.path.map(|v| v.to_string().into())),
        ("CULVERT_SPIN", args.spin.map(|v| v.to_string().into())),
        ("CULVERT_LOG", args.log.map(|v| v.to_string().into())),
        ("CULVERT_LOG_FILE", args.log_file.map(|v| v.into_os_string())),
        ("CULVERT_RING", args.ring.map(|v| v.to_string().into())),
        ("ASAN_OPTIONS", asan_options(&program.image.exports, std::env::var_os("ASAN_OPTIONS"))),
    ];
    let set = set.into_iter().filter_map(|(k, v)| Some((OsString::from(k), v?))).collect();
    let env = environment(std::env::vars_os().collect(), &library, set);
    become_program(&program.path, args.program, env)
}

/// Becomes the program in `path`; returns only if that failed, with the exit code, which has been said.
pub fn become_program(path: &Path, argv: Vec<OsString>, env: Vec<(OsString, OsString)>) -> u8 {
    let error = execute(path, argv, env);
    eprintln!("culvert: {}: {error}", visible(&path.to_string_lossy()));
    match error.raw_os_error() {
        Some(libc::ENOENT) => exit::NOT_FOUND,
        _ => exit::CANNOT_EXECUTE,
    }
}

/// AddressSanitizer's runtime starts behind a preloaded library because the library has the options that say so, unless the
/// program has some built in: those hide the library's. Then the environment, which comes behind both, says so.
fn asan_options(exports: &[String], inherited: Option<OsString>) -> Option<OsString> {
    let own = exports.iter().any(|name| name == "__asan_default_options");
    own.then(|| {
        let mut options = inherited.unwrap_or_default();
        if !options.is_empty() {
            options.push(":");
        }
        options.push("verify_asan_link_order=0");
        options
    })
}

/// The caller's environment with `set` replaced and the library at the end of LD_PRELOAD: what the user
/// preloads keeps its place before ours, and sees the program's calls first, as it does without culvert.
pub fn environment(
    inherited: Vec<(OsString, OsString)>,
    library: &Path,
    set: Vec<(OsString, OsString)>,
) -> Vec<(OsString, OsString)> {
    let mut env = inherited;
    for (key, value) in set {
        env.retain(|(k, _)| *k != key);
        env.push((key, value));
    }
    let old = env.iter().find(|(k, _)| k == "LD_PRELOAD").map(|(_, v)| v.clone()).unwrap_or_default();
    let named = old.as_bytes().split(|b| b" :".contains(b)).any(|p| p == library.as_os_str().as_bytes());
    if !named {
        let mut value = old;
        if !value.is_empty() {
            value.push(":");
        }
        value.push(library);
        env.retain(|(k, _)| k != "LD_PRELOAD");
        env.push(("LD_PRELOAD".into(), value));
    }
    env
}

fn execute(path: &Path, argv: Vec<OsString>, env: Vec<(OsString, OsString)>) -> std::io::Error {
    let joined = env.into_iter().map(|(mut k, v)| {
        k.push("=");
        k.push(v);
        k
    });
    let (Ok(path), Ok(argv), Ok(env)) = (
        c_string(path.as_os_str()),
        argv.into_iter().map(c_owned).collect::<Result<Vec<_>, _>>(),
        joined.map(c_owned).collect::<Result<Vec<_>, _>>(),
    ) else {
        return std::io::ErrorKind::InvalidInput.into();
    };
    let pointers =
        |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>();
    let (argv_p, env_p) = (pointers(&argv), pointers(&env));
    // SAFETY: the path is a terminated string, both arrays are null-terminated arrays of such, and all
    // of them outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv_p.as_ptr(), env_p.as_ptr()) };
    std::io::Error::last_os_error()
}

fn c_string(s: &OsStr) -> Result<CString, std::ffi::NulError> {
    CString::new(s.as_bytes())
}

fn c_owned(s: OsString) -> Result<CString, std::ffi::NulError> {
    CString::new(s.into_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)], set: &[(&str, &str)]) -> Vec<(String, String)> {
        let own =
            |p: &[(&str, &str)]| p.iter().map(|(k, v)| (OsString::from(k), OsString::from(v))).collect::<Vec<_>>();
        let mut all: Vec<_> = environment(own(pairs), Path::new("/x/libculvert.so"), own(set))
            .into_iter()
            .map(|(k, v)| (k.into_string().unwrap(), v.into_string().unwrap()))
            .collect();
        all.sort();
        all
    }

    fn pairs(p: &[(&str, &str)]) -> Vec<(String, String)> {
        p.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn the_library_is_appended_once() {
        assert_eq!(env(&[], &[]), pairs(&[("LD_PRELOAD", "/x/libculvert.so")]));
        assert_eq!(env(&[("LD_PRELOAD", "a.so b.so")], &[]), pairs(&[("LD_PRELOAD", "a.so b.so:/x/libculvert.so")]));
        let already = [("LD_PRELOAD", "/x/libculvert.so:a.so")];
        assert_eq!(env(&already, &[]), pairs(&already));
    }

    #[test]
    fn options_that_a_program_has_built_in_are_completed() {
        let own = ["main".to_string(), "__asan_default_options".to_string()];
        assert_eq!(asan_options(&own[..1], Some("a=1".into())), None);
        assert_eq!(asan_options(&own, None), Some("verify_asan_link_order=0".into()));
        assert_eq!(asan_options(&own, Some("a=1".into())), Some("a=1:verify_asan_link_order=0".into()));
    }

    #[test]
    fn settings_replace_inherited_ones_and_the_rest_stays() {
        assert_eq!(
            env(&[("CULVERT_PATH", "kernel"), ("HOME", "/root")], &[("CULVERT_PATH", "shm")]),
            pairs(&[("CULVERT_PATH", "shm"), ("HOME", "/root"), ("LD_PRELOAD", "/x/libculvert.so")])
        );
    }
}
