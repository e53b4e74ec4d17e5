//! A running tool tells of itself: whoever connects to its Unix socket gets a report in JSON, and `zstack stat` shows it.

use crate::transport::{Named, Report, Transport};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The socket of a running tool; its path goes with it.
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Makes the socket, for this user only. A socket that nobody listens at any more is replaced.
    ///
    /// # Errors
    /// A line for the user.
    pub fn new(path: &Path) -> Result<Control, String> {
        let shown = path.display();
        let listener = match UnixListener::bind(path) {
            Err(e) if e.kind() == ErrorKind::AddrInUse => {
                if UnixStream::connect(path).is_ok() {
                    return Err(format!("--control {shown}: another zstack listens there: choose another path"));
                }
                use std::os::unix::fs::FileTypeExt;
                if !std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
                    return Err(format!("--control {shown}: a file that is no socket is there: choose another path"));
                }
                std::fs::remove_file(path).and_then(|()| UnixListener::bind(path))
            }
            result => result,
        };
        let listener = listener.map_err(|e| {
            let remedy = match e.kind() {
                ErrorKind::NotFound => "make its folder first, or choose another path",
                ErrorKind::InvalidInput => "a socket's path has at most 107 bytes: choose a shorter one",
                _ => "choose another path",
            };
            format!("--control {shown}: {e}: {remedy}")
        })?;
        let prepare = || {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)
        };
        prepare().map_err(|e| format!("--control {shown}: {e}"))?;
        Ok(Control { listener, path: path.to_owned() })
    }

    pub fn fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    /// Answers whoever asks; one who does not read is given up after 100 ms.
    pub fn answer(&mut self, transport: &mut dyn Transport) {
        while let Ok((mut stream, _)) = self.listener.accept() {
            let json = serde_json::to_vec(&transport.report()).unwrap_or_default();
            let _ = stream.set_nonblocking(false);
            let _ = stream.set_write_timeout(Some(Duration::from_millis(100)));
            let _ = stream.write_all(&json);
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// `zstack stat`. Who does not answer within `patience` is given up.
///
/// # Errors
/// A line for the user.
pub fn stat(path: &Path, patience: Duration, json: bool) -> Result<(), String> {
    let shown = path.display();
    let text = ask(path.to_owned(), patience)?;
    let report: Report = serde_json::from_str(&text)
        .map_err(|e| format!("--control {shown}: not a report: {e}: is it a zstack that listens there?"))?;
    if json {
        crate::out::line(format_args!("{text}"));
    } else {
        crate::out::text(format_args!("{}", show(&report)));
    }
    Ok(())
}

/// What the other side sends until it closes. A thread asks, since neither a connect to a full backlog nor bytes that come one by one have
/// an end of their own.
fn ask(path: PathBuf, patience: Duration) -> Result<String, String> {
    let shown = path.display().to_string();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let shown = path.display();
        let mut text = String::new();
        let result = UnixStream::connect(&path)
            .map_err(|e| format!("--control {shown}: {e}: is a zstack running with this --control?"))
            .and_then(|mut s| s.read_to_string(&mut text).map_err(|e| format!("--control {shown}: {e}: ask again")));
        let _ = sender.send(result.map(|_| text));
    });
    receiver.recv_timeout(patience).unwrap_or_else(|_| {
        Err(format!(
            "--control {shown}: no answer within {} s: it is stopped (kill -CONT), or it is no zstack that listens there",
            patience.as_secs_f32()
        ))
    })
}

fn show(report: &Report) -> String {
    let mut text = String::new();
    if !report.port.is_empty() {
        text += "port\n";
    }
    for Named { name, value } in &report.port {
        text += &format!("  {name:<34} {value}\n");
    }
    text += "counters (those that are not 0)\n";
    for (name, n) in report.counters.iter().filter(|(_, n)| **n > 0) {
        text += &format!("  {name:<34} {n}\n");
    }
    text += &format!("connections: {}\n", report.connections.len());
    if !report.connections.is_empty() {
        text += &format!(
            "  {:<24} {:<24} {:<13} {:>10} {:>10} {:>9} {:>7} {:>10}\n",
            "local", "remote", "state", "cwnd B", "ssthresh B", "srtt us", "retrans", "flight B"
        );
    }
    for c in &report.connections {
        let ssthresh = c.ssthresh.map_or_else(|| "-".to_owned(), |n| n.to_string());
        text += &format!(
            "  {:<24} {:<24} {:<13} {:>10} {ssthresh:>10} {:>9} {:>7} {:>10}\n",
            c.local, c.remote, c.state, c.cwnd, c.srtt_us, c.retransmits, c.in_flight
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Connection;

    #[test]
    fn a_report_survives_json_and_is_shown() {
        let mut report = Report::default();
        report.counters.insert("tcp_bad_checksum".into(), 3);
        report.counters.insert("tcp_nothing".into(), 0);
        report.connections.push(Connection {
            local: "10.0.0.1:80".into(),
            state: "established".into(),
            srtt_us: 120,
            ..Connection::default()
        });
        let report: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        let text = show(&report);
        assert!(text.contains("tcp_bad_checksum") && text.contains("established") && text.contains("120"), "{text}");
        assert!(!text.contains("tcp_nothing"));
    }

    #[test]
    fn one_who_does_not_answer_is_given_up() {
        let path = std::env::temp_dir().join(format!("zstack-mute-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let _mute = UnixListener::bind(&path).unwrap();
        let error = stat(&path, Duration::from_millis(50), false).unwrap_err();
        std::fs::remove_file(&path).unwrap();
        assert!(error.contains("no answer within 0.05 s") && error.contains("zstack-mute"), "{error}");
    }

    #[test]
    fn paths_that_no_socket_can_have() {
        let long = format!("/tmp/{}", "x".repeat(120));
        for (path, remedy) in [("/nonexistent/x", "make its folder"), (&long, "at most 107 bytes")] {
            let error = Control::new(Path::new(path)).err().unwrap();
            assert!(error.contains(path) && error.contains(remedy), "{error}");
        }
    }

    #[test]
    fn a_socket_that_nobody_listens_at_is_replaced_and_a_file_is_not() {
        let dir = std::env::temp_dir().join(format!("zstack-control-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("socket");
        drop(UnixListener::bind(&path).unwrap());
        let control = Control::new(&path).unwrap();
        assert!(Control::new(&path).err().unwrap().contains("another zstack"));
        drop(control);
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert!(Control::new(&path).err().unwrap().contains("no socket"));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
