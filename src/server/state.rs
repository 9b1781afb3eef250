//! What the server goes by: its configuration, and the policy and TLS configuration made from it. One [`State`] is made whole
//! or not at all, and is never changed: a reload makes another and puts it in the place of the first.

use std::path::Path;
use std::sync::Arc;

use rustls::server::danger::ClientCertVerifier;

use crate::error::{Code, Error, Result};
use crate::server::config::{Account, ServerConfig};
use crate::server::descriptors;
use crate::server::policy::Policy;
use crate::server::trusted;
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
        let expiry = tls::expiry(&config.cert, &config.crl)?;
        Ok((State { policy: Policy::new(&config), config, tls, clients, expiry }, warnings))
    }
}
