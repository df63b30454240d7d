//! Wakes deliveries: when something was sealed, when a person wants it now, and when they are to stop.

use tokio::sync::watch;

/// Rung by the sealer and the supervisor, heard by every delivery.
#[derive(Debug)]
pub struct Bell {
    rings: watch::Sender<Rings>,
}

/// How often it has rung for what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rings {
    /// Something was sealed.
    pub sealed: u64,
    /// Everything is to be tried at once, whatever rests and whichever window is closed.
    pub urges: u64,
    /// The deliveries stop: the agent does, or goes on with others.
    pub stopped: bool,
}

impl Default for Bell {
    fn default() -> Self {
        Self { rings: watch::Sender::new(Rings::default()) }
    }
}

impl Bell {
    /// Something was sealed.
    pub fn ring(&self) {
        self.rings.send_modify(|rings| rings.sealed += 1);
    }

    /// Everything is to be tried at once. Answers the number of this urge.
    pub fn urge(&self) -> u64 {
        self.rings.send_modify(|rings| rings.urges += 1);
        self.rings.borrow().urges
    }

    /// One for the deliveries that follow. It counts on, so that no urge of before is taken for one of theirs.
    #[must_use]
    pub fn next(&self) -> Self {
        Self { rings: watch::Sender::new(Rings { stopped: false, ..self.rings() }) }
    }

    /// For the last time.
    pub fn stop(&self) {
        self.rings.send_modify(|rings| rings.stopped = true);
    }

    /// Whether its deliveries are to stop.
    pub fn is_stopped(&self) -> bool {
        self.rings.borrow().stopped
    }

    /// How often it has rung so far.
    pub fn rings(&self) -> Rings {
        *self.rings.borrow()
    }

    /// Waits until it has rung again, for anything that `matters` tells from `heard`.
    pub async fn wait(&self, heard: Rings, matters: impl Fn(&Rings, &Rings) -> bool) {
        let mut listening = self.rings.subscribe();
        // The bell is ours, so it does not go away while it is waited for.
        let _ = listening.wait_for(|now| now.stopped || matters(now, &heard)).await;
    }

    /// Waits until its deliveries are to stop.
    pub async fn stopped(&self) {
        self.wait(Rings::default(), |_, _| false).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_bell_is_not_stopped_and_counts_its_urges_on() {
        let bell = Bell::default();
        bell.urge();
        bell.stop();

        let next = bell.next();

        assert!(bell.is_stopped() && !next.is_stopped());
        assert_eq!(next.urge(), 2);
    }
}
