//! MAC addresses: whose they are, and new ones.

use crate::address::{Mac, Pci};
use crate::config::WantedMac;
use crate::system::{System, function};
use crate::trouble::Trouble;
use siphasher::sip::SipHasher13;
use std::collections::BTreeMap;
use std::hash::Hasher;

/// Who has which MAC address: devices, and VFs as their ports know them.
pub(crate) struct Macs {
    taken: BTreeMap<Mac, Pci>,
    machine: String,
}

impl Macs {
    pub(crate) fn new(system: &dyn System) -> Macs {
        let mut taken = BTreeMap::new();
        for name in system.names("class/net").unwrap_or_default() {
            let at = system.link(&format!("class/net/{name}/device")).ok().and_then(|at| at.parse::<Pci>().ok());
            let Some(at) = at else { continue };
            let mac = system.read(&format!("class/net/{name}/address")).ok().and_then(|mac| mac.parse().ok());
            taken.extend(mac.map(|mac| (mac, at)));
            for (vf, of) in (0..).zip(system.vfs(&name).unwrap_or_default()) {
                if let Ok(at) = function(system, at.into(), vf) {
                    taken.insert(of.mac, at);
                }
            }
        }
        taken.remove(&Mac::default());
        Macs { taken, machine: system.machine() }
    }

    /// The address for the function at `at`, which nobody else has.
    pub(crate) fn choose(&mut self, wanted: WantedMac, at: Pci) -> Result<Mac, Trouble> {
        let free = |taken: &BTreeMap<Mac, Pci>, mac| taken.get(&mac).is_none_or(|holder| *holder == at);
        let mac = match wanted {
            WantedMac::Is(mac) if !free(&self.taken, mac) => {
                let what = format!("{at} is to have {mac}, and {} has it", self.taken[&mac]);
                return Err(Trouble::new(what, "every function needs an address of its own: take mac = \"auto\""));
            }
            WantedMac::Is(mac) => mac,
            WantedMac::Auto => (0..=u8::MAX)
                .map(|n| derived(&self.machine, at, n))
                .find(|mac| free(&self.taken, *mac))
                .unwrap_or_default(),
        };
        self.taken.insert(mac, at);
        Ok(mac)
    }
}

/// An address that only this function of this machine has, as far as a hash goes; locally administered.
fn derived(machine: &str, at: Pci, attempt: u8) -> Mac {
    let mut hasher = SipHasher13::new();
    hasher.write(machine.as_bytes());
    hasher.write(at.to_string().as_bytes());
    hasher.write_u8(attempt);
    let [a, b, c, d, e, ..] = hasher.finish().to_be_bytes();
    Mac([0x02, a, b, c, d, e])
}
