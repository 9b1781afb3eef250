use super::*;
use crate::server::policy::terms::{Network, Terms};

const MINIMAL: &str = "cert = \"server.crt\"\nkey = \"server.key\"\nclient_ca = [\"ca.crt\"]\n";

fn dev() -> Account {
    Account { name: "dev".into(), home: "/home/dev".into(), is_root: false }
}

fn parse(text: &str) -> (ServerConfig, Vec<String>) {
    ServerConfig::parse(Path::new("/etc/tstunnel/server.toml"), text, &dev()).unwrap()
}

/// The error for `text` behind the three lines of [`MINIMAL`].
fn refusal(text: &str) -> Error {
    let whole = format!("{MINIMAL}{text}");
    let error = ServerConfig::parse(Path::new("/etc/tstunnel/server.toml"), &whole, &dev()).unwrap_err();
    assert_eq!(error.code, Code::Config);
    error
}

fn refused(text: &str) -> String {
    refusal(text).text
}

#[test]
fn the_whole_example_is_read() {
    let (config, warnings) = parse(
        r#"
        listen = ["0.0.0.0:8443", "[::]:443"]
        cert = "server.crt"
        key = "/run/keys/server.key"
        client_ca = ["clients-ca.crt", "~/other-ca.crt"]
        crl = ["clients.crl"]
        run_dir = "/run/tstunnel/other"
        domain = "Containers.example.net"
        upgrade_base = "/other/v2"
        trust_domains = ["example.org", "a_b-1.c"]

        [host.host123]
        account = "dev"
        home = "/srv/dev"
        commands = ["mutagen", "git status *"]
        targets = ["unix:/var/run/docker.sock", "tcp:127.0.0.1:*"]
        shell = false
        env = ["LC_*", "TZ"]
        wrapper = ["docker", "exec", "-i", "web"]
        trusted_agents = ["mutagen-agents.tar.gz", "/etc/agents"]

        [host."Dev-7.lab"]
        commands = "any"

        [[grant]]
        principal = "spiffe://example.org/users/*"
        hosts = ["host123", "dev-*"]

        [[grant]]
        principal = "ann@example.org"
        hosts = ["*"]
        accounts = ["dev"]
        commands = "mutagen"
        targets = ["tcp:127.0.0.1:80"]
        sources = ["10.0.0.0/8", "::1"]
        expires = 2030-01-31T18:00:00+01:00

        [limits]
        handshake_timeout = "500ms"
        head_timeout = "1s"
        body_idle_timeout = "2m"
        max_handshakes = 1
        handshakes_drop_start = 5
        penalty_failed = "0s"
        penalty_threshold = "1s"
        penalty_max = "1h"
        penalty_exempt = ["192.0.2.0/24", "2001:db8::1"]
        max_requests = 6
        max_sessions = 2
        max_sessions_per_principal = 3
        max_sessions_per_source = 7
        max_held_uploads = 0
        max_upload_bytes = 4
        resume_grace = "1h"
        resume_window_bytes = 65536
        resume_memory_bytes = 0
        "#,
    );
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(config.listen.len(), 2);
    assert_eq!(config.cert, Path::new("/etc/tstunnel/server.crt"));
    assert_eq!(config.key, Path::new("/run/keys/server.key"));
    assert_eq!(
        config.client_ca,
        [PathBuf::from("/etc/tstunnel/clients-ca.crt"), PathBuf::from("/home/dev/other-ca.crt")]
    );
    assert_eq!(config.crl, [PathBuf::from("/etc/tstunnel/clients.crl")]);
    assert_eq!(config.domain.as_deref(), Some("containers.example.net"));
    assert_eq!(config.upgrade_base, "/other/v2");
    let host = &config.hosts[&HostId::parse("host123").unwrap()];
    assert_eq!(host.home.as_deref(), Some(Path::new("/srv/dev")));
    assert_eq!(host.commands, Commands::Listed { mutagen: true, patterns: vec!["git status *".into()] });
    assert_eq!(host.targets.len(), 2);
    assert_eq!(host.env, ["LC_*", "TZ"]);
    assert_eq!(host.wrapper, ["docker", "exec", "-i", "web"]);
    let any = &config.hosts[&HostId::parse("dev-7.lab").unwrap()];
    assert!(any.shell && any.commands == Commands::Any);
    let in_folder = Path::new("/etc/tstunnel/mutagen-agents.tar.gz");
    assert_eq!(host.trusted_agents, [in_folder, Path::new("/etc/agents")]);
    assert_eq!(config.trust_domains, Some(vec!["example.org".into(), "a_b-1.c".into()]));
    assert_eq!(config.grants.len(), 2);
    assert_eq!(config.grants[0].terms, Terms::default());
    let terms = &config.grants[1].terms;
    assert_eq!(terms.accounts, Some(vec!["dev".into()]));
    assert_eq!(terms.commands, Some(Commands::Listed { mutagen: true, patterns: vec![] }));
    assert_eq!(terms.targets.as_ref().map(Vec::len), Some(1));
    assert_eq!(terms.sources.as_ref().map(Vec::len), Some(2));
    assert_eq!(terms.expires.map(|expires| expires.to_string()).as_deref(), Some("2030-01-31T17:00:00Z"));
    assert_eq!(config.limits.handshake_timeout, Duration::from_millis(500));
    assert_eq!(config.limits.resume_grace, Duration::from_secs(3600));
    assert_eq!(config.limits.max_upload_bytes.get(), 4);
    assert_eq!(config.limits.resume_memory_bytes, 0);
    assert_eq!(config.limits.handshakes_drop_start.get(), 5);
    assert_eq!(config.limits.penalty_failed, Duration::ZERO);
    assert_eq!(
        config.limits.penalty_exempt,
        ["192.0.2.0/24", "2001:db8::1"].map(|text| Network::try_from(text.to_owned()).unwrap())
    );
    assert_eq!((config.limits.max_requests.get(), config.limits.max_sessions_per_source.get()), (6, 7));
    assert_eq!(config.limits.max_held_uploads, 0);
}

