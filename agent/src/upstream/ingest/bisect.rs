//! Which rows of a refused batch are at fault: found by asking for parts of it. (pure)
//!
//! A node takes a request as a whole or refuses it with a 500 that says nothing more. One row that it cannot read is
//! enough for that, and so is a fault of its own. [`Bisect`] tells these apart by asking for smaller and smaller parts:
//!
//! 1. Single rows, spread over the batch, until one is taken. If none of [`PROBES`] is, not the rows are at fault but the
//!    node or the schema ([`Verdict::Everything`]), found out with a handful of small requests.
//! 2. The rest in halves, depth first and from the left, so that rows arrive in order of their number, each once. Where
//!    the left half of what was refused is taken, the right half is halved at once: it would be refused.
//! 3. A single row that is refused is asked for again when something else has been taken. It is poison when it is refused
//!    twice and something else was taken after each refusal. If nothing is left to ask for, or [`STREAK_MAX`] rows in a
//!    row were refused, a row that was taken before is asked for once more: a node that refuses even that
//!    ([`Verdict::Fickle`]) has accused no row.
//!
//! So one poison row among n costs about 2 log₂ n requests, a run of p of them 3 p and an eighth more, and a node that
//! stops taking anything is given up after log₂ n + [`STREAK_MAX`] requests.

use std::collections::BTreeSet;
use std::ops::Range;

/// Single rows that are tried at the most before everything is said to be refused.
pub const PROBES: u64 = 16;
/// Rows refused in a row, after which it is asked whether the node still takes anything.
pub const STREAK_MAX: u32 = 16;
/// Poison rows of a batch beyond which rows are no longer believed to be at fault.
pub const POISON_MAX: usize = 1_000;

/// The search through one batch. Ask [`poll_request`](Self::poll_request) what to send, say how it was answered with
/// [`handle_taken`](Self::handle_taken) or [`handle_refused`](Self::handle_refused), and again, until there is a
/// [`verdict`](Self::verdict).
#[derive(Clone, Debug)]
pub struct Bisect {
    rows: Range<u64>,
    /// Single rows to begin with, the next at the end. Empty once something was taken.
    probes: Vec<u64>,
    /// Parts that were not asked for yet, the next at the end.
    open: Vec<Part>,
    /// Refused once, nothing taken since.
    suspects: Vec<u64>,
    /// Refused once, something taken since: to be asked for again.
    ripe: BTreeSet<u64>,
    /// Refused twice, nothing taken since.
    condemned: Vec<u64>,
    poison: BTreeSet<u64>,
    /// A row that was taken.
    good: Option<u64>,
    /// Rows refused for the first time since something was taken.
    streak: u32,
    asked: Option<(Range<u64>, Why)>,
    verdict: Option<Verdict>,
}

/// What a search has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// These rows are refused, ascending; all others were taken.
    Poison(Vec<u64>),
    /// No row was taken: the node or the schema is at fault.
    Everything,
    /// More than [`POISON_MAX`] rows are refused.
    TooMany,
    /// The node refuses what it took before: nothing is known.
    Fickle,
}

#[derive(Clone, Debug)]
struct Part {
    rows: Range<u64>,
    guess: Guess,
}

/// What is known of a part that was not asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guess {
    /// Nothing.
    Open,
    /// That it holds poison if the part before it is taken.
    AfterLeft,
    /// That it holds poison.
    Poisoned,
}

/// Why a request is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Probe,
    Part,
    Again,
    Control,
}

impl Bisect {
    /// For rows that were refused together.
    #[must_use]
    pub fn new(rows: Range<u64>) -> Self {
        let mut probes = spread(&rows);
        probes.reverse();
        Self {
            verdict: rows.is_empty().then(|| Verdict::Poison(Vec::new())),
            rows,
            probes,
            open: Vec::new(),
            suspects: Vec::new(),
            ripe: BTreeSet::new(),
            condemned: Vec::new(),
            poison: BTreeSet::new(),
            good: None,
            streak: 0,
            asked: None,
        }
    }

    /// The rows to send next; the same until it is said how they were answered. None: there is a verdict.
    pub fn poll_request(&mut self) -> Option<Range<u64>> {
        if self.verdict.is_some() {
            return None;
        }
        if self.asked.is_none() {
            self.asked = self.choose();
        }
        if self.asked.is_none() {
            self.verdict = Some(Verdict::Poison(self.poison.iter().copied().collect()));
        }
        self.asked.as_ref().map(|(rows, _)| rows.clone())
    }

    /// The rows that were asked for are with the node.
    pub fn handle_taken(&mut self, rows: &Range<u64>) {
        let Some(why) = self.answered(rows) else { return };
        match why {
            Why::Probe => self.begin_around(rows.start),
            Why::Part => self.guess_right(Guess::Poisoned),
            Why::Again | Why::Control => {}
        }
        self.streak = 0;
        self.good = rows.clone().next_back();
        self.poison.extend(self.condemned.drain(..));
        self.ripe.extend(self.suspects.drain(..));
        if self.poison.len() > POISON_MAX {
            self.verdict = Some(Verdict::TooMany);
        }
    }

