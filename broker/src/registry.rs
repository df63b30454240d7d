//! Who holds which Client Identifier, and what is kept of clients that are away. Pure: `now` comes in.
//!
//! A Client Identifier has one holder at a time. A newcomer queues behind whoever is there, and the one before it is told
//! to stop (takeover); when that one has drained its outcomes it releases the identifier, and with it the session's
//! state, to the next in line. So a state is never in two hands, and a claim on storage never outlives its holder.
//!
//! ```text
//! claim ──▶ nobody there: granted with the state at rest
//!      └──▶ held: queued; the one in front is stopped ──release──▶ granted with the state it left
//! release ──▶ next in line, or at rest until it is resumed or expires ──▶ held by the caretaker, who closes it
//! ```
//!
//! The caretaker (see [`Registry::poll_due`]) publishes delayed Will Messages and closes sessions that have ended. It
//! holds the identifier meanwhile, so that a client which comes back just then waits for the end of its old session.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::session::{DelayedWill, SessionState};

/// From the end of a session until storage is told, and from a failure until it is told again. A client that comes back
/// within this closes its old session itself.
const CLOSE_AFTER: Duration = Duration::from_secs(1);

/// Clients by identifier. `C` names a connection.
#[derive(Debug)]
pub struct Registry<C> {
    clients: HashMap<Arc<str>, Client<C>>,
    /// When something of a client that is away is due.
    due: BTreeSet<(Instant, Arc<str>)>,
    /// Sessions that live on, by since when their client is away.
    away: BTreeSet<(Instant, Arc<str>)>,
    sessions_max: usize,
    sessions_dropped: u64,
}

#[derive(Debug)]
enum Client<C> {
    /// Connected, or about to be; the last in line is the newest.
    Held {
        holder: Holder<C>,
        line: VecDeque<C>,
    },
    AtRest(Rest),
}

#[derive(Debug)]
enum Holder<C> {
    Connection(C),
    Caretaker,
}

#[derive(Debug)]
struct Rest {
    state: SessionState,
    since: Instant,
    /// `None` lives for ever.
    ends_at: Option<Instant>,
}

/// What a claim led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Claim<C> {
    /// The claimant holds the identifier; this is what the session before left.
    Granted(Option<SessionState>),
    /// It will be granted by a `release`. The connection in front, when there is one, must be told to stop.
    Queued {
        /// Who is taken over; `None` while the caretaker closes an ended session.
        behind: Option<C>,
    },
}

/// What is due for a client that is away.
#[derive(Debug, PartialEq, Eq)]
pub enum Due {
    /// Publish this Will Message.
    Will(Arc<str>, Box<DelayedWill>),
    /// Have storage forget this session, then [`Registry::release`] it: with `None`, or with the state if that failed.
    Ended(Arc<str>, SessionState),
}

impl<C: Clone> Registry<C> {
    /// An empty one. At most `sessions_max` sessions are kept while their clients are away; beyond, the one that is away
    /// longest is ended.
    pub fn new(sessions_max: usize) -> Self {
        Self { clients: HashMap::new(), due: BTreeSet::new(), away: BTreeSet::new(), sessions_max, sessions_dropped: 0 }
    }

    /// Takes in a session that storage remembers from before a restart, as if its client left at `now`.
    pub fn restore(&mut self, client_id: Arc<str>, state: SessionState, now: Instant) {
        if !self.clients.contains_key(&client_id) {
            self.lay_to_rest(client_id, state, now);
        }
    }

    /// Who holds the identifier, or waits for it last.
    pub fn newest(&self, client_id: &Arc<str>) -> Option<&C> {
        match self.clients.get(client_id) {
            Some(Client::Held { holder, line }) => line.back().or(match holder {
                Holder::Connection(holder) => Some(holder),
                Holder::Caretaker => None,
            }),
            Some(Client::AtRest(_)) | None => None,
        }
    }

    /// `connection` wants to be the client.
    pub fn claim(&mut self, client_id: &Arc<str>, connection: C, now: Instant) -> Claim<C> {
        let behind = self.newest(client_id).cloned();
        match self.clients.get_mut(client_id) {
            Some(Client::Held { line, .. }) => {
                line.push_back(connection);
                Claim::Queued { behind }
            }
            Some(Client::AtRest(_)) | None => {
                let state = self.wake(client_id, now);
                self.hold(client_id.clone(), Holder::Connection(connection));
                Claim::Granted(state)
            }
        }
    }

