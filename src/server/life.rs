//! A server's life after its start: signals, changed files, the passing of time and what other processes ask, until it ends and
//! leaves nothing running.
//!
//! It ends in one of two ways. Told to stop, it drains: it answers whoever asks for a session that it is stopping, takes its sessions
//! down by the ladder, and waits for that within a bound. Replaced by a successor, it only stops to accept, and ends when its last session
//! has, and what it holds of broken uploads has had its time.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::error::{Code, Error, Result};
use crate::server::admission::End;
use crate::server::audit::record::{Event, Record};
use crate::server::config::Account;
use crate::server::listener::{Listeners, Listening};
use crate::server::monitor::Monitors;
use crate::server::orphans::{self, Orphans};
use crate::server::reload::Source;
use crate::server::review::Scope;
use crate::server::succession::Sockets;
use crate::server::succession::control::{Control, Order};
use crate::server::succession::folder::REMEDY;
use crate::server::succession::successor::Successor;
use crate::server::systemd::Manager;
use crate::server::{Phase, Shared, memory, process};

/// How often live sessions are asked about again where nothing but time has passed: a grant may have expired. And how often what was
/// freed is given back.
const REVIEW: Duration = Duration::from_secs(10);
/// How long the last answers may take, and the ends of processes that were killed.
const GOODBYE: Duration = Duration::from_secs(1);

/// A server that has started.
#[derive(Debug)]
pub struct Life {
    shared: Arc<Shared>,
    source: Source,
    listeners: Listeners,
    monitors: Monitors,
    signals: Signals,
    phase: watch::Sender<Phase>,
    control: Option<Control>,
    successor: Successor,
    orphans: Orphans,
    is_retired: bool,
    manager: Manager,
}

#[derive(Debug)]
struct Signals {
    hangup: Signal,
    upgrade: Signal,
    end: EndSignals,
}

/// Those that a server is stopped by.
#[derive(Debug)]
struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
}

/// What an order or a signal leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    GoOn,
    Drain,
    EndAtOnce,
}

impl Life {
    /// Begins to accept.
    ///
    /// # Errors
    /// `internal` where signals cannot be listened for, or there is no descriptor left.
    pub fn new(
        path: &Path,
        account: Account,
        shared: Arc<Shared>,
        phase: watch::Sender<Phase>,
        control: Option<Control>,
        listening: Listening,
        monitors: Monitors,
    ) -> Result<Life> {
        let state = shared.state();
        let signals = Signals {
            hangup: listen_for(SignalKind::hangup())?,
            upgrade: listen_for(SignalKind::user_defined2())?,
            end: EndSignals {
                terminate: listen_for(SignalKind::terminate())?,
                interrupt: listen_for(SignalKind::interrupt())?,
            },
        };
        let source = Source::new(path, account, &state);
        let mut listeners = Listeners::new(shared.clone(), listening.is_given);
        listeners.exchange(listening.bound, &state.config.listen)?;
        let successor = Successor::new();
        let (orphans, manager) = (Orphans::of_process(), Manager::default());
        Ok(Life {
            shared,
            source,
            listeners,
            monitors,
            signals,
            phase,
            control,
            successor,
            orphans,
            is_retired: false,
            manager,
        })
    }

    /// Lives until it is told to stop, or a successor has taken over and nothing is left to do.
    pub async fn run(mut self) {
        self.manager = Manager::ready();
        self.say_status();
        let mut time = tokio::time::interval(REVIEW);
        loop {
            let then = tokio::select! {
                () = self.signals.end.next() => Then::Drain,
                _ = self.signals.hangup.recv() => {
                    let shared = self.shared.clone();
                    tokio::spawn(async move { shared.predecessors.reload().await });
                    let _ = self.reload().await;
                    Then::GoOn
                }
                // Predecessors watch the files themselves.
                () = self.source.changed() => {
                    let _ = self.reload().await;
                    Then::GoOn
                }
                _ = self.signals.upgrade.recv() => self.start_successor(),
                how = self.successor.failed() => {
                    tracing::error!("the successor has failed, and this process goes on: {how}");
                    Then::GoOn
                }
                order = next(&mut self.control) => self.obey(order).await,
                // A successor is this thread's own, and waited for above.
                () = self.orphans.ended(), if !self.successor.is_on_its_way() => {
                    orphans::bury();
                    Then::GoOn
                }
                _ = time.tick() => {
                    self.shared.review(Scope::Request);
                    self.say_status();
                    memory::give_back();
                    Then::GoOn
                }
                () = nothing_left(&self.shared), if self.is_retired => {
                    tracing::info!("the last session has ended");
                    self.shared.audit.push(Record::new(Event::Stop));
                    return;
                }
            };
            if then != Then::GoOn {
                return self.end(then == Then::EndAtOnce).await;
            }
        }
    }

