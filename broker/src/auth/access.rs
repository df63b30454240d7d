//! Who may connect, and where each may publish: decided from what was read of the files. (pure)

use std::sync::Arc;

use super::password::{PasswordHash, USER_BYTES_MAX};
use super::{Acl, PasswordFile};
use crate::reason::ConnectReason;
use crate::session::Login;

/// What a broker asks of its clients.
#[derive(Debug, Default)]
pub struct Access {
    /// Users and their passwords; `None`: nobody has one, and what a client says of itself is not believed.
    pub passwords: Option<PasswordFile>,
    /// Where each may publish; `None`: wherever somebody takes it.
    pub acl: Option<Acl>,
    /// Whether clients without credentials may connect, where a listener says nothing else.
    pub refuse_anonymous: bool,
}

/// Whether a client may connect.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// As this user; `None`: as nobody in particular.
    Let(Option<Arc<str>>),
    /// If this is the user's password.
    Verify(Arc<str>),
    Refuse(ConnectReason),
}

impl Access {
    /// `certified`: who the client's certificate says it is. `allow_anonymous`: what its listener says.
    pub(crate) fn decide(&self, login: &Login, certified: Option<Arc<str>>, allow_anonymous: Option<bool>) -> Decision {
        if certified.is_some() {
            return Decision::Let(certified);
        }
        match (&self.passwords, &login.user_name) {
            // No file has it, and nobody shall remember it.
            (Some(_), Some(user)) if user.len() > USER_BYTES_MAX => {
                Decision::Refuse(ConnectReason::BadUserNameOrPassword)
            }
            (Some(_), Some(user)) => Decision::Verify(user.clone()),
            _ if self.lets_anonymous_in(allow_anonymous) => Decision::Let(None),
            _ => Decision::Refuse(ConnectReason::NotAuthorized),
        }
    }

    /// Whether a client without credentials may be there.
    pub(crate) fn lets_anonymous_in(&self, allow_anonymous: Option<bool>) -> bool {
        allow_anonymous.unwrap_or(!self.refuse_anonymous)
    }

    /// Whether somebody may publish to this topic.
    pub fn may_publish(&self, user: Option<&str>, client_id: &str, topic: &str) -> bool {
        self.acl.as_ref().is_none_or(|acl| acl.may_write(user, client_id, topic))
    }

    /// Whether the user's password is the same as before.
    pub(crate) fn has_same_password(&self, before: &Self, user: &str) -> bool {
        let now = self.hash(user);
        now.is_some() && now == before.hash(user)
    }

    fn hash(&self, user: &str) -> Option<&PasswordHash> {
        self.passwords.as_ref()?.get(user)
    }
}
