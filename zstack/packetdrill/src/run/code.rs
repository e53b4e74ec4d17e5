//! The assertions of a script about TCP_INFO.

use super::{Runner, Stop};
use crate::script::{number, split};
use libc::{IPPROTO_TCP, TCP_INFO};

impl Runner {
    /// Evaluates `assert` statements.
    pub(super) fn code(&mut self, code: &str) -> Result<(), Stop> {
        for line in code.split(['\n', ';']).map(|l| l.split('#').next().unwrap_or("").trim()) {
            let Some(condition) = line.strip_prefix("assert") else { continue };
            let condition = split(condition.trim()).first().cloned().unwrap_or_default();
            for part in condition.trim_matches(['(', ')']).split(" and ") {
                match self.holds(part) {
                    Some((true, _)) => {}
                    Some((false, left)) => return Err(format!("{} does not hold: {left}", part.trim()).into()),
                    None => self.notes.push(format!("not looked at: {}", part.trim())),
                }
            }
        }
        Ok(())
    }

    /// Whether a comparison holds, and what its left side is; `None`: it is about something that is not known.
    fn holds(&mut self, text: &str) -> Option<(bool, i64)> {
        let (operator, at) = ["==", "!=", ">=", "<=", ">", "<"].iter().find_map(|o| text.find(o).map(|at| (*o, at)))?;
        let (a, b) = (self.value(&text[..at])?, self.value(&text[at + operator.len()..])?);
        let holds = match operator {
            "==" => a == b,
            "!=" => a != b,
            ">=" => a >= b,
            "<=" => a <= b,
            ">" => a > b,
            _ => a < b,
        };
        Some((holds, a))
    }

    fn value(&mut self, text: &str) -> Option<i64> {
        let text = text.trim().trim_matches(['(', ')']);
        if let Some(n) = number(text) {
            return Some(n);
        }
        if let Some((a, b)) = text.split_once('+') {
            return Some(self.value(a)? + self.value(b)?);
        }
        // The last descriptor that was opened is the one that packetdrill asks.
        let fd = *self.fds.iter().max_by_key(|(script, _)| **script)?.1;
        let bytes = self.face.option(fd, IPPROTO_TCP, TCP_INFO).ok()?;
        let long = |at: usize| i64::from(u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("4 bytes")));
        Some(match text {
            "tcpi_state" => i64::from(bytes[0]),
            "tcpi_rto" => long(8),
            "tcpi_snd_mss" => long(16),
            "tcpi_advmss" => long(84),
            "tcpi_unacked" => long(24),
            "tcpi_sacked" => long(28),
            "tcpi_rtt" => long(68),
            "tcpi_rttvar" => long(72),
            "tcpi_snd_ssthresh" => long(76),
            "tcpi_snd_cwnd" => long(80),
            "tcpi_total_retrans" => long(100),
            // Linux counts the SYN of a connection that we opened.
            "tcpi_bytes_acked" => self.face.info(fd)?.tcp.acknowledged as i64 + i64::from(self.active),
            "tcpi_bytes_received" => self.face.info(fd)?.tcp.received as i64,
            "TCP_INFINITE_SSTHRESH" => 0x7fff_ffff,
            "TCP_ESTABLISHED" => 1,
            "TCP_SYN_SENT" => 2,
            "TCP_FIN_WAIT1" => 4,
            "TCP_FIN_WAIT2" => 5,
            "TCP_CLOSE" => 7,
            "TCP_CLOSE_WAIT" => 8,
            _ => return None,
        })
    }
}
