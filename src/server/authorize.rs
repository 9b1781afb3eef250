//! The `authorize` command, for those who keep grants elsewhere: a principal and a host that no grant of the configuration opens →
//! what the command grants, for the policy to decide with. Like sshd's AuthorizedPrincipalsCommand.
//!
//! Fails closed: whatever goes wrong is no grant, and is logged. Bounded: so many commands run at once, so many of them for
//! one principal, each only for so long; the same question asked twice at once is one command, and an answer is asked for
//! again only when its own time is over. An answer counts for the one principal and host that it was asked about.

mod answer;
mod cache;
mod command;
mod question;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::SystemTime;

use tokio::sync::{OnceCell, Semaphore};
use tokio::time::Instant;

use crate::error::{Result, printable};
use crate::protocol::{HostId, Principal};
use crate::server::account::Login;
use crate::server::config::{Account, AuthorizeConfig};
use crate::server::lock;
use crate::server::policy::{Asker, Authorized, Request};
use answer::Answer;
use cache::{Cache, Key};
use command::Command;
use question::Question;

/// Commands that run at once.
const MAX_RUNNING: usize = 8;
/// Commands that run at once for one principal: whoever has a certificate and no grant must not keep the others waiting.
const MAX_RUNNING_FOR_ONE: usize = 2;

/// What the command was last asked, and by whom; one for a state.
#[derive(Debug)]
pub struct Authorize {
    command: Command,
    /// The one account that may be granted, where the server can become no other.
    only_account: Option<String>,
    /// How many questions of one principal may wait.
    max_waiting: usize,
    running: Semaphore,
    running_for: Mutex<HashMap<Principal, Weak<Semaphore>>>,
    asking: Mutex<HashMap<Arc<str>, Arc<Asking>>>,
    cache: Mutex<Cache>,
}

/// The answer that all who ask the same question wait for.
type Asking = OnceCell<Answered>;

/// What the command grants.
type Answered = Result<Option<Arc<Authorized>>, Failed>;

/// The command has said neither yes nor no. That is no grant, but the same question may have an answer in a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;

impl Authorize {
    /// Gets ready to ask the command of `config`, for a server that runs as `account`; of one principal up to `max_waiting` questions
    /// may wait. Reads the system's databases and looks at the program.
    ///
    /// # Errors
    /// `config` where it would run as root, or where somebody else could put another program in its place.
    pub fn new(config: &AuthorizeConfig, account: &Account, max_waiting: usize) -> Result<Authorize> {
        let login = Login::of_program(config.account.as_deref())?;
        Ok(Authorize {
            command: Command::new(config, login)?,
            only_account: (!account.is_root).then(|| account.name.clone()),
            max_waiting,
            running: Semaphore::new(MAX_RUNNING),
            running_for: Mutex::default(),
            asking: Mutex::default(),
            cache: Mutex::default(),
        })
    }

    /// What the command grants to `asker` on `host`; `serial` is the certificate's. Cancel-safe: who else asks the
    /// same goes on.
    ///
    /// # Errors
    /// [`Failed`], which is logged.
    pub async fn grant(&self, asker: &Asker, host: &HostId, request: &Request, serial: Option<&str>) -> Answered {
        let key = Key::new(asker, host, request);
        if let Some(known) = lock(&self.cache).find(&key, asker.now) {
            return Ok(Some(known));
        }
        let question: Arc<str> = Question::new(asker, host, request, serial).to_json().into();
        let asking = self.join(&question);
        asking.cell.get_or_init(|| self.ask(&question, &key)).await.clone()
    }

    /// Waits for a place, and asks the command.
    async fn ask(&self, question: &str, key: &Key) -> Answered {
        let (principal, host) = (&key.principal, &key.host);
        let fail = |why: &str| {
            tracing::warn!(%principal, %host, reason = %printable(why), "`authorize` grants nothing");
            Err(Failed)
        };
        let of_principal = self.places_of(principal);
        if Arc::strong_count(&of_principal) > self.max_waiting {
            return fail("this principal has too many questions waiting");
        }
        let (Ok(_place), Ok(_place_of_all)) = (of_principal.acquire().await, self.running.acquire().await) else {
            return Err(Failed);
        };
        // Somebody may have been told meanwhile.
        if let Some(known) = lock(&self.cache).find(key, SystemTime::now()) {
            return Ok(Some(known));
        }
        let answer = match self.command.ask(question).await {
            Ok(written) => Answer::parse(&written, self.only_account.as_deref()),
            Err(why) => Err(why),
        };
        match answer {
            Ok(Some(Answer { terms, cache })) => {
                let granted = Arc::new(Authorized { principal: principal.clone(), host: host.clone(), terms });
                lock(&self.cache).keep(key, &granted, Instant::now().checked_add(cache));
                Ok(Some(granted))
            }
            Ok(None) => {
                tracing::info!(%principal, %host, "`authorize` grants nothing");
                Ok(None)
            }
            Err(why) => fail(&why),
        }
    }

    /// The places of one principal, for as long as anybody holds them.
    fn places_of(&self, principal: &Principal) -> Arc<Semaphore> {
        let mut all = lock(&self.running_for);
        all.retain(|_, places| places.strong_count() > 0);
        if let Some(places) = all.get(principal).and_then(Weak::upgrade) {
            return places;
        }
        let places = Arc::new(Semaphore::new(MAX_RUNNING_FOR_ONE));
        all.insert(principal.clone(), Arc::downgrade(&places));
        places
    }

    /// Joins whoever asks `question` too.
    fn join(&self, question: &Arc<str>) -> Joined<'_> {
        let cell = lock(&self.asking).entry(question.clone()).or_default().clone();
        Joined { authorize: self, question: question.clone(), cell }
    }
}

/// One of those who wait for an answer; the last takes the question away.
struct Joined<'a> {
    authorize: &'a Authorize,
    question: Arc<str>,
    cell: Arc<Asking>,
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        let mut asking = lock(&self.authorize.asking);
        // An answer is for those who asked before it came. One that did not come is the next one's to wait for.
        let is_last = Arc::strong_count(&self.cell) <= 2;
        let is_this = asking.get(&self.question).is_some_and(|cell| Arc::ptr_eq(cell, &self.cell));
        if is_this && (is_last || self.cell.initialized()) {
            asking.remove(&self.question);
        }
    }
}

#[cfg(test)]
mod tests;
