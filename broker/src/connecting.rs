//! Connections that are not through TLS, WebSocket and CONNECT yet. They cost memory and prove nothing, so there may only
//! be so many. Pure but for its lock: `now` comes in.
//!
//! At the bound somebody has to go, and whoever holds the most pays: an address that floods us is in its own way, not in
//! that of others. Within one address the oldest goes, but not before it had a fair time: when a whole fleet comes back at
//! once, those that are in the middle of a handshake finish it, and those that come too early try again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::broker::lock;
use crate::quota::Origin;

/// How long nobody has to go for another one of the same address.
const FAIR_TIME: Duration = Duration::from_secs(2);

/// Those that wait. `C` names a connection.
#[derive(Debug)]
pub(crate) struct Connecting<C> {
    max: usize,
    waiting: Mutex<Waiting<C>>,
}

#[derive(Debug)]
struct Waiting<C> {
    /// By address (`None`: of this machine), then by number, which rises with the time of arrival.
    by_origin: BTreeMap<Option<Origin>, BTreeMap<u64, (Instant, C)>>,
    origins: HashMap<u64, Option<Origin>>,
}

/// What came of one more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Entered<C> {
    /// It is in.
    In,
    /// It is in, and this one has to go.
    InsteadOf(C),
    /// It has to go itself.
    Refused,
}

impl<C> Connecting<C> {
    pub(crate) fn new(max: usize) -> Self {
        let waiting = Waiting { by_origin: BTreeMap::new(), origins: HashMap::new() };
        Self { max: max.max(1), waiting: Mutex::new(waiting) }
    }

    /// One more.
    pub(crate) fn enter(&self, number: u64, origin: Option<Origin>, connection: C, now: Instant) -> Entered<C> {
        let mut waiting = lock(&self.waiting);
        let mut entered = Entered::In;
        if waiting.origins.len() >= self.max {
            match waiting.make_room(origin, now) {
                Some(gone) => entered = Entered::InsteadOf(gone),
                None => return Entered::Refused,
            }
        }
        waiting.origins.insert(number, origin);
        waiting.by_origin.entry(origin).or_default().insert(number, (now, connection));
        entered
    }

    /// It is through, or gone. False: it had to go before.
    pub(crate) fn leave(&self, number: u64) -> bool {
        lock(&self.waiting).take(number).is_some()
    }

    pub(crate) fn len(&self) -> usize {
        lock(&self.waiting).origins.len()
    }
}

impl<C> Waiting<C> {
    fn make_room(&mut self, newcomer: Option<Origin>, now: Instant) -> Option<C> {
        let (&origin, all) = self.by_origin.iter().max_by_key(|(origin, all)| (all.len(), **origin == newcomer))?;
        let (&oldest, (since, _)) = all.first_key_value()?;
        let had_its_time = now.saturating_duration_since(*since) >= FAIR_TIME;
        if !had_its_time && (origin == newcomer || all.len() == 1) {
            return None;
        }
        self.take(oldest)
    }

    fn take(&mut self, number: u64) -> Option<C> {
        let origin = self.origins.remove(&number)?;
        let all = self.by_origin.get_mut(&origin)?;
        let taken = all.remove(&number);
        if all.is_empty() {
            self.by_origin.remove(&origin);
        }
        taken.map(|(_, connection)| connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    #[test]
    fn up_to_the_bound_everybody_waits() {
        let (connecting, now) = (Connecting::new(2), start());
        assert_eq!(connecting.enter(1, origin(1), 'a', now), Entered::In);
        assert_eq!(connecting.enter(2, origin(1), 'b', now), Entered::In);
        assert!(connecting.leave(1));
        assert!(!connecting.leave(1));
        assert_eq!(connecting.enter(3, origin(1), 'c', now), Entered::In);
        assert_eq!(connecting.len(), 2);
    }

    #[test]
    fn whoever_holds_the_most_makes_room_for_another_address_at_once() {
        let (connecting, now) = (Connecting::new(3), start());
        connecting.enter(1, origin(9), 'x', now);
        connecting.enter(2, origin(1), 'a', now);
        connecting.enter(3, origin(1), 'b', now);
        assert_eq!(connecting.enter(4, origin(2), 'c', now), Entered::InsteadOf('a'));
        assert!(!connecting.leave(2));
        assert!(connecting.leave(1) && connecting.leave(3) && connecting.leave(4));
    }

    #[test]
    fn an_address_makes_room_for_itself_when_its_oldest_had_its_time() {
        let (connecting, now) = (Connecting::new(2), start());
        connecting.enter(1, origin(1), 'a', now);
        connecting.enter(2, origin(1), 'b', now);
        assert_eq!(connecting.enter(3, origin(1), 'c', now + FAIR_TIME / 2), Entered::Refused);
        assert_eq!(connecting.enter(4, origin(1), 'd', now + FAIR_TIME), Entered::InsteadOf('a'));
    }

    #[test]
    fn of_many_addresses_with_one_each_nobody_has_to_go_before_its_time() {
        let (connecting, now) = (Connecting::new(2), start());
        connecting.enter(1, origin(1), 'a', now);
        connecting.enter(2, origin(2), 'b', now);
        assert_eq!(connecting.enter(3, origin(3), 'c', now), Entered::Refused);
        assert!(matches!(connecting.enter(4, origin(3), 'd', now + FAIR_TIME), Entered::InsteadOf(_)));
    }

    #[test]
    fn a_flood_from_one_address_does_not_keep_another_one_out() {
        let (connecting, now) = (Connecting::new(100), start());
        for number in 0..10_000 {
            connecting.enter(number, origin(1), number, now);
        }
        for number in 10_000..10_040 {
            let last = u32::try_from(number).expect("small");
            assert!(matches!(connecting.enter(number, origin(last), number, now), Entered::InsteadOf(_)));
        }
        assert_eq!(connecting.len(), 100);
    }

    #[expect(clippy::unnecessary_wraps, reason = "as it is passed on")]
    fn origin(number: u32) -> Option<Origin> {
        Some(IpAddr::V4(number.into()).into())
    }

    #[expect(clippy::disallowed_methods, reason = "some instant to count from")]
    fn start() -> Instant {
        Instant::now()
    }
}
