//! Compiles the eBPF programs.

#[path = "../../zstack/zstackd/bpf/build.rs"]
mod bpf;

fn main() -> std::process::ExitCode {
    println!("cargo::rerun-if-changed=bpf/rules.h");
    // What the first has failed with stops cargo, whatever the second says.
    bpf::skeleton("redirect", "../../zstack/zstackd/bpf");
    bpf::skeleton("receive", "../../zstack/zstackd/bpf")
}
