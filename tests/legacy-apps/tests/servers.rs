//! PostgreSQL, HAProxy and OpenSSH: servers that fork per connection, pass their listeners on, or lock their
//! children up.

use legacy_apps::lab::{free_port, free_ports, line, wait_gone};
use legacy_apps::procs::{children, listening};
use legacy_apps::{BOTH, Lab, PATIENCE, Proc, Seen, Side, compare, is_root, noise, wait_for};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// PostgreSQL refuses to run as root: then it is nobody's, and its clients are root's.
const NOBODY: u32 = 65_534;

/// One of PostgreSQL's own programs, which Debian keeps out of the path.
fn postgres(lab: &Lab, side: Side, program: &str) -> Command {
    let mut c = lab.command(side, Path::new("/usr/lib/postgresql/15/bin").join(program));
    c.env("PGHOST", "127.0.0.1").env("PGUSER", "tester").env("PGDATABASE", "postgres").env("HOME", lab.dir());
    if side == Side::Server && is_root() {
        c.uid(NOBODY).gid(NOBODY);
        if lab.accelerated(side) {
            // Wherever the repository lies: here everybody may read it.
            let library = lab.path("libculvert.so");
            if !library.exists() {
                std::fs::copy(legacy_apps::library(), &library).expect("a copy of the library");
            }
            c.env("LD_PRELOAD", library);
        }
    }
    c
}

fn database(lab: &Lab, data: &str, port: u16) -> Proc {
    let settings = [
        format!("port={port}"),
        "listen_addresses=127.0.0.1".into(),
        "unix_socket_directories=".into(),
        "fsync=off".into(),
        "shared_buffers=16MB".into(),
    ];
    let mut c = postgres(lab, Side::Server, "postgres");
    c.args(["-D", data]);
    for s in &settings {
        c.args(["-c", s]);
    }
    let server = lab.serve("postgres", port, &mut c);
    wait_for("the database", PATIENCE, || lab.run("ready", &mut psql(lab, port, "select 1")).status.success());
    server
}

fn psql(lab: &Lab, port: u16, query: &str) -> Command {
    let mut c = postgres(lab, Side::Client, "psql");
    c.env("PGPORT", port.to_string()).args(["-X", "-q", "-A", "-t", "-c", query]);
    c
}

fn ask(lab: &Lab, port: u16, query: &str) -> String {
    lab.run("psql", &mut psql(lab, port, query)).success().text()
}

fn pgbench(lab: &Lab, port: u16, args: &[&str]) -> String {
    let mut c = postgres(lab, Side::Client, "pgbench");
    let out = lab.run("pgbench", c.env("PGPORT", port.to_string()).args(args)).success();
    let counts: Vec<&str> = out
        .stdout
        .split(|b| *b == b'\n')
        .filter_map(|l| str::from_utf8(l).ok())
        .filter(|l| l.starts_with("number of"))
        .collect();
    counts.join("; ")
}

