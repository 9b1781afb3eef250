//! Every source against the others, on a machine that is a temporary folder.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::config::{MinTls, Remembered, proxy, remember};

/// A home and a system's file in a folder of their own.
struct Machine {
    folder: tempfile::TempDir,
    env: Environment,
}

impl Machine {
    fn new() -> Machine {
        let folder = tempfile::tempdir().unwrap();
        let env = Environment {
            home: Some(folder.path().join("home")),
            current_dir: "/work/here".into(),
            system_file: Some(folder.path().join("etc/config.toml")),
            ..Environment::default()
        };
        Machine { folder, env }
    }

    fn write(&self, path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn user_file(self, text: &str) -> Machine {
        self.write(&self.env.user_file().unwrap(), text);
        self
    }

    fn system_file(self, text: &str) -> Machine {
        self.write(&self.env.system_file.clone().unwrap(), text);
        self
    }

    fn resolve(&self, host: &str) -> Result<Host> {
        resolve(host, &Overrides::default(), &WeakDefaults::default(), &self.env)
    }

    fn is_ours(&self, host: &str) -> bool {
        is_ours(host, &self.env, &Overrides::default()).unwrap()
    }
}

const COMPLETE: &str = "[host.\"*\"]\nendpoint = \"a.example.net\"\ncert = \"c.crt\"\nkey = \"c.key\"\n";

#[test]
fn a_host_with_only_what_is_required_gets_the_defaults() {
    let machine = Machine::new().user_file(COMPLETE);
    let folder = machine.env.home.clone().unwrap().join(".config/tstunnel");
    let expected = Host {
        alias: "host123".into(),
        endpoint: Endpoint { host: "a.example.net".into(), port: 443 },
        host_id: HostId::parse("host123").unwrap(),
        server_name: "host123.a.example.net".into(),
        upgrade_base: "/tinyscale/v1".into(),
        cert: folder.join("c.crt"),
        key: folder.join("c.key"),
        ca: None,
        user: None,
        proxy: None,
        connect_timeout: Duration::from_secs(5),
        answer_timeout: Duration::from_secs(30),
        alive_interval: Duration::from_secs(10),
        alive_count: 3,
        resume: Some(Duration::from_secs(120)),
        min_tls: MinTls::V1_3,
    };
    assert_eq!(machine.resolve("host123"), Ok(expected));
}

#[test]
fn each_source_beats_the_weaker_ones() {
    let mut machine = Machine::new();
    let upgrade_base = |machine: &Machine, host: &str, option: Option<&str>| {
        let overrides = Overrides { upgrade_base: option.map(str::to_owned), ..Overrides::default() };
        resolve(host, &overrides, &WeakDefaults::default(), &machine.env).unwrap().upgrade_base
    };
    machine = machine.system_file(&format!("{COMPLETE}upgrade_base = \"/system\""));
    assert_eq!(upgrade_base(&machine, "h", None), "/system");
    machine = machine.user_file("[host.h]\nupgrade_base = \"/user\"");
    assert_eq!(upgrade_base(&machine, "h", None), "/user");
    machine.env.upgrade_base = Some("/environment".into());
    assert_eq!(upgrade_base(&machine, "h", None), "/environment");
    assert_eq!(upgrade_base(&machine, "tstunnel://h?upgrade_base=/url", None), "/url");
    assert_eq!(upgrade_base(&machine, "tstunnel://h?upgrade_base=/url", Some("/option")), "/option");
}

#[test]
fn within_a_file_the_first_match_wins_key_by_key() {
    let machine = Machine::new().user_file(
        "[host.\"dev-*\"]\nuser = \"first\"\n[host.\"dev-7\"]\nuser = \"second\"\nsni = \"s.example.net\"\n\
         [host.\"*\"]\nendpoint = \"a\"\ncert = \"c\"\nkey = \"k\"\nsni = \"t.example.net\"",
    );
    let host = machine.resolve("DEV-7").unwrap();
    assert_eq!((host.user.as_deref(), host.server_name.as_str()), (Some("first"), "s.example.net"));
}

#[test]
fn what_ssh_hard_codes_is_weaker_than_a_file() {
    let weak = WeakDefaults {
        connect_timeout: Some(Duration::from_secs(7)),
        alive_interval: Some(Duration::ZERO),
        alive_count: Some(1),
    };
    let machine = Machine::new().user_file(&format!("{COMPLETE}alive_count = 9"));
    let host = resolve("h", &Overrides::default(), &weak, &machine.env).unwrap();
    assert_eq!(host.connect_timeout, Duration::from_secs(7));
    assert_eq!(host.alive_interval, ALIVE_INTERVAL);
    assert_eq!(host.alive_count, 9);
}

#[test]
fn one_configuration_file_replaces_both() {
    let mut machine = Machine::new().user_file("nonsense").system_file("nonsense");
    let other = machine.folder.path().join("other.toml");
    machine.write(&other, COMPLETE);
    machine.env.config = Some(other.clone());
    assert_eq!(machine.resolve("h").unwrap().cert, machine.folder.path().join("c.crt"));
    let overrides = Overrides { config: Some(other), ..Overrides::default() };
    machine.env.config = Some("/does/not/exist".into());
    assert!(resolve("h", &overrides, &WeakDefaults::default(), &machine.env).is_ok());
    let error = machine.resolve("h").unwrap_err();
    assert_eq!(error.text, "TSTUNNEL_CONFIG: there is no /does/not/exist");
    assert!(is_ours("h", &machine.env, &Overrides::default()).is_err());
}

#[test]
fn a_url_alone_is_enough_and_its_paths_are_below_the_current_folder() {
    let host = Machine::new()
        .resolve("tstunnel://dev@host123/home/dev?endpoint=a.example.net:8443&cert=./c.crt&key=~/c.key")
        .unwrap();
    assert_eq!(host.endpoint.to_string(), "a.example.net:8443");
    assert_eq!(host.cert, Path::new("/work/here/c.crt"));
    assert!(host.key.ends_with("home/c.key"));
    assert_eq!((host.alias.as_str(), host.user.as_deref()), ("host123", Some("dev")));
}

#[test]
fn an_alias_stands_for_its_url_whatever_the_variables_are_now() {
    let mut machine = Machine::new().user_file("nonsense");
    let file = machine.folder.path().join("other.toml");
    machine.write(&file, "[host.dev-7]\nendpoint = \"a.example.net\"\nhost_id = \"seven\"\nuser = \"file\"");
    machine.env.config = Some(file);
    machine.env.key = Some("k".into());
    let url = "tstunnel://Dev-7/p?cert=c";
    let expected = Host { alias: "dev-7".into(), ..machine.resolve(url).unwrap() };
    let remembered = Remembered::of(&TunnelUrl::parse(url).unwrap(), &machine.env).unwrap();
    remember("dev-7+abc123", &remembered, &machine.env).unwrap();

    machine.env.config = Some("/does/not/exist".into());
    machine.env.endpoint = Some("elsewhere.example.net".into());
    machine.env.key = Some("other".into());
    machine.env.current_dir = "/".into();
    assert_eq!(machine.resolve("dev-7+abc123"), Ok(expected.clone()));
    assert!(machine.is_ours("dev-7+abc123"));
    let user = machine.resolve("ann@dev-7+abc123").unwrap().user;
    assert_eq!((expected.user.as_deref(), user.as_deref()), (Some("file"), Some("ann")));
}

#[test]
fn the_files_proxy_beats_the_variables_which_an_alias_keeps() {
    let proxies = |url: &str| proxy::Variables { https_proxy: Some(url.into()), ..proxy::Variables::default() };
    let mut machine = Machine::new().user_file(&format!(
        "[host.direct]\nproxy = \"none\"\n[host.through]\nproxy = \"socks5://file:1\"\n{COMPLETE}"
    ));
    machine.env.proxies = proxies("http://variable:1");
    let proxy = |machine: &Machine, host: &str| machine.resolve(host).unwrap().proxy.map(|proxy| proxy.to_string());
    assert_eq!(proxy(&machine, "direct"), None);
    assert_eq!(proxy(&machine, "through").as_deref(), Some("socks5://file:1"));
    assert_eq!(proxy(&machine, "other").as_deref(), Some("http://variable:1"));
    assert_eq!(proxy(&machine, "tstunnel://other").as_deref(), Some("http://variable:1"));

    for (alias, host) in [("alias1", "other"), ("alias2", "through")] {
        let url = TunnelUrl::parse(&format!("tstunnel://{host}/p")).unwrap();
        remember(alias, &Remembered::of(&url, &machine.env).unwrap(), &machine.env).unwrap();
    }
    machine.env.proxies = proxies("http://of-the-daemon:1");
    assert_eq!(proxy(&machine, "alias1").as_deref(), Some("http://variable:1"));
    assert_eq!(proxy(&machine, "alias2").as_deref(), Some("socks5://file:1"));

    machine.env.proxies = proxies("ftp://x");
    assert_eq!(proxy(&machine, "direct"), None);
    assert!(machine.resolve("other").unwrap_err().text.starts_with("HTTPS_PROXY: "));
}

#[test]
fn a_user_before_the_host_is_not_part_of_the_alias() {
    let host = Machine::new().user_file(COMPLETE).resolve("dev@host123").unwrap();
    assert_eq!((host.alias.as_str(), host.user.as_deref()), ("host123", Some("dev")));
}

#[test]
fn the_host_id_is_the_alias_less_the_endpoints_host() {
    let machine = Machine::new().user_file(COMPLETE);
    for (alias, id) in [
        ("host123", "host123"),
        ("Host123.A.example.NET", "host123"),
        ("host123.a.example.net.", "host123"),
        ("x.y.a.example.net", "x.y"),
        ("host123.b.example.net", "host123.b.example.net"),
        ("xa.example.net", "xa.example.net"),
        ("a.example.net", "a.example.net"),
    ] {
        let host = machine.resolve(alias).unwrap();
        assert_eq!(host.host_id.as_str(), id, "{alias}");
        assert_eq!(host.server_name, format!("{id}.a.example.net"), "{alias}");
    }
}

#[test]
fn behind_an_address_the_server_name_is_the_host_id_alone() {
    let machine = Machine::new().user_file("[host.\"*\"]\nendpoint = \"[::1]:8443\"\ncert = \"c\"\nkey = \"k\"");
    assert_eq!(machine.resolve("host123").unwrap().server_name, "host123");
    let error = machine.resolve("10.0.0.1").unwrap_err();
    assert_eq!(error.text, "`10.0.0.1` has no server name: `10.0.0.1` is not a DNS name");
}

#[test]
fn a_server_name_that_is_too_long_is_refused() {
    let machine = Machine::new().user_file(COMPLETE);
    let alias = ["a"; 125].join(".");
    assert!(machine.resolve(&alias).unwrap_err().text.contains("has no server name"));
}

#[test]
fn everything_that_is_missing_is_named_with_the_ways_to_set_it() {
    let error = Machine::new().resolve("dev \"x\"").unwrap_err();
    assert_eq!(error.code, Code::Config);
    assert_eq!(error.text, "`dev \"x\"` has no `endpoint` and `cert` and `key`");
    for way in ["[host.\"dev \\\"x\\\"\"]", "home/.config/tstunnel/config.toml", "TSTUNNEL_KEY", "--cert", "endpoint=…"]
    {
        assert!(error.hint().contains(way), "{way}: {}", error.hint());
    }
    let mut machine = Machine::new();
    machine.env.endpoint = Some("a".into());
    machine.env.cert = Some("c".into());
    assert_eq!(machine.resolve("h").unwrap_err().text, "`h` has no `key`");
}

#[test]
fn a_host_that_no_entry_is_for_is_told_so_with_the_name_that_was_meant() {
    let machine = Machine::new()
        .user_file("[host.host123]\nendpoint = \"a\"\ncert = \"c\"\nkey = \"k\"\n[host.\"dev-*\"]\nendpoint = \"a\"")
        .system_file("[host.nas]\nuser = \"u\"");
    for (alias, text, meant) in [
        ("host124", "`endpoint` and `cert` and `key`, and no entry of the configuration is named so", Some("host123")),
        ("NSA", "`endpoint` and `cert` and `key`, and no entry of the configuration is named so", Some("nas")),
        ("far", "`endpoint` and `cert` and `key`, and no entry of the configuration is named so", None),
        ("nas", "`endpoint` and `cert` and `key`", None),
        ("dev-7", "`cert` and `key`", None),
    ] {
        let error = machine.resolve(alias).unwrap_err();
        assert_eq!(error.text, format!("`{alias}` has no {text}"));
        let begin =
            meant.map_or_else(|| "set `".to_owned(), |meant| format!("did you mean `{meant}`? otherwise set `"));
        assert!(error.hint().starts_with(&begin), "{alias}: {}", error.hint());
    }
}

#[test]
fn a_home_that_is_not_known_is_told_where_a_file_of_the_users_may_be_missed() {
    let told = |env: &Environment, config: Option<PathBuf>| {
        let overrides = Overrides { config, ..Overrides::default() };
        resolve("h", &overrides, &WeakDefaults::default(), env).unwrap_err().text.contains("HOME")
    };
    let machine = Machine::new();
    let homeless = Environment { home: None, ..machine.env.clone() };
    assert!(told(&homeless, None) && !told(&machine.env, None));
    let file = machine.folder.path().join("c.toml");
    machine.write(&file, "");
    assert!(!told(&homeless, Some(file)));
}

#[test]
fn a_host_without_a_name_is_told_as_that() {
    let machine = Machine::new().user_file(COMPLETE);
    for host in ["", "ann@"] {
        let error = machine.resolve(host).unwrap_err();
        assert_eq!((error.code, error.text.as_str()), (Code::Usage, "the host is empty"), "{host}");
    }
}

#[test]
fn what_only_a_pattern_matches_may_have_been_meant_for_another_entry() {
    let machine = Machine::new().user_file("[host.host123]\nendpoint = \"a\"\n[host.\"*\"]\ncert = \"c\"\nkey = \"k\"");
    assert!(machine.resolve("host123").is_ok());
    let error = machine.resolve("host124").unwrap_err();
    assert_eq!(error.text, "`host124` has no `endpoint`");
    assert!(error.hint().starts_with("did you mean `host123`? otherwise set `endpoint`"), "{}", error.hint());
}

#[test]
fn a_wrong_value_is_named_with_its_source() {
    let mut machine = Machine::new();
    machine.env.endpoint = Some("https://a".into());
    assert!(machine.resolve("h").unwrap_err().text.starts_with("TSTUNNEL_ENDPOINT: `https://a`"));
    let overrides = Overrides { upgrade_base: Some("x".into()), ..Overrides::default() };
    let error = resolve("h", &overrides, &WeakDefaults::default(), &machine.env).unwrap_err();
    assert!(error.text.starts_with("--upgrade-base: `x`"), "{}", error.text);
    machine.env.endpoint = None;
    let error = machine.resolve("tstunnel://h?sni=10.0.0.1").unwrap_err();
    assert!(error.text.starts_with("the URL's `sni`: `10.0.0.1`"), "{}", error.text);
    assert!(machine.resolve("@h").unwrap_err().text.contains("not a user"));
}

#[test]
fn a_broken_file_fails_also_hosts_that_it_does_not_name() {
    let machine = Machine::new().user_file("[host.other]\nendpont = \"a\"");
    assert!(
        machine
            .resolve("tstunnel://h?endpoint=a&cert=c&key=k")
            .unwrap_err()
            .text
            .contains("config.toml:2: unknown key")
    );
    assert!(is_ours("h", &machine.env, &Overrides::default()).is_err());
}

#[test]
fn a_host_is_ours_when_an_entry_an_endpoint_a_pattern_or_a_memory_says_so() {
    let mut machine = Machine::new()
        .user_file("[host.\"dev-*\"]\nendpoint = \"user.example.net\"")
        .system_file("[host.prod]\nendpoint = \"system.example.net\"");
    machine.env.hosts = Some("lab-?  *.lab".into());
    remember("odd host", &Remembered::default(), &machine.env).unwrap();
    machine.env.endpoint = Some("env.example.net:1".into());
    for ours in [
        "dev-7",
        "DEV-8",
        "me@dev-7",
        "prod",
        "lab-1",
        "a.lab",
        "odd host",
        "x.user.example.net",
        "x.system.example.net.",
        "x.ENV.example.net",
        "tstunnel://anything",
    ] {
        assert!(machine.is_ours(ours), "{ours}");
    }
    for other in [
        "github.com",
        "dev",
        "lab-12",
        "env.example.net",
        "xenv.example.net",
        "",
        " ",
        "ä",
        "it's \"odd\"",
        ".env.example.net",
    ] {
        assert!(!machine.is_ours(other), "{other}");
    }
}

#[test]
fn a_host_that_is_not_ours_may_have_been_meant_to_be() {
    let mut machine = Machine::new()
        .user_file("[host.host123]\nendpoint = \"e.example\"\n[host.\"dev-*\"]\n[host.web1]\n")
        .system_file("[host.builder]\n");
    machine.env.hosts = Some("tester prod-?".into());
    let meant = |host: &str| misspelt(host, &machine.env).unwrap();
    for (host, expected) in
        [("hots123", "host123"), ("Hst123", "host123"), ("bulider", "builder"), ("testr", "tester"), ("wbe1", "web1")]
    {
        assert_eq!(meant(host).as_deref(), Some(expected), "{host}");
    }
    // Ours, far off, another of the same series, or near to nothing but a pattern.
    for host in ["host123", "dev-7", "x.e.example", "elsewhere", "web2", "web", "host124", "dv-*", "prod"] {
        assert_eq!(meant(host), None, "{host}");
    }
}

#[test]
fn the_other_variables_alone_make_no_host_ours() {
    let mut machine = Machine::new();
    machine.env.endpoint = Some("a.example.net".into());
    machine.env.cert = Some("c".into());
    machine.env.key = Some("k".into());
    assert!(!machine.is_ours("github.com"));
    assert!(machine.resolve("github.com").is_ok(), "exec and connect are always ours");
}

#[test]
fn a_star_makes_every_host_ours() {
    assert!(Machine::new().user_file(COMPLETE).is_ours("github.com"));
}

#[test]
fn an_alias_that_is_no_host_id_needs_one_configured() {
    let machine = Machine::new().user_file(COMPLETE);
    for alias in ["a b", "it's", "ä", "a_b", "\u{0}"] {
        assert!(machine.is_ours(alias), "{alias:?}");
        let error = machine.resolve(alias).unwrap_err();
        assert_eq!(error.code, Code::Config);
        assert!(error.hint().contains("`host_id`"), "{alias:?}");
    }
    let machine = Machine::new().user_file(&format!("{COMPLETE}host_id = \"dev-7\""));
    assert_eq!(machine.resolve("ä b").unwrap().server_name, "dev-7.a.example.net");
}

#[test]
fn without_home_and_files_the_variables_are_enough() {
    let env = Environment {
        endpoint: Some("a.example.net".into()),
        cert: Some("/c".into()),
        key: Some(PathBuf::from("k")),
        current_dir: "/w".into(),
        ..Environment::default()
    };
    let host = resolve("h", &Overrides::default(), &WeakDefaults::default(), &env).unwrap();
    assert_eq!(host.key, Path::new("/w/k"));
}

proptest! {
    #[test]
    fn no_alias_panics(alias in any::<String>()) {
        let env = Environment { endpoint: Some("ä.example.net".into()), ..Environment::default() };
        let _ = resolve(&alias, &Overrides::default(), &WeakDefaults::default(), &env);
        let env = Environment { endpoint: Some("e.net".into()), hosts: Some(alias.clone()), ..Environment::default() };
        let _ = is_ours(&format!("{alias}.e.net"), &env, &Overrides::default());
        let _ = is_ours(&alias, &env, &Overrides::default());
    }
}

#[test]
fn every_key_and_its_default_stand_in_the_manual_page() {
    let page = include_str!("../../../man/tstunnel.toml.5");
    let tags: Vec<(&str, Option<&str>)> = page
        .lines()
        .filter_map(|line| line.strip_prefix(".It Ic "))
        .map(|tag| tag.split_once(" No = Li ").map_or((tag, None), |(key, default)| (key, Some(default))))
        .collect();
    assert_eq!(tags.iter().map(|(key, _)| *key).collect::<std::collections::BTreeSet<_>>(), file::KEYS.into());
    let text = |text: &str| format!("\\(dq{text}\\(dq");
    let time = |time: Duration| text(&format!("{}s", time.as_secs()));
    for (key, default) in [
        ("upgrade_base", text(DEFAULT_UPGRADE_BASE)),
        ("connect_timeout", time(CONNECT_TIMEOUT)),
        ("answer_timeout", time(ANSWER_TIMEOUT)),
        ("alive_interval", time(ALIVE_INTERVAL)),
        ("alive_count", ALIVE_COUNT.to_string()),
        ("resume", time(RESUME)),
        ("min_tls", text("1.3")),
    ] {
        assert!(tags.contains(&(key, Some(&default))), "{key} = {default}");
    }
    assert_eq!(MinTls::default(), MinTls::V1_3);
}

#[test]
fn each_value_is_told_with_the_source_that_counts() {
    let machine = Machine::new()
        .user_file("[host.\"dev-*\"]\nuser = \"x\"\nconnect_timeout = \"90s\"\n")
        .system_file("[host.\"*\"]\nca = \"ca.crt\"\n");
    let url = "tstunnel://dev-7/p?endpoint=a.example.net&cert=/c.crt&key=/k.key";
    let remembered = Remembered::of(&TunnelUrl::parse(url).unwrap(), &machine.env).unwrap();
    remember("alias", &remembered, &machine.env).unwrap();
    let overrides = Overrides { sni: Some("b.example.net".into()), ..Overrides::default() };
    let (host, stated) = explain("ann@alias", &overrides, &machine.env).unwrap();
    assert_eq!(host, resolve("ann@alias", &overrides, &WeakDefaults::default(), &machine.env).unwrap());
    let said: Vec<_> = stated.iter().map(|said| (said.key, said.value.as_str(), said.from.as_str())).collect();
    let (etc, user) = (machine.folder.path().join("etc"), machine.env.user_file().unwrap());
    let (ca, system) = (etc.join("ca.crt").display().to_string(), etc.join("config.toml").display().to_string());
    assert_eq!(
        said,
        [
            ("endpoint", "a.example.net:443", "`alias`'s `endpoint`"),
            ("host_id", "dev-7", "default"),
            ("cert", "/c.crt", "`alias`'s `cert`"),
            ("key", "/k.key", "`alias`'s `key`"),
            ("ca", ca.as_str(), format!("{system} [host.\"*\"]").as_str()),
            ("upgrade_base", "/tinyscale/v1", "default"),
            ("sni", "b.example.net", "--sni"),
            ("user", "ann", "the `user` before the host"),
            ("connect_timeout", "90s", format!("{} [host.\"dev-*\"]", user.display()).as_str()),
        ]
    );
}

#[test]
fn what_cannot_be_resolved_cannot_be_explained() {
    let machine = Machine::new();
    for host in ["nowhere", "tstunnel://h:1/x"] {
        assert_eq!(explain(host, &Overrides::default(), &machine.env).unwrap_err(), machine.resolve(host).unwrap_err());
    }
}
