//! The uploads under way and held: whose turn it is to write a part, and how long a broken one is kept. What touches files is
//! done as the account, by a process of its own ([`store::helper`](crate::server::store::helper)).

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use tokio::sync::{OwnedMutexGuard, watch};

use crate::protocol::encoding::hex;
use crate::server::account::Login;
use crate::server::refusal::Refusal;
use crate::server::store::helper::{Answer, Helper, Task};
use crate::server::store::{PART_PREFIX, Sha256};

/// How long a process may take that does not store a body.
const ASIDE: Duration = Duration::from_secs(30);

/// The uploads under way and held: one for a server.
#[derive(Clone, Debug)]
pub struct Uploads {
    slots: Arc<Mutex<HashMap<PathBuf, Arc<Slot>>>>,
    /// The homes that an earlier server has left nothing in, or nothing for long.
    swept: Arc<Mutex<HashSet<PathBuf>>>,
    count: watch::Sender<usize>,
}

/// Whose turn it is to write a part.
#[derive(Debug, Default)]
struct Slot {
    /// How many have asked for it: whoever has it lets go when another asks.
    asked: watch::Sender<u64>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// The turn to write one part: nobody else does until it is dropped.
#[derive(Debug)]
pub struct Turn {
    uploads: Uploads,
    login: Arc<Login>,
    /// The part's file.
    path: PathBuf,
    slot: Arc<Slot>,
    number: u64,
    /// How long a broken part is kept; only a client that sent its digest can ask for it again.
    grace: Duration,
    _guard: OwnedMutexGuard<()>,
}

impl Uploads {
    /// No uploads yet.
    pub fn new() -> Uploads {
        Uploads { slots: Arc::default(), swept: Arc::default(), count: watch::Sender::new(0) }
    }

    /// Takes the turn to write the part of `name` with `digest`, which is held for `grace` where it breaks off. Whoever writes
    /// it, on a connection that may be dead, is told to let go, and waited for.
    pub async fn turn(&self, login: Arc<Login>, name: &str, digest: Option<&Sha256>, grace: Duration) -> Turn {
        let path = login.home.join(part_name(name, digest));
        let (slot, number) = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            let slot = slots.entry(path.clone()).or_default().clone();
            self.count.send_replace(slots.len());
            // Before anybody else can find that nobody has asked, and forget the slot.
            let number = *slot.asked.borrow() + 1;
            slot.asked.send_replace(number);
            (slot, number)
        };
        let guard = slot.turn.clone().lock_owned().await;
        let grace = if digest.is_some() { grace } else { Duration::ZERO };
        Turn { uploads: self.clone(), login, path, slot, number, grace, _guard: guard }
    }

    /// Removes what an earlier server has left in the home that this turn is for, where this one has not done so yet, as its start does:
    /// what broke before the grace at once, the rest when that is over.
    pub fn visit(&self, turn: &Turn, grace: Duration) {
        let is_first = self.swept.lock().unwrap_or_else(PoisonError::into_inner).insert(turn.login.home.clone());
        if !is_first {
            return;
        }
        let (uploads, login, now) = (self.clone(), turn.login.clone(), SystemTime::now());
        tokio::spawn(async move {
            if let Some(end) = now.checked_sub(grace) {
                sweep(&uploads, &login, end).await;
            }
            tokio::time::sleep(grace).await;
            sweep(&uploads, &login, now).await;
        });
    }

    /// Waits until nothing is written or held. Cancel-safe.
    pub async fn none(&self) {
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Uploads {
    /// Forgets a slot that nobody has asked for since `number`.
    fn forget(&self, path: &Path, slot: &Slot, number: u64) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if *slot.asked.borrow() == number {
            slots.remove(path);
            self.count.send_replace(slots.len());
        }
    }
}

impl Default for Uploads {
    fn default() -> Uploads {
        Uploads::new()
    }
}

/// Removes parts that nobody has written to since `end` from the home of `login`, but for those that are among `uploads`.
pub async fn sweep(uploads: &Uploads, login: &Login, end: SystemTime) {
    uploads.swept.lock().unwrap_or_else(PoisonError::into_inner).insert(login.home.clone());
    let mut known: Vec<PathBuf> =
        uploads.slots.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
    known.retain(|part| part.parent() == Some(&login.home));
    do_aside(login, Task::Sweep(login.home.clone(), end, known)).await;
}

/// Has something done that nobody waits to hear of.
async fn do_aside(login: &Login, task: Task) {
    if let Ok(helper) = Helper::start(login, &task, ASIDE).await {
        let _ = helper.finish(false).await;
    }
}

impl Turn {
    /// The account whose part it is.
    pub fn login(&self) -> &Login {
        &self.login
    }

