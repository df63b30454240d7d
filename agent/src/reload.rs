//! What a new configuration means to a running agent. (pure)
//!
//! ```text
//! file ─▶ Config ─▶ plan: what is taken over │ what needs a restart ─▶ parts replaced (supervisor) ─▶ ReloadReport
//! ```
//!
//! Taken over is what the parts behind the spool and the router make of it: datasets, upstreams, `[batch]`, `[retention]` and
//! `on_refused`; and `[auth]`, as long as the listeners are the same. Everything else was decided when the process started and is named, so that nobody believes it is in force.
//! A configuration that cannot be used changes nothing.

use serde::{Deserialize, Serialize};

use crate::access::FileError;
use crate::config::{Config, ConfigError, Dataset, Origin, Source, Upstream};

/// What becomes of a new configuration.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What runs from then on: the new configuration, with what needs a restart as it was.
    pub config: Config,
    /// What is taken over, a few words each.
    pub taken_over: Vec<String>,
    /// Keys whose new values count after a restart only.
    pub needs_restart: Vec<String>,
}

/// How the last reload went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// Why the new configuration was refused, and the one before goes on; none: it is in force.
    pub problem: Option<String>,
    /// What was refused is at fault itself: a restart would refuse it, too.
    #[serde(default)]
    pub bad_configuration: bool,
    /// What was taken over, a few words each.
    #[serde(default)]
    pub taken_over: Vec<String>,
    /// Keys whose new values count after a restart only.
    #[serde(default)]
    pub needs_restart: Vec<String>,
}

/// Whether an error is the configuration's, or of a file that it names, so that a restart cures nothing.
#[must_use]
pub fn is_bad_configuration(error: &anyhow::Error) -> bool {
    error.is::<ConfigError>() || error.is::<FileError>()
}

/// Compares a new configuration with the running one.
#[must_use]
pub fn plan(running: &Config, mut new: Config) -> Plan {
    let mut needs_restart = needs_restart(running, &new);
    if takes_a_dataset_from_a_source(running, &new) {
        needs_restart.extend(datasets(&running.datasets, &new.datasets));
        new.datasets.clone_from(&running.datasets);
    }
    let taken_over = taken_over(running, &new);
    let auth = if running.listeners == new.listeners { new.auth } else { running.auth.clone() };
    let Config { on_refused, datasets, batch, keep_delivered_bytes, upstreams, .. } = new;
    let config = Config { auth, on_refused, datasets, batch, keep_delivered_bytes, upstreams, ..running.clone() };
    Plan { config, taken_over, needs_restart }
}

fn taken_over(running: &Config, new: &Config) -> Vec<String> {
    let mut all = datasets(&running.datasets, &new.datasets);
    all.extend(upstreams(&running.upstreams, &new.upstreams));
    all.extend(changed("batch", &running.batch, &new.batch));
    all.extend(changed("retention.keep_bytes", &running.keep_delivered_bytes, &new.keep_delivered_bytes));
    all.extend(changed("on_refused", &running.on_refused, &new.on_refused));
    // Without a listener that is not there yet `[auth]` might open one that is to all the world.
    if running.listeners == new.listeners {
        all.extend(changed("auth", &running.auth, &new.auth));
    }
    all
}

/// Whether a source, which goes on as it is until a restart, would have its messages without the dataset that is bound to
/// it: they would be acknowledged to their broker, and become dead letters. Then the datasets wait for the restart, too.
fn takes_a_dataset_from_a_source(running: &Config, new: &Config) -> bool {
    let mut bound = running.datasets.iter().filter_map(|dataset| Some((dataset, dataset.source.as_ref()?)));
    let is_changed = |(dataset, source): (&Dataset, &String)| {
        let [before, after] = [running, new].map(|config| config.sources.iter().find(|one| one.name == *source));
        before != after && !new.datasets.iter().any(|other| bare(other) == bare(dataset))
    };
    bound.any(is_changed)
}

