//! The neighbour cache: station addresses of those whom we send to directly (RFC 826; RFC 4861, section 7.3).
//!
//! An entry exists only because we wanted to send to its address: what others say of themselves changes entries and creates
//! none (Linux: `arp_accept` 0). Who asks for our address leaves a hint in a small ring, which saves the question if we then
//! want to send to him. No packet is queued.
//!
//! Departures from RFC 4861: DELAY begins and ends when a packet is sent, not by a timer; failed unicast probes are followed by
//! multicast ones at once.

use super::lists::Lists;
use super::unsent::{Event, NeighbourId, Unsent};
use crate::rate::Bucket;
use crate::time::{Micros, Time};
use siphasher::sip::SipHasher13;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::net::IpAddr;

/// A station address.
pub(super) type Mac = [u8; 6];

/// Room for a link header: Ethernet with a VLAN tag.
pub(super) const LINK: usize = 18;

/// How many neighbours are remembered (Linux: `gc_thresh3`).
pub(super) const CAPACITY: u16 = 1024;
/// How many of them may be such as have not answered: who makes us ask for addresses that nobody has does not push out others.
const UNANSWERED: usize = CAPACITY as usize / 4;
/// RFC 4861, section 10: REACHABLE_TIME, DELAY_FIRST_PROBE_TIME, RETRANS_TIMER, MAX_UNICAST_SOLICIT, MAX_MULTICAST_SOLICIT.
const REACHABLE: Micros = Micros(30_000_000);
const DELAY: Micros = Micros(5_000_000);
const RETRANS: Micros = SECOND;
const SECOND: Micros = Micros(1_000_000);
const TRIES: u8 = 3;
/// An address that changed so lately is not changed again by ARP (Linux: `locktime`).
const LOCK: Micros = SECOND;
/// How many hints are kept, and how long they are believed.
const HINTS: usize = 16;
const HINT: Micros = Micros(60_000_000);
/// Events that are kept; when there are more, everybody asks again.
const EVENTS: usize = 64;

/// The lists of slots. Those of entries that are being asked for are in the order of their times.
const FREE: u8 = 0;
const KNOWN: u8 = 1;
const FAILED: u8 = 2;
/// To be asked for (INCOMPLETE), at once and after a question.
const ASK: u8 = 3;
const ASKED: u8 = 4;
/// To be probed (PROBE), at once and after a probe.
const PROBE: u8 = 5;
const PROBED: u8 = 6;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Incomplete,
    Reachable,
    Stale,
    Delay,
    Probe,
    Failed,
}

/// What sending looks at.
#[derive(Clone, Copy, Debug)]
struct Hot {
    /// Until when `link` may be used without a look at the state: within [`Entry::until`], and a second at most, so that who is
    /// used is known.
    until: Time,
    /// How many had the slot, this one included; 0 names nobody.
    generation: u32,
    /// The link header of a frame to it, if the address is known: the last so many bytes as it is long.
    link: [u8; LINK],
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Until when the state holds if nothing happens: of REACHABLE and DELAY.
    until: Time,
    state: State,
    tries: u8,
    /// Somebody waits for an event.
    awaited: bool,
    ip: IpAddr,
    /// When it last became the last of its list.
    moved: Time,
    /// When its address last changed.
    changed: Time,
}

/// What a message says of its sender, or of the target that it names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    pub ip: IpAddr,
    /// Its station address; NDP may leave it out.
    pub mac: Option<Mac>,
    /// It is an answer to us. Believed only while we ask.
    pub solicited: bool,
    /// It replaces an address that we have.
    pub overrides: bool,
    /// ARP's weak protection against two that claim one address applies.
    pub locked: bool,
}

/// A question that is to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Question {
    pub target: IpAddr,
    /// To this station only; else to all.
    pub to: Option<Mac>,
}

#[derive(Clone, Copy, Debug)]
struct Keyed([u8; 16]);

impl BuildHasher for Keyed {
    type Hasher = SipHasher13;
    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_key(&self.0)
    }
}

/// The cache.
#[derive(Debug)]
pub(super) struct Cache {
    hot: Vec<Hot>,
    entries: Vec<Entry>,
    names: HashMap<IpAddr, u16, Keyed>,
    lists: Lists<7>,
    /// How many are in the lists from [`ASK`] on.
    asking: u16,
    hints: [Option<(IpAddr, Mac, Time)>; HINTS],
    next_hint: usize,
    events: VecDeque<Event>,
    /// More happened than `events` holds.
    overflow: bool,
    questions: Bucket,
    /// What every link header has after the destination; the type is filled in by family.
    template: [u8; LINK],
    /// How long they are; 0: there is no link layer, and a single entry stands for everybody.
    len: usize,
    evicted: u64,
}

