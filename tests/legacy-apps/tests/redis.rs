//! redis-server with redis-cli, redis-benchmark and a replica.

use legacy_apps::lab::{free_port, line, wait_gone};
use legacy_apps::{ALL, BOTH, Lab, PATIENCE, Proc, Seen, Side, compare, noise, poll_until, wait_for};
use std::process::{Command, Stdio};

fn server(lab: &Lab, port: u16, more: &str) -> Proc {
    let dir = lab.dir().display();
    let config = lab.write(
        &format!("redis-{port}.conf"),
        format!(
            "bind 127.0.0.1 ::1\nprotected-mode no\nport {port}\ndir {dir}\ndbfilename dump-{port}.rdb\nappenddirname aof-{port}\n\
             pidfile {dir}/redis-{port}.pid\nenable-debug-command yes\nsave \"\"\ndaemonize no\n\
             repl-diskless-sync-delay 0\n{more}\n"
        ),
    );
    let server = lab.serve("redis", port, lab.command(Side::Server, "redis-server").arg(config));
    wait_for("redis to have loaded its data", PATIENCE, || cli(lab, port, "PING") == "PONG");
    server
}

fn client(lab: &Lab, port: u16) -> Command {
    let mut c = lab.command(Side::Client, "redis-cli");
    c.args(["-h", "127.0.0.1", "-p", &port.to_string()]);
    c
}

/// What redis-cli prints for `commands`, one a line.
fn cli(lab: &Lab, port: u16, commands: &str) -> String {
    lab.feed("redis-cli", &mut client(lab, port), commands.as_bytes()).text()
}

fn benchmark(lab: &Lab, port: u16, args: &[&str]) -> Command {
    let mut c = lab.command(Side::Client, "redis-benchmark");
    c.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-q"]).args(args);
    c
}

fn info(lab: &Lab, port: u16, section: &str, key: &str) -> String {
    let text = cli(lab, port, &format!("INFO {section}"));
    let found = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    found.unwrap_or_else(|| panic!("no {key} in {text}")).trim().to_owned()
}

fn shut_down(lab: &Lab, port: u16, server: Proc) -> String {
    let answer = lab.run("shutdown", client(lab, port).args(["SHUTDOWN", "NOSAVE"])).text();
    format!("{:?} {answer}", server.wait(PATIENCE).status.code())
}

fn commands(lab: &Lab) -> Seen {
    let mut seen = Seen::default();
    let port = free_port();
    let server = server(lab, port, "");
    for (i, size) in [0, 1, 100, 5000, 300_000, 5_000_000].into_iter().enumerate() {
        let value = noise(i as u64, size);
        let set = lab.feed("set", client(lab, port).args(["-x", "SET", &format!("k{i}")]), &value);
        seen.note(format!("set {size}"), set.text());
        let got = lab.run("get", client(lab, port).args(["GET", &format!("k{i}")])).success();
        assert!(got.stdout.starts_with(&value), "GET of {size} bytes differs from what was SET");
        seen.note_bytes(format!("get {size}"), &got.stdout);
    }
    let multi = "MULTI\nINCR n\nINCRBY n 41\nAPPEND s x\nEXEC\nMULTI\nSET n 7\nDISCARD\nGET n\nWRONG\n";
    seen.note("MULTI", cli(lab, port, multi));
    let script =
        "local t=0 for i=1,5000 do redis.call('SET','lua'..i,i) t=t+redis.call('GET','lua'..i) end return {t,'ok'}";
    seen.note("Lua", lab.run("eval", client(lab, port).args(["EVAL", script, "0"])).text());
    seen.note("keys", cli(lab, port, "DBSIZE\nDEBUG DIGEST\n"));
    let many: String = (0..3000).map(|i| format!("RPUSH list {i}\n")).collect();
    seen.note_bytes("many commands", cli(lab, port, &many).as_bytes());
    seen.note_bytes("a long answer", cli(lab, port, "LRANGE list 0 -1\n").as_bytes());
    seen.note(
        "IPv6",
        lab.run("cli", lab.command(Side::Client, "redis-cli").args(["-h", "::1", "-p", &port.to_string(), "PING"]))
            .text(),
    );

    // A client blocked in the server, killed by another: its answer never comes, its connection ends.
    let blocked = lab.start("blocked", client(lab, port).args(["BLPOP", "nothing", "0"]));
    wait_for("the blocked client", PATIENCE, || info(lab, port, "clients", "blocked_clients") == "1");
    seen.note("CLIENT KILL", cli(lab, port, "CLIENT KILL TYPE normal SKIPME yes\n"));
    let blocked = blocked.wait(PATIENCE);
    seen.note("killed client", format!("{:?} {} {}", blocked.status.code(), blocked.text(), blocked.stderr.trim()));
    seen.note("SHUTDOWN", shut_down(lab, port, server));
    seen
}

