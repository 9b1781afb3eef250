//! `tstunnel check`: the way to a host, step by step, and what to do about the first that fails.
//!
//! It goes the way that every command goes, by the same code, and only looks closer. It changes nothing: what it runs on the
//! host is what Mutagen runs first, and a step behind which nothing makes sense is the last.

mod echo;
mod found;
pub mod report;
mod talk;

use std::io::Write;

use serde::Deserialize;
use serde_json::json;
use tokio::io::BufReader;
use tokio::time::Instant;

use crate::client::dial::{Connection, Dialler, Transport};
use crate::client::session::{self, Offer, Opening};
use crate::client::{mutagen, passphrase};
use crate::config::{self, Endpoint, Environment, Host, Overrides, Proxy};
use crate::error::{Code, Error, Result};
use crate::protocol::encoding::percent_encode;
use crate::protocol::frame::Kind;
use crate::protocol::head::Request;
use crate::protocol::{CommandRequest, HEADER_USER, UPGRADE_FRAMED};
use crate::tls::probe::Probe;
use found::{
    absent, denied, described, ends_soon, of_agent, of_mutagen, of_probe, of_tls, of_upgrade, with_certificate,
    with_chain,
};
use report::{Part, Report, Step, Stop, columns};
use talk::Talk;

/// What Mutagen asks a host first, and every policy that serves Mutagen allows.
const PROBE: &str = "uname -s -m";
/// What a Mutagen agent and its client begin with (`pkg/agent/handshake.go`).
const AGENT_MAGIC: [u8; 3] = [0x05, 0x27, 0x87];
const CLIENT_MAGIC: [u8; 3] = [0x87, 0x27, 0x05];
/// What an agent has said when its version is known: the magic number, and three numbers (`pkg/mutagen/version.go`).
const AGENT_GREETING_BYTES: usize = AGENT_MAGIC.len() + 3 * 4;

/// What is to be checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// A host, or a `tstunnel://` URL.
    pub host: String,
    /// What the options say about it.
    pub overrides: Overrides,
    /// A target that must take connections.
    pub target: Option<String>,
    /// How many bytes measure the throughput, where it is measured.
    pub throughput: Option<u64>,
    /// Whether Mutagen is looked at too.
    pub mutagen: bool,
    /// Print JSON.
    pub json: bool,
}

/// Checks, says what it finds, and returns the exit status: 0, or that of the first [`Part`] that failed.
///
/// # Errors
/// `usage` where the host is no host or URL; `internal` where stdout cannot be written.
pub async fn run(check: &Check, env: &Environment, stdout: &mut dyn Write) -> Result<u8> {
    let mut report = Report::new(stdout, check.json);
    match config::explain(&check.host, &check.overrides, env) {
        Err(error) if error.code == Code::Usage => return Err(error),
        Err(error) => {
            report.stop(Part::Configuration, &error);
        }
        Ok((host, stated)) => {
            let _ = Walk { check, report: &mut report, env }.go(host, &stated).await;
        }
    }
    if check.mutagen {
        report.add(of_mutagen(env));
    }
    report.end(&check.host)
}

/// A check on its way.
struct Walk<'a, 'r> {
    check: &'a Check,
    env: &'a Environment,
    report: &'a mut Report<'r>,
}

impl Walk<'_, '_> {
    async fn go(&mut self, host: Host, stated: &[config::Stated]) -> Result<(), Stop> {
        let probe = self.configuration(&host, stated)?;
        let dialler = Dialler::with_config(host, probe.config.clone());
        let dialler = dialler.map_err(|error| self.report.stop(Part::Proxy, &error))?;
        let connection = self.connect(&dialler, &probe).await?;
        let answer = self.host(&dialler, &probe, connection).await?;
        self.command(&dialler).await?;
        self.agent(&dialler).await?;
        if let Some(target) = &self.check.target {
            self.target(&dialler, target).await;
        }
        if let Some(bytes) = self.check.throughput {
            self.throughput(&dialler, &answer, bytes).await;
        }
        Ok(())
    }

