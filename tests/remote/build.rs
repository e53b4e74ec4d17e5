//! Compiles the eBPF programs that lead connections to oneself over the wire.

#[path = "../../zstack/zstackd/bpf/build.rs"]
mod bpf;

fn main() -> std::process::ExitCode {
    bpf::skeleton("away", "../../zstack/zstackd/bpf")
}
