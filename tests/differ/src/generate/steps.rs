//! The random steps: for each kind what an actor is asked to do, if the model says that it can be done now.

use super::*;

impl Generator {
    /// Room for more bytes from `end`.
    fn room(&self, end: usize) -> i64 {
        let x = &self.model.ends[end];
        if x.tiny || x.messages > 50 {
            return 0;
        }
        self.options.budget - self.model.under_way(Model::peer(end))
    }

    pub(super) fn transmit(&mut self, t: &str, v: usize, end: usize) -> Option<String> {
        let room = self.room(end);
        let max = room.min(if self.rng.chance(15) { 20_000 } else { 4000 });
        if max < 1 {
            return None;
        }
        let n = if self.rng.chance(3) { 0 } else { self.rng.length(max as usize) };
        let seed = self.seed();
        let flags = [0, libc::MSG_NOSIGNAL, libc::MSG_DONTWAIT, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT];
        let flags = *self.rng.pick(&flags);
        let parts = format!("{},{},{}", n / 3, n / 3, n - n / 3 * 2);
        Some(match self.rng.below(12) {
            0..=1 => format!("{t} write v{v} {n} {seed} 0"),
            2..=4 => format!("{t} send v{v} {n} {seed} {flags}"),
            5 => format!("{t} sendto v{v} {n} {seed} {flags}"),
            6..=7 => format!("{t} writev v{v} {parts} {seed} 0"),
            8 => format!("{t} sendmsg v{v} {parts} {seed} {flags}"),
            9 => format!("{t} sendmmsg v{v} {parts} {seed} {flags}"),
            // Whether MSG_MORE holds bytes back from somebody who already waits is not promised.
            10 if !self.model.has_reader(Model::peer(end)) && !self.model.has_poller(Model::peer(end)) => {
                format!("{t} sendmore v{v} {} {} {seed}", n / 2, n - n / 2)
            }
            _ if self.has("sendfile") => format!("{t} sendfile v{v} {n} {}", self.rng.below(5000)),
            _ => return None,
        })
    }

    /// True if a read of `end` that blocks can be set free again by somebody else.
    fn may_block(&mut self, t: &str, end: usize) -> bool {
        let free = self.model.free_holder(Model::peer(end), t).is_some() || self.model.free_holder(end, t).is_some();
        free && !self.model.has_poller(end) && self.rng.chance(70)
    }

    pub(super) fn receive(&mut self, t: &str, v: usize, end: usize) -> Option<String> {
        if self.model.has_reader(end) {
            return None;
        }
        let x = self.model.ends[end].clone();
        let under_way = self.model.under_way(end);
        let n = if self.rng.chance(3) { 0 } else { self.rng.length(20_000) };
        let mut flags = 0;
        for (flag, percent) in [(libc::MSG_PEEK, 15), (libc::MSG_WAITALL, 15), (libc::MSG_DONTWAIT, 30)] {
            if self.rng.chance(percent) {
                flags |= flag;
            }
        }
        let over = x.rd_shut
            || x.broken
            || self.model.ends[Model::peer(end)].wr_shut
            || self.model.holders(What::End(Model::peer(end))).is_empty();
        let name = *self.rng.pick(&["read", "recv", "recv", "recvfrom", "readv", "recvmsg", "recvmmsg"]);
        // read and readv have no flags.
        let plain = name.starts_with("read");
        let flags = if plain { 0 } else { flags };
        let need = if flags & libc::MSG_WAITALL != 0 { n as i64 } else { x.lowat.min(n) as i64 };
        let may_wait = flags & libc::MSG_DONTWAIT == 0 && !x.nonblock && under_way < need.max(1) && !over;
        if may_wait && !x.timed && !self.may_block(t, end) {
            return None;
        }
        // A peek that waits for more than there is would be woken by every arrival: fine, but it shares
        // the end with nobody.
        let timed = if may_wait && x.timed { "~" } else { "" };
        let parts = if name == "readv" || name == "recvmsg" || name == "recvmmsg" {
            format!("{},{}", n / 2, n - n / 2)
        } else {
            n.to_string()
        };
        if self.rng.chance(6) {
            return Some(format!("{t} drain v{v}"));
        }
        if self.rng.chance(4) && self.has("trunc") {
            return Some(format!("{t} trunc v{v} {n}"));
        }
        Some(format!("{t} {timed}{name} v{v} {parts} {flags}"))
    }

