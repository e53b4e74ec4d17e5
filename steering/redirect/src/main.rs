//! `culvert-redirect`: the eBPF programs of control groups whose connections go to a middlebox, and their rules. `culvert steer` uses it.

use clap::{Parser, Subcommand};
use culvert_redirect::relay::{self, Onward, serve};
use culvert_redirect::{Forward, Opened, Presence, Receive, Set};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;
use steering::{Diversion, Group, Name, diversions_text, parse_diversions};

#[derive(Parser, Debug)]
#[command(
    name = "culvert-redirect",
    version,
    about = "Brings TCP connections of the programs of a control group to a middlebox on this host"
)]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Args, Debug)]
struct Groups {
    /// The clients' control group, as /proc/PID/cgroup shows it behind 0::
    clients: Group,
    /// The middlebox's, whose getsockopt(SO_ORIGINAL_DST) says where a client wanted to go
    #[arg(long)]
    middlebox: Option<Group>,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Attach the programs; without rules all connections stay as they are
    Attach(Groups),
    /// Take them away; connections that were redirected go on
    Detach(Groups),
    /// Say whether they are `present`, `absent`, there in `part`, of `another` middlebox's group, or the group is `gone`
    Status(Groups),
    /// Show the rules; the first that a connection is under decides
    Show {
        /// The clients' control group
        clients: Group,
    },
    /// Give it these rules instead of those that it has, at once; connections that have begun stay where they are
    #[command(
        after_help = "RULES, with a comma between two: family ipv4|ipv6 [destination NETWORK] [destination-ports FIRST-LAST] \
        to kernel | to ADDRESS PORT dead open|closed"
    )]
    Set {
        /// The clients' control group
        clients: Group,
        /// The rules
        #[arg(trailing_var_arg = true)]
        rules: Vec<String>,
    },
    /// Start a middlebox that has the programs: they go with the last of its processes, and no rule is left. It must not close descriptors that it does not know
    #[command(after_help = "RULES as those of `set`, in one argument")]
    Hold {
        /// The clients' control group, as /proc/PID/cgroup shows it behind 0::
        clients: Group,
        /// The middlebox's, into which it is brought
        #[arg(long)]
        middlebox: Option<Group>,
        /// The rules
        #[arg(long)]
        rules: String,
        /// The middlebox and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Start a middlebox that gets connections which come from other hosts by an interface, whatever address and port of this host they are for; as long
    /// as it lives. It must make its listeners itself, and not close descriptors that it does not know
    #[command(after_help = "RULES as those of `set`, in one argument; `to` is where the middlebox listens")]
    Receive {
        /// The interface
        interface: Name,
        /// The middlebox's control group, into which it is brought
        #[arg(long)]
        middlebox: Group,
        /// The rules
        #[arg(long)]
        rules: String,
        /// The middlebox and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// The same until it is taken away. The middlebox begins to listen after `attach`
    #[command(subcommand)]
    Received(Receiveds),
    /// Connections that this host passes on to others, as a router or the host of a bridge with an address: whatever comes by an interface and is not for this host.
    /// The middlebox's listener must be transparent (IP_TRANSPARENT; HAProxy: `bind ... transparent`), and its `getsockname` says where a client wanted to go
    #[command(subcommand)]
    Forward(Forwards),
    /// Be a middlebox that only passes on, each connection to where its client wanted to go. By `culvert run` it is a program under culvert towards the other side
    Relay {
        /// Where it listens, as 127.0.0.1:15001; may be given twice
        #[arg(long, required = true)]
        listen: Vec<SocketAddr>,
        /// A proxy to which all go instead
        #[arg(long)]
        to: Option<SocketAddr>,
        /// Tell it the client's address and the one that it has asked for, by the PROXY protocol, version 2
        #[arg(long, requires = "to")]
        proxy_protocol: bool,
        /// Take connections that this host passes on to others (`forward`): they keep the address that they are for. It takes CAP_NET_ADMIN
        #[arg(long)]
        transparent: bool,
    },
}

#[derive(Subcommand, Debug)]
enum Receiveds {
    /// Attach the programs, and pin one of them in the bpf file system; without rules all connections stay as they are
    Attach {
        /// The interface
        interface: Name,
        /// The middlebox's control group
        #[arg(long)]
        middlebox: Group,
    },
    /// Take them away; connections that were brought go on
    Detach {
        /// The interface
        interface: Name,
        /// The middlebox's control group
        #[arg(long)]
        middlebox: Group,
    },
    /// Say whether they are `present`, `absent`, there in `part`, `another` group's or held by a process, or the group or the interface is `gone`
    Status {
        /// The interface
        interface: Name,
        /// The middlebox's control group
        #[arg(long)]
        middlebox: Group,
    },
    /// Show the rules; the first that a connection is under decides
    Show {
        /// The interface
        interface: Name,
    },
    /// Give it these rules instead of those that it has, at once; connections that have begun stay where they are
    Set {
        /// The interface
        interface: Name,
        /// The rules
        #[arg(trailing_var_arg = true)]
        rules: Vec<String>,
    },
}

#[derive(Subcommand, Debug)]
enum Forwards {
    /// Make the table and the routing rules; without rules all connections stay as they are
    Attach {
        /// The interface by which they come
        interface: Name,
    },
    /// Take them away; connections that the middlebox has are cut
    Detach {
        /// The interface by which they come
        interface: Name,
    },
    /// Say whether they are `present`, `absent`, there in `part`, or of `another` process, which holds them
    Status {
        /// The interface by which they come
        interface: Name,
    },
    /// Show the rules; the first that a connection is under decides
    Show {
        /// The interface by which they come
        interface: Name,
    },
    /// Give it these rules instead of those that it has, at once; connections that have begun stay where they are
    Set {
        /// The interface by which they come
        interface: Name,
        /// The rules
        #[arg(trailing_var_arg = true)]
        rules: Vec<String>,
    },
    /// Start a middlebox that has the rules: they go with the last of its processes. It must not close descriptors that it does not know
    #[command(after_help = "RULES as those of `set`, in one argument")]
    Hold {
        /// The interface by which they come
        interface: Name,
        /// The rules
        #[arg(long)]
        rules: String,
        /// The middlebox and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match run(&Cli::parse().action) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("culvert-redirect: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(action: &Action) -> Result<(), String> {
    match action {
        Action::Attach(groups) => Set::attach(&groups.clients, groups.middlebox.as_ref()),
        Action::Detach(groups) => Set::detach(&groups.clients, groups.middlebox.as_ref()),
        Action::Status(groups) => say(Set::presence(&groups.clients, groups.middlebox.as_ref())),
        Action::Show { clients } => {
            show(Set::of(clients).and_then(|set| set.map_or(Ok(Vec::new()), |set| set.rules())))
        }
        Action::Forward(action) => forward(action),
        Action::Received(action) => received(action),
        Action::Set { clients, rules } => {
            let rules = parse_diversions(&rules.join(" "))?;
            let none = || format!("{clients} has no redirects: culvert-redirect attach {clients}");
            Set::of(clients)?.ok_or_else(none)?.change(&rules)
        }
        Action::Receive { interface, middlebox, rules, command } => {
            let held = Receive::new(*interface)?.hold(middlebox, &parse_diversions(rules)?)?;
            start(&held, Some(middlebox), command)
        }
        Action::Hold { clients, middlebox, rules, command } => hold(clients, middlebox.as_ref(), rules, command),
        Action::Relay { listen, to, proxy_protocol, transparent } => {
            relay(listen, Onward { to: *to, proxy: *proxy_protocol }, *transparent)
        }
    }
}

/// What is there, in a word.
fn say(presence: Result<Presence, String>) -> Result<(), String> {
    let presence = match presence {
        // A plan needs no rights: it is that of somebody who sees nothing.
        Err(why) if why.contains("takes root") => {
            eprintln!("culvert-redirect: {why}");
            Presence::Absent
        }
        known => known?,
    };
    println!(
        "{}",
        match presence {
            Presence::Present => "present",
            Presence::Absent => "absent",
            Presence::Part => "part",
            Presence::Another => "another",
            Presence::Gone => "gone",
        }
    );
    Ok(())
}

fn show(rules: Result<Vec<Diversion>, String>) -> Result<(), String> {
    let rules = match rules {
        Err(why) if why.contains("takes root") => {
            eprintln!("culvert-redirect: {why}");
            Vec::new()
        }
        rules => rules?,
    };
    println!("{}", diversions_text(&rules));
    Ok(())
}

fn received(action: &Receiveds) -> Result<(), String> {
    match action {
        Receiveds::Attach { interface, middlebox } => Receive::new(*interface)?.attach(middlebox),
        Receiveds::Detach { interface, middlebox } => Receive::new(*interface)?.detach(middlebox),
        Receiveds::Status { interface, middlebox } => say(Receive::new(*interface)?.presence(middlebox)),
        Receiveds::Show { interface } => {
            show(Receive::new(*interface)?.set().and_then(|set| set.map_or(Ok(Vec::new()), |set| set.rules())))
        }
        Receiveds::Set { interface, rules } => {
            let none = || format!("{interface} has no redirects: culvert-redirect received attach {interface}");
            Receive::new(*interface)?.set()?.ok_or_else(none)?.change(&parse_diversions(&rules.join(" "))?)
        }
    }
}

fn forward(action: &Forwards) -> Result<(), String> {
    match action {
        Forwards::Attach { interface } => Forward::new(*interface)?.attach(),
        Forwards::Detach { interface } => Forward::new(*interface)?.detach(),
        Forwards::Status { interface } => say(Forward::new(*interface)?.presence()),
        Forwards::Show { interface } => show(Forward::new(*interface)?.rules()),
        Forwards::Set { interface, rules } => Forward::new(*interface)?.change(&parse_diversions(&rules.join(" "))?),
        Forwards::Hold { interface, rules, command } => {
            Forward::new(*interface)?.hold(&parse_diversions(rules)?)?;
            start(&[], None, command)
        }
    }
}

/// Ends when a listener fails.
fn relay(listen: &[SocketAddr], onward: Onward, transparent: bool) -> Result<(), String> {
    let bind = |at: &SocketAddr| {
        let listener = TcpListener::bind(at).map_err(|e| format!("{at}: {e}"))?;
        if transparent {
            relay::transparent(&listener).map_err(|e| format!("{at}: transparent: {e}: it takes CAP_NET_ADMIN"))?;
        }
        Ok::<_, String>(listener)
    };
    let listeners: Vec<TcpListener> = listen.iter().map(bind).collect::<Result<_, _>>()?;
    println!("listening");
    let (tell, ended) = std::sync::mpsc::channel();
    for (listener, at) in listeners.into_iter().zip(listen.to_vec()) {
        let tell = tell.clone();
        std::thread::spawn(move || tell.send(format!("{at}: {}", serve(&listener, onward))));
    }
    Err(ended.recv().unwrap_or_default())
}

fn hold(clients: &Group, middlebox: Option<&Group>, rules: &str, command: &[OsString]) -> Result<(), String> {
    let rules = parse_diversions(rules)?;
    let held = Set::hold(clients, middlebox)?;
    Set::of(clients)?.ok_or("the programs are gone again")?.change(&rules)?;
    start(&held, middlebox, command)
}

/// Becomes the middlebox, which inherits the descriptors. Returns only if it fails.
fn start(held: &[OwnedFd], middlebox: Option<&Group>, command: &[OsString]) -> Result<(), String> {
    if let Some(group) = middlebox {
        Opened::new(group)?.ok_or_else(|| format!("there is no control group {group}"))?.enter()?;
    }
    for link in held {
        fcntl(link, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|e| format!("a program's descriptor: {e}"))?;
    }
    let (program, arguments) = command.split_first().ok_or("there is no command")?;
    let why = std::process::Command::new(program).args(arguments).exec();
    Err(format!("{}: {why}", program.display()))
}