    /// The rows that were asked for were refused with a 500.
    pub fn handle_refused(&mut self, rows: &Range<u64>) {
        let Some(why) = self.answered(rows) else { return };
        match why {
            Why::Probe => self.suspects.push(rows.start),
            Why::Part => self.part_refused(rows),
            Why::Again => self.condemned.push(rows.start),
            Why::Control => self.verdict = Some(Verdict::Fickle),
        }
        if self.good.is_none() && self.probes.is_empty() {
            self.verdict = Some(Verdict::Everything);
        }
    }

    /// What was found, once nothing is left to ask.
    #[must_use]
    pub fn verdict(&self) -> Option<&Verdict> {
        self.verdict.as_ref()
    }

    /// Whether the request that is open asks again for a row that the node has.
    #[must_use]
    pub fn is_control(&self) -> bool {
        matches!(self.asked, Some((_, Why::Control)))
    }

    fn answered(&mut self, rows: &Range<u64>) -> Option<Why> {
        self.asked.take_if(|(asked, _)| asked == rows).map(|(_, why)| why)
    }

    fn choose(&mut self) -> Option<(Range<u64>, Why)> {
        if let Some(row) = self.probes.pop() {
            return Some((single(row), Why::Probe));
        }
        if let Some(row) = self.ripe.pop_first() {
            return Some((single(row), Why::Again));
        }
        if self.streak < STREAK_MAX
            && let Some(rows) = self.next_part()
        {
            return Some((rows, Why::Part));
        }
        let is_settled = self.suspects.is_empty() && self.condemned.is_empty();
        let good = self.good.filter(|_| !is_settled)?;
        Some((single(good), Why::Control))
    }

    /// Halves what is known to hold poison until something is left to ask.
    fn next_part(&mut self) -> Option<Range<u64>> {
        while let Some(Part { rows, guess }) = self.open.pop() {
            if guess != Guess::Poisoned || length(&rows) == 1 {
                return Some(rows);
            }
            self.halve(&rows);
        }
        None
    }

    fn part_refused(&mut self, rows: &Range<u64>) {
        self.guess_right(Guess::Open);
        if length(rows) > 1 {
            return self.halve(rows);
        }
        self.suspects.push(rows.start);
        self.streak += 1;
    }

    fn halve(&mut self, rows: &Range<u64>) {
        let middle = rows.start + length(rows) / 2;
        self.open.push(Part { rows: middle..rows.end, guess: Guess::AfterLeft });
        self.open.push(Part { rows: rows.start..middle, guess: Guess::Open });
    }

    /// The answer to a left half is what is known of its right one.
    fn guess_right(&mut self, guess: Guess) {
        if let Some(right) = self.open.last_mut().filter(|part| part.guess == Guess::AfterLeft) {
            right.guess = guess;
        }
    }

    /// The first row was taken: opens what lies between it and the rows that were refused before.
    fn begin_around(&mut self, taken: u64) {
        self.probes.clear();
        // With the very first row taken, whatever made the batch be refused is in the rest.
        let guess = if self.suspects.is_empty() { Guess::Poisoned } else { Guess::Open };
        let mut end = self.rows.end;
        for &row in self.suspects.iter().chain([&taken]).rev() {
            if row + 1 < end {
                self.open.push(Part { rows: row + 1..end, guess });
            }
            end = row;
        }
    }
}

/// At most [`PROBES`] rows, ascending, from the first to the last.
fn spread(rows: &Range<u64>) -> Vec<u64> {
    let length = length(rows);
    if length <= PROBES {
        return rows.clone().collect();
    }
    let place = |probe: u64| u128::from(probe) * u128::from(length - 1) / u128::from(PROBES - 1);
    (0..PROBES).filter_map(|probe| Some(rows.start + u64::try_from(place(probe)).ok()?)).collect()
}

fn single(row: u64) -> Range<u64> {
    row..row + 1
}

