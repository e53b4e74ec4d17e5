//! Where libculvert.so is.

use std::path::{Path, PathBuf};

use crate::elf;

/// File name of the preload library.
pub const NAME: &str = "libculvert.so";

const STANDARD: [&str; 4] =
    ["/usr/local/lib", "/usr/local/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/usr/lib"];

/// The places looked into, in order: beside the command, `../lib/culvert`, the standard directories.
pub fn places(command: Option<&Path>) -> Vec<PathBuf> {
    let mut all = Vec::new();
    if let Some(dir) = command.and_then(Path::parent) {
        all.push(dir.join(NAME));
        if let Some(prefix) = dir.parent() {
            all.push(prefix.join("lib/culvert").join(NAME));
        }
    }
    all.extend(STANDARD.iter().map(|d| Path::new(d).join(NAME)));
    all
}

/// Finds the library, or takes `explicit`, and makes sure that `LD_PRELOAD` can name it.
pub fn find(explicit: Option<&Path>) -> Result<PathBuf, String> {
    let path = match explicit {
        Some(p) => std::path::absolute(p).map_err(|e| format!("{}: {e}", p.display()))?,
        None => {
            let places = places(std::env::current_exe().ok().as_deref());
            match places.iter().find(|p| p.is_file()) {
                Some(p) => p.clone(),
                None => {
                    let list: Vec<_> = places.iter().map(|p| p.display().to_string()).collect();
                    return Err(format!("{NAME} not found; looked for {}", list.join(", ")));
                }
            }
        }
    };
    usable(&path)?;
    Ok(path)
}

fn usable(path: &Path) -> Result<(), String> {
    elf::read(path).map_err(|e| format!("{}: {e}; it must be the {NAME} of this version", path.display()))?;
    // ld.so(8): the list is separated by spaces or colons, neither can be escaped, and $ORIGIN, $LIB and
    // $PLATFORM are expanded.
    let text = path.as_os_str().as_encoded_bytes();
    if text.iter().any(|b| b" :$".contains(b)) {
        return Err(format!(
            "{}: LD_PRELOAD cannot name a path with a space, a colon or a dollar sign",
            path.display()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_the_command_comes_first() {
        let all = places(Some(Path::new("/opt/x/bin/culvert")));
        assert_eq!(all[0], Path::new("/opt/x/bin/libculvert.so"));
        assert_eq!(all[1], Path::new("/opt/x/lib/culvert/libculvert.so"));
        assert!(all.contains(&PathBuf::from("/usr/lib/libculvert.so")));
    }

    #[test]
    fn a_library_that_is_none_is_refused() {
        assert!(find(Some(Path::new("/nonexistent/libculvert.so"))).is_err());
        assert!(find(Some(Path::new("/etc/passwd"))).unwrap_err().contains("ELF"));
    }
}
