//! An account's name → who its processes run as, by the system's databases (passwd(5), group(5), shadow(5)).
//!
//! Fails closed: as root, an account that is missing, locked, expired or without a login shell is refused, as sshd refuses
//! it. A server that is not root serves its own account, whoever that is, and becomes nobody else.

use std::ffi::CString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{fs, io};

use nix::unistd::User;
use rustix::process::{Gid, Uid};

use crate::error::{Code, Error, Result};
use crate::server::descriptors;

/// What runs a line where the account has no shell of its own.
pub const DEFAULT_SHELL: &str = "/bin/sh";
/// Whoever is not root is refused while this file is there (nologin(5)).
const NOLOGIN: &str = "/etc/nologin";
const SHADOW: &str = "/etc/shadow";
/// Shells that let nobody in (nologin(8), false(1), true(1)).
const NO_SHELLS: [&str; 3] = ["nologin", "false", "true"];
const SECONDS_A_DAY: u64 = 86_400;
/// Whether it was asked for or is the host's own: a client cannot mend it.
const HINT: &str =
    "ask whoever runs the endpoint to see to that account on the host, or to name another as its `account`";

/// An account as its processes have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Its name.
    pub name: String,
    /// Its home directory, absolute.
    pub home: PathBuf,
    /// Its login shell.
    pub shell: PathBuf,
    /// Whom a process must become; `None` where the server is that account already.
    pub identity: Option<Identity>,
}

/// The ids that a process takes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub uid: Uid,
    /// Its primary group.
    pub gid: Gid,
    /// All of its groups, as initgroups(3) has them.
    pub groups: Vec<Gid>,
}

