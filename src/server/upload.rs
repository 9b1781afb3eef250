//! The uploads under way and held: whose turn it is to write a part, and how long a broken one is kept. What touches files is
//! done as the account, by a process of its own ([`store::helper`](crate::server::store::helper)).

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::time::Instant;

use crate::protocol::Principal;
use crate::protocol::encoding::hex;
use crate::server::account::Login;
use crate::server::lock;
use crate::server::refusal::Refusal;
use crate::server::store::helper::{Answer, Helper, Task};
use crate::server::store::{PART_PREFIX, Sha256};

/// How long a process may take that does not store a body.
const ASIDE: Duration = Duration::from_secs(30);
/// The part of what may be held that one principal may have.
const PRINCIPAL_SHARE: usize = 2;

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
    turn: Arc<tokio::sync::Mutex<Option<Kept>>>,
    /// Whose share the part counts in, where it may be left to be gone on with.
    holder: Mutex<Option<Principal>>,
}

/// Since when a broken part is left alone, and how long it may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kept {
    since: SystemTime,
    until: Instant,
}

/// What a turn has left of its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// What was there before, which does not stay the longer for it.
    AsBefore,
    /// What was written just now, or was found there without anybody's having known of it.
    Anew,
}

/// The turn to write one part: nobody else does until it is dropped.
#[derive(Debug)]
pub struct Turn {
    uploads: Uploads,
    login: Arc<Login>,
    principal: Principal,
    /// The part's file.
    path: PathBuf,
    slot: Arc<Slot>,
    number: u64,
    /// How long a broken part is kept; only a client that sent its digest can ask for it again.
    grace: Duration,
    kept: OwnedMutexGuard<Option<Kept>>,
}

impl Uploads {
    /// No uploads yet.
    pub fn new() -> Uploads {
        Uploads { slots: Arc::default(), swept: Arc::default(), count: watch::Sender::new(0) }
    }

    /// Takes `principal`'s turn to write the part of `name` with `digest`, which is held for `grace` where it breaks off. Whoever
    /// writes it, on a connection that may be dead, is told to let go, and waited for.
    pub async fn turn(
        &self,
        principal: &Principal,
        login: Arc<Login>,
        name: &str,
        digest: Option<&Sha256>,
        grace: Duration,
    ) -> Turn {
        let path = login.home.join(part_name(name, digest));
        let (slot, number) = {
            let mut slots = lock(&self.slots);
            let slot = slots.entry(path.clone()).or_default().clone();
            self.count.send_replace(slots.len());
            // Before anybody else can find that nobody has asked, and forget the slot.
            let number = *slot.asked.borrow() + 1;
            slot.asked.send_replace(number);
            (slot, number)
        };
        let kept = slot.turn.clone().lock_owned().await;
        let grace = if digest.is_some() { grace } else { Duration::ZERO };
        Turn { uploads: self.clone(), login, principal: principal.clone(), path, slot, number, grace, kept }
    }