impl Cache {
    /// A cache for frames from `mac` with this VLAN tag; `None`: a port without link headers.
    pub fn new(mac: Option<Mac>, vlan: Option<u16>, key: [u8; 16], now: Time) -> Cache {
        let len = match (mac, vlan) {
            (None, _) => 0,
            (_, None) => 14,
            (_, Some(_)) => LINK,
        };
        let mut template = [0; LINK];
        if let Some(mac) = mac {
            let header = &mut template[LINK - len..];
            header[6..12].copy_from_slice(&mac);
            if let Some(vlan) = vlan {
                header[12..14].copy_from_slice(&[0x81, 0x00]);
                header[14..16].copy_from_slice(&vlan.to_be_bytes());
            }
        }
        let slots = if len == 0 { 1 } else { CAPACITY };
        let (until, generation) = if len == 0 { (Time::NEVER, 1) } else { (Time(0), 0) };
        let entry = Entry {
            until: Time(0),
            state: State::Failed,
            tries: 0,
            awaited: false,
            ip: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            moved: now,
            changed: now,
        };
        let mut names = HashMap::with_hasher(Keyed(key));
        // Twice the room: the table then never grows, however its entries change.
        names.reserve(2 * usize::from(slots));
        Cache {
            hot: vec![Hot { until, generation, link: template }; usize::from(slots)],
            entries: vec![entry; usize::from(slots)],
            names,
            lists: Lists::new(slots),
            asking: 0,
            hints: [None; HINTS],
            next_hint: 0,
            events: VecDeque::with_capacity(EVENTS),
            overflow: false,
            questions: Bucket::new(1000, 256),
            template,
            len,
            evicted: 0,
        }
    }

    /// The length of every link header.
    #[inline]
    pub fn link_len(&self) -> usize {
        self.len
    }

    /// The link header of frames to `mac`, at the end.
    pub fn link(&self, mac: Mac, ethertype: u16) -> [u8; LINK] {
        let mut link = self.template;
        if let [header @ .., _, _] = &mut link[LINK - self.len..] {
            header[..6].copy_from_slice(&mac);
            link[LINK - 2..].copy_from_slice(&ethertype.to_be_bytes());
        }
        link
    }

    /// The link header of frames to a neighbour, at the end, if that may be used without further ado.
    #[inline]
    pub fn usable(&self, slot: u16, generation: u32, now: Time) -> Option<&[u8; LINK]> {
        let hot = self.hot.get(usize::from(slot))?;
        if hot.generation == generation && now < hot.until { Some(&hot.link) } else { None }
    }

    /// Finds the neighbour, or begins to ask for it. What it returns is [usable](Cache::usable) now.
    pub fn resolve(&mut self, now: Time, ip: IpAddr) -> Result<NeighbourId, Unsent> {
        if self.len == 0 {
            return Ok(NeighbourId { slot: 0, generation: 1 });
        }
        let slot = match self.names.get(&ip) {
            Some(&slot) => slot,
            None => self.create(now, ip),
        };
        let entry = &mut self.entries[usize::from(slot)];
        let id = NeighbourId { slot, generation: self.hot[usize::from(slot)].generation };
        match entry.state {
            State::Incomplete => {
                entry.awaited = true;
                return Err(Unsent::Unresolved(id));
            }
            State::Failed if now < entry.moved + RETRANS => return Err(Unsent::Unreachable),
            State::Failed => {
                self.ask(now, slot);
                self.entries[usize::from(slot)].awaited = true;
                return Err(Unsent::Unresolved(id));
            }
            State::Reachable | State::Stale if now >= entry.until => {
                (entry.state, entry.until) = (State::Delay, now + DELAY);
            }
            State::Delay if now >= entry.until => {
                (entry.state, entry.until, entry.tries) = (State::Probe, Time::NEVER, 0);
                self.place(now, slot, PROBE);
            }
            _ => {}
        }
        // It is among those used last.
        if self.lists.of(slot) == KNOWN {
            self.place(now, slot, KNOWN);
        }
        self.hot[usize::from(slot)].until = self.entries[usize::from(slot)].until.min(now + SECOND);
        Ok(id)
    }

