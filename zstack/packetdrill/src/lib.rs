//! The engine under packetdrill: its sockets with the numbers and errors of libc ([`face`]), a runner of packetdrill's scripts in
//! virtual time ([`script`], [`run`]), and a shared object that packetdrill itself loads (`--so_filename`, `exports`).
//!
//! # A suite, in virtual time
//! ```text
//! cargo run --release -p zstack-packetdrill -- --short FOLDER
//! ```
//! runs every `*.pkt` below the folder, and says of each `passed`, `FAILED` and how what was sent differs, or `out of scope` and why; the
//! last line is `N passed, M failed, K out of scope`. Without `--short` a failure shows all that had happened before. The suites are
//! Linux's own, `tools/testing/selftests/net/packetdrill`, and the one of packetdrill's repository, `gtests/net/tcp`; neither has a
//! licence that lets it stand here. A script is taken as it is: what its shell commands set is applied where the engine has an option
//! for it, and names the reason where it has none. Out of scope is what the engine leaves out (Fast Open, ECN, MD5, path MTU probing,
//! pacing), and what is Linux's alone: how much of a buffer its bookkeeping takes, and hence its receive windows, where a script sets
//! the buffers' sizes; queues of the host that drop; notifications on the error queue.
//!
//! # What differs from Linux, and why
//! - An ACK of what was never sent is answered (RFC 9293, section 3.10.7.4; RFC 5961, section 5.2): Linux drops it in silence.
//! - Payload that comes twice is reported also where it comes with a new FIN (RFC 2883, section 4).
//! - RACK.rtt is the round trip of the segment that was sent last (RFC 8985, section 6.2, step 2: "in ascending order of
//!   Segment.xmit_ts"): Linux takes the one with the highest number, finds some losses later, and sends a segment more by PRR.
//! - Slow start ends by HyStart++ (RFC 9406), where Linux has the older HyStart.
//! - An ICMP error that is soft leaves a half-open connection alone (RFC 1122, section 4.2.3.9): Linux drops it.
//! - TSecr of a SYN is 0 (RFC 7323, section 3.2), also where a connection in TIME-WAIT is opened again, which takes a second and
//!   timestamps (RFC 6191) whether or not the port was bound: Linux sends the last TSval, and lets a bound port be taken at once.
//! - PSH marks the end of a send call, and every frame that the port cuts: Linux sets it besides wherever half of the peer's window
//!   was written since the last one, at the edge of one of its buffers.
//! - What arrives behind a close is answered by RST with SND.NXT (RFC 9293, section 3.10.5), which is RCV.NXT of a peer that has
//!   what was sent before; Linux takes SEG.ACK.
//! - A reordering window ends when RACK says so; packetdrill's repository has it up to 19 ms later, Linux's own scripts 2 ms.
//!
//! These are all the misses of 106 scripts: 45 of the 49 of Linux's that are in scope pass (19 are not), 12 of 18 of packetdrill's
//! repository (8 are not), and 7 of 8 that were proposed to Linux and not taken yet (4 are not).
//!
//! # packetdrill itself
//! ```text
//! cargo build --release -p zstack-packetdrill
//! packetdrill --so_filename=target/release/libzstack_packetdrill.so --so_flags=tso=2920 SCRIPT.pkt
//! cc -o driver zstack/packetdrill/abi/driver.c -lpthread -ldl && ./driver target/release/libzstack_packetdrill.so
//! ```
//! The second line needs packetdrill; the third proves without it that the object is what packetdrill expects: it loads the object
//! with dlopen(3), as packetdrill does, and calls its table from C.

#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod exports;
pub mod face;
mod options;
#[allow(unsafe_code)]
pub mod port;
pub mod run;
pub mod script;

#[cfg(test)]
mod scripts;
