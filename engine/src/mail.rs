//! Letters between processes: knocks, welcomes, channels. See `rendezvous::message`.
//!
//! Anybody on the machine may write. Who is not the proved other end of a connection of ours gets no answer, and costs one
//! look at a letter: a knock must name a connection that this process has published, and come from the user who, as the
//! kernel says, holds its other end.

use crate::channel::{self, Chan, mapping};
use crate::endpoint::Ep;
use crate::kernel::{HOME, K, Kernel as _};
use crate::lifeline::DIAG;
use crate::lock::Lock;
use crate::peer::REGISTRY;
use crate::{config, lifeline, members, own, poller, sealed, slow};
use core::sync::atomic::Ordering::{Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64};
use rendezvous::mailbox::{self, Answer, Incoming, Received, SendError};
use rendezvous::message::Message;
use rendezvous::{diag, uid};
use shmring::family::Reason;
use shmring::family::State;
use shmring::layout::Role;

/// Guards the mailbox, the steps of a rendezvous, and who sits in which slot; taken before the tokens of any connection,
/// and before `channel::MAPPING`.
pub static RENDEZVOUS: Lock = Lock::new();

static MAILBOX: AtomicI32 = AtomicI32::new(-1);

static NAME: AtomicU64 = AtomicU64::new(0);

/// Mailboxes that strangers have spoilt, and answer boxes. They stay open.
static SPOILT: AtomicU32 = AtomicU32::new(0);
/// After so many spoilt mailboxes this process makes no other: whoever can spoil one can spoil the next.
const SPOILT_MAX: u32 = 8;

/// A knock that was sent and not answered yet.
struct Asked {
    /// 0: the place is free.
    nonce: AtomicU64,
    mailbox: AtomicU64,
    /// Who holds the connector's socket.
    uid: AtomicU32,
    at: AtomicU64,
    /// Socket connected to the mailbox.
    line: AtomicI32,
}

static KNOCKS: [Asked; 16] = [const {
    Asked {
        nonce: AtomicU64::new(0),
        mailbox: AtomicU64::new(0),
        uid: AtomicU32::new(0),
        at: AtomicU64::new(0),
        line: AtomicI32::new(-1),
    }
}; 16];

/// A knock that was answered, for the channel that is to come.
struct Welcomed {
    /// The answer box; -1: the place is free.
    answer: AtomicI32,
    mailbox: AtomicU64,
    /// Who holds the acceptor's socket.
    uid: AtomicU32,
    at: AtomicU64,
}

static WELCOMES: [Welcomed; 16] = [const {
    Welcomed { answer: AtomicI32::new(-1), mailbox: AtomicU64::new(0), uid: AtomicU32::new(0), at: AtomicU64::new(0) }
}; 16];

/// Of those, as many are one other user's at most.
const WELCOMES_OF_USER: usize = 4;

/// A knock that brought no answer is repeated after this long, nanoseconds.
const KNOCK_AGAIN: u64 = 20_000_000;

/// What was asked or answered is forgotten after this long, nanoseconds.
const FORGOTTEN: u64 = 5_000_000_000;

impl Asked {
    fn forget(&'static self) {
        self.nonce.store(0, Relaxed);
        own::discard(&self.line);
    }
}

/// The child of a fork has a mailbox of its own, once it needs one.
pub fn after_fork_child() {
    own::discard(&MAILBOX);
    NAME.store(0, Relaxed);
    KNOCKS.iter().for_each(Asked::forget);
    WELCOMES.iter().for_each(|w| own::discard(&w.answer));
    sealed::after_fork_child();
    PUBLISHED.iter().flatten().for_each(|p| p.cookie.store(0, Relaxed));
}

fn random() -> u64 {
    K::random().max(1)
}

/// Our mailbox; opened at first use. 0 if there is none.
pub fn own_mailbox() -> u64 {
    if NAME.load(Relaxed) == 0
        && crate::tls::tls().vfork.get() == 0
        && SPOILT.load(Relaxed) < SPOILT_MAX
        && poller::can_ring()
        && let Ok(m) = mailbox::open(|fd| fd, None, &HOME)
    {
        MAILBOX.store(m.fd, Relaxed);
        if own::adopt(&MAILBOX) {
            NAME.store(m.name, Release);
        }
    }
    NAME.load(Relaxed)
}

