//! What the programs do.

use crate::Seen;
use crate::lab::{Process, noise, soon};
use crate::world::{Ends, Host, LIMIT, SILENT, UNREACHABLE, World};
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A directory for one of them.
fn place(world: &World, name: &str) -> PathBuf {
    let dir = world.dir.join(name);
    fs::create_dir(&dir).expect("a directory");
    dir
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path")
}

/// Runs a program to its end: how it ended, and what it printed.
fn outcome(command: &mut Command) -> String {
    let mut process = Process::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let mut errors = process.0.stderr.take().expect("a pipe");
    let errors = std::thread::spawn(move || std::io::read_to_string(&mut errors).unwrap_or_default());
    let (status, out) = process.finish(LIMIT);
    format!("{status}: {}{}", out.trim_end(), errors.join().expect("its errors").trim_end())
}

/// Runs a program to its successful end.
fn output(command: &mut Command) -> String {
    let text = outcome(command);
    match text.strip_prefix("exit status: 0: ") {
        Some(out) => out.to_owned(),
        None => panic!("{command:?}: {text}"),
    }
}

/// Starts a server; it listens at the port of this host when this returns.
fn serve(world: &World, host: &Host, port: u16, command: &mut Command) -> Process {
    let mut process = Process::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()));
    // From the other host, by the kernel's means.
    let other = if host.ip == world.server.ip { &world.client } else { &world.server };
    let address: SocketAddr = format!("{}:{port}", host.ip[0]).parse().expect("an address");
    soon("a server", LIMIT, || {
        assert!(process.0.try_wait().expect("a server").is_none(), "{command:?} has ended");
        other.namespace.within(|| TcpStream::connect(address)).ok()
    });
    process
}

