//! The body of `POST /command`, asked of a host that serves Mutagen alone: nothing else is run, and never by a shell.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::LazyLock;
use std::time::SystemTime;

use libfuzzer_sys::{Corpus, fuzz_target};
use tstunnel::error::Code;
use tstunnel::protocol::{CommandRequest, Principal};
use tstunnel::server::config::{Account, ServerConfig};
use tstunnel::server::policy::{Action, Asker, CommandLine, Invocation, Policy, Request};

/// A host that would have a shell, could it run anything else than Mutagen.
const CONFIG: &str = r#"
    cert = "c"
    key = "k"
    client_ca = ["ca"]
    [host.dev]
    commands = "mutagen"
    shell = true
    env = ["*"]
    [[grant]]
    principal = "ann@example.org"
    hosts = ["dev"]
"#;

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let account = Account { name: "dev".into(), home: "/home/dev".into(), is_root: false };
    Policy::new(&ServerConfig::parse(Path::new("/server.toml"), CONFIG, &account).expect("a configuration").0)
});

fuzz_target!(|body: &[u8]| -> Corpus {
    let Ok(command) = serde_json::from_slice::<CommandRequest>(body) else { return Corpus::Keep };
    let again = serde_json::to_vec(&command).expect("what was JSON");
    assert_eq!(serde_json::from_slice::<CommandRequest>(&again).ok().as_ref(), Some(&command));
    let (asked_env, asked_user) = (command.env.clone(), command.user.clone());
    let request = Request::from(command);
    let asker = Asker {
        principal: Principal("ann@example.org".into()),
        source: IpAddr::V4(Ipv4Addr::LOCALHOST),
        now: SystemTime::UNIX_EPOCH,
        authorized: None,
    };
    let permit = match POLICY.decide(&asker, "dev", &request) {
        Ok(permit) => permit,
        Err(error) => {
            assert!(matches!(error.code, Code::BadRequest | Code::CommandDenied | Code::Unauthorized), "{error}");
            assert_eq!(error.report().matches(char::is_control).count(), 1, "{error}");
            return Corpus::Keep;
        }
    };
    assert!(asked_user.is_none_or(|user| user == permit.account()));
    let Action::Command { invocation: Invocation::Argv(words), env, confined_agent, .. } = permit.action() else {
        panic!("{permit:?}")
    };
    let Request::Command { line, .. } = &request else { panic!("{request:?}") };
    let asked: Vec<&str> = match line {
        CommandLine::Line(line) => line.split(' ').filter(|word| !word.is_empty()).collect(),
        CommandLine::Words(program, arguments) => [program].into_iter().chain(arguments).map(String::as_str).collect(),
    };
    assert_eq!(*words, asked);
    is_mutagens(words, *confined_agent);
    for (name, value) in env {
        assert!(!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'), "{name}");
        assert!(!matches!(name.as_str(), "PATH" | "HOME" | "SHELL" | "BASH_ENV") && !name.starts_with("LD_"), "{name}");
        assert!(!value.contains('\0') && asked_env.get(name).is_none_or(|asked| asked == value), "{name}");
    }
    Corpus::Keep
});

/// Fails on anything that could be more than one of Mutagen's own commands.
fn is_mutagens(words: &[String], confined_agent: bool) {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".+-/=".contains(&byte);
    assert!(words.iter().all(|word| word.bytes().all(is_plain) && !word.contains("..")), "{words:?}");
    let uploaded = |name: &str| name.strip_prefix(".mutagen-agent").is_some_and(|rest| !rest.contains('/'));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let is_agent = match words[..] {
        ["uname", "-s", "-m"] => false,
        ["chmod", "+x", name] if uploaded(name) => false,
        [program, "install"] if program.strip_prefix("./").is_some_and(uploaded) => false,
        [program, "synchronizer" | "forwarder", ..] if words.len() <= 3 => {
            let version = program.strip_prefix(".mutagen/agents/").and_then(|rest| rest.split_once('/'));
            let Some((version, "mutagen-agent" | "mutagen-agent.exe")) = version else { panic!("{words:?}") };
            assert!(version.starts_with(|first: char| first.is_ascii_digit()), "{words:?}");
            assert!(words.get(2).is_none_or(|level| level.starts_with("--log-level=")), "{words:?}");
            true
        }
        _ => panic!("not one of Mutagen's: {words:?}"),
    };
    assert_eq!(confined_agent, is_agent);
}