    pub(super) fn poll(&mut self, t: &str, ends: &[(usize, usize)]) -> Option<String> {
        let mut chosen: Vec<(usize, usize)> = Vec::new();
        for _ in 0..self.rng.range(1, 3) {
            chosen.push(*self.rng.pick(ends));
        }
        let reader = chosen.iter().any(|(_, e)| self.model.has_reader(*e));
        let other = chosen.iter().all(|(_, e)| {
            self.model.free_holder(Model::peer(*e), t).is_some() || self.model.free_holder(*e, t).is_some()
        });
        let timeout = match self.rng.below(10) {
            0..=4 => 0,
            5 => 15,
            _ if reader || !other => 0,
            7 => 60_000,
            _ => -1,
        };
        let timed = if timeout == 15 { "~" } else { "" };
        if self.rng.chance(35) {
            let kind = *self.rng.pick(&["select", "pselect"]);
            let list: Vec<String> = chosen
                .iter()
                .map(|(s, _)| format!("v{s}:{}", self.rng.pick(&["r", "rw", "r", "re", "w", "rwe"])))
                .collect();
            return Some(format!("{t} {timed}select {kind} {timeout} {}", list.join(",")));
        }
        let kind = *self.rng.pick(&["poll", "poll", "ppoll", "ppollmask"]);
        let events = [1, 1, 4, 5, 0x2001, 0x2000, 0, 3, 0x45, 0x141];
        let mut list: Vec<String> = chosen.iter().map(|(s, _)| format!("v{s}:{}", self.rng.pick(&events))).collect();
        if self.rng.chance(10) && self.has("negative") {
            list.push("-:1".into());
        }
        Some(format!("{t} {timed}poll {kind} {timeout} {}", list.join(",")))
    }

    pub(super) fn epoll(&mut self, t: &str, process: &str, v: usize, end: usize) -> Option<String> {
        let sets: Vec<(usize, usize)> = self
            .model
            .processes
            .get(process)?
            .slots
            .iter()
            .filter_map(|(s, w)| if let What::Epoll(e) = w { Some((*s, *e)) } else { None })
            .collect();
        if sets.is_empty() || self.rng.chance(5) {
            let s = self.model.fresh(process);
            return (s < 60).then(|| format!("{t} epcreate v{s}"));
        }
        let (es, ep) = *self.rng.pick(&sets);
        match self.rng.below(10) {
            0..=3 => {
                let base = *self.rng.pick(&[1u32, 1, 5, 4, 0x2001, 0x2005, 0]);
                let extra = match self.rng.below(8) {
                    0..=2 => 0,
                    3..=4 => libc::EPOLLET as u32,
                    5..=6 => libc::EPOLLONESHOT as u32,
                    _ => (libc::EPOLLET | libc::EPOLLONESHOT) as u32,
                };
                let command = *self.rng.pick(&["add", "add", "mod", "mod", "del"]);
                let events = if command == "add" && self.rng.chance(12) && self.has("exclusive") {
                    base & 5 | libc::EPOLLEXCLUSIVE as u32
                } else {
                    base | extra
                };
                // A change while somebody waits may or may not wake him in time: only when none does.
                if self.model.has_waiter(ep) || (command != "del" && self.model.has_reader(end)) {
                    return None;
                }
                Some(format!("{t} epctl v{es} {command} v{v} {events} {}", es * 100 + v))
            }
            4 if sets.len() > 1 && self.rng.chance(40) && self.has("nested") => {
                let (inner, i) = *self.rng.pick(&sets);
                if self.model.has_waiter(ep) || self.model.has_waiter(i) || i <= ep {
                    return None;
                }
                let command = *self.rng.pick(&["add", "add", "del"]);
                Some(format!("{t} epctl v{es} {command} v{inner} {} {}", 1, 5000 + inner))
            }
            _ => {
                if self.model.has_waiter(ep) {
                    return None;
                }
                let members: Vec<usize> = self.model.epolls[ep].values().copied().collect();
                let reader = members.iter().any(|e| self.model.has_reader(*e));
                let other =
                    !members.is_empty() && members.iter().any(|e| self.model.free_holder(Model::peer(*e), t).is_some());
                let timeout = match self.rng.below(10) {
                    0..=4 => 0,
                    5 => 15,
                    _ if reader || !other => 0,
                    6..=7 => 60_000,
                    _ => -1,
                };
                let timed = if timeout == 15 { "~" } else { "" };
                let kind = *self.rng.pick(&["wait", "wait", "pwait", "pwait2"]);
                Some(format!("{t} {timed}epwait v{es} {timeout} {kind} 32"))
            }
        }
    }

