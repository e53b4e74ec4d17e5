//! n-tuple filters, and tc, culvert-split and culvert-redirect as far as they are used, on cards of files: what they are told is kept, and shown as they show it.

use crate::filter::Filter;
use crate::system::Ran;
use nix::errno::Errno;
use std::collections::BTreeMap;
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

/// The n-tuple filters of a card, by their places.
pub(super) fn filters(card: &Path) -> io::Result<BTreeMap<u32, Filter>> {
    let wrong = || io::Error::other("no filter");
    let parse = |(place, text): (u32, String)| {
        let words: Vec<&str> = text.split(' ').collect();
        let [kind, value, mask, to] = words[..] else { return Err(wrong()) };
        let bytes = |text: &str| -> io::Result<[u8; Filter::HEADERS]> {
            let (pairs, _) = text.as_bytes().as_chunks::<2>();
            let byte = |pair: &[u8; 2]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
            let all: Option<Vec<u8>> = pairs.iter().map(byte).collect();
            all.and_then(|all| all.try_into().ok()).ok_or_else(wrong)
        };
        let number = |text: &str| u64::from_str_radix(text, 16).map_err(io::Error::other);
        Ok((place, Filter { kind: number(kind)? as u32, value: bytes(value)?, mask: bytes(mask)?, to: number(to)? }))
    };
    entries(&card.join("filters")).into_iter().map(parse).collect()
}

/// Enters one, or takes it away: as igb does, which keeps who has a place.
pub(super) fn set_filter(card: &Path, place: u32, filter: Option<&Filter>) -> io::Result<()> {
    let hex = |bytes: &[u8]| bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    let text = filter.map(|f| format!("{:x} {} {} {:x}", f.kind, hex(&f.value), hex(&f.mask), f.to));
    let file = card.join("filters");
    let (ran, refusal) = match text {
        Some(text) => (with(&file, &place.to_string(), text)?, Errno::EEXIST),
        None => (without(&file, &place.to_string())?, Errno::ENOENT),
    };
    if ran.success { Ok(()) } else { Err(refusal.into()) }
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
