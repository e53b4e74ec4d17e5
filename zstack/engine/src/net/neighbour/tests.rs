use super::*;
use std::net::Ipv4Addr;

const OURS: Mac = [2, 0, 0, 0, 0, 1];
const THEIRS: Mac = [2, 0, 0, 0, 0, 2];
const EVIL: Mac = [2, 0, 0, 0, 0, 0x66];
const SECOND: u64 = 1_000_000;

fn cache() -> Cache {
    Cache::new(Some(OURS), None, [7; 16], Time(0))
}

fn ip(n: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n))
}

fn at(seconds: u64) -> Time {
    Time(seconds * SECOND)
}

fn questions(cache: &mut Cache, now: Time) -> Vec<Question> {
    std::iter::from_fn(|| cache.question(now, || {})).collect()
}

fn answer(n: u32, mac: Mac) -> Heard {
    Heard { ip: ip(n), mac: Some(mac), solicited: true, overrides: true, locked: true }
}

fn announcement(n: u32, mac: Mac) -> Heard {
    Heard { solicited: false, ..answer(n, mac) }
}

/// A neighbour that has answered at the time.
fn known(cache: &mut Cache, now: Time, n: u32) -> NeighbourId {
    assert!(matches!(cache.resolve(now, ip(n)), Err(Unsent::Unresolved(_))));
    assert_eq!(questions(cache, now), [Question { target: ip(n), to: None }]);
    assert!(cache.heard(now, answer(n, THEIRS)));
    let id = cache.resolve(now, ip(n)).unwrap();
    assert_eq!(cache.event(), Some(Event::Ask(id)));
    id
}

/// The station, if the state allows to use it without another look. (`usable` looks again every second.)
fn mac_of(cache: &Cache, id: NeighbourId, now: Time) -> Option<Mac> {
    let (hot, entry) = (&cache.hot[usize::from(id.slot)], &cache.entries[usize::from(id.slot)]);
    assert!(hot.until <= entry.until);
    let usable = hot.generation == id.generation && now < entry.until;
    usable.then(|| hot.link[LINK - cache.len..][..6].try_into().unwrap())
}

#[test]
fn asked_once_a_second_three_times_then_given_up() {
    let mut cache = cache();
    let Err(Unsent::Unresolved(id)) = cache.resolve(Time(0), ip(2)) else { panic!() };
    let mut asked = Vec::new();
    let mut failures = 0;
    for ms in 0..10_000 {
        let now = Time(ms * 1000);
        // Whoever else wants to send meanwhile causes no question.
        if ms < 2999 {
            assert_eq!(cache.resolve(now, ip(2)), Err(Unsent::Unresolved(id)));
        }
        while let Some(question) = cache.question(now, || failures += 1) {
            assert_eq!(question, Question { target: ip(2), to: None });
            asked.push(ms);
        }
        match cache.event() {
            None => {}
            Some(event) => {
                assert_eq!((event, ms), (Event::Unreachable(id), 3000));
                assert_eq!(cache.resolve(now, ip(2)), Err(Unsent::Unreachable));
            }
        }
    }
    assert_eq!(asked, [0, 1000, 2000]);
    assert_eq!((failures, cache.deadline()), (1, Time::NEVER));
    assert_eq!(cache.next_question(), Time::NEVER);
    // It is asked for again when somebody wants to send, a second later at the earliest.
    assert_eq!(cache.resolve(at(10), ip(2)), Err(Unsent::Unresolved(id)));
    assert_eq!(questions(&mut cache, at(10)).len(), 1);
}

#[test]
fn failure_is_remembered_for_a_second() {
    let mut cache = cache();
    assert!(cache.resolve(Time(0), ip(2)).is_err());
    for second in 0..=3 {
        questions(&mut cache, at(second));
    }
    assert_eq!(cache.resolve(Time(4 * SECOND - 1), ip(2)), Err(Unsent::Unreachable));
    assert!(questions(&mut cache, Time(4 * SECOND - 1)).is_empty());
    assert!(matches!(cache.resolve(at(4), ip(2)), Err(Unsent::Unresolved(_))));
}

