//! Single rules of a card, as its tools take and show them: ethtool(8)'s n-tuple filters and tc-flower(8).

use crate::flow::{Backend, Family, Match, Ports, Prefix, Target};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// One rule of a card or of the split.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rule {
    /// What does it.
    pub by: Backend,
    /// The packets, of one version of IP; of n-tuple filters, ports only as far as a mask goes.
    pub packets: Match,
    /// Where they go.
    pub to: Target,
    /// Source ports as a value under a mask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<(u16, u16)>,
    /// Destination ports as a value under a mask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<(u16, u16)>,
    /// Of the XDP program: it decides each packet, wherever the packet's connection began.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stateless: bool,
}

/// What a filter is to a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Likeness {
    /// It is it.
    Same,
    /// It is it, but the kernel does what the card was to do.
    NotInTheCard,
    /// It is another one.
    Another,
}

impl Rule {
    /// A rule on these packets, by the version of IP and the ports that they name.
    pub fn plain(packets: Match, to: Target, by: Backend) -> Rule {
        Rule { by, packets, to, source: None, destination: None, stateless: false }
    }

    /// The rules that make up a flow.
    pub fn of(packets: &Match, to: &Target, by: Backend) -> Vec<Rule> {
        let plain = |packets: Match| Rule::plain(packets, to.clone(), by);
        match by {
            Backend::Xdp | Backend::Flower => packets.families().into_iter().map(plain).collect(),
            Backend::Ntuple => {
                let masked = |ports: Option<Ports>| match ports {
                    None => vec![None],
                    Some(ports) => ports.masked().into_iter().map(Some).collect(),
                };
                let (sources, destinations) = (masked(packets.source_ports), masked(packets.destination_ports));
                let mut rules = Vec::new();
                for family in packets.families() {
                    for source in &sources {
                        for destination in &destinations {
                            let packets = Match { source_ports: None, destination_ports: None, ..family.clone() };
                            rules.push(Rule { source: *source, destination: *destination, ..plain(packets) });
                        }
                    }
                }
                rules
            }
        }
    }

    fn is_ipv6(&self) -> bool {
        self.packets.family == Some(Family::Ipv6)
    }

    /// The command that enters an n-tuple filter at a location.
    pub fn ntuple_add(&self, interface: &str, location: u32) -> Vec<String> {
        let version = if self.is_ipv6() { 6 } else { 4 };
        let kind = self.packets.protocol.map_or(format!("ip{version}"), |p| format!("{p}{version}"));
        let mut words = vec!["ethtool".into(), "-N".into(), interface.into(), "flow-type".into(), kind];
        // Bits that are set in ethtool's masks do not count.
        let mut add = |name: &str, value: String, mask: Option<String>| {
            words.extend([name.into(), value]);
            words.extend(mask.into_iter().flat_map(|mask| ["m".to_string(), mask]));
        };
        for (name, prefix) in [("src-ip", self.packets.source), ("dst-ip", self.packets.destination)] {
            if let Some(prefix) = prefix.filter(|p| p.len > 0) {
                let whole = prefix.len == if self.is_ipv6() { 128 } else { 32 };
                add(name, prefix.ip.to_string(), (!whole).then(|| prefix.host_mask().to_string()));
            }
        }
        for (name, ports) in [("src-port", self.source), ("dst-port", self.destination)] {
            if let Some((value, mask)) = ports.filter(|(_, mask)| *mask != 0) {
                add(name, value.to_string(), (mask != u16::MAX).then(|| format!("{:#x}", !mask)));
            }
        }
        if let Some(vlan) = self.packets.vlan {
            add("vlan", format!("{vlan:#x}"), Some("0xf000".into()));
        }
        match self.to {
            Target::Vf(vf) => words.extend(["vf".into(), vf.to_string(), "queue".into(), "0".into()]),
            Target::Queue(queue) => words.extend(["queue".into(), queue.to_string()]),
            _ => words.extend(["action".into(), "-1".into()]),
        }
        words.extend(["loc".into(), location.to_string()]);
        words
    }

