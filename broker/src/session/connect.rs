//! CONNECT until CONNACK: the Client Identifier, the session that is resumed or begun, what the client is told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answers::{Delivery, EARLIER, Reply, Stage};
use super::publish::topic_fits;
use super::{Action, Claim, CloseReason, Connecting, Login, Phase, Publication, Session, SessionState, Submission};
use crate::packet::{ConnAck, Connect, Outgoing, ProtocolVersion};
use crate::reason::ConnectReason;

impl Session {
    pub(super) fn handle_connect(&mut self, mut connect: Connect, now: Instant) {
        self.version = connect.version;
        self.connect_deadline = now + self.limits.connect_timeout;
        self.maximum_packet_size = connect.maximum_packet_size;
        if let Err(reason) = self.admit(&connect) {
            self.refuse_connect(reason, now);
            return;
        }
        if !connect.client_id.is_empty() {
            self.client_id = connect.client_id.clone();
        }
        let login = Login {
            client_id: self.client_id.clone(),
            user_name: connect.user_name.take(),
            password: connect.password.take(),
            will_topic: connect.will.as_ref().map(|will| will.topic.clone()),
        };
        self.expiry_secs = self.granted_expiry_secs(&connect);
        let connecting = Connecting { connect, session_present: false, failed: false, is_new: false };
        self.connecting = Some(Box::new(connecting));
        self.phase = Phase::Authenticating;
        self.actions.push_back(Action::Authenticate(login));
    }

    /// It was found out who the client is, `None` for one that needs no credentials here, or why it may not connect.
    pub fn handle_authenticated(&mut self, result: Result<Option<Arc<str>>, ConnectReason>, now: Instant) {
        if self.phase != Phase::Authenticating {
            return; // given up meanwhile
        }
        match result {
            Ok(user_name) => {
                self.user_name = user_name;
                self.claim = Claim::Waiting;
                self.phase = Phase::Claiming;
                self.actions.push_back(Action::Claim(self.client_id.clone()));
            }
            Err(reason) => self.refuse_connect(reason, now),
        }
    }

    fn admit(&self, connect: &Connect) -> Result<(), ConnectReason> {
        if let Some(reason) = self.refuse_all {
            return Err(reason);
        }
        if connect.has_authentication_method {
            return Err(ConnectReason::BadAuthenticationMethod); // [MQTT-4.12.0-1]
        }
        let may_be_empty = connect.version == ProtocolVersion::V5 || connect.clean_start; // [MQTT-3.1.3-8] of 3.1.1
        if connect.client_id.is_empty() && !may_be_empty {
            return Err(ConnectReason::ClientIdentifierNotValid);
        }
        if connect.client_id.len() > self.limits.client_id_bytes_max {
            return Err(ConnectReason::ClientIdentifierNotValid);
        }
        let will_fits = connect.will.as_ref().is_none_or(|will| topic_fits(will.topic.as_bytes(), &self.limits));
        if !will_fits {
            return Err(ConnectReason::TopicNameInvalid);
        }
        if connect.will.as_ref().is_some_and(|will| will.payload.len() > self.limits.will_bytes_max) {
            return Err(ConnectReason::QuotaExceeded);
        }
        if !self.fits_client(&self.accepting_connack(connect, false)) {
            return Err(ConnectReason::ImplementationSpecificError); // [MQTT-3.1.2-24]
        }
        Ok(())
    }

    fn granted_expiry_secs(&self, connect: &Connect) -> u32 {
        match (connect.version, connect.clean_start) {
            (ProtocolVersion::V5, _) => connect.session_expiry_secs.min(self.limits.session_expiry_secs_max),
            (ProtocolVersion::V311, false) => self.limits.session_expiry_secs_max,
            (ProtocolVersion::V311, true) => 0,
        }
    }

    /// The Client Identifier is somebody else's.
    pub fn handle_claim_refused(&mut self, reason: ConnectReason, now: Instant) {
        self.claim = Claim::None;
        self.refuse_connect(reason, now);
    }

    /// The registry granted the Client Identifier, with what the session before left, and nobody else holds it until
    /// [`Session::take_state`] is given back.
    pub fn handle_claimed(&mut self, state: Option<SessionState>, now: Instant) {
        self.claim = Claim::Held;
        let existed = state.is_some();
        let mut ended = false;
        if let Some(state) = state {
            ended = state.expiry_secs == 0;
            self.durable_expiry_secs = Some(state.expiry_secs);
            let stored = Delivery { number: EARLIER, stage: Stage::Stored, counted: false };
            self.deliveries = state.packet_ids.into_iter().map(|id| (id, stored)).collect();
            self.delayed_will = state.will;
        }
        if self.phase != Phase::Claiming {
            return; // given up while waiting: the state only passes through
        }
        let Some(connecting) = &mut self.connecting else { return };
        let is_resumed = existed && !ended && !connecting.connect.clean_start;
        connecting.session_present = is_resumed;
        connecting.is_new = !is_resumed;
        self.phase = Phase::Opening;
        if existed && !is_resumed {
            self.close_former_session();
        }
        if self.expiry_must_be_written(is_resumed) {
            self.claim_storage(Reply::Open(self.expiry_secs), Submission::OpenSession(self.expiry_secs));
        }
        self.connect_when_opened(now);
    }