#[test]
fn what_is_left_out_has_its_default() {
    let (config, _) = parse(&format!("{MINIMAL}[host.a]"));
    assert_eq!(config.listen, ["0.0.0.0:8443".parse().unwrap()]);
    assert_eq!((config.upgrade_base.as_str(), config.domain, config.allow_cn), ("/tinyscale/v1", None, false));
    assert_eq!(config.limits, Limits::default());
    let host = &config.hosts[&HostId::parse("a").unwrap()];
    assert_eq!((host.account.as_str(), host.home.as_deref()), ("dev", Some(Path::new("/home/dev"))));
    assert_eq!(host.commands, Commands::Listed { mutagen: true, patterns: vec![] });
    assert_eq!(host.env, ["LC_*", "LANG"]);
    assert!(!host.shell && host.targets.is_empty() && host.wrapper.is_empty() && host.agent_digests.is_empty());
    assert_eq!(Limits::default().resume_window_bytes.get(), 256 << 20);
    assert_eq!(
        Limits::default().penalty_exempt,
        ["127.0.0.0/8", "::1"].map(|text| Network::try_from(text.to_owned()).unwrap())
    );
    let (config, _) = parse(&format!("{MINIMAL}[limits]\nmax_handshakes = 10"));
    assert_eq!(config.limits.handshakes_drop_start.get(), 5);
}

#[test]
fn a_shell_is_the_default_only_where_everything_is_allowed() {
    for (commands, shell) in [("\"any\"", true), ("\"mutagen\"", false), ("[\"*\"]", false), ("[]", false)] {
        let (config, _) = parse(&format!("{MINIMAL}[host.a]\ncommands = {commands}"));
        assert_eq!(config.hosts[&HostId::parse("a").unwrap()].shell, shell, "{commands}");
    }
    let (config, _) = parse(&format!("{MINIMAL}[host.a]\ncommands = \"any\"\nshell = false"));
    assert!(!config.hosts[&HostId::parse("a").unwrap()].shell);
}

