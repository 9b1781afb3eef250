//! The client's TOML files → their `[host."pattern"]` entries, in file order.
//!
//! A file is understood whole or not at all: an unknown key or a wrong value anywhere in it is an error with file and line,
//! also in an entry that matches no host. Paths in a file are relative to the file's folder.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::{Endpoint, MinTls, Proxy, duration, toml_file, value};
use crate::error::{Code, Error, Result, nearest};
use crate::protocol::HostId;

/// What one source says about a host; what is `None` is left to a weaker source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) endpoint: Option<Endpoint>,
    pub(super) host_id: Option<HostId>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) ca: Option<PathBuf>,
    pub(super) upgrade_base: Option<String>,
    pub(super) sni: Option<String>,
    pub(super) user: Option<String>,
    pub(super) proxy: Option<Option<Proxy>>,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) answer_timeout: Option<Duration>,
    pub(super) alive_interval: Option<Duration>,
    pub(super) alive_count: Option<u32>,
    pub(super) resume: Option<Option<Duration>>,
    pub(super) min_tls: Option<MinTls>,
}

impl Settings {
    /// Fills what is missing from a weaker source.
    pub(super) fn or(self, weaker: &Settings) -> Settings {
        let weaker = weaker.clone();
        Settings {
            endpoint: self.endpoint.or(weaker.endpoint),
            host_id: self.host_id.or(weaker.host_id),
            cert: self.cert.or(weaker.cert),
            key: self.key.or(weaker.key),
            ca: self.ca.or(weaker.ca),
            upgrade_base: self.upgrade_base.or(weaker.upgrade_base),
            sni: self.sni.or(weaker.sni),
            user: self.user.or(weaker.user),
            proxy: self.proxy.or(weaker.proxy),
            connect_timeout: self.connect_timeout.or(weaker.connect_timeout),
            answer_timeout: self.answer_timeout.or(weaker.answer_timeout),
            alive_interval: self.alive_interval.or(weaker.alive_interval),
            alive_count: self.alive_count.or(weaker.alive_count),
            resume: self.resume.or(weaker.resume),
            min_tls: self.min_tls.or(weaker.min_tls),
        }
    }

    /// The value of `key`, as a person would write it.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        match key {
            "endpoint" => self.endpoint.as_ref().map(ToString::to_string),
            "host_id" => self.host_id.as_ref().map(ToString::to_string),
            "cert" => path(&self.cert),
            "key" => path(&self.key),
            "ca" => path(&self.ca),
            "upgrade_base" => self.upgrade_base.clone(),
            "sni" => self.sni.clone(),
            "user" => self.user.clone(),
            "proxy" => {
                self.proxy.as_ref().map(|proxy| proxy.as_ref().map_or_else(|| "none".to_owned(), Proxy::to_string))
            }
            "connect_timeout" => self.connect_timeout.map(duration::text),
            "answer_timeout" => self.answer_timeout.map(duration::text),
            "alive_interval" => self.alive_interval.map(duration::text),
            "alive_count" => self.alive_count.map(|count| count.to_string()),
            "resume" => self.resume.map(|resume| resume.map_or_else(|| "false".to_owned(), duration::text)),
            "min_tls" => self.min_tls.map(|version| version.to_string()),
            _ => None,
        }
    }
}

/// One `[host."pattern"]` table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) file: PathBuf,
    pub(super) pattern: String,
    pub(super) settings: Settings,
}

/// The keys of a `[host."pattern"]` table.
pub(super) const KEYS: [&str; 15] = [
    "endpoint",
    "host_id",
    "cert",
    "key",
    "ca",
    "upgrade_base",
    "sni",
    "user",
    "proxy",
    "connect_timeout",
    "answer_timeout",
    "alive_interval",
    "alive_count",
    "resume",
    "min_tls",
];

/// Reads a configuration file; `None` where there is none.
pub(super) fn read(path: &Path, home: Option<&Path>) -> Result<Option<Vec<Entry>>> {
    let Some(text) = toml_file::read_if_there(path)? else { return Ok(None) };
    Source { path, text: &text, home }.entries().map(Some)
}

/// A file's text, and what its values depend on.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
    home: Option<&'a Path>,
}

type Key<'a> = Spanned<std::borrow::Cow<'a, str>>;
type Value<'a> = Spanned<DeValue<'a>>;

