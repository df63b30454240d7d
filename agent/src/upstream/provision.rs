//! Creates datasets on the nodes that rows are posted to, by GraphQL's `createFromSnapshot`.
//!
//! | upstream | what is needed |
//! | --- | --- |
//! | push ingest | the dataset with its push source: created here, once; finding it there is success too |
//! | smart push | nothing: the first push creates the dataset from the gateway's own chain |
//! | a repository | nothing: delivery writes it |
//!
//! GraphQL answers 200 whatever happens: who may not is told in `errors`, what went wrong with the manifest by the type of
//! the result, and success by `isSuccess`. All three are looked at. A node that does not answer, or does not know us, is
//! asked for the first dataset only; any other refusal concerns one dataset, and the next one is tried.

use forebay_storage::dataset::spec::DatasetSpec;
use reqwest::{Method, StatusCode, Url, header};
use serde::{Deserialize, Serialize};

use super::http::{Answer, Http};
use super::node;
use super::outcome::{Failure, FailureKind, words_of};
use crate::config::{Config, Dataset, Ingest, Upstream, UpstreamKind};
use crate::manifest::{self, Columns, SOURCE_NAME};

/// How datasets are created.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Who may see them.
    pub visibility: Visibility,
    /// How their columns are declared.
    pub columns: Columns,
}

/// Who may see a dataset that is created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Visibility {
    /// Its account, and whom that lets.
    #[default]
    Private,
    /// Everybody.
    Public,
}

/// What came of it; its JSON form is kept from version to version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProvisionReport {
    /// Every dataset is where it is needed.
    pub ok: bool,
    /// Upstreams in file order, and each one's datasets.
    pub datasets: Vec<Provisioned>,
}

/// One dataset at one upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Provisioned {
    /// The dataset's name here.
    pub dataset: String,
    /// URL of the upstream.
    pub upstream: String,
    /// The dataset's name there; none where nothing is created.
    pub name: Option<String>,
    /// How it stands.
    pub state: State,
    /// The id that the node gave to what it created.
    pub id: Option<String>,
    /// Why it failed, or why nothing is needed.
    pub note: Option<String>,
}

/// How a dataset stands at an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The node made it just now.
    Created,
    /// It was there.
    Exists,
    /// This kind of upstream needs nothing.
    NotNeeded,
    /// It is not there; the note says why.
    Failed,
}

/// Creates these datasets wherever rows of them are posted to.
pub async fn run(config: &Config, datasets: &[&Dataset], options: Options) -> ProvisionReport {
    let mut rows = Vec::new();
    for upstream in &config.upstreams {
        let taken = datasets.iter().map(|dataset| &dataset.spec).filter(|spec| upstream.takes(&spec.name));
        match &upstream.kind {
            UpstreamKind::Ingest(ingest) => {
                let node = Target { upstream, ingest, gateway: &config.gateway, options };
                rows.extend(node.provision(taken).await);
            }
            UpstreamKind::Smart(_) => rows.extend(not_needed(upstream, taken, "the first push creates it")),
            UpstreamKind::Directory(_) | UpstreamKind::Bucket(_) => {
                rows.extend(not_needed(upstream, taken, "delivery writes it"));
            }
        }
    }
    ProvisionReport { ok: rows.iter().all(|row| row.state != State::Failed), datasets: rows }
}

fn not_needed<'a>(
    upstream: &Upstream,
    specs: impl Iterator<Item = &'a DatasetSpec>,
    why: &str,
) -> impl Iterator<Item = Provisioned> {
    specs.map(|spec| Provisioned {
        dataset: spec.name.clone(),
        upstream: upstream.url.clone(),
        name: None,
        state: State::NotNeeded,
        id: None,
        note: Some(why.to_owned()),
    })
}

/// A node that rows are posted to.
struct Target<'a> {
    upstream: &'a Upstream,
    ingest: &'a Ingest,
    gateway: &'a str,
    options: Options,
}