#[test]
fn the_deadline_is_that_of_the_next_question() {
    let mut cache = cache();
    assert_eq!(cache.deadline(), Time::NEVER);
    let _ = cache.resolve(Time(500), ip(2));
    assert!(cache.deadline() <= Time(500));
    questions(&mut cache, Time(500));
    assert_eq!(cache.deadline(), Time(500 + SECOND));
    let _ = cache.resolve(Time(600), ip(3));
    assert!(cache.deadline() <= Time(600));
    questions(&mut cache, Time(600));
    cache.heard(Time(700), answer(2, THEIRS));
    assert_eq!(cache.deadline(), Time(600 + SECOND));
}

#[test]
fn reachable_then_stale_then_probed_by_unicast() {
    let mut cache = cache();
    let id = known(&mut cache, Time(0), 2);
    assert_eq!(mac_of(&cache, id, Time(30 * SECOND - 1)), Some(THEIRS));
    assert_eq!(mac_of(&cache, id, at(30)), None);
    // Nobody sends: nothing is asked.
    assert_eq!((questions(&mut cache, at(1000)), cache.deadline()), (vec![], Time::NEVER));
    // Used while stale: five seconds of grace.
    assert_eq!(cache.resolve(at(1000), ip(2)), Ok(id));
    assert_eq!(mac_of(&cache, id, at(1004)), Some(THEIRS));
    assert_eq!(questions(&mut cache, at(1004)), []);
    assert_eq!(mac_of(&cache, id, at(1005)), None);
    // Used again: probed, by unicast, and usable meanwhile.
    assert_eq!(cache.resolve(at(1005), ip(2)), Ok(id));
    assert_eq!(questions(&mut cache, at(1005)), [Question { target: ip(2), to: Some(THEIRS) }]);
    assert_eq!(mac_of(&cache, id, at(1005)), Some(THEIRS));
    assert!(cache.heard(at(1005), answer(2, THEIRS)));
    assert_eq!(mac_of(&cache, id, at(1034)), Some(THEIRS));
    assert_eq!((questions(&mut cache, at(1034)), cache.event()), (vec![], None));
}

#[test]
fn a_neighbour_that_died_is_probed_then_asked_for_then_given_up() {
    let mut cache = cache();
    let id = known(&mut cache, Time(0), 2);
    let mut seen = Vec::new();
    for second in 30..50 {
        let sent = cache.resolve(at(second), ip(2));
        seen.extend(questions(&mut cache, at(second)).into_iter().map(|question| (second, question.to.is_some())));
        if second > 38 {
            assert_ne!(sent, Ok(id));
        }
        if let Some(event) = cache.event() {
            assert_eq!((event, second), (Event::Unreachable(id), 41));
            break;
        }
    }
    assert_eq!(seen, [(35, true), (36, true), (37, true), (38, false), (39, false), (40, false)]);
}

#[test]
fn a_peer_that_acknowledges_is_not_probed() {
    let mut cache = cache();
    let id = known(&mut cache, Time(0), 2);
    for second in 1..200 {
        assert_eq!(cache.resolve(at(second), ip(2)), Ok(id));
        cache.confirm(at(second), id.slot, id.generation);
        assert_eq!(questions(&mut cache, at(second)), []);
    }
    // From PROBE, too.
    assert_eq!(cache.resolve(at(300), ip(2)), Ok(id));
    assert_eq!(cache.resolve(at(305), ip(2)), Ok(id));
    assert_eq!(questions(&mut cache, at(305)).len(), 1);
    cache.confirm(at(305), id.slot, id.generation);
    assert_eq!((questions(&mut cache, at(307)), cache.deadline()), (vec![], Time::NEVER));
    // A name from before confirms nobody.
    cache.confirm(at(400), id.slot, id.generation.wrapping_sub(1));
    assert_eq!(mac_of(&cache, id, at(400)), None);
}

