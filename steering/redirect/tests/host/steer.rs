//! Plans of `culvert steer`, by its library, and commands that are killed.

use std::path::{Path, PathBuf};
use steering::{Config, Journal, Linux, Step};

/// The commands are found beside the program that runs them: cargo puts tests one directory deeper.
pub fn beside() {
    let own = std::env::current_exe().expect("a path");
    let link = own.parent().expect("a directory").join("culvert-redirect");
    let binary = Path::new(env!("CARGO_BIN_EXE_culvert-redirect"));
    if std::fs::read_link(&link).is_ok_and(|to| to == binary) {
        return;
    }
    // Another test process may do the same.
    let _ = std::fs::remove_file(&link);
    let _ = std::os::unix::fs::symlink(binary, &link);
}

/// A journal of its own, and plans.
pub struct Steer {
    pub directory: PathBuf,
    pub system: Linux,
}

impl Steer {
    pub fn new() -> Steer {
        beside();
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("steer-{}", std::process::id()));
        Steer { directory, system: Linux::new() }
    }

    pub fn plan(&self, text: &str) -> Vec<Step> {
        let config = Config::parse(text).unwrap_or_else(|e| panic!("{e}"));
        let made = Journal::look(&self.directory).expect("a journal").made();
        steering::plan(&config, &self.system, &made).unwrap_or_else(|e| panic!("{e:?}"))
    }

    /// How many steps it took.
    pub fn apply(&mut self, text: &str) -> usize {
        let steps = self.plan(text);
        let mut journal = Journal::open(&self.directory).expect("a journal");
        steering::apply(&mut self.system, &mut journal, &steps, &mut |_| {}).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(self.differences(text), Vec::<String>::new());
        drop(journal);
        assert_eq!(self.plan(text), []);
        steps.len()
    }

    pub fn differences(&self, text: &str) -> Vec<String> {
        let config = Config::parse(text).expect("a file");
        let all = steering::verify(&config, &self.system).unwrap_or_else(|e| panic!("{e:?}"));
        all.iter().map(ToString::to_string).collect()
    }

    pub fn undo(&mut self) {
        let mut journal = Journal::open(&self.directory).expect("a journal");
        let undone = steering::undo(&mut self.system, &mut journal, &mut |_| {}).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(undone.left, Vec::<String>::new());
    }
}

impl Drop for Steer {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Puts a script in the place of the command, which kills it at its call `at` of this kind if it does this; no call: writes them down.
pub fn kill(call: &str, action: &str, at: Option<usize>, calls: &Path) {
    let tool = env!("CARGO_BIN_EXE_culvert-redirect");
    let inject = at.map(|at| format!("-e inject={call}:signal=KILL:when={at}")).unwrap_or_default();
    let out = calls.display();
    let text = format!(
        "#!/bin/sh\ncase \"$* \" in \"{action} \"*) exec strace -qq -o {out} -e trace={call} {inject} {tool} \"$@\";; esac\nexec {tool} \"$@\"\n"
    );
    let link = std::env::current_exe().expect("a path").with_file_name("culvert-redirect");
    let _ = std::fs::remove_file(&link);
    std::fs::write(&link, text).expect("a script");
    std::fs::set_permissions(&link, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a program");
}