    /// Removes what an earlier server has left in the home that this turn is for, where this one has not done so yet, as its start does:
    /// what broke before the grace at once, the rest when that is over.
    pub fn visit(&self, turn: &Turn, grace: Duration) {
        let is_first = lock(&self.swept).insert(turn.login.home.clone());
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
        let mut slots = lock(&self.slots);
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
    lock(&uploads.swept).insert(login.home.clone());
    let mut known: Vec<PathBuf> = lock(&uploads.slots).keys().cloned().collect();
    known.retain(|part| part.parent() == Some(&login.home));
    do_aside(login, Task::Sweep(login.home.clone(), end, known)).await;
}

/// Has something done that nobody waits to hear of; whether it was.
async fn do_aside(login: &Login, task: Task) -> bool {
    match Helper::start(login, &task, ASIDE, 0).await {
        Ok(mut helper) => helper.finish(false).await.is_ok(),
        Err(_) => false,
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
        match Helper::start(&self.login, &asked, ASIDE, 0).await?.finish(false).await? {
            Answer::Held(bytes) => Ok(bytes),
            _ => Ok(0),
        }
    }

    /// Waits until somebody else asks for the part.
    pub async fn asked_for(&self) {
        let number = self.number;
        let _ = self.slot.asked.subscribe().wait_for(|asked| *asked > number).await;
    }

    /// Whether the part may stay where its body breaks off, beside no more than `max_held` that are held or may be, of which one
    /// principal has half. It counts as one from then on.
    pub fn may_hold(&self, max_held: usize) -> bool {
        let slots = lock(&self.uploads.slots);
        *lock(&self.slot.holder) = None;
        let (mut count, mut own) = (0, 0);
        for holder in slots.values().filter_map(|slot| lock(&slot.holder).clone()) {
            count += 1;
            own += usize::from(holder == self.principal);
        }
        let may_hold = !self.grace.is_zero() && count < max_held && own < (max_held / PRINCIPAL_SHARE).max(1);
        *lock(&self.slot.holder) = may_hold.then(|| self.principal.clone());
        may_hold
    }

    /// What is left by whoever only looked, and found so many bytes or failed to.
    pub fn after_look(&self, found: Option<u64>) -> Left {
        match found {
            Some(0) => Left::Nothing,
            Some(_) if self.kept.is_none() => Left::Anew,
            _ => Left::AsBefore,
        }
    }

    /// Gives the turn back, and removes what is left of the part.
    pub async fn discard(self) {
        let is_done = do_aside(&self.login, Task::Remove(self.path.clone())).await;
        self.finish(if is_done { Left::Nothing } else { Left::AsBefore });
    }

    /// Gives the turn back. A part that is left is removed when its grace is over and nobody has asked for it, nor has another server
    /// written to it.
    pub fn finish(self, left: Left) {
        let Turn { uploads, login, principal, path, slot, number, grace, mut kept } = self;
        match left {
            Left::Nothing => *kept = None,
            Left::AsBefore => {}
            Left::Anew => *kept = Some(Kept { since: SystemTime::now(), until: Instant::now() + grace }),
        }
        let end = *kept;
        if end.is_some() {
            lock(&slot.holder).get_or_insert(principal);
        }
        drop(kept);
        let Some(end) = end else { return uploads.forget(&path, &slot, number) };
        tokio::spawn(async move {
            tokio::time::sleep_until(end.until).await;
            if *slot.asked.borrow() == number {
                // Whoever asks meanwhile waits until it is gone.
                let mut kept = slot.turn.lock().await;
                if kept.take_if(|kept| *kept == end).is_some() {
                    do_aside(&login, Task::Expire(path.clone(), end.since)).await;
                }
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
        let ann = Principal("ann".into());
        let turn = || uploads.turn(&ann, login.clone(), "file", Some(&[7; 32]), Duration::from_secs(60));
        let first = turn().await;
        let mut second = Box::pin(turn());
        tokio::select! {
            biased;
            _ = &mut second => panic!("two writers at once"),
            () = first.asked_for() => first.finish(Left::Anew),
        }
        second.await.finish(Left::Nothing);
        assert!(uploads.slots.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn without_a_grace_or_a_digest_nothing_is_held() {
        let login =
            Arc::new(Login { name: "dev".into(), home: "/home/dev".into(), shell: "/bin/sh".into(), identity: None });
        let (uploads, minute, ann) = (Uploads::new(), Duration::from_secs(60), Principal("ann".into()));
        assert!(uploads.turn(&ann, login.clone(), "file", Some(&[7; 32]), minute).await.may_hold(16));
        assert!(!uploads.turn(&ann, login.clone(), "file", None, minute).await.may_hold(16));
        assert!(!uploads.turn(&ann, login, "file", Some(&[7; 32]), Duration::ZERO).await.may_hold(16));
    }

    #[tokio::test]
    async fn no_more_is_held_than_may_be() {
        let login =
            Arc::new(Login { name: "dev".into(), home: "/home/dev".into(), shell: "/bin/sh".into(), identity: None });
        let (uploads, minute, ann) = (Uploads::new(), Duration::from_secs(60), Principal("ann".into()));
        let turn = |name: &'static str| uploads.turn(&ann, login.clone(), name, Some(&[7; 32]), minute);
        let first = turn("first").await;
        assert!(first.may_hold(1) && !first.may_hold(0));
        first.finish(Left::Anew);
        let second = turn("second").await;
        assert!(!second.may_hold(1));
        second.finish(Left::Nothing);
        assert!(turn("first").await.may_hold(1));
    }

    #[tokio::test]
    async fn one_principal_has_half_of_what_may_be_held() {
        let login =
            Arc::new(Login { name: "dev".into(), home: "/home/dev".into(), shell: "/bin/sh".into(), identity: None });
        let (uploads, minute) = (Uploads::new(), Duration::from_secs(60));
        let [ann, bob] = ["ann", "bob"].map(|name| Principal(name.into()));
        let turn = |principal, name: &'static str| uploads.turn(principal, login.clone(), name, Some(&[7; 32]), minute);
        for (name, is_held) in [("1", true), ("2", true), ("3", false), ("2", true)] {
            let turn = turn(&ann, name).await;
            assert_eq!(turn.may_hold(4), is_held, "{name}");
            turn.finish(if is_held { Left::Anew } else { Left::Nothing });
        }
        // What cannot be held is in nobody's way.
        let _others = [turn(&ann, "3").await, turn(&ann, "4").await];
        let bobs = [turn(&bob, "5").await, turn(&bob, "6").await];
        assert!(bobs.iter().all(|turn| turn.may_hold(4)));
        assert!(!turn(&bob, "7").await.may_hold(4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_stays_no_longer_for_being_looked_at() {
        let login = Arc::new(Login {
            name: "dev".into(),
            home: "/no/such/home".into(),
            shell: "/bin/sh".into(),
            identity: None,
        });
        let (uploads, minute, ann) = (Uploads::new(), Duration::from_secs(60), Principal("ann".into()));
        let turn = || uploads.turn(&ann, login.clone(), "file", Some(&[7; 32]), minute);
        let begin = Instant::now();
        turn().await.finish(Left::Anew);
        for found in [Some(5), None, Some(5)] {
            tokio::time::advance(Duration::from_secs(15)).await;
            let turn = turn().await;
            let left = turn.after_look(found);
            turn.finish(left);
        }
        uploads.none().await;
        assert!(begin.elapsed() < minute + Duration::from_secs(10), "{:?}", begin.elapsed());
        // What somebody else has left there is found once, and nothing is not held.
        let found = turn().await;
        assert_eq!(
            [Some(5), Some(0), None].map(|bytes| found.after_look(bytes)),
            [Left::Anew, Left::Nothing, Left::AsBefore]
        );
        found.finish(Left::AsBefore);
        uploads.none().await;
    }
}
