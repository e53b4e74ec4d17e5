//! A family's memory, read from outside. It belongs to a process that may be broken or hostile: every
//! value is copied out once, and nothing in it can make this module do more than report nonsense.

use std::mem::offset_of;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use shmring::family::{self as layout, ConfiguredPath, Endpoint, FamilyHeader, Reason, State};
use shmring::switch::{RxPhase, TxPhase};

use serde::Serialize;

/// `Endpoint::rx_up` and `tx_up` of a direction that never moved.
const NEVER: u64 = u64::MAX;

/// How far one direction of a connection has come. Stable JSON; fields may be added.
#[derive(Serialize, Debug, Clone, PartialEq)]
pub struct Direction {
    pub path: &'static str,
    pub phase: &'static str,
    pub bytes: u64,
    pub messages: u64,
    pub switched_up_at: Option<u64>,
}

/// What a family says about itself.
#[derive(Debug)]
pub struct Family {
    /// CULVERT_PATH.
    pub path: &'static str,
    /// Why nothing is accelerated, if so.
    pub disabled: Option<(String, &'static str)>,
    /// Channels mapped since it began.
    pub channels: u64,
    /// Those in use.
    pub endpoints: Vec<Record>,
}

/// A copy of one `shmring::family::Endpoint` in use.
#[derive(Debug)]
pub struct Record {
    pub state: State,
    reason: u32,
    pub pid: u32,
    pub fd: u32,
    pub cookie: u64,
    pub role: Option<&'static str>,
    pub peer_pid: Option<u32>,
    pub rx: Direction,
    pub tx: Direction,
    pub doorbells: u64,
    pub spins_won: u64,
    pub spins_lost: u64,
    /// The peer stands in for another host.
    carried: bool,
}

impl Record {
    /// It was left to the kernel because its socket lives in another network namespace than its process.
    pub fn is_elsewhere(&self) -> bool {
        self.reason == Reason::OtherNetwork as u32 && self.state != State::Free
    }

    /// `"shm"` if a direction is on its ring, and `"zstack"` if that leads to a zstackd; else `"kernel"`.
    pub fn path(&self) -> &'static str {
        match self.is_on_ring() {
            true if self.carried => "zstack",
            true => "shm",
            false => "kernel",
        }
    }

    fn is_on_ring(&self) -> bool {
        self.rx.path == "shm" || self.tx.path == "shm"
    }

    /// Why the connection is on the kernel. `ended`: the kernel says that the peer has finished.
    pub fn reason(&self, ended: bool) -> Option<(String, &'static str)> {
        if self.is_on_ring() {
            return None;
        }
        // Not said: the state tells.
        let attached = match [self.rx.phase, self.tx.phase].contains(&"down") {
            true if ended => Reason::Dead,
            true => Reason::Down,
            false => Reason::Pending,
        };
        match Reason::from_u32(self.reason) {
            Some(Reason::None) if self.state == State::Attached => Some(words(attached as u32)),
            Some(Reason::None) => Some(words(Reason::Young as u32)),
            // What it was when it was attached.
            Some(Reason::Young | Reason::Pending | Reason::NoPeer) if self.state == State::Attached => {
                Some(words(attached as u32))
            }
            _ => Some(words(self.reason)),
        }
    }
}

/// Key and sentence of a reason, also of one that a newer library may have written.
pub fn words(reason: u32) -> (String, &'static str) {
    match Reason::from_u32(reason) {
        Some(r) => (r.key().into(), r.text()),
        None => (format!("unknown-{reason}"), "a reason that this version of culvert does not know"),
    }
}

/// Opens the memory of the family behind `path`, a link in some `/proc/PID/fd`.
fn open(path: &Path, write: bool) -> Result<std::fs::File, String> {
    // O_NONBLOCK: the link may lead to a FIFO that somebody gave our name.
    let file = std::fs::File::options()
        .read(true)
        .write(write)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .map_err(|e| e.to_string())?;
    let meta = file.metadata().map_err(|e| e.to_string())?;
    if meta.mode() & libc::S_IFMT != libc::S_IFREG {
        return Err("not a memfd".into());
    }
    Ok(file)
}

