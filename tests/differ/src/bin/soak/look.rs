//! What the kernel and zstackd know of a connection that has stalled.

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::process::Command;
use std::time::Duration;

/// Prints it: of the sockets that have the ports of a worker's report, "... ports OWN PEER ...".
pub fn connection(report: &str) {
    let mut words = report.split(' ').skip_while(|w| *w != "ports").skip(1);
    let (Some(own), Some(peer)) = (words.next(), words.next()) else { return };
    let concerned = |line: &&str| {
        let has = |port: &str| {
            let port = format!(":{port}");
            line.match_indices(&port).any(|(at, _)| !line[at + port.len()..].starts_with(|c: char| c.is_ascii_digit()))
        };
        has(own) && has(peer)
    };
    match Command::new("ss").args(["-a", "-t", "-n", "-o", "-i", "-e", "-m", "-O"]).output() {
        Ok(out) => String::from_utf8_lossy(&out.stdout).lines().filter(concerned).for_each(|l| println!("{l}")),
        Err(e) => println!("ss: {e}"),
    }
    let Ok(zstackd) = std::env::var("CULVERT_REMOTE_PID") else { return };
    match details(&zstackd) {
        Ok(text) => {
            println!("zstackd: {}", text.lines().next().unwrap_or(""));
            text.lines().filter(concerned).for_each(|l| println!("{l}"));
        }
        Err(e) => println!("zstackd: {e}"),
    }
}

/// What the zstackd of this process tells of its connections.
fn details(process: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(format!("culvert-zstackd-{process}"))?)?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    stream.write_all(b"details\n")?;
    let mut text = Vec::new();
    let read = stream.read_to_end(&mut text);
    if text.is_empty() {
        read?;
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}