#[test]
fn a_bad_value_is_refused_with_its_line() {
    for (text, line, fragment) in [
        ("unknown = 1", 4, "unknown field `unknown`"),
        ("listen = \"0.0.0.0:1\"", 4, "invalid type"),
        ("listen = [\"localhost:1\"]", 4, "`listen`: `localhost:1` is not an address with a port"),
        ("listen = [\"127.0.0.1\"]", 4, "`listen`: `127.0.0.1` is not an address with a port"),
        ("crl = 1", 4, "invalid type"),
        ("domain = \"a b\"", 4, "not a DNS name"),
        ("domain = \"example.net.\"", 4, "not a DNS name"),
        ("upgrade_base = \"tinyscale\"", 4, "path prefix"),
        ("upgrade_base = \"/a/\"", 4, "path prefix"),
        ("upgrade_base = \"/a//b\"", 4, "path prefix"),
        ("upgrade_base = \"/../b\"", 4, "path prefix"),
        ("upgrade_base = \"/a?b\"", 4, "path prefix"),
        ("upgrade_base = \"/a%2fb\"", 4, "path prefix"),
        ("upgrade_base = \"\"", 4, "path prefix"),
        ("allow_cn = \"yes\"", 4, "invalid type"),
        ("crl = [\"\"]", 4, "empty"),
        ("\n[host.\"dev-*\"]", 5, "exact id"),
        ("[host.\"a b\"]", 4, "not a host id"),
        ("[host.a]\n[host.A]", 4, "twice"),
        ("[host.a]\naccount = \"root\"", 5, "its own account only"),
        ("[host.a]\naccount = \"\"", 5, "empty"),
        ("[host.a]\nhome = 1", 5, "invalid type"),
        ("[host.a]\nhome = \"dev\"", 5, "absolute"),
        ("[host.a]\nhome = \"\"", 5, "absolute"),
        ("[host.a]\ncommand = \"any\"", 5, "unknown field `command`"),
        ("[host.a]\ncommands = \"all\"", 5, "\"mutagen\", \"any\" or a list"),
        ("[host.a]\ncommands = true", 5, "\"mutagen\", \"any\" or a list"),
        ("[host.a]\ncommands = [\"ls\", \"any\"]", 5, "stands alone"),
        ("[host.a]\ncommands = [\"\"]", 5, "no pattern"),
        ("[host.a]\ncommands = [\"a  b\"]", 5, "no pattern"),
        ("[host.a]\ncommands = [\"a\\tb\"]", 5, "no pattern"),
        ("[host.a]\ncommands = [1]", 5, "invalid type"),
        ("[host.a]\n\ntargets = [\"docker.sock\"]", 6, "no target"),
        ("[host.a]\ntargets = [\"tcp:*:0\"]", 5, "no target"),
        ("[host.a]\nshell = 1", 5, "invalid type"),
        ("[host.a]\nenv = [\"A-B\"]", 5, "no pattern"),
        ("[host.a]\nenv = [\"\"]", 5, "no pattern"),
        ("[host.a]\nwrapper = [\"\"]", 5, "empty"),
        ("[host.a]\nwrapper = \"docker exec\"", 5, "invalid type"),
        ("[host.a]\nagent_digests = [\"abc\"]", 5, "SHA-256"),
        ("[[grant]]\nprincipal = \"*\"", 4, "missing field `hosts`"),
        ("[[grant]]\nhosts = [\"*\"]", 4, "missing field `principal`"),
        ("[[grant]]\nprincipal = \"spiffe://*/a\"\nhosts = []", 5, "trust domain"),
        ("[[grant]]\nprincipal = \"*\"\nhosts = [\"a b\"]", 6, "neither a host id nor a pattern"),
        ("[[grant]]\nprincipal = \"*\"\nhosts = \"*\"", 6, "invalid type"),
        ("[[grant]]\nprincipal = \"*\"\nhosts = []\nuser = 1", 7, "unknown field `user`"),
        ("[[grant]]\nprincipal = \"*\"\nhosts = []\naccounts = [\"dev\",\n\"root\"]", 8, "its own account only"),
        ("[[grant]]\nprincipal = \"*\"\nhosts = []\naccounts = [\"\"]", 7, "empty"),
        ("[[grant]]\nprincipal = \"*\"\nhosts = []\naccounts = \"dev\"", 7, "invalid type"),
        ("[[grant]]\nprincipal = \"*\"\nhosts = []\ncommands = \"all\"", 7, "\"mutagen\", \"any\" or a list"),
        ("[[grant]]\nprincipal = \"*\"\nhosts = []\ncommands = [\"any\", \"ls\"]", 7, "stands alone"),
        ("[[grant]]\nprincipal = \"*\"\nhosts = []\ntargets = [\"tcp:*\"]", 7, "no target"),
        ("[[grant]]\nprincipal = \"*\"\nhosts = []\nsources = [\"10.0.0.1/8\"]", 7, "bits behind its prefix"),
        ("[[grant]]\nprincipal = \"*\"\nhosts = []\nsources = [\"example.org\"]", 7, "no address and no network"),
        ("[[grant]]\nprincipal = \"*\"\nhosts = []\nsources = \"::1\"", 7, "invalid type"),
        ("[[grant]]\nprincipal = \"*\"\nhosts = []\nexpires = 2030-01-31", 7, "with an offset"),
        ("[[grant]]\nprincipal = \"*\"\nhosts = []\nexpires = \"2030-01-31T00:00:00\"", 7, "with an offset"),
        ("[[grant]]\nprincipal = \"*\"\nhosts = []\nexpires = \"soon\"", 7, "with an offset"),
        ("[[grant]]\nprincipal = \"*\"\nhosts = []\nexpires = 1", 7, "with an offset"),
        ("trust_domains = [\"Example.org\"]", 4, "not a trust domain"),
        ("trust_domains = [\"example.org/users\"]", 4, "not a trust domain"),
        ("trust_domains = [\"spiffe://example.org\"]", 4, "not a trust domain"),
        ("trust_domains = [\"*\"]", 4, "not a trust domain"),
        ("trust_domains = [\"\"]", 4, "not a trust domain"),
        ("trust_domains = \"example.org\"", 4, "invalid type"),
        ("[host.a]\ntrusted_agents = []", 5, "names no file"),
        ("[host.a]\ntrusted_agents = [\"\"]", 5, "empty"),
        ("[host.a]\ntrusted_agents = \"agents\"", 5, "invalid type"),
        ("[limits]\nhandshake_timeout = 10", 5, "invalid type"),
        ("[limits]\nhandshake_timeout = \"10\"", 5, "not a duration"),
        ("[limits]\nhead_timeout = \"0s\"", 5, "zero"),
        ("[limits]\nmax_sessions = 0", 5, "`max_sessions`: invalid value: integer `0`"),
        (
            "[limits]\nmax_sessions = \"many\"",
            5,
            "`max_sessions`: invalid type: string \"many\", expected a whole number",
        ),
        ("[limits]\nmax_handshakes = -1", 5, "invalid value"),
        ("[limits]\nmax_upload_bytes = \"1G\"", 5, "invalid type"),
        ("[limits]\nresume_window_bytes = 1", 5, "at least 65536"),
        ("[limits]\npenalty_exempt = [\"localhost\"]", 5, "no address and no network"),
        ("[limits]\npenalty_exempt = [\"10.0.0.1/8\"]", 5, "behind its prefix"),
        ("[limits]\npenalty_exempt = \"::1\"", 5, "invalid type"),
        ("[limits]\nhandshakes_drop_start = 0", 5, "invalid value"),
        ("[limits]\nmax = 1", 5, "unknown field `max`"),
    ] {
        let error = refused(text);
        assert!(error.starts_with(&format!("/etc/tstunnel/server.toml:{line}: ")), "{text:?} -> {error}");
        assert!(error.contains(fragment), "{text:?} -> {error}");
    }
}