/// Whether the process with that mailbox has ended, or become another program: its mailbox went with it. False also if nobody can
/// tell.
pub fn has_ended(mailbox: u64) -> bool {
    K::is_mailbox_gone(MAILBOX.load(Relaxed), mailbox)
}

// --- what this process has published

/// A connection whose cookie is in the registry, so that a knock that names it is found without a search.
struct Published {
    /// 0: none.
    cookie: AtomicU64,
    ep: AtomicU32,
}

const ROWS: usize = 1024;

static PUBLISHED: [[Published; 4]; ROWS] =
    [const { [const { Published { cookie: AtomicU64::new(0), ep: AtomicU32::new(0) } }; 4] }; ROWS];

impl Published {
    /// The connection, if it still waits for its acceptor.
    fn ep(&self) -> Option<Ep> {
        let cookie = self.cookie.load(Relaxed);
        let ep = Ep::from_index(self.ep.load(Relaxed));
        let waits = cookie != 0
            && ep.local().refs.load(Relaxed) > 0
            && ep.cookie.load(Relaxed) == cookie
            && ep.local().stage.load(Relaxed) == 1
            && ep.role() == Some(Role::Connector)
            && ep.state() == State::Eligible;
        waits.then_some(ep)
    }
}

fn row(cookie: u64) -> &'static [Published; 4] {
    // The kernel counts cookies up.
    &PUBLISHED[cookie as usize % ROWS]
}

/// Notes that the registry says of `ep` that its socket has this cookie. With `RENDEZVOUS` held.
pub fn published(ep: Ep, cookie: u64) {
    let row = row(cookie);
    let same = row.iter().find(|p| p.cookie.load(Relaxed) == cookie);
    let free = || row.iter().find(|p| p.ep().is_none());
    // One that is pushed out stays on the kernel until it is published again.
    let place = same.or_else(free).unwrap_or(&row[cookie as usize / ROWS % row.len()]);
    place.ep.store(ep.index(), Relaxed);
    place.cookie.store(cookie, Relaxed);
}

// --- asking and answering

/// Knocks for the connection with these cookies, unless this process has knocked for it already.
pub fn knock(peer: u64, uid: u32, connector: u64, acceptor: u64) {
    let now = K::now();
    let age = |k: &Asked| now.saturating_sub(k.at.load(Relaxed));
    let asked = |k: &Asked| k.nonce.load(Relaxed) != 0;
    let same = KNOCKS.iter().find(|k| asked(k) && k.mailbox.load(Relaxed) == peer);
    if same.is_some_and(|k| age(k) < KNOCK_AGAIN) {
        return;
    }
    let Some(k) = same.or_else(|| KNOCKS.iter().find(|k| !asked(k) || age(k) > FORGOTTEN)) else { return };
    k.forget();
    let Ok(line) = mailbox::line(peer, &HOME) else { return };
    k.line.store(line, Relaxed);
    if !own::adopt(&k.line) {
        return;
    }
    let nonce = random();
    let m = Message::Knock { from: NAME.load(Relaxed), nonce, connector, acceptor };
    if mailbox::send(k.line.load(Relaxed), None, &m, None).is_err() {
        return own::discard(&k.line);
    }
    k.mailbox.store(peer, Relaxed);
    k.uid.store(uid, Relaxed);
    k.at.store(now, Relaxed);
    k.nonce.store(nonce, Relaxed);
    talk();
}

/// The program has changed its root directory: see [`Registry::shut_in`](rendezvous::registry::Registry::shut_in).
pub fn shut_in() {
    // A child of vfork runs on its parent's memory, and has descriptors of its own, until it becomes another program.
    if !members::is_filtered() && crate::tls::tls().vfork.get() == 0 {
        let held = RENDEZVOUS.lock();
        REGISTRY.shut_in();
        held.release();
    }
}

/// Until this time the mailbox is not read, since all that was in it came from nobody who may ask; 0: it is read.
static DEAF_UNTIL: AtomicU64 = AtomicU64::new(0);

