//! A `[[grant]]` as it is written → [`Grant`]. No I/O.

use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

use super::file::{Text, check_account};
use super::{Account, Commands};
use crate::error::Result;
use crate::server::policy::grant::{Grant, HostPattern, PrincipalPattern};
use crate::server::policy::target::TargetPattern;
use crate::server::policy::terms::{Expiry, Network, Terms};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GrantTable {
    principal: PrincipalPattern,
    hosts: Vec<HostPattern>,
    accounts: Option<Vec<Spanned<Text>>>,
    commands: Option<Commands>,
    targets: Option<Vec<TargetPattern>>,
    sources: Option<Vec<Network>>,
    expires: Option<Expiry>,
}

impl GrantTable {
    /// # Errors
    /// `config` where it is for an account that the server, which runs as `account`, cannot become.
    pub(super) fn checked(self, path: &Path, text: &str, account: &Account) -> Result<Grant> {
        let GrantTable { principal, hosts, accounts, commands, targets, sources, expires } = self;
        for asked in accounts.iter().flatten() {
            check_account(path, text, account, asked)?;
        }
        let accounts = accounts.map(|accounts| accounts.into_iter().map(|asked| asked.into_inner().0).collect());
        Ok(Grant { principal, hosts, terms: Terms { accounts, commands, targets, sources, expires } })
    }
}
