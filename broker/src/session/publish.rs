//! PUBLISH and PUBREL in, PUBACK, PUBREC and PUBCOMP out.

use std::num::NonZeroU16;
use std::time::Instant;

use super::answers::{Delivery, Reply, Stage};
use super::{Action, CloseReason, Phase, Publication, Session, Submission};
use crate::config::Limits;
use crate::inbound::{Outcome, Refusal};
use crate::packet::{Outgoing, PacketId, Publish, QoS, Topic};
use crate::reason::Reason;

impl Session {
    pub(super) fn handle_publish(&mut self, mut publish: Publish, now: Instant) {
        if let Err((reason, rule)) = self.resolve_topic(&mut publish) {
            self.violate(reason, rule, now);
            return;
        }
        let fits = topic_fits(publish.topic.as_bytes(), &self.limits);
        match (publish.qos, publish.packet_id) {
            (QoS::AtMostOnce, _) if !fits => self.refuse_topic(now),
            (QoS::AtMostOnce, _) => self.submit(None, self.publication(publish)),
            (QoS::AtLeastOnce, Some(packet_id)) => self.handle_qos1(publish, packet_id, fits, now),
            (QoS::ExactlyOnce, Some(packet_id)) => self.handle_qos2(publish, packet_id, fits, now),
            (_, None) => self.violate(Reason::ProtocolError, "[MQTT-2.2.1-3] no Packet Identifier", now),
        }
    }

    fn handle_qos1(&mut self, publish: Publish, packet_id: PacketId, fits: bool, now: Instant) {
        if !self.count_in_flight(now) {
            return;
        }
        let number = self.answers.push(Reply::PubAck(packet_id), refused_unless(fits));
        if fits {
            self.submit(Some(number), self.publication(publish));
        }
    }

    fn handle_qos2(&mut self, publish: Publish, packet_id: PacketId, fits: bool, now: Instant) {
        let known = self.deliveries.get(&packet_id).copied();
        if known.is_none_or(|delivery| !delivery.counted) && !self.count_in_flight(now) {
            return;
        }
        // Until PUBREL the same Packet Identifier is the same message [MQTT-4.3.3-10]; after it, it is another one.
        if let Some(delivery) = self.deliveries.get_mut(&packet_id)
            && delivery.stage != Stage::Releasing
        {
            delivery.counted = true;
            self.answers.push(Reply::PubRecAgain(packet_id, delivery.number), Some(Outcome::Stored));
            return;
        }
        let number = self.answers.push(Reply::PubRec(packet_id), refused_unless(fits));
        let delivery = Delivery { number, stage: Stage::Storing, counted: true };
        self.deliveries.insert(packet_id, delivery);
        if fits {
            self.submit(Some(number), self.publication(publish));
        }
    }

    pub(super) fn handle_pubrel(&mut self, packet_id: PacketId) {
        let Some(delivery) = self.deliveries.get_mut(&packet_id) else {
            self.send(Outgoing::PubComp { packet_id, reason: Reason::PacketIdentifierNotFound });
            return;
        };
        if delivery.stage == Stage::Releasing {
            self.answers.push(Reply::PubCompAgain(packet_id), Some(Outcome::Stored));
            return;
        }
        let number = self.answers.push(Reply::PubComp(packet_id), None);
        delivery.stage = Stage::Releasing;
        delivery.number = number;
        self.actions.push_back(Action::Submit(Some(number), Submission::Release(packet_id)));
    }

    /// The claim at the head has its outcome: answer it. After the end of the connection the state is kept right and
    /// nothing is sent.
    pub(super) fn settle(&mut self, number: u64, reply: Reply, outcome: Outcome) {
        let now = self.now;
        match reply {
            Reply::PubAck(packet_id) => {
                self.in_flight -= 1;
                self.answer(outcome, |reason| Outgoing::PubAck { packet_id, reason });
            }
            Reply::PubRec(packet_id) => {
                if outcome != Outcome::Stored {
                    self.answers.fail_repetitions(number, outcome);
                }
                self.settle_stored(packet_id, number, outcome);
                self.answer(outcome, |reason| Outgoing::PubRec { packet_id, reason });
            }
            Reply::PubRecAgain(packet_id, _) => {
                self.answer(outcome, |reason| Outgoing::PubRec { packet_id, reason });
            }
            Reply::PubComp(packet_id) => {
                // Nobody can refuse to forget: a PUBCOMP of any kind would free the identifier at the client.
                let outcome = if outcome == Outcome::Stored { outcome } else { Outcome::Unavailable };
                self.settle_released(packet_id, number, outcome);
                self.answer(outcome, |reason| Outgoing::PubComp { packet_id, reason });
            }
            Reply::PubCompAgain(packet_id) => {
                self.answer(Outcome::Stored, |reason| Outgoing::PubComp { packet_id, reason });
            }
            Reply::Open(expiry_secs) => self.settle_open(expiry_secs, outcome == Outcome::Stored, now),
            Reply::Close => self.settle_close(outcome == Outcome::Stored, now),
            Reply::Will => self.connect_when_opened(now),
        }
        self.stop_when_answered();
    }

    fn settle_stored(&mut self, packet_id: PacketId, number: u64, outcome: Outcome) {
        let Some(delivery) = self.deliveries.get_mut(&packet_id) else { return };
        if delivery.number != number {
            return; // released or begun anew in the meantime: a later claim decides
        }
        if outcome == Outcome::Stored {
            delivery.stage = Stage::Stored;
        } else {
            self.forget_delivery(packet_id); // a PUBREC of 0x80 and above frees the identifier, as does no PUBREC
        }
    }