    /// What the host's settings are, and where each comes from.
    fn configuration(&mut self, host: &Host, stated: &[config::Stated]) -> Result<Probe, Stop> {
        let probe =
            Probe::new(host, &mut passphrase::ask).map_err(|error| self.report.stop(Part::Configuration, &error))?;
        let rows: Vec<[String; 3]> =
            stated.iter().map(|stated| [stated.key.to_owned(), stated.value.clone(), stated.from.clone()]).collect();
        let mut step = Step::ok(Part::Configuration, &host.alias).with_details(columns(&rows));
        for stated in stated {
            step = step.with(stated.key, json!({"value": stated.value, "from": stated.from}));
        }
        self.report.add(step);
        Ok(probe)
    }

    /// Names, TCP and TLS.
    async fn connect(&mut self, dialler: &Dialler, probe: &Probe) -> Result<Connection, Stop> {
        let deadline = dialler.deadline();
        let transport = match &dialler.host().proxy {
            None => self.connect_directly(dialler, deadline).await?,
            Some(proxy) => self.connect_through(dialler, proxy, deadline).await?,
        };
        let secured = dialler.secure(transport, b"", deadline).await;
        let chain = probe.presented();
        let connection = match secured {
            Ok(connection) => connection,
            // With TLS 1.2 the server judges us within the handshake, and has been judged itself by then.
            Err(error) if error.code == Code::ClientCert => {
                self.report.add(with_chain(Step::ok(Part::Tls, "the server's certificate is good"), &chain));
                self.own_certificate(dialler.host(), probe, Some(&error))?;
                return Err(Stop);
            }
            Err(error) => {
                self.report.add(with_chain(Step::failed(Part::Tls, &error), &chain));
                return Err(Stop);
            }
        };
        self.report.add(of_tls(&connection, &chain));
        Ok(connection)
    }

    /// The endpoint's name, and TCP to it.
    async fn connect_directly(&mut self, dialler: &Dialler, deadline: Instant) -> Result<BufReader<Transport>, Stop> {
        let endpoint = &dialler.host().endpoint;
        let found = dialler.look_up(endpoint, deadline).await;
        let addresses = found.map_err(|error| self.report.stop(Part::Name, &error))?;
        let list = addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>();
        self.report.add(match endpoint.ip() {
            Some(_) => is_address(endpoint),
            None => Step::ok(Part::Name, format!("{} is {}", endpoint.host, list.join(", "))).with("addresses", list),
        });
        self.report.add(Step::skipped(Part::Proxy, "direct"));
        let connected = dialler.connect(endpoint, &addresses, deadline).await;
        let tcp = connected.map_err(|error| self.report.stop(Part::Tcp, &error))?;
        let transport = Transport::Tcp(tcp).read_ahead();
        let peer = peer(&transport);
        self.report.add(Step::ok(Part::Tcp, &peer).with("address", peer));
        Ok(transport)
    }

    /// The proxy, which looks up the name itself, and what it is asked for.
    async fn connect_through(
        &mut self,
        dialler: &Dialler,
        proxy: &Proxy,
        deadline: Instant,
    ) -> Result<BufReader<Transport>, Stop> {
        let endpoint = &dialler.host().endpoint;
        self.report.add(match endpoint.ip() {
            Some(_) => is_address(endpoint),
            None => Step::skipped(Part::Name, format!("the proxy looks up {}", endpoint.host)),
        });
        let connected = dialler.connect_through(proxy, deadline).await;
        let transport = connected.map_err(|error| self.report.stop(Part::Proxy, &error))?;
        let text = format!("{proxy} connects to {endpoint}");
        self.report.add(Step::ok(Part::Proxy, text).with("proxy", proxy.to_string()));
        let peer = peer(&transport);
        self.report.add(Step::ok(Part::Tcp, format!("{peer}, the proxy")).with("address", peer));
        Ok(transport)
    }

    /// What the client shows for itself, and what the server said to it.
    fn own_certificate(&mut self, host: &Host, probe: &Probe, refused: Option<&Error>) -> Result<(), Stop> {
        let own = probe.own.as_ref().map_err(|error| self.report.stop(Part::OwnCertificate, error))?;
        if let Some(error) = refused {
            let step = Step::failed(Part::OwnCertificate, error).with_details([described(own)]);
            self.report.add(with_certificate(step, own));
            return Err(Stop);
        }
        let mut step = with_certificate(Step::ok(Part::OwnCertificate, described(own)), own);
        if ends_soon(own) {
            step = step.warn("it ends soon", "get a new certificate, and set `cert` and `key` to it");
        }
        if let Some(doubt) = probe.doubt {
            step = step.warn(doubt, format!("chmod 600 {}", host.key.display()));
        }
        self.report.add(step);
        Ok(())
    }