/// Asks the family to bring its connections back to the kernel (`FamilyHeader::disabled`).
pub fn recall(path: &Path) -> Result<(), String> {
    let file = open(path, true)?;
    let mut header = vec![0; size_of::<FamilyHeader>()];
    file.read_exact_at(&mut header, 0).map_err(|e| format!("too short ({e})"))?;
    parse_header(&header)?;
    let at = offset_of!(FamilyHeader, disabled) as u64;
    file.write_all_at(&(Reason::Recalled as u32).to_ne_bytes(), at).map_err(|e| e.to_string())
}

/// Reads the family behind `path`, a link in some `/proc/PID/fd`.
pub fn read(path: &Path) -> Result<Family, String> {
    let file = open(path, false)?;
    let read_at = |len: usize, at: usize| {
        let mut bytes = vec![0; len];
        match file.read_exact_at(&mut bytes, at as u64) {
            Ok(()) => Ok(bytes),
            Err(e) => Err(format!("too short ({e})")),
        }
    };
    let header = read_at(size_of::<FamilyHeader>(), 0)?;
    let (mut family, used) = parse_header(&header)?;
    // In chunks, so that a process that claims all 65,536 does not cost 20 MB here.
    const CHUNK: usize = 1024;
    for first in (0..used).step_by(CHUNK) {
        let n = CHUNK.min(used - first);
        let bytes = read_at(n * size_of::<Endpoint>(), layout::ENDPOINTS_AT + first * size_of::<Endpoint>())?;
        family.endpoints.extend(bytes.chunks_exact(size_of::<Endpoint>()).filter_map(parse_endpoint));
    }
    Ok(family)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_ne_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_ne_bytes(*b))
}

/// The header, and how many endpoints were ever used.
pub fn parse_header(bytes: &[u8]) -> Result<(Family, usize), String> {
    if u64_at(bytes, offset_of!(FamilyHeader, magic)) != layout::MAGIC {
        return Err("not a family's memory".into());
    }
    let version = u32_at(bytes, offset_of!(FamilyHeader, version));
    if version != layout::VERSION {
        return Err(format!("its library has layout version {version}, this command {}", layout::VERSION));
    }
    let path = match u32_at(bytes, offset_of!(FamilyHeader, path)) {
        v if v == ConfiguredPath::Auto as u32 => "auto",
        v if v == ConfiguredPath::Shm as u32 => "shm",
        v if v == ConfiguredPath::Kernel as u32 => "kernel",
        v if v == ConfiguredPath::Zstack as u32 => "zstack",
        _ => "unknown",
    };
    let disabled = match u32_at(bytes, offset_of!(FamilyHeader, disabled)) {
        0 => None,
        v => Some(words(v)),
    };
    let used = u32_at(bytes, offset_of!(FamilyHeader, high)) as usize;
    let channels = u64_at(bytes, offset_of!(FamilyHeader, channels));
    Ok((Family { path, disabled, channels, endpoints: Vec::new() }, used.min(layout::ENDPOINTS)))
}

