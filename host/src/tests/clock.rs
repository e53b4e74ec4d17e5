use crate::clock;

fn kernels() -> u64 {
    let t = shmring::lnx::clock();
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

#[test]
fn it_is_the_kernels_monotonic_time() {
    let mut last = 0;
    for _ in 0..1000 {
        let before = kernels();
        let now = clock::now();
        assert!((before..=kernels()).contains(&now));
        assert!(now >= last);
        last = now;
    }
}

#[test]
fn the_rate_of_the_counter_is_measured_once() {
    clock::init();
    assert!((100..=10_000).contains(&clock::cycles_per_us()));
    let begun = clock::now();
    while clock::now() - begun < 2_000_000 {}
    let rate = clock::cycles_per_us();
    assert!((100..=10_000).contains(&rate));
    assert!((0..1000).all(|_| clock::cycles_per_us() == rate));
}
