//! Whether the client of a CONNECT may connect: its certificate, its password, what it may publish, how many of it there are.

use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};
use tracing::{Span, debug};

use super::{Connection, Identity};
use crate::auth::{Access, Decision, NotNow, Verification};
use crate::broker::now;
use crate::reason::ConnectReason;
use crate::session::Login;
use crate::stats::{Counter, Stats};

/// A password that is being verified.
pub(super) struct Verifying {
    login: Login,
    user: Arc<str>,
    verification: Verification,
    /// What it is verified against; it may be replaced meanwhile.
    access: Arc<Access>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(super) fn authenticate(&mut self, login: Login) {
        let access = self.shared.access();
        let allow_anonymous = self.entrance.allow_anonymous;
        let result = match access.decide(&login, self.entrance.certified.clone(), allow_anonymous) {
            Decision::Let(user) => self.welcome(&access, user, &login),
            Decision::Refuse(reason) => Err(reason),
            Decision::Verify(user) => match self.verify(access, user, login) {
                Ok(verifying) => {
                    self.verifying = Some(Box::new(verifying));
                    return;
                }
                Err(reason) => Err(reason),
            },
        };
        self.session.handle_authenticated(result, now());
    }

    fn verify(&mut self, access: Arc<Access>, user: Arc<str>, login: Login) -> Result<Verifying, ConnectReason> {
        let Some(password) = login.password.clone() else { return Err(ConnectReason::BadUserNameOrPassword) };
        let origin = self.entrance.peer.origin();
        match self.shared.logins.verify(access.clone(), user.clone(), password, origin, now()) {
            Ok(verification) => Ok(Verifying { login, user, verification, access }),
            Err(NotNow::Busy) => Err(self.refused(|stats| &stats.logins_refused_busy, ConnectReason::ServerBusy)),
            Err(NotNow::TooOften) => {
                Err(self.refused(|stats| &stats.logins_refused_rate, ConnectReason::ConnectionRateExceeded))
            }
        }
    }

    /// Goes on when it is known whether the password is right.
    pub(super) fn poll_verifying(&mut self, cx: &mut Context<'_>) {
        // Once more where it has to be verified again: nobody else would ask how that goes.
        while let Some(verifying) = &mut self.verifying
            && let Poll::Ready(is_right) = verifying.verification.as_mut().poll(cx)
        {
            let Some(verifying) = self.verifying.take() else { return };
            self.handle_verified(*verifying, is_right);
        }
    }

    fn handle_verified(&mut self, verifying: Verifying, is_right: bool) {
        let Verifying { login, user, access, .. } = verifying;
        self.shared.logins.handle_verified(is_right, self.entrance.peer.origin(), &user, now());
        let current = self.shared.access();
        let still_holds = Arc::ptr_eq(&current, &access) || is_right && current.has_same_password(&access, &user);
        if !still_holds {
            self.authenticate(login); // the file changed meanwhile
            return;
        }
        let result = if is_right {
            self.welcome(&current, Some(user), &login)
        } else {
            Err(ConnectReason::BadUserNameOrPassword)
        };
        self.session.handle_authenticated(result, now());
    }

    /// The client is who it says: is it too many, and may its Will Message be published?
    fn welcome(
        &mut self,
        access: &Access,
        user: Option<Arc<str>>,
        login: &Login,
    ) -> Result<Option<Arc<str>>, ConnectReason> {
        if let Some(user) = &user {
            Span::current().record("user", &**user);
            self.user_share = self.shared.users.take(user.clone());
            if self.user_share.is_none() {
                debug!("Too many connections of this user.");
                return Err(self.refused(|stats| &stats.connects_refused_user, ConnectReason::QuotaExceeded));
            }
        }
        if let Some(topic) = &login.will_topic
            && !access.may_publish(user.as_deref(), &login.client_id, topic)
        {
            debug!(topic = &**topic, "The Will Message may not be published.");
            return Err(ConnectReason::NotAuthorized);
        }
        self.handle.set_identity(Identity {
            user: user.clone(),
            is_by_password: user.is_some() && self.entrance.certified.is_none(),
            certificate: self.entrance.certificate.clone(),
            allow_anonymous: self.entrance.allow_anonymous,
        });
        // From here on whoever replaces access or certificates finds us. Before, they may have missed us.
        let certificate = self.entrance.certificate.as_ref();
        let is_stale = certificate.is_some_and(|shown| shown.generation != shown.tls.generation())
            || !std::ptr::eq(access, &*self.shared.access());
        if is_stale { Err(ConnectReason::ServerUnavailable) } else { Ok(user) }
    }
}

impl<S> Connection<S> {
    /// Has `counter` count a CONNECT that is refused, instead of the one that its reason has.
    pub(super) fn refused(&mut self, counter: impl Fn(&Stats) -> &Counter, reason: ConnectReason) -> ConnectReason {
        counter(&self.shared.stats).add(1);
        self.is_refusal_counted = true;
        reason
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Broker;
    use crate::config::Limits;
    use crate::connection::Entrance;

    #[tokio::test]
    async fn whoever_is_let_in_by_what_was_replaced_meanwhile_has_to_come_again() {
        let (broker, _inbound) = Broker::new(Limits::default(), Vec::new());
        let before = broker.shared.access();
        let mut connection = connection(&broker);
        broker.set_access(Access::default()); // it does not know yet whose the connection is
        assert_eq!(connection.welcome(&before, None, &login()), Err(ConnectReason::ServerUnavailable));
        assert_eq!(connection.welcome(&broker.shared.access(), None, &login()), Ok(None));
    }

    fn connection(broker: &Broker) -> Connection<tokio::io::DuplexStream> {
        let entrance = Entrance {
            number: 0,
            peer: "test".into(),
            accepted_at: now(),
            refuse_all: None,
            allow_anonymous: None,
            certificate: None,
            certified: None,
            arriving: None,
        };
        Connection::new(broker.shared.clone(), Arc::default(), tokio::io::duplex(1).0, entrance)
    }

    fn login() -> Login {
        Login { client_id: "a".into(), user_name: None, password: None, will_topic: None }
    }
}
