//! What is wrong with an upstream is said in one line that names what to change, by `sync --once` and by `status`; once it
//! is put right, the data goes, and none was lost meanwhile.

use std::fs;
use std::path::Path;

use forebay_tests::agent::AgentConfig;
use forebay_tests::s3::{self, S3Server};
use forebay_tests::tls::TlsFiles;

use crate::{S3_PROGRAM, forebay, publish, start, start_node, temp};

/// Publishes a message, has it delivered in vain, and answers the one line about it, from both commands alike.
fn the_line(config: &AgentConfig, url: &str) -> String {
    let agent = start(config);
    publish(&agent, &["precious"]);
    let (is_ok, synced) = forebay(config, &["sync", "--once"]);
    assert!(!is_ok, "{synced}");
    let (_, status) = forebay(config, &["status"]);
    let errors = agent.stop_with_errors().unwrap();
    assert!(errors.len() <= 1, "one line in the log, too: {errors:#?}");

    assert!(!synced.contains("deliver dataset"), "nothing is said twice: {synced}");
    let lines: Vec<&str> = synced.lines().filter_map(|line| line.strip_prefix("problem: ")).collect();
    assert_eq!(lines.len(), 1, "{synced}");
    let line =
        lines[0].strip_prefix(&format!("{url}: dataset temp: ")).unwrap_or_else(|| panic!("{synced}")).to_owned();
    assert!(status.contains(&line), "status does not say {line:?}:\n{status}");
    println!("{line}");
    line
}

/// After it was put right, what was acknowledged then is delivered by an agent that starts anew.
fn heals(config: &AgentConfig) {
    let (is_ok, synced) = forebay(config, &["sync", "--once"]);
    assert!(is_ok, "{synced}");
    assert!(synced.contains("sync: ok"), "{synced}");
}

fn with_upstream(dir: &Path, url: &str, keys: &str) -> AgentConfig {
    temp(dir).with(&format!("[upstream]\nurl = '{url}'\ntimeout = \"20s\"\n{keys}"))
}

#[test]
fn a_url_where_nothing_listens() {
    let dir = tempfile::tempdir().unwrap();
    let free = "127.0.0.1:1"; // of no service, and root's
    for scheme in ["odf+http", "http"] {
        let url = format!("{scheme}://{free}/acme");

        let line = the_line(&with_upstream(&dir.path().join(scheme), &url, ""), &url);

        assert!(line.contains("cannot connect to 127.0.0.1") && line.contains("refused"), "{line}");
    }
}

#[test]
fn a_url_where_something_else_answers() {
    let dir = tempfile::tempdir().unwrap();
    let server = S3Server::start(Path::new(S3_PROGRAM), &made(&dir.path().join("s3"))).unwrap();
    for scheme in ["odf+http", "http"] {
        let url = format!("{scheme}://{}/acme", server.addr());

        let line = the_line(&with_upstream(&dir.path().join(scheme), &url, ""), &url);

        assert!(line.contains("answers as a Kamu node: check `url`"), "{line}");
    }
}

#[test]
fn a_token_that_is_not_valid_until_the_file_has_another() {
    let dir = tempfile::tempdir().unwrap();
    let (node, token) = start_node(dir.path(), |config| config);
    for scheme in ["odf+http", "http"] {
        fs::write(&token, "ka_wrong").unwrap();
        let url = url(scheme, &node.url(), "acme");
        let config = with_upstream(&dir.path().join(scheme), &url, &token_key(&token));

        let line = the_line(&config, &url);

        assert!(
            line.contains("401") && line.contains(&format!("put a valid token into {}", token.display())),
            "{line}"
        );
        fs::write(&token, node.token()).unwrap();
        if scheme == "http" {
            assert!(forebay(&config, &["provision"]).0);
        }
        // The smart push made the dataset under this name for the first gateway.
        if scheme == "odf+http" {
            heals(&config);
        }
    }
}

#[test]
fn no_token_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _) = start_node(dir.path(), |config| config);
    let url = url("http", &node.url(), "acme");

    let line = the_line(&with_upstream(&dir.path().join("gw"), &url, ""), &url);

    assert!(line.contains("the upstream has no token: name one in `token_file`"), "{line}");
}

#[test]
fn an_account_that_is_not_the_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let (node, token) = start_node(dir.path(), |config| config);
    let url = url("odf+http", &node.url(), "somebody");

    let line = the_line(&with_upstream(&dir.path().join("gw"), &url, &token_key(&token)), &url);

    assert!(line.contains("belongs to account acme, and `url` says somebody"), "{line}");
}

