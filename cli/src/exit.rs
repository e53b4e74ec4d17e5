//! Exit codes, as `env(1)`, `nohup(1)` and `docker run` use them.

/// All went well; for `doctor`: the program will be accelerated.
pub const OK: u8 = 0;
/// The answer is no: `steer` cannot do it or found a difference, `doctor` found a reason why nothing will be accelerated, `bench --check` a floor
/// that was not met.
pub const NO: u8 = 1;
/// The command line makes no sense (`stat`, `doctor`, `bench`).
pub const USAGE: u8 = 2;
/// `run`: culvert itself failed before it came to starting the program.
pub const FAILED: u8 = 125;
/// `run`: the program exists but cannot be executed, or not under culvert.
pub const CANNOT_EXECUTE: u8 = 126;
/// `run`: there is no such program.
pub const NOT_FOUND: u8 = 127;
/// `bench`: interrupted by SIGINT (128 + 2, the shell's convention).
pub const INTERRUPTED: u8 = 130;