#[test]
fn targets_that_are_meant_to_be_all_are_told_how_to_write_them() {
    for targets in ["*", "any", "all", "tcp:*", "unix:*"] {
        for table in ["[host.a]", "[[grant]]\nprincipal = \"*\"\nhosts = []"] {
            let error = refusal(&format!("{table}\ntargets = [\"{targets}\"]"));
            assert!(error.text.contains(&format!("`targets`: `{targets}` is no target: ")), "{error:?}");
            assert!(!error.text.contains("write"), "{error:?}");
            assert_eq!(error.hint(), "write `tcp:*:*` for every host and port, `unix:/*` for every socket");
        }
    }
}

#[test]
fn a_slip_of_the_pen_is_told_what_to_write() {
    for (text, line, hint) in [
        ("clientca = [\"ca.crt\"]", 4, "did you mean `client_ca`?"),
        ("[hosts.a]", 4, "did you mean `host`?"),
        ("[host.a]\ncommand = \"any\"", 5, "did you mean `commands`?"),
        ("[[grant]]\nprincipal = \"*\"\nhost = [\"a\"]", 6, "did you mean `hosts`?"),
        ("[[grant]]\nprincipal = \"*\"\nhosts = \"host123\"", 6, "write a list: [\"host123\"]"),
        ("listen = \"0.0.0.0:1\"", 4, "write a list: [\"0.0.0.0:1\"]"),
        ("[host.a]\nwrapper = \"docker exec -i a\"", 5, "write a list: [\"docker\", \"exec\", \"-i\", \"a\"]"),
        ("[authorize]\ncommand = '/bin/ask me'", 5, "write a list: [\"/bin/ask\", \"me\"]"),
        ("[grant]\nprincipal = \"*\"\nhosts = [\"a\"]", 4, "write `[[grant]]`"),
        ("[[grant]]\nprincipal = \"*\"\nhosts = []\n[grant]\nprincipal = \"*\"", 7, "write `[[grant]]` each time"),
        ("[grant]\nprincipal = \"*\"\nhosts = []\n[grant]\nprincipal = \"*\"", 7, "write `[[grant]]` each time"),
    ] {
        let error = refusal(text);
        assert!(error.text.starts_with(&format!("/etc/tstunnel/server.toml:{line}: ")), "{text:?} -> {error}");
        assert_eq!(error.hint(), hint, "{text:?} -> {error}");
    }
    let text = MINIMAL.replace("[\"ca.crt\"]", "\"ca.crt\"");
    let error = ServerConfig::parse(Path::new("s.toml"), &text, &dev()).unwrap_err();
    assert_eq!(error.hint(), "write a list: [\"ca.crt\"]");
}