fn postgresql(lab: &Lab) -> Seen {
    let mut seen = Seen::default();
    let (port, other) = (free_port(), free_port());
    let initdb = ["-D", "data", "-A", "trust", "-U", "tester", "-N", "-E", "UTF8", "--locale=C"];
    lab.run("initdb", postgres(lab, Side::Server, "initdb").env_remove("LD_PRELOAD").args(initdb)).success();
    // Also from where the connections of this machine come from over a wire.
    let rules = std::fs::read_to_string(lab.path("data/pg_hba.conf")).expect("pg_hba.conf");
    lab.write("data/pg_hba.conf", format!("{rules}host all all all trust\nhost replication all all trust\n"));
    let server = database(lab, "data", port);

    seen.note("pgbench -i", pgbench(lab, port, &["-i", "-q"]));
    let watch = lab.watch();
    seen.note("pgbench", pgbench(lab, port, &["-n", "-c", "8", "-j", "2", "-t", "150"]));
    seen.note("prepared", pgbench(lab, port, &["-n", "-S", "-M", "prepared", "-c", "8", "-j", "2", "-t", "500"]));
    watch.check("pgbench");
    seen.note("reconnecting", pgbench(lab, port, &["-n", "-S", "-C", "-c", "4", "-j", "2", "-t", "15"]));

    ask(lab, port, "create table big(id int, t text)");
    let rows: String = (0..60_000).map(|i| format!("{i}\t{i:0>200}\n")).collect();
    let copy = |port: u16| lab.run("copy", &mut psql(lab, port, "copy big to stdout")).success().stdout;
    lab.feed("copy", &mut psql(lab, port, "copy big from stdin"), rows.as_bytes()).success();
    seen.note("COPY back and forth", copy(port) == rows.as_bytes());
    let mut dump = postgres(lab, Side::Client, "pg_dump");
    let dump = lab.run("pg_dump", dump.env("PGPORT", port.to_string()).args(["-t", "big"])).success();
    // A random word protects newer dumps against what they hold.
    let dump: Vec<&[u8]> = dump.stdout.split(|b| *b == b'\n').filter(|l| !l.starts_with(b"\\")).collect();
    seen.note_bytes("pg_dump", &dump.concat());

    // A replica, which has to follow.
    let mut base = postgres(lab, Side::Server, "pg_basebackup");
    let args = ["-D", "replica", "-R", "-X", "stream", "-c", "fast", "-N"];
    lab.run("pg_basebackup", base.env("PGPORT", port.to_string()).args(args)).success();
    let replica = database(lab, "replica", other);
    pgbench(lab, port, &["-n", "-c", "4", "-t", "100"]);
    lab.feed("copy", &mut psql(lab, port, "copy big from stdin"), rows.as_bytes()).success();
    wait_for("the replica", PATIENCE, || {
        ask(lab, port, "select pg_current_wal_lsn() = replay_lsn from pg_stat_replication") == "t"
    });
    let sums = "select count(*), sum(id), (select sum(abalance) from pgbench_accounts) from big";
    assert_eq!(ask(lab, port, sums), ask(lab, other, sums), "the replica holds something else");
    seen.note("the replica's copy", copy(other) == [rows.as_bytes(), rows.as_bytes()].concat());

    // A query cancelled from a second connection, a session ended by another.
    let running = |text: &str| format!("select pid from pg_stat_activity where query = '{text}' and state = 'active'");
    let sleep = "select pg_sleep(600)";
    for (name, end) in [("cancelled", None), ("terminated", Some("select pg_terminate_backend(pid)"))] {
        let session = lab.start(name, &mut psql(lab, port, sleep));
        wait_for("the query", PATIENCE, || !ask(lab, port, &running(sleep)).is_empty());
        match end {
            None => session.signal(libc::SIGINT),
            Some(call) => assert_eq!(ask(lab, port, &running(sleep).replacen("select pid", call, 1)), "t"),
        }
        let out = session.wait(PATIENCE);
        seen.note(name, format!("{} {} {}", out.status, out.text(), out.stderr.trim()));
    }
    for (name, p) in [("replica", replica), ("server", server)] {
        seen.note(format!("{name}, SIGINT"), p.stop(libc::SIGINT).status);
    }
    seen
}