/// Reads what has come. With `RENDEZVOUS` held.
pub fn read_mailbox() {
    const LETTERS: u32 = 32;
    const DEAF: u64 = 5_000_000;
    if NAME.load(Relaxed) == 0 || !uid::is_one() {
        return;
    }
    read_answers();
    sealed::take_up(introduce);
    let deaf = DEAF_UNTIL.load(Relaxed);
    if deaf != 0 && K::now() < deaf {
        return;
    }
    DEAF_UNTIL.store(0, Relaxed);
    let mut useful = false;
    for _ in 0..LETTERS {
        match mailbox::recv(MAILBOX.load(Relaxed)) {
            Incoming::Empty => return,
            Incoming::Junk => {}
            Incoming::Message(r) => useful |= heard(r),
            Incoming::Spoilt => {
                SPOILT.fetch_add(1, Relaxed);
                own::abandon(&MAILBOX);
                NAME.store(0, Relaxed);
                return;
            }
        }
    }
    if !useful {
        // Somebody floods it. Who may ask asks again.
        DEAF_UNTIL.store(K::now() + DEAF, Relaxed);
    }
}

/// Handles a message. False: it is none of ours.
fn heard(r: Received) -> bool {
    match r.message {
        Message::Knock { from, nonce, connector, acceptor } => {
            let ep = row(connector).iter().find(|p| p.cookie.load(Relaxed) == connector).and_then(Published::ep);
            let proved = ep.is_some_and(|ep| is_other_end(ep, connector, acceptor, r.uid));
            match ep.filter(|_| proved) {
                Some(ep) if !config::admits(r.uid) => ep.pin(Reason::OtherUser),
                Some(_) => welcome(from, nonce, r.uid),
                None => {}
            }
            proved
        }
        Message::Welcome { from, nonce, answer, key } => {
            let asked = |k: &&Asked| nonce != 0 && k.nonce.load(Relaxed) == nonce && k.mailbox.load(Relaxed) == from;
            let Some(k) = KNOCKS.iter().find(asked) else { return false };
            // Only the process that holds the mailbox knows the nonce. Whether its user is the one who holds the socket the
            // kernel has said.
            let proved = k.uid.load(Relaxed) == r.uid && uid::proves(r.uid);
            if proved {
                make_channel(k, &r, from, answer, key);
            } else {
                crate::log!(
                    Warn,
                    "the mailbox of uid {} is held by uid {}; its connections stay on the kernel",
                    k.uid.load(Relaxed),
                    r.uid
                );
            }
            k.forget();
            proved
        }
        // For answer boxes.
        Message::Channel { .. } => false,
    }
}

/// Whether the kernel says that a process of user `who` holds the socket with the cookie `acceptor`, at the other end of
/// `ep`, which this process has published. The kernel is asked once for each connection, and not more often than is cheap
/// for all of them.
fn is_other_end(ep: Ep, connector: u64, acceptor: u64, who: u32) -> bool {
    let l = ep.local();
    if l.peer_cookie.load(Relaxed) == 0 {
        let fd = l.fd.load(Relaxed);
        // The program may have closed the descriptor meanwhile, and its number be another socket's.
        if lifeline::cookie(fd) != Some(connector) || !may_ask() {
            return false;
        }
        match K::ends(fd, true).map(|t| diag::find(&DIAG, &t)) {
            // Before it is accepted it is nobody's, and called root's.
            Ok(Ok(f)) if f.is_held() => {
                l.peer_uid.store(f.uid, Relaxed);
                l.peer_cookie.store(f.cookie, Relaxed);
            }
            _ => return false,
        }
    }
    l.peer_cookie.load(Relaxed) == acceptor && l.peer_uid.load(Relaxed) == who && uid::proves(who)
}

/// Whether the kernel may be asked because of a letter, now.
fn may_ask() -> bool {
    const SPAN: u64 = 10_000_000;
    const QUESTIONS: u32 = 64;
    static SINCE: AtomicU64 = AtomicU64::new(0);
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let now = K::now();
    if now.saturating_sub(SINCE.load(Relaxed)) > SPAN {
        SINCE.store(now, Relaxed);
        ASKED.store(0, Relaxed);
    }
    ASKED.fetch_add(1, Relaxed) < QUESTIONS
}