/// Every field of [`Config`] is named here or in [`plan`], so that a new one is not forgotten.
fn needs_restart(running: &Config, new: &Config) -> Vec<String> {
    let Config {
        gateway,
        data_dir,
        listeners,
        auth,
        on_refused: _,
        limits,
        datasets: _,
        sources: _,
        spool,
        batch: _,
        keep_delivered_bytes: _,
        upstreams: _,
        log,
    } = running;
    let mut all = Vec::new();
    all.extend(changed("gateway", gateway, &new.gateway));
    all.extend(changed("data_dir", data_dir, &new.data_dir));
    all.extend(changed("listener", listeners, &new.listeners));
    if listeners != &new.listeners {
        all.extend(changed("auth", auth, &new.auth));
    }
    all.extend(changed("limits", limits, &new.limits));
    // The rest of it follows from `limits` and the sources.
    all.extend(changed("spool.max_bytes", &spool.max_bytes, &new.spool.max_bytes));
    all.extend(changed("spool.min_free_bytes", &spool.min_free_bytes, &new.spool.min_free_bytes));
    all.extend(changed("spool.on_full", &spool.on_full, &new.spool.on_full));
    all.extend(sources(&running.sources, &new.sources));
    all.extend(changed("log", log, &new.log));
    all
}

fn changed<T: PartialEq>(key: &str, running: &T, new: &T) -> Option<String> {
    (running != new).then(|| key.to_owned())
}

fn datasets(running: &[Dataset], new: &[Dataset]) -> Vec<String> {
    let name = |dataset: &Dataset| dataset.spec.name.clone();
    differences("dataset", running, new, name, |one, other| bare(one) == bare(other))
}

/// Where it is declared and what is noted of it changes nothing.
fn bare(dataset: &Dataset) -> Dataset {
    Dataset { notes: Vec::new(), origin: Origin::Default, ..dataset.clone() }
}

fn upstreams(running: &[Upstream], new: &[Upstream]) -> Vec<String> {
    differences("upstream", running, new, |upstream| upstream.url.clone(), PartialEq::eq)
}

fn sources(running: &[Source], new: &[Source]) -> Vec<String> {
    differences("source", running, new, |source| source.name.clone(), PartialEq::eq)
}

