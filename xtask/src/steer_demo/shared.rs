//! One interface, a veth, that zstackd and the kernel share: the XDP program of culvert-split gives zstackd's address to its AF_XDP socket.
//!
//! ```text
//! client --- v0 --- p0 { 10.97.0.2: zstackd (net_af_xdp) --- cv0 --- nginx ; 10.97.0.3: the kernel --- nginx }
//! ```

use super::{Seen, beside, culvert_in, steer};
use crate::culvert;
use crate::step;
use crate::with_dpdk::zstackd;
use crate::zstack_demo::clients::curl;
use crate::zstack_demo::lab::{Files, Namespace, PATIENCE, Server, output};
use std::process::{Command, Stdio};

const NGINX: &str = "worker_processes 1;
daemon off;
pid @DIR@/nginx.pid;
error_log stderr crit;
events { }
http {
    access_log off;
    server {
        listen 80;
        location / { return 200 \"@NAME@, from $remote_addr, asked $server_addr:$server_port\\n\"; }
        location /big { root @DIR@; }
    }
}
";
/// Bytes of the larger file.
const BIG: usize = 8 << 20;

/// Writes nginx's configuration and what it serves; its arguments.
pub fn nginx(files: &Files, name: &str) -> Result<[String; 4], String> {
    let directory = files.name(name);
    files.write(&format!("{name}/nginx.conf"), NGINX.replace("@DIR@", &directory).replace("@NAME@", name))?;
    files.write(&format!("{name}/big"), big())?;
    Ok(["-p".into(), directory, "-c".into(), files.name(&format!("{name}/nginx.conf"))])
}

/// What `/big` is.
pub fn big() -> Vec<u8> {
    (0..BIG as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

pub fn words(all: &[String]) -> Vec<&str> {
    all.iter().map(String::as_str).collect()
}

/// A command in a namespace with its own /sys, by which ports are found.
fn with_sys(namespace: &Namespace) -> Command {
    let mut c = namespace.command("unshare");
    c.args(["--mount", "sh", "-c", "mount -t sysfs none /sys && exec \"$0\" \"$@\""]).arg(culvert());
    c
}

pub fn show(files: &Files, seen: &mut Seen) -> Result<(), String> {
    println!("\n# one interface for zstackd and the kernel, divided by the XDP program of culvert-split\n");
    let [client, here, wire] = [Namespace::new()?, Namespace::new()?, Namespace::new()?];
    client.join("v0", &wire, "p0")?;
    client.ip("addr add 10.97.0.1/24 dev v0")?;
    wire.ip("addr add 10.97.0.3/24 dev p0")?;
    let object = files.name("split.o");
    let mut c = Command::new(beside("culvert-split"));
    c.args(["object", &object]);
    output(c)?;
    let daemon = start(files, &here, &wire, &object)?;
    let text = "[[port]]\ninterface = \"p0\"\n[[port.flow]]\nname = \"zstackd's address\"\nmatch = { destination = \"10.97.0.2/32\" }\nto = \"queues\"\nby = \"xdp\"\n";
    files.write("split.toml", text)?;
    println!("# split.toml:\n{text}");
    let (state, file) = (files.name("split-state"), files.name("split.toml"));
    steer(with_sys(&wire), &["steer", "--state", &state, "apply", &file])?;

    let (engine, kernel) = (nginx(files, "zstackd")?, nginx(files, "kernel")?);
    let registry = files.name("registry");
    let run = [&["run", "--path", "zstack", "--", "nginx"], &words(&engine)[..]].concat();
    let _engine = here.serve(culvert(), &run, &[("CULVERT_DIR", &registry)])?;
    let _kernel = wire.serve("nginx", &words(&kernel), &[])?;
    for (name, address) in [("zstackd", "10.97.0.2"), ("kernel", "10.97.0.3")] {
        let url = format!("http://{address}/");
        if !step::poll_until(PATIENCE, || curl(&client, &["-o", "/dev/null", &url]).is_ok()) {
            return Err(format!("{url} does not answer"));
        }
        let text = curl(&client, &[&url])?;
        let wanted = format!("{name}, from 10.97.0.1, asked {address}:80");
        seen.is(&format!("one veth: nginx at {address} ({name}'s)"), text.trim_end(), &wanted);
    }
    // Both at once.
    let (one, two) = (files.name("got-zstackd"), files.name("got-kernel"));
    let load = ["-o", &one, "http://10.97.0.2/big", "-o", &two, "http://10.97.0.3/big"];
    curl(&client, &[&["--parallel", "--parallel-immediate"], &load[..]].concat())?;
    let whole = [one, two].iter().filter(|got| std::fs::read(got).is_ok_and(|got| got == big())).count();
    seen.note("one veth: 8 MiB from each of the two at once, the same", format!("{whole} of 2"), whole == 2);
    let mut c = wire.command(beside("culvert-split"));
    c.args(["count", "p0"]);
    let counts = output(c)?;
    print!("{counts}");
    let packets = |what: &str| {
        let lines = counts.lines().filter(|line| line.contains(what));
        lines.filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok()).sum::<u64>()
    };
    // The SYNs, and what came after them.
    let ours = packets("to queues") + packets("as their connection began");
    let others = packets("under no rule");
    let text = format!("{ours} to AF_XDP, {others} to the kernel");
    seen.note("one veth: packets of connections under the rule, and of others", text, ours > 100 && others > 100);
    steer(with_sys(&wire), &["steer", "--state", &state, "undo"])?;
    let mut c = wire.command(beside("culvert-split"));
    c.args(["show", "p0"]);
    let rules = output(c)?;
    seen.is("one veth: rules after undo", rules.trim(), "");
    let text = curl(&client, &["http://10.97.0.3/"])?;
    seen.is("one veth: the kernel's nginx after undo", text.trim_end(), "kernel, from 10.97.0.1, asked 10.97.0.3:80");
    drop(daemon);
    Ok(())
}

/// Starts zstackd for the programs of one namespace, with its port in another; returns when programs can be started.
fn start(files: &Files, here: &Namespace, wire: &Namespace, object: &str) -> Result<Server, String> {
    files.directory_for_all("registry")?;
    let config = format!(
        "port = \"dpdk:net_af_xdp0,iface=p0,xdp_prog={object}\"\nport-namespace = \"{}\"\naddresses = [\"10.97.0.2/24\"]\n",
        wire.path()
    );
    files.write("zstackd.toml", &config)?;
    println!("# culvert zstackd, with the configuration:\n{config}");
    let (registry, daemon) = (files.name("registry"), zstackd().display().to_string());
    let settings = [("CULVERT_DIR", &registry[..]), ("CULVERT_ZSTACKD", &daemon[..])];
    let words = ["zstackd", "--config", &files.name("zstackd.toml"), "--log", "warn"];
    let mut server = here.serve(culvert(), &words, &settings)?;
    let serves = |server: &mut Server| {
        let mut c = culvert_in(here);
        c.args(["run", "--path", "zstack", "--", "true"]).env("CULVERT_DIR", &registry);
        !server.lives() || c.stderr(Stdio::null()).status().is_ok_and(|s| s.success())
    };
    if !step::poll_until(PATIENCE, || serves(&mut server)) || !server.lives() {
        return Err("zstackd does not serve".into());
    }
    Ok(server)
}
