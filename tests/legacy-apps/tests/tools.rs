//! memcached, iperf3, curl, socat, and servers that accept, fork and exec.

use legacy_apps::json::Json;
use legacy_apps::lab::{free_port, free_ports, wait_gone};
use legacy_apps::{ALL, BOTH, Lab, PATIENCE, Seen, Side, compare, is_root, noise};

fn memcached(lab: &Lab) -> Seen {
    let mut seen = Seen::default();
    let port = free_port();
    let mut c = lab.command(Side::Server, "memcached");
    c.args(["-t", "4", "-l", "127.0.0.1", "-m", "256", "-p", &port.to_string()]);
    if is_root() {
        c.args(["-u", "nobody"]);
    }
    let server = lab.serve("memcached", port, &mut c);
    let watch = lab.watch();
    let mut peer = lab.peer(Side::Client);
    let out = lab.run("client", peer.args(["memcached", &port.to_string(), "8", "12"])).success();
    watch.check("memcached");
    seen.note("values", out.text());
    seen.note("SIGTERM", format!("{:?}", server.stop(libc::SIGTERM).status.code()));
    seen
}

fn iperf3(lab: &Lab, modes: &[&[&str]]) -> Seen {
    let mut seen = Seen::default();
    for args in modes {
        let port = free_port();
        let text = port.to_string();
        // One server per test (-1): a persistent one refuses a client while it still tidies up.
        let server = lab.serve(
            "iperf3",
            port,
            lab.command(Side::Server, "iperf3").args(["-s", "-1", "-B", "127.0.0.1", "-p", &text]),
        );
        let watch = lab.watch();
        let mut c = lab.command(Side::Client, "iperf3");
        c.args(["-c", "127.0.0.1", "-J", "-t", "1", "-p", &text]).args(*args);
        let out = lab.run("iperf3-client", &mut c);
        watch.check("iperf3");
        let name = args.join(" ");
        let json =
            Json::parse(&out.text()).unwrap_or_else(|e| panic!("iperf3 {name}: {e}: {} {}", out.text(), out.stderr));
        seen.note(format!("{name}: status"), format!("{:?} {}", out.status.code(), json.get("error").text()));
        let end = json.get("end");
        let Json::Map(sums) = end else { panic!("iperf3 {name}: no end: {}", out.text()) };
        for (key, sum) in sums.iter().filter(|(k, _)| k.starts_with("sum")) {
            seen.note(format!("{name}: {key} carried bytes"), sum.get("bytes").number() > 0.0);
        }
        let carried =
            end.get("streams").list().iter().filter(|s| s.get("receiver").get("bytes").number() > 0.0).count();
        seen.note(format!("{name}: streams that carried bytes"), carried);
        seen.note(format!("{name}: server"), format!("{:?}", server.wait(PATIENCE).status.code()));
    }
    seen
}

fn curl(lab: &Lab) -> Seen {
    let mut seen = Seen::default();
    let port = free_port();
    lab.write("twenty", noise(20, 20_000_000));
    let web = lab.serve(
        "http.server",
        port,
        lab.command(Side::Server, "/usr/bin/python3.11").args([
            "-m",
            "http.server",
            "--bind",
            "127.0.0.1",
            &port.to_string(),
        ]),
    );
    for round in 0..2 {
        let url = format!("http://127.0.0.1:{port}/twenty");
        let out = lab.run("curl", lab.command(Side::Client, "curl").args(["-sS", &url])).success();
        seen.note_bytes(format!("download {round}"), &out.stdout);
    }
    web.stop(libc::SIGTERM);
    // The uploads go to servers.py, which answers with a checksum; its web server has the third port.
    let port = free_ports(3);
    let server =
        lab.serve("servers.py", port + 2, lab.python(Side::Server, "servers.py").args(["server", &port.to_string()]));
    let file = lab.write("upload", noise(21, 8_000_000));
    let url = format!("http://127.0.0.1:{}/", port + 2);
    for header in ["Expect: 100-continue", "Expect:", "Transfer-Encoding: chunked"] {
        let data = format!("@{}", file.display());
        let args = ["-sS", "-X", "POST", "-H", header, "--data-binary", &data, &url];
        let out = lab.run("curl", lab.command(Side::Client, "curl").args(args));
        seen.note(format!("upload, {header}"), format!("{} {}", out.text(), out.status));
    }
    server.stop(libc::SIGTERM);
    seen
}