impl Login {
    /// Finds an account by its name; `home` is another home than its own. Reads the system's databases, which may take its
    /// time: not for one of the runtime's workers.
    ///
    /// # Errors
    /// `unauthorized` where there is no such account, or nobody may use it now; `overloaded` where it cannot be asked for now.
    pub fn find(name: &str, home: Option<&Path>) -> Result<Login> {
        let refused = |why: &str| Error::new(Code::Unauthorized, format!("the account `{name}` {why}")).with_hint(HINT);
        let failed = |what: &str, error: io::Error| {
            // What this machine has run out of says nothing about the account.
            let why = format!("has {what} that cannot be read on the host: {error}");
            let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
            let why = if is_denied { format!("{why}; the server lacks CAP_DAC_READ_SEARCH") } else { why };
            if descriptors::is_exhaustion(&error) {
                Error::new(Code::Overloaded, format!("the account `{name}` {why}"))
            } else {
                refused(&why)
            }
        };
        let user = User::from_name(name).map_err(|error| failed("an entry", error.into()))?;
        let own = rustix::process::geteuid();
        if !own.is_root() || user.as_ref().is_some_and(|user| user.uid.is_root()) {
            // The server's own account. The policy has seen to it that a server that is not root is asked for no other.
            let (passwd_home, shell) = user.map_or_else(Default::default, |user| (Some(user.dir), Some(user.shell)));
            let home = home.map(Path::to_owned).or(passwd_home).ok_or_else(|| refused("has no home directory"))?;
            return Ok(Login { name: name.to_owned(), home, shell: shell_or_default(shell), identity: None });
        }
        let user = user.ok_or_else(|| refused("does not exist on the host"))?;
        check_shell(&user.shell).map_err(|why| refused(&why))?;
        // A lock that cannot be read may be there; without the file there is none.
        let shadow = match fs::read(SHADOW) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("a lock", error)),
            shadow => String::from_utf8_lossy(&shadow.unwrap_or_default()).into_owned(),
        };
        let today = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / SECONDS_A_DAY;
        check_shadow(&shadow, name, today).map_err(refused)?;
        if Path::new(NOLOGIN).exists() {
            return Err(refused("may not be used while /etc/nologin is there on the host"));
        }
        Ok(Login {
            name: name.to_owned(),
            identity: Some(Identity::of(&user).map_err(|why| refused(&why))?),
            home: home.map_or(user.dir, Path::to_owned),
            shell: shell_or_default(Some(user.shell)),
        })
    }

    /// Finds the account for a program of the server's own, `name` or, for a server that is not root, the server's. Nobody logs
    /// in to it: its shell does not matter, nor whether it is locked. Reads the system's databases.
    ///
    /// # Errors
    /// `config` where root would become nobody else.
    pub fn of_program(name: Option<&str>) -> Result<Login> {
        let wrong = |name: &str, why: &str| Error::new(Code::Config, format!("the account `{name}` {why}"));
        let identity = match (name, rustix::process::geteuid().is_root()) {
            (_, false) => None,
            (None, true) => return Err(wrong("root", "is not for the server's own programs")),
            (Some(name), true) => {
                let user =
                    User::from_name(name).map_err(|error| wrong(name, &format!("cannot be looked up: {error}")))?;
                let user = user.ok_or_else(|| wrong(name, "does not exist on this machine"))?;
                if user.uid.is_root() {
                    return Err(wrong(name, "is root"));
                }
                Some(Identity::of(&user).map_err(|why| wrong(name, &why))?)
            }
        };
        let name = name.unwrap_or_default().to_owned();
        Ok(Login { name, home: "/".into(), shell: DEFAULT_SHELL.into(), identity })
    }

    /// Runs `act` with the account's rights to files, and none of root's, in a thread of its own. Blocks.
    ///
    /// # Panics
    /// Where `act` does.
    pub fn as_account<T: Send>(&self, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        self.in_thread(act, |identity| {
            // Of the four user ids only the file system's changes (setfsuid(2)), as nothing but files is meant. The capabilities
            // over files go with it (capabilities(7)).
            nix::unistd::setfsgid(nix::unistd::Gid::from_raw(identity.gid.as_raw()));
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(identity.uid.as_raw()));
            // It has no other answer than the id before; an id that cannot be is how to ask for that.
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(u32::MAX)).as_raw() == identity.uid.as_raw()
        })
    }

    /// The same for sockets, which are the account's then: to who is at their other end (`SO_PEERCRED` of unix(7)), and to a packet
    /// filter.
    ///
    /// # Panics
    /// Where `act` does.
    pub fn with_sockets<T: Send>(&self, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        self.in_thread(act, |identity| {
            // The effective ids alone, so that the account can send this thread no signal, nor trace it (kill(2), ptrace(2)).
            let (root, roots) = (Uid::ROOT, Gid::ROOT);
            rustix::thread::set_thread_res_gid(roots, identity.gid, roots).is_ok()
                && rustix::thread::set_thread_res_uid(root, identity.uid, root).is_ok()
        })
    }

    /// Runs `act` in a thread of its own that `become_account` has changed.
    fn in_thread<T: Send>(
        &self,
        act: impl FnOnce() -> io::Result<T> + Send,
        become_account: impl FnOnce(&Identity) -> bool + Send,
    ) -> io::Result<T> {
        let Some(identity) = &self.identity else { return act() };
        let acting = move || {
            rustix::thread::set_thread_groups(&identity.groups)?;
            if become_account(identity) { act() } else { Err(io::ErrorKind::PermissionDenied.into()) }
        };
        std::thread::scope(|scope| match std::thread::Builder::new().spawn_scoped(scope, acting)?.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }
}

impl Identity {
    fn of(user: &User) -> Result<Identity, String> {
        let name = CString::new(user.name.as_str()).map_err(|_| "has a NUL in its name".to_owned())?;
        let groups = nix::unistd::getgrouplist(&name, user.gid)
            .map_err(|error| format!("has groups that cannot be looked up: {error}"))?;
        Ok(Identity {
            uid: Uid::from_raw(user.uid.as_raw()),
            gid: Gid::from_raw(user.gid.as_raw()),
            groups: groups.into_iter().map(|group| Gid::from_raw(group.as_raw())).collect(),
        })
    }
}