#[test]
fn a_url_without_the_account_that_the_node_wants() {
    let dir = tempfile::tempdir().unwrap();
    let (node, token) = start_node(dir.path(), |config| config);
    for scheme in ["odf+http", "http"] {
        let url = format!("{scheme}://{}", node.addr());

        let line = the_line(&with_upstream(&dir.path().join(scheme), &url, &token_key(&token)), &url);

        assert!(line.contains("has accounts: write one at the end of `url`"), "{line}");
    }
}

#[test]
fn a_dataset_that_is_not_there_until_it_is_provisioned() {
    let dir = tempfile::tempdir().unwrap();
    let (node, token) = start_node(dir.path(), |config| config);
    let url = url("http", &node.url(), "acme");
    let config = with_upstream(&dir.path().join("gw"), &url, &token_key(&token));

    let line = the_line(&config, &url);

    assert!(line.contains("404") && line.contains("there is no dataset at"), "{line}");
    assert!(line.contains("`forebay provision` creates it"), "{line}");
    assert!(forebay(&config, &["provision"]).0);
    heals(&config);
    assert_eq!(node.rows("acme", "temp").unwrap().len(), 1);
}

#[test]
fn a_quota_that_is_used_up() {
    let dir = tempfile::tempdir().unwrap();
    let (node, token) = start_node(dir.path(), |config| config.quota_bytes(1));
    let url = url("http", &node.url(), "acme");
    let config = with_upstream(&dir.path().join("gw"), &url, &token_key(&token));
    assert!(forebay(&config, &["provision"]).0);

    let line = the_line(&config, &url);

    assert!(line.contains("403") && line.contains("storage quota is used up"), "{line}");
}

#[test]
fn a_certificate_that_is_not_trusted_until_its_ca_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let tls = TlsFiles::make(&made(&dir.path().join("tls"))).unwrap();
    let (node, token) = start_node(dir.path(), |config| config.tls(&tls));
    for scheme in ["odf+https", "https"] {
        let url = url(scheme, &node.url(), "acme");
        let gateway = dir.path().join(scheme);

        let line = the_line(&with_upstream(&gateway, &url, &token_key(&token)), &url);

        assert!(line.contains("is not trusted: name the CA that signed it in `ca_file`"), "{line}");
        if scheme == "odf+https" {
            let keys = format!("{}\nca_file = '{}'", token_key(&token), tls.ca.display());
            heals(&with_upstream(&gateway, &url, &keys));
        }
    }
}

#[test]
fn a_bucket_that_is_not_there_and_keys_that_are_not_known() {
    let dir = tempfile::tempdir().unwrap();
    let server = S3Server::start(Path::new(S3_PROGRAM), &made(&dir.path().join("s3"))).unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, s3::SECRET_KEY).unwrap();
    let keys = |id: &str| {
        let (region, file) = (s3::REGION, secret.display());
        format!("region = \"{region}\"\naccess_key_id = \"{id}\"\nsecret_access_key_file = '{file}'")
    };

    let missing = server.url("x").replace(s3::BUCKET, "nowhere");
    let line = the_line(&with_upstream(&dir.path().join("a"), &missing, &keys(s3::ACCESS_KEY)), &missing);
    assert!(line.contains("bucket nowhere: there is no such bucket: create it, or correct `url`"), "{line}");

    let url = server.url("x");
    let line = the_line(&with_upstream(&dir.path().join("b"), &url, &keys("AKIANOBODY")), &url);
    assert!(line.contains("access_key_id"), "{line}");

    fs::write(&secret, "wrong").unwrap();
    let config = with_upstream(&dir.path().join("c"), &url, &keys(s3::ACCESS_KEY));
    let line = the_line(&config, &url);
    assert!(line.contains("secret access key does not belong"), "{line}");
    fs::write(&secret, s3::SECRET_KEY).unwrap();
    heals(&config);
}

#[test]
fn a_directory_of_another_writer_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}", dir.path().join("shared").display());
    let first = with_upstream(&dir.path().join("one"), &url, "");
    let agent = start(&first);
    publish(&agent, &["first"]);
    assert!(forebay(&first, &["sync", "--once"]).0);
    agent.stop().unwrap();
    let head = fs::read(dir.path().join("shared/temp/refs/head")).unwrap();

    let line = the_line(&with_upstream(&dir.path().join("other"), &url, ""), &url);

    assert!(line.contains("another writer was there") && line.contains("Nothing is overwritten"), "{line}");
    assert_eq!(fs::read(dir.path().join("shared/temp/refs/head")).unwrap(), head);
}

fn url(scheme: &str, node: &str, account: &str) -> String {
    let (_, rest) = node.split_once("://").unwrap();
    format!("{scheme}://{rest}/{account}")
}

fn token_key(token: &Path) -> String {
    format!("token_file = '{}'", token.display())
}

fn made(dir: &Path) -> std::path::PathBuf {
    fs::create_dir_all(dir).unwrap();
    dir.to_owned()
}