fn publish(lab: &Lab) -> Seen {
    let mut seen = Seen::default();
    let port = free_port();
    let server = server(lab, port, "");
    let subscribers: Vec<Proc> =
        (0..3).map(|_| lab.start("subscriber", client(lab, port).args(["SUBSCRIBE", "news"]))).collect();
    wait_for("three subscribers", PATIENCE, || cli(lab, port, "PUBSUB NUMSUB news").ends_with('3'));
    let messages: String = (0..2000).map(|i| format!("PUBLISH news message-{i}\n")).collect();
    seen.note_bytes("published", cli(lab, port, &messages).as_bytes());
    for (i, s) in subscribers.iter().enumerate() {
        wait_for("the last message", PATIENCE, || s.stdout().trim_end().ends_with("message-1999"));
        seen.note_bytes(format!("subscriber {i}"), s.stdout().as_bytes());
    }
    for s in subscribers {
        s.stop(libc::SIGTERM);
    }
    seen.note("SHUTDOWN", shut_down(lab, port, server));
    seen
}

fn load(lab: &Lab) -> Seen {
    let mut seen = Seen::default();
    let port = free_port();
    let server = server(lab, port, "");
    let watch = lab.watch();
    for pipeline in ["1", "16"] {
        let n = if pipeline == "1" { "40000" } else { "400000" };
        let args = ["--threads", "2", "-c", "50", "-n", n, "-P", pipeline, "-d", "64", "-t", "set,get"];
        let out = lab.run("benchmark", &mut benchmark(lab, port, &args)).success();
        for test in ["SET", "GET"] {
            let line = out.text().replace('\r', "\n").lines().rev().find(|l| l.starts_with(test)).map(str::to_owned);
            let line = line.unwrap_or_else(|| panic!("no line for {test}: {}", out.text()));
            seen.note(format!("{test} -P {pipeline}"), line.contains("requests per second"));
        }
        seen.note(format!("errors -P {pipeline}"), out.stderr.lines().filter(|l| l.contains("rror")).count());
    }
    watch.check("redis-benchmark");
    seen.note("SHUTDOWN", shut_down(lab, port, server));
    seen
}

