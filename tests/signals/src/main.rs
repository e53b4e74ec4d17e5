//! Signal test cases, one per run: `sigcase CASE [armed]`.
//!
//! A *semantic* case prints what it sees, and must print the same, and end the same, native and under a
//! preload library. A *probe* case needs the probe library and ends with status 0 if all is well. With
//! `armed` the library's fault handler is installed first, if there is a library that has one.

mod os;
mod probe;
mod semantic;
mod waits;

/// Cases by name.
pub type Case = (&'static str, fn());

fn main() {
    let mut args = std::env::args().skip(1);
    let Some(name) = args.next() else {
        for (name, _) in semantic::CASES {
            println!("semantic {name}");
        }
        for (name, _) in probe::CASES.iter().chain(waits::CASES) {
            println!("probe {name}");
        }
        return;
    };
    if args.next().as_deref() == Some("armed") {
        os::arm();
    }
    let all = semantic::CASES.iter().chain(probe::CASES).chain(waits::CASES);
    match all.into_iter().find(|c| c.0 == name) {
        Some((_, run)) => run(),
        None => {
            eprintln!("no such case: {name}");
            std::process::exit(2);
        }
    }
}
