//! What a policy allows, and what it hides.

mod grants;

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::server::config::{Account, Commands};

const ANN: &str = "spiffe://example.org/users/ann";
const AGENT: &str = ".mutagen/agents/0.18.1/mutagen-agent synchronizer --log-level=info";
const UPLOAD: &str = ".mutagen-agent0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";

const HOST: Request = Request::Host { user: None };

const EXAMPLE: &str = r#"
    [host.host123]
    targets = ["tcp:127.0.0.1:*", "unix:/var/run/docker.sock"]
    wrapper = ["docker", "exec", "-i", "web"]
    [host.open]
    commands = "any"
    [host.listed]
    commands = ["git *"]
    targets = ["tcp:*.internal:80"]
    [host.both]
    commands = ["mutagen", "git *"]
    agent_digests = ["AB00000000000000000000000000000000000000000000000000000000000000"]
    [host.secret]
    [host.other]

    [[grant]]
    principal = "spiffe://example.org/users/*"
    hosts = ["host123", "open", "listed", "both"]
    [[grant]]
    principal = "spiffe://example.org/users/bob"
    hosts = ["other"]
    accounts = ["root", "nobody"]
    [[grant]]
    principal = "ann@example.org"
    hosts = ["o*"]
    accounts = ["dev"]
"#;

fn policy(text: &str) -> Policy {
    let whole = format!("cert = \"c\"\nkey = \"k\"\nclient_ca = [\"a\"]\ndomain = \"example.net\"\n{text}");
    // Whoever may become other accounts, and yet has a name that tells its own from theirs.
    let account = Account { name: "dev".into(), home: "/home/dev".into(), is_root: true };
    Policy::new(&ServerConfig::parse(Path::new("server.toml"), &whole, &account).unwrap().0)
}

fn asker(principal: &str) -> Asker {
    let (source, now) = ([127, 0, 0, 1].into(), SystemTime::UNIX_EPOCH);
    Asker { principal: Principal(principal.into()), source, now, authorized: None }
}

/// A host as an empty `[host.NAME]` makes it.
pub(super) fn host_config() -> HostConfig {
    HostConfig {
        account: "dev".into(),
        home: Some(PathBuf::from("/home/dev")),
        commands: Commands::Listed { mutagen: true, patterns: vec![] },
        targets: vec![],
        shell: false,
        env: vec!["LC_*".into(), "LANG".into()],
        wrapper: vec![],
        pool: 0,
        agent_digests: vec![],
        trusted_agents: vec![],
    }
}

fn run(text: &str) -> Request {
    Request::Command { line: CommandLine::Line(text.into()), env: BTreeMap::new(), user: None }
}
fn upload(name: &str) -> Request {
    Request::Copy { filename: name.into(), user: None }
}
fn to(target: Option<&str>) -> Request {
    Request::Stream { target: target.map(Into::into), user: None }
}

fn decide(principal: &str, server_name: &str, request: &Request) -> Result<Permit> {
    policy(EXAMPLE).decide(&asker(principal), server_name, request)
}
fn code(host: &str, request: &Request) -> Code {
    decide(ANN, &format!("{host}.example.net"), request).unwrap_err().code
}

#[test]
fn a_permit_carries_all_that_its_use_needs() {
    let permit = decide(ANN, "host123.example.net", &run(AGENT)).unwrap();
    assert_eq!(permit.host().as_str(), "host123");
    assert_eq!(permit.principal().0, ANN);
    assert_eq!((permit.account(), permit.home_override()), ("dev", Some(Path::new("/home/dev"))));
    assert_eq!(permit.wrapper(), ["docker", "exec", "-i", "web"]);
    assert_eq!(permit.rule(), "grant 1 `spiffe://example.org/users/*` on `host123`; command `mutagen`");
    let words = AGENT.split(' ').map(str::to_owned).collect();
    let invocation = Invocation::Argv(words);
    assert_eq!(*permit.action(), Action::Command { invocation, env: vec![], confined_agent: true, digests: vec![] });
}

#[test]
fn an_empty_policy_denies_everyone() {
    for text in [
        "",
        "[host.a]",
        "[[grant]]\nprincipal = \"*\"\nhosts = [\"*\"]",
        "[host.a]\n[[grant]]\nprincipal = \"*\"\nhosts = []",
    ] {
        for request in [run(AGENT), run("uname -s -m"), upload(UPLOAD), to(None), to(Some("tcp:localhost:1")), HOST] {
            let error = policy(text).decide(&asker(ANN), "a.example.net", &request).unwrap_err();
            assert_eq!(error.code, Code::HostUnknown);
        }
    }
}

