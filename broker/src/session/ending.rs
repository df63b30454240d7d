//! How a connection ends: DISCONNECT, violations, takeover, shutdown; what becomes of the Will Message and the session.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answers::Reply;
use super::{Action, Claim, DelayedWill, Phase, Publication, Session, SessionState, Submission};
use crate::inbound::Refusal;
use crate::reason::{ConnectReason, Reason};

/// Normal disconnection: the one reason that takes the Will Message back.
const NORMAL_DISCONNECTION: u8 = 0x00;

/// Why a connection was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The client sent DISCONNECT.
    Disconnected,
    /// The client went without DISCONNECT.
    PeerClosed,
    /// CONNECT did not come in time.
    ConnectTimeout,
    /// CONNECT was refused.
    Refused(ConnectReason),
    /// Nothing came for 1.5 times the Keep Alive.
    KeepAliveTimeout,
    /// Bytes that are no packet.
    Malformed(Reason),
    /// A packet that is against a rule, which is named.
    Violation(Reason, &'static str),
    /// 3.1.1 cannot be told why a message is refused.
    PublishRefused(Refusal),
    /// Storage cannot take messages.
    Unavailable,
    /// Another connection has the Client Identifier.
    TakenOver,
    /// The broker stops.
    ShuttingDown,
    /// The client does not read what it is sent. Decided by the driver.
    WriteTimeout,
    /// A packet was begun and not finished in time. Decided by the driver.
    PacketTimeout,
    /// Too many packets were begun and not finished, of all clients together. Decided by the driver.
    PartialPackets,
    /// The client may no longer connect: its password or certificate is not accepted any more.
    Revoked,
}

/// Why somebody else ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Another connection has the Client Identifier [MQTT-3.1.4-3].
    TakenOver,
    /// The broker stops: what was submitted is still answered.
    ShuttingDown,
    /// The client may no longer connect.
    Revoked,
}

impl Session {
    /// The client is gone: end of stream, or an error of the socket (then `reason` says which).
    pub fn handle_closed(&mut self, reason: CloseReason, now: Instant) {
        self.end(reason, now);
    }

    /// Bytes that are no packet came. Before CONNECT was understood there is nobody to tell.
    pub fn handle_malformed(&mut self, reason: Reason, now: Instant) {
        self.disconnect(reason);
        self.end(CloseReason::Malformed(reason), now);
    }

    /// A packet was begun, and its end did not come in time, or there is no room for it: `reason` says which.
    pub fn handle_unfinished(&mut self, reason: CloseReason, now: Instant) {
        self.disconnect(match reason {
            CloseReason::PartialPackets => Reason::QuotaExceeded,
            _ => Reason::ImplementationSpecificError,
        });
        self.end(reason, now);
    }

    /// Somebody else ends this connection.
    pub fn handle_stop(&mut self, reason: StopReason, now: Instant) {
        match (reason, self.phase) {
            (StopReason::TakenOver, _) => {
                self.disconnect(Reason::SessionTakenOver);
                self.end(CloseReason::TakenOver, now);
            }
            (StopReason::ShuttingDown, Phase::Connected) => {
                self.leave_will(now); // [MQTT-3.1.2-8]
                self.phase = Phase::Stopping;
                self.stop_when_answered();
            }
            (StopReason::ShuttingDown, Phase::Authenticating | Phase::Claiming | Phase::Opening) => {
                self.refuse_connect(ConnectReason::ServerUnavailable, now);
            }
            (StopReason::Revoked, Phase::Authenticating | Phase::Claiming | Phase::Opening) => {
                self.refuse_connect(ConnectReason::NotAuthorized, now);
            }
            (StopReason::Revoked, _) => {
                self.disconnect(Reason::NotAuthorized);
                self.end(CloseReason::Revoked, now);
            }
            (StopReason::ShuttingDown, _) => self.end(CloseReason::ShuttingDown, now),
        }
    }

    pub(super) fn handle_disconnect(&mut self, reason: u8, expiry_secs: Option<u32>, now: Instant) {
        let expiry_secs = expiry_secs.map(|secs| secs.min(self.limits.session_expiry_secs_max));
        if let Some(expiry_secs) = expiry_secs {
            if self.expiry_secs == 0 && expiry_secs > 0 {
                self.violate(Reason::ProtocolError, "[MQTT-3.1.2-11.2] session expiry from 0 to more", now);
                return;
            }
            self.expiry_secs = expiry_secs;
            if expiry_secs > 0 && self.durable_expiry_secs != Some(expiry_secs) {
                self.claim_storage(Reply::Open(expiry_secs), Submission::OpenSession(expiry_secs));
            }
        }
        if reason == NORMAL_DISCONNECTION {
            self.will = None; // [MQTT-3.1.2-8] [MQTT-3.14.4-3]
        }
        self.end(CloseReason::Disconnected, now);
    }

    pub(super) fn violate(&mut self, reason: Reason, rule: &'static str, now: Instant) {
        self.disconnect(reason);
        self.end(CloseReason::Violation(reason, rule), now);
    }

    pub(super) fn end(&mut self, reason: CloseReason, now: Instant) {
        if self.phase == Phase::Draining {
            return;
        }
        self.leave_will(now);
        self.phase = Phase::Draining;
        self.actions.push_back(Action::Close(reason));
    }

    /// The connection ends without a DISCONNECT that takes the Will Message back.
    fn leave_will(&mut self, now: Instant) {
        let Some(will) = self.will.take() else { return };
        if will.delay_secs == 0 || self.expiry_secs == 0 {
            self.submit_will(Publication::of_will(*will, self.user_name.clone()));
            return;
        }
        let due = now + Duration::from_secs(will.delay_secs.into());
        let delayed = DelayedWill { will: *will, user_name: self.user_name.clone(), due };
        self.delayed_will = Some(Box::new(delayed));
    }

    /// A shutdown goes on when everything that was submitted is answered.
    pub(super) fn stop_when_answered(&mut self) {
        if self.phase == Phase::Stopping && self.answers.is_empty() {
            self.disconnect(Reason::ServerShuttingDown);
            self.end(CloseReason::ShuttingDown, self.now);
        }
    }

    /// Once [`Session::is_drained`]: the Client Identifier to release at the registry, with what is to be kept for its
    /// next connection. `None` when this session never held one, or has given it back.
    pub fn take_state(&mut self) -> Option<(Arc<str>, Option<SessionState>)> {
        if self.claim != Claim::Held || !self.is_drained() {
            return None;
        }
        self.claim = Claim::None;
        let expiry_secs = match &self.connecting {
            None => self.expiry_secs,
            Some(connecting) if connecting.is_new => 0,
            Some(_) => self.durable_expiry_secs.unwrap_or(0), // never got its CONNACK: as it was
        };
        let is_known_to_storage = self.durable_expiry_secs.is_some() || !self.deliveries.is_empty();
        let state = (expiry_secs > 0 || is_known_to_storage).then(|| SessionState {
            expiry_secs,
            packet_ids: std::mem::take(&mut self.deliveries).into_keys().collect(),
            will: self.delayed_will.take(),
        });
        Some((self.client_id.clone(), state))
    }
}