    pub(super) fn ask(&mut self, t: &str, v: usize) -> Option<String> {
        Some(match self.rng.below(10) {
            0..=4 => format!("{t} fionread v{v}"),
            5 => format!("{t} outq v{v}"),
            6 => format!("{t} names v{v}"),
            7 => format!("{t} getfl v{v}"),
            8 => format!("{t} stat v{v}"),
            _ => format!(
                "{t} getopt v{v} {}",
                self.rng.pick(&[
                    "error",
                    "error",
                    "nodelay",
                    "lowat",
                    "type",
                    "acceptconn",
                    "domain",
                    "usertimeout",
                    "inq"
                ])
            ),
        })
    }

    pub(super) fn configure(&mut self, t: &str, v: usize, end: usize) -> Option<String> {
        if self.model.has_reader(end) || self.model.has_poller(end) {
            return None;
        }
        Some(match self.rng.below(10) {
            0..=2 => {
                let on = i32::from(!self.model.ends[end].nonblock);
                format!("{t} nonblock v{v} {on} {}", self.rng.pick(&["fcntl", "ioctl"]))
            }
            3 => format!("{t} setopt v{v} rcvtimeo {}", self.rng.pick(&[20, 60_000, 0, 0])),
            4 => format!("{t} setopt v{v} sndtimeo {}", self.rng.pick(&[20, 0])),
            5 if self.has("lowat") => format!("{t} setopt v{v} lowat {}", self.rng.pick(&[1, 1, 10, 500])),
            6 => format!("{t} setopt v{v} keepalive 1"),
            // Longer than any scenario: what it changes is how much a ring may hold.
            7 if self.has("usertimeout") => {
                format!("{t} setopt v{v} usertimeout {}", self.rng.pick(&[60_000, 60_000, 0]))
            }
            8 if self.has("inq") => format!("{t} setopt v{v} inq {}", self.rng.pick(&[1, 1, 0])),
            _ => format!("{t} setopt v{v} quickack 1"),
        })
    }

    pub(super) fn copy(&mut self, t: &str, process: &str, v: usize) -> Option<String> {
        let w = self.model.fresh(process);
        if w >= 60 {
            return None;
        }
        Some(match self.rng.below(6) {
            0..=1 => format!("{t} dup v{v} v{w}"),
            2 => format!("{t} dupfd v{v} v{w} {} {}", self.rng.pick(&[0, 3, 100, 500]), self.rng.below(2)),
            3 => format!("{t} dup2 v{v} v{w} {}", self.rng.range(200, 260)),
            4 => format!("{t} dup3 v{v} v{w} {}", self.rng.range(300, 360)),
            _ => {
                // A descriptor that is closed under a poll or select: "the result is unspecified" (select(2)).
                let ends: Vec<usize> = self
                    .model
                    .processes
                    .get(process)?
                    .slots
                    .iter()
                    .filter(|(s, w)| matches!(w, What::End(e) if !self.model.has_poller(*e)) && **s != v)
                    .map(|(s, _)| *s)
                    .collect();
                if ends.is_empty() || self.rng.chance(50) {
                    return None;
                }
                let onto = *self.rng.pick(&ends);
                format!("{t} {} v{v} v{w} v{onto}", self.rng.pick(&["dup2", "dup3"]))
            }
        })
    }

    pub(super) fn finish(&mut self, t: &str, v: usize, end: usize) -> Option<String> {
        let several = self.model.holders(What::End(end)).len() > 1;
        let polled = self.model.has_poller(end);
        Some(match self.rng.below(10) {
            0..=3 if self.rng.chance(60) => format!("{t} shutdown v{v} {}", self.rng.pick(&[0, 1, 1, 1, 2])),
            4..=6 if polled => return None,
            4..=5 if several => format!("{t} close v{v}"),
            6 if self.rng.chance(30) => format!("{t} close v{v}"),
            7 if self.rng.chance(20) => format!("{t} setopt v{v} linger 0"),
            _ => return None,
        })
    }

