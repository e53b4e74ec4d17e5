//! The machine's two ports, and `culvert steer` on the first of them.

use super::{Outcome, must, sh};
use crate::culvert;
use serde_json::{Value, json};
use std::fs;
use std::process::{Command, Stdio};

/// The port that is divided.
pub const PORT: &str = "0000:01:00.0";
/// The other end of the wire.
const FAR: &str = "0000:02:00.0";

/// Its addresses, by network: the port's and the far end's, and those in the VLAN.
pub const HERE: &str = "10.0.0.1";
pub const THERE: &str = "10.0.0.2";
pub const IN_VLAN: &str = "10.0.100.1";
pub const THERE_IN_VLAN: &str = "10.0.100.2";
/// The VLAN.
pub const VLAN: u16 = 100;

/// Where a device's files are.
pub fn device(pci: &str) -> String {
    format!("/sys/bus/pci/devices/{pci}")
}

fn file(path: String) -> Result<String, String> {
    fs::read_to_string(&path).map(|text| text.trim().to_owned()).map_err(|e| format!("{path}: {e}"))
}

/// The interface of a device.
pub fn interface(pci: &str) -> Result<String, String> {
    let at = format!("{}/net", device(pci));
    let name = fs::read_dir(&at).map_err(|e| format!("{at}: {e}"))?.flatten().next();
    name.map(|n| n.file_name().to_string_lossy().into_owned()).ok_or_else(|| format!("{at}: there is none"))
}

/// The address of a virtual function.
pub fn function(vf: u16) -> Result<String, String> {
    let at = format!("{}/virtfn{vf}", device(PORT));
    let to = fs::read_link(&at).map_err(|e| format!("{at}: {e}"))?;
    Ok(to.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

/// The driver of a device, or none.
pub fn driver(pci: &str) -> Option<String> {
    let to = fs::read_link(format!("{}/driver", device(pci))).ok()?;
    Some(to.file_name()?.to_string_lossy().into_owned())
}

/// What the kernel says of the port's interface and its virtual functions.
pub fn told() -> Result<Value, String> {
    let text = sh(&format!("ip -j -d link show dev {}", interface(PORT)?))?;
    let mut all: Value = serde_json::from_str(&text).map_err(|e| format!("{text}: {e}"))?;
    Ok(all[0].take())
}

/// All that steering may change: what is there, without what comes and goes by itself.
pub fn found() -> Result<Value, String> {
    let told = told()?;
    let up = told["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "UP"));
    let count = file(format!("{}/sriov_numvfs", device(PORT)))?;
    let of = |vf: u16| -> Result<Value, String> {
        let at = function(vf)?;
        Ok(json!([at, driver(&at), file(format!("{}/driver_override", device(&at)))?]))
    };
    let functions: Result<Vec<_>, _> = (0..count.parse().map_err(|e| format!("{count}: {e}"))?).map(of).collect();
    let autoprobe = file(format!("{}/sriov_drivers_autoprobe", device(PORT)))?;
    Ok(json!({ "up": up, "vfs": told["vfinfo_list"], "functions": functions?, "autoprobe": autoprobe }))
}

/// Gives the far end of the wire to a network namespace, and addresses to both.
pub fn wire() -> Outcome {
    let (here, there) = (interface(PORT)?, interface(FAR)?);
    for line in [
        "ip netns add wire".into(),
        format!("ip link set {there} netns wire"),
        "ip -n wire link set lo up".into(),
        format!("ip -n wire addr add {THERE}/24 dev {there}"),
        format!("ip -n wire link set {there} up"),
        format!("ip -n wire link add link {there} name tagged type vlan id {VLAN}"),
        format!("ip -n wire addr add {THERE_IN_VLAN}/24 dev tagged"),
        "ip -n wire link set tagged up".into(),
        format!("ip addr add {HERE}/24 dev {here}"),
    ] {
        sh(&line)?;
    }
    Ok(())
}

/// What `culvert steer` has said, and whether it has succeeded.
pub fn steer(words: &str) -> Result<(bool, String), String> {
    let mut c = Command::new(culvert());
    c.arg("steer").args(words.split_whitespace()).stdin(Stdio::null());
    let out = c.output().map_err(|e| format!("culvert steer: {e}"))?;
    let text = [out.stdout, out.stderr].concat();
    Ok((out.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

/// It succeeds, and is said to have done what it was to do.
pub fn steers(words: &str) -> Result<String, String> {
    let (good, text) = steer(words)?;
    must(good, &format!("culvert steer {words}"), &text)?;
    Ok(text)
}

/// It fails, and says this.
pub fn refuses(words: &str, says: &[&str]) -> Outcome {
    let (good, text) = steer(words)?;
    let said = says.iter().all(|part| text.contains(part)) && text.contains("-> ");
    must(!good && said, &format!("culvert steer {words} refuses: {}", says.join(", ")), &text)
}

/// Writes a file that says what is wanted of the port; its name.
pub fn wanted(name: &str, text: &str) -> Result<String, String> {
    let path = format!("/tmp/{name}.toml");
    fs::write(&path, format!("[[port]]\ndevice = '{PORT}'\n{text}")).map_err(|e| e.to_string())?;
    Ok(path)
}
