//! The grants of the `authorize` command that say how long they are good for. Bounded; pure but for the time that is passed in.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;

use crate::protocol::{HostId, Principal};
use crate::server::policy::{Asker, Authorized, Request};

/// Most grants that are kept: some 10 MiB of long ones.
const MAX_KEPT: usize = 1024;

/// What a grant that is kept is good for: the command that says so vouches for all that it was asked beside.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) principal: Principal,
    pub(super) host: HostId,
    source: IpAddr,
    account: Option<String>,
}

impl Key {
    pub(super) fn new(asker: &Asker, host: &HostId, request: &Request) -> Key {
        Key {
            principal: asker.principal.clone(),
            host: host.clone(),
            source: asker.source.to_canonical(),
            account: request.user().map(str::to_owned),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Cache(HashMap<Key, Kept>);

#[derive(Debug)]
struct Kept {
    granted: Arc<Authorized>,
    until: Instant,
}

impl Kept {
    fn is_good(&self, now: SystemTime) -> bool {
        Instant::now() < self.until && self.granted.terms.expires.is_none_or(|expiry| expiry.is_after(now))
    }
}

impl Cache {
    /// The grant for `key` that is still good at `now`.
    pub(super) fn find(&self, key: &Key, now: SystemTime) -> Option<Arc<Authorized>> {
        self.0.get(key).filter(|kept| kept.is_good(now)).map(|kept| kept.granted.clone())
    }

    /// Keeps a grant until then. Where too many are kept, the one whose time is over first gives way.
    pub(super) fn keep(&mut self, key: &Key, granted: &Arc<Authorized>, until: Option<Instant>) {
        let Some(until) = until.filter(|until| *until > Instant::now()) else { return };
        if self.0.len() >= MAX_KEPT && !self.0.contains_key(key) {
            let first = self.0.iter().min_by_key(|(_, kept)| kept.until).map(|(key, _)| key.clone());
            first.and_then(|first| self.0.remove(&first));
        }
        self.0.insert(key.clone(), Kept { granted: granted.clone(), until });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::policy::terms::Terms;
    use std::time::Duration;

    fn key(principal: &str, account: Option<&str>, source: &str) -> Key {
        let asker = Asker {
            principal: Principal(principal.into()),
            source: source.parse().unwrap(),
            now: SystemTime::UNIX_EPOCH,
            authorized: None,
        };
        Key::new(&asker, &HostId::parse("web").unwrap(), &Request::Host { user: account.map(Into::into) })
    }

    fn granted(expires: Option<&str>) -> Arc<Authorized> {
        let expires = expires.map(|text| serde_json::from_value(text.into()).unwrap());
        let terms = Terms { expires, ..Terms::default() };
        Arc::new(Authorized { principal: Principal("ann".into()), host: HostId::parse("web").unwrap(), terms })
    }

    fn in_seconds(seconds: u64) -> Option<Instant> {
        Instant::now().checked_add(Duration::from_secs(seconds))
    }

    #[tokio::test(start_paused = true)]
    async fn a_grant_is_kept_for_as_long_as_it_says_and_never_beyond_its_end() {
        let (mut cache, epoch) = (Cache::default(), SystemTime::UNIX_EPOCH);
        let (one, two) = (key("ann", None, "::1"), key("bob", None, "::1"));
        cache.keep(&one, &granted(None), in_seconds(60));
        cache.keep(&two, &granted(Some("1970-01-01T00:00:30Z")), in_seconds(60));
        assert!(cache.find(&one, epoch).is_some() && cache.find(&two, epoch).is_some());
        assert!(cache.find(&two, epoch + Duration::from_secs(30)).is_none());
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(cache.find(&one, epoch).is_none() && cache.find(&two, epoch).is_none());
        cache.keep(&one, &granted(None), in_seconds(0));
        cache.keep(&one, &granted(None), None);
        assert!(cache.find(&one, epoch).is_none());
    }

    #[tokio::test]
    async fn a_grant_is_found_by_no_other_principal_account_or_source() {
        let mut cache = Cache::default();
        cache.keep(&key("ann", Some("dev"), "10.0.0.1"), &granted(None), in_seconds(60));
        let found = |key: &Key| cache.find(key, SystemTime::UNIX_EPOCH).is_some();
        assert!(found(&key("ann", Some("dev"), "::ffff:10.0.0.1")));
        for other in [
            key("bob", Some("dev"), "10.0.0.1"),
            key("ann", None, "10.0.0.1"),
            key("ann", Some("www"), "10.0.0.1"),
            key("ann", Some("dev"), "10.0.0.2"),
        ] {
            assert!(!found(&other), "{other:?}");
        }
    }

    #[tokio::test]
    async fn the_grant_whose_time_is_over_first_gives_way() {
        let mut cache = Cache::default();
        let name = |number: usize| key(&format!("p{number}"), None, "::1");
        for number in 0..MAX_KEPT + 2 {
            cache.keep(&name(number), &granted(None), in_seconds(100 + number as u64));
        }
        assert_eq!(cache.0.len(), MAX_KEPT);
        let found = |number: usize| cache.find(&name(number), SystemTime::UNIX_EPOCH).is_some();
        assert!(!found(0) && !found(1) && found(2) && found(MAX_KEPT + 1));
    }
}
