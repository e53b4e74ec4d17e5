//! A running tool tells of itself: whoever connects to its Unix socket gets a report in JSON, and `zstack stat` shows it.

use crate::transport::{Report, Transport};
use std::io::{Read, Write};
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
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
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
        let listener = listener.map_err(|e| format!("--control {shown}: {e}"))?;
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

/// `zstack stat`.
///
/// # Errors
/// A line for the user.
pub fn stat(path: &Path, json: bool) -> Result<(), String> {
    let shown = path.display();
    let mut stream = UnixStream::connect(path)
        .map_err(|e| format!("--control {shown}: {e}: is a zstack running with this --control?"))?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|e| format!("--control {shown}: {e}"))?;
    let report: Report = serde_json::from_str(&text).map_err(|e| format!("--control {shown}: not a report: {e}"))?;
    let mut out = std::io::stdout().lock();
    let result = if json { writeln!(out, "{text}") } else { write!(out, "{}", show(&report)) };
    // A closed pipe (`| head`) is no failure.
    let _ = result;
    Ok(())
}

fn show(report: &Report) -> String {
    let mut text = String::from("counters (those that are not 0)\n");
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