/// The node has the dataset.
#[derive(Debug, PartialEq, Eq)]
enum Done {
    Created { id: Option<String> },
    Exists,
}

impl Target<'_> {
    async fn provision(&self, specs: impl Iterator<Item = &DatasetSpec>) -> Vec<Provisioned> {
        let mut specs = specs.peekable();
        if specs.peek().is_none() {
            return Vec::new();
        }
        let mut node = self.reach().await;
        let mut rows = Vec::new();
        for spec in specs {
            let result = match &node {
                Ok(http) => self.create(http, spec).await,
                Err(failure) => Err(failure.clone()),
            };
            if let Err(failure) = &result
                && failure.kind.is_of_upstream()
            {
                node = Err(failure.clone());
            }
            rows.push(self.row(spec, result));
        }
        rows
    }

    /// A client, once a Kamu node with accounts as the URL has them was seen to answer.
    async fn reach(&self) -> Result<Http, Failure> {
        let http = Http::new(self.upstream)?;
        let info = node::info(&http, &self.ingest.node).await?;
        node::check_account(&self.ingest.node, info)?;
        Ok(http)
    }

    async fn create(&self, http: &Http, spec: &DatasetSpec) -> Result<Done, Failure> {
        let url = self.ingest.node.join("graphql");
        let snapshot = self.manifest(spec)?;
        let body = serde_json::json!({
            "query": mutation(self.options.visibility),
            "variables": { "snapshot": snapshot },
        });
        let request = http.request(Method::POST, url.clone())?;
        let request = request.header(header::CONTENT_TYPE, "application/json").body(body.to_string());
        let answer = http.answer(request).await?;
        match of_answer(&url, &answer, self.options.columns) {
            Err(Refusal::OfManifest(failure)) => Err(failure),
            Err(Refusal::OfUs(failure)) => Err(node::explain(http, &self.ingest.node, &spec.name, failure).await),
            Ok(done) => Ok(done),
        }
    }

    fn manifest(&self, spec: &DatasetSpec) -> Result<String, Failure> {
        let options = manifest::Options {
            account: self.ingest.node.account.as_deref(),
            source_name: self.ingest.source_name.as_deref().unwrap_or(SOURCE_NAME),
            columns: self.options.columns,
        };
        manifest::text(spec, self.gateway, options).map_err(Failure::local)
    }

    fn row(&self, spec: &DatasetSpec, result: Result<Done, Failure>) -> Provisioned {
        let (state, id, note) = match result {
            Ok(Done::Created { id }) => (State::Created, id, None),
            Ok(Done::Exists) => (State::Exists, None, None),
            Err(failure) => (State::Failed, None, Some(failure.words)),
        };
        Provisioned {
            dataset: spec.name.clone(),
            upstream: self.upstream.url.clone(),
            name: Some(manifest::name(&spec.name, self.ingest.node.account.as_deref())),
            state,
            id,
            note,
        }
    }
}

/// The manifest is a variable, so that nothing in it can be taken for GraphQL. Enums are literals: the names of their
/// types are the node's business.
fn mutation(visibility: Visibility) -> String {
    let visibility = match visibility {
        Visibility::Private => "PRIVATE",
        Visibility::Public => "PUBLIC",
    };
    format!(
        "mutation ($snapshot: String!) {{ datasets {{ createFromSnapshot(snapshot: $snapshot, snapshotFormat: YAML, \
         datasetVisibility: {visibility}) {{ __typename isSuccess message \
         ... on CreateDatasetResultSuccess {{ dataset {{ id }} }} }} }} }}"
    )
}

/// Why the node did not create a dataset.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// It does not like what was sent; its words are all there is.
    OfManifest(Failure),
    /// It does not like who asks, or how; more can be found out.
    OfUs(Failure),
}

#[derive(Deserialize)]
struct GraphQl {
    data: Option<Data>,
    #[serde(default)]
    errors: Vec<GraphQlError>,
}

#[derive(Deserialize)]
struct GraphQlError {
    message: String,
}

