//! How grants narrow, choose accounts, come and go, and which of them decides.

use std::time::Duration;

use super::*;

const GRANTS: &str = r#"
    [host.a]
    commands = "any"
    targets = ["tcp:127.0.0.1:80", "tcp:127.0.0.1:*", "unix:/run/app.sock"]
    agent_digests = ["AB00000000000000000000000000000000000000000000000000000000000000"]
    [host.m]
    home = "/srv/m"
    [host.s]
    commands = ["git *", "cd app && make", "mutagen"]
    shell = true
"#;

fn grants(text: &str) -> Policy {
    policy(&format!("{GRANTS}{text}"))
}

fn rule(policy: &Policy, host: &str, request: &Request) -> Result<String> {
    policy.decide(&asker(ANN), host, request).map(|permit| permit.rule().to_owned())
}

fn refused(policy: &Policy, host: &str, request: &Request) -> Code {
    policy.decide(&asker(ANN), host, request).unwrap_err().code
}

fn as_user(user: &str, text: &str) -> Request {
    Request::Command { line: CommandLine::Line(text.into()), env: BTreeMap::new(), user: Some(user.into()) }
}

#[test]
fn a_command_has_to_be_allowed_by_the_host_and_by_the_grant() {
    let narrow =
        |commands: &str| grants(&format!("[[grant]]\nprincipal = \"*\"\nhosts = [\"*\"]\ncommands = {commands}"));
    let git = narrow("[\"git *\", \"ls\"]");
    assert_eq!(rule(&git, "a", &run("git log")).unwrap(), "grant 1 `*` on `*` for command `git *`; command `any`");
    assert_eq!(refused(&git, "a", &run("id")), Code::CommandDenied);
    assert_eq!(refused(&git, "a", &run(AGENT)), Code::CommandDenied);
    // The grant would, but the host does not.
    assert_eq!(refused(&git, "m", &run("ls")), Code::CommandDenied);
    assert_eq!(refused(&git, "s", &run("ls")), Code::CommandDenied);
    assert!(rule(&git, "s", &run("git log")).is_ok());
    let nothing = narrow("[]");
    for host in ["a", "m", "s"] {
        assert_eq!(refused(&nothing, host, &run(AGENT)), Code::CommandDenied);
    }
    assert_eq!(
        rule(&narrow("\"any\""), "m", &run(AGENT)).unwrap(),
        "grant 1 `*` on `*` for command `any`; command `mutagen`"
    );
    assert_eq!(refused(&narrow("\"any\""), "m", &run("ls")), Code::CommandDenied);
}

#[test]
fn what_one_of_the_two_confines_or_keeps_from_the_shell_is_so() {
    let digest = vec![format!("ab{}", "0".repeat(62))];
    let action = |commands: &str, host: &str, line: &str| {
        let terms = if commands.is_empty() { String::new() } else { format!("commands = {commands}") };
        let policy = grants(&format!("[[grant]]\nprincipal = \"*\"\nhosts = [\"*\"]\n{terms}"));
        match policy.decide(&asker(ANN), host, &run(line)).unwrap().action().clone() {
            Action::Command { invocation, confined_agent, digests, .. } => (invocation, confined_agent, digests),
            other => panic!("{other:?}"),
        }
    };
    let shell = |line: &str| Invocation::Shell(line.to_owned());
    let argv = |line: &str| Invocation::Argv(line.split(' ').map(str::to_owned).collect());
    assert_eq!(action("", "a", AGENT), (shell(AGENT), false, vec![]));
    assert_eq!(action("\"mutagen\"", "a", AGENT), (argv(AGENT), true, digest.clone()));
    let install = format!("./{UPLOAD} install");
    assert_eq!(action("\"mutagen\"", "a", &install), (argv(&install), false, digest));
    assert_eq!(action("\"mutagen\"", "a", "uname -s -m"), (argv("uname -s -m"), false, vec![]));
    assert_eq!(action("\"any\"", "m", AGENT), (argv(AGENT), true, vec![]));
    assert_eq!(action("\"any\"", "s", AGENT), (argv(AGENT), true, vec![]));
    assert_eq!(action("\"any\"", "s", "cd app && make"), (shell("cd app && make"), false, vec![]));
}

