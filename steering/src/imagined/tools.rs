//! ethtool, tc, culvert-split and culvert-redirect as far as they are used, on cards of files: what they are told is kept, and shown as they show it.

use crate::system::Ran;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

fn said(out: impl Into<String>) -> io::Result<Ran> {
    Ok(Ran { success: true, out: out.into(), err: String::new() })
}

fn failed(err: &str) -> io::Result<Ran> {
    Ok(Ran { success: false, out: String::new(), err: err.into() })
}

/// What is known of a control group.
fn group(tools: &Path, path: &str) -> PathBuf {
    tools.join(format!("group{}", path.replace('/', "+")))
}

/// Lines of a file, each `PLACE TEXT`.
fn entries(file: &Path) -> Vec<(u32, String)> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let parse = |line: &str| line.split_once(' ').and_then(|(at, text)| Some((at.parse().ok()?, text.to_owned())));
    text.lines().filter_map(parse).collect()
}

/// A file without entries is none, so that what was there before is there again.
fn keep(file: &Path, mut entries: Vec<(u32, String)>) -> io::Result<()> {
    entries.sort();
    if entries.is_empty() {
        return fs::remove_file(file);
    }
    fs::write(file, entries.iter().fold(String::new(), |text, (at, entry)| text + &format!("{at} {entry}\n")))
}

fn without(file: &Path, place: &str) -> io::Result<Ran> {
    let mut all = entries(file);
    let before = all.len();
    all.retain(|(at, _)| at.to_string() != place);
    if all.len() == before {
        return failed("there is no such rule");
    }
    keep(file, all)?;
    said("")
}

fn with(file: &Path, place: &str, text: String) -> io::Result<Ran> {
    let mut all = entries(file);
    let place: u32 = place.parse().map_err(io::Error::other)?;
    if all.iter().any(|(at, _)| *at == place) {
        return failed("there is one");
    }
    all.push((place, text));
    keep(file, all)?;
    said("")
}

/// Commands that only look.
pub(super) fn look(tools: &Path, command: &[String]) -> io::Result<Ran> {
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let file = |name: &str, what: &str| -> PathBuf { tools.join(name).join(what) };
    match words[..] {
        ["ethtool", "-k", name] => {
            let ntuple = fs::read_to_string(file(name, "ntuple"))?;
            said(format!("Features for {name}:\nrx-checksumming: on\nntuple-filters: {ntuple}\nreceive-hashing: on\n"))
        }
        ["ethtool", "-n", name] => {
            let shown = entries(&file(name, "filters")).iter().map(|(at, text)| shown(*at, text)).collect::<String>();
            said(format!("4 RX rings available\nTotal rules\n\n{shown}"))
        }
        ["ethtool", "-n", name, "rule", place] => {
            match entries(&file(name, "filters")).iter().find(|(at, _)| at.to_string() == place) {
                Some((at, text)) => said(shown(*at, text)),
                None => failed(
                    "rxclass: Cannot get RX class rule: No such file or directory\nCannot get RX classification rule\n",
                ),
            }
        }
        ["tc", "qdisc", "show", "dev", name] => {
            let hook = if file(name, "clsact").exists() { "qdisc clsact ffff: parent ffff:fff1 \n" } else { "" };
            said(format!("qdisc mq 0: root \n{hook}"))
        }
        ["tc", "-j", "filter", "show", "dev", name, "ingress"] => {
            let filters: Vec<_> = entries(&file(name, "flower")).iter().map(|(at, text)| flower(*at, text)).collect();
            said(serde_json::Value::from(filters).to_string())
        }
        ["tc", "-j", "filter", "show", ..] => said("[]"),
        ["culvert-split", "status", name] if file(name, "split").exists() => said(""),
        ["culvert-split", "status", _] => failed("not attached"),
        ["culvert-redirect", "status", clients, ref told @ ..] => {
            let shown = match fs::read_to_string(group(tools, clients).join("told")) {
                Ok(text) if text == told.join(" ") => "present",
                Ok(_) => "another",
                Err(_) => "absent",
            };
            said(shown)
        }
        ["culvert-redirect", "show", clients] => {
            said(fs::read_to_string(group(tools, clients).join("rules")).unwrap_or_default())
        }
        ["culvert-redirect", "received", "status", name, "--middlebox", group] => {
            said(match fs::read_to_string(file(name, "receives")) {
                Ok(text) if text.split('\n').next() == Some(group) => "present",
                Ok(_) => "another",
                Err(_) => "absent",
            })
        }
        ["culvert-redirect", "received", "show", name] => {
            let text = fs::read_to_string(file(name, "receives")).unwrap_or_default();
            said(text.split('\n').nth(1).unwrap_or_default())
        }
        ["culvert-redirect", "forward", "status", name] => {
            said(if file(name, "forwards").exists() { "present" } else { "absent" })
        }
        ["culvert-redirect", "forward", "show", name] => {
            said(fs::read_to_string(file(name, "forwards")).unwrap_or_default())
        }
        ["culvert-split", "show", name] => said(fs::read_to_string(file(name, "rules")).unwrap_or_default()),
        _ => Err(io::Error::from(io::ErrorKind::NotFound)),
    }
}

