//! Files, in pieces of memory that are sent by reference.
//!
//! A piece is read (pread(2)) into memory of this process, once, and shared by all connections that send it. A mapping of the
//! file itself would save that copy, and is wrong twice: whoever truncates the file meanwhile kills the process (SIGBUS at
//! the next read of the payload), and whoever rewrites it changes bytes that may have to be sent again, so that the peer gets
//! a mixture under a good checksum, or fails its checksum when the change falls between summing and sending. A file that
//! changes here ends the responses that are under way, or completes them as they began.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use zstack::sockets::Still;

/// Bytes of a piece.
pub const PIECE: u64 = 256 << 10;

/// For so long a file is not looked at again.
const FRESH: Duration = Duration::from_secs(1);

/// Open files that are kept.
const OPEN: usize = 256;

/// A file as it was when it was opened.
#[derive(Debug)]
pub struct Served {
    file: File,
    pub len: u64,
    /// In seconds since 1970.
    pub modified: u64,
    pub tag: String,
    pub kind: &'static str,
    identity: Identity,
    /// Its number in the cache of pieces.
    number: u64,
}

/// If one of these changes, the file is another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Identity {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

/// Why a path is not served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Missing {
    NotFound,
    Forbidden,
    /// A directory, asked for without the slash behind.
    Directory,
    /// Out of descriptors, or an input/output error.
    Failed,
}

/// The files beneath a directory.
pub struct Files {
    root: File,
    open: HashMap<PathBuf, (Rc<Served>, Instant)>,
    pieces: HashMap<(u64, u64), Arc<[u8]>>,
    /// Keys of `pieces`, the oldest first: what was read first goes first.
    order: VecDeque<(u64, u64)>,
    cached: u64,
    most: u64,
    next: u64,
}

impl Files {
    /// Serves `root`, and keeps at most `most` bytes of files in memory (those that connections send still, apart).
    ///
    /// # Errors
    /// It is no directory, or cannot be read: a line for the user.
    pub fn new(root: &Path, most: u64) -> Result<Files, String> {
        let shown = root.display();
        let file = File::open(root).map_err(|e| format!("{shown}: {e}: give the directory whose files are served"))?;
        if !file.metadata().is_ok_and(|m| m.is_dir()) {
            return Err(format!("{shown} is no directory: give the directory whose files are served"));
        }
        if let Err(e) = crate::sys::open_beneath(file.as_fd(), Path::new(".")) {
            return Err(format!("{shown}: openat2: {e}: Linux 5.6 or newer is needed"));
        }
        let open = HashMap::new();
        Ok(Files { root: file, open, pieces: HashMap::new(), order: VecDeque::new(), cached: 0, most, next: 0 })
    }

    /// The file at `path`, beneath the root.
    ///
    /// # Errors
    /// It is not served.
    pub fn open(&mut self, path: &Path, directory: bool) -> Result<Rc<Served>, Missing> {
        let now = Instant::now();
        let index;
        let path = if directory || path.as_os_str().is_empty() {
            index = path.join("index.html");
            &index
        } else {
            path
        };
        if let Some((served, looked)) = self.open.get(path)
            && now.duration_since(*looked) < FRESH
        {
            return Ok(served.clone());
        }
        let file = crate::sys::open_beneath(self.root.as_fd(), path).map_err(|e| missing(&e))?;
        let meta = file.metadata().map_err(|_| Missing::Failed)?;
        if meta.is_dir() {
            return Err(if directory { Missing::NotFound } else { Missing::Directory });
        }
        if !meta.is_file() {
            return Err(Missing::Forbidden);
        }
        let identity = Identity {
            device: meta.dev(),
            inode: meta.ino(),
            len: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
        };
        if let Some((served, looked)) = self.open.get_mut(path)
            && served.identity == identity
        {
            *looked = now;
            return Ok(served.clone());
        }
        if self.open.len() >= OPEN {
            self.open.clear();
        }
        self.next += 1;
        let served = Rc::new(Served {
            file,
            len: identity.len,
            modified: u64::try_from(identity.modified.0).unwrap_or(0),
            tag: format!("\"{:x}-{:x}-{:x}\"", identity.len, identity.modified.0, identity.modified.1),
            kind: kind(path),
            identity,
            number: self.next,
        });
        self.open.insert(path.to_owned(), (served.clone(), now));
        Ok(served)
    }

