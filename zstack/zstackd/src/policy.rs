//! Which connections end in zstackd, and which are the kernel's from end to end: by what the kernel says about the socket here,
//! what the configuration allows, and whether its program runs under culvert.

use crate::cgroups::Cgroups;
use crate::common::Common;
use crate::config::{Config, Programs, Range};
use crate::flow::Flow;
use crate::front::{self, Owner, Ports};
use crate::quotas::Full;
use rendezvous::diag::{self, Cache, Found, KeepAlive, Miss};
use rendezvous::home::Home;
use rendezvous::registry::Kind;
use rendezvous::{Tuple, tuple};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use zstack::time::Time;
use zstack_wire::Seq;

/// The namespace that the programs are in, and zstackd.
static HOME: Home = Home::new();
/// The socket by which the kernel is asked.
static DIAG: Cache = Cache::new(|fd| fd, &HOME).settled();

/// Why a connection is the kernel's from end to end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Raw {
    /// Its SYN asks for what a connection in two parts does not give.
    Exotic,
    /// The configuration leaves its port out.
    Port,
    /// The configuration leaves its user out.
    User,
    /// The configuration leaves its control group out, or the kernel does not say which it is.
    Cgroup,
    /// Its program does not run under culvert, or not on a path that leads here.
    Program,
    /// Nobody listens there.
    NoListener,
    /// The kernel does not know the socket that the SYN is said to come from.
    NoSocket,
    /// It was the kernel's when its SYN came the first time.
    Handed,
    /// There are as many connections as the configuration allows, or as many that are being made.
    Full,
    /// Its user has as many connections as the configuration allows him.
    UserFull,
    /// There is no memory for its buffers that its user may have.
    Memory,
    /// The kernel could not be asked.
    Unknown,
}

/// What is to be done with a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It ends here; its program is this user's.
    Split(u32),
    /// It is the kernel's.
    Raw(Raw),
}

/// What is known of a program's socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Program {
    /// It has sent a SYN, and waits for the answer.
    pub asks: bool,
    /// A process holds it.
    pub holds: bool,
    /// Its cookie; 0: there is none.
    pub cookie: u64,
    /// Whose it is.
    pub user: u32,
    /// Whether its connection is to be probed when it is idle, and after how long (SO_KEEPALIVE, TCP_KEEPIDLE).
    pub keep_alive: KeepAlive,
}

/// How long what is known of a listener is believed. One that was closed meanwhile refuses all the same. That nobody listens, or a program
/// without culvert, is believed only where many ask ([`SINGLY`]): who is refused asks again and again, and the connection that he gets at last
/// is to be one that ends here, since it is the kernel's for as long as it lasts if it is not.
const FRESH: u64 = 20_000;

/// Listeners that are remembered at once.
const REMEMBERED: usize = 4096;

/// So many listeners are asked for by themselves in a time of [`FRESH`]. Beyond them, which is somebody who tries all ports, what is known is
/// believed, and the kernel is asked once which ports are listened on at all.
const SINGLY: u32 = 16;

/// While zstackd has not slept for so long, in microseconds, it has too much to do.
const BUSY: u64 = 2_000;

/// While there is too much to do, one SYN for a port that nobody listens on goes to the kernel in so many microseconds: 2,000 a second.
/// Each costs the kernel and zstackd as much as ten segments of a transfer. Each worker has its share.
const REFUSAL: u64 = 500;

/// So many go there at once, if none had to for a while: who looks for open ports asks for a thousand of them in a moment, and would have
/// to ask for each again, a second later.
const REFUSALS: u64 = 1_000;