#[test]
fn answers_that_nobody_asked_for_create_nothing() {
    let mut cache = cache();
    for n in 0..10_000 {
        assert!(!cache.heard(Time(u64::from(n)), answer(n, EVIL)));
        assert!(!cache.heard(Time(u64::from(n)), announcement(n, EVIL)));
    }
    assert!(cache.names.is_empty());
    assert!(matches!(cache.resolve(at(1), ip(2)), Err(Unsent::Unresolved(_))));
}

#[test]
fn an_announced_change_is_taken_and_then_verified() {
    let mut cache = cache();
    let id = known(&mut cache, Time(0), 2);
    // Within a second of the last change ARP is not believed (locktime); NDP has no such rule.
    assert!(!cache.heard(Time(SECOND - 1), announcement(2, EVIL)));
    assert_eq!(mac_of(&cache, id, Time(SECOND - 1)), None, "two claim it: it is stale now");
    assert_eq!(cache.resolve(at(1), ip(2)), Ok(id));
    assert_eq!(mac_of(&cache, id, at(1)), Some(THEIRS));
    assert!(cache.heard(at(2), announcement(2, EVIL)));
    assert_eq!(cache.resolve(at(2), ip(2)), Ok(id));
    assert_eq!(mac_of(&cache, id, at(2)), Some(EVIL));
    // It is stale: who sends on finds out whether it is true.
    assert_eq!(cache.resolve(at(7), ip(2)), Ok(id));
    assert_eq!(questions(&mut cache, at(7)), [Question { target: ip(2), to: Some(EVIL) }]);
}

#[test]
fn advertisements_without_override_replace_nothing() {
    let mut cache = cache();
    let id = known(&mut cache, Time(0), 2);
    let claim = Heard { overrides: false, locked: false, ..answer(2, EVIL) };
    assert!(!cache.heard(at(5), claim));
    // RFC 4861, section 7.2.5: REACHABLE becomes STALE, the address stays.
    assert_eq!(mac_of(&cache, id, at(5)), None);
    cache.resolve(at(5), ip(2)).unwrap();
    assert_eq!(mac_of(&cache, id, at(5)), Some(THEIRS));
    // In any other state nothing changes.
    assert!(!cache.heard(at(6), claim));
    assert_eq!(mac_of(&cache, id, at(6)), Some(THEIRS));
}

#[test]
fn an_advertisement_without_an_address_confirms_a_probe_and_resolves_nothing() {
    let mut cache = cache();
    let bare = Heard { mac: None, ..answer(2, THEIRS) };
    let Err(Unsent::Unresolved(id)) = cache.resolve(Time(0), ip(2)) else { panic!() };
    assert!(!cache.heard(Time(0), bare));
    assert!(cache.heard(Time(0), answer(2, THEIRS)));
    cache.resolve(at(30), ip(2)).unwrap();
    cache.resolve(at(35), ip(2)).unwrap();
    assert!(cache.heard(at(35), bare));
    assert_eq!(mac_of(&cache, id, at(64)), Some(THEIRS));
}

#[test]
fn a_flood_of_destinations_keeps_those_that_are_in_use() {
    let mut cache = cache();
    let friends: Vec<_> = (1..=8).map(|n| known(&mut cache, Time(0), n)).collect();
    let mut sent = 0;
    for n in 0..50_000u32 {
        let now = Time(u64::from(n) * 100);
        let _ = cache.resolve(now, ip(1000 + n));
        sent += questions(&mut cache, now).len();
        for id in &friends {
            assert_eq!(mac_of(&cache, *id, now), Some(THEIRS));
        }
    }
    assert!(cache.names.len() <= UNANSWERED + friends.len());
    assert!(cache.take_evicted() > 49_000);
    // Five seconds of it: the burst, and a thousand a second.
    assert!(sent <= 256 + 5 * 1000 + 1, "{sent}");
}