/// BGSAVE and BGREWRITEAOF fork the server while clients write.
fn persistence(lab: &Lab) -> Seen {
    let mut seen = Seen::default();
    let port = free_port();
    let aof = "appendonly yes\nauto-aof-rewrite-percentage 0";
    let first = server(lab, port, aof);
    let mut load = lab.start(
        "load",
        &mut benchmark(lab, port, &["-c", "20", "-n", "100000000", "-P", "4", "-r", "20000", "-d", "100", "-t", "set"]),
    );
    wait_for("keys", PATIENCE, || cli(lab, port, "DBSIZE").parse::<u64>().is_ok_and(|n| n > 2000));
    lab.assert_shm(first.pid());
    for round in 0..3 {
        seen.note(format!("BGSAVE {round}"), cli(lab, port, "BGSAVE"));
        wait_for("the end of BGSAVE", PATIENCE, || info(lab, port, "persistence", "rdb_bgsave_in_progress") == "0");
        seen.note(format!("BGSAVE {round} result"), info(lab, port, "persistence", "rdb_last_bgsave_status"));
        seen.note(format!("rewrite {round}"), cli(lab, port, "BGREWRITEAOF"));
        wait_for("the end of the rewrite", PATIENCE, || {
            info(lab, port, "persistence", "aof_rewrite_in_progress") == "0"
        });
        seen.note(format!("rewrite {round} result"), info(lab, port, "persistence", "aof_last_bgrewrite_status"));
    }
    assert!(load.ended().is_none(), "the load ended early: {}", load.stderr());
    load.stop(libc::SIGKILL);
    // What the server holds when the load has gone is what it holds after a restart from its file.
    wait_for("the load's connections to close", PATIENCE, || info(lab, port, "clients", "connected_clients") == "1");
    let before = cli(lab, port, "DBSIZE\nDEBUG DIGEST\n");
    seen.note("SHUTDOWN", shut_down(lab, port, first));
    let second = server(lab, port, aof);
    assert_eq!(before, cli(lab, port, "DBSIZE\nDEBUG DIGEST\n"), "the append-only file holds something else");
    seen.note("SHUTDOWN again", shut_down(lab, port, second));
    seen
}

/// A replica synchronises while clients write, and again after it was stopped.
fn replication(lab: &Lab) -> Seen {
    let mut seen = Seen::default();
    let (port, other) = (free_port(), free_port());
    let master = server(lab, port, "");
    let fill = benchmark(lab, port, &["-c", "10", "-n", "60000", "-P", "8", "-r", "10000", "-d", "300", "-t", "set"]);
    let mut fill = fill;
    lab.run("fill", &mut fill).success();
    for round in 0..2 {
        let replica = server(lab, other, &format!("replicaof 127.0.0.1 {port}"));
        lab.run("fill", &mut fill).success();
        wait_for("the replica's link", PATIENCE, || info(lab, other, "replication", "master_link_status") == "up");
        seen.note(format!("WAIT {round}"), cli(lab, port, &format!("SET last {round}\nWAIT 1 60000\n")));
        let same = poll_until(PATIENCE, || cli(lab, port, "DEBUG DIGEST") == cli(lab, other, "DEBUG DIGEST"));
        seen.note(format!("same data {round}"), same);
        seen.note(format!("replica's last key {round}"), cli(lab, other, "GET last"));
        seen.note(format!("replica's SHUTDOWN {round}"), shut_down(lab, other, replica));
    }
    seen.note("SHUTDOWN", shut_down(lab, port, master));
    seen
}

/// One redis-cli whose commands are typed one by one, with pauses in which the server does other things.
fn interactive(lab: &Lab) -> Seen {
    let mut seen = Seen::default();
    let port = free_port();
    let server = server(lab, port, "daemonize no");
    let mut session = lab.start("session", client(lab, port).stdin(Stdio::piped()));
    let mut input = session.stdin().expect("a pipe");
    for i in 0..60 {
        line(&mut input, &format!("ECHO word-{i}"));
        wait_for("the answer", PATIENCE, || session.stdout().trim_end().ends_with(&format!("word-{i}")));
    }
    drop(input);
    seen.note("session", session.wait(PATIENCE).text());
    let pid = server.pid();
    seen.note("SIGTERM", format!("{:?}", server.stop(libc::SIGTERM).status.code()));
    wait_gone(pid);
    seen
}

#[test]
fn commands_give_the_same_answers() {
    compare("redis-commands", ALL, commands);
}

#[test]
fn subscribers_get_every_message_in_order() {
    compare("redis-publish", BOTH, publish);
}

#[test]
fn benchmark_with_threads_and_pipelining() {
    compare("redis-load", ALL, load);
}

#[test]
fn saves_and_rewrites_under_load() {
    compare("redis-persistence", BOTH, persistence);
}

#[test]
fn replica_follows() {
    compare("redis-replication", ALL, replication);
}

#[test]
fn typed_commands() {
    compare("redis-interactive", ALL, interactive);
}