/// The rules.
pub struct Policy {
    programs: Programs,
    users: Option<Vec<Range<u32>>>,
    cgroups: Option<Cgroups>,
    ports: Option<Vec<Range<u16>>>,
    /// [`REFUSAL`], with as many workers as there are.
    refusal: u64,
    listeners: HashMap<SocketAddr, (Verdict, Time)>,
    /// How many were asked for by themselves since the last time of [`FRESH`] began; when it is over.
    singly: (u32, Time),
    /// When zstackd had nothing to do last.
    slept: Time,
    /// When [`REFUSALS`] can go to the kernel again.
    refusals: Time,
    /// Ports that are listened on, as far as that is known, and how long it is believed.
    listening: (Option<Ports>, Time),
    /// Connections that are the kernel's since there was no memory for their buffers.
    pub lacked: u64,
    common: Arc<Common>,
    /// Whether a user's process has said that the socket with this cookie is one of a program under culvert.
    intends: fn(u32, u64, Kind) -> bool,
}

fn contains<T: PartialOrd>(ranges: &Option<Vec<Range<T>>>, n: T) -> bool {
    ranges.as_ref().is_none_or(|ranges| ranges.iter().any(|range| range.0.contains(&n)))
}

fn tuple_of(flow: &Flow) -> Tuple {
    let words = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => tuple::mapped(ip.octets()),
        IpAddr::V6(ip) => ip.octets(),
    };
    let (src, dst) = (words(flow.local.ip()), words(flow.remote.ip()));
    Tuple { src, dst, sport: flow.local.port(), dport: flow.remote.port(), scope: 0 }
}

impl Policy {
    /// The configuration's. `intends`: whether a process of a user has published that the socket with a cookie is of a program
    /// under culvert.
    ///
    /// # Errors
    /// A line for the user: the control groups cannot be seen.
    pub fn new(config: &Config, common: Arc<Common>, intends: fn(u32, u64, Kind) -> bool) -> Result<Policy, String> {
        let cgroups = config.cgroups.as_deref().map(Cgroups::new).transpose();
        Ok(Policy {
            programs: config.programs,
            users: config.users.clone(),
            cgroups: cgroups.map_err(|text| format!("cgroups: {text}"))?,
            ports: config.ports.clone(),
            refusal: REFUSAL * u64::from(config.workers),
            listeners: HashMap::new(),
            singly: (0, Time(0)),
            slept: Time(0),
            refusals: Time(0),
            listening: (None, Time(0)),
            lacked: 0,
            common,
            intends,
        })
    }

    /// What to do with a connection that a program here opens. `owner`: whose socket it is, if that is known already.
    pub fn outgoing(&mut self, flow: &Flow, owner: Option<Owner>) -> Verdict {
        if !contains(&self.ports, flow.remote.port()) {
            return Verdict::Raw(Raw::Port);
        }
        // What is known says nothing of control groups.
        if let Some(Owner { user, cookie }) = owner
            && self.cgroups.is_none()
        {
            return match self.judge_socket(user, cookie, Kind::Connect) {
                Verdict::Split(user) => self.judge_room(user),
                raw => raw,
            };
        }
        match diag::find(&DIAG, &tuple_of(flow)) {
            Ok(found) => match self.judge(&found, Kind::Connect) {
                Verdict::Split(user) => self.judge_room(user),
                raw => raw,
            },
            Err(Miss::NotFound) => Verdict::Raw(Raw::NoSocket),
            Err(_) => Verdict::Raw(Raw::Unknown),
        }
    }

    /// What to do with a connection that a remote host opens to a server here.
    pub fn incoming(&mut self, flow: &Flow, now: Time) -> Verdict {
        if !contains(&self.ports, flow.local.port()) {
            return Verdict::Raw(Raw::Port);
        }
        let known = self.listeners.get(&flow.local).filter(|(_, until)| now < *until).map(|(verdict, _)| *verdict);
        let verdict = match known {
            Some(verdict @ Verdict::Split(_)) => verdict,
            known if !self.may_ask(now) && (known.is_some() || self.is_unused(flow.local.port(), now)) => {
                return known.unwrap_or(Verdict::Raw(Raw::NoListener));
            }
            _ => {
                // From no port: the last connection from this one may still be in TIME_WAIT here, and would be found.
                let anybody = Flow { remote: SocketAddr::new(flow.remote.ip(), 0), ..*flow };
                let verdict = match diag::find_listener(&DIAG, &tuple_of(&anybody)) {
                    Ok(found) => self.judge(&found, Kind::Listen),
                    Err(Miss::NotFound) => Verdict::Raw(Raw::NoListener),
                    Err(_) => Verdict::Raw(Raw::Unknown),
                };
                if self.listeners.len() >= REMEMBERED {
                    self.listeners.clear();
                }
                self.listeners.insert(flow.local, (verdict, Time(now.0 + FRESH)));
                verdict
            }
        };
        match verdict {
            Verdict::Split(user) => self.judge_room(user),
            raw => raw,
        }
    }

