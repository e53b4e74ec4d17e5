//! `differ`: see [`differ::cli`].

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    std::process::exit(differ::cli::main(&args));
}