#[test]
fn a_missing_key_is_refused() {
    for missing in ["cert", "key", "client_ca"] {
        let text: String =
            MINIMAL.lines().filter(|line| !line.starts_with(&format!("{missing} "))).collect::<Vec<_>>().join("\n");
        let error = ServerConfig::parse(Path::new("s.toml"), &text, &dev()).unwrap_err();
        assert!(error.text.contains(&format!("missing field `{missing}`")), "{error}");
    }
}

#[test]
fn a_server_without_client_authorities_is_refused() {
    let text = MINIMAL.replace("[\"ca.crt\"]", "[]");
    let error = ServerConfig::parse(Path::new("s.toml"), &text, &dev()).unwrap_err();
    assert!(error.text.starts_with("s.toml:3: "), "{error}");
}

#[test]
fn another_account_is_refused_with_a_hint() {
    let text = format!("{MINIMAL}[host.a]\naccount = \"root\"");
    let error = ServerConfig::parse(Path::new("s.toml"), &text, &dev()).unwrap_err();
    assert!(error.hint().contains("run the server as `root`"), "{error:?}");
}

#[test]
fn root_may_serve_any_account_from_its_own_home() {
    let root = Account { name: "root".into(), home: "/root".into(), is_root: true };
    let text = format!("{MINIMAL}[host.a]\naccount = \"ann\"\n[host.b]\naccount = \"ann\"\nhome = \"/srv\"\n[host.c]");
    let hosts = ServerConfig::parse(Path::new("s.toml"), &text, &root).unwrap().0.hosts;
    let of = |name: &str| {
        let host = &hosts[&HostId::parse(name).unwrap()];
        (host.account.as_str(), host.home.as_deref().and_then(Path::to_str))
    };
    assert_eq!(of("a"), ("ann", None));
    assert_eq!(of("b"), ("ann", Some("/srv")));
    assert_eq!(of("c"), ("root", Some("/root")));
}

