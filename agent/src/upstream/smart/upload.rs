//! One slice to the place that the node named for it: the node itself, or a signed URL of the store behind it.
//!
//! The node decides what is sent along. Our token goes to the node's own origin only, and never in the clear when the
//! node is spoken to over TLS.

use std::sync::Arc;

use forebay_storage::odf::ChainFiles;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, RequestBuilder, Url};
use tokio::fs::File;

use super::frames::{ObjectFile, Place};
use crate::upstream::http::{Http, paced_body};
use crate::upstream::outcome::{Failure, FailureKind};

/// Uploads one slice.
pub(super) async fn put(
    http: &Arc<Http>,
    node: &Url,
    files: &ChainFiles,
    object: &ObjectFile,
    place: &Place,
) -> Result<(), Failure> {
    let file = open(files, object).await?;
    let url = Url::parse(&place.url).map_err(|error| unusable(&format!("the URL it gave is none: {error}")))?;
    let is_node = url.origin() == node.origin();
    let what = format!("PUT {}", without_query(&url));
    let request = request(http, node, url, headers(object, place)?)?;
    let answer = http.answer(request.body(paced_body(http, file))).await.map_err(|failure| failure.context(&what))?;
    match answer.failure(&what) {
        _ if answer.status.is_success() => Ok(()),
        failure if is_node || matches!(failure.kind, FailureKind::Unreachable { .. }) => Err(failure),
        // Such as a signature that ran out: the next try is given another one.
        failure => Err(Failure { kind: FailureKind::Unknown, ..failure }),
    }
}

async fn open(files: &ChainFiles, object: &ObjectFile) -> Result<File, Failure> {
    let path = files.data_path(&object.physical_hash);
    let local = |problem: String| Failure::local(format!("slice {}: {problem}", path.display()));
    let file = File::open(&path).await.map_err(|error| local(error.to_string()))?;
    let found = file.metadata().await.map_err(|error| local(error.to_string()))?.len();
    if found != object.size {
        return Err(local(format!("has {found} bytes and should have {}", object.size)));
    }
    Ok(file)
}

fn request(http: &Http, node: &Url, url: Url, headers: HeaderMap) -> Result<RequestBuilder, Failure> {
    let has_token = headers.contains_key(AUTHORIZATION);
    if has_token && node.scheme() == "https" && url.scheme() != "https" {
        let host = url.host_str().unwrap_or_default();
        return Err(Failure::new(
            FailureKind::Refused,
            format!("the node wants the token sent to http://{host} unencrypted: its own base URL should be https://"),
        ));
    }
    let request = if url.origin() == node.origin() && !has_token {
        http.request(Method::PUT, url)?
    } else {
        http.bare_request(Method::PUT, url)
    };
    Ok(request.headers(headers))
}

fn headers(object: &ObjectFile, place: &Place) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    for header in &place.headers {
        let name = HeaderName::try_from(&header.name).map_err(|_| unusable("the name of a header is none"))?;
        let mut value = HeaderValue::try_from(&header.value).map_err(|_| unusable("the value of a header is none"))?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    headers.insert(CONTENT_LENGTH, HeaderValue::from(object.size));
    Ok(headers)
}

/// The query of a signed URL is a credential.
fn without_query(url: &Url) -> Url {
    let mut url = url.clone();
    url.set_query(None);
    url
}

fn unusable(problem: &str) -> Failure {
    Failure::new(FailureKind::Unknown, format!("the node's answer cannot be followed: {problem}"))
}

#[cfg(test)]
mod tests {
    use forebay_storage::odf::Multihash;

    use super::*;
    use crate::config::{NodeUrl, Upstream};
    use crate::upstream::smart::frames::Header;

    /// The request for a slice of seven bytes.
    fn request_to(url: &str, (name, value): (&str, &str)) -> Result<RequestBuilder, Failure> {
        let (http, node) = node();
        let object = ObjectFile::slice(Multihash::of(b""), 7);
        let header = Header { name: name.to_owned(), value: value.to_owned() };
        let place = Place { url: url.to_owned(), headers: vec![header] };
        request(&http, &node.base, node.join(url), headers(&object, &place)?)
    }

    fn node() -> (Http, NodeUrl) {
        let upstream = Upstream::at("odf+https://node.example.com/edge").unwrap();
        (Http::new(&upstream).unwrap(), upstream.kind.node().unwrap().clone())
    }

    #[test]
    fn what_the_node_gives_along_is_sent_and_the_length_is_ours() {
        let request = request_to("https://store.example.com/x?signature=y", ("Content-Length", "9"));
        let request = request.unwrap().build().unwrap();

        assert_eq!(request.headers()[CONTENT_LENGTH], "7");
        assert_eq!(request.headers()[CONTENT_TYPE], "application/octet-stream");
        assert!(!request.headers().contains_key(AUTHORIZATION));
        assert_eq!(without_query(request.url()).as_str(), "https://store.example.com/x");
    }

    #[test]
    fn a_token_does_not_leave_tls() {
        let token = ("authorization", "Bearer ka_secret");

        let refused = request_to("http://node.example.com/edge/readings/data/x", token).unwrap_err();
        let sent = request_to("https://node.example.com/edge/readings/data/x", token).unwrap().build().unwrap();

        assert_eq!((refused.kind, refused.words.contains("base URL")), (FailureKind::Refused, true), "{refused}");
        assert_eq!(sent.headers()[AUTHORIZATION], "Bearer ka_secret");
        assert!(sent.headers()[AUTHORIZATION].is_sensitive());
    }

    #[test]
    fn a_header_that_is_none_is_the_nodes_mistake() {
        let failure = request_to("https://node.example.com/x", ("no header", "")).unwrap_err();

        assert_eq!(failure.kind, FailureKind::Unknown);
    }
}
