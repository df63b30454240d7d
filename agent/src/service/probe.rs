//! Whether the way of a message is open: a question goes through ingest and the spool's writer, one at a time.
//!
//! It takes its turn in the same queues as messages do, and nothing is written for it, so a gateway without messages lets
//! its disk sleep.

use std::fmt;
use std::time::Instant;

use forebay_broker::inbound::{Outcome, Ticket};
use forebay_storage::spool::Request;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{self, UnboundedReceiver, WeakSender};

/// A part that has not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silent {
    /// Which.
    pub part: Part,
    /// When it was asked.
    pub since: Instant,
}

/// Whoever a message needs in order to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The task that takes messages from broker and sources.
    Ingest,
    /// The thread that stores them.
    Writer,
}

/// Asks, and sees whether there is an answer.
#[derive(Debug)]
pub struct Probe {
    /// To ingest; for one question.
    ingest: mpsc::Sender<Ticket>,
    /// The writer's queue, which says who holds up a question.
    writer: WeakSender<Request<Ticket>>,
    asked: Option<(Instant, UnboundedReceiver<(u64, Outcome)>)>,
}

impl Probe {
    /// Nothing has been asked yet.
    #[must_use]
    pub fn new(ingest: mpsc::Sender<Ticket>, writer: WeakSender<Request<Ticket>>) -> Self {
        Self { ingest, writer, asked: None }
    }

    /// Looks for the answer to the last question, and asks the next one when it is there.
    pub fn handle_look(&mut self, now: Instant) -> Option<Silent> {
        if let Some((since, answer)) = &mut self.asked
            && matches!(answer.try_recv(), Err(TryRecvError::Empty))
        {
            let since = *since;
            return Some(Silent { part: self.who(), since });
        }
        let (outcomes, answer) = mpsc::unbounded_channel();
        // When ingest has ended the ticket answers itself, and whoever waits for ingest ends the agent.
        let _ = self.ingest.try_send(Ticket::new(0, outcomes, None));
        self.asked = Some((now, answer));
        None
    }

    /// Ingest cannot take a question while the writer's queue is full.
    fn who(&self) -> Part {
        let is_taken = self.ingest.capacity() > 0;
        let is_held_up = || self.writer.upgrade().is_some_and(|queue| queue.capacity() == 0);
        if is_taken || is_held_up() { Part::Writer } else { Part::Ingest }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingest => "ingest",
            Self::Writer => "the spool's writer",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_storage::durable_fs::DurableFs;
    use forebay_storage::spool::{Spool, SpoolConfig, Writer};
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_writer_at_work_answers_each_question() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, _) = Spool::open(dir.path(), SpoolConfig::default(), DurableFs::new()).unwrap();
        let (mut probe, mut questions, queue, requests) = probe();
        let writing = std::thread::spawn(move || {
            Writer::new(spool, |ticket: Ticket, _| ticket.resolve(Outcome::Stored)).run(requests).unwrap();
        });
        let start = crate::clock::now();

        for number in 0..3 {
            assert_eq!(probe.handle_look(start + SECOND * number), None);
            queue.blocking_send(Request::Probe { ticket: questions.blocking_recv().unwrap() }).unwrap();
            wait_for_answer(&mut probe);
        }
        drop(queue);
        writing.join().unwrap();
    }

    #[test]
    fn a_question_that_nobody_takes_accuses_ingest_since_it_was_asked() {
        let (mut probe, _questions, _queue, _requests) = probe();
        let start = crate::clock::now();

        assert_eq!(probe.handle_look(start), None);
        let silent = Silent { part: Part::Ingest, since: start };
        assert_eq!(probe.handle_look(start + SECOND), Some(silent));
        assert_eq!(probe.handle_look(start + SECOND * 9), Some(silent));
    }

    #[test]
    fn a_question_that_ingest_has_handed_on_accuses_the_writer() {
        let (mut probe, mut questions, queue, _requests) = probe();
        let start = crate::clock::now();

        probe.handle_look(start);
        queue.try_send(Request::Probe { ticket: questions.try_recv().unwrap() }).unwrap();

        assert_eq!(probe.handle_look(start + SECOND), Some(Silent { part: Part::Writer, since: start }));
    }

    #[test]
    fn a_question_that_ingest_cannot_take_because_the_queue_is_full_accuses_the_writer() {
        let (mut probe, _questions, queue, _requests) = probe();
        queue.try_send(Request::Probe { ticket: Ticket::unattended(None) }).unwrap();
        let start = crate::clock::now();

        probe.handle_look(start);

        assert_eq!(probe.handle_look(start + SECOND), Some(Silent { part: Part::Writer, since: start }));
    }

    type Ends = (Probe, mpsc::Receiver<Ticket>, mpsc::Sender<Request<Ticket>>, mpsc::Receiver<Request<Ticket>>);

    /// A probe, ingest's end of it, and a queue to the writer that holds one request.
    fn probe() -> Ends {
        let (ingest, questions) = mpsc::channel(1);
        let (queue, requests) = mpsc::channel(1);
        (Probe::new(ingest, queue.downgrade()), questions, queue, requests)
    }

    fn wait_for_answer(probe: &mut Probe) {
        let (_, answer) = probe.asked.take().unwrap();
        let mut answer = answer;
        assert!(answer.blocking_recv().is_some());
    }
}
