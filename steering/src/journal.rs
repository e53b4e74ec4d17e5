//! What has been begun, on disk before it is done: from it everything can be undone, whenever the process was killed.

use crate::item::Item;
use crate::step::{State, Step};
use crate::trouble::Trouble;
use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The file's format.
const VERSION: u32 = 1;

/// What the file says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    /// All of the last plan was done.
    complete: bool,
    steps: Vec<Step>,
}

/// The journal, which nobody else may use meanwhile.
pub struct Journal {
    directory: PathBuf,
    written: Written,
    _lock: Option<Flock<File>>,
}

impl Journal {
    /// Opens it for writing.
    pub fn open(directory: &Path) -> Result<Journal, Trouble> {
        let trouble = |e: &io::Error| Trouble::file(directory.display(), e);
        // What is to be undone as root must not be another user's to write.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|e| trouble(&e))?;
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(directory.join("lock"));
        let lock = lock.map_err(|e| trouble(&e))?;
        // The tools that are run have it as well: where this process is killed, nobody undoes beside one that is still at its change.
        fcntl(&lock, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|errno| trouble(&errno.into()))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            nix::errno::Errno::EAGAIN => {
                Trouble::new("another `culvert steer` works, or a tool that one has begun", "wait until it has ended")
            }
            errno => trouble(&errno.into()),
        })?;
        Ok(Journal { directory: directory.to_owned(), written: read(directory)?, _lock: Some(lock) })
    }

    /// Reads it only.
    pub fn look(directory: &Path) -> Result<Journal, Trouble> {
        Ok(Journal { directory: directory.to_owned(), written: read(directory)?, _lock: None })
    }

    /// All steps that were begun and not undone, the oldest first.
    pub fn steps(&self) -> &[Step] {
        &self.written.steps
    }

    /// Whether all of the last plan was done.
    pub fn is_complete(&self) -> bool {
        self.written.complete
    }

    /// What it has made and not taken away again: rules; and `Autoprobe`, where it has held back the drivers of new virtual functions and was
    /// broken off before it let them start.
    pub fn made(&self) -> Vec<Item> {
        let mut made: Vec<Item> = Vec::new();
        let last = self.written.steps.len().saturating_sub(1);
        for (at, step) in self.written.steps.iter().enumerate() {
            let makes = match &step.item {
                Item::Rule(..) | Item::Redirect(..) | Item::Forward(_) | Item::Receive(..) => "present",
                Item::Autoprobe(_) => "0",
                _ => continue,
            };
            // Of the last one it is not known whether it was done.
            if at < last || self.written.complete {
                made.retain(|item| *item != step.item);
            }
            if step.to == State::Is(makes.into()) && !made.contains(&step.item) {
                made.push(step.item.clone());
            }
        }
        made
    }

    /// A step is about to be done.
    pub(crate) fn begin(&mut self, step: Step) -> Result<(), Trouble> {
        self.written.complete = false;
        self.written.steps.push(step);
        self.save()
    }

    /// All has been done.
    pub(crate) fn complete(&mut self) -> Result<(), Trouble> {
        self.written.complete = true;
        self.save()
    }

    /// The last step has been undone.
    pub(crate) fn pop(&mut self) -> Result<(), Trouble> {
        self.written.complete = false;
        self.written.steps.pop();
        self.save()
    }

    /// The file as it was or as it is to be, whatever happens; on disk when this returns.
    fn save(&self) -> Result<(), Trouble> {
        let write = || {
            let path = self.directory.join("journal.json");
            let next = self.directory.join("journal.next");
            if self.written.steps.is_empty() {
                match fs::remove_file(&path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            } else {
                let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
                file.write_all(&serde_json::to_vec_pretty(&self.written)?)?;
                file.sync_all()?;
                fs::rename(&next, &path)?;
            }
            File::open(&self.directory)?.sync_all()
        };
        write().map_err(|e| Trouble::file(format!("{}: the journal", self.directory.display()), &e))
    }
}

fn read(directory: &Path) -> Result<Written, Trouble> {
    let path = directory.join("journal.json");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Ok(Written { version: VERSION, complete: true, steps: Vec::new() });
        }
        Err(e) => return Err(Trouble::file(path.display(), &e)),
    };
    let unreadable = |why: String| {
        let what = format!("{}: {why}", path.display());
        Trouble::new(
            what,
            "it is another version's, or was edited: undo with the version that has written it, or by hand and remove it",
        )
    };
    let written: Written = serde_json::from_slice(&text).map_err(|e| unreadable(e.to_string()))?;
    if written.version != VERSION {
        return Err(unreadable(format!("version {}", written.version)));
    }
    Ok(written)
}
