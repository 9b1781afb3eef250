//! `[monitor]`: `/metrics` for Prometheus, `/healthz` and `/readyz` for whatever restarts servers and sends clients to them, over
//! plain HTTP/1.1 on listeners of their own.
//!
//! Whoever reaches such a listener is answered, so it is meant for loopback. What it holds is bounded: connections, the time of
//! each, and the size of heads; and nothing that is asked here changes anything.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::error::Result;
use crate::protocol::MAX_HEAD_BYTES;
use crate::server::audit::Audit;
use crate::server::descriptors::Shortage;
use crate::server::listener::{Bound, Given};
use crate::server::metrics::{self, Metrics};
use crate::server::registry::Registry;
use crate::server::{Shared, Stop};

/// Connections at once; others wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 16;
/// From accept to the end of the answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What the answers are made from.
#[derive(Clone, Debug)]
pub struct Monitor {
    metrics: Arc<Metrics>,
    registry: Registry,
    audit: Audit,
    stop: Stop,
    places: Arc<Semaphore>,
}

/// The listeners of a monitor, until they are dropped.
#[derive(Debug)]
pub struct Monitors {
    copies: Vec<Given>,
    serving: JoinSet<()>,
}

impl Monitors {
    /// Answers whoever connects to one of `bound`.
    ///
    /// # Errors
    /// `internal` where there is no descriptor left.
    pub fn open(monitor: &Monitor, bound: Vec<Bound>) -> Result<Monitors> {
        let mut monitors = Monitors { copies: Vec::new(), serving: JoinSet::new() };
        for bound in bound {
            monitors.copies.push(bound.copy()?);
            let socket = bound.into_socket();
            if let Ok(address) = socket.local_addr() {
                tracing::info!("monitor on http://{address}");
            }
            monitors.serving.spawn(monitor.clone().serve(socket));
        }
        Ok(monitors)
    }

    /// The sockets once more, for a successor.
    ///
    /// # Errors
    /// Where there is no descriptor left.
    pub fn copies(&self) -> io::Result<Vec<Given>> {
        self.copies.iter().map(Given::copy).collect()
    }

    /// Leaves answering to a successor.
    pub fn hand_over(&mut self) {
        *self = Monitors { copies: Vec::new(), serving: JoinSet::new() };
    }
}

impl Monitor {
    /// A monitor of one server, which does not keep it from ending.
    pub fn new(shared: &Shared) -> Monitor {
        let Shared { metrics, registry, audit, stop, .. } = shared;
        Monitor {
            metrics: metrics.clone(),
            registry: registry.clone(),
            audit: audit.clone(),
            stop: stop.clone(),
            places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        }
    }

    /// Answers whoever connects, for ever.
    pub async fn serve(self, listener: TcpListener) {
        let mut shortage = Shortage::default();
        loop {
            let Ok(place) = self.places.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((tcp, _)) => {
                    let monitor = self.clone();
                    tokio::spawn(async move {
                        let _ = tokio::time::timeout(TIMEOUT, monitor.connection(tcp)).await;
                        drop(place);
                    });
                }
                Err(error) => shortage.wait("the monitor", &error).await,
            }
        }
    }

    async fn connection(self, tcp: TcpStream) {
        let service = service_fn(move |request| {
            let answer = self.answer(&request);
            async move { Ok::<_, Infallible>(answer) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(TIMEOUT)
            .max_buf_size(MAX_HEAD_BYTES)
            .keep_alive(false)
            .serve_connection(TokioIo::new(tcp), service)
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "connection to the monitor ended");
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if !matches!(path, "/metrics" | "/healthz" | "/readyz") {
            return text(StatusCode::NOT_FOUND, "there is nothing under this path\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "this path takes GET, HEAD\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match path {
            "/metrics" => self.metrics(),
            "/readyz" => match self.obstacle() {
                None => text(StatusCode::OK, "ready\n"),
                Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
            },
            // Whoever reads this has seen that the runtime runs.
            _ => text(StatusCode::OK, "healthy\n"),
        }
    }

    /// Why new sessions should be sent elsewhere.
    fn obstacle(&self) -> Option<&'static str> {
        if self.stop.is_stopping() {
            Some("the server is stopping\n")
        } else if self.audit.is_blocking() {
            Some("the server cannot keep its audit log\n")
        } else {
            None
        }
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        let (sessions, bytes) = self.registry.parked();
        self.metrics.parked_sessions.set(i64::try_from(sessions).unwrap_or(i64::MAX));
        self.metrics.parked_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        match self.metrics.encode() {
            Ok(metrics) => {
                let mut answer = text(StatusCode::OK, metrics);
                answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
                answer
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
