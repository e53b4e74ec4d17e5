//! nginx in its default daemon mode: master and two workers, sendfile, reuseport, proxying, TLS,
//! reloads and binary upgrades under load; driven by curl, wrk, ab and a strict client of our own.

use legacy_apps::lab::Watch;
use legacy_apps::lab::{free_port, wait_gone};
use legacy_apps::procs::{alive, children, listening, signal};
use legacy_apps::{ALL, BOTH, Lab, PATIENCE, Proc, Seen, Side, compare, is_root, noise, rounds, wait_for};
use std::process::Stdio;
use std::sync::OnceLock;

/// A running nginx. Stopped when dropped.
struct Nginx<'a> {
    lab: &'a Lab,
    name: String,
}

impl Nginx<'_> {
    fn start<'a>(lab: &'a Lab, name: &str, env: &str, servers: &str) -> Nginx<'a> {
        let dir = lab.dir().display();
        let user = if is_root() { "user www-data;" } else { "" };
        let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|k| format!("{k}_temp_path {dir}/{name}-{k};\n"))
            .concat();
        let config = lab.write(
            &format!("{name}.conf"),
            format!(
                "{user}\n{env}\nworker_processes 2;\npid {dir}/{name}.pid;\nerror_log {dir}/{name}.error.log notice;\n\
                 events {{ worker_connections 512; }}\n\
                 http {{\naccess_log off;\nsendfile on;\ntcp_nopush on;\nkeepalive_requests 1000000;\n\
                 client_max_body_size 64m;\n{temp}{servers}\n}}\n"
            ),
        );
        // An absolute path: the binary upgrade executes argv[0] without a search.
        let mut c = lab.command(Side::Server, "/usr/sbin/nginx");
        c.arg("-c").arg(config).arg("-p").arg(lab.dir()).arg("-e").arg(lab.path(&format!("{name}.first.log")));
        lab.run(name, &mut c).success();
        let nginx = Nginx { lab, name: name.to_owned() };
        wait_for("nginx's pid file", PATIENCE, || nginx.pid_in("pid").is_some());
        nginx
    }

    fn pid_in(&self, extension: &str) -> Option<u32> {
        let text = std::fs::read_to_string(self.lab.path(&format!("{}.{extension}", self.name))).ok()?;
        text.trim().parse().ok().filter(|p| alive(*p))
    }

    fn master(&self) -> u32 {
        self.pid_in("pid").expect("a running master")
    }

    /// Graceful end, as `nginx -s quit` does it.
    fn quit(self) {
        let master = self.master();
        signal(master, libc::SIGQUIT);
        wait_gone(master);
    }
}

impl Drop for Nginx<'_> {
    fn drop(&mut self) {
        if let Some(master) = self.pid_in("pid") {
            signal(master, libc::SIGTERM);
        }
    }
}

/// Files of 600 B, 100 kB and 20 MB below `www`.
fn files(lab: &Lab) -> String {
    static BIG: OnceLock<Vec<u8>> = OnceLock::new();
    let www = lab.path("www");
    std::fs::create_dir_all(&www).expect("directory");
    lab.write("www/small", noise(1, 600));
    lab.write("www/middle", noise(2, 100_000));
    lab.write("www/big", BIG.get_or_init(|| noise(3, 20_000_000)));
    www.display().to_string()
}

fn certificate(lab: &Lab) -> String {
    let (key, cert) = (lab.path("key.pem"), lab.path("cert.pem"));
    let mut c = lab.command(Side::Client, "openssl");
    c.env_remove("LD_PRELOAD").args([
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]);
    lab.run("openssl", c.arg("-keyout").arg(&key).arg("-out").arg(&cert)).success();
    format!("ssl_certificate {};\nssl_certificate_key {};", cert.display(), key.display())
}

fn curl(lab: &Lab, args: &[&str]) -> String {
    let mut c = lab.command(Side::Client, "curl");
    c.args([
        "--silent",
        "--show-error",
        "--max-time",
        "60",
        "--insecure",
        "--write-out",
        "%{stderr}%{http_code} %{size_download}",
    ]);
    let out = lab.run("curl", c.args(args));
    format!("{} bytes {:016x}, {}, {}", out.stdout.len(), legacy_apps::fnv(&out.stdout), out.stderr, out.status)
}

