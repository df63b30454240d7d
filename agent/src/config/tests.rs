//! What a configuration may say, and how it is told that it may not.

use super::*;
use forebay_broker::tls::CertificateIdentity;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("forebay.toml"))
}

fn error_of(text: &str) -> String {
    parse(text).expect_err("the configuration is wrong").to_string()
}

fn with_env(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let mut tree = Node::parse(text, Path::new("forebay.toml"))?;
    let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    apply_env(&mut tree, env)?;
    read::config(tree)
}

const TEMPERATURE: &str = r#"
[[dataset]]
name = "temperature"
topics = ["site/{site}/{device}/temp"]
event_time = "ts"
merge = { kind = "Ledger", primaryKey = ["device", "ts"] }
[dataset.schema]
ts = "Timestamp(ms)"
temp = "Float32"
battery = "Float32?"
"#;

#[test]
fn an_empty_file_is_the_default() {
    let config = parse("").unwrap();

    assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
    assert_eq!(config.listeners[0].bind.to_string(), "127.0.0.1:1883");
    assert_eq!(config.data_dir, Path::new("./forebay-data"));
    assert_eq!(config.datasets[0].spec.name, "messages");
}

#[test]
fn the_sample_without_its_comment_signs_is_the_default() {
    let text: String = sample()
        .lines()
        .filter(|line| !line.starts_with("#gateway"))
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with([' ', '#'])).unwrap_or(line))
        .map(|line| format!("{line}\n"))
        .collect();

    let config = parse(&text).unwrap();

    assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
}

