//! What came of a call, as status and JSON.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::wire::{Failed, Finding};
use crate::daemon::Refusal;

/// The error's word and status: a closed set.
fn classify(refusal: &Refusal) -> (StatusCode, &'static str) {
    match refusal {
        Refusal::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid_request"),
        Refusal::Policy(_) => (StatusCode::UNPROCESSABLE_ENTITY, "bad_policy"),
        Refusal::Config(_) => (StatusCode::UNPROCESSABLE_ENTITY, "bad_config"),
        Refusal::NotFound(_) => (StatusCode::NOT_FOUND, "no_such_sandbox"),
        Refusal::Exists(_) => (StatusCode::CONFLICT, "exists"),
        Refusal::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        Refusal::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, "failed"),
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, error) = classify(&self);
        let findings = match &self {
            Self::Policy(found) | Self::Config(found) => Finding::all(found),
            _ => Vec::new(),
        };
        let body = Failed { error: error.to_owned(), message: self.to_string(), findings };
        (status, Json(body)).into_response()
    }
}

/// JSON, or the refusal.
pub(super) fn answer<T: Serialize>(status: StatusCode, outcome: Result<T, Refusal>) -> Response {
    match outcome {
        Ok(body) => (status, Json(body)).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}
