//! The requests a test asks about afterwards: `GET /_stub/log`.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{HeaderMap, Method, header};
use serde_json::{Value, json};

/// Requests kept; beyond, the oldest is forgotten.
const ENTRIES_MAX: usize = 10_000;

/// What was asked, in order of arrival.
#[derive(Debug, Default)]
pub(crate) struct Log {
    entries: Mutex<VecDeque<Arc<Entry>>>,
    seen: AtomicU64,
    bytes: AtomicU64,
}

/// A request. It is listed from its arrival on, since some are never answered.
#[derive(Debug)]
pub(crate) struct Entry {
    method: Method,
    path: String,
    content_type: Option<String>,
    bytes: AtomicU64,
    status: AtomicU16,
}

impl Entry {
    /// Whether the path names this dataset.
    pub(crate) fn is_about(&self, dataset: &str) -> bool {
        self.path.split('/').any(|part| part == dataset)
    }
}

impl Log {
    pub(crate) fn arrive(&self, method: &Method, path: &str, headers: &HeaderMap) -> Arc<Entry> {
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let entry = Arc::new(Entry {
            method: method.clone(),
            path: path.to_owned(),
            content_type: content_type.map(str::to_owned),
            bytes: AtomicU64::new(0),
            status: AtomicU16::new(0),
        });
        self.seen.fetch_add(1, Ordering::Relaxed);
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= ENTRIES_MAX {
            entries.pop_front();
        }
        entries.push_back(Arc::clone(&entry));
        entry
    }

    /// Counts bytes of a body or of WebSocket messages.
    pub(crate) fn received(&self, entry: &Entry, bytes: usize) {
        entry.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn to_json(&self) -> Value {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let requests: Vec<_> = entries.iter().map(|entry| entry.to_json()).collect();
        json!({
            "requests": requests,
            "requests_seen": self.seen.load(Ordering::Relaxed),
            "bytes_received": self.bytes.load(Ordering::Relaxed),
        })
    }
}

impl Entry {
    pub(crate) fn answered(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    fn to_json(&self) -> Value {
        let status = self.status.load(Ordering::Relaxed);
        json!({
            "method": self.method.as_str(),
            "path": self.path,
            "status": (status > 0).then_some(status),
            "bytes": self.bytes.load(Ordering::Relaxed),
            "content_type": self.content_type,
        })
    }
}