    /// zstackd had nothing to do until now.
    pub fn has_slept(&mut self, now: Time) {
        self.slept = now;
    }

    /// Whether the kernel is to refuse one more connection that nobody listens for. If not, it is dropped, and its peer asks again:
    /// a flood of them leaves the connections of others their share.
    pub fn may_refuse(&mut self, now: Time) -> bool {
        if now.0 < self.slept.0 + BUSY {
            return true;
        }
        let full = Time(self.refusals.0.max(now.0) + self.refusal);
        let may = full.0 <= now.0 + REFUSALS * REFUSAL;
        if may {
            self.refusals = full;
        }
        may
    }

    /// Whether a listener is to be asked for by itself; not while many are.
    fn may_ask(&mut self, now: Time) -> bool {
        if now >= self.singly.1 {
            self.singly = (0, Time(now.0 + FRESH));
        }
        self.singly.0 += 1;
        self.singly.0 <= SINGLY
    }

    /// Whether nobody listens on a port, while many are asked for.
    fn is_unused(&mut self, port: u16, now: Time) -> bool {
        if now >= self.listening.1 {
            self.listening = (front::listening().ok(), Time(now.0 + FRESH));
        }
        self.listening.0.as_ref().is_some_and(|ports| !ports.has(port))
    }

    /// A connection is the kernel's, and its SYN, which has this number, is handed on. If zstackd's end of the last one with these addresses
    /// is in TIME_WAIT it goes: all that the program sends would be turned round to it, and never reach the wire.
    pub fn hand_on(&mut self, flow: Flow, isn: Seq) {
        const TIME_WAIT: u8 = 6;
        let ours = diag::find(&DIAG, &tuple_of(&flow).reversed());
        if ours.is_ok_and(|found| found.state == TIME_WAIT)
            && let Err(e) = front::destroy_time_wait(flow.remote, flow.local)
        {
            log::warn!("{flow}: an end in TIME_WAIT cannot be removed, and keeps this connection from the wire: {e}");
        }
        self.common.handed().add(flow, isn);
    }

    /// Whether a connection is the kernel's since its SYN was handed on when it came before.
    pub fn was_handed_on(&self, flow: &Flow, isn: Seq) -> bool {
        self.common.handed().has(flow, isn)
    }

    /// What the kernel says of a program's socket; `None`: it could not be asked.
    pub fn program(&self, flow: &Flow) -> Option<Program> {
        const SYN_SENT: u8 = 2;
        match diag::find_program(&DIAG, &tuple_of(flow)) {
            Ok(found) => Some(Program {
                asks: found.state == SYN_SENT,
                holds: found.is_held(),
                cookie: found.cookie,
                user: found.uid,
                keep_alive: found.keep_alive,
            }),
            Err(Miss::NotFound) => {
                Some(Program { asks: false, holds: false, cookie: 0, user: u32::MAX, keep_alive: KeepAlive::Off })
            }
            Err(_) => None,
        }
    }

    fn judge(&mut self, found: &Found, kind: Kind) -> Verdict {
        if !contains(&self.users, found.uid) {
            return Verdict::Raw(Raw::User);
        }
        if let Some(cgroups) = &mut self.cgroups
            && !found.cgroup.is_some_and(|number| cgroups.have(number))
        {
            return Verdict::Raw(Raw::Cgroup);
        }
        self.judge_socket(found.uid, found.cookie, kind)
    }