    fn settle_released(&mut self, packet_id: PacketId, number: u64, outcome: Outcome) {
        let Some(delivery) = self.deliveries.get_mut(&packet_id) else { return };
        if delivery.number != number {
            return;
        }
        if outcome == Outcome::Stored {
            self.forget_delivery(packet_id);
        } else {
            delivery.stage = Stage::Stored;
        }
    }

    fn forget_delivery(&mut self, packet_id: PacketId) {
        if self.deliveries.remove(&packet_id).is_some_and(|delivery| delivery.counted) {
            self.in_flight -= 1;
        }
    }

    fn answer(&mut self, outcome: Outcome, packet: impl FnOnce(Reason) -> Outgoing) {
        if !matches!(self.phase, Phase::Connected | Phase::Stopping) {
            return;
        }
        match outcome {
            Outcome::Stored => self.send(packet(Reason::Success)),
            Outcome::Refused(refusal) if self.is_v5() => self.send(packet(reason_of(refusal))),
            Outcome::Refused(refusal) => self.end(CloseReason::PublishRefused(refusal), self.now),
            Outcome::Unavailable => {
                self.disconnect(Reason::QuotaExceeded);
                self.end(CloseReason::Unavailable, self.now);
            }
        }
    }

    /// One more PUBLISH that counts against the Receive Maximum [MQTT-3.3.4-7]; `false` closes the connection.
    fn count_in_flight(&mut self, now: Instant) -> bool {
        if self.is_v5() && self.in_flight >= u32::from(self.limits.receive_maximum.get()) {
            self.violate(Reason::ReceiveMaximumExceeded, "[MQTT-3.3.4-9] Receive Maximum exceeded", now);
            return false;
        }
        self.in_flight += 1;
        true
    }

    fn resolve_topic(&mut self, publish: &mut Publish) -> Result<(), (Reason, &'static str)> {
        match publish.topic_alias {
            None if publish.topic.is_empty() => Err((Reason::ProtocolError, "[MQTT-4.7.3-1] empty Topic Name")),
            None => Ok(()),
            Some(alias) if alias.get() > self.limits.topic_alias_maximum => {
                Err((Reason::TopicAliasInvalid, "[MQTT-3.3.2-9] Topic Alias above the Topic Alias Maximum"))
            }
            Some(alias) if publish.topic.is_empty() => {
                publish.topic = self.aliased(alias).ok_or((Reason::ProtocolError, "Topic Alias was never set"))?;
                Ok(())
            }
            Some(_) if !topic_fits(publish.topic.as_bytes(), &self.limits) => {
                Err((Reason::TopicNameInvalid, "Topic Alias for a Topic Name above the limits"))
            }
            Some(alias) => {
                self.set_alias(alias, publish.topic.detach());
                Ok(())
            }
        }
    }

    fn aliased(&self, alias: NonZeroU16) -> Option<Topic> {
        self.aliases.get(usize::from(alias.get()) - 1)?.clone()
    }

    fn set_alias(&mut self, alias: NonZeroU16, topic: Topic) {
        let index = usize::from(alias.get()) - 1;
        if self.aliases.len() <= index {
            self.aliases.resize(index + 1, None);
        }
        if let Some(slot) = self.aliases.get_mut(index) {
            *slot = Some(topic);
        }
    }

    /// QoS 0 has no packet that says so, and silence would hide it.
    fn refuse_topic(&mut self, now: Instant) {
        self.violate(Reason::TopicNameInvalid, "Topic Name above the limits", now);
    }

    fn publication(&self, publish: Publish) -> Publication {
        Publication {
            user_name: self.user_name.clone(),
            topic: publish.topic,
            payload: publish.payload,
            qos: publish.qos,
            retain: publish.retain,
            dup: publish.dup,
            will: false,
            packet_id: publish.packet_id,
            can_be_told: Publication::can_be_told(self.is_v5(), publish.qos),
        }
    }

    fn submit(&mut self, number: Option<u64>, publication: Publication) {
        self.actions.push_back(Action::Submit(number, Submission::Publish(publication)));
    }

    pub(super) fn submit_will(&mut self, publication: Option<Publication>) {
        if let Some(publication) = publication {
            self.claim_storage(Reply::Will, Submission::Publish(publication));
        }
    }

    pub(super) fn claim_storage(&mut self, reply: Reply, submission: Submission) {
        let number = self.answers.push(reply, None);
        self.actions.push_back(Action::Submit(Some(number), submission));
    }
}

/// Whether a Topic Name is within the limits.
pub(super) fn topic_fits(topic: impl AsRef<[u8]>, limits: &Limits) -> bool {
    let topic = topic.as_ref();
    topic.len() <= limits.topic_bytes_max
        && topic.iter().filter(|byte| **byte == b'/').count() < limits.topic_levels_max
}

fn refused_unless(fits: bool) -> Option<Outcome> {
    (!fits).then_some(Outcome::Refused(Refusal::NoDataset))
}

fn reason_of(refusal: Refusal) -> Reason {
    match refusal {
        Refusal::NotAuthorized => Reason::NotAuthorized,
        Refusal::NoDataset => Reason::TopicNameInvalid,
        Refusal::PayloadInvalid => Reason::PayloadFormatInvalid,
    }
}
