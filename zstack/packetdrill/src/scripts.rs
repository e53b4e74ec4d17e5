//! Runs every script in `scripts`; one that is out of scope has failed.

use crate::run::{Outcome, run};
use std::path::Path;

#[test]
fn every_script_in_the_folder() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).expect("the scripts").map(|e| e.expect("a file").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "no script was run");
    let mut failed = 0;
    for file in &files {
        let name = file.file_name().expect("a name").to_string_lossy();
        let outcome = run(&std::fs::read_to_string(file).expect("a script"));
        // A file whose name says so must fail: the runner sees what differs.
        let wanted = !name.starts_with("fails-");
        match outcome {
            Outcome::Passed(_) if wanted => println!("passed {name}"),
            Outcome::Failed(_) if !wanted => println!("failed as it must {name}"),
            other => {
                failed += 1;
                println!("FAILED {name}: {other:?}");
            }
        }
    }
    assert_eq!(failed, 0, "see above");
}
