use super::*;
use crate::scenario::Clock;

/// The clocks of the scenarios make the numbers come round that they are to.
#[test]
fn a_clock_makes_the_numbers_that_the_plan_wants() {
    let (mut near, mut far) = (0, 0);
    for seed in 0..400 {
        let scenario = Scenario::new(seed);
        let opener = scenario.conns[0].opener;
        let mut world = World::new(&scenario, false);
        world.run();
        let sent = &world.sent[0][opener];
        // A second or two: neighbours must be found, and ports may be full.
        let close = match (scenario.sides[opener].clock, sent.base, sent.stamps) {
            (Clock::Number(n), Some(base), _) => base.wrapping_sub(n) < 500_000,
            (Clock::Stamp(n), _, Some((first, ..))) => first.wrapping_sub(n) < 2_000,
            _ => continue,
        };
        *if close { &mut near } else { &mut far } += 1;
    }
    assert!(near > 150 && far < 20, "{near} {far}");
}
