//! Listeners, and which of them a SYN is for.

use super::{Listen, ListenError, ListenerId};
use crate::time::Time;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// A listener.
#[derive(Debug)]
pub(super) struct Listener {
    pub wanted: Listen,
    /// Its connections that are half open, or wait for a decision.
    pub half_open: u32,
    /// ACKs are looked at as cookies until then: the last cookie was sent less than two minutes before.
    pub cookies_until: Time,
}

/// All listeners of a stack.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    by_name: BTreeMap<u32, Listener>,
    by_place: HashMap<(Option<IpAddr>, Option<u16>), u32>,
    /// The name that was given last; 0 is none's.
    last: u32,
}

impl Listeners {
    pub fn add(&mut self, wanted: Listen) -> Result<ListenerId, ListenError> {
        if wanted.port == Some(0) {
            return Err(ListenError::PortZero);
        }
        if wanted.backlog == 0 {
            return Err(ListenError::NoBacklog);
        }
        let place = (wanted.address, wanted.port);
        if self.by_place.contains_key(&place) {
            return Err(ListenError::InUse(place.0, place.1));
        }
        // After four billion listeners a name is given again; the one that has it then may still be there.
        loop {
            self.last = self.last.wrapping_add(1);
            if self.last != 0 && !self.by_name.contains_key(&self.last) {
                break;
            }
        }
        self.by_place.insert(place, self.last);
        self.by_name.insert(self.last, Listener { wanted, half_open: 0, cookies_until: Time(0) });
        Ok(ListenerId(self.last))
    }

    pub fn remove(&mut self, id: ListenerId) {
        if let Some(listener) = self.by_name.remove(&id.0) {
            self.by_place.remove(&(listener.wanted.address, listener.wanted.port));
        }
    }

    pub fn get(&mut self, name: u32) -> Option<&mut Listener> {
        self.by_name.get_mut(&name)
    }

    /// How many connections of all listeners are half open, or wait for a decision.
    pub fn half_open(&self) -> u32 {
        self.by_name.values().map(|listener| listener.half_open).sum()
    }

    /// How many of its connections are half open, or wait.
    pub fn half_open_of(&self, name: u32) -> Option<u32> {
        self.by_name.get(&name).map(|listener| listener.half_open)
    }

    pub fn contains(&self, name: u32) -> bool {
        self.by_name.contains_key(&name)
    }

    /// The most specific listener for an address and a port.
    pub fn find(&self, address: IpAddr, port: u16) -> Option<u32> {
        if self.by_place.is_empty() {
            return None;
        }
        let places = [(Some(address), Some(port)), (None, Some(port)), (Some(address), None), (None, None)];
        places.iter().find_map(|place| self.by_place.get(place)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(address: Option<&str>, port: Option<u16>) -> Listen {
        let address = address.map(|text| text.parse().unwrap());
        Listen { address, port, ..Listen::new(1, 0) }
    }

    #[test]
    fn the_most_specific_one_is_taken() {
        let mut listeners = Listeners::default();
        let a = "10.0.0.1".parse().unwrap();
        let b = "10.0.0.2".parse().unwrap();
        assert_eq!(listeners.find(a, 80), None);
        let any = listeners.add(listen(None, None)).unwrap().0;
        let address = listeners.add(listen(Some("10.0.0.1"), None)).unwrap().0;
        let port = listeners.add(listen(None, Some(80))).unwrap().0;
        let both = listeners.add(listen(Some("10.0.0.1"), Some(80))).unwrap().0;
        assert_eq!(listeners.find(a, 80), Some(both));
        assert_eq!(listeners.find(b, 80), Some(port));
        assert_eq!(listeners.find(a, 81), Some(address));
        assert_eq!(listeners.find(b, 81), Some(any));
        listeners.remove(ListenerId(both));
        assert_eq!(listeners.find(a, 80), Some(port));
        assert!(!listeners.contains(both));
    }

    #[test]
    fn what_cannot_be() {
        let mut listeners = Listeners::default();
        listeners.add(listen(None, Some(80))).unwrap();
        assert_eq!(listeners.add(listen(None, Some(80))), Err(ListenError::InUse(None, Some(80))));
        assert_eq!(listeners.add(listen(None, Some(0))), Err(ListenError::PortZero));
        assert_eq!(listeners.add(Listen { backlog: 0, ..listen(None, Some(81)) }), Err(ListenError::NoBacklog));
    }
}
