//! Which dataset takes a topic. (pure)
//!
//! The first pattern in file order that matches takes the message. What the pattern captured is kept as byte ranges of
//! the topic, so that a message in the spool is complete whatever the configuration says later.

use std::ops::Range;

use forebay_broker::topic::TopicPattern;

use crate::config::Dataset;

/// Patterns in file order.
#[derive(Clone, Debug)]
pub struct Router {
    routes: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    pattern: TopicPattern,
    dataset: usize,
    /// Takes messages of this source only.
    source: Option<String>,
}

/// Where a topic goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Index of the dataset in the configuration.
    pub dataset: usize,
    /// What its captures took, as byte ranges of the topic.
    pub captures: Vec<Range<u16>>,
}

/// A pattern that never takes a message, because an earlier one takes all of its topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shadowed {
    /// Index of the dataset of the pattern.
    pub dataset: usize,
    /// The pattern.
    pub pattern: String,
    /// Index of the dataset that takes its topics.
    pub by_dataset: usize,
    /// The pattern that does.
    pub by_pattern: String,
}

impl Router {
    /// The routes of these datasets.
    pub fn new(datasets: &[Dataset]) -> Self {
        let routes = datasets
            .iter()
            .enumerate()
            .flat_map(|(index, dataset)| {
                dataset.topics.iter().map(move |pattern| Entry {
                    pattern: pattern.clone(),
                    dataset: index,
                    source: dataset.source.clone(),
                })
            })
            .collect();
        Self { routes }
    }

    /// Where `topic` goes, if any dataset takes it. `source`: whence it comes, if not from a device.
    pub fn route(&self, topic: &str, source: Option<&str>) -> Option<Route> {
        self.routes.iter().find_map(|entry| {
            if entry.source.is_some() && entry.source.as_deref() != source {
                return None;
            }
            let captures = entry.pattern.captures_of(topic)?;
            Some(Route { dataset: entry.dataset, captures })
        })
    }

