//! Compiles the XDP program.

#[path = "../../zstack/zstackd/bpf/build.rs"]
mod bpf;

fn main() -> std::process::ExitCode {
    bpf::skeleton("split", "../../zstack/zstackd/bpf")
}