/// Commands that change something.
pub(super) fn run(tools: &Path, command: &[String]) -> io::Result<Ran> {
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let file = |name: &str, what: &str| -> PathBuf { tools.join(name).join(what) };
    match words[..] {
        ["ethtool", "-K", name, "ntuple", value] => {
            if !fs::read_to_string(file(name, "ntuple"))?.contains("[fixed]") {
                fs::write(file(name, "ntuple"), value)?;
            }
            said("")
        }
        ["ethtool", "-N", name, "delete", place] => without(&file(name, "filters"), place),
        ["ethtool", "-N", name, "flow-type", ref rest @ .., "loc", place] => {
            if fs::read_to_string(file(name, "ntuple"))? != "on" {
                // As version 6.1 does: it succeeds all the same.
                let err = "rmgr: Cannot insert RX class rule: Operation not supported\n".into();
                return Ok(Ran { success: true, out: String::new(), err });
            }
            with(&file(name, "filters"), place, rest.join(" "))
        }
        ["tc", "qdisc", "add", "dev", name, "clsact"] => {
            fs::write(file(name, "clsact"), "")?;
            said("")
        }
        ["tc", "qdisc", "del", "dev", name, "clsact"] => {
            fs::remove_file(file(name, "clsact"))?;
            said("")
        }
        [
            "tc",
            "filter",
            "add",
            "dev",
            name,
            "ingress",
            "protocol",
            protocol,
            "pref",
            place,
            "handle",
            "1",
            "flower",
            ref rest @ ..,
        ] => with(&file(name, "flower"), place, format!("{protocol} {}", rest.join(" "))),
        ["tc", "filter", "del", "dev", name, "ingress", "protocol", _, "pref", place, "handle", "1", "flower"] => {
            without(&file(name, "flower"), place)
        }
        ["culvert-redirect", "attach", clients, ref told @ ..] => {
            fs::create_dir_all(group(tools, clients))?;
            fs::write(group(tools, clients).join("told"), told.join(" "))?;
            said("")
        }
        ["culvert-redirect", "detach", clients, ..] => match fs::remove_dir_all(group(tools, clients)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => said(""),
        },
        ["culvert-redirect", "set", clients, ref rules @ ..] => {
            fs::write(group(tools, clients).join("rules"), rules.join(" "))?;
            said("")
        }
        ["culvert-redirect", "received", "detach", name, ..] => match fs::remove_file(file(name, "receives")) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => said(""),
        },
        ["culvert-redirect", "received", "attach", name, "--middlebox", group] => {
            fs::write(file(name, "receives"), format!("{group}\n"))?;
            said("")
        }
        ["culvert-redirect", "received", "set", name, ref rules @ ..] => {
            let text = fs::read_to_string(file(name, "receives"))?;
            fs::write(
                file(name, "receives"),
                format!("{}\n{}", text.split('\n').next().unwrap_or_default(), rules.join(" ")),
            )?;
            said("")
        }
        ["culvert-redirect", "forward", "detach", name] => match fs::remove_file(file(name, "forwards")) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => said(""),
        },
        ["culvert-redirect", "forward", "attach" | "set", name, ref rules @ ..] => {
            fs::write(file(name, "forwards"), rules.join(" "))?;
            said("")
        }
        ["culvert-split", "attach", name] => {
            fs::write(file(name, "split"), "")?;
            said("")
        }
        ["culvert-split", "detach", name] => {
            fs::remove_file(file(name, "split"))?;
            said("")
        }
        ["culvert-split", "add", name, place, ref rest @ ..] => with(&file(name, "rules"), place, rest.join(" ")),
        ["culvert-split", "delete", name, place] => without(&file(name, "rules"), place),
        _ => Err(io::Error::from(io::ErrorKind::NotFound)),
    }
}

