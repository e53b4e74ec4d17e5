//! Compiles the eBPF programs of the front.

#[path = "bpf/build.rs"]
mod bpf;

fn main() -> std::process::ExitCode {
    bpf::skeleton("turn", "bpf")
}
