//! What the process's surroundings say, as a value: resolution itself reads no process environment.

use std::env;
use std::path::{Path, PathBuf};

use crate::config::{Overrides, proxy, value};
use crate::error::{Code, Error, Result};

/// The system's file.
const SYSTEM_FILE: &str = "/etc/tstunnel/config.toml";

/// The variables and folders that configuration depends on. An empty variable counts as one that is not set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `TSTUNNEL_ENDPOINT`.
    pub endpoint: Option<String>,
    /// `TSTUNNEL_CERT`.
    pub cert: Option<PathBuf>,
    /// `TSTUNNEL_KEY`.
    pub key: Option<PathBuf>,
    /// `TSTUNNEL_CA`.
    pub ca: Option<PathBuf>,
    /// `TSTUNNEL_UPGRADE_BASE`.
    pub upgrade_base: Option<String>,
    /// `TSTUNNEL_CONFIG`: read this file alone.
    pub config: Option<PathBuf>,
    /// `TSTUNNEL_HOSTS`: patterns of hosts that are ours, separated by spaces.
    pub hosts: Option<String>,
    /// `HTTPS_PROXY` and its kind.
    pub proxies: proxy::Variables,
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`; a relative one does not count, as its specification says.
    pub xdg_config_home: Option<PathBuf>,
    /// `XDG_STATE_HOME`, likewise.
    pub xdg_state_home: Option<PathBuf>,
    /// `XDG_DATA_HOME`, likewise.
    pub xdg_data_home: Option<PathBuf>,
    /// The folder that relative paths in options, URLs and variables are below.
    pub current_dir: PathBuf,
    /// The system's file; `None` reads none.
    pub system_file: Option<PathBuf>,
}

impl Environment {
    /// Reads this process's own.
    pub fn from_process() -> Environment {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        // A variable that is not UTF-8 is no valid value, and is refused as one, legibly.
        let text = |name: &str| set(name).map(|value| value.to_string_lossy().into_owned());
        let path = |name: &str| set(name).map(PathBuf::from);
        Environment {
            endpoint: text("TSTUNNEL_ENDPOINT"),
            cert: path("TSTUNNEL_CERT"),
            key: path("TSTUNNEL_KEY"),
            ca: path("TSTUNNEL_CA"),
            upgrade_base: text("TSTUNNEL_UPGRADE_BASE"),
            config: path("TSTUNNEL_CONFIG"),
            hosts: text("TSTUNNEL_HOSTS"),
            proxies: proxy::Variables::read(text),
            home: path("HOME"),
            xdg_config_home: path("XDG_CONFIG_HOME"),
            xdg_state_home: path("XDG_STATE_HOME"),
            xdg_data_home: path("XDG_DATA_HOME"),
            // Without a current folder relative paths are left as they are: only their use will fail.
            current_dir: env::current_dir().unwrap_or_default(),
            system_file: Some(PathBuf::from(SYSTEM_FILE)),
        }
    }

    /// The same as it is to a file in `folder`: what a URL there says is relative to that, and the variables still are to
    /// the current folder.
    ///
    /// # Errors
    /// `config` for a path that means nothing.
    pub fn within(&self, folder: &Path) -> Result<Environment> {
        let fixed = |path: &Option<PathBuf>, name: &str| path.as_deref().map(|path| self.path(path, name)).transpose();
        Ok(Environment {
            cert: fixed(&self.cert, "TSTUNNEL_CERT")?,
            key: fixed(&self.key, "TSTUNNEL_KEY")?,
            ca: fixed(&self.ca, "TSTUNNEL_CA")?,
            config: fixed(&self.config, "TSTUNNEL_CONFIG")?,
            current_dir: self.current_dir.join(folder),
            ..self.clone()
        })
    }

    /// The variables whose paths depend on the current folder or the home, by paths that hold in every folder. What means nothing is
    /// left to whoever needs it.
    pub fn relative_variables(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        let paths = [
            ("TSTUNNEL_CONFIG", &self.config),
            ("TSTUNNEL_CERT", &self.cert),
            ("TSTUNNEL_KEY", &self.key),
            ("TSTUNNEL_CA", &self.ca),
        ];
        paths.into_iter().filter_map(|(name, path)| {
            let path = path.as_deref().filter(|path| path.is_relative())?;
            Some((name, self.path(path, name).ok()?))
        })
    }

    /// The user's file, where there is a place for one.
    pub fn user_file(&self) -> Option<PathBuf> {
        Some(self.base_folder(self.xdg_config_home.as_deref(), ".config")?.join("tstunnel/config.toml"))
    }

    /// Where this program keeps what it remembers, where there is a place for it.
    pub fn state_folder(&self) -> Option<PathBuf> {
        Some(self.base_folder(self.xdg_state_home.as_deref(), ".local/state")?.join("tstunnel"))
    }

    /// Where this program keeps files that last, where there is a place for them.
    pub fn data_folder(&self) -> Option<PathBuf> {
        Some(self.base_folder(self.xdg_data_home.as_deref(), ".local/share")?.join("tstunnel"))
    }

    fn base_folder(&self, xdg: Option<&Path>, below_home: &str) -> Option<PathBuf> {
        match xdg.filter(|folder| folder.is_absolute()) {
            Some(folder) => Some(folder.to_owned()),
            None => self.home.as_ref().map(|home| home.join(below_home)),
        }
    }

    /// Reads a path that `label` gave: relative to the current folder.
    pub(super) fn path(&self, text: &Path, label: &str) -> Result<PathBuf> {
        value::path(text, &self.current_dir, self.home.as_deref())
            .map_err(|why| Error::new(Code::Config, format!("{label}: {why}")))
    }

    /// What the variables say about every host.
    pub(super) fn as_overrides(&self) -> Overrides {
        Overrides {
            config: None,
            endpoint: self.endpoint.clone(),
            cert: self.cert.clone(),
            key: self.key.clone(),
            ca: self.ca.clone(),
            upgrade_base: self.upgrade_base.clone(),
            sni: None,
            user: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_xdg_folder_does_not_count() {
        let mut env = Environment { home: Some("/home/x".into()), ..Environment::default() };
        assert_eq!(env.user_file(), Some("/home/x/.config/tstunnel/config.toml".into()));
        assert_eq!(env.state_folder(), Some("/home/x/.local/state/tstunnel".into()));
        env.xdg_config_home = Some("relative".into());
        assert_eq!(env.user_file(), Some("/home/x/.config/tstunnel/config.toml".into()));
        env.xdg_config_home = Some("/xdg".into());
        assert_eq!(env.user_file(), Some("/xdg/tstunnel/config.toml".into()));
        env = Environment::default();
        assert_eq!((env.user_file(), env.state_folder()), (None, None));
    }
}
