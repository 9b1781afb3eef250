//! `[authorize]` as it is written → [`AuthorizeConfig`]: the command that is asked for grants which are kept elsewhere. No I/O.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::Account;
use super::file::{Text, Timeout, Words, check_account};
use crate::config::toml_file;
use crate::error::Result;

/// How long the command has where nothing else is said: a person waits for it.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// `[authorize]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizeConfig {
    /// The program's file, absolute.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// The account that it runs as; the server's own, which is not root, if `None`.
    pub account: Option<String>,
    /// How long it has for an answer.
    pub timeout: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuthorizeTable {
    command: Spanned<Words>,
    account: Option<Spanned<Text>>,
    timeout: Option<Timeout>,
}

impl AuthorizeTable {
    /// # Errors
    /// `config` where the program is not absolute, and where the command would run as root.
    pub(super) fn checked(this: Spanned<Self>, path: &Path, text: &str, account: &Account) -> Result<AuthorizeConfig> {
        let table = this.span();
        let AuthorizeTable { command, account: asked, timeout } = this.into_inner();
        let fails = |span, what: &str| Err(toml_file::error_at(path, text, Some(span), what));
        match &asked {
            Some(asked) if account.is_root && asked.get_ref().0 == account.name => {
                return fails(asked.span(), "the `authorize` command must not run as root");
            }
            Some(asked) => check_account(path, text, account, asked)?,
            None if account.is_root => {
                return fails(table, "`authorize` needs an `account` for its command to run as, like \"nobody\"");
            }
            None => {}
        }
        let span = command.span();
        let mut words = command.into_inner().0.into_iter();
        let program = words.next().filter(|program| program.starts_with('/')).map(PathBuf::from);
        let Some(program) = program else {
            return fails(span, "`command` is an absolute path and its arguments");
        };
        Ok(AuthorizeConfig {
            program,
            arguments: words.collect(),
            account: asked.map(|asked| asked.into_inner().0).filter(|_| account.is_root),
            timeout: timeout.map_or(DEFAULT_TIMEOUT, |timeout| timeout.0),
        })
    }
}