#[test]
fn a_grants_patterns_cover_nothing_that_the_hosts_shell_would_read_more_in() {
    let policy = grants("[[grant]]\nprincipal = \"*\"\nhosts = [\"*\"]\ncommands = [\"git *\", \"cd app && make\"]");
    for denied in ["git log; id", "git log $(id)", "git log `id`", "git log | sh", "git log\nid", "cd app && make all"]
    {
        assert_eq!(refused(&policy, "a", &run(denied)), Code::CommandDenied, "{denied}");
        assert_eq!(refused(&policy, "s", &run(denied)), Code::CommandDenied, "{denied}");
    }
    assert!(rule(&policy, "a", &run("cd app && make")).is_ok());
}

#[test]
fn an_upload_and_a_target_have_to_be_allowed_by_both_too() {
    let policy = grants(
        "[[grant]]\nprincipal = \"*\"\nhosts = [\"*\"]\ncommands = \"mutagen\"\n\
         targets = [\"tcp:127.0.0.1:9?\", \"unix:/run/*\", \"tcp:elsewhere:1\"]",
    );
    assert_eq!(rule(&policy, "a", &upload(UPLOAD)).unwrap(), "grant 1 `*` on `*` for upload `mutagen`; upload `any`");
    assert_eq!(refused(&policy, "a", &upload("notes.txt")), Code::CommandDenied);
    assert_eq!(
        rule(&policy, "a", &to(Some("tcp:127.0.0.1:91"))).unwrap(),
        "grant 1 `*` on `*` for target `tcp:127.0.0.1:9?`; target `tcp:127.0.0.1:*`"
    );
    assert!(rule(&policy, "a", &to(Some("unix:/run/app.sock"))).is_ok());
    for denied in ["tcp:127.0.0.1:80", "unix:/run/other.sock", "tcp:elsewhere:1"] {
        assert_eq!(refused(&policy, "a", &to(Some(denied))), Code::CommandDenied, "{denied}");
    }
    // The host's default is one that the grant does not allow.
    assert_eq!(refused(&policy, "a", &to(None)), Code::CommandDenied);
    assert_eq!(refused(&policy, "m", &to(Some("tcp:elsewhere:1"))), Code::CommandDenied);
}

#[test]
fn the_account_is_the_hosts_or_one_of_the_grants() {
    let policy = grants(
        "[[grant]]\nprincipal = \"spiffe://example.org/users/ann\"\nhosts = [\"m\"]\naccounts = [\"ann\", \"www\"]\n\
         [[grant]]\nprincipal = \"spiffe://example.org/users/bob\"\nhosts = [\"m\"]",
    );
    let permit = policy.decide(&asker(ANN), "m", &as_user("ann", AGENT)).unwrap();
    assert_eq!((permit.account(), permit.home_override()), ("ann", None));
    assert!(policy.decide(&asker(ANN), "m", &as_user("www", AGENT)).is_ok());
    for request in [run(AGENT), as_user("dev", AGENT), as_user("root", AGENT), as_user("", AGENT), HOST] {
        assert_eq!(refused(&policy, "m", &request), Code::Unauthorized, "{request:?}");
    }
    // It may come here all the same, to ask for the account that it has.
    assert_eq!(policy.reach(&asker(ANN), "m").unwrap().as_str(), "m");
    let bob = asker("spiffe://example.org/users/bob");
    let permit = policy.decide(&bob, "m", &as_user("dev", AGENT)).unwrap();
    assert_eq!((permit.account(), permit.home_override()), ("dev", Some(Path::new("/srv/m"))));
    assert_eq!(policy.decide(&bob, "m", &as_user("ann", AGENT)).unwrap_err().code, Code::Unauthorized);
}

#[test]
fn every_kind_of_request_can_ask_for_an_account() {
    let policy = grants("[[grant]]\nprincipal = \"*\"\nhosts = [\"a\"]\naccounts = [\"dev\", \"www\"]");
    let user = |name: &str| Some(name.to_owned());
    let requests = |name: &str| {
        [
            as_user(name, "id"),
            Request::Copy { filename: "x".into(), user: user(name) },
            Request::Stream { target: None, user: user(name) },
            Request::Host { user: user(name) },
        ]
    };
    for (granted, foreign) in requests("www").iter().zip(&requests("root")) {
        assert_eq!(policy.decide(&asker(ANN), "a", granted).unwrap().account(), "www");
        assert_eq!(refused(&policy, "a", foreign), Code::Unauthorized);
    }
}

