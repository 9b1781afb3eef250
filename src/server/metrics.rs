//! What is counted, and how it is written for Prometheus: the OpenMetrics text format.
//!
//! A metric is one line of the list below, and whatever counts has it by name. Labels are the program's own words, or names that
//! the configuration has: nothing that a peer can choose, so that nobody can make the server hold more of them. Counting is an
//! atomic addition; nothing locks while bytes flow.

mod lookup;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::error::Code;
use crate::protocol::HostId;
use crate::server::gate::Closed;
use crate::server::handshake::Failure;
use crate::server::state::State;
use crate::stdio::Tally;
use lookup::Lookup;

/// The format of [`Metrics::encode`] (OpenMetrics 1.0).
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One label with one of the program's own words.
type Word = [(&'static str, &'static str); 1];
/// Two of them.
type Words = [(&'static str, &'static str); 2];
/// A configured host, and a kind of session.
type OfHost = [(&'static str, String); 2];
/// A gauge of what need not be whole.
type Real = Gauge<f64, AtomicU64>;

/// Seconds of the buckets of sessions' durations: from an `uname` to a week's synchronisation.
const DURATIONS: [f64; 12] = [0.01, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0, 1800.0, 7200.0, 28_800.0, 86_400.0, 604_800.0];

macro_rules! metrics {
    ($($name:ident: $type:ty = $exposed:literal, $help:literal $(, $new:expr)?;)*) => {
        /// Everything that is counted; one for a server.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            /// Bytes of all sessions, from clients.
            pub bytes_in: Arc<Tally>,
            /// Bytes of all sessions, to clients.
            pub bytes_out: Arc<Tally>,
            $(#[doc = $help] pub $name: $type,)*
        }

        impl Metrics {
            fn declared() -> Metrics {
                let mut registry = Registry::default();
                $(
                    let $name: $type = metrics!(@new $($new)?);
                    registry.register($exposed, $help, $name.clone());
                )*
                Metrics { registry, bytes_in: Arc::default(), bytes_out: Arc::default(), $($name,)* }
            }
        }
    };
    (@new $new:expr) => { $new };
    (@new) => { Default::default() };
}

// A counter's name gets `_total` behind it where it is written, and the help a full stop.
metrics! {
    handshakes: Family<Word, Counter> = "tstunnel_handshakes", "TLS handshakes, by how they ended";
    closed_connections: Family<Word, Counter> = "tstunnel_closed_connections", "Connections that were closed before they were authenticated, to make room or since their source was shut out";
    connections: Family<Word, Gauge> = "tstunnel_connections", "Connections that are not sessions, by what they are doing";
    requests: Family<Words, Counter> = "tstunnel_requests", "Requests, by what was asked for and the code of the answer";
    sessions: Family<OfHost, Gauge> = "tstunnel_sessions", "Sessions and uploads that are alive";
    sessions_started: Family<OfHost, Counter> = "tstunnel_sessions_started", "Sessions and uploads that were allowed";
    session_seconds: Histogram = "tstunnel_session_duration_seconds", "How long sessions and uploads lasted", Histogram::new(DURATIONS);
    resumes: Counter = "tstunnel_resumes", "Times that an interrupted session went on over another connection";
    parked_sessions: Gauge = "tstunnel_parked_sessions", "Interrupted sessions that wait for their clients";
    parked_bytes: Gauge = "tstunnel_parked_bytes", "Unacknowledged bytes that interrupted sessions hold";
    uploads: Family<Word, Counter> = "tstunnel_uploads", "Uploads, by how they ended";
    uploaded_bytes: Counter = "tstunnel_upload_bytes", "Bytes of uploads' bodies, as they were received";
    limits: Family<Word, Counter> = "tstunnel_limits_reached", "Times that something was refused or given up because a limit was reached";
    audit_lines: Family<Word, Counter> = "tstunnel_audit_lines", "Lines of the audit log, by what became of them";
    reloads: Family<Word, Counter> = "tstunnel_reloads", "Times that the configuration was read again, by how that ended";
    certificate_expiry: Gauge = "tstunnel_certificate_expiry_timestamp_seconds", "When the server's own certificate expires";
    crl_expiry: Real = "tstunnel_crl_expiry_timestamp_seconds", "When the first of the revocation lists expires, from when on nobody is let in";
}

/// The limits that can be reached.
const LIMITS: [&str; 4] = ["sessions", "principal-sessions", "source-sessions", "resume-memory"];

impl Metrics {
    /// Everything at zero. What is there from the beginning can be seen to rise.
    pub fn new() -> Metrics {
        let mut metrics = Metrics::declared();
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        metrics.registry.register("tstunnel_build", "The version of the program", version);
        let lookup = Lookup::new(metrics.bytes_in.clone(), metrics.bytes_out.clone());
        metrics.registry.register_collector(Box::new(lookup));
        metrics.handshake("ok");
        for failure in Failure::ALL {
            metrics.handshake(failure.name());
        }
        for limit in LIMITS {
            metrics.limit(limit);
        }
        for why in Closed::ALL {
            metrics.closed_connection(*why);
        }
        for state in ["handshake", "request"] {
            metrics.connection(state);
        }
        for result in ["written", "lost", "held-back"] {
            metrics.audit_line(result);
        }
        for result in ["stored", "failed"] {
            metrics.upload(result);
        }
        for result in ["ok", "failed"] {
            metrics.reload(result);
        }
        metrics
    }

    /// TLS handshakes that ended so: `ok`, or the name of a [`Failure`].
    pub fn handshake(&self, result: &'static str) -> Counter {
        self.handshakes.get_or_create_owned(&[("result", result)])
    }

    /// Connections that were closed before they were authenticated, for this reason.
    pub fn closed_connection(&self, why: Closed) -> Counter {
        self.closed_connections.get_or_create_owned(&[("reason", why.name())])
    }

    /// Connections that are in a `handshake`, or have a `request` read and answered.
    pub fn connection(&self, state: &'static str) -> Gauge {
        self.connections.get_or_create_owned(&[("state", state)])
    }

    /// Requests for this that were answered so: `ok`, or with the code of a refusal.
    pub fn request(&self, route: &'static str, code: Option<Code>) -> Counter {
        self.requests.get_or_create_owned(&[("route", route), ("code", code.map_or("ok", Code::name))])
    }

    /// The sessions of a host of one kind: how many there are, and how many there were.
    pub fn session(&self, host: &HostId, kind: &'static str) -> (Gauge, Counter) {
        let labels = [("host", host.as_str().to_owned()), ("kind", kind.to_owned())];
        (self.sessions.get_or_create_owned(&labels), self.sessions_started.get_or_create_owned(&labels))
    }

    /// Uploads that were `stored`, or `failed`.
    pub fn upload(&self, result: &'static str) -> Counter {
        self.uploads.get_or_create_owned(&[("result", result)])
    }

    /// Times that this limit was reached.
    pub fn limit(&self, limit: &'static str) -> Counter {
        self.limits.get_or_create_owned(&[("limit", limit)])
    }

    /// Lines of the audit log that were `written`, `lost`, or `held-back`.
    pub fn audit_line(&self, result: &'static str) -> Counter {
        self.audit_lines.get_or_create_owned(&[("result", result)])
    }

    /// Reloads that were `ok`, or `failed` and left everything as it was.
    pub fn reload(&self, result: &'static str) -> Counter {
        self.reloads.get_or_create_owned(&[("result", result)])
    }

    /// The server goes by `state` from now on.
    pub fn loaded(&self, state: &State) {
        self.certificate_expiry.set(state.expiry.certificate);
        // Where there is no list, none ever expires.
        self.crl_expiry.set(state.expiry.crl.map_or(f64::INFINITY, |time| time as f64));
    }

    /// Everything as text, as [`CONTENT_TYPE`] has it.
    ///
    /// # Errors
    /// None that is known: a `String` takes whatever is written to it.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

/// What an open thing adds to a gauge, until it is dropped.
#[derive(Debug)]
pub struct Held(Gauge);

impl Held {
    /// Adds one to `gauge`.
    pub fn new(gauge: Gauge) -> Held {
        gauge.inc();
        Held(gauge)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}
