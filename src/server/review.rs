//! What was allowed under an earlier state, asked again under a later one: sessions that live, and peers whose handshake was
//! before a reload. Fails closed for whatever is new; a live session ends only where the later state refuses it.

use std::sync::Arc;
use std::time::SystemTime;

use crate::error::{Code, Error, Result};
use crate::protocol::Principal;
use crate::server::Shared;
use crate::server::admission::{End, Session, Ticket};
use crate::server::handshake::{Peer, principal_of};
use crate::server::policy::{Asker, Permit, Refused, Request};
use crate::server::state::State;
use crate::tls;

/// How much of a live session is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Its certificate and its request: the state is another one.
    Everything,
    /// Its request alone: only time has passed.
    Request,
}

impl Shared {
    /// Asks again for every live session, and ends those that are refused now.
    pub fn review(&self, scope: Scope) {
        let state = self.state();
        for session in self.admission.live() {
            review(&state, &session, scope);
        }
    }

    /// The principal of a peer under `state`, which may be a later one than that of its handshake.
    ///
    /// # Errors
    /// `unauthorized`.
    pub fn principal(&self, state: &Arc<State>, peer: &Peer) -> Result<Principal> {
        if peer.verified_by.ptr_eq(&Arc::downgrade(state)) {
            return peer.principal.clone();
        }
        tls::verify_again(&*state.clients, &peer.chain, SystemTime::now())?;
        principal_of(&peer.chain, state)
    }

    /// Admits a session that `state` allows by `permit`.
    ///
    /// # Errors
    /// `overloaded` where the server is full, `too-many` where the principal or the source has its share.
    pub fn admit(&self, state: &Arc<State>, permit: &Permit, peer: &Arc<Peer>, asked: Arc<Request>) -> Result<Ticket> {
        let admitted = self.admission.session(&state.config.limits, permit.principal(), peer, asked);
        let ticket = admitted.map_err(|full| {
            self.metrics.limit(full.limit()).inc();
            full.error()
        })?;
        ticket.session().rests_on(permit.authorized());
        self.review_if_late(state, ticket.session());
        Ok(ticket)
    }

    /// Goes on with a session that `state` allows `peer` to resume, by `permit`.
    pub fn go_on(&self, state: &Arc<State>, permit: &Permit, peer: &Arc<Peer>, session: &Arc<Session>) {
        session.moved_to(peer);
        session.rests_on(permit.authorized());
        self.review_if_late(state, session);
    }

    /// A reload between the decision by `state` and its effect has not seen the session as it is now.
    fn review_if_late(&self, state: &Arc<State>, session: &Arc<Session>) {
        let now = self.state();
        if !Arc::ptr_eq(state, &now) {
            review(&now, session, Scope::Everything);
        }
    }
}

fn review(state: &Arc<State>, session: &Arc<Session>, scope: Scope) {
    let peer = session.peer();
    if scope == Scope::Everything
        && let Err(refusal) = stands(state, session, &peer)
    {
        return session.end(End::Withdrawn(refusal));
    }
    // A later state has a command of its own to ask, whatever an earlier one was told.
    let authorized = session.authorized().filter(|_| scope == Scope::Request);
    let asker = Asker { authorized, ..peer.asker(session.principal.clone()) };
    if state.to_be_asked(&peer, &asker).is_some() {
        let (state, session) = (state.clone(), session.clone());
        tokio::spawn(async move {
            let decided = state.judge(&peer, &asker, &session.asked).await;
            conclude(&session, decided);
        });
    } else {
        conclude(session, state.policy.judge(&asker, &peer.server_name, &session.asked));
    }
}

fn conclude(session: &Session, decided: Result<Permit, Refused>) {
    match decided {
        Ok(permit) => session.rests_on(permit.authorized()),
        Err(Refused { error, .. }) => {
            session.end(End::Withdrawn(Error { text: format!("no longer allowed: {}", error.text), ..error }));
        }
    }
}

/// Whether the certificate that a live session was asked for with is good now, and still names the same principal.
fn stands(state: &State, session: &Session, peer: &Peer) -> Result<()> {
    tls::check_standing(&*state.clients, &peer.chain, SystemTime::now())?;
    if principal_of(&peer.chain, state).as_ref() == Ok(&session.principal) {
        return Ok(());
    }
    let text = format!("the client certificate does not name `{}` any more", session.principal);
    Err(Error::new(Code::Unauthorized, text))
}
