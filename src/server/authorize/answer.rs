//! What the `authorize` command answers: a grant as one JSON object, or nothing. No I/O.
//!
//! The keys are those of a `[[grant]]`, all of them optional; `cache` says how long the answer is good for. Fails closed: what is
//! not understood is no answer, and a null in a key's place is not the same as its absence, which narrows nothing.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::config::duration;
use crate::server::config::Commands;
use crate::server::policy::target::TargetPattern;
use crate::server::policy::terms::{Expiry, Network, Terms};

/// A grant, and for how long it need not be asked for again.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) terms: Terms,
    pub(super) cache: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default, deserialize_with = "present")]
    accounts: Option<Vec<String>>,
    #[serde(default, deserialize_with = "present")]
    commands: Option<Commands>,
    #[serde(default, deserialize_with = "present")]
    targets: Option<Vec<TargetPattern>>,
    #[serde(default, deserialize_with = "present")]
    sources: Option<Vec<Network>>,
    #[serde(default, deserialize_with = "present")]
    expires: Option<Expiry>,
    #[serde(default, deserialize_with = "present")]
    cache: Option<String>,
}

/// A value, which is not null.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl Answer {
    /// Parses what was written; nothing, or `null`, is no grant. `only_account` is the one that the server has, where it can become
    /// no other.
    ///
    /// # Errors
    /// What is wrong, as a sentence.
    pub(super) fn parse(bytes: &[u8], only_account: Option<&str>) -> Result<Option<Answer>, String> {
        match bytes.trim_ascii() {
            b"" | b"null" => return Ok(None),
            [b'{', ..] => {}
            // A list could be taken for one whose keys are left out, each of them.
            _ => return Err("the answer is no JSON object".to_owned()),
        }
        let written = serde_json::from_slice(bytes).map_err(|error| format!("the answer is no grant: {error}"))?;
        let Written { accounts, commands, targets, sources, expires, cache } = written;
        if let (Some(only), Some(accounts)) = (only_account, &accounts)
            && let Some(other) = accounts.iter().find(|account| *account != only)
        {
            return Err(format!("the answer has the account `{other}`, but this server has only its own"));
        }
        let cache = cache.map_or(Ok(Duration::ZERO), |cache| duration::parse(&cache))?;
        Ok(Some(Answer { terms: Terms { accounts, commands, targets, sources, expires }, cache }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Option<Answer>, String> {
        Answer::parse(text.as_bytes(), None)
    }

    #[test]
    fn an_answer_is_a_grant() {
        let answer = parse(
            r#" {"accounts": ["dev"], "commands": ["mutagen", "git *"], "targets": ["tcp:127.0.0.1:80"],
                 "sources": ["10.0.0.0/8"], "expires": "2030-01-31T18:00:00Z", "cache": "60s"}
            "#,
        )
        .unwrap()
        .unwrap();
        assert_eq!(answer.cache, Duration::from_secs(60));
        assert_eq!(answer.terms.accounts, Some(vec!["dev".into()]));
        assert_eq!(answer.terms.commands, Some(Commands::Listed { mutagen: true, patterns: vec!["git *".into()] }));
        assert!(answer.terms.targets.is_some() && answer.terms.sources.is_some() && answer.terms.expires.is_some());
        let whole = Answer { terms: Terms::default(), cache: Duration::ZERO };
        assert_eq!(parse("{}").unwrap(), Some(whole));
        let any = parse(r#"{"commands": "any"}"#).unwrap().unwrap();
        assert_eq!(any.terms.commands, Some(Commands::Any));
    }

    #[test]
    fn nothing_is_no_grant() {
        for nothing in ["", "\n", " \t\r\n", "null", " null\n"] {
            assert_eq!(parse(nothing), Ok(None), "{nothing:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_no_answer() {
        for garbage in [
            "yes",
            "true",
            "{",
            "{} {}",
            "{}x",
            "[]",
            "[[\"dev\"]]",
            "[{}]",
            "\"\"",
            "0",
            "{\"account\": [\"dev\"]}",
            "{\"principal\": \"*\"}",
            "{\"hosts\": [\"*\"]}",
            "{\"accounts\": \"dev\"}",
            "{\"accounts\": [\"dev\"], \"accounts\": [\"root\"]}",
            "{\"commands\": \"all\"}",
            "{\"commands\": [\"ls\", \"any\"]}",
            "{\"targets\": [\"tcp:*\"]}",
            "{\"sources\": [\"everywhere\"]}",
            "{\"expires\": 0}",
            "{\"expires\": \"2030-01-31\"}",
            "{\"cache\": 60}",
            "{\"cache\": \"60\"}",
            "{\"cache\": \"721h\"}",
            "{\"cache\": \"-1s\"}",
            "nullnull",
        ] {
            assert!(parse(garbage).is_err(), "{garbage}");
        }
        assert!(Answer::parse(b"{\"accounts\": [\"\xff\"]}", None).is_err());
        assert!(Answer::parse(b"\0", None).is_err());
    }

    #[test]
    fn a_null_is_not_taken_for_a_key_that_is_left_out() {
        for key in ["accounts", "commands", "targets", "sources", "expires", "cache"] {
            assert!(parse(&format!("{{\"{key}\": null}}")).is_err(), "{key}");
        }
    }

    #[test]
    fn a_server_that_is_not_root_grants_its_own_account_alone() {
        let of = |text: &str| Answer::parse(text.as_bytes(), Some("dev"));
        assert!(of("{\"accounts\": [\"dev\"]}").unwrap().is_some());
        assert!(of("{\"accounts\": []}").unwrap().is_some());
        assert!(of("{\"accounts\": [\"dev\", \"root\"]}").is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_answers_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "[{}\\[\\]\",:a-z0-9]*") {
            let _ = Answer::parse(&bytes, None);
            let _ = parse(&text);
        }
    }
}
