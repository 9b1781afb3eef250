//! `tstunnel pki`: runs a command of the small certificate authority, and says what it made.

use std::path::PathBuf;

use super::{Authority, Issued, Kind, Remains, Revocation};
use crate::cli::{Pki, PkiAction};
use crate::error::Result;

/// Runs the command; returns what is printed.
///
/// # Errors
/// Those of [`init`](super::init), [`server`](super::server), [`client`](super::client) and [`revoke`](super::revoke).
pub fn run(command: Pki) -> Result<String> {
    let dir = command.dir.clone().unwrap_or_else(|| super::DEFAULT_DIR.into());
    Ok(match command.action {
        PkiAction::Init(domain) => of_authority(&super::init(&dir, domain.as_deref())?),
        PkiAction::Server(names) => of_issued(&super::server(&dir, &names)?),
        PkiAction::Client(principal) => of_issued(&super::client(&dir, &principal)?),
        PkiAction::Revoke(what) => of_revocation(&super::revoke(&dir, what.as_deref())?, command.dir),
    })
}

fn of_authority(made: &Authority) -> String {
    let files = [&made.cert, &made.key, &made.crl].map(|file| file.display().to_string()).join("\n");
    format!("{files}\nuntil {}; the revocation list until {}\n", made.not_after, made.crl_until)
}

fn of_issued(issued: &Issued) -> String {
    let Issued { cert, key, name, not_after, .. } = issued;
    format!("{}\n{}\nfor {name}, until {not_after}\n", cert.display(), key.display())
}

/// `dir` is what the next command has to name.
fn of_revocation(list: &Revocation, dir: Option<PathBuf>) -> String {
    let mut text = format!("{}\nuntil {}\n", list.crl.display(), list.until);
    for revoked in &list.revoked {
        text += &format!("revoked {} ({}) on {}\n", revoked.name, revoked.serial, revoked.since);
    }
    let Some(Remains { name, kind, good }) = &list.remains else { return text };
    let count = list.revoked.len();
    let these = if count == 1 { "certificate" } else { "certificates" };
    let there = dir.map(|dir| format!(" --dir {}", dir.display())).unwrap_or_default();
    let left = match (good, kind) {
        (1.., _) => format!("still good: {good}"),
        (0, Kind::Client) => {
            format!("none is left: move its files away and make a new one with `tstunnel pki client{there} {name}`")
        }
        (0, Kind::Server) => {
            format!("none is left: move its files away and make a new one with `tstunnel pki server{there} NAME...`")
        }
    };
    text + &format!("{count} {these} of {name} revoked; {left}\n")
}