    /// The neighbour forwards what we send.
    pub fn confirm(&mut self, now: Time, slot: u16, generation: u32) {
        let Some(hot) = self.hot.get(usize::from(slot)) else { return };
        if self.len == 0 || hot.generation != generation {
            return;
        }
        let entry = &mut self.entries[usize::from(slot)];
        match entry.state {
            State::Incomplete | State::Failed => {}
            State::Reachable | State::Stale | State::Delay | State::Probe => {
                (entry.state, entry.until) = (State::Reachable, now + REACHABLE);
                if self.lists.of(slot) != KNOWN {
                    self.place(now, slot, KNOWN);
                }
            }
        }
    }

    /// Takes note of what a message says. False: it is about nobody that we have to do with, or not to be believed.
    pub fn heard(&mut self, now: Time, heard: Heard) -> bool {
        let Some(&slot) = self.names.get(&heard.ip) else { return false };
        let ethertype = ethertype(heard.ip);
        let link = heard.mac.map(|mac| self.link(mac, ethertype));
        let entry = &mut self.entries[usize::from(slot)];
        let hot = &mut self.hot[usize::from(slot)];
        match entry.state {
            State::Incomplete | State::Failed => {
                let Some(link) = link else { return false };
                let solicited = heard.solicited && entry.state == State::Incomplete;
                (hot.link, entry.changed) = (link, now);
                self.set(now, slot, solicited);
                self.tell(slot, Event::Ask);
                true
            }
            State::Reachable | State::Stale | State::Delay | State::Probe => {
                let solicited = heard.solicited && entry.state == State::Probe;
                let changes = link.is_some_and(|link| link != hot.link);
                if changes && !(heard.overrides && (!heard.locked || now >= entry.changed + LOCK)) {
                    // Two claim the address: find out (RFC 4861, section 7.2.5; the word of the second is not taken).
                    if entry.state == State::Reachable {
                        self.set(now, slot, false);
                    }
                    return false;
                }
                if changes {
                    (hot.link, entry.changed) = (link.unwrap_or(hot.link), now);
                }
                if solicited || changes {
                    self.set(now, slot, solicited);
                }
                true
            }
        }
    }

    /// A neighbour becomes REACHABLE, or STALE.
    fn set(&mut self, now: Time, slot: u16, reachable: bool) {
        let entry = &mut self.entries[usize::from(slot)];
        (entry.state, entry.until) =
            if reachable { (State::Reachable, now + REACHABLE) } else { (State::Stale, Time(0)) };
        self.hot[usize::from(slot)].until = Time(0);
        self.place(now, slot, KNOWN);
    }

    /// Somebody whom we have not asked for told his address when he asked for ours.
    pub fn hint(&mut self, now: Time, ip: IpAddr, mac: Mac) {
        let place = match self.hints.iter().position(|hint| matches!(hint, Some((other, ..)) if *other == ip)) {
            Some(place) => place,
            None => {
                self.next_hint = (self.next_hint + 1) % HINTS;
                self.next_hint
            }
        };
        self.hints[place] = Some((ip, mac, now));
    }

    /// The next question that is to be sent now. `told` hears of each neighbour that is given up.
    pub fn question(&mut self, now: Time, mut failed: impl FnMut()) -> Option<Question> {
        loop {
            let (slot, list) = [PROBE, ASK, PROBED, ASKED].into_iter().find_map(|list| {
                let slot = self.lists.first(list)?;
                (self.time(slot, list) <= now).then_some((slot, list))
            })?;
            let entry = &mut self.entries[usize::from(slot)];
            if entry.tries == TRIES {
                match entry.state {
                    State::Probe => self.ask(now, slot),
                    _ => {
                        (entry.state, entry.until) = (State::Failed, Time(0));
                        self.hot[usize::from(slot)].until = Time(0);
                        self.place(now, slot, FAILED);
                        self.tell(slot, Event::Unreachable);
                        failed();
                    }
                }
                continue;
            }
            if !self.questions.take(now) {
                return None;
            }
            entry.tries += 1;
            let to = (entry.state == State::Probe).then(|| {
                let mut mac = [0; 6];
                mac.copy_from_slice(&self.hot[usize::from(slot)].link[LINK - self.len..][..6]);
                mac
            });
            let question = Question { target: entry.ip, to };
            self.place(now, slot, if list == PROBE || list == PROBED { PROBED } else { ASKED });
            return Some(question);
        }
    }