    /// What ethtool shows of it, without what does not count.
    fn ntuple_shown(&self) -> BTreeMap<String, String> {
        let mut shown = BTreeMap::new();
        let version = if self.is_ipv6() { 6 } else { 4 };
        let kind = match self.packets.protocol {
            Some(protocol) => format!("{} over IPv{version}", protocol.to_string().to_uppercase()),
            None => format!("Raw IPv{version}"),
        };
        shown.insert("Rule Type".into(), kind);
        let networks = [("Src IP addr", self.packets.source), ("Dest IP addr", self.packets.destination)];
        for (label, prefix) in networks.iter().filter_map(|(l, p)| Some((l, p.filter(|p: &Prefix| p.len > 0)?))) {
            shown.insert(label.to_string(), format!("{} mask: {}", prefix.ip, prefix.host_mask()));
        }
        let ports = [("Src port", self.source), ("Dest port", self.destination)];
        for (label, (value, mask)) in ports.iter().filter_map(|(l, p)| Some((l, p.filter(|(_, mask)| *mask != 0)?))) {
            shown.insert(label.to_string(), format!("{value} mask: {:#x}", !mask));
        }
        if let Some(vlan) = self.packets.vlan {
            shown.insert("VLAN".into(), format!("{vlan:#x} mask: 0xf000"));
        }
        let action = match self.to {
            Target::Vf(vf) => format!("Direct to VF {vf} queue 0"),
            Target::Queue(queue) => format!("Direct to queue {queue}"),
            _ => "Drop".into(),
        };
        shown.insert("Action".into(), action);
        shown
    }

    /// Whether it is what ethtool shows at a location.
    pub fn is_ntuple(&self, shown: &BTreeMap<String, String>) -> bool {
        self.ntuple_shown() == *shown
    }

    /// The command that enters it into the card's switch; `out`: the interface behind which its target is.
    pub fn flower_add(&self, interface: &str, preference: u32, out: &str) -> Vec<String> {
        let mut text = format!("tc filter add dev {interface} ingress protocol {}", self.flower_protocol());
        text += &format!(" pref {preference} handle 1 flower skip_sw");
        for (key, value) in self.flower_keys().iter().filter(|(key, _)| *key != "eth_type") {
            text += &format!(" {key} {value}");
        }
        text += &match self.to {
            Target::Drop => " action drop".into(),
            Target::Kernel => " action pass".into(),
            _ => format!(" action mirred egress redirect dev {out}"),
        };
        text.split(' ').map(str::to_owned).collect()
    }

    /// The command that takes it out again.
    pub fn flower_delete(&self, interface: &str, preference: u32) -> Vec<String> {
        let protocol = self.flower_protocol();
        let text =
            format!("tc filter del dev {interface} ingress protocol {protocol} pref {preference} handle 1 flower");
        text.split(' ').map(str::to_owned).collect()
    }

    fn flower_protocol(&self) -> &'static str {
        match (self.packets.vlan, self.is_ipv6()) {
            (Some(_), _) => "802.1Q",
            (None, false) => "ip",
            (None, true) => "ipv6",
        }
    }

    /// Its keys, as tc shows them and in the order in which it takes them.
    fn flower_keys(&self) -> Vec<(&'static str, String)> {
        let mut keys = Vec::new();
        let ip = if self.is_ipv6() { "ipv6" } else { "ipv4" };
        match self.packets.vlan {
            None => keys.push(("eth_type", ip.into())),
            Some(vlan) => keys.extend([("vlan_id", vlan.to_string()), ("vlan_ethtype", ip.into())]),
        }
        keys.extend(self.packets.protocol.map(|p| ("ip_proto", p.to_string())));
        for (key, prefix) in [("src_ip", self.packets.source), ("dst_ip", self.packets.destination)] {
            if let Some(prefix) = prefix {
                let whole = prefix.len == if self.is_ipv6() { 128 } else { 32 };
                keys.push((key, if whole { prefix.ip.to_string() } else { prefix.to_string() }));
            }
        }
        keys.extend(self.packets.source_ports.map(|p| ("src_port", p.to_string())));
        keys.extend(self.packets.destination_ports.map(|p| ("dst_port", p.to_string())));
        keys
    }

    /// What a filter that tc shows is to this rule.
    pub fn flower_likeness(&self, filter: &Value, out: &str) -> Likeness {
        let options = &filter["options"];
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let shown = options["keys"].as_object().map(|keys| keys.iter().map(|(k, v)| (k.clone(), text(v))).collect());
        let wanted = self.flower_keys().into_iter().map(|(key, value)| (key.to_owned(), value));
        // In a VLAN, tc shows the outer type, too.
        let mut shown: BTreeMap<String, String> = shown.unwrap_or_default();
        if self.packets.vlan.is_some() {
            shown.remove("eth_type");
        }
        let action = &options["actions"][0];
        let acts = match self.to {
            Target::Drop => action["control_action"]["type"] == "drop" && action["kind"] == "gact",
            Target::Kernel => action["control_action"]["type"] == "pass" && action["kind"] == "gact",
            _ => action["kind"] == "mirred" && action["mirred_action"] == "redirect" && action["to_dev"] == *out,
        };
        if filter["kind"] != "flower" || shown != wanted.collect() || !acts {
            return Likeness::Another;
        }
        if options["in_hw"] == true { Likeness::Same } else { Likeness::NotInTheCard }
    }
}