#[derive(Deserialize)]
struct Data {
    datasets: Option<Datasets>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Datasets {
    create_from_snapshot: Option<Creation>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Creation {
    #[serde(rename = "__typename")]
    type_name: String,
    is_success: bool,
    message: String,
    dataset: Option<CreatedDataset>,
}

#[derive(Deserialize)]
struct CreatedDataset {
    id: String,
}

/// What an answer to the mutation means.
fn of_answer(url: &Url, answer: &Answer, columns: Columns) -> Result<Done, Refusal> {
    let what = format!("POST {url}");
    if answer.status == StatusCode::NOT_FOUND {
        return Err(Refusal::OfManifest(Failure::unreachable(format!(
            "{what} was answered with 404: the node has its GraphQL elsewhere, or a proxy keeps it from us"
        ))));
    }
    if answer.status != StatusCode::OK {
        return Err(Refusal::OfUs(answer.failure(&what)));
    }
    let Ok(GraphQl { data, errors }) = serde_json::from_str(&answer.body) else {
        return Err(Refusal::OfManifest(Failure::unreachable(format!(
            "{what} was answered with something else than GraphQL: check `url`"
        ))));
    };
    if let Some(error) = errors.first() {
        return Err(Refusal::OfUs(of_error(&error.message)));
    }
    match data.and_then(|data| data.datasets).and_then(|datasets| datasets.create_from_snapshot) {
        Some(creation) => of_creation(creation, columns).map_err(Refusal::OfManifest),
        None => Err(Refusal::OfManifest(Failure::new(
            FailureKind::Refused,
            format!("{what} was answered with neither a result nor an error"),
        ))),
    }
}

/// The words of a node that does not know us; its other errors concern the account or the dataset.
fn of_error(message: &str) -> Failure {
    let lower = message.to_lowercase();
    let unknown = ["anonymous", "access token", "unauthorized"].iter().any(|word| lower.contains(word));
    let kind = if unknown { FailureKind::Unauthorised } else { FailureKind::Refused };
    Failure::new(kind, format!("the node says: {}", one_line(message)))
}

fn of_creation(creation: Creation, columns: Columns) -> Result<Done, Failure> {
    let advice = match (creation.type_name.as_str(), columns) {
        ("CreateDatasetResultNameCollision", _) => return Ok(Done::Exists),
        _ if creation.is_success => return Ok(Done::Created { id: creation.dataset.map(|dataset| dataset.id) }),
        ("MetadataManifestMalformed", Columns::Odf) => ". If it is kamu 0.262 or older, add --ddl",
        ("MetadataManifestMalformed", Columns::Sql) => ". Only kamu 0.262 and older want --ddl",
        _ => "",
    };
    let words = format!("the node answers {}: {}{advice}", creation.type_name, one_line(&creation.message));
    Err(Failure::new(FailureKind::Refused, words))
}

fn one_line(text: &str) -> String {
    words_of(text).unwrap_or_else(|| "nothing that could be shown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    // Bodies as kamu 0.265 wrote them.
    const CREATED: &str = r#"{"data":{"datasets":{"createFromSnapshot":{"__typename":"CreateDatasetResultSuccess","isSuccess":true,"message":"Success","dataset":{"id":"did:odf:fed01a44b1774a95737bc4e3061af1149cc6dc180f3eb1484d3fc33bf28999eb0902a","name":"telemetry-append"}}}}}"#;
    const COLLISION: &str = r#"{"data":{"datasets":{"createFromSnapshot":{"__typename":"CreateDatasetResultNameCollision","isSuccess":false,"message":"Dataset with name 'telemetry-append' already exists"}}}}"#;
    const MALFORMED: &str = r#"{"data":{"datasets":{"createFromSnapshot":{"__typename":"MetadataManifestMalformed","isSuccess":false,"message":"Serde error: missing field `kind`"}}}}"#;
    const OLD_STYLE: &str = r#"{"data":{"datasets":{"createFromSnapshot":{"__typename":"MetadataManifestMalformed","isSuccess":false,"message":"Serde error: content.metadata: invalid type: string \"event_time TIMESTAMP\", expected a sequence at line 7 column 5"}}}}"#;
    const ANONYMOUS: &str = r#"{"data":{"datasets":null},"errors":[{"message":"Anonymous access forbidden","locations":[{"line":1,"column":31}],"path":["datasets","createFromSnapshot"]}]}"#;
    const BAD_TOKEN: &str = r#"{"data":{"datasets":null},"errors":[{"message":"Invalid access token","locations":[{"line":1,"column":31}],"path":["datasets","createFromSnapshot"]}]}"#;

    #[test]
    fn a_created_dataset_has_the_id_that_the_node_gave() {
        let id = "did:odf:fed01a44b1774a95737bc4e3061af1149cc6dc180f3eb1484d3fc33bf28999eb0902a";

        assert_eq!(answered(200, CREATED), Ok(Done::Created { id: Some(id.to_owned()) }));
    }

    #[test]
    fn a_taken_name_means_that_the_dataset_is_there() {
        assert_eq!(answered(200, COLLISION), Ok(Done::Exists));
    }

    #[test]
    fn a_manifest_that_is_refused_is_told_in_the_nodes_words_with_what_to_change() {
        let refused = words(answered(200, MALFORMED));
        let sql = words(of_answer(&url(), &answer(200, OLD_STYLE), Columns::Sql));

        assert_eq!(
            refused,
            "the node answers MetadataManifestMalformed: Serde error: missing field `kind`. If it is kamu 0.262 or \
             older, add --ddl"
        );
        assert!(sql.contains("expected a sequence") && sql.ends_with("Only kamu 0.262 and older want --ddl"), "{sql}");
    }

    #[test]
    fn who_is_not_known_is_told_in_errors() {
        for (body, said) in [(ANONYMOUS, "Anonymous access forbidden"), (BAD_TOKEN, "Invalid access token")] {
            let expected = Failure::new(FailureKind::Unauthorised, format!("the node says: {said}"));
            assert_eq!(answered(200, body), Err(Refusal::OfUs(expected)));
        }
    }

    #[test]
    fn any_other_error_concerns_the_dataset() {
        let body = r#"{"data":null,"errors":[{"message":"Dataset access error: forbidden"}]}"#;

        let Err(Refusal::OfUs(failure)) = answered(200, body) else { panic!("refused") };

        assert_eq!(failure.kind, FailureKind::Refused);
    }

    #[test]
    fn a_result_that_nobody_knows_is_a_refusal() {
        for body in [
            r#"{"data":{"datasets":{"createFromSnapshot":{"__typename":"New","isSuccess":false,"message":""}}}}"#,
            r#"{"data":{"datasets":null}}"#,
            "{}",
            "<html></html>",
            "",
            "[]",
        ] {
            assert!(matches!(answered(200, body), Err(Refusal::OfManifest(_))), "{body}");
        }
    }

    #[test]
    fn other_statuses_are_what_they_are_everywhere() {
        let Err(Refusal::OfUs(failure)) = answered(401, "Authentication token expired") else { panic!("refused") };

        assert_eq!(failure.kind, FailureKind::Unauthorised);
        assert!(failure.words.ends_with("/graphql was answered with 401: Authentication token expired"), "{failure}");
        assert!(words(answered(404, "Not Found")).contains("404"));
    }

    fn answered(status: u16, body: &str) -> Result<Done, Refusal> {
        of_answer(&url(), &answer(status, body), Columns::Odf)
    }

    fn answer(status: u16, body: &str) -> Answer {
        Answer { status: StatusCode::from_u16(status).unwrap(), retry_after: None, body: body.to_owned() }
    }

    fn url() -> Url {
        Url::parse("http://127.0.0.1:18081/graphql").unwrap()
    }

    fn words(result: Result<Done, Refusal>) -> String {
        match result {
            Err(Refusal::OfManifest(failure) | Refusal::OfUs(failure)) => failure.words,
            Ok(done) => panic!("{done:?}"),
        }
    }
}