/// What was added to, changed in and removed from a list of named sections, and whether their order is another.
fn differences<T>(
    kind: &str,
    running: &[T],
    new: &[T],
    name: impl Fn(&T) -> String,
    is_same: impl Fn(&T, &T) -> bool,
) -> Vec<String> {
    let find = |all: &'_ [T], wanted: &T| all.iter().position(|one| name(one) == name(wanted));
    let mut found = Vec::new();
    for one in new {
        match find(running, one) {
            None => found.push(format!("{kind} {} added", name(one))),
            Some(before) if !is_same(&running[before], one) => found.push(format!("{kind} {} changed", name(one))),
            Some(_) => {}
        }
    }
    let removed = running.iter().filter(|one| find(new, one).is_none());
    found.extend(removed.map(|one| format!("{kind} {} removed", name(one))));
    let order = |all: &[T], others: &[T]| -> Vec<String> {
        all.iter().filter(|one| find(others, one).is_some()).map(&name).collect()
    };
    if order(running, new) != order(new, running) {
        found.push(format!("order of {kind}s"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const TEMPERATURE: &str = "[[dataset]]\nname = \"temperature\"\ntopics = [\"temp\"]\nformat = \"text\"\n";
    const HUMIDITY: &str = "[[dataset]]\nname = \"humidity\"\ntopics = [\"hum\"]\nformat = \"text\"\n";

    fn config(text: &str) -> Config {
        Config::parse(text, Path::new("forebay.toml")).unwrap()
    }

    fn planned(running: &str, new: &str) -> Plan {
        plan(&config(running), config(new))
    }

    #[test]
    fn the_same_configuration_with_other_comments_changes_nothing() {
        let plan = planned(TEMPERATURE, &format!("# moved down\n\n{TEMPERATURE}"));

        assert_eq!((plan.taken_over, plan.needs_restart), (vec![], vec![]));
    }

    #[test]
    fn a_dataset_that_is_added_changed_or_removed_is_taken_over() {
        let changed = TEMPERATURE.replace("\"temp\"", "\"temp\", \"t\"");

        assert_eq!(planned(TEMPERATURE, &format!("{TEMPERATURE}{HUMIDITY}")).taken_over, ["dataset humidity added"]);
        assert_eq!(planned(TEMPERATURE, &changed).taken_over, ["dataset temperature changed"]);
        let removed = planned(&format!("{TEMPERATURE}{HUMIDITY}"), HUMIDITY);
        assert_eq!(removed.taken_over, ["dataset temperature removed"]);
        assert_eq!(removed.config.datasets.len(), 1);
    }

    #[test]
    fn the_order_of_datasets_decides_who_takes_a_topic_so_it_is_taken_over() {
        let plan = planned(&format!("{TEMPERATURE}{HUMIDITY}"), &format!("{HUMIDITY}{TEMPERATURE}"));

        assert_eq!(plan.taken_over, ["order of datasets"]);
        assert_eq!(plan.config.datasets[0].spec.name, "humidity");
    }

    #[test]
    fn upstreams_batch_retention_and_what_is_refused_are_taken_over() {
        let new = "on_refused = \"disconnect\"\n[batch]\nrows = 7\n[retention]\nkeep_bytes = \"1MiB\"\n[[upstream]]\nurl = \"file:///mnt\"";

        let plan = planned("", new);

        let words = ["upstream file:///mnt added", "batch", "retention.keep_bytes", "on_refused"];
        assert_eq!((plan.taken_over, plan.needs_restart), (words.map(str::to_owned).to_vec(), vec![]));
        assert_eq!((plan.config.batch.rows, plan.config.keep_delivered_bytes), (7, 1 << 20));
    }

    #[test]
    fn what_needs_a_restart_is_named_and_stays_as_it_was() {
        let new = "
            gateway = \"other\"
            data_dir = \"/elsewhere\"
            [[listener]]
            bind = \"127.0.0.1:2000\"
            [auth]
            allow_anonymous = true
            [limits]
            connections_max = 7
            [spool]
            max_bytes = \"1GiB\"
            [[source]]
            name = \"plant\"
            url = \"mqtt://plant.example.com\"
            [log]
            level = \"debug\"
        ";

        let plan = planned("gateway = \"gw\"", new);

        let keys =
            ["gateway", "data_dir", "listener", "auth", "limits", "spool.max_bytes", "source plant added", "log"];
        assert_eq!(plan.needs_restart, keys);
        assert_eq!(plan.taken_over, Vec::<String>::new());
        assert_eq!((plan.config.gateway.as_str(), plan.config.sources.len()), ("gw", 0));
        assert_eq!(plan.config.spool, Config::default().spool);
    }

    #[test]
    fn who_may_connect_is_taken_over_unless_the_listeners_are_others() {
        let auth = "[auth]\npassword_file = \"/etc/passwd\"\n";

        let same = planned("", auth);
        let other = planned("", &format!("[[listener]]\nbind = \"127.0.0.1:2\"\n{auth}"));

        assert_eq!(same.taken_over, ["auth"]);
        assert!(same.config.auth.password_file.is_some());
        assert_eq!(other.needs_restart, ["listener", "auth"]);
        assert!(other.config.auth.password_file.is_none());
    }

    #[test]
    fn a_dataset_stays_with_its_source_when_both_are_renamed_until_a_restart() {
        let bound = |source: &str, more: &str| {
            format!("[[source]]\nname = \"{source}\"\nurl = \"mqtt://b\"\n{TEMPERATURE}source = \"{source}\"\n{more}")
        };

        let renamed = planned(&bound("plant", ""), &bound("factory", HUMIDITY));
        let beside = planned(&bound("plant", ""), &bound("plant", HUMIDITY));

        let words =
            ["source factory added", "source plant removed", "dataset temperature changed", "dataset humidity added"];
        assert_eq!((renamed.needs_restart, renamed.taken_over), (words.map(str::to_owned).to_vec(), vec![]));
        assert_eq!(renamed.config.datasets[0].source.as_deref(), Some("plant"));
        assert_eq!(beside.taken_over, ["dataset humidity added"]);
    }

    #[test]
    fn a_source_without_topics_of_its_own_hears_of_a_new_dataset_after_a_restart() {
        let source = "[[source]]\nname = \"plant\"\nurl = \"mqtt://plant.example.com\"\n";

        let plan = planned(&format!("{source}{TEMPERATURE}"), &format!("{source}{TEMPERATURE}{HUMIDITY}"));

        assert_eq!(plan.taken_over, ["dataset humidity added"]);
        assert_eq!(plan.needs_restart, ["source plant changed"]);
    }
}