/// The filters that ethtool shows, by location, without what does not count.
pub(crate) fn ntuple_filters(text: &str) -> BTreeMap<u32, BTreeMap<String, String>> {
    let mut filters = BTreeMap::<u32, BTreeMap<String, String>>::new();
    let mut at = None;
    for line in text.lines() {
        let Some((label, value)) = line.trim().split_once(": ") else { continue };
        if label == "Filter" {
            at = value.trim().parse().ok();
            filters.extend(at.map(|at| (at, BTreeMap::new())));
            continue;
        }
        let mask = value.split_once(" mask: ").map(|(_, mask)| mask);
        let ignored = mask.is_some_and(|mask| match label {
            "Src IP addr" | "Dest IP addr" => {
                mask == "255.255.255.255" || mask == "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
            }
            "TOS" | "Traffic Class" | "Protocol" => mask == "0xff",
            "L4 bytes" => mask == "0xffffffff",
            "User-defined" => mask == "0xffffffffffffffff",
            _ => mask == "0xffff",
        });
        if let Some(filter) = at.and_then(|at| filters.get_mut(&at))
            && !ignored
        {
            filter.insert(label.to_owned(), value.to_owned());
        }
    }
    filters
}

/// The filters that tc shows, by preference.
pub(crate) fn flower_filters(text: &str) -> BTreeMap<u32, Value> {
    let all: Vec<Value> = serde_json::from_str(text).unwrap_or_default();
    // Each preference has a line without options, too: that of the classifier itself.
    let mut filters = BTreeMap::new();
    for filter in all {
        if let Some(preference) = filter["pref"].as_u64().and_then(|p| u32::try_from(p).ok())
            && (filter.get("options").is_some() || !filters.contains_key(&preference))
        {
            filters.insert(preference, filter);
        }
    }
    filters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str, to: &str, by: Backend) -> Vec<Rule> {
        Rule::of(&toml::from_str(text).expect("a flow"), &to.parse().expect("a target"), by)
    }

    /// As ethtool 6.1 prints it.
    const SHOWN: &str = "4 RX rings available\nTotal 2 rules\n\nFilter: 3\n\tRule Type: TCP over IPv4\n\
        \tSrc IP addr: 0.0.0.0 mask: 255.255.255.255\n\tDest IP addr: 192.0.2.0 mask: 0.0.0.255\n\tTOS: 0x0 mask: 0xff\n\
        \tSrc port: 0 mask: 0xffff\n\tDest port: 80 mask: 0x0\n\tVLAN EtherType: 0x0 mask: 0xffff\n\tVLAN: 0x5 mask: 0xf000\n\
        \tUser-defined: 0x0 mask: 0xffffffffffffffff\n\tAction: Direct to VF 1 queue 0\n\n\
        Filter: 7\n\tRule Type: Raw IPv6\n\tSrc IP addr: 2001:db8:: mask: ::ffff:ffff:ffff:ffff:ffff:ffff\n\
        \tDest IP addr: :: mask: ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff\n\tTraffic Class: 0x0 mask: 0xff\n\
        \tProtocol: 0 mask: 0xff\n\tL4 bytes: 0x0 mask: 0xffffffff\n\tAction: Drop\n\n";

    #[test]
    fn ethtool_is_told_and_understood() {
        let web = "protocol = 'tcp'\ndestination = '192.0.2.0/24'\ndestination-ports = '80'\nvlan = 5";
        let [rule] = &rules(web, "vf 1", Backend::Ntuple)[..] else { panic!("one rule") };
        let words = "ethtool -N eth2 flow-type tcp4 dst-ip 192.0.2.0 m 0.0.0.255 dst-port 80 vlan 0x5 m 0xf000 vf 1 queue 0 loc 3";
        assert_eq!(rule.ntuple_add("eth2", 3).join(" "), words);
        let filters = ntuple_filters(SHOWN);
        assert_eq!(filters.keys().collect::<Vec<_>>(), [&3, &7]);
        assert!(rule.is_ntuple(&filters[&3]), "{:?}", filters[&3]);
        assert!(!rule.is_ntuple(&filters[&7]));
        let [drop] = &rules("source = '2001:db8::/32'", "drop", Backend::Ntuple)[..] else { panic!("one rule") };
        assert_eq!(
            drop.ntuple_add("eth2", 7).join(" "),
            "ethtool -N eth2 flow-type ip6 src-ip 2001:db8:: m ::ffff:ffff:ffff:ffff:ffff:ffff action -1 loc 7"
        );
        assert!(drop.is_ntuple(&filters[&7]), "{:?}", filters[&7]);
    }

    #[test]
    fn a_range_of_ports_is_several_masks() {
        let rules = rules(
            "family = 'ipv4'\nprotocol = 'udp'\nsource-ports = '1000-1007'\ndestination-ports = '5-6'",
            "queue 2",
            Backend::Ntuple,
        );
        let texts: Vec<_> = rules.iter().map(|r| r.ntuple_add("e", 0).join(" ")).collect();
        assert_eq!(
            texts,
            [
                "ethtool -N e flow-type udp4 src-port 1000 m 0x7 dst-port 5 queue 2 loc 0",
                "ethtool -N e flow-type udp4 src-port 1000 m 0x7 dst-port 6 queue 2 loc 0",
            ]
        );
    }

    #[test]
    fn tc_is_told_and_understood() {
        let web = "protocol = 'tcp'\ndestination = '192.0.2.10/32'\ndestination-ports = '80-90'\nvlan = 5";
        let [rule] = &rules(web, "interface mb0", Backend::Flower)[..] else { panic!("one rule") };
        assert_eq!(
            rule.flower_add("eth2", 9, "mb0").join(" "),
            "tc filter add dev eth2 ingress protocol 802.1Q pref 9 handle 1 flower skip_sw vlan_id 5 vlan_ethtype ipv4 ip_proto tcp \
             dst_ip 192.0.2.10 dst_port 80-90 action mirred egress redirect dev mb0"
        );
        let shown = r#"[{"protocol":"802.1Q","pref":9,"kind":"flower","chain":0},{"protocol":"802.1Q","pref":9,"kind":"flower",
            "chain":0,"options":{"handle":1,"keys":{"vlan_id":5,"vlan_ethtype":"ipv4","ip_proto":"tcp","dst_ip":"192.0.2.10",
            "dst_port":"80-90"},"skip_sw":true,"in_hw":true,"in_hw_count":1,"actions":[{"order":1,"kind":"mirred",
            "mirred_action":"redirect","direction":"egress","to_dev":"mb0","control_action":{"type":"stolen"}}]}}]"#;
        let filters = flower_filters(shown);
        assert_eq!(rule.flower_likeness(&filters[&9], "mb0"), Likeness::Same);
        assert_eq!(rule.flower_likeness(&filters[&9], "mb1"), Likeness::Another);
        let soft = flower_filters(&shown.replace("\"in_hw\":true", "\"not_in_hw\":true"));
        assert_eq!(rule.flower_likeness(&soft[&9], "mb0"), Likeness::NotInTheCard);
    }
}