    /// The holder is done. Gives the next in line and the state it is granted, if somebody waits.
    pub fn release(
        &mut self,
        client_id: &Arc<str>,
        state: Option<SessionState>,
        now: Instant,
    ) -> Option<(C, Option<SessionState>)> {
        let Some(Client::Held { holder, line }) = self.clients.get_mut(client_id) else { return None };
        if let Some(next) = line.pop_front() {
            *holder = Holder::Connection(next.clone());
            return Some((next, state));
        }
        self.clients.remove(client_id);
        if let Some(state) = state {
            self.lay_to_rest(client_id.clone(), state, now);
        }
        None
    }

    /// What is due at `now`, one at a time.
    pub fn poll_due(&mut self, now: Instant) -> Option<Due> {
        loop {
            if self.poll_timeout()? > now {
                return None;
            }
            let (_, client_id) = self.due.pop_first()?;
            let Some(Client::AtRest(rest)) = self.clients.get_mut(&client_id) else { continue };
            let has_ended = rest.ends_at.is_some_and(|ends_at| ends_at <= now);
            let will_is_due = has_ended || rest.state.will.as_ref().is_some_and(|delayed| delayed.due <= now);
            if will_is_due && let Some(delayed) = rest.state.will.take() {
                self.due.extend(rest.due().map(|due| (due, client_id.clone())));
                return Some(Due::Will(client_id, delayed));
            }
            if !has_ended {
                self.due.extend(rest.due().map(|due| (due, client_id.clone())));
                continue;
            }
            let state = self.wake(&client_id, now)?;
            self.hold(client_id.clone(), Holder::Caretaker);
            return Some(Due::Ended(client_id, state));
        }
    }

    /// When [`Registry::poll_due`] has something.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// For a broker that stops: the Will Messages whose delay runs, with their clients.
    pub fn take_wills(&mut self) -> Vec<(Arc<str>, Box<DelayedWill>)> {
        let mut wills = Vec::new();
        for (_, client_id) in &self.due {
            if let Some(Client::AtRest(rest)) = self.clients.get_mut(client_id)
                && let Some(delayed) = rest.state.will.take()
            {
                wills.push((client_id.clone(), delayed));
            }
        }
        wills
    }

    /// Sessions kept for clients that are away.
    pub fn sessions_away(&self) -> usize {
        self.away.len()
    }

    /// Sessions that were ended because there were too many.
    pub fn sessions_dropped(&self) -> u64 {
        self.sessions_dropped
    }

    fn hold(&mut self, client_id: Arc<str>, holder: Holder<C>) {
        self.clients.insert(client_id, Client::Held { holder, line: VecDeque::new() });
    }

    /// Takes the state at rest. One that has expired comes as ended.
    fn wake(&mut self, client_id: &Arc<str>, now: Instant) -> Option<SessionState> {
        let Some(Client::AtRest(mut rest)) = self.clients.remove(client_id) else { return None };
        if let Some(due) = rest.due() {
            self.due.remove(&(due, client_id.clone()));
        }
        self.away.remove(&(rest.since, client_id.clone()));
        if rest.ends_at.is_some_and(|ends_at| ends_at <= now) {
            rest.state.expiry_secs = 0;
        }
        Some(rest.state)
    }

    fn lay_to_rest(&mut self, client_id: Arc<str>, state: SessionState, now: Instant) {
        let ends_at = match state.expiry_secs {
            0 => Some(now + CLOSE_AFTER),
            u32::MAX => None,
            secs => Some(now + Duration::from_secs(secs.into())),
        };
        if state.expiry_secs > 0 {
            self.away.insert((now, client_id.clone()));
        }
        let rest = Rest { state, since: now, ends_at };
        self.due.extend(rest.due().map(|due| (due, client_id.clone())));
        self.clients.insert(client_id, Client::AtRest(rest));
        self.drop_longest_away(now);
    }

    fn drop_longest_away(&mut self, now: Instant) {
        if self.away.len() <= self.sessions_max {
            return;
        }
        let Some((_, client_id)) = self.away.pop_first() else { return };
        let Some(Client::AtRest(rest)) = self.clients.get_mut(&client_id) else { return };
        if let Some(due) = rest.due() {
            self.due.remove(&(due, client_id.clone()));
        }
        rest.ends_at = Some(now);
        self.due.insert((now, client_id));
        self.sessions_dropped += 1;
    }
}

