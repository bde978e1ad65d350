//! The other end of the admin socket: what the commands call.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;

use super::wire::Failed;

/// How long a call may take that is answered once: removing a sandbox waits for its processes and its log lines.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Why a call came to nothing.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody answers.
    #[error(
        "no daemon answers on {path} ({reason}); start it with `sluice serve --config FILE`, or name its socket with \
         --socket PATH or its configuration with --config FILE"
    )]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// The kernel's reason.
        reason: io::Error,
    },
    /// Only root and the daemon's user may.
    #[error("the daemon's socket {0} is not yours to use; run this as root or as the daemon's user")]
    NotPermitted(PathBuf),
    /// The daemon refused.
    #[error("{}", .0.message)]
    Refused(Failed),
    /// The daemon went away, or is not one.
    #[error("the daemon on {path} did not answer as one: {why}")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        why: String,
    },
}

/// A daemon to be called.
pub struct Client {
    path: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Client {
    /// The daemon behind this socket; it is not called yet.
    pub fn new(path: &Path) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { path: path.to_owned(), runtime })
    }

    /// Calls and reads the answer.
    pub fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let octets = self.rendered(body)?;
        self.runtime.block_on(async {
            let answer = tokio::time::timeout(ANSWER_MAX, async {
                let response = self.send(method, path, octets).await?;
                let (status, octets) = self.whole(response).await?;
                if status.is_success() {
                    serde_json::from_slice(&octets).map_err(|error| self.broken(&error))
                } else {
                    Err(self.refused(status, &octets))
                }
            });
            answer.await.unwrap_or_else(|_| Err(self.broken(&format!("nothing within {ANSWER_MAX:?}"))))
        })
    }

    /// Calls and hands each piece of the answer to `take` as it comes, until the answer ends or `take` says so.
    pub fn stream(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        let octets = self.rendered(body)?;
        self.runtime.block_on(async {
            let mut response = self.send(method, path, octets).await?;
            if !response.status().is_success() {
                let (status, octets) = self.whole(response).await?;
                return Err(self.refused(status, &octets));
            }
            while let Some(frame) = response.body_mut().frame().await {
                let frame = frame.map_err(|error| self.broken(&error))?;
                if frame.data_ref().is_some_and(|octets| take(octets).is_err()) {
                    return Ok(());
                }
            }
            Ok(())
        })
    }

    fn rendered(&self, body: Option<&impl Serialize>) -> Result<Vec<u8>, ClientError> {
        body.map_or(Ok(Vec::new()), |body| serde_json::to_vec(body).map_err(|error| self.broken(&error)))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.path).await.map_err(|reason| match reason.kind() {
            io::ErrorKind::PermissionDenied => ClientError::NotPermitted(self.path.clone()),
            _ => ClientError::NotRunning { path: self.path.clone(), reason },
        })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(&error))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "sluice")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| self.broken(&error))?;
        sender.send_request(request).await.map_err(|error| self.broken(&error))
    }

    async fn whole(&self, response: Response<Incoming>) -> Result<(StatusCode, Bytes), ClientError> {
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| self.broken(&error))?;
        Ok((status, body.to_bytes()))
    }

    fn refused(&self, status: StatusCode, octets: &[u8]) -> ClientError {
        match serde_json::from_slice::<Failed>(octets) {
            Ok(failed) if failed.error == "forbidden" => ClientError::NotPermitted(self.path.clone()),
            Ok(failed) => ClientError::Refused(failed),
            Err(_) => self.broken(&format!("status {status}")),
        }
    }

    fn broken(&self, why: &impl ToString) -> ClientError {
        ClientError::Broken { path: self.path.clone(), why: why.to_string() }
    }
}