    /// A session that is not resumed ends here, and so its Will Message is due [MQTT-3.1.2-10].
    fn close_former_session(&mut self) {
        if let Some(delayed) = self.delayed_will.take() {
            self.submit_will(Publication::of_will(delayed.will, delayed.user_name));
        }
        self.claim_storage(Reply::Close, Submission::CloseSession);
    }

    fn expiry_must_be_written(&self, is_resumed: bool) -> bool {
        if is_resumed { self.durable_expiry_secs != Some(self.expiry_secs) } else { self.expiry_secs > 0 }
    }

    pub(super) fn settle_open(&mut self, expiry_secs: u32, is_stored: bool, now: Instant) {
        if is_stored {
            self.durable_expiry_secs = Some(expiry_secs);
        } else if let Some(connecting) = &mut self.connecting {
            connecting.failed = true;
        }
        self.connect_when_opened(now);
    }

    pub(super) fn settle_close(&mut self, is_stored: bool, now: Instant) {
        let Some(connecting) = &mut self.connecting else { return };
        if is_stored {
            self.durable_expiry_secs = None;
            self.deliveries.clear();
        } else {
            connecting.failed = true;
        }
        self.connect_when_opened(now);
    }

    /// CONNACK, once storage has answered everything.
    pub(super) fn connect_when_opened(&mut self, now: Instant) {
        if self.phase != Phase::Opening || !self.answers.is_empty() {
            return;
        }
        match self.connecting.take() {
            Some(connecting) if !connecting.failed => self.accept(*connecting, now),
            connecting => {
                self.connecting = connecting;
                self.refuse_connect(ConnectReason::ServerUnavailable, now);
            }
        }
    }

    fn accept(&mut self, connecting: Connecting, now: Instant) {
        let Connecting { connect, session_present, .. } = connecting;
        let connack = self.accepting_connack(&connect, session_present);
        let server_keep_alive_secs = self.server_keep_alive_secs(&connect);
        let keep_alive_secs = server_keep_alive_secs.unwrap_or(connect.keep_alive_secs);
        let keep_alive = (keep_alive_secs > 0).then(|| Duration::from_secs(keep_alive_secs.into()) * 3 / 2);
        self.keep_alive = [keep_alive, self.limits.idle_timeout].into_iter().flatten().min();
        self.heard_at = now;
        self.will = connect.will.map(Box::new);
        self.delayed_will = None; // resumed in time [MQTT-3.1.3-9]
        self.phase = Phase::Connected;
        self.send(connack);
    }

    /// What an accepted CONNECT is answered with.
    fn accepting_connack(&self, connect: &Connect, session_present: bool) -> Outgoing {
        let is_v5 = connect.version == ProtocolVersion::V5;
        let expiry_secs = self.granted_expiry_secs(connect);
        Outgoing::ConnAck(Box::new(ConnAck {
            session_present,
            reason: ConnectReason::Success,
            assigned_client_id: (is_v5 && connect.client_id.is_empty()).then(|| self.client_id.clone()),
            session_expiry_secs: (is_v5 && expiry_secs != connect.session_expiry_secs).then_some(expiry_secs),
            server_keep_alive_secs: self.server_keep_alive_secs(connect),
            receive_maximum: self.limits.receive_maximum,
            maximum_packet_size: self.limits.packet_bytes_max,
            topic_alias_maximum: self.limits.topic_alias_maximum,
            reason_string: None,
        }))
    }

    /// 3.1.1 cannot be told another Keep Alive, so its own holds.
    fn server_keep_alive_secs(&self, connect: &Connect) -> Option<u16> {
        let limit = self.limits.keep_alive_secs_max;
        let exceeds = limit > 0 && (connect.keep_alive_secs == 0 || connect.keep_alive_secs > limit);
        (exceeds && connect.version == ProtocolVersion::V5).then_some(limit)
    }

    /// CONNACK with an error, where the version has one, and close [MQTT-3.1.4-1] [MQTT-3.2.2-7].
    pub(super) fn refuse_connect(&mut self, reason: ConnectReason, now: Instant) {
        if self.is_v5() || reason.v311().is_some() {
            self.send(Outgoing::ConnAck(Box::new(ConnAck {
                session_present: false, // [MQTT-3.2.2-6]
                reason,
                assigned_client_id: None,
                session_expiry_secs: None,
                server_keep_alive_secs: None,
                receive_maximum: self.limits.receive_maximum,
                maximum_packet_size: self.limits.packet_bytes_max,
                topic_alias_maximum: self.limits.topic_alias_maximum,
                reason_string: None,
            })));
        }
        self.end(CloseReason::Refused(reason), now);
    }

    /// The first packet was a CONNECT that the codec refused: `reason` and `version` say how to answer.
    pub fn handle_connect_error(&mut self, reason: ConnectReason, version: ProtocolVersion, now: Instant) {
        self.version = version;
        self.refuse_connect(reason, now);
    }
}