fn haproxy(lab: &Lab) -> Seen {
    let mut seen = Seen::default();
    let dir = lab.dir().display();
    let [web, redis, http, tcp, bus] = std::array::from_fn(|_| free_port());
    lab.write("big", noise(7, 12_000_000));
    lab.write("small", noise(8, 3000));
    let mut nginx = lab.command(Side::Server, "/usr/sbin/nginx");
    let temp: String =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|k| format!("{k}_temp_path {dir}/{k};\n")).concat();
    let user = if is_root() { "user root;" } else { "" };
    let config = lab.write(
        "nginx.conf",
        format!(
            "{user}\ndaemon off;\npid {dir}/nginx.pid;\nevents {{ worker_connections 512; }}\nhttp {{\naccess_log off;\nsendfile on;\n\
             keepalive_requests 1000000;\n{temp}server {{ listen 127.0.0.1:{web}; root {dir}; }}\n}}\n"
        ),
    );
    let nginx = lab.serve("nginx", web, nginx.arg("-c").arg(config).arg("-p").arg(lab.dir()).args(["-e", "nginx.log"]));
    let text = redis.to_string();
    let store = lab.serve(
        "redis",
        redis,
        lab.command(Side::Server, "redis-server").args([
            "--bind",
            "127.0.0.1",
            "--port",
            &text,
            "--save",
            "",
            "--protected-mode",
            "no",
        ]),
    );

    // Splicing moves bytes in the kernel: those connections leave shared memory, the others stay.
    let section = |name: &str, mode: &str, listen: u16, to: u16, more: &str| {
        format!(
            "listen {name}\n mode {mode}\n bind 127.0.0.1:{listen}\n server a 127.0.0.1:{to} check inter 1s fall 30\n {more}\n"
        )
    };
    let config = lab.write(
        "haproxy.cfg",
        [
            format!("global\n nbthread 2\n stats socket {dir}/admin mode 600 level admin expose-fd listeners\n hard-stop-after 120s\n"),
            "defaults\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n".into(),
            section("http", "http", http, web, "http-reuse always"),
            section("tcp", "tcp", tcp, web, "option splice-request\n option splice-response"),
            section("bus", "tcp", bus, redis, ""),
        ]
        .concat(),
    );
    let haproxy = lab.serve("haproxy", http, lab.command(Side::Server, "haproxy").arg("-W").arg("-f").arg(config));
    for port in [tcp, bus] {
        wait_for("every port", PATIENCE, || listening(port));
    }

    // A session from before the reload, which the old worker serves to its end.
    let mut c = lab.command(Side::Client, "redis-cli");
    let mut session = lab.start("session", c.args(["-p", &bus.to_string()]).stdin(Stdio::piped()));
    let mut input = session.stdin().expect("a pipe");
    let mut words = 0;
    let mut talk = |session: &Proc, n: usize| {
        for _ in 0..n {
            words += 1;
            line(&mut input, &format!("ECHO word-{words}"));
            wait_for("the answer", PATIENCE, || session.stdout().trim_end().ends_with(&format!("word-{words}")));
        }
    };
    talk(&session, 20);
    for round in 0..2 {
        for (name, port) in [("http", http), ("tcp", tcp)] {
            let url = |file: &str| format!("http://127.0.0.1:{port}/{file}");
            let urls = [url("small"), url("big"), url("small"), url("big")];
            let out = lab.run("curl", lab.command(Side::Client, "curl").arg("-sS").args(urls)).success();
            seen.note_bytes(format!("curl {name} {round}"), &out.stdout);
            let watch = lab.watch();
            for args in [["-c16", "-n4000", "-k"], ["-c8", "-n300", "-q"]] {
                let out =
                    lab.run("ab", lab.command(Side::Client, "ab").args(args).arg("-q").arg(url("small"))).success();
                let counts: Vec<_> = out
                    .text()
                    .lines()
                    .filter(|l| ["Complete requests", "Failed requests", "Non-2xx"].iter().any(|k| l.starts_with(k)))
                    .map(str::to_owned)
                    .collect();
                seen.note(format!("ab {name} {args:?} {round}"), counts.join("; "));
            }
            watch.check("ab");
        }
        let mut c = lab.command(Side::Client, "redis-benchmark");
        let out = lab
            .run(
                "redis-benchmark",
                c.args(["-p", &bus.to_string(), "-c", "8", "-n", "8000", "-P", "4", "-q", "-t", "set,get"]),
            )
            .success();
        seen.note(format!("redis-benchmark {round}"), out.text().matches("requests per second").count());
        if round == 0 {
            // The listeners go to the next worker through the admin socket.
            let old = children(haproxy.pid());
            haproxy.signal(libc::SIGUSR2);
            wait_for("a new worker", PATIENCE, || children(haproxy.pid()).iter().any(|p| !old.contains(p)));
        }
        talk(&session, 20);
    }
    drop(input);
    seen.note("session", session.wait(PATIENCE).text());
    seen.note("haproxy, SIGUSR1", haproxy.stop(libc::SIGUSR1).status);
    seen.note("redis", store.stop(libc::SIGTERM).status);
    seen.note("nginx", nginx.stop(libc::SIGQUIT).status);
    seen
}