    /// Both ends at once: more bytes than any buffer holds, or another warm-up.
    pub(super) fn transfer(&mut self, t: &str, v: usize, end: usize) -> Option<String> {
        if !self.model.quiet(end) {
            return None;
        }
        let peer = Model::peer(end);
        let (other, w) = self.model.free_holder(peer, t)?;
        let seed = self.seed();
        let (here, there) = (self.model.under_way(end), self.model.under_way(peer));
        if here == 0 && there == 0 && self.rng.chance(40) {
            let how = *self.rng.pick(&["read", "recv", "waitall", "poll"]);
            let rounds = self.rng.range(3, 80);
            return Some(format!(
                "{t} pingpong v{v} {rounds} {seed} c {how} || {other} pingpong v{w} {rounds} {seed} s {how}"
            ));
        }
        let size = |rng: &mut Rng| if rng.chance(30) { 0 } else { rng.length(300_000) as i64 };
        let (forth, back) = (size(&mut self.rng), size(&mut self.rng));
        let hows = ["poll", "eplt", "epet", "epone", "select"];
        let (how, other_how) = (*self.rng.pick(&hows), *self.rng.pick(&hows));
        // What was under way before comes first.
        let (rx, rx_other) = (back + here, forth + there);
        Some(format!(
            "{t} duplex v{v} {forth} {rx} {seed} {how} || {other} duplex v{w} {back} {rx_other} {} {other_how}",
            seed + 1
        ))
    }

    pub(super) fn process(&mut self, t: &str, process: &str, v: usize, end: usize) -> Option<String> {
        let child = format!("C{}", self.children);
        match self.rng.below(12) {
            0..=3 if self.children < 4 && self.has("fork") => {
                self.children += 1;
                let inside = self.model.processes.get(process)?.inside;
                let spaces = if !inside && self.rng.chance(30) { self.spaces() } else { "-" };
                Some(match spaces {
                    "-" => format!("{t} fork {child}.0"),
                    spaces => format!("{t} forkin {child}.0 {spaces}"),
                })
            }
            4..=5
                if self.has("exec")
                    && self.loses_nothing(process)
                    && !self.model.processes.get(process)?.has_parents_set =>
            {
                let preload = i32::from(self.rng.chance(75));
                let alone = |e: &usize| self.model.holders(What::End(*e)).iter().all(|(p, _)| p == process);
                // To an image with the library unread bytes are handed on, as a copy where others hold the connection; an
                // error is not ("Known weaknesses").
                let leaves = self
                    .model
                    .ends_of(process)
                    .iter()
                    .all(|e| !self.model.ends[*e].broken && (self.model.can_leave(*e) || preload == 1 && alone(e)));
                leaves.then(|| format!("{t} exec {process}.0 {preload}"))
            }
            6..=7 if self.children < 4 && self.has("pspawn") => {
                if !self.model.ends_of(process).iter().all(|e| self.model.can_leave(*e)) {
                    return None;
                }
                self.children += 1;
                let preload = i32::from(self.rng.chance(75));
                Some(format!("{t} pspawn {child}.0 v{v} {} {preload}", self.rng.pick(&[0, 1, 7])))
            }
            8..=10 => {
                let p = self.model.processes.get(process)?;
                let n = p.threads;
                (n < 6).then(|| format!("{t} thread {process}.{}", n + 10))
            }
            _ if self.model.processes.len() > 2
                && self.model.processes.get(process)?.init.as_deref() != Some(process)
                && self.model.holders(What::End(end)).len() > 1
                && !self.model.ends_piecemeal(process) =>
            {
                Some(format!("{t} exit {}", self.rng.pick(&["exit", "_exit"])))
            }
            _ => None,
        }
    }

    /// Passes a connection to another process, or takes one that was passed.
    pub(super) fn mail(&mut self, t: &str, process: &str) -> Option<String> {
        if !self.has("scm") {
            return None;
        }
        if self.model.mail.iter().any(|(to, _)| to == process) {
            let s = self.model.fresh(process);
            let flags = if self.rng.chance(30) { libc::MSG_CMSG_CLOEXEC } else { 0 };
            return (s < 60).then(|| format!("{t} urecv v{s} {flags}"));
        }
        let ends: Vec<usize> = self
            .model
            .processes
            .get(process)?
            .slots
            .iter()
            .filter(|(_, w)| matches!(w, What::End(e) if self.model.can_leave(*e)))
            .map(|(s, _)| *s)
            .collect();
        let others: Vec<String> = self.model.processes.keys().filter(|p| *p != process).cloned().collect();
        if ends.is_empty() || others.is_empty() {
            return None;
        }
        let v = *self.rng.pick(&ends);
        Some(format!("{t} usend v{v} {}", self.rng.pick(&others)))
    }