/// Fetches of every kind: plain, through a proxy, with TLS; ranges, HEAD, POST through the proxy.
fn fetch(lab: &Lab) -> Seen {
    let mut seen = Seen::default();
    let (front, back, tls) = (free_port(), free_port(), free_port());
    let (www, cert) = (files(lab), certificate(lab));
    let back_server = format!("server {{ listen 127.0.0.1:{back} reuseport; root {www}; }}");
    let behind = Nginx::start(lab, "back", "", &back_server);
    let servers = format!(
        "upstream behind {{ server 127.0.0.1:{back}; keepalive 8; }}\n\
         server {{ listen 127.0.0.1:{front} reuseport; listen [::1]:{front} reuseport; root {www};\n\
         location /proxy/ {{ proxy_pass http://behind/; proxy_http_version 1.1; proxy_set_header Connection ''; }} }}\n\
         server {{ listen 127.0.0.1:{tls} ssl reuseport; root {www}; {cert} }}"
    );
    let before = Nginx::start(lab, "front", "", &servers);
    for file in ["small", "middle", "big", "missing"] {
        for (kind, url) in [
            ("plain", format!("http://127.0.0.1:{front}/{file}")),
            ("IPv6", format!("http://[::1]:{front}/{file}")),
            ("proxied", format!("http://127.0.0.1:{front}/proxy/{file}")),
            ("TLS", format!("https://127.0.0.1:{tls}/{file}")),
        ] {
            seen.note(format!("{kind} {file}"), curl(lab, &[&url]));
        }
    }
    let big = format!("http://127.0.0.1:{front}/big");
    seen.note("range", curl(lab, &["--range", "1000000-1999999", &big]));
    let head = lab.run("head", lab.command(Side::Client, "curl").args(["--silent", "--head", &big])).text();
    // Date and the file's times are not the same in two runs.
    let head: Vec<&str> =
        head.lines().filter(|l| !["Date", "Last-", "ETag"].iter().any(|k| l.starts_with(k))).collect();
    seen.note("HEAD", head.join("\n"));
    // Many on one connection, so that all but the first few are exchanged on whatever path is best.
    let urls = vec![format!("http://127.0.0.1:{front}/proxy/middle"); 200];
    seen.note("200 on one connection", curl(lab, &urls.iter().map(String::as_str).collect::<Vec<_>>()));
    let body = lab.write("body", noise(9, 3_000_000));
    seen.note(
        "POST",
        curl(
            lab,
            &["--data-binary", &format!("@{}", body.display()), &format!("http://127.0.0.1:{front}/proxy/small")],
        ),
    );
    before.quit();
    behind.quit();
    seen
}

/// wrk and ab: every request answered.
fn load(lab: &Lab) -> Seen {
    let mut seen = Seen::default();
    let (front, back) = (free_port(), free_port());
    let www = files(lab);
    let behind = Nginx::start(lab, "back", "", &format!("server {{ listen 127.0.0.1:{back}; root {www}; }}"));
    let servers = format!(
        "upstream behind {{ server 127.0.0.1:{back}; keepalive 32; }}\n\
         server {{ listen 127.0.0.1:{front} reuseport; root {www};\n\
         location /proxy/ {{ proxy_pass http://behind/; proxy_http_version 1.1; proxy_set_header Connection ''; }} }}"
    );
    let before = Nginx::start(lab, "front", "", &servers);
    for path in ["small", "proxy/small", "big"] {
        let url = format!("http://127.0.0.1:{front}/{path}");
        let wrk = |watch: &mut Watch| {
            let out = lab
                .run("wrk", lab.command(Side::Client, "wrk").args(["-t2", "-c32", "-d1s", "--timeout", "30s", &url]))
                .success();
            watch.seen().then(|| out.text())
        };
        // A second may be too short for both the load and the watch on a busy machine.
        let text = (0..5).find_map(|_| wrk(&mut lab.watch())).expect("a connection on path shm");
        assert!(text.contains("Requests/sec"), "{text}");
        let bad = text
            .lines()
            .filter(|l| l.contains("Socket errors") || l.contains("Non-2xx"))
            .collect::<Vec<_>>()
            .join("; ");
        seen.note(format!("wrk {path}"), bad);
    }
    for (kind, args) in [("keep-alive", vec!["-k", "-n", "20000"]), ("connection each", vec!["-n", "3000"])] {
        let mut c = lab.command(Side::Client, "ab");
        c.args(["-q", "-c", "16"]).args(args).arg(format!("http://127.0.0.1:{front}/small"));
        let text = lab.run("ab", &mut c).success().text();
        for key in ["Complete requests:", "Failed requests:", "Non-2xx responses:", "HTML transferred:"] {
            seen.note(format!("ab {kind} {key}"), text.lines().find(|l| l.starts_with(key)).unwrap_or("-"));
        }
    }
    before.quit();
    behind.quit();
    seen
}

/// Requests on four kept-alive connections until the pipe is closed.
struct Clients {
    load: Proc,
    stop: std::process::ChildStdin,
}

