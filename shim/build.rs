//! How the library is linked.

fn main() {
    // A program may define a function of a name that we export, too. Calls inside the library go to the library's own.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-Bsymbolic-functions");
    // Handlers, atfork functions and the wrapped dispositions of signals point into it.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    // A program that is linked with it asks for it by this name, wherever it was when it was linked.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libculvert.so");
    println!("cargo::rerun-if-changed=build.rs");
}