    /// What the server thinks of this client; the first answer is also where it refuses a certificate.
    async fn host(&mut self, dialler: &Dialler, probe: &Probe, mut connection: Connection) -> Result<HostAnswer, Stop> {
        let host = dialler.host();
        if probe.own.is_err() {
            self.own_certificate(host, probe, None)?;
        }
        let answer = ask_host(&mut connection, host).await;
        let refused = answer.as_ref().err().filter(|error| error.code == Code::ClientCert);
        self.own_certificate(host, probe, refused)?;
        let answer = answer.map_err(|error| {
            let hint = format!("check `upgrade_base`, which is {}, and that client and server fit", host.upgrade_base);
            let error = if error.code == Code::BadRequest { error.with_hint(hint) } else { error };
            self.report.stop(Part::Host, &error)
        })?;
        let HostAnswer { server, host, principal, user, features } = &answer;
        let text = format!("{host} of {server}, as {principal} in the account {user}");
        let step = Step::ok(Part::Host, text).with("server", server.as_str()).with("host", host.as_str());
        let step = step.with("principal", principal.as_str()).with("user", user.as_str());
        self.report.add(step.with("features", features.clone()));
        Ok(answer)
    }

    /// The upgrade, what the policy says to Mutagen's first question, and round trips.
    async fn command(&mut self, dialler: &Dialler) -> Result<(), Stop> {
        let opened = match session::open(dialler, &command(PROBE, dialler.host())).await {
            Ok(opened) => opened,
            Err(error) if error.code == Code::CommandDenied => {
                self.report.add(Step::skipped(Part::Upgrade, "nothing was allowed that needs one"));
                self.report.add(denied(Part::Policy, &error, self.check.mutagen));
                return Ok(());
            }
            Err(error) => return Err(self.report.stop(Part::Upgrade, &error)),
        };
        self.report.add(of_upgrade(&opened));
        if opened.protocol() != UPGRADE_FRAMED {
            self.report.add(Step::ok(Part::Policy, format!("allows `{PROBE}`")));
            self.report.add(Step::skipped(Part::RoundTrip, "not to be measured without frames"));
            return Ok(());
        }
        let mut talk = Talk::new(opened, dialler.host());
        let ran = async {
            talk.send(Kind::Stdin, &[]).await?;
            talk.until(|_| false).await
        };
        ran.await.map_err(|error| self.report.stop(Part::Policy, &error))?;
        self.report.add(of_probe(&talk));
        let measured = talk.round_trip().await;
        let shortest = measured.map_err(|error| self.report.stop(Part::RoundTrip, &error))?;
        let milliseconds = shortest.as_secs_f64() * 1000.0;
        self.report.add(Step::ok(Part::RoundTrip, format!("{milliseconds:.2} ms")).with("ms", milliseconds));
        talk.end().await;
        Ok(())
    }

    /// Whether the agent of this machine's Mutagen is installed there.
    async fn agent(&mut self, dialler: &Dialler) -> Result<(), Stop> {
        let version = match mutagen::version(self.env) {
            Ok(version) => version,
            Err(error) => {
                let why = format!("{}, which would say which agent to look for", error.text);
                self.report.add(Step::skipped(Part::Agent, why));
                return Ok(());
            }
        };
        // What Mutagen itself starts; it says who it is, and waits for us to do the same.
        let line = format!(".mutagen/agents/{version}/mutagen-agent synchronizer --log-level=disabled");
        let opened = match session::open(dialler, &command(&line, dialler.host())).await {
            Ok(opened) => opened,
            Err(error) if error.code == Code::CommandDenied => {
                self.report.add(denied(Part::Agent, &error, self.check.mutagen));
                return Ok(());
            }
            Err(error) => {
                self.report.add(absent(error, &version));
                return Ok(());
            }
        };
        if opened.protocol() != UPGRADE_FRAMED {
            self.report.add(Step::skipped(Part::Agent, "not to be asked without frames"));
            return Ok(());
        }
        let mut talk = Talk::new(opened, dialler.host());
        let greeted = async {
            talk.until(|talk| talk.stdout.len() >= AGENT_MAGIC.len()).await?;
            if talk.stdout.starts_with(&AGENT_MAGIC) {
                talk.send(Kind::Stdin, &CLIENT_MAGIC).await?;
                talk.until(|talk| talk.stdout.len() >= AGENT_GREETING_BYTES).await?;
            }
            Ok(())
        };
        greeted.await.map_err(|error| self.report.stop(Part::Agent, &error))?;
        self.report.add(of_agent(&talk, &version));
        talk.end().await;
        Ok(())
    }