#[test]
fn a_host_that_is_not_granted_looks_like_one_that_does_not_exist() {
    for request in [run(AGENT), run("id\0"), upload(".."), to(Some("")), HOST] {
        let hidden = decide(ANN, "secret.example.net", &request).unwrap_err();
        let missing = decide(ANN, "absent.example.net", &request).unwrap_err();
        assert_eq!(hidden.code, Code::HostUnknown);
        assert_eq!(hidden.text.replace("secret", "absent"), missing.text);
        assert_eq!((hidden.code, hidden.hint()), (missing.code, missing.hint()));
    }
}

#[test]
fn a_hidden_hosts_account_is_not_revealed() {
    let request = Request::Copy { filename: "x".into(), user: Some("dev".into()) };
    assert_eq!(code("secret", &request), Code::HostUnknown);
}

#[test]
fn only_the_granted_principal_gets_in() {
    for stranger in
        ["", "*", "spiffe://example.org/users", "spiffe://example.com/users/ann", "ann@example.com", "ann", "host123"]
    {
        let error = decide(stranger, "host123.example.net", &HOST).unwrap_err();
        assert_eq!(error.code, Code::HostUnknown, "{stranger}");
    }
    assert!(decide("ann@example.org", "open.example.net", &HOST).is_ok());
    assert!(decide("ann@example.org", "host123.example.net", &HOST).is_err());
}

#[test]
fn another_account_is_unauthorized() {
    let asks = |user: &str| Request::Command {
        line: CommandLine::Line(AGENT.into()),
        env: BTreeMap::new(),
        user: Some(user.into()),
    };
    assert!(decide(ANN, "host123.example.net", &asks("dev")).is_ok());
    for user in ["root", "", "Dev", "dev\0", "dev "] {
        assert_eq!(code("host123", &asks(user)), Code::Unauthorized, "{user:?}");
    }
    assert_eq!(
        code("host123", &Request::Copy { filename: UPLOAD.into(), user: Some("root".into()) }),
        Code::Unauthorized
    );
    assert_eq!(code("host123", &Request::Stream { target: None, user: Some("root".into()) }), Code::Unauthorized);
}

#[test]
fn a_grant_for_other_accounts_is_none() {
    let error = decide("spiffe://example.org/users/bob", "other.example.net", &HOST).unwrap_err();
    assert_eq!(error.code, Code::Unauthorized);
    let permit = decide("ann@example.org", "other.example.net", &HOST).unwrap();
    assert_eq!(permit.rule(), "grant 3 `ann@example.org` on `o*`");
}

#[test]
fn commands_outside_the_list_are_denied() {
    for denied in ["id", "sh -c id", "git status", "uname -a", "cmd.exe /c set"] {
        assert_eq!(code("host123", &run(denied)), Code::CommandDenied, "{denied}");
    }
    assert_eq!(code("listed", &run(AGENT)), Code::CommandDenied);
    assert_eq!(code("both", &run("id")), Code::CommandDenied);
    assert!(decide(ANN, "both.example.net", &run(AGENT)).is_ok());
    assert!(decide(ANN, "both.example.net", &run("git status")).is_ok());
}

#[test]
fn everything_goes_where_somebody_wrote_any() {
    let permit = decide(ANN, "open.example.net", &run("cd x && make")).unwrap();
    let invocation = Invocation::Shell("cd x && make".into());
    assert_eq!(*permit.action(), Action::Command { invocation, env: vec![], confined_agent: false, digests: vec![] });
    assert!(decide(ANN, "open.example.net", &upload("notes.txt")).is_ok());
    assert_eq!(code("open", &run("")), Code::BadRequest);
}

#[test]
fn environment_variables_are_filtered_and_a_nul_is_refused() {
    let asks = |entries: &[(&str, &str)]| Request::Command {
        line: CommandLine::Line(AGENT.into()),
        env: entries.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        user: None,
    };
    let request =
        asks(&[("LC_ALL", "C"), ("LD_PRELOAD", "x"), ("MUTAGEN_DATA_DIRECTORY", "x"), ("TZ", "UTC"), ("LANG", "")]);
    let permit = decide(ANN, "host123.example.net", &request).unwrap();
    let Action::Command { env, .. } = permit.action() else { panic!() };
    assert_eq!(*env, [("LANG".to_owned(), String::new()), ("LC_ALL".to_owned(), "C".to_owned())]);
    for entry in [("LC_ALL", "C\0"), ("A\0", "x"), ("IGNORED", "\0")] {
        assert_eq!(code("host123", &asks(&[entry])), Code::BadRequest);
    }
}

