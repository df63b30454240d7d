//! `manifest` and `provision`, the latter against something that answers as a Kamu node does.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Output;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::commands::forebay;
use crate::support::{Gateway, TEMPERATURE};

const HUMIDITY: &str = "[[dataset]]\nname = \"humidity\"\ntopics = [\"site/{site}/hum\"]\nformat = \"text\"\n";
const CREATED: &str = r#"{"data":{"datasets":{"createFromSnapshot":{"__typename":"CreateDatasetResultSuccess","isSuccess":true,"message":"Success","dataset":{"id":"did:odf:fed01a44b"}}}}}"#;
const COLLISION: &str = r#"{"data":{"datasets":{"createFromSnapshot":{"__typename":"CreateDatasetResultNameCollision","isSuccess":false,"message":"Dataset with name 'temperature' already exists"}}}}"#;
const MALFORMED: &str = r#"{"data":{"datasets":{"createFromSnapshot":{"__typename":"MetadataManifestMalformed","isSuccess":false,"message":"Serde error: missing field `kind`"}}}}"#;
const ANONYMOUS: &str = r#"{"data":{"datasets":null},"errors":[{"message":"Anonymous access forbidden","path":["datasets","createFromSnapshot"]}]}"#;
const BAD_TOKEN: &str = r#"{"data":{"datasets":null},"errors":[{"message":"Invalid access token","path":["datasets","createFromSnapshot"]}]}"#;
const MULTI_TENANT: (u16, &str) = (200, r#"{"isMultiTenant":true}"#);

#[test]
fn a_dataset_is_created_in_the_account_of_the_url_with_the_token() {
    let node = Node::start([MULTI_TENANT, (200, CREATED)]);
    let gateway = posting_to(&node, TEMPERATURE, "token_file = 'token'\nsource_name = \"edge\"\n");

    let output = provision(&gateway, &["--visibility", "public"]);

    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = stdout(&output);
    assert!(text.contains("temperature") && text.contains("created  did:odf:fed01a44b"), "{text}");
    let [info, create] = &node.requests()[..] else { panic!("two requests") };
    assert_eq!((info.line.as_str(), info.token.as_deref()), ("GET /info HTTP/1.1", None));
    assert_eq!((create.line.as_str(), create.token.as_deref()), ("POST /graphql HTTP/1.1", Some("Bearer ka_secret")));
    let body: Value = serde_json::from_str(&create.body).unwrap();
    assert!(body["query"].as_str().unwrap().contains("snapshotFormat: YAML, datasetVisibility: PUBLIC"), "{body}");
    let snapshot: Value = serde_saphyr::from_str(body["variables"]["snapshot"].as_str().unwrap()).unwrap();
    assert_eq!(snapshot["content"]["name"], "acme/temperature");
    assert_eq!(snapshot["content"]["metadata"][0]["sourceName"], "edge");
    assert_eq!(snapshot["content"]["metadata"][0]["merge"]["primaryKey"], json!(["gateway", "seq"]));
}

#[test]
fn a_dataset_that_is_there_is_a_success() {
    let node = Node::start([MULTI_TENANT, (200, COLLISION)]);
    let gateway = posting_to(&node, TEMPERATURE, "token_file = 'token'\n");

    let output = provision(&gateway, &["--output", "json"]);

    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let row = json!({
        "dataset": "temperature", "upstream": node.url(), "name": "acme/temperature",
        "state": "exists", "id": null, "note": null,
    });
    assert_eq!(report, json!({"ok": true, "datasets": [row]}));
}

#[test]
fn a_manifest_that_is_refused_does_not_hold_up_the_next_dataset() {
    let node = Node::start([MULTI_TENANT, (200, MALFORMED), (200, CREATED)]);
    let gateway = posting_to(&node, &format!("{TEMPERATURE}{HUMIDITY}"), "token_file = 'token'\n");

    let output = provision(&gateway, &[]);

    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = stdout(&output);
    assert!(text.contains("created  did:odf:fed01a44b"), "{text}");
    assert!(text.contains("problem: temperature at ") && text.contains("missing field `kind`"), "{text}");
    assert!(text.contains("add --ddl"), "{text}");
}

#[test]
fn a_node_that_does_not_know_us_is_asked_once() {
    for (body, key, advice) in [
        (ANONYMOUS, "", "Anonymous access forbidden; name a token in `token_file`"),
        (BAD_TOKEN, "token_file = 'token'\n", "Invalid access token; put a valid token into token;"),
    ] {
        let node = Node::start([MULTI_TENANT, (200, body)]);
        let gateway = posting_to(&node, &format!("{TEMPERATURE}{HUMIDITY}"), key);

        let output = provision(&gateway, &[]);

        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let text = stdout(&output);
        assert!(text.contains("problem: temperature, humidity at ") && text.contains(advice), "{text}");
        assert_eq!(node.requests().len(), 2);
    }
}

#[test]
fn what_is_no_node_is_sent_nothing() {
    for (answer, words) in [
        ((404, "Not Found"), "answers as a Kamu node: check `url`"),
        ((200, r#"{"isMultiTenant":false}"#), "has no accounts: leave `/acme` away"),
    ] {
        let node = Node::start([answer]);
        let gateway = posting_to(&node, TEMPERATURE, "token_file = 'token'\n");

        let output = provision(&gateway, &[]);

        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(stdout(&output).contains(words), "{output:?}");
        assert_eq!(node.requests().len(), 1);
    }
}

#[test]
fn smart_push_and_repositories_need_nothing() {
    let gateway = Gateway::new(&format!(
        "{TEMPERATURE}{HUMIDITY}[[upstream]]\nurl = \"odf+https://node.invalid/acme\"\n\
         [[upstream]]\nurl = \"file:///mnt/usb/forebay\"\n"
    ));
    gateway.config_file();

    let output = provision(&gateway, &["humidity"]);

    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = stdout(&output);
    assert!(text.contains("not needed  the first push creates it"), "{text}");
    assert!(text.contains("not needed  delivery writes it"), "{text}");
    assert!(!text.contains("temperature"), "{text}");
}

#[test]
fn the_manifest_is_all_that_stands_on_standard_output() {
    let gateway = Gateway::new(&format!("{TEMPERATURE}[[upstream]]\nurl = \"odf+https://node.invalid/acme\"\n"));
    gateway.config_file();

    let output = forebay(gateway.path(), &["manifest", "temperature", "--account", "acme"]);

    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let manifest: Value = serde_saphyr::from_str(&stdout(&output)).unwrap();
    assert_eq!((&manifest["kind"], &manifest["version"]), (&json!("DatasetSnapshot"), &json!(1)));
    assert_eq!(manifest["content"]["name"], "acme/temperature");
    assert!(String::from_utf8_lossy(&output.stderr).contains("do not add this manifest there"), "{output:?}");
}

#[test]
fn an_unknown_dataset_is_answered_with_the_nearest_one() {
    let gateway = Gateway::new(TEMPERATURE);
    gateway.config_file();

    for command in ["manifest", "provision"] {
        let output = forebay(gateway.path(), &[command, "temprature"]);

        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("there is no dataset \"temprature\"; did you mean \"temperature\"?"), "{error}");
    }
}

fn posting_to(node: &Node, datasets: &str, keys: &str) -> Gateway {
    let gateway = Gateway::new(&format!("{datasets}[[upstream]]\nurl = \"{}\"\n{keys}", node.url()));
    gateway.config_file();
    std::fs::write(gateway.path().join("token"), "ka_secret\n").unwrap();
    gateway
}

fn provision(gateway: &Gateway, args: &[&str]) -> Output {
    forebay(gateway.path(), &[&["provision"], args].concat())
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A server that has its answers by heart, and closes the connection after each.
struct Node {
    url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

#[derive(Clone, Debug, Default)]
struct Request {
    line: String,
    token: Option<String>,
    body: String,
}

impl Node {
    fn start<const N: usize>(answers: [(u16, &'static str); N]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/acme", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let mut answers = VecDeque::from(answers);
        std::thread::spawn(move || {
            while let Some((status, body)) = answers.pop_front() {
                let (stream, _) = listener.accept().unwrap();
                seen.lock().unwrap().push(exchange(&stream, status, body));
            }
        });
        Self { url, requests }
    }

    fn url(&self) -> &str {
        &self.url
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn exchange(mut stream: &TcpStream, status: u16, answer: &str) -> Request {
    let mut reader = BufReader::new(stream);
    let mut request = Request { line: line(&mut reader), ..Request::default() };
    let mut length = 0;
    loop {
        let header = line(&mut reader);
        let Some((name, value)) = header.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => request.token = Some(value.to_owned()),
            "content-length" => length = value.parse().unwrap(),
            _ => {}
        }
    }
    reader.take(length).read_to_string(&mut request.body).unwrap();
    let size = answer.len();
    write!(stream, "HTTP/1.1 {status} .\r\nconnection: close\r\ncontent-length: {size}\r\n\r\n{answer}").unwrap();
    request
}

fn line(reader: &mut BufReader<&TcpStream>) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}
