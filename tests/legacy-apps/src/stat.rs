//! What `culvert stat --json` says.

use crate::json::Json;
use std::process::Command;

/// One connection of one process.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Process that holds it.
    pub pid: u32,
    /// "shm", "zstack" or "kernel".
    pub path: String,
    /// Why it is on the kernel; "" if it is not.
    pub reason: String,
    /// Both ends, "local peer".
    pub ends: String,
    /// State and port of the connection on the wire, "established tap"; "" if nobody tells of one.
    pub outer: String,
}

/// Every connection `culvert stat` lists, or why it could not be asked.
pub fn connections() -> Result<Vec<Connection>, String> {
    let out = Command::new(crate::culvert())
        .args(["stat", "--json"])
        .env_remove("LD_PRELOAD")
        .output()
        .map_err(|e| format!("{}: {e}", crate::culvert().display()))?;
    let text = String::from_utf8_lossy(&out.stdout);
    if !out.status.success() {
        return Err(format!("culvert stat: {}: {}", out.status, String::from_utf8_lossy(&out.stderr)));
    }
    let json = Json::parse(&text).map_err(|e| format!("culvert stat --json: {e} in {text}"))?;
    let mut all = Vec::new();
    for process in json.get("processes").list() {
        for c in process.get("connections").list() {
            all.push(Connection {
                pid: process.get("pid").number() as u32,
                path: c.get("path").text().to_owned(),
                reason: c.get("reason").text().to_owned(),
                ends: format!("{} {}", c.get("local").text(), c.get("peer").text()),
                outer: format!("{} {}", c.get("outer").get("state").text(), c.get("outer").get("port").text())
                    .trim()
                    .to_owned(),
            });
        }
    }
    Ok(all)
}