#[test]
fn the_authorize_command_runs_as_nobody_who_is_root() {
    let root = Account { name: "root".into(), home: "/root".into(), is_root: true };
    let read = |table: &str, account: &Account| {
        let text = format!("{MINIMAL}[host.\"a.b\"]\naccount = \"{}\"\n[authorize]\n{table}", account.name);
        ServerConfig::parse(Path::new("s.toml"), &text, account).map(|(config, warnings)| {
            assert_eq!(warnings, Vec::<String>::new());
            config.authorize.unwrap()
        })
    };
    let command = "command = [\"/usr/lib/authorize\", \"--json\", \"a b\"]";
    let expected = AuthorizeConfig {
        program: "/usr/lib/authorize".into(),
        arguments: vec!["--json".into(), "a b".into()],
        account: Some("nobody".into()),
        timeout: Duration::from_secs(2),
    };
    let whole = format!("{command}\naccount = \"nobody\"\ntimeout = \"2s\"");
    assert_eq!(read(&whole, &root).unwrap(), expected);
    let own = AuthorizeConfig { account: None, timeout: Duration::from_secs(5), ..expected };
    assert_eq!(read(command, &dev()).unwrap(), own);
    assert_eq!(read(&format!("{command}\naccount = \"dev\""), &dev()).unwrap(), own);
    for (table, account, line, fragment) in [
        (command.to_owned(), &root, 6, "needs an `account`"),
        (format!("{command}\naccount = \"root\""), &root, 8, "must not run as root"),
        (whole, &dev(), 8, "its own account only"),
        ("command = []".to_owned(), &dev(), 7, "absolute"),
        ("command = [\"authorize\"]".to_owned(), &dev(), 7, "absolute"),
        ("command = [\"\"]".to_owned(), &dev(), 7, "empty"),
        ("command = \"/usr/lib/authorize\"".to_owned(), &dev(), 7, "invalid type"),
        ("timeout = \"1s\"".to_owned(), &dev(), 6, "missing field `command`"),
        (format!("{command}\ntimeout = \"0s\""), &dev(), 8, "zero"),
        (format!("{command}\ncache = \"1s\""), &dev(), 8, "unknown field `cache`"),
    ] {
        let error = read(&table, account).unwrap_err();
        assert!(error.text.starts_with(&format!("s.toml:{line}: ")), "{table} -> {error}");
        assert!(error.text.contains(fragment), "{table} -> {error}");
    }
}

#[test]
fn a_host_that_is_roots_by_default_is_warned_of() {
    let root = Account { name: "root".into(), home: "/root".into(), is_root: true };
    let grant = "[[grant]]\nprincipal = \"*\"\nhosts = [\"*\"]\naccounts = [\"ann\", \"root\"]";
    let warnings = |host: &str, account: &Account| {
        let text = format!("domain = \"example.net\"\n{MINIMAL}{host}\n{grant}");
        ServerConfig::parse(Path::new("s.toml"), &text, account).unwrap().1
    };
    assert_eq!(warnings("[host.a]", &root), ["host `a` has no `account`, so it is `root`'s: everything there is"]);
    assert!(warnings("[host.a]\naccount = \"root\"", &root).is_empty());
    assert!(warnings("[host.a]\naccount = \"ann\"", &root).is_empty());
}

#[test]
fn a_root_upgrade_base_is_no_prefix() {
    assert_eq!(parse(&format!("{MINIMAL}upgrade_base = \"/\"")).0.upgrade_base, "");
}

