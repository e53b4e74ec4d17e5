use super::usercopy::Guarded;
use crate::given::Environment;
use crate::signals::arm_faults;
use core::ffi::c_char;
use core::ptr;

const PAGE: usize = 4096;

fn seen(env: Environment) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    // SAFETY: nobody changes what it names; faults are armed.
    assert!(!unsafe { env.any(|s| (all.push(s.to_vec()), false).1) });
    all
}

#[test]
fn no_array_is_an_empty_environment_and_not_this_processs() {
    arm_faults();
    assert!(seen(Environment::Array(ptr::null())).is_empty());
    assert!(!seen(Environment::Own).is_empty());
}

#[test]
fn strings_are_read_as_far_as_the_kernel_would() {
    let mut memory = Guarded::new(3);
    let long = vec![b'x'; 2 * PAGE];
    memory.bytes().fill(b'y');
    memory.bytes()[..long.len()].copy_from_slice(&long);
    memory.bytes()[long.len()] = 0;
    let first = memory.bytes().as_ptr().cast::<c_char>();
    // Up to the edge, with its end and without.
    memory.bytes()[3 * PAGE - 1] = 0;
    let last = memory.before_end(4).cast_const().cast::<c_char>();
    let edge = memory.before_end(0).cast_const().cast::<c_char>();
    let strings = |array: &[*const c_char]| seen(Environment::Array(array.as_ptr()));
    assert_eq!(strings(&[first, last, ptr::null()]), [long, b"yyy".to_vec()]);
    assert_eq!(strings(&[last, edge, last, ptr::null()]), [b"yyy"]);
    memory.bytes()[3 * PAGE - 1] = b'y';
    assert!(strings(&[last, ptr::null()]).is_empty());
    // An array that ends at the edge without a null pointer.
    let array = Guarded::new(1);
    let at = array.before_end(size_of::<usize>()).cast::<*const c_char>();
    // SAFETY: the last place before the edge.
    unsafe { at.write(c"A=b".as_ptr()) };
    assert_eq!(seen(Environment::Array(at)), [b"A=b"]);
    assert!(seen(Environment::Array(ptr::without_provenance(8))).is_empty());
}