/// socat at both ends; the client closes its direction at the end of its input and awaits the answer.
fn socat(lab: &Lab) -> Seen {
    let mut seen = Seen::default();
    // EXEC with nofork replaces socat by the program: the socket is its standard input and output.
    let cases =
        [("piped", "EXEC:sha256sum", ",fork"), ("direct", "EXEC:sha256sum,nofork", ",fork"), ("once", "EXEC:cat", "")];
    for (name, action, fork) in cases {
        let port = free_port();
        let listen = format!("TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr{fork}");
        let server = lab.serve("socat", port, lab.command(Side::Server, "socat").args(["-t30", &listen, action]));
        let inputs: &[usize] = if fork.is_empty() { &[300_000] } else { &[0, 1, 70_000, 5_000_000] };
        for size in inputs {
            let mut c = lab.command(Side::Client, "socat");
            let out = lab.feed(
                "client",
                c.args(["-t30", "-", &format!("TCP:127.0.0.1:{port}")]),
                &noise(*size as u64, *size),
            );
            seen.note_bytes(format!("{name} {size}"), &out.stdout);
            seen.note(format!("{name} {size} status"), out.status);
        }
        if fork.is_empty() {
            seen.note(format!("{name} server"), server.wait(PATIENCE).status);
        } else {
            let pid = server.pid();
            server.stop(libc::SIGTERM);
            wait_gone(pid);
        }
    }
    seen
}

/// A connection given to another program by exec, untouched, after a few lines, and after many.
fn inetd(lab: &Lab) -> Seen {
    let mut seen = Seen::default();
    let programs: [(&str, &[&str]); 3] = [
        ("cat", &["cat"]),
        ("sha256sum", &["sha256sum"]),
        (
            "python",
            &[
                "/usr/bin/python3.11",
                "-c",
                "import sys\nfor l in sys.stdin.buffer: sys.stdout.buffer.write(l[:60]); sys.stdout.flush()",
            ],
        ),
    ];
    for (name, program) in programs {
        for lines in ["0", "3", "60", "500"] {
            let port = free_port();
            let mut c = lab.peer(Side::Server);
            let server = lab.serve("inetd", port, c.args(["inetd", &port.to_string(), lines, "--"]).args(program));
            for size in [10usize, 4000, 1_500_000] {
                let out = lab.feed(
                    "talk",
                    lab.peer(Side::Client).args(["talk", &port.to_string(), lines]),
                    &noise(size as u64, size),
                );
                seen.note_bytes(format!("{name}, {lines} lines, {size} bytes"), &out.stdout);
                seen.note(
                    format!("{name}, {lines} lines, {size} bytes: client"),
                    format!(
                        "{} {}",
                        out.status,
                        out.stderr.lines().filter(|l| l.contains("legacy-peer")).collect::<Vec<_>>().join("; ")
                    ),
                );
            }
            server.stop(libc::SIGTERM);
        }
    }
    seen
}

#[test]
fn memcached_with_four_threads() {
    compare("memcached", ALL, memcached);
}

#[test]
fn iperf3_every_direction() {
    compare("iperf3", BOTH, |lab| {
        iperf3(lab, &[&["-P1"], &["-P8"], &["-P1", "-R"], &["-P8", "-R"], &["-P2", "--bidir"]])
    });
}

#[test]
fn iperf3_mixed() {
    use legacy_apps::Mode::{ClientOnly, ServerOnly};
    compare("iperf3-mixed", &[ServerOnly, ClientOnly], |lab| iperf3(lab, &[&["-P2", "--bidir"]]));
}

#[test]
fn curl_downloads_and_uploads() {
    compare("curl", ALL, curl);
}

#[test]
fn socat_half_close() {
    compare("socat", ALL, socat);
}

#[test]
fn accept_fork_exec() {
    compare("inetd", ALL, inetd);
}
