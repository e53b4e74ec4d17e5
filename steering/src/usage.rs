//! Who uses what is about to be taken away.

use crate::address::Device;
use crate::item::{Item, interface, is_for_users};
use crate::rule;
use crate::system::{self, System, device, driver, function, interfaces, number};

/// Who uses a virtual function, as a sentence's object.
pub(crate) fn user(system: &dyn System, port: Device, vf: u16) -> Option<String> {
    let at = function(system, port, vf).ok()?;
    let driver = driver(system, at)?;
    if is_for_users(&driver) {
        // An open device is enabled.
        let open = number::<u32>(system, &format!("{}/enable", device(at))).is_ok_and(|n| n > 0);
        return open.then(|| format!("a process that has opened it by {driver}"));
    }
    match &interfaces(system, at)[..] {
        [] if system.names(&format!("{}/net", device(at))).is_ok() => {
            Some("another network namespace, where its interface is".into())
        }
        names => {
            let up = names.iter().find(|name| system::is_up(system, name).unwrap_or(true))?;
            Some(format!("its interface {up}, which is up"))
        }
    }
}

/// What stands against giving an item this value: something that others have made or use would be lost.
pub(crate) fn hindrance(system: &dyn System, item: &Item, value: &str) -> Option<String> {
    let used = |port, vf: u16| user(system, port, vf).map(|user| format!("VF {vf} of {port} is used by {user}"));
    match item {
        Item::Count(port) if value == "0" => {
            let now: u16 = number(system, &format!("{}/sriov_numvfs", device(*port))).unwrap_or(0);
            (0..now).find_map(|vf| used(*port, vf))
        }
        Item::Driver(port, vf) if value == "none" => used(*port, *vf),
        Item::Hook(port) if value == "absent" => {
            let name = interface(system, *port).ok()?;
            let words = |side: &str| {
                format!("tc -j filter show dev {name} {side}").split(' ').map(str::to_owned).collect::<Vec<_>>()
            };
            let sides =
                ["ingress", "egress"].map(|side| system.look(&words(side)).map(|ran| ran.out).unwrap_or_default());
            let any = sides.iter().any(|text| !rule::flower_filters(text).is_empty());
            any.then(|| format!("others have filters at tc's hook of {name}"))
        }
        Item::Split(port) if value == "absent" => {
            let name = interface(system, *port).ok()?;
            let ran = system.look(&["culvert-split".into(), "show".into(), name.clone()]).ok()?;
            (ran.success && !ran.out.trim().is_empty())
                .then(|| format!("others have rules in the XDP program of {name}"))
        }
        Item::Redirect(clients, _) if value == "absent" => others(system, &Item::Diversions(clients.clone())),
        Item::Forward(name) if value == "absent" => others(system, &Item::Forwarded(*name)),
        Item::Receive(name, _) if value == "absent" => others(system, &Item::Received(*name)),
        _ => None,
    }
}

/// Rules that would go with what they take.
fn others(system: &dyn System, rules: &Item) -> Option<String> {
    let now = rules.read(system).unwrap_or_default();
    (!now.is_empty()).then(|| format!("others have redirects ({})", rules.words()))
}
