//! A transparent middlebox (HAProxy) in front of a server (nginx) that runs, on the router between it and its clients; and removed again.
//!
//! ```text
//! client (10.98.1.2) --- c0 router s0 --- server (10.98.2.2)
//! ```

use super::shared::{big, nginx, words};
use super::{Seen, beside, culvert_in, steer};
use crate::step;
use crate::zstack_demo::clients::curl;
use crate::zstack_demo::lab::{Files, Namespace, PATIENCE, Server, output};
use std::process::Stdio;
use std::time::Instant;

/// It goes on to whom its client has asked for, with its client's address, and says in a header whom it has seen.
const HAPROXY: &str = "defaults
 mode http
 timeout connect 9s
 timeout client 30s
 timeout server 30s
frontend box
 bind 127.0.0.1:15001 transparent
 http-response set-header X-Middlebox \"%[src] asked %[dst]:%[dst_port]\"
 default_backend asked
backend asked
 source 0.0.0.0 usesrc clientip
 server asked *
";

const URL: &str = "http://10.98.2.2/";
/// What the server says, with the middlebox as without it.
const SERVER: &str = "server, from 10.98.1.2, asked 10.98.2.2:80";
const BOX: &str = "10.98.1.2 asked 10.98.2.2:80";

struct World {
    router: Namespace,
    client: Namespace,
    _server: Namespace,
    _nginx: Server,
}

