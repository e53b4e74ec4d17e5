//! Every file of `traces/` is a test of its name.

use std::process::ExitCode;

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/traces");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).expect("the folder of traces").map(|f| f.expect("a file").path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "trace"));
    files.retain(|f| wanted.is_empty() || wanted.iter().any(|w| f.to_string_lossy().contains(w.as_str())));
    files.sort();
    if std::env::args().any(|a| a == "--list") {
        files.iter().for_each(|f| println!("{}: test", f.file_stem().expect("a name").to_string_lossy()));
        return ExitCode::SUCCESS;
    }
    let mut failed = 0;
    for file in &files {
        let name = file.file_stem().expect("a name").to_string_lossy();
        let text = std::fs::read_to_string(file).expect("a readable file");
        match zstack_sim::trace::run(&text) {
            Ok(log) if wanted.len() == 1 => println!("test {name} ... ok\n  {}", log.join("\n  ")),
            Ok(_) => println!("test {name} ... ok"),
            Err(e) => {
                println!("test {name} ... FAILED\n{e}");
                failed += 1;
            }
        }
    }
    if wanted.is_empty() && files.len() < 45 {
        println!("FAILED: there are {} traces only", files.len());
        failed += 1;
    }
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {result}. {} passed; {failed} failed", files.len() - failed.min(files.len()));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