    pub(super) fn faults(&mut self, t: &str, v: usize, end: usize) -> Option<String> {
        if self.model.has_reader(end) {
            return None;
        }
        if self.rng.chance(40) {
            let calls = ["read", "recv", "send", "close", "dup", "shutdown", "poll"];
            return Some(format!("{t} badfd {} {}", self.rng.pick(&[-1, 777, 100_000]), self.rng.pick(&calls)));
        }
        if self.rng.chance(15) {
            return Some(format!("{t} closeunknown"));
        }
        // EFAULT halfway through queued data may or may not consume what was copied: only plain cases.
        let kinds = [
            "recv",
            "peek",
            "send",
            "recvmsg",
            "sendmsg",
            "recviov",
            "sendiov",
            "writev",
            "iovcount",
            "fionread",
            "poll",
            "getsockopt",
        ];
        Some(format!("{t} fault v{v} {}", self.rng.pick(&kinds)))
    }

    /// Signals, alarms, sudden death.
    pub(super) fn disturb(&mut self) -> Option<String> {
        let blocked: Vec<String> = self.model.blocked.keys().cloned().collect();
        match self.rng.below(10) {
            0..=4 if !blocked.is_empty() => {
                let t = self.rng.pick(&blocked).clone();
                // A stop ends the kernel's sleep, and if a handler has run by the time that the process goes on, the call fails with
                // EINTR, although bytes have come meanwhile; under the library it returns them, as the kernel does to one that was
                // not stopped.
                let reads = matches!(self.model.blocked.get(&t), Some(Waiting::Read(_)));
                if reads && self.model.stopped.contains(process_of(&t)) {
                    return None;
                }
                // A handler with SA_RESTART or without decides whether the call goes on.
                Some(format!("@ signal {t} {}", self.rng.pick(&[libc::SIGUSR1, libc::SIGALRM])))
            }
            5 if !self.model.idle.is_empty() => {
                let idle = self.model.idle.clone();
                let t = self.rng.pick(&idle).clone();
                let mode = self.rng.pick(&["restart", "plain", "ignore"]);
                Some(format!("{t} sigact {} {mode}", libc::SIGUSR1))
            }
            6 if !self.model.idle.is_empty() => {
                let idle = self.model.idle.clone();
                Some(format!("{} handled", self.rng.pick(&idle)))
            }
            7 => {
                let idle = self.model.idle.clone();
                let t = self
                    .rng
                    .pick(&idle.iter().collect::<Vec<_>>().iter().map(|s| s.as_str()).chain([""]).collect::<Vec<_>>())
                    .to_string();
                let p = self.model.processes.get(process_of(&t))?;
                let ends: Vec<(usize, usize)> = p
                    .slots
                    .iter()
                    .filter_map(|(s, w)| if let What::End(e) = w { Some((*s, *e)) } else { None })
                    .collect();
                let (v, e) = *ends.get(self.rng.below(ends.len()))?;
                // The timer's signal goes to any thread that does not block it: only safe when there is one.
                let alone = self
                    .model
                    .idle
                    .iter()
                    .chain(self.model.blocked.keys())
                    .filter(|x| process_of(x) == process_of(&t))
                    .count()
                    == 1;
                let x = &self.model.ends[e];
                let ready = x.nonblock || x.timed || self.model.has_reader(e) || self.model.under_way(e) > 0;
                (alone && !ready).then(|| format!("{t} ~alarm 15 v{v}"))
            }
            8 if self.model.processes.len() > 1 && self.has("kill") => {
                let names: Vec<String> = self.model.processes.keys().cloned().collect();
                let name = self.rng.pick(&names).clone();
                if self.model.ends_piecemeal(&name) {
                    return None;
                }
                // One that shares all that it has is killed more often.
                let shared = |e: &usize| self.model.holders(What::End(*e)).len() > 1;
                let shares = self.model.ends_of(&name).iter().all(shared);
                self.rng.chance(if shares { 60 } else { 15 }).then(|| format!("@ kill {name}"))
            }
            9 if self.has("stop") => {
                let running =
                    self.model.processes.keys().filter(|p| !self.model.stopped.contains(*p) && self.may_stop(p));
                let names: Vec<String> = running.cloned().collect();
                (names.len() > 1).then(|| format!("@ stop {}", self.rng.pick(&names)))
            }
            _ => None,
        }
    }
}