impl Clients {
    fn start(lab: &Lab, port: u16) -> Clients {
        let mut load = lab.start(
            "http",
            lab.peer(Side::Client).args(["http", &port.to_string(), "/small", "4"]).stdin(Stdio::piped()),
        );
        let stop = load.stdin().expect("a pipe");
        let clients = Clients { load, stop };
        clients.progress();
        clients
    }

    /// Waits until some hundreds of requests more were answered.
    #[track_caller]
    fn progress(&self) {
        let lines = || self.load.stdout().lines().count();
        let before = lines();
        wait_for("requests to be answered", PATIENCE, || lines() >= before + 2);
    }

    fn finish(self) -> String {
        drop(self.stop);
        let out = self.load.wait(PATIENCE);
        let text = out.text();
        let failed = text.lines().last().and_then(|l| l.rsplit_once("failed ")).map(|(_, n)| n.to_owned());
        format!("{failed:?} failed {}", out.stderr)
    }
}

fn reload(lab: &Lab) -> Seen {
    let mut seen = Seen::default();
    let port = free_port();
    let www = files(lab);
    let nginx = Nginx::start(lab, "nginx", "", &format!("server {{ listen 127.0.0.1:{port}; root {www}; }}"));
    let master = nginx.master();
    wait_for("two workers", PATIENCE, || children(master).len() == 2);
    let clients = Clients::start(lab, port);
    for round in 0..rounds("RELOAD_ROUNDS", 5) {
        let old = children(master);
        let ab = lab.start(
            "ab",
            lab.command(Side::Client, "ab").args([
                "-q",
                "-r",
                "-c",
                "4",
                "-n",
                "600",
                &format!("http://127.0.0.1:{port}/small"),
            ]),
        );
        signal(master, libc::SIGHUP);
        wait_for("the old workers' end", PATIENCE, || old.iter().all(|p| !alive(*p)));
        wait_for("two new workers", PATIENCE, || children(master).len() == 2);
        clients.progress();
        let text = ab.wait(PATIENCE).success().text();
        seen.note(format!("ab {round}"), text.lines().find(|l| l.starts_with("Failed requests")).unwrap_or("-"));
    }
    seen.note("kept-alive requests", clients.finish());
    nginx.quit();
    seen
}

/// USR2 starts the new binary with the old one's listening sockets; WINCH and QUIT retire the old one.
fn upgrade(lab: &Lab) -> Seen {
    let mut seen = Seen::default();
    // nginx gives its new binary only the variables named by `env`: once without culvert's, once with.
    for (kind, env) in [("bare", ""), ("kept", "env LD_PRELOAD; env CULVERT_LOG; env CULVERT_PATH;")] {
        let port = free_port();
        let www = files(lab);
        let nginx = Nginx::start(lab, "nginx", env, &format!("server {{ listen 127.0.0.1:{port}; root {www}; }}"));
        let old = nginx.master();
        let clients = Clients::start(lab, port);
        signal(old, libc::SIGUSR2);
        wait_for("the new master", PATIENCE, || {
            nginx.pid_in("pid").is_some_and(|p| p != old && children(p).len() == 2)
                && nginx.pid_in("pid.oldbin") == Some(old)
        });
        let new = nginx.master();
        clients.progress();
        signal(old, libc::SIGWINCH);
        wait_for("the old workers' end", PATIENCE, || children(old).iter().all(|p| *p == new));
        clients.progress();
        signal(old, libc::SIGQUIT);
        wait_gone(old);
        clients.progress();
        if kind == "kept" {
            let worker = |p: &u32| children(new).contains(p);
            if lab.accelerated(Side::Server) && legacy_apps::shm_expected() {
                wait_for("a new worker on path shm", PATIENCE, || {
                    let all = legacy_apps::stat::connections();
                    all.is_ok_and(|all| all.iter().any(|c| c.path == legacy_apps::path_expected() && worker(&c.pid)))
                });
            }
        }
        seen.note(format!("{kind}: requests"), clients.finish());
        seen.note(format!("{kind}: still listening"), listening(port));
        nginx.quit();
        wait_for("the port to be given up", PATIENCE, || !listening(port));
    }
    seen
}

#[test]
fn fetches() {
    compare("nginx-fetch", ALL, fetch);
}

#[test]
fn wrk_and_ab() {
    compare("nginx-load", ALL, load);
}

#[test]
fn reload_under_load_fails_no_request() {
    compare("nginx-reload", BOTH, reload);
}

#[test]
fn binary_upgrade_under_load_fails_no_request() {
    compare("nginx-upgrade", BOTH, upgrade);
}