fn python(host: &Host, script: &str, words: &[&str]) -> Command {
    let mut command = host.run("/usr/bin/python3.11");
    command.args(["-c", script]).args(words).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// Names of hosts of which an address is silent, unreachable or refuses: the other one is taken, or the error is the kernel's.
pub fn curl(world: &World, seen: &mut Seen) {
    let dir = place(world, "curl");
    fs::write(dir.join("file"), noise(1, 3_000_000)).expect("a file");
    let mut server = world.server.run("/usr/bin/python3.11");
    let server = server.args(["-m", "http.server", "80", "--bind", "::", "--directory", text(&dir)]);
    let _server = serve(world, &world.server, 80, server);
    let [v4, v6] = world.server.ip;
    let names = [
        ("one silent", 80, format!("{},{v4}", SILENT[1])),
        ("the other silent", 80, format!("{},{v6}", SILENT[0])),
        ("one unreachable", 80, format!("{},{v4}", UNREACHABLE[1])),
        ("both there", 80, format!("{v6},{v4}")),
        ("both refuse", 81, format!("{v6},{v4}")),
        ("unreachable", 80, format!("{},{}", UNREACHABLE[0], UNREACHABLE[1])),
        ("silent", 80, format!("{},{}", SILENT[0], SILENT[1])),
    ];
    for (name, port, addresses) in names {
        let got = dir.join("got");
        let mut command = world.client.run("curl");
        // On a wire without any delay the error may find the kernel's socket in use: then it is told with the next SYN, a second later.
        let patience = if name == "unreachable" { "10" } else { "1" };
        command.args(["-s", "--connect-timeout", patience, "--resolve", &format!("name:{port}:{addresses}"), "-o"]);
        command.arg(&got).args(["-w", "%{remote_ip} %{http_code} %{size_download} %{exitcode}"]);
        seen.insert(name.into(), outcome(command.arg(format!("http://name:{port}/file"))));
        if let Ok(bytes) = fs::read(&got) {
            assert!(bytes == noise(1, 3_000_000), "{name}: other bytes");
            fs::remove_file(&got).expect("the file");
        }
    }
}

/// Which ports are open, one by one and all at once: as scanners ask, and by the errors that they are told.
pub fn scan(world: &World, seen: &mut Seen) {
    const LISTEN: &str = "import socket,sys,time\n\
        s=[socket.create_server(('',int(p))) for p in sys.argv[1:]]\n\
        import selectors; sel=selectors.DefaultSelector()\n\
        for l in s: sel.register(l,1)\n\
        while True:\n\
        \x20for k,_ in sel.select(): k.fileobj.accept()[0].close()\n";
    const ALL: &str = "import errno,select,socket,sys\n\
        first,last=int(sys.argv[2]),int(sys.argv[3]); said={}; p=select.poll(); by={}\n\
        for port in range(first,last):\n\
        \x20s=socket.socket(); s.setblocking(False); e=s.connect_ex((sys.argv[1],port))\n\
        \x20if e==errno.EINPROGRESS: by[s.fileno()]=(port,s); p.register(s,select.POLLOUT)\n\
        \x20else: said[port]=errno.errorcode.get(e,'open')\n\
        while by:\n\
        \x20for fd,ev in p.poll(20000) or sys.exit('silent: %s'%by):\n\
        \x20\x20port,s=by.pop(fd); p.unregister(fd); e=s.getsockopt(socket.SOL_SOCKET,socket.SO_ERROR)\n\
        \x20\x20said[port]=errno.errorcode.get(e,'open')\n\
        import collections\n\
        print(sorted(k for k in said if said[k]=='open'),sorted(collections.Counter(said.values()).items()))";
    let open = ["7003", "7020", "7021", "7099", "7300"];
    let _server = serve(world, &world.server, 7300, &mut python(&world.server, LISTEN, &open));
    let host = world.server.ip[0];
    seen.insert("at once".into(), output(&mut python(&world.client, ALL, &[host, "7000", "7400"])));
    seen.insert("unreachable".into(), output(&mut python(&world.client, ALL, &[UNREACHABLE[0], "7000", "7004"])));
    for port in ["7003", "7004", "7020", "7022", "7099"] {
        let mut socat = world.client.run("socat");
        socat.args(["-t0", "-u", "OPEN:/dev/null", &format!("TCP:{host}:{port},connect-timeout=5")]);
        let status = outcome(&mut socat);
        seen.insert(format!("port {port}"), status.split(':').take(2).collect());
    }
}

/// A replica on the other host, and a snapshot sent to a program there.
pub fn redis(world: &World, seen: &mut Seen) {
    let dir = place(world, "redis");
    let start = |host: &Host, more: &[&str]| {
        let mut command = host.run("redis-server");
        let name = format!("dump{}", more.len());
        command.args(["--port", "6379", "--bind", host.ip[0], "--save", "", "--protected-mode", "no"]);
        command
            .args([
                "--repl-diskless-sync-delay",
                "0",
                "--enable-debug-command",
                "yes",
                "--dir",
                text(&dir),
                "--dbfilename",
                &name,
            ])
            .args(more);
        serve(world, host, 6379, &mut command)
    };
    let cli = |host: &Host, ip: &str, words: &[&str]| output(host.run("redis-cli").args(["-h", ip]).args(words));
    let [master, replica] = [world.server.ip[0], world.client.ip[0]];
    let running = [start(&world.server, &[]), start(&world.client, &["--replicaof", master, "6379"])];
    // What is there before the replica has all, and what comes behind it.
    for round in 0..2 {
        let word = |i: u32| format!("{}{i:06}", "0123456789abcdef".repeat(1 + i as usize % 200));
        let commands: String = (0..4000).map(|i| format!("SET key-{round}-{i} {}\r\n", word(i))).collect();
        fs::write(dir.join("commands"), commands).expect("a file");
        let mut pipe = world.client.run("redis-cli");
        pipe.args(["-h", master, "--pipe"]).stdin(fs::File::open(dir.join("commands")).expect("the file"));
        seen.insert(format!("loaded {round}"), output(&mut pipe).lines().last().unwrap_or("").into());
        soon("the replica", LIMIT, || {
            (cli(&world.server, replica, &["dbsize"]) == cli(&world.client, master, &["dbsize"])).then_some(())
        });
        assert_eq!(cli(&world.client, master, &["wait", "1", "60000"]), "1", "the replica has all");
        let digests =
            [cli(&world.client, master, &["debug", "digest"]), cli(&world.server, replica, &["debug", "digest"])];
        assert_eq!(digests[0], digests[1], "the replica has other keys");
        seen.insert(format!("digest {round}"), digests[0].clone());
    }
    for (host, ip) in [(&world.client, master), (&world.server, replica)] {
        seen.insert(format!("BGSAVE {ip}"), cli(host, ip, &["bgsave"]));
        soon("the snapshot", LIMIT, || {
            cli(host, ip, &["info", "persistence"]).contains("rdb_bgsave_in_progress:0").then_some(())
        });
        assert!(cli(host, ip, &["info", "persistence"]).contains("rdb_last_bgsave_status:ok"), "{ip}");
    }
    let snapshot = dir.join("snapshot");
    output(world.client.run("redis-cli").args(["-h", master, "--rdb", text(&snapshot)]));
    seen.insert(
        "keys in a snapshot".into(),
        outcome(Command::new("redis-check-rdb").arg(&snapshot)).matches("keys read").count().to_string(),
    );
    let info = cli(&world.client, replica, &["info", "replication"]);
    seen.insert("link".into(), info.lines().filter(|l| l.starts_with("master_link_status")).collect());
    if world.ends != Ends::Neither {
        assert!(world.on_zstack() > 0, "no connection is on path zstack");
    }
    drop(running);
}

/// A repository cloned, pulled and pushed to.
pub fn git(world: &World, seen: &mut Seen) {
    let dir = place(world, "git");
    let home = text(&dir).to_owned();
    let git = |host: &Host, at: &str, words: &[&str]| {
        let mut command = host.run("git");
        command.current_dir(dir.join(at)).args(["-c", "user.name=n", "-c", "user.email=e"]).args(words);
        for which in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{which}_DATE"), "2026-01-01T00:00:00Z");
        }
        command.env("HOME", &home).env("GIT_CONFIG_NOSYSTEM", "1");
        command
    };
    fs::create_dir(dir.join("origin")).expect("a directory");
    let local = |words: &[&str]| output(&mut git(&Host::outside(), "origin", words));
    local(&["init", "-q", "-b", "main"]);
    for i in 0..3 {
        for part in 0..30u64 {
            fs::write(dir.join(format!("origin/file-{part}")), noise(part + 100 * i + 1, 40_000)).expect("a file");
        }
        local(&["add", "."]);
        local(&["commit", "-q", "-m", "more"]);
    }
    local(&["config", "receive.denyCurrentBranch", "updateInstead"]);
    local(&["config", "daemon.receivepack", "true"]);
    // Itself: `git daemon` is another process than what it starts, which would stay.
    let programs = output(&mut git(&Host::outside(), "", &["--exec-path"]));
    let mut daemon = world.server.run(&format!("{}/git-daemon", programs.trim()));
    daemon.current_dir(&dir).args(["--export-all", "--reuseaddr", "--base-path=."]).env("HOME", &home);
    let _daemon = serve(world, &world.server, 9418, &mut daemon);
    let url = format!("git://{}/origin", world.server.ip[0]);
    output(&mut git(&world.client, "", &["clone", "-q", &url, "copy"]));
    output(&mut git(&world.client, "copy", &["fsck", "--full", "--no-progress"]));
    fs::write(dir.join("copy/more"), noise(9, 3_000_000)).expect("a file");
    output(&mut git(&world.client, "copy", &["add", "."]));
    output(&mut git(&world.client, "copy", &["commit", "-q", "-m", "pushed"]));
    output(&mut git(&world.client, "copy", &["push", "-q", "origin", "main"]));
    local(&["fsck", "--full", "--no-progress"]);
    seen.insert("there".into(), local(&["rev-parse", "HEAD"]));
    seen.insert("here".into(), output(&mut git(&world.client, "copy", &["rev-parse", "origin/main"])));
    let none = format!("git://{}/nothing", world.server.ip[0]);
    seen.insert("nothing there".into(), outcome(&mut git(&world.client, "", &["ls-remote", &none])));
}