impl World {
    fn new(files: &Files) -> Result<World, String> {
        let [client, router, server] = [Namespace::new()?, Namespace::new()?, Namespace::new()?];
        router.join("c0", &client, "v0")?;
        router.join("s0", &server, "v0")?;
        for (namespace, words) in [
            (&router, "addr add 10.98.1.1/24 dev c0"),
            (&router, "addr add 10.98.2.1/24 dev s0"),
            (&client, "addr add 10.98.1.2/24 dev v0"),
            (&server, "addr add 10.98.2.2/24 dev v0"),
            (&client, "route add default via 10.98.1.1"),
            (&server, "route add default via 10.98.2.1"),
        ] {
            namespace.ip(words)?;
        }
        let mut c = router.command("sh");
        c.args(["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
        output(c)?;
        let arguments = nginx(files, "server")?;
        let nginx = server.serve("nginx", &words(&arguments), &[])?;
        let world = World { router, client, _server: server, _nginx: nginx };
        match step::poll_until(PATIENCE, || curl(&world.client, &["-o", "/dev/null", URL]).is_ok()) {
            true => Ok(world),
            false => Err("nginx does not answer".into()),
        }
    }

    /// What curl is told by the server, and by the middlebox.
    fn ask(&self) -> (String, String) {
        match curl(&self.client, &["-i", URL]) {
            Ok(text) => {
                let header = text.lines().find_map(|line| line.trim_end().strip_prefix("x-middlebox: "));
                let body = text.lines().last().unwrap_or_default();
                (body.to_owned(), header.unwrap_or("no middlebox").to_owned())
            }
            Err(_) => ("refused".into(), String::new()),
        }
    }

    /// What redirects can have changed in the router.
    fn state(&self) -> Result<String, String> {
        let mut c = self.router.command("sh");
        // The kernel's own routes of IPv6 come when it has made sure of its addresses.
        c.args([
            "-c",
            "nft list ruleset; ip rule; ip -6 rule; ip -4 route show table all; ip -6 route show table all | grep -vE 'fe80:|ff00:'; true",
        ]);
        output(c)
    }

    fn haproxy(&self, file: &str, port: u16) -> Result<Server, String> {
        let server = self.router.serve("haproxy", &["-q", "-db", "-f", file], &[])?;
        let listens = || {
            let mut c = self.router.command("ss");
            c.args(["-Htln", "sport", "=", &format!(":{port}")]);
            output(c).is_ok_and(|text| !text.trim().is_empty())
        };
        if step::poll_until(PATIENCE, listens) { Ok(server) } else { Err("haproxy does not listen".into()) }
    }
}

fn wanted(dead: &str) -> String {
    // Answers to the client's address are the middlebox's, too, where it has asked with that.
    format!(
        "[[redirect]]\nforwarded = \"c0\"\n[[redirect.rule]]\ndestination-ports = \"80\"\nto = [\"127.0.0.1:15001\"]\ndestination = \"10.98.2.0/24\"\ndead = \"{dead}\"\n\n\
        [[redirect]]\nforwarded = \"s0\"\n[[redirect.rule]]\nto = []\n"
    )
}

pub fn show(files: &Files, seen: &mut Seen) -> Result<(), String> {
    println!("\n# a transparent middlebox (HAProxy) in front of a server that runs\n");
    let world = World::new(files)?;
    let before = world.state()?;
    let both = |(server, middlebox): (String, String)| format!("{server}; {middlebox}");
    let (direct, boxed) = (format!("{SERVER}; no middlebox"), format!("{SERVER}; {BOX}"));
    seen.is("middlebox: before", &both(world.ask()), &direct);
    // A download that has begun, and takes some seconds.
    let got = files.name("got-before");
    let mut c = world.client.command("curl");
    c.args(["-sS", "--noproxy", "*", "--limit-rate", "4M", "--max-time", "60", "-o", &got, &format!("{URL}big")]);
    let mut download = c.stdin(Stdio::null()).spawn().map(step::Guard).map_err(|e| format!("curl: {e}"))?;
    if !step::poll_until(PATIENCE, || std::fs::metadata(&got).is_ok_and(|file| file.len() > 0)) {
        return Err("the download does not begin".into());
    }

    files.write("haproxy.cfg", HAPROXY)?;
    let (state, file, proxy) = (files.name("box-state"), files.name("box.toml"), files.name("haproxy.cfg"));
    let steers = |action: &str| {
        let words = ["steer", "--state", &state, action, &file];
        steer(culvert_in(&world.router), if action == "undo" { &words[..4] } else { &words[..] })
    };
    files.write("box.toml", wanted("open"))?;
    println!("# box.toml:\n{}", wanted("open"));
    let haproxy = world.haproxy(&proxy, 15001)?;
    seen.is("middlebox: it runs, and nothing is applied", &both(world.ask()), &direct);
    steers("plan")?;
    steers("apply")?;
    seen.is("middlebox: applied; names at the server, and at it", &both(world.ask()), &boxed);
    let under = |size: &str| {
        let got = files.name(size);
        let header = curl(&world.client, &["-D", "-", "-o", &got, &format!("{URL}big")])?;
        let same = std::fs::read(&got).is_ok_and(|got| got == big());
        Ok::<_, String>(if same && header.to_lowercase().contains("x-middlebox") { "the same" } else { "another" })
    };
    seen.is("middlebox: 8 MiB through it", under("got-during")?, "the same");
    let ended = download.0.wait().is_ok_and(|status| status.success());
    let whole = ended && std::fs::read(&got).is_ok_and(|got| got == big());
    seen.note("middlebox: the download that had begun before", if whole { "8 MiB, the same" } else { "cut" }, whole);

    // Its death.
    step::signal(haproxy.pid(), libc::SIGKILL);
    let killed = Instant::now();
    let first = world.ask();
    let text = format!("{} ms after the kill: {}", killed.elapsed().as_millis(), both(first.clone()));
    drop(haproxy);
    seen.note("middlebox: killed (dead = \"open\"); the next connection", text, both(first) == direct);
    files.write("box.toml", wanted("closed"))?;
    steers("apply")?;
    seen.is("middlebox: dead = \"closed\"", &both(world.ask()), "refused; ");
    let haproxy = world.haproxy(&proxy, 15001)?;
    seen.is("middlebox: started again", &both(world.ask()), &boxed);
    drop(haproxy);

    // A proxy that knows nothing of it: told by the PROXY protocol.
    let (relay, to) = (beside("culvert-redirect"), "127.0.0.1:15009");
    files.write(
        "told.cfg",
        format!("defaults\n mode http\n timeout connect 9s\n timeout client 9s\n timeout server 9s\nfrontend f\n bind {to} accept-proxy\n http-request return status 200 content-type text/plain lf-string \"told %[src] asked %[dst]:%[dst_port]\\n\"\n"),
    )?;
    let told = world.haproxy(&files.name("told.cfg"), 15009)?;
    let relay = world.router.serve(
        relay,
        &["relay", "--transparent", "--listen", "127.0.0.1:15001", "--to", to, "--proxy-protocol"],
        &[],
    )?;
    step::poll_until(PATIENCE, || world.ask().0.starts_with("told"));
    seen.is("middlebox: the relay, and a proxy told by PROXY v2", &world.ask().0, &format!("told {BOX}"));
    drop((relay, told));
    steers("undo")?;
    seen.is("middlebox: undone", &both(world.ask()), &direct);
    let after = world.state()?;
    let other = |one: &str, than: &str| {
        one.lines().filter(|line| !than.lines().any(|same| same == *line)).map(str::to_owned).collect::<Vec<_>>()
    };
    let changed = [other(&before, &after), other(&after, &before)].concat();
    let text = if changed.is_empty() { "yes".into() } else { changed.join("\n") };
    seen.note("middlebox: nft, rules and routes are as they were", text, changed.is_empty());
    Ok(())
}
