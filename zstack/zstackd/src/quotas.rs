//! How many connections may end here: of all, of one user, and of those that are being made. One for all workers.

use crate::config::Config;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Connections that end here, and those of them that are being made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Count {
    open: u32,
    pending: u32,
}

#[derive(Debug, Default)]
struct Counts {
    all: Count,
    by_user: HashMap<u32, Count>,
}

/// Why there is no room for one more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Full {
    /// There are as many as the configuration allows, or as many that are being made.
    All,
    /// Its user has as many as he may.
    User,
}

/// The bounds, and what there is. Workers that look at the same time may each find the same room: there may be as many connections more as there
/// are other workers.
#[derive(Debug)]
pub struct Quotas {
    most: u32,
    most_of_user: u32,
    most_pending: u32,
    counts: Mutex<Counts>,
}

impl Quotas {
    /// The configuration's.
    pub fn new(config: &Config) -> Quotas {
        Quotas {
            most: config.connections,
            most_of_user: config.connections_per_user,
            most_pending: config.pending,
            counts: Mutex::default(),
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is no room for one more of this user's.
    pub fn look(&self, user: u32) -> Option<Full> {
        let counts = self.counts();
        let of_user = counts.by_user.get(&user).copied().unwrap_or_default();
        if counts.all.open >= self.most || counts.all.pending >= self.most_pending {
            return Some(Full::All);
        }
        // A user may have as many in the making as there is room left for: half of all if he is alone, and others find room beside him.
        let room = self.most_pending - counts.all.pending;
        (of_user.open >= self.most_of_user || of_user.pending >= room).then_some(Full::User)
    }

    /// No more connections are made at a time.
    pub fn is_crowded(&self) -> bool {
        self.counts().all.pending >= self.most_pending
    }

    fn count(&self, user: u32, with: impl Fn(&mut Count)) {
        let mut counts = self.counts();
        with(&mut counts.all);
        let of_user = counts.by_user.entry(user).or_default();
        with(of_user);
        if *of_user == Count::default() {
            counts.by_user.remove(&user);
        }
    }

    /// A connection of this user's ends here, and is being made.
    pub fn begun(&self, user: u32) {
        self.count(user, |count| {
            count.open += 1;
            count.pending += 1;
        });
    }

    /// It was made.
    pub fn made(&self, user: u32) {
        self.count(user, |count| count.pending -= 1);
    }

    /// It is over. `made`: it was made before.
    pub fn closed(&self, user: u32, made: bool) {
        self.count(user, |count| {
            count.open -= 1;
            count.pending -= u32::from(!made);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quotas(more: &str) -> Quotas {
        let text = format!("port = \"tap:w0\"\naddresses = [\"10.1.0.1/24\"]\n{more}");
        Quotas::new(&text.parse().unwrap())
    }

    #[test]
    fn there_is_room_for_so_many() {
        let quotas = quotas("connections = 3\nconnections-per-user = 1");
        let open = |user| {
            quotas.begun(user);
            quotas.made(user);
        };
        open(7);
        assert_eq!((quotas.look(7), quotas.look(8)), (Some(Full::User), None));
        open(8);
        open(9);
        assert_eq!(quotas.look(7), Some(Full::All));
        quotas.closed(7, true);
        assert_eq!(quotas.look(7), None);
        quotas.closed(8, true);
        quotas.closed(9, true);
        let counts = quotas.counts();
        assert!(counts.by_user.is_empty() && counts.all == Count::default());
    }

    /// However many a user begins, there is room for another one.
    #[test]
    fn no_user_takes_all_the_room_for_connections_in_the_making() {
        let all = quotas("pending = 100");
        let begin = |user| {
            let may = all.look(user).is_none();
            if may {
                all.begun(user);
            }
            may
        };
        assert_eq!((0..200).filter(|_| begin(1)).count(), 50);
        assert_eq!((0..200).filter(|_| begin(2)).count(), 25);
        assert!(!begin(1) && begin(3));
        (0..50).for_each(|_| all.closed(1, false));
        assert!(all.look(1).is_none() && all.counts().by_user.len() == 2);
        let one = quotas("pending = 1");
        assert_eq!(one.look(1), None);
        one.begun(1);
        assert_eq!(one.look(2), Some(Full::All));
    }
}
