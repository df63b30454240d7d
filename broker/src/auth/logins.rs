//! Verifying passwords: it is made to be slow, so it is done by one thread at a time, away from those that serve sockets,
//! for a bounded number of clients that wait. Whoever publishes does not notice a flood of logins.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Access;
use super::attempts::Attempts;
use crate::broker::lock;
use crate::config::Limits;
use crate::packet::Password;
use crate::quota::Origin;

/// Whether the password is the user's.
pub(crate) type Verification = Pin<Box<dyn Future<Output = bool> + Send>>;

/// Passwords that are to be verified.
#[derive(Debug)]
pub(crate) struct Logins {
    /// Whoever waits holds one.
    places: Arc<Semaphore>,
    /// Whoever is verified holds it.
    turn: Arc<Semaphore>,
    attempts: Mutex<Attempts>,
}

/// Why a password is not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotNow {
    /// Too many wait.
    Busy,
    /// Too many failed.
    TooOften,
}

impl Logins {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            places: Arc::new(Semaphore::new(limits.logins_waiting_max.clamp(1, Semaphore::MAX_PERMITS))),
            turn: Arc::new(Semaphore::new(1)),
            attempts: Mutex::new(Attempts::new(limits.login_failures_max)),
        }
    }

    /// Begins to verify. No `origin`: a connection from this machine, whose failures are not counted.
    pub(crate) fn verify(
        &self,
        access: Arc<Access>,
        user: Arc<str>,
        password: Password,
        origin: Option<Origin>,
        now: Instant,
    ) -> Result<Verification, NotNow> {
        if origin.is_some_and(|origin| !lock(&self.attempts).allow(origin, &user, now)) {
            return Err(NotNow::TooOften);
        }
        let Ok(place) = self.places.clone().try_acquire_owned() else { return Err(NotNow::Busy) };
        Ok(Box::pin(verify(access, user, password, self.turn.clone(), place)))
    }

    pub(crate) fn handle_verified(&self, is_right: bool, origin: Option<Origin>, user: &Arc<str>, now: Instant) {
        let Some(origin) = origin else { return };
        let mut attempts = lock(&self.attempts);
        match is_right {
            true => attempts.handle_success(origin, user),
            false => attempts.handle_failure(origin, user, now),
        }
    }
}

async fn verify(
    access: Arc<Access>,
    user: Arc<str>,
    password: Password,
    turn: Arc<Semaphore>,
    place: OwnedSemaphorePermit,
) -> bool {
    let Ok(turn) = turn.acquire_owned().await else { return false };
    let work = tokio::task::spawn_blocking(move || {
        // Held until it is done, also when the client has gone meanwhile.
        let (_turn, _place) = (turn, place);
        access.passwords.as_ref().is_some_and(|passwords| passwords.verify(&user, &password))
    });
    work.await.unwrap_or(false)
}