/// Node's HTTP at both ends, and Python's asyncio with Node's.
pub fn node(world: &World, seen: &mut Seen) {
    const SERVER: &str = "const http=require('http'),crypto=require('crypto');\n\
        http.createServer((q,a)=>{const h=crypto.createHash('sha256');let n=0;q.on('data',d=>{h.update(d);n+=d.length});\n\
        q.on('end',()=>{if(q.method==='POST')return a.end(n+' '+h.digest('hex'));\n\
        const k=+q.url.slice(1);a.end(Buffer.alloc(k,'abcdefghijklmnop'+k));});}).listen(8080,'::');";
    const CLIENT: &str = "const http=require('http'),crypto=require('crypto');\n\
        const agent=new http.Agent({keepAlive:true,maxSockets:4}),host=process.argv[1];\n\
        const ask=(method,path,body)=>new Promise((good,bad)=>{const q=http.request({host,port:8080,method,path,agent},a=>{\n\
        const h=crypto.createHash('sha256');let n=0;a.on('data',d=>{h.update(d);n+=d.length});\n\
        a.on('end',()=>good(a.statusCode+' '+n+' '+h.digest('hex')));});q.on('error',bad);q.end(body);});\n\
        (async()=>{const all=[];for(let i=0;i<120;i++)all.push(ask('GET','/'+(i*i*97)));\n\
        for(let i=0;i<8;i++)all.push(ask('POST','/',Buffer.alloc(500000*i,'xyz'+i)));\n\
        const h=crypto.createHash('sha256');for(const a of await Promise.all(all))h.update(a);\n\
        console.log(h.digest('hex'));agent.destroy();})();";
    const ASYNCIO: &str = "import asyncio,hashlib,sys\n\
        async def one(i):\n\
        \x20r,w=await asyncio.open_connection(sys.argv[1],8080)\n\
        \x20w.write(b'GET /%d HTTP/1.0\\r\\n\\r\\n'%(i*30000)); got=await r.read(); w.close(); await w.wait_closed()\n\
        \x20return got.split(b'\\r\\n\\r\\n',1)[1]\n\
        async def main(): return await asyncio.gather(*map(one,range(40)))\n\
        print(hashlib.sha256(b''.join(asyncio.run(main()))).hexdigest())";
    let _server = serve(world, &world.server, 8080, world.server.run("node").args(["-e", SERVER]));
    for ip in world.server.ip {
        seen.insert(format!("node to {ip}"), output(world.client.run("node").args(["-e", CLIENT, ip])));
        seen.insert(format!("Python to {ip}"), output(&mut python(&world.client, ASYNCIO, &[ip])));
    }
}

