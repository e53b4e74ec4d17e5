//! Compiles a file of eBPF programs and writes their skeleton: part of build scripts.

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

/// The variable that names a compiler, and the names of Debian's and Fedora's.
const CLANGS: [&str; 8] = ["clang", "clang-14", "clang-15", "clang-16", "clang-17", "clang-18", "clang-19", "clang-20"];

/// Compiles `bpf/NAME.bpf.c` to `NAME.bpf.o` and `NAME.skel.rs`. `shared`: the way to this file's directory, where `headers.h` is.
pub fn skeleton(name: &str, shared: &str) -> ExitCode {
    let source = format!("bpf/{name}.bpf.c");
    println!("cargo::rerun-if-changed={shared}/headers.h");
    println!("cargo::rerun-if-changed={source}");
    println!("cargo::rerun-if-env-changed=CLANG");
    match build(&source, name, shared) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!("cargo::error={why}");
            ExitCode::FAILURE
        }
    }
}

fn build(source: &str, name: &str, shared: &str) -> Result<(), String> {
    let clang = compiler().ok_or(
        "eBPF programs need clang: apt-get install clang libelf-dev zlib1g-dev pkg-config make (or set CLANG)",
    )?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let machine = std::env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets the architecture");
    let mut builder = libbpf_cargo::SkeletonBuilder::new();
    // Debian keeps asm/types.h in a directory for the architecture, which clang knows for its own target only.
    let args = [format!("-I/usr/include/{machine}-linux-gnu"), format!("-I{shared}"), "-Wall".into()];
    builder.source(source).clang(clang).clang_args(args);
    builder.obj(out.join(format!("{name}.bpf.o")));
    builder
        .build_and_generate(out.join(format!("{name}.skel.rs")))
        .map_err(|error| format!("{source}: {error:#}").replace('\n', " "))
}

/// The first compiler that runs.
fn compiler() -> Option<String> {
    let runs = |clang: &String| {
        let mut command = Command::new(clang);
        command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
    };
    std::env::var("CLANG").ok().into_iter().chain(CLANGS.map(String::from)).find(runs)
}