#[test]
fn known_neighbours_push_out_the_one_used_longest_ago() {
    let mut cache = cache();
    let mut now = Time(0);
    let ids: Vec<_> = (0..u32::from(CAPACITY))
        .map(|n| {
            now += Micros(10_000);
            known(&mut cache, now, n)
        })
        .collect();
    now += Micros(2_000_000);
    // The first one is used, the second is not.
    assert_eq!(cache.resolve(now, ip(0)), Ok(ids[0]));
    let one_more = known(&mut cache, now, 100_000);
    assert_eq!(one_more.slot, ids[1].slot);
    assert!(mac_of(&cache, ids[0], now).is_some());
    assert!(mac_of(&cache, ids[1], now).is_none(), "its name is not another's");
    assert!(mac_of(&cache, ids[2], now).is_some());
    assert_eq!(cache.names.len(), usize::from(CAPACITY));
}

#[test]
fn who_waits_for_one_that_is_pushed_out_is_told() {
    let mut cache = cache();
    let Err(Unsent::Unresolved(first)) = cache.resolve(Time(0), ip(0)) else { panic!() };
    for n in 1..=UNANSWERED as u32 {
        let _ = cache.resolve(Time(0), ip(n));
    }
    assert_eq!(cache.event(), Some(Event::Unreachable(first)));
    assert_eq!(cache.event(), None);
}

#[test]
fn more_events_than_are_kept_become_one_for_all() {
    let mut cache = cache();
    for n in 0..200 {
        let _ = cache.resolve(Time(0), ip(n));
        cache.heard(Time(0), answer(n, THEIRS));
    }
    assert_eq!(cache.event(), Some(Event::AskAll));
    assert_eq!(cache.event(), None);
}

#[test]
fn hints_save_the_question_and_are_verified() {
    let mut cache = cache();
    cache.hint(Time(0), ip(2), THEIRS);
    let id = cache.resolve(at(59), ip(2)).unwrap();
    assert_eq!(mac_of(&cache, id, at(59)), Some(THEIRS));
    assert_eq!(questions(&mut cache, at(59)), []);
    cache.resolve(at(64), ip(2)).unwrap();
    assert_eq!(questions(&mut cache, at(64)), [Question { target: ip(2), to: Some(THEIRS) }]);
    // An old one is worth nothing, and many push out only one another.
    assert!(matches!(cache.resolve(at(64), ip(3)), Err(Unsent::Unresolved(_))));
    cache.hint(Time(0), ip(4), THEIRS);
    assert!(matches!(cache.resolve(at(60), ip(4)), Err(Unsent::Unresolved(_))));
    for n in 100..10_000 {
        cache.hint(at(70), ip(n), EVIL);
    }
    assert_eq!(cache.names.len(), 3);
    assert_eq!(mac_of(&cache, id, at(64)), Some(THEIRS));
}

#[test]
fn a_port_without_link_headers_reaches_everybody() {
    let mut cache = Cache::new(None, None, [0; 16], Time(0));
    let id = cache.resolve(Time(0), ip(2)).unwrap();
    assert_eq!(cache.resolve(Time(0), ip(3)), Ok(id));
    assert!(cache.usable(id.slot, id.generation, Time(u64::MAX - 1)).is_some());
    assert_eq!((cache.link_len(), cache.deadline()), (0, Time::NEVER));
    // A path that was never looked for is not usable.
    assert!(cache.usable(0, 0, Time(0)).is_none());
}

#[test]
fn link_headers() {
    let plain = Cache::new(Some(OURS), None, [0; 16], Time(0));
    assert_eq!(plain.link(THEIRS, 0x800)[4..], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
    let tagged = Cache::new(Some(OURS), Some(0x123), [0; 16], Time(0));
    assert_eq!(tagged.link(THEIRS, 0x86dd), [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x81, 0, 1, 0x23, 0x86, 0xdd]);
    assert_eq!((plain.link_len(), tagged.link_len()), (14, 18));
}