/// A filter as `ethtool -n` prints it.
fn shown(place: u32, told: &str) -> String {
    let words: Vec<&str> = told.split(' ').collect();
    let after = |name: &str| words.iter().position(|w| *w == name).and_then(|at| words.get(at + 1)).copied();
    let mask = |name: &str| {
        let at = words.iter().position(|w| *w == name)?;
        words.get(at + 2).filter(|w| **w == "m").and_then(|_| words.get(at + 3)).copied()
    };
    let kind = words[0];
    let six = kind.ends_with('6');
    let version = if six { "IPv6" } else { "IPv4" };
    let (none, all) =
        if six { ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff") } else { ("0.0.0.0", "255.255.255.255") };
    let mut text = format!("Filter: {place}\n");
    let _ = match kind.strip_suffix(['4', '6']) {
        Some("ip") => writeln!(text, "\tRule Type: Raw {version}"),
        protocol => writeln!(text, "\tRule Type: {} over {version}", protocol.unwrap_or_default().to_uppercase()),
    };
    for (label, name) in [("Src IP addr", "src-ip"), ("Dest IP addr", "dst-ip")] {
        let (value, mask) = after(name).map_or((none, all), |value| (value, mask(name).unwrap_or(none)));
        let _ = writeln!(text, "\t{label}: {value} mask: {mask}");
    }
    let _ = writeln!(text, "\tTOS: 0x0 mask: 0xff");
    for (label, name) in [("Src port", "src-port"), ("Dest port", "dst-port")] {
        let (value, mask) = after(name).map_or(("0", "0xffff"), |value| (value, mask(name).unwrap_or("0x0")));
        let _ = writeln!(text, "\t{label}: {value} mask: {mask}");
    }
    if let Some(vlan) = after("vlan") {
        let _ = writeln!(text, "\tVLAN EtherType: 0x0 mask: 0xffff\n\tVLAN: {vlan} mask: 0xf000");
    }
    let queue = after("queue").unwrap_or_default();
    let _ = match (after("vf"), after("action")) {
        (Some(vf), _) => writeln!(text, "\tAction: Direct to VF {vf} queue {queue}"),
        (None, Some(_)) => writeln!(text, "\tAction: Drop"),
        _ => writeln!(text, "\tAction: Direct to queue {queue}"),
    };
    text + "\n"
}

/// A filter as `tc -j` prints it.
fn flower(place: u32, told: &str) -> serde_json::Value {
    let (protocol, told) = told.split_once(' ').unwrap_or_default();
    let (keys, action) = told.split_once(" action ").unwrap_or((told, ""));
    let words: Vec<&str> = keys.split(' ').filter(|w| *w != "skip_sw").collect();
    let mut map: serde_json::Map<_, _> =
        words.chunks_exact(2).map(|pair| (pair[0].to_owned(), pair[1].into())).collect();
    if protocol != "802.1Q" {
        map.insert("eth_type".into(), if protocol == "ipv6" { "ipv6" } else { "ipv4" }.into());
    }
    let action: Vec<&str> = action.split(' ').collect();
    let action = match action[..] {
        ["mirred", .., name] => {
            serde_json::json!({ "kind": "mirred", "mirred_action": "redirect", "direction": "egress", "to_dev": name })
        }
        [verdict, ..] => serde_json::json!({ "kind": "gact", "control_action": { "type": verdict } }),
        [] => serde_json::Value::Null,
    };
    serde_json::json!({ "protocol": "ip", "pref": place, "kind": "flower", "chain": 0,
        "options": { "handle": 1, "keys": map, "skip_sw": true, "in_hw": true, "actions": [action] } })
}
