//! Single rules of a card: as commands of ethtool(8) and tc-flower(8), as n-tuple filters, and what tc shows of them.

use crate::filter::Filter;
use crate::flow::{Backend, Family, Match, Ports, Protocol, Target};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;

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

    /// The n-tuple filter.
    pub fn filter(&self) -> Filter {
        let protocol = self.packets.protocol.map(|p| if p == Protocol::Tcp { 6 } else { 17 });
        let mut filter = Filter::new(self.is_ipv6(), protocol);
        let octets = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let size = if self.is_ipv6() { 16 } else { 4 };
        for (at, prefix) in [(0, self.packets.source), (size, self.packets.destination)] {
            if let Some(prefix) = prefix {
                filter.set(at, &octets(prefix.ip), &octets(prefix.mask()));
            }
        }
        for (at, ports) in [(2 * size, self.source), (2 * size + 2, self.destination)] {
            if let Some((value, mask)) = ports {
                filter.set(at, &value.to_be_bytes(), &mask.to_be_bytes());
            }
        }
        if let Some(vlan) = self.packets.vlan {
            filter.set_vlan(vlan);
        }
        match self.to {
            // ETHTOOL_RX_FLOW_SPEC_RING_VF, where 0 is the port itself.
            Target::Vf(vf) => filter.to = (u64::from(vf) + 1) << 32,
            Target::Queue(queue) => filter.to = queue.into(),
            _ => {}
        }
        filter
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

    /// What counts of a filter: its place in the headers, the value, the mask.
    fn counted(filter: &Filter) -> Vec<(usize, u8, u8)> {
        let all = filter.value.iter().zip(&filter.mask).enumerate();
        all.filter(|(_, (_, mask))| **mask != 0).map(|(at, (value, mask))| (at, *value, *mask)).collect()
    }

    #[test]
    fn a_filter_is_told_as_a_command_and_to_the_kernel() {
        let web = "protocol = 'tcp'\ndestination = '192.0.2.0/24'\ndestination-ports = '80'\nvlan = 5";
        let [rule] = &rules(web, "vf 1", Backend::Ntuple)[..] else { panic!("one rule") };
        let words = "ethtool -N eth2 flow-type tcp4 dst-ip 192.0.2.0 m 0.0.0.255 dst-port 80 vlan 0x5 m 0xf000 vf 1 queue 0 loc 3";
        assert_eq!(rule.ntuple_add("eth2", 3).join(" "), words);
        let filter = rule.filter();
        // TCP_V4_FLOW | FLOW_EXT, and in the ring's cookie the VF's number from 1.
        assert_eq!((filter.kind, filter.to), (0x8000_0001, 2 << 32));
        let address = [(4, 192, 255), (5, 0, 255), (6, 2, 255)];
        let others = [(10, 0, 255), (11, 80, 255), (62, 0, 0x0f), (63, 5, 255)];
        assert_eq!(counted(&filter), [&address[..], &others].concat());
        let [drop] = &rules("source = '2001:db8::/32'", "drop", Backend::Ntuple)[..] else { panic!("one rule") };
        assert_eq!(
            drop.ntuple_add("eth2", 7).join(" "),
            "ethtool -N eth2 flow-type ip6 src-ip 2001:db8:: m ::ffff:ffff:ffff:ffff:ffff:ffff action -1 loc 7"
        );
        let nowhere = drop.filter();
        assert_eq!((nowhere.kind, nowhere.to), (0x0e, u64::MAX));
        assert_eq!(counted(&nowhere), [(0, 0x20, 255), (1, 1, 255), (2, 0x0d, 255), (3, 0xb8, 255)]);
        assert!(filter.is(&filter) && !filter.is(&nowhere) && !nowhere.is(&filter));
        // A driver shows more than it was told, where it does not count, and less of that.
        let shown = |change: &dyn Fn(&mut Filter)| {
            let mut shown = filter.clone();
            change(&mut shown);
            filter.is(&shown)
        };
        assert!(shown(&|f| f.value[0] = 9) && shown(&|f| f.value[7] = 9));
        assert!(!shown(&|f| f.value[11] = 81) && !shown(&|f| f.mask[7] = 255) && !shown(&|f| f.mask[6] = 0));
        assert!(!shown(&|f| f.to = 1) && !shown(&|f| f.kind = 1) && !shown(&|f| f.kind ^= 3));
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