#[test]
fn both_ways_to_ask_for_environment_variables_are_merged() {
    let request = Request::from(CommandRequest {
        command: "a".into(),
        env: BTreeMap::from([("X".into(), "new".into())]),
        envs: vec!["X=old".into(), "Y=a=b".into(), "Y=last=".into(), "none".into()],
        ..CommandRequest::default()
    });
    let Request::Command { line, env, user } = request else { panic!() };
    assert_eq!((line, user), (CommandLine::Line("a".into()), None));
    assert_eq!(env, BTreeMap::from([("X".into(), "new".into()), ("Y".into(), "last=".into())]));
    let request =
        Request::from(CommandRequest { command: "a b".into(), args: Some(vec![]), ..CommandRequest::default() });
    assert!(matches!(request, Request::Command { line: CommandLine::Words(..), .. }));
}

#[test]
fn only_mutagens_agents_may_be_uploaded_by_default() {
    for host in ["host123", "both"] {
        let permit = decide(ANN, &format!("{host}.example.net"), &upload(UPLOAD)).unwrap();
        let Action::Copy { filename, digests } = permit.action() else { panic!() };
        assert_eq!(filename, UPLOAD);
        assert_eq!(digests.len(), usize::from(host == "both"));
        for name in [".bashrc", ".mutagen-agent", "mutagen-agent", ".mutagen-agent-x", ".mutagen", "x"] {
            assert_eq!(code(host, &upload(name)), Code::CommandDenied, "{name}");
        }
    }
    assert_eq!(code("listed", &upload(UPLOAD)), Code::CommandDenied);
}

#[test]
fn a_malformed_file_name_is_a_bad_request() {
    for name in ["", ".", "..", "/", "a/b", "../a", "a/..", "a\0", &"a".repeat(256), &"é".repeat(128)] {
        for host in ["host123", "open", "listed"] {
            assert_eq!(code(host, &upload(name)), Code::BadRequest, "{name:?}");
        }
    }
    let refused = decide(ANN, "open.example.net", &upload("a/b")).unwrap_err();
    assert_eq!(refused.text, "the file's name has a slash in it");
    assert!(decide(ANN, "open.example.net", &upload(&"a".repeat(255))).is_ok());
    assert!(decide(ANN, "open.example.net", &upload("...")).is_ok());
}

#[test]
fn a_stream_reaches_only_what_the_targets_name() {
    let target = |host: &str, asked: Option<&str>| {
        let permit = decide(ANN, &format!("{host}.example.net"), &to(asked)).unwrap();
        let Action::Stream { target } = permit.action() else { panic!() };
        (target.to_string(), permit.rule().to_owned())
    };
    assert_eq!(target("host123", Some("tcp:127.0.0.1:0080")).0, "tcp:127.0.0.1:80");
    assert_eq!(target("host123", None).0, "unix:/var/run/docker.sock");
    assert!(target("host123", None).1.ends_with("; target `unix:/var/run/docker.sock`"));
    assert_eq!(target("listed", Some("tcp:DB.internal:80")).0, "tcp:db.internal:80");
    for denied in ["tcp:localhost:80", "tcp:[::1]:80", "unix:/var/run/other.sock"] {
        assert_eq!(code("host123", &to(Some(denied))), Code::CommandDenied, "{denied}");
    }
    for malformed in
        ["", "tcp:127.0.0.1:*", "tcp:127.0.0.1:0", "unix:/var/run/../run/docker.sock", "unix:x", "tcp:127.1:80"]
    {
        assert_eq!(code("host123", &to(Some(malformed))), Code::BadRequest, "{malformed}");
    }
}

#[test]
fn the_echo_is_open_to_whoever_has_a_grant_to_the_host_and_to_nobody_else() {
    for host in ["host123", "listed", "open"] {
        let permit = decide(ANN, &format!("{host}.example.net"), &to(Some("echo"))).unwrap();
        assert_eq!(permit.action(), &Action::Stream { target: Target::Echo });
    }
    let stranger = decide("spiffe://example.org/nobody", "host123.example.net", &to(Some("echo")));
    assert_eq!(stranger.unwrap_err().code, Code::HostUnknown);
    assert_eq!(code("host123", &to(Some("echo:"))), Code::BadRequest);
}