impl Rest {
    fn due(&self) -> Option<Instant> {
        let will_due = self.state.will.as_ref().map(|delayed| delayed.due);
        [will_due, self.ends_at].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{PacketId, QoS, Will};

    fn id() -> Arc<str> {
        "a".into()
    }

    fn state(expiry_secs: u32) -> SessionState {
        SessionState { expiry_secs, packet_ids: vec![PacketId::MIN], will: None }
    }

    fn with_will(expiry_secs: u32, due: Instant) -> SessionState {
        let will =
            Will { topic: "w".into(), payload: "gone".into(), qos: QoS::AtLeastOnce, retain: false, delay_secs: 5 };
        let delayed = DelayedWill { will, user_name: None, due };
        SessionState { will: Some(Box::new(delayed)), ..state(expiry_secs) }
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
    fn start() -> Instant {
        Instant::now()
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn when_a_client_comes_twice_the_second_waits_for_what_the_first_leaves() {
        let (mut registry, now) = (Registry::new(10), start());
        assert_eq!(registry.claim(&id(), 1, now), Claim::Granted(None));
        assert_eq!(registry.claim(&id(), 2, now), Claim::Queued { behind: Some(1) });
        assert_eq!(registry.claim(&id(), 3, now), Claim::Queued { behind: Some(2) });
        assert_eq!(registry.release(&id(), Some(state(60)), now), Some((2, Some(state(60)))));
        assert_eq!(registry.release(&id(), Some(state(60)), now), Some((3, Some(state(60)))));
        assert_eq!(registry.release(&id(), Some(state(60)), now), None);
        assert_eq!(registry.claim(&id(), 4, now), Claim::Granted(Some(state(60))));
    }

    #[test]
    fn when_a_session_expires_the_caretaker_closes_it_and_a_client_waits_for_that() {
        let (mut registry, now) = (Registry::new(10), start());
        registry.claim(&id(), 1, now);
        registry.release(&id(), Some(state(60)), now);
        assert_eq!(registry.poll_due(now + secs(59)), None);
        assert_eq!(registry.poll_due(now + secs(60)), Some(Due::Ended(id(), state(0))));
        assert_eq!(registry.claim(&id(), 2, now + secs(60)), Claim::Queued { behind: None });
        assert_eq!(registry.release(&id(), None, now + secs(60)), Some((2, None)));
    }

    #[test]
    fn when_closing_an_ended_session_fails_it_is_tried_again_after_a_pause() {
        let (mut registry, now) = (Registry::<u32>::new(10), start());
        registry.restore(id(), state(0), now);
        assert_eq!(registry.poll_due(now + secs(1)), Some(Due::Ended(id(), state(0))));
        registry.release(&id(), Some(state(0)), now + secs(1));
        assert_eq!(registry.poll_due(now + secs(1)), None);
        assert_eq!(registry.poll_due(now + secs(2)), Some(Due::Ended(id(), state(0))));
    }

    #[test]
    fn when_a_client_returns_after_its_session_expired_the_session_comes_as_ended() {
        let (mut registry, now) = (Registry::new(10), start());
        registry.restore(id(), state(60), now);
        assert_eq!(registry.claim(&id(), 1, now + secs(60)), Claim::Granted(Some(state(0))));
    }

    #[test]
    fn a_session_without_expiry_is_kept_for_ever() {
        let (mut registry, now) = (Registry::<u32>::new(10), start());
        registry.restore(id(), state(u32::MAX), now);
        assert_eq!(registry.poll_timeout(), None);
    }

    #[test]
    fn a_delayed_will_is_published_once_and_the_session_lives_on() {
        let (mut registry, now) = (Registry::new(10), start());
        registry.claim(&id(), 1, now);
        registry.release(&id(), Some(with_will(60, now + secs(5))), now);
        assert!(matches!(registry.poll_due(now + secs(5)), Some(Due::Will(..))));
        assert_eq!(registry.poll_due(now + secs(5)), None);
        assert_eq!(registry.claim(&id(), 2, now + secs(6)), Claim::Granted(Some(state(60))));
    }

    #[test]
    fn a_delayed_will_is_published_when_its_session_ends_before_the_delay() {
        let (mut registry, now) = (Registry::<u32>::new(10), start());
        registry.restore(id(), with_will(3, now + secs(5)), now);
        assert!(matches!(registry.poll_due(now + secs(3)), Some(Due::Will(..))));
        assert!(matches!(registry.poll_due(now + secs(3)), Some(Due::Ended(..))));
    }

    #[test]
    fn at_the_bound_of_sessions_the_one_away_longest_is_dropped() {
        let (mut registry, now) = (Registry::<u32>::new(2), start());
        registry.restore("old".into(), state(60), now);
        registry.restore("mid".into(), state(60), now + secs(1));
        registry.restore("new".into(), state(60), now + secs(2));
        assert_eq!(registry.poll_due(now + secs(2)), Some(Due::Ended("old".into(), state(0))));
        assert_eq!(registry.poll_due(now + secs(2)), None);
        assert_eq!((registry.sessions_away(), registry.sessions_dropped()), (2, 1));
    }
}