#[test]
fn a_grant_that_does_not_count_now_or_from_here_is_not_there() {
    let policy = grants(
        "[[grant]]\nprincipal = \"*\"\nhosts = [\"a\"]\nsources = [\"10.0.0.0/8\", \"2001:db8::/32\"]\n\
         expires = 1970-01-01T01:00:00Z",
    );
    let ask = |source: &str, seconds: u64| {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let asker = Asker { source: source.parse().unwrap(), now, ..asker(ANN) };
        policy.decide(&asker, "a", &run("id")).map(drop).map_err(|error| (error.code, error.text))
    };
    for source in ["10.9.9.9", "::ffff:10.9.9.9", "2001:db8::1"] {
        assert_eq!(ask(source, 3599), Ok(()), "{source}");
    }
    let unknown = Err((Code::HostUnknown, format!("no host a for {ANN}")));
    assert_eq!(ask("10.9.9.9", 3600), unknown);
    for source in ["11.0.0.1", "::1", "::ffff:11.0.0.1", "::10.0.0.1"] {
        assert_eq!(ask(source, 0), unknown, "{source}");
    }
}

#[test]
fn the_first_grant_that_allows_it_decides_and_else_the_first_refuses() {
    let policy = grants(
        "[[grant]]\nprincipal = \"*\"\nhosts = [\"a\"]\nexpires = 1960-01-01T00:00:00Z\n\
         [[grant]]\nprincipal = \"*\"\nhosts = [\"a\"]\naccounts = [\"www\"]\n\
         [[grant]]\nprincipal = \"spiffe://example.org/*\"\nhosts = [\"a\"]\ncommands = [\"git *\"]\n\
         [[grant]]\nprincipal = \"*\"\nhosts = [\"a\"]\ncommands = [\"git log\", \"id\"]",
    );
    let rule_of = |request: &Request| rule(&policy, "a", request).unwrap();
    assert_eq!(rule_of(&as_user("www", "make")), "grant 2 `*` on `a`; command `any`");
    assert_eq!(rule_of(&run("git log")), "grant 3 `spiffe://example.org/*` on `a` for command `git *`; command `any`");
    assert_eq!(rule_of(&run("id")), "grant 4 `*` on `a` for command `id`; command `any`");
    let refused = policy.judge(&asker(ANN), "a", &run("make")).unwrap_err();
    assert_eq!((refused.error.code, refused.rule.as_str()), (Code::Unauthorized, "grant 2 `*` on `a`"));
    let refused = policy.judge(&asker(ANN), "a", &as_user("www", "")).unwrap_err();
    assert_eq!((refused.error.code, refused.rule.as_str()), (Code::BadRequest, "grant 2 `*` on `a`"));
    let refused = policy.judge(&asker(ANN), "m", &run("make")).unwrap_err();
    assert_eq!((refused.error.code, refused.rule.as_str()), (Code::HostUnknown, "no grant"));
    let refused = policy.judge(&asker(ANN), "x", &run("make")).unwrap_err();
    assert_eq!((refused.error.code, refused.rule.as_str()), (Code::HostUnknown, "no such host"));
}

#[test]
fn a_spiffe_id_of_a_foreign_trust_domain_is_no_principal() {
    let with = |domains: &str| {
        policy(&format!("trust_domains = {domains}\n{GRANTS}[[grant]]\nprincipal = \"*\"\nhosts = [\"*\"]"))
    };
    let ask = |domains: &str, principal: &str| {
        let (policy, asker) = (with(domains), asker(principal));
        let decided = policy.decide(&asker, "a", &run("id")).map(drop).map_err(|error| error.code);
        assert_eq!(policy.reach(&asker, "a").map(drop).map_err(|error| error.code), decided);
        decided
    };
    for domains in ["[\"example.org\"]", "[\"x\", \"example.org\"]"] {
        assert_eq!(ask(domains, ANN), Ok(()));
        assert_eq!(ask(domains, "ann@example.com"), Ok(()));
        assert_eq!(ask(domains, "a.example.com"), Ok(()));
        for foreign in
            ["spiffe://example.com/users/ann", "spiffe://example.org.evil/a", "spiffe://xexample.org", "spiffe://"]
        {
            assert_eq!(ask(domains, foreign), Err(Code::Unauthorized), "{foreign}");
        }
    }
    assert_eq!(ask("[]", ANN), Err(Code::Unauthorized));
    // Whatever it asks for, a host that is not there included.
    let error = with("[]").decide(&asker(ANN), "x", &HOST).unwrap_err();
    assert_eq!(error.code, Code::Unauthorized);
}