/// Whether connections between this process, in this role, and that one may be added to a channel.
fn is_with(c: &Chan, mailbox: u64, role: Role) -> bool {
    c.peer_mailbox.load(Relaxed) == mailbox && c.role() == role && c.inherited.load(Relaxed) == 0 && !c.left_by_peer()
}

/// Whether that process may have another channel with this one: it can ask for one when its connections fill those that it
/// has, not for all there are.
fn may_have_channel(mailbox: u64, who: u32, role: Role) -> bool {
    // Who stands in for other hosts does so for every process of the users that it serves.
    let most = if config::stands_in() { channel::CHANS / 2 } else { channel::CHANS / 8 };
    let own_user = || who == uid::own();
    let with = |c: &&Chan| is_with(c, mailbox, role);
    let of_user = || channel::all().filter(|c| c.peer_uid.load(Relaxed) == who).count();
    // An acceptor asks for another when it has filled those that it has, as it sees them.
    !slow::holds_up(who)
        && channel::all().filter(with).all(|c| c.used.load(Relaxed).count_ones() >= u64::BITS / 2)
        && (own_user() || of_user() < most)
}

/// Answers a knock of the proved other end of a connection.
fn welcome(from: u64, nonce: u64, who: u32) {
    MET.store(true, Relaxed);
    talk();
    let now = K::now();
    let age = |w: &Welcomed| now.saturating_sub(w.at.load(Relaxed));
    let waits = |w: &&Welcomed| w.answer.load(Relaxed) >= 0;
    let same = WELCOMES.iter().filter(waits).find(|w| w.mailbox.load(Relaxed) == from && w.uid.load(Relaxed) == who);
    if same.is_some_and(|w| age(w) < KNOCK_AGAIN / 2) || !may_have_channel(from, who, Role::Connector) {
        return;
    }
    // Those in which this process has slots of children that were killed. The acceptor looks for one before it asks again.
    let with = |c: &&Chan| is_with(c, from, Role::Connector) && c.peer_uid.load(Relaxed) == who;
    if channel::all().filter(with).any(Chan::give_up_for_heirs) {
        return;
    }
    if same.is_none()
        && who != uid::own()
        && (SPOILT.load(Relaxed) >= SPOILT_MAX
            || WELCOMES.iter().filter(waits).filter(|w| w.uid.load(Relaxed) == who).count() >= WELCOMES_OF_USER)
    {
        return;
    }
    let Some(w) = same.or_else(|| WELCOMES.iter().find(|w| !waits(w))) else { return };
    own::discard(&w.answer);
    let key = random();
    let Ok(answer) = mailbox::open(|fd| fd, Some(key), &HOME) else { return };
    w.answer.store(answer.fd, Relaxed);
    if !own::adopt(&w.answer) {
        return;
    }
    w.mailbox.store(from, Relaxed);
    w.uid.store(who, Relaxed);
    w.at.store(now, Relaxed);
    let m = Message::Welcome { from: NAME.load(Relaxed), nonce, answer: answer.name, key };
    if mailbox::send(MAILBOX.load(Relaxed), Some(from), &m, None).is_err() {
        own::discard(&w.answer);
    }
}

/// Takes the channels that have come.
fn read_answers() {
    for w in WELCOMES.iter().filter(|w| w.answer.load(Relaxed) >= 0) {
        match mailbox::recv_answer(w.answer.load(Relaxed)) {
            Answer::Empty => {
                if K::now().saturating_sub(w.at.load(Relaxed)) > FORGOTTEN {
                    own::discard(&w.answer);
                }
            }
            Answer::Spoilt(_) => {
                SPOILT.fetch_add(1, Relaxed);
                own::abandon(&w.answer);
            }
            Answer::Channel(r, memfd) => {
                own::discard(&w.answer);
                let Message::Channel { from, channel, ring, .. } = r.message else {
                    K::close(memfd);
                    continue;
                };
                if w.uid.load(Relaxed) != r.uid || w.mailbox.load(Relaxed) != from {
                    K::close(memfd);
                    continue;
                }
                let ring = ring as usize;
                let chan = if r.uid == uid::own() {
                    let held = channel::MAPPING.lock();
                    let chan = mapping::map(memfd, Role::Connector, ring, channel);
                    held.release();
                    chan
                } else if sealed::is_acceptable(memfd, ring) {
                    sealed::accept(memfd, r.uid, ring, channel)
                } else {
                    // Whoever closes it last frees it, as much as that is.
                    SPOILT.fetch_add(1, Relaxed);
                    own::place(memfd);
                    None
                };
                match chan {
                    Some(chan) => introduce(chan, from, r.uid, r.pid),
                    None => crate::log!(Warn, "channel of pid {}: not usable, or no memory", r.pid),
                }
            }
        }
    }
}