/// `None` for a record that is free, or a socket without a connection.
pub fn parse_endpoint(bytes: &[u8]) -> Option<Record> {
    let state = State::from_u32(u32_at(bytes, offset_of!(Endpoint, state)));
    if matches!(state, State::Free | State::Idle) {
        return None;
    }
    // What else is in a record begins when it is attached.
    let u32_if_attached = |at| if state == State::Attached { u32_at(bytes, at) } else { 0 };
    let u64_if_attached = |at| if state == State::Attached { u64_at(bytes, at) } else { 0 };
    let rx_phase = match RxPhase::from_u32(u32_if_attached(offset_of!(Endpoint, rx_phase))) {
        RxPhase::Native => "native",
        RxPhase::Transit => "transit",
        RxPhase::Ring => "ring",
        RxPhase::Down => "down",
    };
    let tx_phase = match TxPhase::from_u32(u32_if_attached(offset_of!(Endpoint, tx_phase))) {
        TxPhase::Native => "native",
        TxPhase::Ring => "ring",
        TxPhase::Down => "down",
        TxPhase::Rewind => "rewind",
    };
    let direction = |phase, bytes_at, messages_at, up_at| Direction {
        path: if state == State::Attached && phase == "ring" { "shm" } else { "kernel" },
        phase,
        bytes: u64_if_attached(bytes_at),
        messages: u64_if_attached(messages_at),
        switched_up_at: Some(u64_if_attached(up_at)).filter(|at| *at != NEVER && phase != "native"),
    };
    Some(Record {
        state,
        reason: u32_at(bytes, offset_of!(Endpoint, reason)),
        pid: u32_at(bytes, offset_of!(Endpoint, pid)),
        fd: u32_at(bytes, offset_of!(Endpoint, fd)),
        cookie: u64_at(bytes, offset_of!(Endpoint, cookie)),
        role: match u32_at(bytes, offset_of!(Endpoint, role)) {
            1 => Some("connector"),
            2 => Some("acceptor"),
            _ => None,
        },
        peer_pid: Some(u32_at(bytes, offset_of!(Endpoint, peer_pid))).filter(|pid| *pid != 0),
        rx: direction(
            rx_phase,
            offset_of!(Endpoint, rx_bytes),
            offset_of!(Endpoint, rx_msgs),
            offset_of!(Endpoint, rx_up),
        ),
        tx: direction(
            tx_phase,
            offset_of!(Endpoint, tx_bytes),
            offset_of!(Endpoint, tx_msgs),
            offset_of!(Endpoint, tx_up),
        ),
        doorbells: u64_if_attached(offset_of!(Endpoint, bells)),
        spins_won: u64_if_attached(offset_of!(Endpoint, spins_won)),
        spins_lost: u64_if_attached(offset_of!(Endpoint, spins_lost)),
        carried: u32_if_attached(offset_of!(Endpoint, stands_in)) == layout::PEER_STANDS_IN,
    })
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A family's memory, made by hand.
    pub struct Synthetic(pub Vec<u8>);

    impl Synthetic {
        pub fn new(endpoints: usize) -> Synthetic {
            let mut s = Synthetic(vec![0; layout::ENDPOINTS_AT + endpoints * size_of::<Endpoint>()]);
            s.put(offset_of!(FamilyHeader, magic), &layout::MAGIC.to_ne_bytes());
            s.put(offset_of!(FamilyHeader, version), &layout::VERSION.to_ne_bytes());
            s.put(offset_of!(FamilyHeader, high), &(endpoints as u32).to_ne_bytes());
            s
        }
        pub fn put(&mut self, at: usize, value: &[u8]) {
            self.0[at..at + value.len()].copy_from_slice(value);
        }
        pub fn put32(&mut self, endpoint: usize, field: usize, value: u32) {
            self.put(layout::ENDPOINTS_AT + endpoint * size_of::<Endpoint>() + field, &value.to_ne_bytes());
        }
        pub fn put64(&mut self, endpoint: usize, field: usize, value: u64) {
            self.put(layout::ENDPOINTS_AT + endpoint * size_of::<Endpoint>() + field, &value.to_ne_bytes());
        }
        fn read(&self, name: &str) -> Result<Family, String> {
            let path = std::env::temp_dir().join(format!("culvert-family-{}-{name}", std::process::id()));
            std::fs::write(&path, &self.0).unwrap();
            let family = read(&path);
            std::fs::remove_file(&path).unwrap();
            family
        }
    }

    #[test]
    fn an_attached_endpoint_is_on_shm_and_a_pinned_one_says_why_not() {
        let mut s = Synthetic::new(4);
        s.put32(1, offset_of!(Endpoint, state), State::Attached as u32);
        s.put32(1, offset_of!(Endpoint, rx_phase), 1);
        s.put32(1, offset_of!(Endpoint, tx_phase), 1);
        s.put64(1, offset_of!(Endpoint, tx_bytes), 640);
        s.put64(1, offset_of!(Endpoint, tx_msgs), 10);
        s.put64(1, offset_of!(Endpoint, tx_up), 256);
        s.put64(1, offset_of!(Endpoint, rx_up), NEVER);
        s.put64(1, offset_of!(Endpoint, cookie), 77);
        s.put64(1, offset_of!(Endpoint, bells), 3);
        s.put32(2, offset_of!(Endpoint, state), State::Idle as u32);
        s.put32(3, offset_of!(Endpoint, state), State::Pinned as u32);
        s.put32(3, offset_of!(Endpoint, reason), Reason::Ktls as u32);
        // Left over from a connection that had the record before.
        s.put32(3, offset_of!(Endpoint, tx_phase), 2);
        s.put64(3, offset_of!(Endpoint, tx_bytes), 5);
        let f = s.read("attached").unwrap();
        assert_eq!((f.path, f.endpoints.len()), ("auto", 2));
        let [on, off] = &f.endpoints[..] else { panic!() };
        assert_eq!((on.path(), on.reason(false), on.cookie, on.doorbells), ("shm", None, 77, 3));
        assert_eq!(
            on.tx,
            Direction { path: "shm", phase: "ring", bytes: 640, messages: 10, switched_up_at: Some(256) }
        );
        assert_eq!((on.rx.path, on.rx.phase, on.rx.switched_up_at), ("kernel", "transit", None));
        assert_eq!((off.path(), off.tx.phase, off.tx.bytes), ("kernel", "native", 0));
        assert_eq!(off.reason(false).unwrap().0, "ktls");
    }

    #[test]
    fn a_ring_that_leads_to_a_zstackd_is_path_zstack_and_its_own_end_is_not() {
        let mut s = Synthetic::new(3);
        for (i, (stands_in, phase)) in
            [(layout::PEER_STANDS_IN, 1), (layout::STANDS_IN, 1), (layout::PEER_STANDS_IN, 0)].iter().enumerate()
        {
            s.put32(i, offset_of!(Endpoint, state), State::Attached as u32);
            s.put32(i, offset_of!(Endpoint, tx_phase), *phase);
            s.put32(i, offset_of!(Endpoint, stands_in), *stands_in);
        }
        s.put(offset_of!(FamilyHeader, path), &(ConfiguredPath::Zstack as u32).to_ne_bytes());
        let f = s.read("zstack").unwrap();
        assert_eq!(f.path, "zstack");
        assert_eq!(f.endpoints.iter().map(Record::path).collect::<Vec<_>>(), ["zstack", "shm", "kernel"]);
        assert_eq!(f.endpoints[0].reason(false), None);
    }

    #[test]
    fn a_ring_phase_counts_only_while_attached() {
        let mut s = Synthetic::new(1);
        s.put32(0, offset_of!(Endpoint, state), State::Pinned as u32);
        s.put32(0, offset_of!(Endpoint, rx_phase), 2);
        assert_eq!(s.read("phase").unwrap().endpoints[0].path(), "kernel");
    }

    #[test]
    fn connections_that_do_not_say_why_get_the_reason_of_their_state() {
        let mut s = Synthetic::new(3);
        s.put32(0, offset_of!(Endpoint, state), State::Eligible as u32);
        s.put32(1, offset_of!(Endpoint, state), State::Attached as u32);
        s.put32(2, offset_of!(Endpoint, state), State::Pinned as u32);
        s.put32(2, offset_of!(Endpoint, reason), 9999);
        let keys: Vec<_> = s.read("reasons").unwrap().endpoints.iter().map(|e| e.reason(false).unwrap().0).collect();
        assert_eq!(keys, ["young", "pending", "unknown-9999"]);
    }

    #[test]
    fn damage_is_reported_and_bounded() {
        assert!(Synthetic(vec![0; 4096]).read("zero").unwrap_err().contains("not a family"));
        assert!(Synthetic(vec![]).read("empty").unwrap_err().contains("short"));
        let mut s = Synthetic::new(0);
        s.put(offset_of!(FamilyHeader, version), &99u32.to_ne_bytes());
        assert!(s.read("version").unwrap_err().contains("99"));
        let mut s = Synthetic::new(2);
        s.put(offset_of!(FamilyHeader, high), &u32::MAX.to_ne_bytes());
        assert!(s.read("high").unwrap_err().contains("short"));
        assert!(read(Path::new("/dev/null")).is_err());
    }

    #[test]
    fn a_disabled_family_says_why() {
        let mut s = Synthetic::new(0);
        s.put(offset_of!(FamilyHeader, disabled), &(Reason::NoRegistry as u32).to_ne_bytes());
        s.put(offset_of!(FamilyHeader, path), &2u32.to_ne_bytes());
        let f = s.read("disabled").unwrap();
        assert_eq!((f.path, f.disabled.unwrap().0.as_str()), ("kernel", "no-registry"));
    }
}
