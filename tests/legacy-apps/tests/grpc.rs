//! gRPC, by Debian's Python package: its C core sets TCP_INQ on all its connections, and TCP_USER_TIMEOUT on those of servers
//! and of clients with keep-alive.

use legacy_apps::lab::free_port;
use legacy_apps::{ALL, Lab, Seen, Side, compare};

fn calls_and_streams(lab: &Lab) -> Seen {
    let mut seen = Seen::default();
    let port = free_port();
    let text = port.to_string();
    let server = lab.serve("grpc", port, lab.python(Side::Server, "rpc.py").args(["server", &text]));
    let watch = lab.watch();
    let out = lab.run("client", lab.python(Side::Client, "rpc.py").args(["client", &text])).success();
    watch.check("gRPC");
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