    fn judge_socket(&self, user: u32, cookie: u64, kind: Kind) -> Verdict {
        if !contains(&self.users, user) {
            return Verdict::Raw(Raw::User);
        }
        if self.programs == Programs::Culvert && !(self.intends)(user, cookie, kind) {
            return Verdict::Raw(Raw::Program);
        }
        Verdict::Split(user)
    }

    fn judge_room(&self, user: u32) -> Verdict {
        match self.common.quotas.look(user) {
            None => Verdict::Split(user),
            Some(Full::All) => Verdict::Raw(Raw::Full),
            Some(Full::User) => Verdict::Raw(Raw::UserFull),
        }
    }

    /// A connection that would end here is the kernel's: there is no memory for its buffers.
    pub fn lacks_memory(&mut self) -> Raw {
        if self.lacked == 0 {
            log::warn!(
                "no memory is left for the buffers of a connection: those that begin now are the kernel's: raise `memory`, or lower `buffer`"
            );
        }
        self.lacked += 1;
        Raw::Memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::sync::atomic::Ordering::Relaxed;
    use std::sync::atomic::{AtomicBool, AtomicU32};

    fn policy(more: &str, intends: fn(u32, u64, Kind) -> bool) -> Policy {
        let text = format!("port = \"tap:w0\"\naddresses = [\"10.1.0.1/24\"]\n{more}");
        let config: Config = text.parse().unwrap();
        let common = Arc::new(Common::new(&config));
        Policy::new(&config, common, intends).unwrap()
    }

    fn own_user() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    /// A connection on loopback, as its client sees it.
    fn connection() -> (TcpListener, TcpStream, Flow) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let flow = Flow { local: client.local_addr().unwrap(), remote: client.peer_addr().unwrap() };
        (listener, client, flow)
    }

    #[test]
    fn a_programs_connection_is_judged_by_its_socket() {
        let (_listener, client, flow) = connection();
        let me = own_user();
        assert_eq!(policy("programs = \"all\"", |_, _, _| false).outgoing(&flow, None), Verdict::Split(me));
        assert_eq!(policy("", |_, _, _| false).outgoing(&flow, None), Verdict::Raw(Raw::Program));
        assert_eq!(policy("", |_, _, _| true).outgoing(&flow, None), Verdict::Split(me));
        let other = format!("users = [{}]", me + 1);
        assert_eq!(policy(&other, |_, _, _| true).outgoing(&flow, None), Verdict::Raw(Raw::User));
        let ports = format!("ports = [{}]", if flow.remote.port() == 1 { 2 } else { 1 });
        assert_eq!(policy(&ports, |_, _, _| true).outgoing(&flow, None), Verdict::Raw(Raw::Port));
        let mut policy = policy("", |_, _, _| true);
        let Program { asks, holds, cookie, user, keep_alive } = policy.program(&flow).unwrap();
        assert_eq!((asks, holds, user, keep_alive), (false, true, me, KeepAlive::Off));
        assert_eq!(cookie, socket2::SockRef::from(&client).cookie().unwrap());
        drop(client);
        assert!(!policy.program(&flow).unwrap().holds);
        let nobody = Flow { remote: "127.0.0.9:9".parse().unwrap(), ..flow };
        assert_eq!(policy.outgoing(&nobody, None), Verdict::Raw(Raw::NoSocket));
    }

    #[test]
    fn a_listener_is_judged_and_remembered() {
        let (listener, _client, flow) = connection();
        let flow = Flow { local: flow.remote, remote: "127.0.0.9:77".parse().unwrap() };
        let mut policy = policy("", |_, _, _| true);
        assert_eq!(policy.incoming(&flow, Time(0)), Verdict::Split(own_user()));
        drop(listener);
        assert_eq!(policy.incoming(&flow, Time(FRESH - 1)), Verdict::Split(own_user()));
        assert_eq!(policy.incoming(&flow, Time(FRESH)), Verdict::Raw(Raw::NoListener));
    }

