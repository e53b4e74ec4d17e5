//! The `culvert` command: run programs under culvert, see what is accelerated and why the rest is not,
//! and measure it against the kernel.
//!
//! Exit codes are named in [`exit`]. `culvert run` replaces itself with the program, so that its exit
//! status, its signals and its process id are the program's own.
//!
//! There is no Rust `main`: the standard library's start-up code ignores SIGPIPE and opens `/dev/null`
//! over closed standard descriptors, and a program started by `culvert run` would inherit both.
#![cfg_attr(not(test), no_main)]
#![cfg_attr(test, allow(dead_code))]
#![deny(unsafe_code)]

mod args;
mod bench;
mod doctor;
mod elf;
mod exit;
mod library;
mod netdiag;
mod program;
mod recall;
mod run;
mod serving;
mod settings;
mod stat;
mod steer;
mod visible;
mod workload;
mod zstackd;

/// Entry point, called by libc.
// Unsafe here: its name is libc's to find.
#[cfg(not(test))]
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub extern "C" fn main(_argc: std::ffi::c_int, _argv: *const *const std::ffi::c_char) -> std::ffi::c_int {
    // std's args_os() does not depend on its start-up code: on glibc it is filled in from .init_array.
    i32::from(dispatch(std::env::args_os().collect()))
}

fn dispatch(argv: Vec<std::ffi::OsString>) -> u8 {
    use args::Command;
    match args::parse(argv) {
        Err(code) => code,
        Ok(Command::Run(a)) => run::main(a),
        Ok(Command::Stat(a)) => stat::main(&a),
        Ok(Command::Kernel(a)) => recall::main(&a),
        Ok(Command::Doctor(a)) => doctor::main(&a),
        Ok(Command::Zstackd(a)) => zstackd::main(a),
        Ok(Command::Steer(a)) => steer::main(&a),
        Ok(Command::Bench(a)) => bench::main(&a),
        Ok(Command::Workload(a)) => workload::main(&a),
    }
}