    /// Whether a target takes connections.
    async fn target(&mut self, dialler: &Dialler, target: &str) {
        self.report.add(match session::open(dialler, &stream(target, Offer::FramedFirst)).await {
            Ok(opened) => {
                if opened.protocol() == UPGRADE_FRAMED {
                    Talk::new(opened, dialler.host()).end().await;
                }
                Step::ok(Part::Target, format!("{target} takes connections"))
            }
            Err(error) => Step::failed(Part::Target, &error),
        });
    }

    /// How fast bytes go there and come back.
    async fn throughput(&mut self, dialler: &Dialler, answer: &HostAnswer, bytes: u64) {
        if !answer.features.iter().any(|feature| feature == "echo") {
            self.report.add(Step::skipped(Part::Throughput, format!("{} has no echo", answer.server)));
            return;
        }
        let measured = match session::open(dialler, &stream("echo", Offer::Raw)).await {
            Ok(opened) => echo::measure(opened, dialler.host(), bytes).await,
            Err(error) => Err(error),
        };
        self.report.add(match measured {
            Ok(measured) => {
                let (megabytes, seconds) = (measured.rate() / 1e6, measured.took.as_secs_f64());
                let text =
                    format!("{megabytes:.1} MB/s there and back at once: {} bytes in {seconds:.2} s", measured.bytes);
                let step = Step::ok(Part::Throughput, text).with("bytes", measured.bytes).with("seconds", seconds);
                step.with("bytes_per_second", measured.rate())
            }
            Err(error) => Step::failed(Part::Throughput, &error),
        });
    }
}

fn is_address(endpoint: &Endpoint) -> Step {
    Step::skipped(Part::Name, format!("{} is an address", endpoint.host))
}

/// The address at the other end of TCP.
fn peer(transport: &BufReader<Transport>) -> String {
    let address = transport.get_ref().tcp().peer_addr();
    // One that was reset by now has none.
    address.map_or_else(|_| "cut off at once".to_owned(), |address| address.to_string())
}

/// What a server says of a client (tstunnel-protocol(7), `GET /host`).
#[derive(Clone, Debug, Deserialize)]
struct HostAnswer {
    server: String,
    host: String,
    principal: String,
    user: String,
    features: Vec<String>,
}

async fn ask_host(connection: &mut Connection, host: &Host) -> Result<HostAnswer> {
    let mut request = Request::new("GET", &format!("{}/host", host.upgrade_base), &host.server_name);
    if let Some(user) = &host.user {
        request = request.field(HEADER_USER, user);
    }
    connection.send(&request.field("Connection", "close").into_bytes()).await?;
    let response = connection.answer().await?;
    if response.status == 200 {
        let body = connection.body(&response).await;
        if let Ok(answer) = serde_json::from_slice(&body) {
            return Ok(answer);
        }
        let text = format!("{} under {} answered 200 and not in this protocol", host.endpoint.host, host.upgrade_base);
        return Err(Error::new(Code::NotTstunnel, text));
    }
    Err(connection.refusal(&response).await)
}

fn command(line: &str, host: &Host) -> Opening {
    let request = CommandRequest { command: line.to_owned(), user: host.user.clone(), ..CommandRequest::default() };
    let body = serde_json::to_vec(&request).unwrap_or_default();
    Opening { path: "/command".to_owned(), body: Some(body), offer: Offer::FramedFirst, command: Some(line.to_owned()) }
}

fn stream(target: &str, offer: Offer) -> Opening {
    let path = format!("/stream?target={}", percent_encode(target));
    Opening { path, body: None, offer, command: Some(target.to_owned()) }
}