#[test]
fn a_stream_without_targets_or_a_default_is_denied() {
    assert_eq!(code("listed", &to(None)), Code::CommandDenied);
    for request in [to(None), to(Some("tcp:127.0.0.1:80")), to(Some("unix:/var/run/docker.sock"))] {
        assert_eq!(code("open", &request), Code::CommandDenied);
    }
}

fn any_request() -> impl Strategy<Value = Request> {
    let user = proptest::option::of(prop_oneof![Just("dev".to_owned()), any::<String>()]);
    let env = proptest::collection::btree_map(any::<String>(), any::<String>(), 0..3);
    let line = prop_oneof![
        any::<String>().prop_map(CommandLine::Line),
        (any::<String>(), proptest::collection::vec(any::<String>(), 0..4))
            .prop_map(|(program, arguments)| CommandLine::Words(program, arguments)),
    ];
    prop_oneof![
        (line, env, user.clone()).prop_map(|(line, env, user)| Request::Command { line, env, user }),
        (any::<String>(), user.clone()).prop_map(|(filename, user)| Request::Copy { filename, user }),
        (proptest::option::of("(tcp|unix)?:.*"), user.clone())
            .prop_map(|(target, user)| Request::Stream { target, user }),
        user.prop_map(|user| Request::Host { user }),
    ]
}

/// Mutagen's commands with pieces changed, doubled and damaged, so that some are right and most are nearly.
fn nearly_mutagen() -> impl Strategy<Value = CommandLine> {
    let piece = prop_oneof![
        8 => proptest::sample::select(vec![
            ".mutagen/agents/", "0.18.1", "/mutagen-agent", " synchronizer", " forwarder", " --log-level=", "info", "trace",
            "uname", " -s", " -m", "chmod", " +x", " ./", "./", ".mutagen-agent", "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0",
            ".exe", " install",
        ])
        .prop_map(str::to_owned),
        1 => "[;&|<>$`'\"\\\\*?~#(){}!\n\t/. -]{1,3}",
        1 => any::<char>().prop_map(String::from),
    ];
    let whole = proptest::sample::select(vec![
        AGENT.to_owned(),
        "uname -s -m".to_owned(),
        format!("chmod +x {UPLOAD}"),
        format!("./{UPLOAD} install"),
    ]);
    let damaged = (whole, any::<prop::sample::Index>(), prop_oneof![2 => Just(String::new()), 1 => piece.clone()])
        .prop_map(|(line, at, piece)| {
            let at = at.index(line.len() + 1);
            format!("{}{piece}{}", &line[..at], &line[at..])
        });
    prop_oneof![damaged, proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())].prop_flat_map(
        |line| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let words = CommandLine::Words(words[0].clone(), words[1..].to_vec());
            prop_oneof![Just(CommandLine::Line(line)), Just(words)]
        },
    )
}

proptest! {
    #[test]
    fn a_decision_never_panics(principal in any::<String>(), name in any::<String>(), request in any_request()) {
        let policy = policy(EXAMPLE);
        let _ = policy.decide(&asker(&principal), &name, &request);
        for host in ["host123", "open", "listed", "both"] {
            let _ = policy.decide(&asker(ANN), host, &request);
        }
    }

    #[test]
    fn mutagens_commands_hold_no_metacharacter_and_no_way_up(line in nearly_mutagen()) {
        let request = Request::Command { line, env: BTreeMap::new(), user: None };
        if let Ok(permit) = decide(ANN, "host123", &request) {
            let Action::Command { invocation: Invocation::Argv(words), .. } = permit.action() else {
                return Err(TestCaseError::fail("a shell"));
            };
            for word in words {
                prop_assert!(!word.is_empty() && !word.contains(".."), "{words:?}");
                prop_assert!(word.chars().all(|c| c.is_ascii_alphanumeric() || "./+-=".contains(c)), "{words:?}");
            }
        }
    }

    #[test]
    fn arbitrary_uploads_and_commands_are_not_mutagens(text in any::<String>()) {
        prop_assert!(decide(ANN, "host123", &upload(&text)).is_err());
        prop_assert!(decide(ANN, "host123", &run(&text)).is_err());
    }
}

#[test]
fn the_property_above_meets_commands_that_are_allowed() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let allowed = (0..400)
        .filter(|_| {
            let line = nearly_mutagen().new_tree(&mut runner).unwrap().current();
            decide(ANN, "host123", &Request::Command { line, env: BTreeMap::new(), user: None }).is_ok()
        })
        .count();
    assert!(allowed > 20, "{allowed} of 400");
}