fn openssh(lab: &Lab) -> Seen {
    let mut seen = Seen::default();
    let dir = lab.dir().display();
    if is_root() {
        // Debian's service makes it.
        std::fs::create_dir_all("/run/sshd").expect("sshd's empty directory");
    }
    for key in ["host", "user"] {
        lab.run(
            "ssh-keygen",
            lab.command(Side::Client, "ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", key]),
        )
        .success();
    }
    std::fs::set_permissions(lab.path("user.pub"), std::fs::Permissions::from_mode(0o644)).expect("permissions");
    let user = lab.run("id", lab.command(Side::Client, "id").arg("-un")).text();
    let big = noise(9, 2_000_000);
    lab.write("big", &big);
    // Its own program per connection, as it comes (-D), and one process and its forks (-r).
    for how in ["-D", "-rD"] {
        let (port, inner) = (free_port(), free_ports(2));
        let config = lab.write(
            &format!("sshd{how}.conf"),
            format!(
                "Port {port}\nListenAddress 127.0.0.1\nHostKey {dir}/host\nAuthorizedKeysFile {dir}/user.pub\nStrictModes no\n\
                 PidFile none\nUsePAM no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n"
            ),
        );
        let client = lab.write(
            "ssh.conf",
            format!(
                "Host there\n HostName 127.0.0.1\n Port {port}\n User {user}\n IdentityFile {dir}/user\n IdentitiesOnly yes\n\
                 UserKnownHostsFile {dir}/known{how}\n StrictHostKeyChecking accept-new\n LogLevel ERROR\n"
            ),
        );
        let server =
            lab.serve("sshd", port, lab.command(Side::Server, "/usr/sbin/sshd").args([how, "-e", "-f"]).arg(config));
        let program = |program: &str, args: &[&str]| {
            let mut c = lab.command(Side::Client, program);
            c.arg("-F").arg(&client).args(args);
            c
        };
        let out = lab.run("ssh", &mut program("ssh", &["there", "echo here; exit 3"]));
        seen.note(format!("{how}: a command"), format!("{} {}{}", out.status, out.text(), out.stderr));
        for rekey in ["default none", "700K"] {
            let option = format!("RekeyLimit={rekey}");
            let out = lab.feed("ssh", &mut program("ssh", &["-o", &option, "there", "cat"]), &big);
            seen.note(
                format!("{how}: both ways, {option}"),
                format!("{} {}{}", out.status, out.stdout == big, out.stderr),
            );
        }
        for (from, to) in [("big", format!("there:{dir}/up")), (&*format!("there:{dir}/up"), "down".into())] {
            let out = lab.run("scp", &mut program("scp", &["-q", from, &to]));
            seen.note(format!("{how}: scp to {}", to.contains(':')), format!("{} {}", out.status, out.stderr));
        }
        seen.note(format!("{how}: copied"), std::fs::read(lab.path("down")).is_ok_and(|b| b == big));
        std::fs::remove_file(lab.path("down")).expect("the file copied");

        // Forwarded connections, and commands over a connection that is there already.
        let echo = lab.serve("echo", inner, lab.peer(Side::Server).args(["echo", &inner.to_string()]));
        let forward = format!("{}:127.0.0.1:{inner}", inner + 1);
        let master = lab.start("master", &mut program("ssh", &["-N", "-M", "-S", "ctl", "-L", &forward, "there"]));
        wait_for("the forwarded port", PATIENCE, || listening(inner + 1) && lab.path("ctl").exists());
        let watch = lab.watch();
        for (n, count, size) in [("4", "200", "64"), ("2", "10", "100000")] {
            let out = lab.run("ping", lab.peer(Side::Client).args(["ping", &(inner + 1).to_string(), n, count, size]));
            seen.note(format!("{how}: forwarded {size}"), format!("{} {}{}", out.status, out.text(), out.stderr));
        }
        watch.check("forwarding");
        let out = lab.feed("ssh", &mut program("ssh", &["-S", "ctl", "there", "cat; exit 4"]), &big);
        seen.note(format!("{how}: shared"), format!("{} {}{}", out.status, out.stdout == big, out.stderr));
        seen.note(
            format!("{how}: -O exit"),
            lab.run("exit", &mut program("ssh", &["-S", "ctl", "-O", "exit", "there"])).status,
        );
        seen.note(format!("{how}: master"), master.wait(PATIENCE).status);
        echo.stop(libc::SIGTERM);
        let pid = server.pid();
        seen.note(format!("{how}: sshd"), server.stop(libc::SIGTERM).status);
        wait_gone(pid);
    }
    seen
}

#[test]
fn postgresql_with_a_replica() {
    compare("postgresql", BOTH, postgresql);
}

#[test]
fn haproxy_reloads() {
    compare("haproxy", BOTH, haproxy);
}

#[test]
fn openssh_commands_copies_and_tunnels() {
    compare("openssh", BOTH, openssh);
}
