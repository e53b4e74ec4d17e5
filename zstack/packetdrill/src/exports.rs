//! The shared object: see tests/README.md.