#[test]
fn what_is_hardly_meant_is_warned_of() {
    let (_, warnings) = parse(MINIMAL);
    assert!(warnings.iter().any(|w| w.contains("nobody is let in")), "{warnings:?}");
    assert!(warnings.iter().any(|w| w.contains("nothing to reach")), "{warnings:?}");
    let domain = "domain = \"example.net\"\n";
    let (_, warnings) = parse(&format!("{domain}{MINIMAL}[host.a]\n[[grant]]\nprincipal = \"*\"\nhosts = [\"b-*\"]"));
    assert_eq!(warnings, ["grant 1 for `*` covers none of the hosts"]);
    let grant = "[[grant]]\nprincipal = \"spiffe://example.com/*\"\nhosts = [\"a\"]";
    let (_, warnings) = parse(&format!("trust_domains = [\"example.org\"]\n{domain}{MINIMAL}[host.a]\n{grant}"));
    assert_eq!(warnings, ["grant 1 for `spiffe://example.com/*` is of none of the `trust_domains`"]);
}

#[test]
fn bare_names_without_a_domain_are_warned_of() {
    let warnings = |text: &str| {
        let (_, warnings) = parse(&format!("{text}\n[[grant]]\nprincipal = \"*\"\nhosts = [\"*\"]"));
        warnings
    };
    let of = |host: &str| {
        format!(
            "the configuration has no `domain`: clients have to ask for a host by its bare name, as with sni = \"{host}\""
        )
    };
    assert_eq!(warnings(&format!("{MINIMAL}[host.host123]\n[host.host456]")), [of("host123")]);
    assert_eq!(warnings(&format!("{MINIMAL}[host.\"a.example.net\"]\n[host.b]")), [of("b")]);
    assert!(warnings(&format!("{MINIMAL}[host.\"a.example.net\"]")).is_empty());
    assert!(warnings(&format!("domain = \"example.net\"\n{MINIMAL}[host.host123]")).is_empty());
}

#[test]
fn the_audit_log_goes_to_stderr_unless_told_otherwise() {
    let audit = |text: &str| {
        let (config, _) = parse(&format!("{MINIMAL}{text}"));
        (config.audit, config.audit_required)
    };
    assert_eq!(audit(""), (Destination::Stderr, false));
    let file = Destination::File("/var/log/audit.log".into());
    assert_eq!(audit("audit = \"/var/log/audit.log\"\naudit_required = true"), (file, true));
    assert_eq!(audit("audit = \"off\"\naudit_required = false"), (Destination::Off, false));
    assert!(refused("audit = \"audit.log\"").contains("server.toml:4: `audit`: `audit.log` is neither"));
    assert!(refused("audit = \"off\"\naudit_required = true").contains("server.toml:5: `audit_required` needs"));
}

#[test]
fn the_monitor_is_off_unless_it_is_asked_for_and_warned_of_where_others_reach_it() {
    let monitor = |text: &str| {
        let (config, warnings) = parse(&format!("{MINIMAL}{text}"));
        (config.monitor, warnings.iter().filter(|warning| warning.contains("[monitor]")).count())
    };
    let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
    assert_eq!(monitor(""), (vec![], 0));
    let loopback = ["127.0.0.1:9464", "[::1]:9464"];
    assert_eq!(monitor("[monitor]\nlisten = [\"127.0.0.1:9464\", \"[::1]:9464\"]"), (addresses(&loopback), 0));
    assert_eq!(monitor("[monitor]\nlisten = [\"0.0.0.0:9464\"]"), (addresses(&["0.0.0.0:9464"]), 1));
    assert!(refused("[monitor]").contains("missing field `listen`"));
    assert!(refused("[monitor]\nlisten = [\"localhost\"]").contains("server.toml:5: "));
    assert!(refused("[monitor]\nlisten = []\nmetrics = true").contains("unknown field `metrics`"));
}

#[test]
fn a_missing_file_is_refused() {
    let error = ServerConfig::load(Path::new("/nowhere/server.toml"), &dev()).unwrap_err();
    assert!(error.code == Code::Config && error.text.contains("/nowhere/server.toml"), "{error}");
}

