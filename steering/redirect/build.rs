//! Compiles the eBPF programs.

#[path = "../../zstack/zstackd/bpf/build.rs"]
mod bpf;

fn main() -> std::process::ExitCode {
    bpf::skeleton("redirect", "../../zstack/zstackd/bpf")
}