    /// What the part is called in the home.
    pub fn part(&self) -> String {
        self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// How many bytes of the part are held.
    ///
    /// # Errors
    /// `storage` where the account cannot be asked.
    pub async fn held(&self) -> Result<u64, Refusal> {
        let asked = Task::Held(self.path.clone());
        match Helper::start(&self.login, &asked, ASIDE).await?.finish(false).await? {
            Answer::Held(bytes) => Ok(bytes),
            _ => Ok(0),
        }
    }

    /// Waits until somebody else asks for the part.
    pub async fn asked_for(&self) {
        let number = self.number;
        let _ = self.slot.asked.subscribe().wait_for(|asked| *asked > number).await;
    }

    /// Whether the part may stay where its body breaks off, beside no more than `max_held` that are written or held.
    pub fn may_hold(&self, max_held: usize) -> bool {
        let slots = self.uploads.slots.lock().unwrap_or_else(PoisonError::into_inner);
        !self.grace.is_zero() && slots.len() <= max_held
    }

    /// Gives the turn back, and removes what is left of the part.
    pub async fn discard(self) {
        do_aside(&self.login, Task::Remove(self.path.clone())).await;
        self.finish(false);
    }

    /// Gives the turn back. A part that is held is removed when the grace is over and nobody has asked for it, nor has another server
    /// written to it.
    pub fn finish(self, is_held: bool) {
        let Turn { uploads, login, path, slot, number, grace, _guard: guard } = self;
        drop(guard);
        if !is_held {
            return uploads.forget(&path, &slot, number);
        }
        let end = SystemTime::now();
        tokio::spawn(async move {
            tokio::time::sleep(grace).await;
            if *slot.asked.borrow() == number {
                // Whoever asks meanwhile waits until it is gone.
                let _guard = slot.turn.lock().await;
                do_aside(&login, Task::Expire(path.clone(), end)).await;
                uploads.forget(&path, &slot, number);
            }
        });
    }
}

/// What the part of `name` with `digest` is called; something else for each upload where there is no digest.
fn part_name(name: &str, sha256: Option<&Sha256>) -> String {
    let mut key = name.as_bytes().to_vec();
    match sha256 {
        Some(sha256) => key.extend_from_slice(&[&[0], &sha256[..]].concat()),
        None => {
            let mut random = [0; 16];
            let _ = aws_lc_rs::rand::fill(&mut random);
            key.extend_from_slice(&random);
        }
    }
    format!("{PART_PREFIX}{}", &hex(digest(&SHA256, &key).as_ref())[..32])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_asks_for_a_part_makes_its_writer_let_go() {
        let login =
            Arc::new(Login { name: "dev".into(), home: "/home/dev".into(), shell: "/bin/sh".into(), identity: None });
        let uploads = Uploads::new();
        let turn = || uploads.turn(login.clone(), "file", Some(&[7; 32]), Duration::from_secs(60));
        let first = turn().await;
        let mut second = Box::pin(turn());
        tokio::select! {
            biased;
            _ = &mut second => panic!("two writers at once"),
            () = first.asked_for() => first.finish(true),
        }
        second.await.finish(false);
        assert!(uploads.slots.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn without_a_grace_or_a_digest_nothing_is_held() {
        let login =
            Arc::new(Login { name: "dev".into(), home: "/home/dev".into(), shell: "/bin/sh".into(), identity: None });
        let (uploads, minute) = (Uploads::new(), Duration::from_secs(60));
        assert!(uploads.turn(login.clone(), "file", Some(&[7; 32]), minute).await.may_hold(16));
        assert!(!uploads.turn(login.clone(), "file", None, minute).await.may_hold(16));
        assert!(!uploads.turn(login, "file", Some(&[7; 32]), Duration::ZERO).await.may_hold(16));
    }

    #[tokio::test]
    async fn no_more_is_held_than_may_be() {
        let login =
            Arc::new(Login { name: "dev".into(), home: "/home/dev".into(), shell: "/bin/sh".into(), identity: None });
        let (uploads, minute) = (Uploads::new(), Duration::from_secs(60));
        let turn = |name: &'static str| uploads.turn(login.clone(), name, Some(&[7; 32]), minute);
        let first = turn("first").await;
        assert!(first.may_hold(1) && !first.may_hold(0));
        first.finish(true);
        let second = turn("second").await;
        assert!(!second.may_hold(1));
        second.finish(false);
        assert!(turn("first").await.may_hold(1));
    }
}
