//! The test of net_tap looks at what the driver gives to writev(2): its own function of that name has to be seen by libraries.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg-tests=-Wl,--export-dynamic-symbol=writev");
}