const PASSWD: &str =
    "root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/toor:/bin/sh\ndev:x:1000:1000:,,,:/home/dev:/bin/sh\nbroken\n";

fn account(uid: u32, said: Option<&str>, home: Option<&str>) -> Result<Account> {
    Account::find(PASSWD, uid, said.map(Into::into), home.map(Into::into))
}

#[test]
fn the_account_is_the_one_with_this_number() {
    let named = |name: &str, home: &str| Account {
        name: name.into(),
        home: home.into(),
        is_root: matches!(name, "root" | "toor"),
    };
    assert_eq!(account(1000, None, None).unwrap(), named("dev", "/home/dev"));
    assert_eq!(account(1000, Some("root"), Some("/h")).unwrap(), named("dev", "/h"));
    assert_eq!(account(0, Some("toor"), None).unwrap(), named("toor", "/toor"));
    assert_eq!(account(0, None, None).unwrap(), named("root", "/root"));
    assert_eq!(account(5000, Some("ldap-user"), Some("/h")).unwrap(), named("ldap-user", "/h"));
    assert_eq!(account(5000, Some("dev"), Some("/h")).unwrap(), named("5000", "/h"));
    assert_eq!(account(5000, None, Some("/h")).unwrap(), named("5000", "/h"));
}

#[test]
fn an_account_without_a_home_is_refused() {
    assert_eq!(account(5000, None, None).unwrap_err().code, Code::Config);
    assert_eq!(account(1000, None, Some("relative")).unwrap_err().code, Code::Config);
    assert!(Account::of_process().is_ok());
}

/// The keys of the tables in the parser's own source: a field of one of them is a line `name: Type,`.
fn keys() -> Vec<String> {
    let sources = [include_str!("file.rs"), include_str!("grants.rs"), include_str!("authorize.rs")];
    let tables = sources.iter().flat_map(|source| source.split("#[serde(deny_unknown_fields)]").skip(1));
    let bodies = tables.filter_map(|table| table.split_once("{\n")?.1.split_once("\n}"));
    bodies
        .flat_map(|(body, _)| body.lines())
        .filter_map(|line| line.trim().split_once(": "))
        .map(|(name, _)| name.to_owned())
        .collect()
}

#[test]
fn every_key_stands_in_the_manual_page() {
    let page = include_str!("../../../man/tstunnel-server.toml.5");
    let named: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix(".It Ic "))
        .flat_map(|line| line.split(" No ").next().unwrap().split(" , "))
        .map(|name| name.trim_start_matches("Ic "))
        .collect();
    let keys = keys();
    assert!(keys.len() > 40, "{keys:?}");
    for key in keys.iter().filter(|key| !["host", "grant", "limits", "monitor", "authorize"].contains(&key.as_str())) {
        assert!(named.contains(&key.as_str()), "`{key}` is not documented");
    }
    for name in named {
        assert!(keys.iter().any(|key| key == name), "`{name}` is documented and no key");
    }
}

#[test]
fn every_default_is_the_one_of_the_manual_page() {
    let page = include_str!("../../../man/tstunnel-server.toml.5").replace("\\(dq", "\"");
    let defaults_of = |title: &str| -> String {
        let section = page.split(".Ss ").find_map(|section| section.strip_prefix(title)).unwrap();
        let tags = section.lines().filter_map(|line| line.strip_prefix(".It Ic ")?.split_once(" No = Li "));
        tags.map(|(key, value)| format!("{key} = {value}\n")).collect()
    };
    let authorize = "[authorize]\ncommand = [\"/bin/true\"]\n";
    let (written, _) = parse(&format!(
        "{MINIMAL}{}[host.a]\n{}{authorize}{}[limits]\n{}",
        defaults_of("Top level"),
        defaults_of("Hosts"),
        defaults_of("Authorize"),
        defaults_of("Limits"),
    ));
    let (left_out, _) = parse(&format!("{MINIMAL}[host.a]\n{authorize}"));
    assert_eq!(written, left_out);
    assert!(defaults_of("Limits").lines().count() > 20);
}