fn introduce(chan: &Chan, mailbox: u64, uid: u32, pid: u32) {
    talk();
    chan.introduce(mailbox, uid, pid);
    crate::log!(Info, "channel {:x} with pid {pid} (uid {uid}), {} bytes a ring", chan.id.load(Relaxed), chan.ring());
}

/// The last channel that this process was to make failed for want of memory or of a descriptor.
static SHORT: AtomicBool = AtomicBool::new(false);

/// See `SHORT`.
pub fn is_short() -> bool {
    SHORT.load(Relaxed)
}

/// Makes a channel with the process that answered `k`, and passes it on.
fn make_channel(k: &Asked, r: &Received, peer: u64, answer: u64, key: u64) {
    let line = k.line.load(Relaxed);
    // The maker of an answer box keeps it as long as it lives, or somebody else might get its name.
    let there = Message::Welcome { from: NAME.load(Relaxed), nonce: 0, answer: 1, key: 1 };
    let lives = matches!(mailbox::send(line, None, &there, None), Ok(()) | Err(SendError::Full));
    let fresh = K::now().saturating_sub(k.at.load(Relaxed)) < FORGOTTEN / 2;
    if !lives || !fresh || !may_have_channel(peer, r.uid, Role::Acceptor) {
        return;
    }
    SHORT.store(true, Relaxed);
    if r.uid != uid::own() {
        let Some(o) = sealed::make(peer, r.uid, r.pid) else { return };
        SHORT.store(false, Relaxed);
        let m = Message::Channel { from: NAME.load(Relaxed), nonce: key, channel: o.id, ring: o.ring as u32 };
        // What does not arrive is asked for again.
        let _ = mailbox::send(line, Some(answer), &m, Some(o.memory));
        K::close(o.memory);
        return talk();
    }
    let ring = config::ring();
    let id = random();
    let Some(memfd) = mapping::new_memory(ring, id, libc::F_SEAL_SEAL) else {
        crate::log!(Warn, "no memory for a channel; connections stay on the kernel");
        return;
    };
    let held = channel::MAPPING.lock();
    let chan = mapping::map(memfd, Role::Acceptor, ring, id);
    held.release();
    let Some(chan) = chan else {
        crate::log!(Warn, "no memory, or no descriptor, for a channel; connections stay on the kernel");
        return;
    };
    SHORT.store(false, Relaxed);
    let m = Message::Channel { from: NAME.load(Relaxed), nonce: key, channel: id, ring: ring as u32 };
    let sent = mailbox::send(line, Some(answer), &m, Some(chan.memfd.load(Relaxed)));
    if sent.is_err() {
        let held = channel::MAPPING.lock();
        chan.close();
        held.release();
        return;
    }
    introduce(chan, peer, r.uid, r.pid);
}

/// Another process has knocked: some peers of this process run culvert. From then on a connection without an answer is
/// not given up (`attach::note_answer`).
pub static MET: AtomicBool = AtomicBool::new(false);

/// Until this time (monotonic, nanoseconds) every connection takes its steps more often: a letter was sent or has come.
static TALK_UNTIL: AtomicU64 = AtomicU64::new(0);

fn talk() {
    const LENGTH: u64 = 500_000_000;
    TALK_UNTIL.store(K::now() + LENGTH, Relaxed);
}

/// See [`TALK_UNTIL`].
pub fn talking() -> bool {
    let until = TALK_UNTIL.load(Relaxed);
    until != 0 && K::now() < until
}