impl Source<'_> {
    fn document(&self) -> Result<DeTable<'_>> {
        DeTable::parse(self.text).map(Spanned::into_inner).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let (line, column) = toml_file::position(self.text, at);
            Error::new(Code::Config, format!("{}:{line}:{column}: {}", self.path.display(), error.message()))
                .with_hint("the file is TOML; texts are written in quotes")
        })
    }

    fn entries(&self) -> Result<Vec<Entry>> {
        let document = self.document()?;
        let mut entries = Vec::new();
        for (key, value) in in_file_order(&document) {
            if key.get_ref() != "host" {
                let error = self.error(key.span(), format!("unknown key `{}`", key.get_ref()));
                return Err(error.with_hint("a host's keys stand below a line that reads [host.\"NAME OR PATTERN\"]"));
            }
            let hosts = self.table(key, value)?;
            for (pattern, value) in in_file_order(hosts) {
                // A key right below [host] is far likelier than a host with the name of a key and no table.
                if !value.get_ref().is_table() {
                    return Err(self
                        .error(pattern.span(), format!("`host.{}` is not a table", pattern.get_ref()))
                        .with_hint("name the host or a pattern: [host.\"NAME\"], or [host.\"*\"] for every host"));
                }
                let settings = self.settings(self.table(pattern, value)?)?;
                let (file, pattern) = (self.path.to_owned(), pattern.get_ref().to_string());
                entries.push(Entry { file, pattern, settings });
            }
        }
        Ok(entries)
    }

    fn settings(&self, table: &DeTable<'_>) -> Result<Settings> {
        let mut settings = Settings::default();
        for (key, value) in in_file_order(table) {
            match key.get_ref().as_ref() {
                "endpoint" => settings.endpoint = Some(self.parsed(key, value, Endpoint::parse)?),
                "host_id" => settings.host_id = Some(self.parsed(key, value, host_id)?),
                "cert" => settings.cert = Some(self.path_value(key, value)?),
                "key" => settings.key = Some(self.path_value(key, value)?),
                "ca" => settings.ca = Some(self.path_value(key, value)?),
                "upgrade_base" => settings.upgrade_base = Some(self.parsed(key, value, value::upgrade_base)?),
                "sni" => settings.sni = Some(self.parsed(key, value, value::server_name)?),
                "user" => settings.user = Some(self.parsed(key, value, value::user)?),
                "proxy" => settings.proxy = Some(self.parsed(key, value, Proxy::parse_key)?),
                "connect_timeout" => settings.connect_timeout = Some(self.time(key, value)?),
                "answer_timeout" => settings.answer_timeout = Some(self.time(key, value)?),
                "alive_interval" => settings.alive_interval = Some(self.time(key, value)?),
                "alive_count" => settings.alive_count = Some(self.count(key, value)?),
                "resume" => settings.resume = Some(self.resume(key, value)?),
                "min_tls" => settings.min_tls = Some(self.parsed(key, value, min_tls)?),
                _ => return Err(self.unknown(key, value)),
            }
        }
        Ok(settings)
    }

    fn unknown(&self, key: &Key<'_>, value: &Value<'_>) -> Error {
        let name = key.get_ref();
        let error = self.error(key.span(), format!("unknown key `{name}`"));
        if value.get_ref().is_table() {
            return error.with_hint("put a host's name in quotes, as in [host.\"dev.example.net\"]");
        }
        match nearest(name, KEYS) {
            Some(known) => error.with_hint(format!("did you mean `{known}`?")),
            None => error.with_hint(format!("a host's keys are {}", KEYS.join(", "))),
        }
    }

    fn table<'t, 'i>(&self, key: &Key<'_>, value: &'t Value<'i>) -> Result<&'t DeTable<'i>> {
        value.get_ref().as_table().ok_or_else(|| self.mistyped(key, value, "a table"))
    }

    fn text<'t>(&self, key: &Key<'_>, value: &'t Value<'_>) -> Result<&'t str> {
        value.get_ref().as_str().ok_or_else(|| self.mistyped(key, value, "a string"))
    }

    /// A string that `parse` understands.
    fn parsed<T>(&self, key: &Key<'_>, value: &Value<'_>, parse: impl Fn(&str) -> Result<T, String>) -> Result<T> {
        parse(self.text(key, value)?).map_err(|why| self.bad(key, value, &why))
    }

    fn path_value(&self, key: &Key<'_>, value: &Value<'_>) -> Result<PathBuf> {
        let folder = self.path.parent().unwrap_or(Path::new(""));
        self.parsed(key, value, |text| value::path(Path::new(text), folder, self.home))
    }

    fn count(&self, key: &Key<'_>, value: &Value<'_>) -> Result<u32> {
        let number = value.get_ref().as_integer().ok_or_else(|| self.mistyped(key, value, "a whole number"))?;
        u32::from_str_radix(number.as_str(), number.radix())
            .ok()
            .filter(|count| (1..=1000).contains(count))
            .ok_or_else(|| self.bad(key, value, "it must be from 1 to 1000"))
    }

    fn time(&self, key: &Key<'_>, value: &Value<'_>) -> Result<Duration> {
        let wanted = "a duration such as \"10s\"";
        let text = value.get_ref().as_str().ok_or_else(|| self.mistyped(key, value, wanted))?;
        some_time(text).map_err(|why| self.bad(key, value, &why))
    }

    fn resume(&self, key: &Key<'_>, value: &Value<'_>) -> Result<Option<Duration>> {
        match value.get_ref() {
            DeValue::Boolean(false) => Ok(None),
            DeValue::String(text) => match duration::parse(text) {
                Ok(time) => Ok(Some(time).filter(|time| !time.is_zero())),
                Err(why) => Err(self.bad(key, value, &why)),
            },
            _ => Err(self.mistyped(key, value, "a duration such as \"120s\", or false")),
        }
    }

    fn mistyped(&self, key: &Key<'_>, value: &Value<'_>, wanted: &str) -> Error {
        let found = value.get_ref().type_str();
        let article = if found.starts_with(['a', 'i', 'o']) { "an" } else { "a" };
        self.error(value.span(), format!("`{}` must be {wanted}, not {article} {found}", key.get_ref()))
    }

    fn bad(&self, key: &Key<'_>, value: &Value<'_>, why: &str) -> Error {
        self.error(value.span(), format!("`{}`: {why}", key.get_ref()))
    }

    fn error(&self, at: Range<usize>, text: String) -> Error {
        toml_file::error_at(self.path, self.text, Some(at), &text)
    }
}