    async fn reload(&mut self) -> Result<()> {
        self.manager.reloading();
        let result = self.source.reload(&self.shared, &mut self.listeners).await;
        self.manager.reloaded(result.as_ref().err());
        result
    }

    fn say_status(&self) {
        self.manager.status(&format!("serving, with {} sessions", self.shared.admission.live().len()));
    }

    fn start_successor(&mut self) -> Then {
        if self.is_retired {
            tracing::warn!("this process has a successor already");
        } else if self.control.is_none() {
            tracing::error!(
                "this process cannot be replaced: it has no run folder that it can use; {REMEDY}, and restart it once"
            );
        } else {
            match self.successor.start() {
                Ok(Some(id)) => tracing::info!("started process {id} to take over"),
                Ok(None) => tracing::warn!("a successor is on its way already"),
                Err(error) => tracing::error!(%error, "the successor cannot be started"),
            }
        }
        Then::GoOn
    }

    fn sockets(&self) -> io::Result<Sockets> {
        let (listening, monitoring) = (self.listeners.copies()?, self.monitors.copies()?);
        Ok(Sockets { listening, is_given: self.listeners.is_fixed(), monitoring })
    }

    /// Does what another process asks. Whoever has asked may be gone by the time that it is answered.
    async fn obey(&mut self, order: Order) -> Then {
        match order {
            Order::Sockets(reply) => {
                let copies = self.sockets().inspect_err(|error| tracing::error!(%error, "no successor"));
                let _ = reply.send(copies.unwrap_or_default());
            }
            Order::Retire { process, done } => {
                tracing::info!(
                    "process {} has taken over; {} sessions are left here",
                    process.unwrap_or_default(),
                    self.shared.admission.live().len()
                );
                self.listeners.hand_over();
                self.monitors.hand_over();
                self.manager.succeeded_by(self.successor.arrived(process));
                self.shared.pool.clear();
                self.is_retired = true;
                let _ = done.send(());
            }
            Order::Reload(reply) => {
                let _ = reply.send(self.reload().await);
            }
            Order::Stop => return Then::Drain,
            Order::Kill => return Then::EndAtOnce,
        }
        Then::GoOn
    }

    /// Drains, or only kills. What is left at the end of the time is killed.
    async fn end(mut self, mut at_once: bool) {
        tracing::info!("stopping");
        self.manager.stopping();
        self.shared.audit.push(Record::new(Event::Stop));
        let _ = self.phase.send(Phase::Draining);
        for session in self.shared.admission.live() {
            session.end(End::ServerStops);
        }
        self.shared.pool.clear();
        let shared = self.shared.clone();
        let mut ended =
            tokio::spawn(async move { tokio::join!(shared.admission.quiet(), shared.predecessors.end(false)) });
        let mut timeout = std::pin::pin!(tokio::time::sleep(self.shared.state().config.limits.drain_timeout));
        while !at_once {
            let then = tokio::select! {
                _ = &mut ended => break,
                () = &mut timeout => {
                    tracing::warn!("sessions that have not ended in time are killed");
                    Then::EndAtOnce
                }
                () = self.signals.end.next() => Then::EndAtOnce,
                order = next(&mut self.control) => self.obey(order).await,
            };
            at_once = then == Then::EndAtOnce;
        }
        if at_once {
            process::kill_all();
            let rest = async { tokio::join!(self.shared.admission.quiet(), self.shared.predecessors.end(true)) };
            if tokio::time::timeout(GOODBYE, rest).await.is_err() {
                tracing::warn!("stopped with sessions that did not end in time");
            }
        }
        drop(self.listeners);
        let _ = self.phase.send(Phase::Closing);
        let _ = tokio::time::timeout(GOODBYE, self.shared.admission.empty()).await;
    }
}

impl EndSignals {
    /// Waits for one of them. Cancel-safe.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Waits until a server that accepts nothing any more has no session, and nothing to remove. Cancel-safe.
async fn nothing_left(shared: &Shared) {
    shared.admission.empty().await;
    shared.uploads.none().await;
}

async fn next(control: &mut Option<Control>) -> Order {
    match control {
        Some(control) => control.next().await,
        None => std::future::pending().await,
    }
}

fn listen_for(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|error| Error::new(Code::Internal, format!("cannot listen for signals: {error}")))
}