/// Commands and copies by OpenSSH.
pub fn ssh(world: &World, seen: &mut Seen) {
    let dir = place(world, "ssh");
    let at = dir.display();
    // Debian's service makes it.
    fs::create_dir_all("/run/sshd").expect("sshd's empty directory");
    for key in ["host", "user"] {
        output(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.join(key)));
    }
    let settings = format!(
        "Port 22\nHostKey {at}/host\nAuthorizedKeysFile {at}/user.pub\nStrictModes no\nPidFile none\nUsePAM no\n\
         PermitRootLogin yes\nSubsystem sftp internal-sftp\n"
    );
    fs::write(dir.join("sshd.conf"), settings).expect("a file");
    let client = format!(
        "Host there\n HostName {}\n User root\n IdentityFile {at}/user\n IdentitiesOnly yes\n UserKnownHostsFile {at}/known\n \
         StrictHostKeyChecking accept-new\n LogLevel ERROR\n",
        world.server.ip[0]
    );
    fs::write(dir.join("ssh.conf"), client).expect("a file");
    let mut sshd = world.server.run("/usr/sbin/sshd");
    let _server = serve(world, &world.server, 22, sshd.args(["-D", "-e", "-f"]).arg(dir.join("sshd.conf")));
    let program = |program: &str, words: &[&str]| {
        let mut command = world.client.run(program);
        command.arg("-F").arg(dir.join("ssh.conf")).args(words);
        command
    };
    seen.insert("a command".into(), outcome(&mut program("ssh", &["there", "echo here; exit 3"])));
    let megabytes: usize = std::env::var("ZSTACKD_COPY_MB").map_or(16, |n| n.parse().expect("a number"));
    let piece = noise(5, 1 << 20);
    {
        use std::io::Write;
        let mut file = fs::File::create(dir.join("big")).expect("a file");
        (0..megabytes).for_each(|_| file.write_all(&piece).expect("bytes"));
    }
    for (from, to) in
        [(format!("{at}/big"), format!("there:{at}/up")), (format!("there:{at}/up"), format!("{at}/down"))]
    {
        // The fastest cipher: it is the connection that is looked at.
        let words = ["-q", "-o", "Ciphers=aes128-gcm@openssh.com", from.as_str(), to.as_str()];
        seen.insert(format!("scp from {}", from.contains("there:")), outcome(&mut program("scp", &words)));
    }
    output(Command::new("cmp").arg(dir.join("big")).arg(dir.join("down")));
    seen.insert("bytes".into(), fs::metadata(dir.join("down")).expect("the copy").len().to_string());
}