/// The crate's tables are sorted by name; the first match of a file needs the order of the file, which the keys'
/// places tell.
fn in_file_order<'t, 'i>(table: &'t DeTable<'i>) -> Vec<(&'t Key<'i>, &'t Value<'i>)> {
    let mut pairs: Vec<_> = table.iter().collect();
    pairs.sort_by_key(|(key, _)| key.span().start);
    pairs
}

fn host_id(text: &str) -> Result<HostId, String> {
    HostId::parse(text).map_err(|error| error.text)
}

fn some_time(text: &str) -> Result<Duration, String> {
    duration::parse(text)
        .and_then(|time| if time.is_zero() { Err("it must be longer than nothing".into()) } else { Ok(time) })
}

fn min_tls(text: &str) -> Result<MinTls, String> {
    match text {
        "1.2" => Ok(MinTls::V1_2),
        "1.3" => Ok(MinTls::V1_3),
        _ => Err(format!("`{text}` is neither \"1.2\" nor \"1.3\"")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Vec<Entry>> {
        Source { path: Path::new("/c/config.toml"), text, home: Some(Path::new("/home/x")) }.entries()
    }

    fn refusal(text: &str) -> Error {
        let error = parse(text).unwrap_err();
        assert_eq!(error.code, Code::Config);
        error
    }

    #[test]
    fn every_key_is_read() {
        let text = r#"
            [host."dev-*"]
            endpoint = "a.example.net"
            host_id = "Dev-7"
            cert = "client.crt"
            key = "~/client.key"
            ca = "/ca.crt"
            upgrade_base = "/x"
            sni = "b.example.net"
            user = "dev"
            proxy = "socks5://10.0.0.1:9050"
            connect_timeout = "1s"
            answer_timeout = "2s"
            alive_interval = "3s"
            alive_count = 0x4
            resume = "5s"
            min_tls = "1.2"
        "#;
        let expected = Settings {
            endpoint: Some(Endpoint { host: "a.example.net".into(), port: 443 }),
            host_id: Some(HostId::parse("dev-7").unwrap()),
            cert: Some("/c/client.crt".into()),
            key: Some("/home/x/client.key".into()),
            ca: Some("/ca.crt".into()),
            upgrade_base: Some("/x".into()),
            sni: Some("b.example.net".into()),
            user: Some("dev".into()),
            proxy: Some(Some(Proxy::parse("socks5://10.0.0.1:9050").unwrap())),
            connect_timeout: Some(Duration::from_secs(1)),
            answer_timeout: Some(Duration::from_secs(2)),
            alive_interval: Some(Duration::from_secs(3)),
            alive_count: Some(4),
            resume: Some(Some(Duration::from_secs(5))),
            min_tls: Some(MinTls::V1_2),
        };
        assert_eq!(
            parse(text).unwrap(),
            [Entry { file: "/c/config.toml".into(), pattern: "dev-*".into(), settings: expected }]
        );
        for key in KEYS {
            assert!(text.contains(&format!("{key} = ")), "{key} is not tested");
        }
    }

    #[test]
    fn entries_stay_in_file_order() {
        let entries = parse("[host.z]\n[host.\"*\"]\n[host.a]\n[host.\"m.n\"]\n").unwrap();
        assert_eq!(entries.iter().map(|entry| entry.pattern.as_str()).collect::<Vec<_>>(), ["z", "*", "a", "m.n"]);
    }

    #[test]
    fn resume_can_be_switched_off() {
        for off in ["false", "\"0s\""] {
            assert_eq!(parse(&format!("[host.a]\nresume = {off}")).unwrap()[0].settings.resume, Some(None));
        }
    }

    #[test]
    fn an_unknown_key_is_named_with_file_and_line_and_the_nearest_known() {
        let error = refusal("[host.a]\n\nendpont = \"x\"\n");
        assert_eq!(error.text, "/c/config.toml:3: unknown key `endpont`");
        assert_eq!(error.hint(), "did you mean `endpoint`?");
        assert!(refusal("[host.a]\ncolour = \"red\"").hint().starts_with("a host's keys are"));
    }

    #[test]
    fn a_wrong_value_is_named_with_file_and_line() {
        for (value, line, reason) in [
            ("endpoint = 443", 2, "`endpoint` must be a string, not an integer"),
            ("endpoint = \"https://x\"", 2, "without a scheme"),
            ("user = \"a\"\ncert = \"\"", 3, "`cert`: the path is empty"),
            ("host_id = \"a b\"", 2, "`a b` is not a host id"),
            ("upgrade_base = \"x/\"", 2, "does not begin with `/`"),
            ("sni = \"10.0.0.1\"", 2, "not a DNS name"),
            ("user = \"\"", 2, "not a user"),
            ("proxy = \"ftp://ann:secret@x\"", 2, "`proxy`: `x` is not a proxy: its URL begins with http://"),
            ("proxy = false", 2, "`proxy` must be a string, not a boolean"),
            ("connect_timeout = 5", 2, "`connect_timeout` must be a duration such as \"10s\", not an integer"),
            ("connect_timeout = \"5\"", 2, "not a duration"),
            ("answer_timeout = \"0s\"", 2, "longer than nothing"),
            ("alive_count = 0", 2, "from 1 to 1000"),
            ("alive_count = 99999999999", 2, "from 1 to 1000"),
            ("alive_count = \"3\"", 2, "a whole number"),
            ("resume = true", 2, "or false"),
            ("min_tls = \"1.1\"", 2, "neither"),
            ("min_tls = 1.3", 2, "must be a string, not a float"),
        ] {
            let error = refusal(&format!("[host.a]\n{value}\n"));
            assert!(error.text.starts_with(&format!("/c/config.toml:{line}: ")), "{value}: {}", error.text);
            assert!(error.text.contains(reason), "{value}: {}", error.text);
        }
    }

    #[test]
    fn what_is_not_toml_is_refused_with_line_and_column() {
        assert!(refusal("[host.a]\nuser = dev\n").text.starts_with("/c/config.toml:2:8: "));
        assert!(refusal("[host.a]\nuser = \"a\"\nuser = \"b\"\n").text.starts_with("/c/config.toml:3:1: "));
        assert!(refusal("[host.a]\n[host.a]\n").text.starts_with("/c/config.toml:2:"));
        assert_eq!(refusal("[host.a]\nuser = dev\n").report().lines().count(), 2);
    }

    #[test]
    fn a_table_in_the_wrong_place_gets_a_hint() {
        assert!(refusal("endpoint = \"x\"").hint().contains("[host."));
        assert!(refusal("host = 1").text.contains("must be a table"));
        assert!(refusal("[host]\nendpoint = \"x\"").hint().contains("[host.\"*\"]"));
        assert!(refusal("[host.dev.lab]\nuser = \"x\"").hint().contains("in quotes"));
    }

    #[test]
    fn an_absent_file_is_none_and_an_unreadable_one_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(&folder.path().join("none.toml"), None), Ok(None));
        let error = read(folder.path(), None).unwrap_err();
        assert!(error.text.starts_with(&format!("{}: cannot read: ", folder.path().display())), "{}", error.text);
        let binary = folder.path().join("binary.toml");
        std::fs::write(&binary, b"[host.a]\nuser = \"\xff\"").unwrap();
        assert_eq!(read(&binary, None).unwrap_err().text, format!("{}:2: not UTF-8 text", binary.display()));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(\\[host\\.a\\]\n)?(\\PC|\n)*") {
            let _ = parse(&text);
        }
    }
}
