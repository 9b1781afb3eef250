//! A request on its way to a decision, and what may be said of the host until then.
//!
//! Where no grant of the configuration opens a host that the `authorize` command may open, the command decides, on a request
//! that was read whole. Until it has, whatever is wrong with the request, nobody can tell the host from one that is not there.

use super::Refusal;
use crate::error::{Code, Error, Result};
use crate::protocol::HostId;
use crate::server::handshake::Peer;
use crate::server::policy::{Asker, Permit, Refused, Request};
use crate::server::state::State;

/// Who asks, and for which host.
#[derive(Debug)]
pub(super) struct Decision<'a> {
    state: &'a State,
    peer: &'a Peer,
    asker: Asker,
    host: HostId,
    /// What is said in the place of every refusal, while the host is hidden.
    hidden: Option<Error>,
    is_made: bool,
}

impl<'a> Decision<'a> {
    /// # Errors
    /// Those of [`Policy::reach`](crate::server::policy::Policy::reach), where nobody else is to be asked.
    pub(super) fn new(state: &'a State, peer: &'a Peer, asker: Asker) -> Result<Decision<'a>> {
        let (host, hidden) = match state.policy.reach(&asker, &peer.server_name) {
            Ok(host) => (host, None),
            Err(unknown) => match state.to_be_asked(peer, &asker) {
                Some((_, host)) => (host, Some(unknown)),
                None => return Err(unknown),
            },
        };
        Ok(Decision { state, peer, asker, host, hidden, is_made: false })
    }

    pub(super) fn asker(&self) -> &Asker {
        &self.asker
    }

    pub(super) fn host(&self) -> &HostId {
        &self.host
    }

    /// The host, where the peer may know of it.
    pub(super) fn shown(&self) -> Option<&HostId> {
        self.hidden.is_none().then_some(&self.host)
    }

    /// The peer has shown that it knows of the host.
    pub(super) fn show(&mut self) {
        self.hidden = None;
    }

    /// Decides on `asked`.
    ///
    /// # Errors
    /// Those of [`Policy::judge`](crate::server::policy::Policy::judge).
    pub(super) async fn on(&mut self, asked: &Request) -> Result<Permit, Refused> {
        self.is_made = true;
        let decided = self.state.judge(self.peer, &self.asker, asked).await;
        if !decided.as_ref().is_err_and(|refused| refused.error.code == Code::HostUnknown) {
            self.show();
        }
        decided
    }

    /// What may be said in the place of `refusal`. Whoever the command lets in is told what is wrong with the request.
    pub(super) async fn said(&mut self, refusal: Refusal) -> Refusal {
        if self.hidden.is_some() && !self.is_made {
            let _ = self.on(&Request::Host { user: None }).await;
        }
        self.hidden.clone().map_or(refusal, Refusal::from)
    }
}