    /// Who was refused a moment ago, and who came while a program had not said yet that it runs under culvert.
    #[test]
    fn who_asks_again_finds_a_listener_that_is_new() {
        static SAYS: AtomicBool = AtomicBool::new(false);
        let (listener, _client, flow) = connection();
        let address = flow.remote;
        let flow = Flow { local: address, remote: "127.0.0.9:77".parse().unwrap() };
        drop(listener);
        let mut policy = policy("", |_, _, _| SAYS.load(Relaxed));
        assert_eq!(policy.incoming(&flow, Time(0)), Verdict::Raw(Raw::NoListener));
        let _listener = TcpListener::bind(address).unwrap();
        assert_eq!(policy.incoming(&flow, Time(1)), Verdict::Raw(Raw::Program));
        SAYS.store(true, Relaxed);
        assert_eq!(policy.incoming(&flow, Time(2)), Verdict::Split(own_user()));
    }

    /// What many ask for at once is looked at once, and once more when that is old.
    #[test]
    fn a_flood_asks_the_kernel_few_questions() {
        static ASKED: AtomicU32 = AtomicU32::new(0);
        let (_listener, _client, flow) = connection();
        let flow = Flow { local: flow.remote, remote: "127.0.0.9:77".parse().unwrap() };
        let mut policy = policy("", |_, _, _| ASKED.fetch_add(1, Relaxed) == u32::MAX);
        for now in 0..2 * FRESH {
            assert_eq!(policy.incoming(&flow, Time(now)), Verdict::Raw(Raw::Program));
        }
        assert!((2..=2 * SINGLY).contains(&ASKED.load(Relaxed)), "{ASKED:?}");
    }

    /// Who tries all ports finds the same as who asks for one, and costs few questions.
    #[test]
    fn all_ports_are_tried() {
        let (listener, _client, flow) = connection();
        let port = flow.remote.port();
        let mut policy = policy("", |_, _, _| true);
        let mut found = |now| {
            let verdict = |port| {
                let local = SocketAddr::new(flow.remote.ip(), port);
                policy.incoming(&Flow { local, remote: "127.0.0.9:77".parse().unwrap() }, now)
            };
            (1..=u16::MAX)
                .map(verdict)
                .enumerate()
                .filter(|(_, v)| matches!(v, Verdict::Split(_)))
                .map(|(i, _)| i as u16 + 1)
                .collect::<Vec<_>>()
        };
        assert!(found(Time(0)).contains(&port));
        drop(listener);
        assert!(!found(Time(FRESH)).contains(&port));
        assert!(policy.listeners.len() < REMEMBERED / 2, "{}", policy.listeners.len());
    }

    #[test]
    fn refusals_are_limited_while_there_is_too_much_to_do() {
        let mut policy = policy("", |_, _, _| true);
        let mut refused = |now: u64| (0..3000).filter(|_| policy.may_refuse(Time(now))).count();
        assert_eq!(refused(BUSY - 1), 3000);
        // Who asks for many ports at once is told of all.
        assert_eq!(refused(BUSY), 1000);
        // A flood is not.
        assert_eq!(refused(BUSY + 20_000), 40);
        assert_eq!(refused(BUSY + 40_000), 40);
        assert_eq!(refused(BUSY + 2_000_000), 1000);
        policy.has_slept(Time(BUSY + 2_000_000));
        assert!((0..3000).all(|_| policy.may_refuse(Time(BUSY + 2_000_001))));
    }

    #[test]
    fn beyond_the_quotas_connections_are_the_kernels() {
        let (_listener, _client, flow) = connection();
        let me = own_user();
        let mut one = policy("connections = 2\nconnections-per-user = 1", |_, _, _| true);
        let common = one.common.clone();
        common.quotas.begun(me);
        assert_eq!(one.outgoing(&flow, None), Verdict::Raw(Raw::UserFull));
        common.quotas.begun(me + 1);
        assert_eq!(one.outgoing(&flow, None), Verdict::Raw(Raw::Full));
        common.quotas.closed(me, false);
        assert_eq!(one.outgoing(&flow, None), Verdict::Split(me));
    }
}
