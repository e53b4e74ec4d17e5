//! The side of who asks.

use crate::socket;
use crate::told::{CONNECTIONS, Connection, Error, LINE, MOST};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// For how long an answer is waited for: to its end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks the zstackd of user `owner` at the Unix socket `name` (a path, or an abstract name behind `@`) for its connections. Blocks for
/// two seconds at most.
///
/// # Errors
/// [`Error`].
pub fn ask(name: &str, owner: u32) -> Result<Vec<Connection>, Error> {
    ask_within(name, owner, PATIENCE)
}

/// The same, in another time.
///
/// # Errors
/// [`Error`].
pub fn ask_within(name: &str, owner: u32, patience: Duration) -> Result<Vec<Connection>, Error> {
    let until = Instant::now() + patience;
    let mut stream = socket::connect(name).ok_or(Error::Name)?.map_err(Error::Connect)?;
    match socket::owner(&stream).map_err(Error::Connect)? {
        uid if uid == owner => {}
        uid => return Err(Error::Stranger(uid)),
    }
    stream.set_nonblocking(false).map_err(Error::Io)?;
    within(&stream, until)?;
    stream.write_all(format!("{CONNECTIONS}\n").as_bytes()).map_err(failed)?;
    let mut all = Vec::new();
    // What has come of the line that is not complete.
    let mut rest = Vec::new();
    let mut buffer = vec![0; 16 * LINE];
    loop {
        within(&stream, until)?;
        let n = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(failed(e)),
        };
        let mut pieces = buffer[..n].split(|b| *b == b'\n');
        rest.extend_from_slice(pieces.next().unwrap_or_default());
        for piece in pieces {
            if all.len() == MOST {
                return Err(Error::Long);
            }
            all.push(connection(&rest)?);
            rest.clear();
            rest.extend_from_slice(piece);
        }
        if rest.len() > LINE {
            return Err(Error::Long);
        }
    }
    // A line without its end is not all of it.
    if rest.is_empty() { Ok(all) } else { Err(Error::Io(io::ErrorKind::UnexpectedEof.into())) }
}

/// What remains of the time is what the next call may take.
fn within(stream: &UnixStream, until: Instant) -> Result<(), Error> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Error::Late);
    }
    stream.set_read_timeout(Some(left)).and_then(|()| stream.set_write_timeout(Some(left))).map_err(Error::Io)
}

fn failed(e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Late,
        _ => Error::Io(e),
    }
}

fn connection(line: &[u8]) -> Result<Connection, Error> {
    if line.len() > LINE {
        return Err(Error::Long);
    }
    serde_json::from_slice::<Connection>(line).ok().filter(Connection::is_sound).ok_or(Error::Nonsense)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::told::tests::connection as told;
    use crate::told::{Question, TEXT, line};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread::JoinHandle;

    fn me() -> u32 {
        let (a, _b) = UnixStream::pair().unwrap();
        socket::owner(&a).unwrap()
    }

    /// A server that answers one question with these bytes; its name. It hangs up, unless `hangs`: then when the asker does.
    fn server(answer: Vec<u8>, hangs: bool) -> (String, JoinHandle<Vec<u8>>) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("zstack-control-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut s, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            while Question::of(&asked) == Question::NotYet {
                let mut b = [0; 5];
                let n = s.read(&mut b).unwrap();
                assert!(n > 0);
                asked.extend_from_slice(&b[..n]);
            }
            // Who asked may have gone.
            let _ = s.write_all(&answer);
            if hangs {
                let _ = s.read(&mut [0]);
            }
            asked
        });
        (format!("@{name}"), thread)
    }

    fn answered(answer: impl Into<Vec<u8>>) -> Result<Vec<Connection>, Error> {
        let (name, thread) = server(answer.into(), false);
        let got = ask(&name, me());
        assert_eq!(thread.join().unwrap(), b"connections\n");
        got
    }

    #[test]
    fn what_is_told_is_heard() {
        assert_eq!(answered("").unwrap(), []);
        let all: Vec<_> = (1..=5000).map(told).collect();
        let text: String = all.iter().map(line).collect();
        assert_eq!(answered(text).unwrap(), all);
        // A later one may say more.
        let more = line(&told(1)).replace("{", "{\"pacing\":[1,{}],");
        assert_eq!(answered(more).unwrap(), [told(1)]);
    }

    #[test]
    fn by_path_as_well() {
        let path = std::env::temp_dir().join(format!("zstack-control-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut s, _) = listener.accept().unwrap();
            s.write_all(line(&told(9)).as_bytes()).unwrap();
            // What was asked is read, or closing would be a reset.
            let _ = s.read(&mut [0; 64]);
        });
        assert_eq!(ask(path.to_str().unwrap(), me()).unwrap(), [told(9)]);
        thread.join().unwrap();
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn an_answer_that_is_none_is_an_error_and_soon() {
        let good = line(&told(1));
        let cut = &good[..good.len() - 1];
        assert!(matches!(answered(cut), Err(Error::Io(_))));
        for bad in ["\n", "{}\n", "nonsense\n", &format!("{good}\n"), "\u{0}\n"] {
            assert!(matches!(answered(bad), Err(Error::Nonsense)), "{bad:?}");
        }
        for (from, to) in [
            ("established", "est ablished"),
            ("established", "\\u001b[31m"),
            ("af_packet", &"x".repeat(TEXT_AND_ONE)),
            ("14600", "-1"),
            ("14600", "1e99"),
            ("10.0.0.1:1", "example.org:1"),
        ] {
            let bad = good.replace(from, to);
            assert_ne!(bad, good);
            assert!(matches!(answered(bad), Err(Error::Nonsense)), "{to}");
        }
        assert!(matches!(answered(vec![b'x'; 1 << 20]), Err(Error::Long)));
        let padded = good.replace('{', &format!("{{{}", " ".repeat(LINE)));
        assert!(matches!(answered(padded), Err(Error::Long)));
        let deep = "[".repeat(LINE - 1) + "\n";
        assert!(matches!(answered(deep), Err(Error::Nonsense)));
    }

    const TEXT_AND_ONE: usize = TEXT + 1;

    #[test]
    fn one_that_does_not_end_is_left() {
        let (name, thread) = server(line(&told(1)).into(), true);
        let begin = Instant::now();
        assert!(matches!(ask_within(&name, me(), Duration::from_millis(100)), Err(Error::Late)));
        assert!(begin.elapsed() < Duration::from_secs(5));
        thread.join().unwrap();
        // And one that sends a little all the time.
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name[1..]).unwrap()).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut s, _) = listener.accept().unwrap();
            while s.write_all(line(&told(1)).as_bytes()).is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        assert!(matches!(ask_within(&name, me(), Duration::from_millis(100)), Err(Error::Late)));
        thread.join().unwrap();
    }

    #[test]
    fn nobody_a_stranger_and_no_name() {
        assert!(matches!(ask("@zstack-control-nobody", me()), Err(Error::Connect(_))));
        assert!(matches!(ask("/nonexistent", me()), Err(Error::Connect(_))));
        for name in ["", "@", "relative", "/\0", &format!("/{}", "x".repeat(107))] {
            assert!(matches!(ask(name, me()), Err(Error::Name)), "{name:?}");
        }
        let name = format!("zstack-control-stranger-{}", std::process::id());
        let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        assert!(matches!(ask(&format!("@{name}"), me() + 1), Err(Error::Stranger(uid)) if uid == me()));
    }
}
