//! `culvert stat` for people.

use std::fmt::Write;

use super::family::Direction;
use super::{Connection, Report};

/// One block per process, one line per connection.
pub fn text(report: &Report) -> String {
    if report.processes.is_empty() {
        return "no process under culvert (that you may see)\n".into();
    }
    let mut out = String::new();
    for p in &report.processes {
        let on = p.connections.iter().filter(|c| c.path != "kernel").count();
        let _ = writeln!(out, "{} {}", p.pid, shorten(&p.command));
        match (&p.error, p.disabled_text) {
            (Some(e), _) => {
                let _ = writeln!(out, "  state unreadable: {e}\n");
                continue;
            }
            (None, Some(text)) => {
                let _ = writeln!(out, "  path {}, nothing is accelerated: {text}", p.path);
            }
            (None, None) => {
                let _ =
                    writeln!(out, "  path {}, {} of {} connections on shared memory", p.path, on, p.connections.len());
            }
        }
        if !p.connections.is_empty() {
            let rows: Vec<_> = [HEAD.map(String::from)].into_iter().chain(p.connections.iter().map(row)).collect();
            out += &columns(&rows);
        }
        out.push('\n');
    }
    out
}

const HEAD: [&str; 9] = [
    "FD",
    "LOCAL",
    "PEER",
    "PATH",
    "RECEIVED (BYTES/MSGS)",
    "SENT (BYTES/MSGS)",
    "BELLS",
    "SPINS WON/LOST",
    "SWITCHED AT (RX/TX)",
];

fn row(c: &Connection) -> [String; 9] {
    let traffic = |d: &Direction| match d.path {
        "shm" => format!("{}/{}", d.bytes, d.messages),
        _ if d.bytes == 0 => d.phase.into(),
        _ => format!("{}/{} {}", d.bytes, d.messages, d.phase),
    };
    let at = |d: &Direction| d.switched_up_at.map_or("-".into(), |n| n.to_string());
    let mut tail = format!("{}/{}", at(&c.rx), at(&c.tx));
    if let Some(text) = c.reason_text {
        tail += &format!("  {text}");
    }
    if let Some(o) = &c.outer {
        tail += &format!(
            "  on the wire ({}): {}, cwnd {}, srtt {} us, {} retransmits, copied {} in, {} out",
            o.port, o.state, o.cwnd, o.srtt_us, o.retransmits, o.copied_in, o.copied_out
        );
    }
    [
        c.fd.map_or("-".into(), |fd| fd.to_string()),
        c.local.clone(),
        c.peer.clone(),
        c.path.into(),
        traffic(&c.rx),
        traffic(&c.tx),
        c.doorbells.to_string(),
        format!("{}/{}", c.spins_won, c.spins_lost),
        tail,
    ]
}

/// Pads every column but the last to its widest cell.
pub fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width: Vec<_> = (0..N).map(|i| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let line: String = row.iter().zip(&width).map(|(cell, w)| format!("  {cell:<w$}")).collect();
        out += line.trim_end();
        out.push('\n');
    }
    out
}

fn shorten(command: &str) -> String {
    match command.char_indices().nth(100) {
        Some((at, _)) => format!("{}...", &command[..at]),
        None => command.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["a".into(), "bb".into(), "c".into()], ["aaa".into(), "b".into(), "".into()]];
        assert_eq!(columns(&rows), "  a    bb  c\n  aaa  b\n");
    }

    #[test]
    fn long_commands_are_cut_between_characters() {
        let cut = shorten(&"é".repeat(300));
        assert_eq!(cut.chars().count(), 103);
    }
}
