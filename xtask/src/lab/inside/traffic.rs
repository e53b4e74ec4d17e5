//! Bytes and echo requests between the wire's far end and those who have the port now.

use super::{Outcome, must, sh};
use crate::step::{Guard, poll_until};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// A program that was started in a network namespace.
pub fn start(namespace: Option<&str>, program: &Path, args: &[&str]) -> Result<Guard, String> {
    let mut c = match namespace {
        None => Command::new(program),
        Some(name) => {
            let mut c = Command::new("ip");
            c.args(["netns", "exec", name]).arg(program);
            c
        }
    };
    c.args(args).stdin(Stdio::null());
    c.spawn().map(Guard).map_err(|e| format!("{}: {e}", program.display()))
}

/// From the far end, all at once: so many echo requests to each of them, and none is lost.
pub fn ping_all(to: &[&str], count: u32) -> Outcome {
    let asked = to.iter().map(|to| {
        let to = to.to_string();
        thread::spawn(move || sh(&format!("ip netns exec wire ping -q -c {count} -i 0.05 -W 5 {to}")))
    });
    let asked: Vec<_> = asked.collect();
    for (to, asked) in to.iter().zip(asked) {
        let text = asked.join().map_err(|_| "a thread has panicked")?.unwrap_or_else(|e| e);
        let lost_none = text.contains(&format!("{count} received")) && text.contains(" 0% packet loss");
        must(lost_none, &format!("{count} echo requests to {to}, all answered"), text)?;
    }
    Ok(())
}

/// Waits until it answers: links and neighbours take a while after a change.
pub fn answers(to: &str) -> Outcome {
    let asked = || sh(&format!("ip netns exec wire ping -q -c 1 -W 1 {to}")).is_ok();
    must(poll_until(Duration::from_secs(60), asked), &format!("{to} answers"), "not within a minute")
}

/// From the far end, all at once: bytes to each of these echo servers, which come back as they were.
pub fn exchange_all(to: &[&str], bytes: u32) -> Outcome {
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    let talk = |to: &&str| {
        let words = [super::CHORE, "exchange", to, &bytes.to_string()];
        start(Some("wire"), &own, &words)
    };
    let mut talking = to.iter().map(talk).collect::<Result<Vec<_>, _>>()?;
    for (to, talk) in to.iter().zip(&mut talking) {
        let ended = talk.0.wait().map_err(|e| e.to_string())?;
        must(ended.success(), &format!("{bytes} bytes to {to} and back"), ended)?;
    }
    Ok(())
}

/// Sends bytes to an echo server, and compares what comes back.
pub fn exchange(to: &str, bytes: &str) -> Result<(), String> {
    let bytes: usize = bytes.parse().map_err(|e| format!("{bytes}: {e}"))?;
    let mut connected = TcpStream::connect(to);
    poll_until(Duration::from_secs(30), || {
        if connected.is_err() {
            connected = TcpStream::connect(to);
        }
        connected.is_ok()
    });
    let connection = connected.map_err(|e| e.to_string())?;
    connection.set_read_timeout(Some(Duration::from_secs(60))).map_err(|e| e.to_string())?;
    let all: Vec<u8> = (0..bytes).map(|n| (n * 7 + n / 251) as u8).collect();
    let mut sends = connection.try_clone().map_err(|e| e.to_string())?;
    let sent = all.clone();
    let sender = thread::spawn(move || {
        sends.write_all(&sent)?;
        sends.shutdown(std::net::Shutdown::Write)
    });
    let mut back = Vec::new();
    let read = (&connection).read_to_end(&mut back);
    sender.join().map_err(|_| "a thread has panicked")?.map_err(|e| format!("sending: {e}"))?;
    read.map_err(|e| format!("receiving, after {} bytes: {e}", back.len()))?;
    match back == all {
        true => Ok(()),
        false => Err(format!("{} of {bytes} bytes came back, or others", back.len())),
    }
}
