//! How often a login may fail. Pure: `now` comes in.
//!
//! Guessing one user's password from one address is stopped after a few failures; trying many users from one address after
//! ten times as many. Another user of the same address is not in the way of the first, and a right password forgives.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::quota::Origin;

/// Keys that are remembered, each with a user name as long as a file may have it; beyond, the one that is forgotten anyway
/// the soonest goes.
const KEYS_MAX: usize = 8_192;
const MINUTE: Duration = Duration::from_secs(60);
/// How much more often an address may fail than one of its users.
const USERS: u32 = 10;

/// Failures so far, as the instant at which all are forgiven: each puts it off.
#[derive(Debug)]
pub(crate) struct Attempts {
    per_minute: u32,
    forgiven_at: HashMap<Key, Instant>,
    by_time: BTreeSet<(Instant, Key)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    origin: Origin,
    /// `None`: all of the address.
    user: Option<Arc<str>>,
}

impl Attempts {
    /// `per_minute` failures for an address and user; 0: no bound.
    pub(crate) fn new(per_minute: u32) -> Self {
        Self { per_minute, forgiven_at: HashMap::new(), by_time: BTreeSet::new() }
    }

    /// Whether one more may be made.
    pub(crate) fn allow(&self, origin: Origin, user: &Arc<str>, now: Instant) -> bool {
        let is_spent = |key: Key| {
            let put_off = self.cost(&key);
            self.forgiven_at.get(&key).is_some_and(|at| at.saturating_duration_since(now) + put_off > MINUTE)
        };
        self.per_minute == 0 || !(is_spent(Key::of(origin, user)) || is_spent(Key { origin, user: None }))
    }

    /// One was made in vain.
    pub(crate) fn handle_failure(&mut self, origin: Origin, user: &Arc<str>, now: Instant) {
        if self.per_minute == 0 {
            return;
        }
        self.put_off(Key::of(origin, user), now);
        self.put_off(Key { origin, user: None }, now);
    }

    /// The right password: whoever mistyped it before may do so again.
    pub(crate) fn handle_success(&mut self, origin: Origin, user: &Arc<str>) {
        let key = Key::of(origin, user);
        if let Some(at) = self.forgiven_at.remove(&key) {
            self.by_time.remove(&(at, key));
        }
    }

    fn put_off(&mut self, key: Key, now: Instant) {
        let before = self.forgiven_at.get(&key).copied();
        let at = before.unwrap_or(now).max(now) + self.cost(&key);
        if let Some(before) = before {
            self.by_time.remove(&(before, key.clone()));
        }
        self.forgiven_at.insert(key.clone(), at);
        self.by_time.insert((at, key));
        while self.by_time.len() > KEYS_MAX || self.by_time.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, forgotten)) = self.by_time.pop_first() else { return };
            self.forgiven_at.remove(&forgotten);
        }
    }

    fn cost(&self, key: &Key) -> Duration {
        let per_minute = if key.user.is_some() { self.per_minute } else { self.per_minute.saturating_mul(USERS) };
        MINUTE / per_minute.max(1)
    }
}

impl Key {
    fn of(origin: Origin, user: &Arc<str>) -> Self {
        Self { origin, user: Some(user.clone()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    #[test]
    fn after_so_many_failures_in_a_minute_no_more_are_allowed_until_some_are_forgiven() {
        let (mut attempts, now) = (Attempts::new(3), start());
        for _ in 0..3 {
            assert!(attempts.allow(origin(1), &user("a"), now));
            attempts.handle_failure(origin(1), &user("a"), now);
        }
        assert!(!attempts.allow(origin(1), &user("a"), now));
        assert!(!attempts.allow(origin(1), &user("a"), now + Duration::from_secs(19)));
        assert!(attempts.allow(origin(1), &user("a"), now + Duration::from_secs(20)));
    }

    #[test]
    fn other_users_and_other_addresses_are_not_concerned() {
        let (mut attempts, now) = (Attempts::new(1), start());
        attempts.handle_failure(origin(1), &user("a"), now);
        assert!(!attempts.allow(origin(1), &user("a"), now));
        assert!(attempts.allow(origin(1), &user("b"), now));
        assert!(attempts.allow(origin(2), &user("a"), now));
    }

    #[test]
    fn an_address_that_tries_one_user_after_the_other_is_stopped_too() {
        let (mut attempts, now) = (Attempts::new(2), start());
        for name in 0..20 {
            attempts.handle_failure(origin(1), &user(&name.to_string()), now);
        }
        assert!(!attempts.allow(origin(1), &user("a new one"), now));
        assert!(attempts.allow(origin(2), &user("a new one"), now));
    }

    #[test]
    fn the_right_password_forgives_this_user() {
        let (mut attempts, now) = (Attempts::new(1), start());
        attempts.handle_failure(origin(1), &user("a"), now);
        attempts.handle_success(origin(1), &user("a"));
        assert!(attempts.allow(origin(1), &user("a"), now));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_forgotten_in_time() {
        let (mut attempts, now) = (Attempts::new(10), start());
        for number in 0..20_000 {
            attempts.handle_failure(origin(number), &user("a"), now);
        }
        assert_eq!(attempts.forgiven_at.len(), KEYS_MAX);
        assert_eq!(attempts.by_time.len(), KEYS_MAX);
        attempts.handle_failure(origin(1), &user("a"), now + Duration::from_secs(120));
        assert_eq!(attempts.forgiven_at.len(), 2);
    }

    #[test]
    fn zero_is_no_bound() {
        let (mut attempts, now) = (Attempts::new(0), start());
        for _ in 0..1_000 {
            attempts.handle_failure(origin(1), &user("a"), now);
        }
        assert!(attempts.allow(origin(1), &user("a"), now));
    }

    fn origin(number: u32) -> Origin {
        IpAddr::V4(number.into()).into()
    }

    fn user(name: &str) -> Arc<str> {
        name.into()
    }

    #[expect(clippy::disallowed_methods, reason = "some instant to count from")]
    fn start() -> Instant {
        Instant::now()
    }
}
