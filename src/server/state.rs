//! What the server goes by: its configuration, and the policy and TLS configuration made from it. One [`State`] is made whole
//! or not at all, and is never changed: a reload makes another and puts it in the place of the first.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::server::danger::ClientCertVerifier;

use crate::error::{Code, Error, Result};
use crate::protocol::HostId;
use crate::server::authorize::Authorize;
use crate::server::config::{Account, ServerConfig};
use crate::server::handshake::Peer;
use crate::server::policy::{Asker, Permit, Policy, Refused, Request};
use crate::server::{descriptors, principal, trusted};
use crate::tls;

/// All that the server's files say.
#[derive(Debug)]
pub struct State {
    /// The configuration.
    pub config: ServerConfig,
    /// Who may do what.
    pub policy: Policy,
    /// For accepting connections.
    pub tls: Arc<rustls::ServerConfig>,
    /// What verifies clients' certificates; the same that `tls` asks.
    pub clients: Arc<dyn ClientCertVerifier>,
    /// Until when the files are good.
    pub expiry: tls::Expiry,
    /// The command that is asked where no grant of the configuration opens a host.
    pub authorize: Option<Authorize>,
}

impl State {
    /// Reads everything afresh for a server that runs as `account`. Also returns what is allowed but hardly meant.
    ///
    /// # Errors
    /// `config` where the configuration or a file that it names is wrong, or descriptors are too few.
    pub fn load(path: &Path, account: &Account) -> Result<(State, Vec<String>)> {
        let (mut config, mut warnings) = ServerConfig::load(path, account)?;
        if config.listen.is_empty() {
            let text = format!("{}: `listen` names no address", path.display());
            return Err(Error::new(Code::Config, text).with_hint("set `listen = [\"0.0.0.0:8443\"]`"));
        }
        trusted::read_into(&mut config.hosts)?;
        warnings.extend(descriptors::fit(&mut config, descriptors::limit())?);
        let clients = tls::client_verifier(&config.client_ca, &config.crl)?;
        let tls = Arc::new(tls::server_config(&config.cert, &config.key, clients.clone())?);
        let names = config.server_names();
        warnings.extend(tls::doubts(&config.cert, &names, &config.client_ca, &config.crl, SystemTime::now())?);
        let expiry = tls::expiry(&config.cert, &config.crl)?;
        // As many questions as a principal may have sessions to be asked again about, and as many for new ones.
        let max_waiting = config.limits.max_sessions_per_principal.get().saturating_mul(2);
        let authorize =
            config.authorize.as_ref().map(|command| Authorize::new(command, account, max_waiting)).transpose()?;
        Ok((State { policy: Policy::new(&config), config, tls, clients, expiry, authorize }, warnings))
    }

    /// Whether a server that runs goes by this in the place of what it has. Beside a revocation list that has expired a server starts,
    /// and lets in nobody whom it covers; one that runs has something better.
    ///
    /// # Errors
    /// `config`, with the list's file.
    pub fn check_as_next(&self) -> Result<()> {
        tls::check_lists(&self.config.crl, SystemTime::now())
    }

    /// Decides on one request of `peer`: as the policy does, and with what the `authorize` command grants where no grant of the
    /// configuration opens the host. What `asker` has been granted before is not asked for again while it opens the host.
    /// Cancel-safe.
    ///
    /// # Errors
    /// Those of [`Policy::judge`].
    pub async fn judge(&self, peer: &Peer, asker: &Asker, asked: &Request) -> Result<Permit, Refused> {
        let decided = self.policy.judge(asker, &peer.server_name, asked);
        let Some((authorize, host)) = self.to_be_asked(peer, asker) else { return decided };
        let serial = peer.chain.first().and_then(principal::serial);
        let answered = authorize.grant(asker, &host, asked, serial.as_deref()).await;
        let is_undecided = answered.is_err();
        // Asking has taken its time.
        let asker = Asker { authorized: answered.unwrap_or_default(), now: SystemTime::now(), ..asker.clone() };
        let decided = self.policy.judge(&asker, &peer.server_name, asked);
        decided.map_err(|refused| Refused { is_undecided, ..refused })
    }

    /// The command that decides on what `peer` asks, and the host that it is asked about; `None` where it need not be asked.
    pub fn to_be_asked(&self, peer: &Peer, asker: &Asker) -> Option<(&Authorize, HostId)> {
        Some((self.authorize.as_ref()?, self.policy.closed(asker, &peer.server_name)?))
    }
}
