//! Paths and methods of the admin API.

use std::sync::{Arc, Weak};

use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::rejection::QueryRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequest, Path, Query, Request, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;

use super::answer::answer;
use super::socket::{Guarded, Peer};
use super::stream;
use super::wire::{Done, Launched, List, NewSandbox, PolicyBody};
use crate::daemon::{Daemon, Order, Refusal};
use crate::event::Time;
use crate::yaml;

/// Largest request: a policy's text in JSON.
const BODY_OCTETS_MAX: usize = 2 * yaml::FILE_OCTETS_MAX;

/// What every call needs. The daemon ends without waiting for calls, so it is only held while one is at work.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) daemon: Weak<Daemon>,
    reload: Reload,
}

/// Reads the configuration anew, as SIGHUP does.
pub type Reload = Arc<dyn Fn() -> Result<Vec<String>, Refusal> + Send + Sync>;

/// Serves the API until the runtime ends.
pub async fn serve(listener: Guarded, daemon: Weak<Daemon>, reload: Reload) {
    let routes = Router::new()
        .route("/v1/sandboxes", get(list).post(create))
        .route("/v1/sandboxes/{name}", get(show).delete(remove))
        .route("/v1/sandboxes/{name}/policy", get(policy).put(put_policy))
        .route("/v1/sandboxes/{name}/launches", post(launched))
        .route("/v1/events", get(stream::events))
        .route("/v1/denials", get(denials))
        .route("/v1/reload", post(reload_now))
        .route("/v1/gc", post(collect))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(DefaultBodyLimit::max(BODY_OCTETS_MAX))
        .with_state(Api { daemon, reload });
    let routes = routes.into_make_service_with_connect_info::<Peer>();
    if let Err(error) = axum::serve(listener, routes).await {
        tracing::error!(%error, "the admin API failed");
    }
}

impl Api {
    /// Has the daemon do `work` on a thread that may wait: making a namespace takes milliseconds.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Daemon) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let daemon = self.daemon.upgrade().ok_or_else(stopping)?;
        let done = tokio::task::spawn_blocking(move || work(&daemon)).await;
        done.unwrap_or_else(|_| Err(Refusal::Failed("the call ended early; see the daemon's log".into())))
    }
}

/// A body in JSON; what is wrong with it is told like any other error.
struct Body<T>(T);

impl<T, S> FromRequest<S> for Body<T>
where
    axum::Json<T>: FromRequest<S, Rejection = JsonRejection>,
    S: Send + Sync,
{
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        match axum::Json::from_request(request, state).await {
            Ok(axum::Json(body)) => Ok(Self(body)),
            Err(rejection) => Err(Refusal::Invalid(rejection.body_text())),
        }
    }
}

async fn list(State(api): State<Api>) -> Response {
    let list = |daemon: &Daemon| Ok(List { sandboxes: daemon.list(), waiting: daemon.waiting() });
    answer(StatusCode::OK, api.work(list).await)
}

async fn create(State(api): State<Api>, body: Result<Body<NewSandbox>, Refusal>) -> Response {
    let request = match body {
        Ok(Body(request)) => request,
        Err(refusal) => return refusal.into_response(),
    };
    let create = move |daemon: &Daemon| {
        let (order, _) = Order::from_request(&request, Time::now())?;
        let member = daemon.establish(order)?;
        daemon.show(member.name())
    };
    answer(StatusCode::CREATED, api.work(create).await)
}

async fn show(State(api): State<Api>, Path(name): Path<String>) -> Response {
    answer(StatusCode::OK, api.work(move |daemon| daemon.show(&name)).await)
}

async fn remove(State(api): State<Api>, Path(name): Path<String>) -> Response {
    let remove = move |daemon: &Daemon| {
        let notes = daemon.will_return(&name).into_iter().collect();
        daemon.remove(&name, "removed")?;
        Ok(Done { notes })
    };
    answer(StatusCode::OK, api.work(remove).await)
}

async fn policy(State(api): State<Api>, Path(name): Path<String>) -> Response {
    answer(StatusCode::OK, api.work(move |daemon| daemon.policy_of(&name)).await)
}

async fn put_policy(
    State(api): State<Api>,
    Path(name): Path<String>,
    body: Result<Body<PolicyBody>, Refusal>,
) -> Response {
    let body = match body {
        Ok(Body(body)) => body,
        Err(refusal) => return refusal.into_response(),
    };
    let put = move |daemon: &Daemon| Ok(Done { notes: daemon.put_policy(&name, &body)? });
    answer(StatusCode::OK, api.work(put).await)
}

/// What of the denials is wanted.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedDenials {
    sandbox: Option<String>,
    #[serde(default)]
    suggest: bool,
}

async fn denials(State(api): State<Api>, wanted: Result<Query<WantedDenials>, QueryRejection>) -> Response {
    let Query(wanted) = match wanted {
        Ok(wanted) => wanted,
        Err(rejection) => return Refusal::Invalid(rejection.body_text()).into_response(),
    };
    let denials = move |daemon: &Daemon| daemon.denials(wanted.sandbox.as_deref(), wanted.suggest);
    answer(StatusCode::OK, api.work(denials).await)
}

async fn launched(
    State(api): State<Api>,
    Path(name): Path<String>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    body: Result<Body<Launched>, Refusal>,
) -> Response {
    let Some(daemon) = api.daemon.upgrade() else { return stopping().into_response() };
    let attended = body.and_then(|Body(told)| daemon.attend_launch(&name, peer.pid, told));
    match attended {
        Ok(attended) => stream::until_it_ends(attended, daemon.appliance().bypass_alert()),
        Err(refusal) => refusal.into_response(),
    }
}

fn stopping() -> Refusal {
    Refusal::Unavailable("the daemon is stopping".into())
}

async fn reload_now(State(api): State<Api>) -> Response {
    let reload = Arc::clone(&api.reload);
    answer(StatusCode::OK, api.work(move |_| Ok(Done { notes: reload()? })).await)
}

async fn collect(State(api): State<Api>) -> Response {
    answer(StatusCode::OK, api.work(Daemon::collect).await)
}

async fn unknown_path(uri: Uri) -> Response {
    let message = format!("there is no {}; docs/api.md lists what there is", uri.path());
    let body = super::wire::Failed { error: "no_such_path".into(), message, findings: Vec::new() };
    (StatusCode::NOT_FOUND, axum::Json(body)).into_response()
}

async fn unknown_method(method: axum::http::Method, uri: Uri) -> Response {
    let message = format!("{} cannot be asked for with {method}", uri.path());
    let body = super::wire::Failed { error: "method_not_allowed".into(), message, findings: Vec::new() };
    (StatusCode::METHOD_NOT_ALLOWED, axum::Json(body)).into_response()
}