fn length(rows: &Range<u64>) -> u64 {
    rows.end.saturating_sub(rows.start)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_poison_row_is_found_with_two_requests_a_halving() {
        for poison in [1, 2, 499, 500, 999] {
            let asked = run(1_000, |rows| !rows.contains(&poison));

            assert_eq!(asked.verdict, Verdict::Poison(vec![poison]));
            assert!(asked.requests.len() <= 1 + 2 * 10 + 3, "{poison}: {:?}", asked.requests);
            assert!(asked.taken.is_sorted(), "rows arrive in order");
        }
    }

    #[test]
    fn a_node_that_takes_nothing_is_found_out_with_single_rows_only() {
        let asked = run(1_000_000, |_| false);

        assert_eq!(asked.verdict, Verdict::Everything);
        assert_eq!(asked.requests.len() as u64, PROBES);
        assert!(asked.requests.iter().all(|rows| length(rows) == 1));
        assert_eq!(asked.requests.first().zip(asked.requests.last()), Some((&(0..1), &(999_999..1_000_000))));
    }

    #[test]
    fn a_single_row_alone_has_no_neighbours_that_could_accuse_it() {
        assert_eq!(run(1, |_| false).verdict, Verdict::Everything);
        assert_eq!(run(1, |_| true).verdict, Verdict::Poison(vec![]));
        assert_eq!(run(0, |_| true).requests, []);
    }

    #[test]
    fn a_row_that_is_refused_once_only_is_not_poison() {
        let mut refused = BTreeSet::new();

        let asked = run(64, |rows| !rows.contains(&40) || (length(rows) == 1 && !refused.insert(rows.start)));

        assert_eq!(asked.verdict, Verdict::Poison(vec![]));
        assert_eq!(BTreeSet::from_iter(asked.taken), BTreeSet::from_iter(0..64));
    }

    #[test]
    fn the_last_row_is_accused_only_while_the_node_takes_what_it_took_before() {
        let asked = run(3, |rows| !rows.contains(&2));

        assert_eq!(asked.requests, [0..1, 1..2, 2..3, 1..2, 2..3, 1..2]);
        assert_eq!(asked.verdict, Verdict::Poison(vec![2]));
    }

    #[test]
    fn too_many_poison_rows_end_the_search() {
        let asked = run(100_000, |rows| rows.start >= 2_000 || rows.end <= 1);
        assert_eq!(asked.verdict, Verdict::TooMany);
        assert!(asked.requests.len() < POISON_MAX * 13 / 4, "{}", asked.requests.len());
    }

    proptest! {
        #[test]
        fn exactly_the_poison_is_found_and_every_other_row_is_taken_once(
            rows in 2..5_000_u64,
            picks in prop::collection::vec((any::<prop::sample::Index>(), 1..4_u64), 0..30),
        ) {
            let poison = poison_of(rows, &picks);
            let asked = run(rows, |range| !range.clone().any(|row| poison.contains(&row)));

            if spread(&(0..rows)).iter().all(|probe| poison.contains(probe)) {
                prop_assert_eq!(asked.verdict, Verdict::Everything);
                return Ok(());
            }
            prop_assert_eq!(asked.verdict, Verdict::Poison(poison.iter().copied().collect()));
            let good: Vec<u64> = (0..rows).filter(|row| !poison.contains(row)).collect();
            prop_assert!(asked.taken.is_sorted() || poison.contains(&0));
            let mut taken = asked.taken;
            taken.sort_unstable();
            prop_assert_eq!(taken, good);
            let bound = 2 * PROBES as usize + poison.len() * (2 * levels(rows) + 3) + 4;
            prop_assert!(asked.requests.len() <= bound, "{} > {bound}", asked.requests.len());
        }

        #[test]
        fn a_node_that_stops_taking_anything_accuses_no_good_row_and_is_soon_given_up(
            rows in 2..100_000_u64,
            picks in prop::collection::vec((any::<prop::sample::Index>(), 1..4_u64), 0..20),
            healthy in 0..200_usize,
        ) {
            let poison = poison_of(rows, &picks);
            let mut answers = 0;
            let asked = run(rows, |range| {
                answers += 1;
                answers <= healthy && !range.clone().any(|row| poison.contains(&row))
            });

            match asked.verdict {
                Verdict::Poison(found) => prop_assert_eq!(found, Vec::from_iter(poison)),
                Verdict::TooMany => prop_assert!(false, "too many"),
                Verdict::Everything | Verdict::Fickle => {}
            }
            let after = asked.requests.len().saturating_sub(healthy);
            prop_assert!(after <= levels(rows) + 2 * STREAK_MAX as usize + 2, "{after}");
        }

        #[test]
        fn whatever_a_node_answers_the_search_ends(rows in 1..3_000_u64, seed in any::<u64>()) {
            let mut random = fastrand::Rng::with_seed(seed);
            let asked = run(rows, |_| random.bool());

            prop_assert!(asked.requests.len() as u64 <= 5 * rows + PROBES);
        }
    }

    struct Asked {
        verdict: Verdict,
        requests: Vec<Range<u64>>,
        /// Rows taken, in order, without those that were there.
        taken: Vec<u64>,
    }

    fn run(rows: u64, mut takes: impl FnMut(&Range<u64>) -> bool) -> Asked {
        let mut bisect = Bisect::new(0..rows);
        let (mut requests, mut taken) = (Vec::new(), Vec::new());
        while let Some(asked) = bisect.poll_request() {
            assert!(!asked.is_empty() && asked.end <= rows, "{asked:?}");
            assert_eq!(bisect.poll_request(), Some(asked.clone()), "the same until it is answered");
            let is_control = bisect.is_control();
            if takes(&asked) {
                bisect.handle_taken(&asked);
                taken.extend(asked.clone().filter(|_| !is_control));
            } else {
                bisect.handle_refused(&asked);
            }
            requests.push(asked);
        }
        Asked { verdict: bisect.verdict().unwrap().clone(), requests, taken }
    }

    fn poison_of(rows: u64, picks: &[(prop::sample::Index, u64)]) -> BTreeSet<u64> {
        let runs = picks.iter().map(|(index, run)| {
            let first = index.index(rows as usize) as u64;
            first..(first + run).min(rows)
        });
        runs.flatten().collect()
    }

    fn levels(rows: u64) -> usize {
        rows.next_power_of_two().ilog2() as usize
    }
}