    /// Bytes of a file from `from` on, at most up to `to`; never none, if `from < to`.
    ///
    /// # Errors
    /// It cannot be read, or is shorter than it was when it was opened.
    pub fn piece(&mut self, file: &Served, from: u64, to: u64) -> io::Result<Still> {
        let number = from / PIECE;
        let start = number * PIECE;
        let key = (file.number, number);
        let memory = match self.pieces.get(&key) {
            Some(memory) => memory.clone(),
            None => {
                let mut memory = vec![0; PIECE.min(file.len - start) as usize];
                file.file.read_exact_at(&mut memory, start)?;
                // A file that was truncated and has grown again would have a hole here: its time tells.
                let meta = file.file.metadata()?;
                if (meta.len(), (meta.mtime(), meta.mtime_nsec())) != (file.identity.len, file.identity.modified) {
                    return Err(io::Error::new(ErrorKind::UnexpectedEof, "the file was changed while it was sent"));
                }
                let memory: Arc<[u8]> = memory.into();
                self.keep(key, memory.clone());
                memory
            }
        };
        let end = (to - start).min(memory.len() as u64) as usize;
        Ok(Still::from(memory).slice((from - start) as usize..end))
    }

    fn keep(&mut self, key: (u64, u64), memory: Arc<[u8]>) {
        self.cached += memory.len() as u64;
        self.order.push_back(key);
        self.pieces.insert(key, memory);
        while self.cached > self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.cached -= self.pieces.remove(&oldest).map_or(0, |m| m.len() as u64);
        }
    }
}

fn missing(error: &io::Error) -> Missing {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG | libc::EINVAL) => Missing::NotFound,
        // EXDEV: the path leads out of the root by a symbolic link.
        Some(libc::EACCES | libc::EPERM | libc::EXDEV | libc::ELOOP | libc::ENXIO) => Missing::Forbidden,
        _ => Missing::Failed,
    }
}

fn kind(path: &Path) -> &'static str {
    match path.extension().and_then(|e| e.to_str()).unwrap_or("") {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "json" => "application/json",
        "txt" | "md" => "text/plain; charset=utf-8",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "wasm" => "application/wasm",
        "pdf" => "application/pdf",
        "xml" => "application/xml",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_file_s_bytes_and_a_truncated_file_is_an_error() {
        let dir = std::env::temp_dir().join(format!("zstack-files-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let bytes: Vec<u8> = (0..PIECE * 3 + 10).map(|i| (i % 251) as u8).collect();
        std::fs::write(dir.join("a"), &bytes).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.join("out")).unwrap();
        std::os::unix::fs::symlink("a", dir.join("in")).unwrap();
        let mut files = Files::new(&dir, PIECE * 2).unwrap();
        assert_eq!(files.open(Path::new("out"), false).unwrap_err(), Missing::Forbidden);
        assert_eq!(files.open(Path::new("b"), false).unwrap_err(), Missing::NotFound);
        assert_eq!(files.open(Path::new(""), true).unwrap_err(), Missing::NotFound);
        assert_eq!(files.open(Path::new("in"), false).unwrap().len, bytes.len() as u64);
        let served = files.open(Path::new("a"), false).unwrap();
        let (mut at, mut all) = (5, Vec::<u8>::new());
        while at < served.len - 3 {
            let piece = files.piece(&served, at, served.len - 3).unwrap();
            all.extend(piece.bytes().unwrap());
            at += piece.len() as u64;
            assert!(files.cached <= PIECE * 2);
        }
        assert_eq!(all, bytes[5..bytes.len() - 3]);
        // The last pieces are in memory still, the first is not.
        File::options().write(true).open(dir.join("a")).unwrap().set_len(100).unwrap();
        assert!(files.piece(&served, PIECE * 3, served.len).is_ok());
        assert!(files.piece(&served, 0, served.len).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