fn shell_or_default(shell: Option<PathBuf>) -> PathBuf {
    shell.filter(|shell| !shell.as_os_str().is_empty()).unwrap_or_else(|| DEFAULT_SHELL.into())
}

/// Whether a login shell lets anybody in. An empty one is `/bin/sh` (passwd(5)).
fn check_shell(shell: &Path) -> Result<(), String> {
    if shell.as_os_str().is_empty() {
        return Ok(());
    }
    if shell.file_name().is_some_and(|name| NO_SHELLS.iter().any(|no_shell| name == *no_shell)) {
        return Err(format!("has the login shell {}, which lets nobody in", shell.display()));
    }
    match shell.metadata() {
        Ok(metadata) if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 => Ok(()),
        _ => Err(format!("has the login shell {}, which cannot be executed", shell.display())),
    }
}

/// Whether shadow(5) has `name` locked (`passwd -l`, `usermod -L`: the password field begins with `!`) or expired by
/// `today`, in days since 1970. An account that is not in there has its password elsewhere, and is neither.
fn check_shadow(shadow: &str, name: &str, today: u64) -> Result<(), &'static str> {
    let Some(fields) =
        shadow.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields.first() == Some(&name))
    else {
        return Ok(());
    };
    if fields.get(1).is_some_and(|password| password.starts_with('!')) {
        return Err("is locked");
    }
    match fields.get(7).map(|expiry| expiry.parse::<u64>()) {
        Some(Ok(expiry)) if expiry <= today => Err("has expired"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHADOW: &str = "root:*:19000::::::\n\
        open:$y$j9T$x:19000:0:99999:7:::\n\
        keys:*:19000:0:99999:7:::\n\
        locked:!$y$j9T$x:19000:0:99999:7:::\n\
        fresh:!:19000:0:99999:7:::\n\
        gone:*:19000:0:99999:7::20000:\n";

    #[test]
    fn a_locked_or_expired_account_is_told_from_one_without_a_password() {
        for (name, expected) in [
            ("open", Ok(())),
            ("keys", Ok(())),
            ("elsewhere", Ok(())),
            ("locked", Err("is locked")),
            ("fresh", Err("is locked")),
            ("gone", Err("has expired")),
        ] {
            assert_eq!(check_shadow(SHADOW, name, 20_000), expected, "{name}");
        }
        assert_eq!(check_shadow(SHADOW, "gone", 19_999), Ok(()));
    }

    #[test]
    fn a_shell_that_lets_nobody_in_is_refused() {
        for shell in
            ["/usr/sbin/nologin", "/sbin/nologin", "/bin/false", "/bin/true", "/no/such/shell", "/etc", "/etc/passwd"]
        {
            assert!(check_shell(Path::new(shell)).is_err(), "{shell}");
        }
        for shell in ["/bin/sh", ""] {
            assert_eq!(check_shell(Path::new(shell)), Ok(()), "{shell}");
        }
    }

    #[test]
    fn an_account_that_is_not_there_is_refused_by_root() {
        if rustix::process::geteuid().is_root() {
            let error = Login::find("no-such-account", None).unwrap_err();
            assert_eq!(error.code, Code::Unauthorized);
            assert!(
                error.text.ends_with(" does not exist on the host") && error.hint().contains("on the host"),
                "{error}"
            );
            let error = Login::find("nobody", None).unwrap_err();
            assert!(error.text.contains("lets nobody in"), "{error}");
        }
    }

    #[test]
    fn a_program_of_the_servers_own_runs_as_nobody_who_is_root() {
        if rustix::process::geteuid().is_root() {
            assert!(Login::of_program(Some("nobody")).unwrap().identity.is_some());
            for name in [Some("root"), Some("no-such-account"), None] {
                assert_eq!(Login::of_program(name).unwrap_err().code, Code::Config, "{name:?}");
            }
        } else {
            assert_eq!(Login::of_program(None).unwrap().identity, None);
        }
    }
}