    /// Patterns that never take a message. A pattern that several earlier ones cover only together is not found.
    pub fn shadowed(&self) -> Vec<Shadowed> {
        let mut shadowed = Vec::new();
        for (position, entry) in self.routes.iter().enumerate() {
            let earlier = &self.routes[..position];
            let by = earlier.iter().find(|by| {
                let takes_its_messages = by.source.is_none() || by.source == entry.source;
                takes_its_messages && covers(by.pattern.as_str(), entry.pattern.as_str())
            });
            if let Some(by) = by {
                shadowed.push(Shadowed {
                    dataset: entry.dataset,
                    pattern: entry.pattern.to_string(),
                    by_dataset: by.dataset,
                    by_pattern: by.pattern.to_string(),
                });
            }
        }
        shadowed
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level<'a> {
    Literal(&'a str),
    Single,
    Multi,
}

/// Whether every topic of pattern `narrow` is a topic of pattern `wide`.
fn covers(wide: &str, narrow: &str) -> bool {
    let (wide, narrow) = (levels(wide), levels(narrow));
    let starts_with_wildcard = !matches!(wide.first(), Some(Level::Literal(_)));
    // [MQTT-4.7.2-1]: a leading wildcard does not take topics that begin with `$`.
    let is_system = matches!(narrow.first(), Some(Level::Literal(first)) if first.starts_with('$'));
    !(starts_with_wildcard && is_system) && covers_levels(&wide, &narrow)
}

/// Another of these filters that takes every topic of the one at `position`; of two that are equal the first.
pub fn wider(filters: &[&str], position: usize) -> Option<usize> {
    let narrow = filters[position];
    filters
        .iter()
        .enumerate()
        .position(|(other, wide)| other != position && covers(wide, narrow) && (*wide != narrow || other < position))
}

fn covers_levels(wide: &[Level<'_>], narrow: &[Level<'_>]) -> bool {
    match (wide, narrow) {
        // `a/#` takes `a` too.
        ([Level::Multi], _) | ([], []) => true,
        ([Level::Single, wide @ ..], [Level::Single | Level::Literal(_), narrow @ ..]) => covers_levels(wide, narrow),
        ([Level::Literal(a), wide @ ..], [Level::Literal(b), narrow @ ..]) if a == b => covers_levels(wide, narrow),
        _ => false,
    }
}

/// Whether some topic is one of both patterns, level by level. (That `$` needs a literal is not looked at.)
pub fn overlaps(one: &str, other: &str) -> bool {
    overlaps_levels(&levels(one), &levels(other))
}

fn overlaps_levels(one: &[Level<'_>], other: &[Level<'_>]) -> bool {
    match (one, other) {
        ([Level::Multi, ..], _) | (_, [Level::Multi, ..]) | ([], []) => true,
        ([a, one @ ..], [b, other @ ..]) if a == b || *a == Level::Single || *b == Level::Single => {
            overlaps_levels(one, other)
        }
        _ => false,
    }
}

fn levels(pattern: &str) -> Vec<Level<'_>> {
    pattern
        .split('/')
        .map(|level| match level {
            "#" => Level::Multi,
            "+" => Level::Single,
            capture if capture.starts_with('{') && capture.ends_with("...}") => Level::Multi,
            capture if capture.starts_with('{') && capture.ends_with('}') => Level::Single,
            literal => Level::Literal(literal),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::path::Path;

    fn router(topics: &[&str]) -> Router {
        let text: String = topics
            .iter()
            .enumerate()
            .map(|(index, topic)| {
                format!("[[dataset]]\nname = \"d{index}\"\nformat = \"text\"\ntopics = [\"{topic}\"]\n")
            })
            .collect();
        Router::new(&Config::parse(&text, Path::new("t")).unwrap().datasets)
    }

    #[test]
    fn the_first_pattern_in_file_order_takes_the_topic() {
        let router = router(&["site/{site}/temp", "site/#", "#"]);

        let datasets: Vec<_> = ["site/a/temp", "site/a/hum", "other", "$SYS/x"]
            .map(|topic| router.route(topic, None).map(|route| route.dataset))
            .into();

        assert_eq!(datasets, [Some(0), Some(1), Some(2), None]);
    }

    #[test]
    fn captures_are_ranges_of_the_topic() {
        let topic = "site/berlin/dev-7/temp";
        let route = router(&["site/{site}/{device}/temp"]).route(topic, None).unwrap();

        let captured: Vec<&str> =
            route.captures.iter().map(|range| &topic[usize::from(range.start)..usize::from(range.end)]).collect();

        assert_eq!(captured, ["berlin", "dev-7"]);
    }

    #[test]
    fn without_a_dataset_every_topic_goes_to_messages() {
        let router = Router::new(&Config::default().datasets);

        assert_eq!(router.route("anything/at/all", None).map(|route| route.dataset), Some(0));
    }

    #[test]
    fn a_pattern_behind_a_wider_one_never_takes_a_message() {
        let shadowed = router(&["site/+/temp", "site/{site}/temp", "#", "late"]).shadowed();

        let pairs: Vec<_> = shadowed.iter().map(|s| (s.dataset, s.by_dataset)).collect();
        assert_eq!(pairs, [(1, 0), (3, 2)]);
    }

    #[test]
    fn a_dataset_of_one_source_takes_nothing_of_others() {
        let text = "
            [[source]]
            name = \"plant\"
            url = \"mqtt://plant.example.com\"
            [[dataset]]
            name = \"plant\"
            source = \"plant\"
            format = \"text\"
            topics = [\"#\"]
            [[dataset]]
            name = \"rest\"
            format = \"text\"
            topics = [\"#\"]
        ";
        let router = Router::new(&Config::parse(text, Path::new("t")).unwrap().datasets);

        let dataset = |source| router.route("a/b", source).map(|route| route.dataset);

        assert_eq!((dataset(Some("plant")), dataset(Some("office")), dataset(None)), (Some(0), Some(1), Some(1)));
        assert_eq!(router.shadowed(), []);
    }

    #[test]
    fn patterns_overlap_when_a_topic_is_one_of_both() {
        for (one, other) in [("a/#", "a"), ("a/+/c", "{x}/b/#"), ("+/b", "a/{y}"), ("#", "a/b"), ("a", "a")] {
            assert!(overlaps(one, other) && overlaps(other, one), "{one} and {other}");
        }
        for (one, other) in [("a/b", "a/c"), ("a/+", "a"), ("a/b/c", "+/b"), ("a/#", "b")] {
            assert!(!overlaps(one, other) && !overlaps(other, one), "{one} and {other}");
        }
    }

    #[test]
    fn covering_follows_the_rules_of_topic_filters() {
        for (wide, narrow) in [
            ("#", "a/b"),
            ("a/#", "a"),
            ("a/#", "a/+/c"),
            ("+/b", "a/b"),
            ("{x}/b", "+/b"),
            ("{rest...}", "a/#"),
            ("a/b", "a/b"),
        ] {
            assert!(covers(wide, narrow), "{wide} covers {narrow}");
        }
        for (wide, narrow) in
            [("a/b", "a/+"), ("+/b", "a/b/c"), ("a/+", "a/#"), ("#", "$SYS/#"), ("+/x", "$SYS/x"), ("a/+", "a")]
        {
            assert!(!covers(wide, narrow), "{wide} does not cover {narrow}");
        }
    }
}