#[test]
fn the_sample_names_every_key() {
    let all: String = sample()
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| line.trim_start_matches('#').trim_start())
        .filter(|line| line.starts_with('[') || line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')))
        .filter(|line| !line.starts_with("delimiter"))
        .map(|line| format!("{line}\n"))
        .collect();

    let dir = source_tests::with_seed();
    let file = dir.path().join("forebay.toml");
    let config = Config::parse(&all.replace("leak.yaml", "temp.yaml"), &file).unwrap();

    assert_eq!(config.gateway, "gw-07");
    assert_eq!(config.sources.iter().map(|source| source.name.as_str()).collect::<Vec<_>>(), ["temp", "plant"]);
    assert_eq!(config.datasets[0].spec.captures, ["site", "device"]);
    let urls: Vec<&str> = config.upstreams.iter().map(|upstream| upstream.url.as_str()).collect();
    assert_eq!(
        urls,
        [
            "file:///mnt/usb/forebay",
            "odf+https://node.example.com/acme",
            "https://other.example.com/acme",
            "s3://bucket/prefix"
        ]
    );
    for key in ["limits", "spool", "batch", "retention", "log", "auth", "listener"] {
        assert!(all.contains(key), "{key}");
    }
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_one() {
    assert_eq!(
        error_of("gateway = \"g\"\n\n[spool]\n  max_byte = 1\n"),
        "forebay.toml:4:3: `spool.max_byte`: unknown key; did you mean `max_bytes`?"
    );
    assert_eq!(
        error_of("dataset_dir = \"x\""),
        "forebay.toml:1:1: `dataset_dir`: unknown key; did you mean `data_dir`?"
    );
    assert!(error_of("[log]\nzzz = 1").contains("known here: format, level"));
}

#[test]
fn a_value_of_the_wrong_type_is_named_with_line_and_key() {
    assert_eq!(error_of("[batch]\nrows = \"many\""), "forebay.toml:2:1: `batch.rows`: expected an integer, found text");
    assert!(error_of("[batch]\nage = 60").contains("such as \"60s\""));
    assert!(error_of("[batch]\nrows = 0").contains("forebay.toml:2:1: `batch.rows`: from 1 to"));
    assert!(error_of("[spool]\nmax_bytes = \"2 gigs\"").contains("is not a size"));
    assert!(error_of("[spool]\non_full = \"refus\"").contains("did you mean \"refuse\"?"));
    assert!(error_of("listener = 3").contains("`listener`: expected a table"));
}

#[test]
fn text_that_is_not_toml_is_named_with_its_line() {
    let error = error_of("gateway = \"a\"\nbatch = = 3\n");

    assert!(error.starts_with("forebay.toml:2:"), "{error}");
    assert!(error.contains("not TOML"), "{error}");
}

#[test]
fn keys_of_later_versions_are_refused_by_name() {
    for (text, what) in [
        ("[http]\nbind = \"127.0.0.1:9183\"", "`http`: the status page and metrics"),
        ("[[dataset]]\nname=\"d\"\ntopics=[\"a\"]\nformat=\"sparkplug-b\"", "`dataset.format`"),
    ] {
        let error = error_of(text);
        assert!(error.contains(what), "{error}");
        assert!(error.contains("is not in this version"), "{error}");
    }
}

#[test]
fn anonymous_access_beyond_loopback_needs_two_words() {
    let open = "[[listener]]\nbind = \"0.0.0.0:1883\"\n";

    let error = error_of(open);
    let config = parse(&format!("{open}[auth]\nallow_anonymous = true\n")).unwrap();

    assert!(error.contains("forebay.toml:2:1: `listener.bind`"), "{error}");
    assert!(error.contains("[auth]\n    password_file = "), "{error}");
    assert!(error.contains("[auth]\n    allow_anonymous = true"), "{error}");
    for guarded in [
        format!("{open}[auth]\npassword_file = \"passwd\"\n"),
        format!("{open}tls = {{ cert = \"c\", key_file = \"k\", client_ca = \"a\" }}\n"),
        format!("{open}allow_anonymous = true\n"),
        "[[listener]]\nbind = \"unix:/run/forebay/mqtt.sock\"\n".to_owned(),
    ] {
        parse(&guarded).unwrap();
    }
    for not_guarded in [
        format!("{open}tls = {{ cert = \"c\", key_file = \"k\" }}\n"),
        format!("{open}tls = {{ cert = \"c\", key_file = \"k\", client_ca = \"a\", client_cert = \"optional\" }}\n"),
        format!("{open}allow_anonymous = false\n[auth]\nallow_anonymous = true\n"),
    ] {
        assert!(error_of(&not_guarded).contains("can be reached from other machines"), "{not_guarded}");
    }
    assert_eq!(config.listeners[0].bind.to_string(), "0.0.0.0:1883");
}

#[test]
fn a_listener_says_what_is_spoken_and_who_may_come_in() {
    let text = "
        [[listener]]
        bind = \"127.0.0.1:8883\"
        transport = \"websocket\"
        [listener.tls]
        cert = \"server.crt\"
        key_file = \"/keys/server.key\"
        client_ca = \"ca.crt\"
        client_crl = \"crl.pem\"
        client_cert = \"optional\"
        identity = \"san\"
        [auth]
        password_file = \"passwd\"
        acl_file = \"/etc/acl\"
    ";

    let config = Config::parse(text, Path::new("/etc/forebay/forebay.toml")).unwrap();

    let listener = &config.listeners[0];
    let clients = listener.tls.as_ref().unwrap().clients.as_ref().unwrap();
    assert_eq!(listener.scheme(), "wss");
    assert_eq!(clients.identity, CertificateIdentity::SubjectAltName);
    assert!(!clients.required && config.auth.refuses_anonymous());
    let files: Vec<String> = doors::files(&config).iter().map(|file| file.display().to_string()).collect();
    let beside = |name: &str| format!("/etc/forebay/{name}");
    assert_eq!(
        files,
        [
            beside("passwd"),
            "/etc/acl".to_owned(),
            beside("server.crt"),
            "/keys/server.key".to_owned(),
            beside("ca.crt"),
            beside("crl.pem")
        ]
    );
}

#[test]
fn a_listener_with_half_of_what_it_needs_is_told_the_other_half() {
    for (tls, what) in [
        ("{ cert = \"c\" }", "needs `cert` and `key_file`"),
        ("{ cert = \"c\", key_file = \"k\", identity = \"cn\" }", "`listener.tls.identity`: needs `client_ca`"),
        ("{ cert = \"c\", key_file = \"k\", client_ca = \"a\", identity = \"dn\" }", "\"dn\" is not one of"),
        ("{ cert = \"c\", key = \"k\" }", "needs `cert` and `key_file`"),
    ] {
        let error = error_of(&format!("[[listener]]\nbind = \"127.0.0.1:1\"\ntls = {tls}\n"));
        assert!(error.contains(what), "{error}");
    }
    assert!(error_of("[[listener]]\nbind = \"unix:\"\n").contains("unix:/run/forebay/mqtt.sock"));
}

#[test]
fn two_listeners_cannot_share_an_address() {
    let text = "[[listener]]\nbind = \"[::1]:1883\"\n[[listener]]\nbind = \"[::1]:1883\"\n";

    assert!(error_of(text).contains("forebay.toml:4:1: `listener.bind`: [::1]:1883 is already"));
}

#[test]
fn a_dataset_has_captures_as_columns_and_fields_in_file_order() {
    let config = parse(TEMPERATURE).unwrap();

    let spec = &config.datasets[0].spec;
    let fields: Vec<_> = spec.fields.iter().map(|field| (field.name.as_str(), field.optional)).collect();
    assert_eq!(spec.captures, ["site", "device"]);
    assert_eq!(fields, [("ts", false), ("temp", false), ("battery", true)]);
    assert_eq!(spec.event_time_tolerance, Duration::from_secs(300));
}

#[test]
fn what_is_wrong_with_a_dataset_is_named_with_its_line() {
    for (change, with, message) in [
        ("name = \"temperature\"\n", "", "forebay.toml:2:1: `dataset`: needs `name`"),
        ("Float32?", "Float33?", "forebay.toml:10:1: `dataset.schema.battery`"),
        ("\"Ledger\"", "\"Snapshot\"", "compares whole states"),
        ("\"Ledger\"", "\"UpsertStream\"", "is not in this version"),
        ("\"Ledger\"", "\"Append\"", "belongs to kind = \"Ledger\""),
        ("/temp\"]", "/temp\", \"other/{x}\"]", "captures {x}"),
        ("topics = [\"site/{site}/{device}/temp\"]", "topics = []", "names no topic"),
        ("event_time = \"ts\"", "event_time = \"when\"", "forebay.toml:2:"),
        ("name = \"temperature\"", "name = \"a\"\ndelimiter = \";\"", "belongs to format = \"csv\""),
    ] {
        let text = TEMPERATURE.replace(change, with);
        assert_ne!(text, TEMPERATURE, "{change}");
        let error = error_of(&text);
        assert!(error.contains(message), "{error}\nexpected {message}");
    }
}

#[test]
fn two_datasets_cannot_share_a_name() {
    let error = error_of(&format!("{TEMPERATURE}{TEMPERATURE}"));

    assert!(error.contains("there is another dataset of the name `temperature`"), "{error}");
}

#[test]
fn a_json_dataset_without_a_schema_is_told_how_to_write_one() {
    let error = error_of("[[dataset]]\nname = \"d\"\ntopics = [\"d\"]\n");

    assert!(error.contains("[dataset.schema]"), "{error}");
}

#[test]
fn the_environment_overrides_any_key() {
    let config = with_env(
        "[spool]\nmax_bytes = \"1GiB\"\n[[listener]]\nbind = \"127.0.0.1:1\"\n",
        &[
            ("FOREBAY__SPOOL__MAX_BYTES", "64MiB"),
            ("FOREBAY__BATCH__ROWS", "5"),
            ("FOREBAY__GATEWAY", "7"),
            ("FOREBAY__LISTENER__1__BIND", "127.0.0.1:2"),
            ("FOREBAY__UPSTREAM__URL", "file:///mnt/x"),
            ("HOME", "/root"),
        ],
    )
    .unwrap();

    assert_eq!(config.spool.max_bytes, 64 << 20);
    assert_eq!(config.batch.rows, 5);
    assert_eq!(config.gateway, "7");
    assert_eq!(config.listeners[1].bind.to_string(), "127.0.0.1:2");
    assert_eq!(config.upstreams[0].url, "file:///mnt/x");
}

#[test]
fn a_wrong_variable_is_named() {
    let error = |name, value| with_env("", &[(name, value)]).unwrap_err().to_string();

    assert_eq!(
        error("FOREBAY__SPOOL__MAX_BYTE", "1"),
        "environment variable FOREBAY__SPOOL__MAX_BYTE: `spool.max_byte`: unknown key; did you mean `max_bytes`?"
    );
    assert!(error("FOREBAY__BATCH__ROWS", "many").contains("expected an integer"));
    assert!(error("FOREBAY__LISTENER__BIND", "x").contains("x"));
}

#[test]
fn a_new_list_can_begin_in_the_environment() {
    let config = with_env("", &[("FOREBAY__LISTENER__0__BIND", "127.0.0.1:5")]).unwrap();

    assert!(config.listeners[0].bind.to_string().ends_with(":5"));
}

#[test]
fn an_upstream_directory_is_written_in_full() {
    for url in ["file://mnt/usb", "file:///", "file:///a/../b", "/mnt/usb"] {
        let error = error_of(&format!("[upstream]\nurl = \"{url}\""));
        assert!(error.contains("`upstream.url`"), "{error}");
    }
}

fn upstream(url: &str, rest: &str) -> Result<Upstream, ConfigError> {
    let text = format!("{TEMPERATURE}[[upstream]]\nurl = \"{url}\"\n{rest}");
    parse(&text).map(|config| config.upstreams[0].clone())
}

#[test]
fn the_url_of_an_upstream_says_what_it_is() {
    let kind = |url| upstream(url, "").unwrap().kind;

    let UpstreamKind::Bucket(bucket) = kind("s3+http://127.0.0.1:9000/lake/site/7/") else { panic!() };
    assert_eq!(bucket.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
    assert_eq!((bucket.name.as_str(), bucket.prefix.as_str()), ("lake", "site/7"));
    let UpstreamKind::Bucket(bucket) = kind("s3://lake") else { panic!() };
    assert_eq!((bucket.endpoint, bucket.name.as_str(), bucket.prefix.as_str()), (None, "lake", ""));
    let UpstreamKind::Smart(node) = kind("odf+https://node.example.com/api/acme") else { panic!() };
    assert_eq!(node.dataset("t").as_str(), "https://node.example.com/api/acme/t");
    assert_eq!(node.join("info").as_str(), "https://node.example.com/api/info");
    let UpstreamKind::Ingest(ingest) = kind("http://127.0.0.1:8080") else { panic!() };
    assert_eq!(ingest.node.fill(&ingest.path, "t").as_str(), "http://127.0.0.1:8080/t/ingest");
}

#[cfg(not(feature = "s3"))]
#[test]
fn a_build_without_s3_refuses_a_bucket_and_says_how_to_get_it() {
    for url in ["s3://lake", "s3+https://store:9000/lake"] {
        let error = upstream(url, "").unwrap_err().to_string();

        assert!(error.contains("`upstream.url`: `s3"), "{error}");
        assert!(error.contains("left out of this build") && error.contains("--features s3`"), "{error}");
    }
    assert!(upstream("file:///mnt/usb", "").is_ok());
}

#[cfg(not(feature = "smart-push"))]
#[test]
fn a_build_without_smart_push_refuses_its_node_and_says_how_to_get_it() {
    let error = upstream("odf+https://node/acme", "").unwrap_err().to_string();

    assert!(error.contains("`upstream.url`: `odf+https://` is left out of this build"), "{error}");
    assert!(error.contains("--features smart-push`"), "{error}");
    assert!(upstream("https://node/acme", "").is_ok());
}

#[test]
fn the_path_of_push_ingest_is_a_template() {
    let UpstreamKind::Ingest(ingest) =
        upstream("https://n/acme", "ingest_path = \"{account}/source/{dataset}/ingest\"").unwrap().kind
    else {
        panic!()
    };

    assert_eq!(ingest.node.fill(&ingest.path, "temp").as_str(), "https://n/acme/source/temp/ingest");
    let error = upstream("https://n/acme", "ingest_path = \"x/ingest\"").unwrap_err().to_string();
    assert!(error.contains("needs {dataset}"), "{error}");
}

#[test]
fn what_is_wrong_with_an_upstream_is_named_with_its_line() {
    for (url, rest, message) in [
        ("ftp://x", "", "`upstream.url`: `ftp://` is not a scheme of an upstream"),
        ("s3:///", "", "needs a bucket"),
        ("https://user@n/a", "", "a token belongs in token_file"),
        ("s3+https://id:key@host/b", "", "has no user and no password"),
        ("https://n/a?x=1", "", "has no `?`"),
        ("file:///", "", "written in full"),
        ("file:///a", "token_file = \"x\"", "`upstream.token_file`: belongs to a node only"),
        ("file:///a", "ca_file = \"x\"", "belongs to an upstream with https only"),
        ("odf+https://n/a", "ingest_format = \"ndjson\"", "belongs to push ingest"),
        ("https://n/a", "region = \"x\"", "`upstream.region`: belongs to S3 only"),
        ("https://n/a", "token_file = \"x\"\ntoken_env = \"Y\"", "has both token_file and token_env"),
        ("https://n/a", "ingest_format = \"csv\"", "is not one of \"parquet\", \"ndjson\""),
        ("s3://b", "access_key_id = \"x\"", "needs secret_access_key_file"),
        ("file:///a", "window = \"22-06\"", "is not a part of the day such as \"22:00-06:00\""),
        ("file:///a", "rate_limit = 0", "at least 1 B"),
        ("file:///a", "datasets = [\"temprature\"]", "did you mean \"temperature\"?"),
        ("file:///a", "datasets = []", "names no dataset"),
        ("file:///a", "timeout = \"0s\"", "at least 100ms"),
    ] {
        let error = upstream(url, rest).unwrap_err().to_string();
        assert!(error.contains(message), "{error}\nexpected {message}");
        assert!(error.starts_with("forebay.toml:1"), "{error}");
    }
}

#[test]
fn a_dataset_goes_to_a_node_by_push_ingest_or_by_smart_push() {
    let both = |datasets: &str| {
        let other = TEMPERATURE.replace("\"temperature\"", "\"other\"").replace("site/", "other/");
        parse(&format!(
            "{TEMPERATURE}{other}[[upstream]]\nurl = \"odf+https://n/a\"\n{datasets}\n\
             [[upstream]]\nurl = \"https://n/a\"\ndatasets = [\"temperature\"]\n"
        ))
    };

    let error = both("").unwrap_err().to_string();
    assert!(error.contains("dataset temperature would go to the same account of the same node"), "{error}");
    assert!(both("datasets = [\"other\"]").is_ok());
}

#[test]
fn a_secret_is_one_word_from_a_file_or_a_variable() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    let secret = Secret::File(file.clone());

    assert!(secret.read().unwrap_err().starts_with("cannot read "));
    std::fs::write(&file, "  ka_secret\n").unwrap();
    assert_eq!(secret.read().unwrap(), "ka_secret");
    std::fs::write(&file, "two words").unwrap();
    assert!(secret.read().unwrap_err().contains("more than one word"));
    std::fs::write(&file, "\n").unwrap();
    assert!(secret.read().unwrap_err().contains("is empty"));
}
