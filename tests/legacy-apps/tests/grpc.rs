//! gRPC, by Debian's Python package: its C core sets TCP_INQ on all its connections, and TCP_USER_TIMEOUT on those of servers
//! and of clients with keep-alive.

use legacy_apps::lab::free_port;
use legacy_apps::{ALL, Lab, Seen, Side, compare, on_ring, shm_expected};

fn calls_and_streams(lab: &Lab) -> Seen {
    let mut seen = Seen::default();
    let port = free_port();
    let text = port.to_string();
    let server = lab.serve("grpc", port, lab.python(Side::Server, "rpc.py").args(["server", &text]));
    let out = lab.run("client", lab.python(Side::Client, "rpc.py").args(["client", &text])).success();
    let both = lab.accelerated(Side::Server) && lab.accelerated(Side::Client);
    if both && shm_expected() && std::env::var_os("CULVERT_LOG").is_none() {
        // Two connections that carry much, at both of their ends.
        let log = std::fs::read_to_string(lab.path("culvert.log")).expect("culvert's log");
        assert!(on_ring(&log) >= 4, "gRPC is not on rings:\n{log}");
    }
    seen.note("client", out.text());
    seen.note("client's errors", out.stderr.lines().filter(|l| l.starts_with("Traceback")).count());
    let server = server.stop(libc::SIGTERM).success();
    seen.note("server's errors", server.stderr.lines().filter(|l| l.starts_with("Traceback")).count());
    seen
}

#[test]
fn grpc() {
    compare("grpc", ALL, calls_and_streams);
}