fn commands() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec![
        "\"any\"",
        "\"mutagen\"",
        "[]",
        "[\"git *\"]",
        "[\"mutagen\", \"* -m\"]",
        "[\"cd app && make\", \"uname *\"]",
        "[\"*\"]",
    ])
}

proptest! {
    #[test]
    fn a_grant_and_a_host_allow_together_what_each_allows_alone(
        of_host in commands(), of_grant in commands(), shell in any::<bool>(),
        line in prop_oneof![
            nearly_mutagen(),
            proptest::sample::select(vec!["git log", "git log; id", "cd app && make", "uname -s -m", "uname -m", AGENT])
                .prop_map(|line| CommandLine::Line(line.to_owned())),
        ],
    ) {
        let request = Request::Command { line, env: BTreeMap::new(), user: None };
        let allows = |host: &str, terms: &str| {
            let text = format!("[host.h]\nshell = {shell}\ncommands = {host}\n[[grant]]\nprincipal = \"*\"\nhosts = [\"h\"]\n{terms}");
            policy(&text).decide(&asker(ANN), "h", &request)
        };
        let both = allows(of_host, &format!("commands = {of_grant}"));
        let (host, grant) = (allows(of_host, ""), allows(of_grant, ""));
        prop_assert_eq!(both.is_ok(), host.is_ok() && grant.is_ok());
        if let (Ok(both), Ok(host), Ok(grant)) = (both, host, grant) {
            let parts = |permit: &Permit| match permit.action() {
                Action::Command { invocation, confined_agent, .. } => {
                    (matches!(invocation, Invocation::Shell(_)), *confined_agent)
                }
                other => panic!("{other:?}"),
            };
            let ((both_shell, both_confined), host, grant) = (parts(&both), parts(&host), parts(&grant));
            prop_assert_eq!(both_shell, host.0 && grant.0);
            prop_assert_eq!(both_confined, host.1 || grant.1);
        }
    }
}

#[test]
fn a_refusal_names_host_and_principal_and_its_hint_the_list_that_refuses() {
    let policy = grants(
        "[[grant]]\nprincipal = \"*\"\nhosts = [\"a\"]\ncommands = []\ntargets = [\"tcp:localhost:1\"]\n\
         [[grant]]\nprincipal = \"*\"\nhosts = [\"m\"]",
    );
    let said = |host: &str, request: &Request| {
        let error = policy.decide(&asker(ANN), host, request).unwrap_err();
        assert_eq!(error.code, Code::CommandDenied);
        (error.text.clone(), error.hint().strip_prefix("ask whoever runs the endpoint ").unwrap().to_owned())
    };
    for (host, request, text, hint) in [
        (
            "a",
            run("git status"),
            "the grant to ANN on a does not allow `git status`",
            "to allow it in the grant's `commands`",
        ),
        ("m", run("git status"), "m does not allow ANN `git status`", "to allow it in the host's `commands`"),
        (
            "a",
            upload("x"),
            "the grant to ANN on a does not allow an upload as `x`",
            "to set the grant's `commands` to `\"any\"`",
        ),
        ("m", to(Some("tcp:x:1")), "m does not allow ANN the target `tcp:x:1`", "to allow it in the host's `targets`"),
    ] {
        assert_eq!(said(host, &request), (text.replace("ANN", ANN), hint.to_owned()));
    }
    for request in [run(AGENT), upload(UPLOAD)] {
        assert!(said("a", &request).1.starts_with("for `\"mutagen\"` in the grant's `commands`"), "{request:?}");
    }
}
