//! Agents that are started before anybody asks for them, for the hosts that want that (`pool`): a session then begins without
//! waiting for a process.
//!
//! A shelf belongs to one host, one account and one rule of the policy, and holds idle agents of the version and mode that was
//! used there last, each started as its own session would have started it. An agent is given away once; one whose file has
//! changed since, that has ended or has waited for too long is ended instead. What is kept is bounded for a host by its `pool`, and in all by
//! `max_pooled`.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::protocol::HostId;
use crate::server::admission::Admission;
use crate::server::child::Pipes;
use crate::server::policy::Permit;
use crate::server::process::{self, Ladder, Prepared, Process};

/// Idle agents by what they are for; one pool for a server.
#[derive(Clone, Debug)]
pub struct Pool {
    shelves: Arc<Mutex<HashMap<Label, Shelf>>>,
    admission: Admission,
}

/// Whom the agents of a shelf are for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Label {
    host: HostId,
    account: String,
    rule: String,
}

impl Label {
    /// The shelf of what `permit` allows.
    pub fn of(permit: &Permit) -> Label {
        Label { host: permit.host().clone(), account: permit.account().to_owned(), rule: permit.rule().to_owned() }
    }
}

#[derive(Debug)]
struct Shelf {
    /// What all of its agents were started from.
    prepared: Prepared,
    idle: VecDeque<Idle>,
    /// Agents that are being started.
    starting: usize,
}

#[derive(Debug)]
struct Idle {
    process: Process,
    pipes: Pipes,
    since: Instant,
}

/// How much may be kept, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// For one label.
    pub of_shelf: usize,
    /// In all.
    pub in_all: usize,
    /// How long an agent may be idle.
    pub idle: Duration,
}

impl Pool {
    /// An empty pool.
    pub fn new(admission: Admission) -> Pool {
        Pool { shelves: Arc::default(), admission }
    }

    /// An agent that was started from just what is `prepared`, if there is one. Another version or mode, or a changed file,
    /// clears the shelf.
    pub fn take(&self, label: &Label, prepared: &Prepared) -> Option<(Process, Pipes)> {
        let (found, gone) = {
            let mut shelves = self.lock();
            let shelf = shelves.get_mut(label)?;
            if shelf.prepared != *prepared {
                (None, shelves.remove(label).map(|shelf| shelf.idle).unwrap_or_default())
            } else {
                let mut gone = VecDeque::new();
                let mut found = None;
                // The newest: the others may reach their end.
                while let Some(mut idle) = shelf.idle.pop_back() {
                    if idle.process.has_ended() {
                        gone.push_back(idle);
                    } else {
                        found = Some((idle.process, idle.pipes));
                        break;
                    }
                }
                (found, gone)
            }
        };
        self.end(gone);
        found
    }

    /// Starts what is missing on the shelf of `label`, aside.
    pub fn refill(&self, label: Label, prepared: &Prepared, bounds: Bounds) {
        let missing = {
            let mut shelves = self.lock();
            let kept: usize = shelves.values().map(|shelf| shelf.idle.len() + shelf.starting).sum();
            let shelf = shelves.entry(label.clone()).or_insert_with(|| Shelf {
                prepared: prepared.clone(),
                idle: VecDeque::new(),
                starting: 0,
            });
            if shelf.prepared != *prepared {
                // Somebody has asked for another version or mode meanwhile.
                return;
            }
            let missing = bounds.of_shelf.saturating_sub(shelf.idle.len() + shelf.starting);
            let missing = missing.min(bounds.in_all.saturating_sub(kept));
            shelf.starting += missing;
            missing
        };
        for _ in 0..missing {
            let (pool, label, prepared) = (self.clone(), label.clone(), prepared.clone());
            tokio::task::spawn_blocking(move || pool.add(&label, prepared, bounds.idle));
        }
    }

    /// Starts one agent, and puts it on its shelf, where that still is of the same kind. Blocks.
    fn add(&self, label: &Label, prepared: Prepared, idle: Duration) {
        let started = prepared.clone().start();
        let since = Instant::now();
        let surplus = {
            let mut shelves = self.lock();
            let shelf = shelves.get_mut(label).filter(|shelf| shelf.prepared == prepared);
            match (started, shelf) {
                (Ok((process, pipes)), Some(shelf)) => {
                    shelf.starting = shelf.starting.saturating_sub(1);
                    shelf.idle.push_back(Idle { process, pipes, since });
                    None
                }
                (Ok((process, pipes)), None) => Some(Idle { process, pipes, since }),
                (Err(failure), shelf) => {
                    tracing::debug!(?failure, "an agent was not started ahead");
                    if let Some(shelf) = shelf {
                        shelf.starting = shelf.starting.saturating_sub(1);
                    }
                    return;
                }
            }
        };
        let is_surplus = surplus.is_some();
        self.end(surplus.into_iter().collect());
        if !is_surplus {
            let (pool, label) = (self.clone(), label.clone());
            tokio::spawn(async move {
                tokio::time::sleep(idle).await;
                pool.expire(&label, idle);
            });
        }
    }

    /// Ends what has been idle on a shelf for too long.
    fn expire(&self, label: &Label, idle: Duration) {
        let mut gone = VecDeque::new();
        {
            let mut shelves = self.lock();
            let Some(shelf) = shelves.get_mut(label) else { return };
            while shelf.idle.front().is_some_and(|oldest| oldest.since.elapsed() >= idle) {
                gone.extend(shelf.idle.pop_front());
            }
            if shelf.idle.is_empty() && shelf.starting == 0 {
                shelves.remove(label);
            }
        }
        self.end(gone);
    }

    /// Ends everything: what has decided about it has changed, or the server stops.
    pub fn clear(&self) {
        let shelves: Vec<Shelf> = self.lock().drain().map(|(_, shelf)| shelf).collect();
        for shelf in shelves {
            self.end(shelf.idle);
        }
    }

    /// Ends agents that nobody has used: stdin's end tells a good one.
    fn end(&self, agents: VecDeque<Idle>) {
        for Idle { process, pipes, .. } in agents {
            // The server does not end before an agent does.
            let working = self.admission.working();
            tokio::spawn(async move {
                drop(pipes);
                process::end(process, Ladder::default(), false).await;
                drop(working);
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Label, Shelf>> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
