//! How many sessions there may be, in all and for one principal. Running out costs new sessions, never live ones.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use crate::error::{Code, Error, Result};
use crate::protocol::Principal;

/// Counts what is alive.
#[derive(Clone, Debug)]
pub struct Admission {
    max_sessions: usize,
    max_per_principal: usize,
    counts: Arc<Mutex<HashMap<Principal, usize>>>,
    /// Everything that must end before the server may has a clone of this.
    alive: mpsc::Sender<()>,
}

/// The right to one session, until it is dropped.
#[derive(Debug)]
pub struct Ticket {
    admission: Admission,
    principal: Principal,
}

impl Admission {
    /// Admission within limits; the receiver gets its end when nothing that was admitted is left, and this is dropped.
    pub fn new(max_sessions: usize, max_per_principal: usize) -> (Admission, mpsc::Receiver<()>) {
        let (alive, ended) = mpsc::channel(1);
        (Admission { max_sessions, max_per_principal, counts: Arc::default(), alive }, ended)
    }

    /// Admits one session of `principal`.
    ///
    /// # Errors
    /// `overloaded` where the server is full, `too-many` where the principal has its share.
    pub fn session(&self, principal: &Principal) -> Result<Ticket> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.values().sum::<usize>() >= self.max_sessions {
            return Err(Error::new(Code::Overloaded, "the server has as many sessions as it takes"));
        }
        let count = counts.entry(principal.clone()).or_default();
        if *count >= self.max_per_principal {
            return Err(Error::new(Code::TooMany, "this principal has as many sessions as it may have"));
        }
        *count += 1;
        Ok(Ticket { admission: self.clone(), principal: principal.clone() })
    }

    /// Keeps the server from ending while the clone lives.
    pub fn alive(&self) -> mpsc::Sender<()> {
        self.alive.clone()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut counts = self.admission.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.principal) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.principal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn limits_hold_and_a_dropped_ticket_gives_its_place_back() {
        let (admission, mut ended) = Admission::new(3, 2);
        let (ann, bob) = (Principal("ann".to_owned()), Principal("bob".to_owned()));
        let first = admission.session(&ann).unwrap();
        let second = admission.session(&ann).unwrap();
        assert_eq!(admission.session(&ann).unwrap_err().code, Code::TooMany);
        let third = admission.session(&bob).unwrap();
        assert_eq!(admission.session(&bob).unwrap_err().code, Code::Overloaded);
        drop(first);
        let fourth = admission.session(&bob).unwrap();
        drop((second, third, fourth));
        assert!(admission.counts.lock().unwrap().is_empty());
        drop(admission);
        assert_eq!(ended.recv().await, None);
    }
}