    /// When [`Cache::question`] has something to do.
    #[inline]
    pub fn deadline(&self) -> Time {
        if self.asking == 0 { Time::NEVER } else { self.next_question() }
    }

    #[inline(never)]
    fn next_question(&self) -> Time {
        let first = |list| Some(self.time(self.lists.first(list)?, list));
        let first = [PROBE, ASK, PROBED, ASKED].into_iter().filter_map(first).min();
        first.map_or(Time::NEVER, |time| time.max(self.questions.at()))
    }

    /// Whether [`Cache::event`] has something to tell.
    #[inline]
    pub fn has_events(&self) -> bool {
        self.overflow || !self.events.is_empty()
    }

    /// What those who wait are to be told.
    #[inline]
    pub fn event(&mut self) -> Option<Event> {
        if std::mem::take(&mut self.overflow) {
            self.events.clear();
            return Some(Event::AskAll);
        }
        self.events.pop_front()
    }

    /// How many entries were pushed out since this was asked.
    pub fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }

    /// Whether somebody has answered for this address.
    pub fn knows(&self, ip: IpAddr) -> bool {
        self.names
            .get(&ip)
            .is_some_and(|&slot| !matches!(self.entries[usize::from(slot)].state, State::Incomplete | State::Failed))
    }

    /// When the first of a list is due.
    fn time(&self, slot: u16, list: u8) -> Time {
        let moved = self.entries[usize::from(slot)].moved;
        if list == PROBE || list == ASK { moved } else { moved + RETRANS }
    }

    /// Begins to ask all.
    fn ask(&mut self, now: Time, slot: u16) {
        let entry = &mut self.entries[usize::from(slot)];
        (entry.state, entry.until, entry.tries) = (State::Incomplete, Time(0), 0);
        self.hot[usize::from(slot)].until = Time(0);
        self.place(now, slot, ASK);
    }

    fn place(&mut self, now: Time, slot: u16, list: u8) {
        self.entries[usize::from(slot)].moved = now;
        self.asking -= u16::from(self.lists.of(slot) >= ASK);
        self.asking += u16::from(list >= ASK);
        self.lists.append_to(slot, list);
    }

    fn tell(&mut self, slot: u16, event: fn(NeighbourId) -> Event) {
        let entry = &mut self.entries[usize::from(slot)];
        if std::mem::take(&mut entry.awaited) {
            if self.events.len() == EVENTS {
                self.overflow = true;
            } else {
                self.events.push_back(event(NeighbourId { slot, generation: self.hot[usize::from(slot)].generation }));
            }
        }
    }

    /// A new entry in a slot that is free, or that had the one missed least.
    fn create(&mut self, now: Time, ip: IpAddr) -> u16 {
        let unanswered = self.lists.len(ASK) + self.lists.len(ASKED) + self.lists.len(FAILED);
        let least = || [FAILED, ASKED, ASK].into_iter().find_map(|list| self.lists.first(list));
        let slot = match self.lists.first(FREE) {
            Some(slot) if unanswered < UNANSWERED => slot,
            _ if unanswered >= UNANSWERED => least().expect("some are unanswered"),
            _ => [KNOWN, PROBED, PROBE]
                .into_iter()
                .find_map(|list| self.lists.first(list))
                .expect("the others are known"),
        };
        if self.lists.of(slot) != FREE {
            self.names.remove(&self.entries[usize::from(slot)].ip);
            // Not "ask": who asks again would push out the next one, without end.
            self.tell(slot, Event::Unreachable);
            self.evicted += 1;
        }
        let hint = self
            .hints
            .iter()
            .flatten()
            .find(|(other, _, time)| *other == ip && now < *time + HINT)
            .map(|&(_, mac, _)| mac);
        let link = self.link(hint.unwrap_or([0; 6]), ethertype(ip));
        let hot = &mut self.hot[usize::from(slot)];
        *hot = Hot { until: Time(0), generation: hot.generation.wrapping_add(1).max(1), link };
        self.entries[usize::from(slot)] =
            Entry { until: Time(0), state: State::Stale, tries: 0, awaited: false, ip, moved: now, changed: now };
        self.names.insert(ip, slot);
        match hint {
            Some(_) => self.place(now, slot, KNOWN),
            None => self.ask(now, slot),
        }
        slot
    }
}

/// The Ethernet type of IP packets to this neighbour.
fn ethertype(ip: IpAddr) -> u16 {
    if ip.is_ipv4() { 0x0800 } else { 0x86dd }
}

#[cfg(test)]
mod tests;
