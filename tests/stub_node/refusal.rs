//! What the node answers when it does not do what it was asked. The shapes differ by layer, and clients see all of them.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// A status and its body.
#[derive(Clone, Debug)]
pub(crate) enum Refusal {
    /// No body: 403, 404 and every 500.
    Empty(StatusCode),
    /// Plain text: the authentication layer.
    Text(StatusCode, String),
    /// `{"message": ..}`: the handlers.
    Message(StatusCode, String),
    /// What a proxy in front of a node says: come back later.
    RetryAfter(StatusCode, u64),
}

impl Refusal {
    pub(crate) const FORBIDDEN: Self = Self::Empty(StatusCode::FORBIDDEN);
    pub(crate) const NOT_FOUND: Self = Self::Empty(StatusCode::NOT_FOUND);
    pub(crate) const INTERNAL: Self = Self::Empty(StatusCode::INTERNAL_SERVER_ERROR);

    pub(crate) fn message(status: StatusCode, text: impl Into<String>) -> Self {
        Self::Message(status, text.into())
    }

    pub(crate) fn text(status: StatusCode, text: impl Into<String>) -> Self {
        Self::Text(status, text.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Empty(status) => status.into_response(),
            Self::Text(status, text) => {
                let mut response = (status, text).into_response();
                if status == StatusCode::UNAUTHORIZED {
                    response.headers_mut().remove(header::CONTENT_TYPE);
                }
                response
            }
            Self::Message(status, text) => (status, Json(json!({ "message": text }))).into_response(),
            Self::RetryAfter(status, secs) => {
                (status, [(header::RETRY_AFTER, HeaderValue::from(secs))]).into_response()
            }
        }
    }
}

/// Anything unexpected is an empty 500, as on a node; the reason goes to standard error for whoever debugs a test.
pub(crate) fn internal(error: impl std::fmt::Display) -> Refusal {
    eprintln!("500: {error:#}");
    Refusal::INTERNAL
}
