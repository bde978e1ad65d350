//! `/metrics`, `/live` and `/ready`, off the data path.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;

use crate::measures;

/// Answers `/ready`: `Err` says what is not ready.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;
/// Brings figures up to date that are only counted when somebody looks, and renders those that are not in the recorder.
/// May read from the kernel for some milliseconds.
pub type Refresh = Arc<dyn Fn() -> String + Send + Sync>;

/// Makes this process' figures collectable. Once per process.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let recorder = PrometheusBuilder::new().set_buckets(&measures::SECONDS_BUCKETS)?.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(BuildError::from)?;
    measures::describe();
    Ok(handle)
}

struct Observed {
    figures: PrometheusHandle,
    process: metrics_process::Collector,
    ready: Readiness,
    refresh: Refresh,
}

/// Serves until the runtime ends. Binding is done by the caller, so that a taken port stops the start.
pub async fn serve(listener: TcpListener, figures: PrometheusHandle, ready: Readiness, refresh: Refresh) {
    let process = metrics_process::Collector::default();
    process.describe();
    let observed = Arc::new(Observed { figures, process, ready, refresh });
    let routes = Router::new()
        .route("/metrics", get(figures_now))
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready_now))
        .with_state(observed);
    if let Err(error) = axum::serve(listener, routes).await {
        tracing::error!(%error, "the metrics listener failed");
    }
}

/// Binds the metrics address.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

async fn figures_now(State(observed): State<Arc<Observed>>) -> Response {
    // Not on this thread: names are resolved on it.
    let refresh = Arc::clone(&observed.refresh);
    let own = tokio::task::spawn_blocking(move || refresh()).await.unwrap_or_default();
    observed.process.collect();
    let text = observed.figures.render() + &own;
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn ready_now(State(observed): State<Arc<Observed>>) -> Response {
    match (observed.ready)() {
        Ok(()) => "ready\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}
