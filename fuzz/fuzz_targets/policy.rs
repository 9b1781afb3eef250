//! Any policy and any request: what is permitted is held against the policy as it was written.
//!
//! Input: lines, each a letter and a value, percent-encoded where it needs to be (see [`Case::read`]).
#![no_main]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::{Duration, SystemTime};

use libfuzzer_sys::{Corpus, fuzz_target};
use tstunnel::error::Code;
use tstunnel::protocol::Principal;
use tstunnel::protocol::encoding::percent_decode;
use tstunnel::protocol::target::{ECHO, Target};
use tstunnel::server::config::{Account, ServerConfig};
use tstunnel::server::policy::{Action, Asker, CommandLine, Invocation, Permit, Policy, Request};

fuzz_target!(|text: &str| -> Corpus {
    let Some(case) = Case::read(text) else { return Corpus::Reject };
    let account = Account { name: "dev".into(), home: "/home/dev".into(), is_root: true };
    // A policy that is refused as a whole is the target `config`'s business.
    let Ok((config, _)) = ServerConfig::parse(Path::new("/server.toml"), &case.config(), &account) else {
        return Corpus::Reject;
    };
    let asker = Asker {
        principal: Principal(case.principal.clone()),
        source: case.source,
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(case.now),
        authorized: None,
    };
    let policy = Policy::new(&config);
    let reached = policy.reach(&asker, &case.server_name);
    match policy.decide(&asker, &case.server_name, &case.request) {
        Ok(permit) => {
            assert_eq!(reached.as_ref(), Ok(permit.host()));
            case.check(&permit);
        }
        Err(error) => {
            assert_eq!(error.report().matches(char::is_control).count(), 1, "{error}");
            // Nobody learns whether a host exists that is not granted to them.
            if error.code == Code::HostUnknown {
                assert_eq!(error.text, format!("no host {} for {}", case.server_name, case.principal));
                assert_eq!(reached, Err(error));
                let open = case.host().and_then(|host| case.grants.iter().find(|grant| grant.opens(&case, &host.name)));
                assert!(open.is_none(), "{open:?}");
            }
        }
    }
    Corpus::Keep
});

/// Seconds of the day in which all grants end.
const DAY: u64 = 24 * 60 * 60;

/// What a host or a grant allows; everything where there is no list.
#[derive(Debug, Default)]
struct Scope {
    commands: Option<Vec<String>>,
    targets: Option<Vec<String>>,
}

#[derive(Debug)]
struct Host {
    name: String,
    account: String,
    scope: Scope,
    env: Vec<String>,
    shell: bool,
}

#[derive(Debug, Default)]
struct Grant {
    principal: String,
    hosts: Vec<String>,
    accounts: Option<Vec<String>>,
    scope: Scope,
    sources: Option<Vec<String>>,
    expires: Option<u64>,
}

#[derive(Debug)]
struct Case {
    domain: Option<String>,
    trust_domains: Option<Vec<String>>,
    hosts: Vec<Host>,
    grants: Vec<Grant>,
    principal: String,
    server_name: String,
    source: IpAddr,
    now: u64,
    request: Request,
}

impl Case {
    /// The policy in capitals: `D` the domain, `F` trust domains. `H` begins a host, with `A` its account, `C` commands, `T`
    /// targets, `E` variables, `S` a shell. `G` begins a grant, with `K` its hosts, `B` accounts, `L` commands, `M` targets,
    /// `N` networks, `X` its end. Of what may be left out, an empty value makes an empty list.
    ///
    /// The request: `p` principal, `n` server name, `o` address, `i` time; `l` a command line, `w` a command's words, `v` its
    /// variables, `f` a file, `t` a target; `u` the account.
    fn read(text: &str) -> Option<Case> {
        let (mut domain, mut trust_domains) = (None, None);
        let (mut hosts, mut grants) = (Vec::<Host>::new(), Vec::<Grant>::new());
        let (mut principal, mut server_name, mut user) = (String::new(), String::new(), None);
        let (mut source, mut now) = (IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        let (mut line, mut words, mut env) = (None, Vec::new(), BTreeMap::new());
        let (mut filename, mut target) = (None, None);
        let note = |list: &mut Option<Vec<String>>, value: String| {
            list.get_or_insert_default().extend(Some(value).filter(|value| !value.is_empty()));
        };
        for entry in text.lines() {
            let mut letters = entry.chars();
            let Some(letter) = letters.next() else { continue };
            let value = String::from_utf8(percent_decode(letters.as_str())?).ok()?;
            match letter {
                'D' => domain = Some(value),
                'F' => note(&mut trust_domains, value),
                'H' => {
                    let scope = Scope { commands: Some(Vec::new()), targets: Some(Vec::new()) };
                    hosts.push(Host { name: value, account: "dev".into(), scope, env: Vec::new(), shell: false });
                }
                'A' => hosts.last_mut()?.account = value,
                'C' => note(&mut hosts.last_mut()?.scope.commands, value),
                'T' => note(&mut hosts.last_mut()?.scope.targets, value),
                'E' => hosts.last_mut()?.env.push(value),
                'S' => hosts.last_mut()?.shell = true,
                'G' => grants.push(Grant { principal: value, ..Grant::default() }),
                'K' => grants.last_mut()?.hosts.push(value),
                'B' => note(&mut grants.last_mut()?.accounts, value),
                'L' => note(&mut grants.last_mut()?.scope.commands, value),
                'M' => note(&mut grants.last_mut()?.scope.targets, value),
                'N' => note(&mut grants.last_mut()?.sources, value),
                'X' => grants.last_mut()?.expires = Some(value.parse().ok().filter(|end| *end < DAY)?),
                'p' => principal = value,
                'n' => server_name = value,
                'o' => source = value.parse().ok()?,
                'i' => now = value.parse().ok().filter(|now| *now < DAY)?,
                'l' => line = Some(value),
                'w' => words.push(value),
                'v' => _ = value.split_once('=').map(|(name, value)| env.insert(name.to_owned(), value.to_owned())),
                'f' => filename = Some(value),
                't' => target = Some(value),
                'u' => user = Some(value),
                _ => return None,
            }
        }
        let line = match (line, words.split_first()) {
            (Some(line), _) => Some(CommandLine::Line(line)),
            (None, Some((program, arguments))) => Some(CommandLine::Words(program.clone(), arguments.to_vec())),
            (None, None) => None,
        };
        let request = match (line, filename, target) {
            (Some(line), ..) => Request::Command { line, env, user },
            (_, Some(filename), _) => Request::Copy { filename, user },
            (_, _, Some(target)) => Request::Stream { target: Some(target).filter(|text| !text.is_empty()), user },
            _ => Request::Host { user },
        };
        Some(Case { domain, trust_domains, hosts, grants, principal, server_name, source, now, request })
    }

    /// The policy as a server's file has it.
    fn config(&self) -> String {
        let mut text = String::from("cert = \"c\"\nkey = \"k\"\nclient_ca = [\"ca\"]\n");
        let mut key = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{name} = {value}");
            }
        };
        let commands = |entries: &[String]| if entries == ["any"] { quoted("any") } else { list(entries) };
        key("domain", self.domain.as_deref().map(quoted));
        key("trust_domains", self.trust_domains.as_deref().map(list));
        for host in &self.hosts {
            let name = quoted(&host.name);
            key(&format!("host.{name}.account"), Some(quoted(&host.account)));
            key(&format!("host.{name}.shell"), Some(host.shell.to_string()));
            key(&format!("host.{name}.commands"), host.scope.commands.as_deref().map(commands));
            key(&format!("host.{name}.targets"), host.scope.targets.as_deref().map(list));
            key(&format!("host.{name}.env"), Some(list(&host.env)));
        }
        for grant in &self.grants {
            key("[[grant]]\nprincipal", Some(quoted(&grant.principal)));
            key("hosts", Some(list(&grant.hosts)));
            key("accounts", grant.accounts.as_deref().map(list));
            key("commands", grant.scope.commands.as_deref().map(commands));
            key("targets", grant.scope.targets.as_deref().map(list));
            key("sources", grant.sources.as_deref().map(list));
            let end = |end: u64| format!("1970-01-01T{:02}:{:02}:{:02}Z", end / 3600, end / 60 % 60, end % 60);
            key("expires", grant.expires.map(end));
        }
        text
    }

    /// The host that the server name stands for.
    fn host(&self) -> Option<&Host> {
        let name = &self.server_name;
        let below = |host: &&Host| {
            let domain = self.domain.as_ref();
            domain.is_some_and(|domain| format!("{}.{domain}", host.name).eq_ignore_ascii_case(name))
        };
        let exactly = self.hosts.iter().find(|host| host.name.eq_ignore_ascii_case(name));
        exactly.or_else(|| self.hosts.iter().find(below))
    }

    fn check(&self, permit: &Permit) {
        let host = self.host().expect("a host of the configuration");
        assert!(permit.host().as_str().eq_ignore_ascii_case(&host.name), "{permit:?}");
        assert_eq!(permit.principal().0, self.principal);
        let account = self.request.user().unwrap_or(&host.account);
        assert_eq!(permit.account(), account);
        // The server's own home is nobody else's.
        assert!(permit.home_override().is_none_or(|home| account == "dev" && home == Path::new("/home/dev")));
        if let (Some(trusted), Some(rest)) = (&self.trust_domains, self.principal.strip_prefix("spiffe://")) {
            let domain = rest.split('/').next().unwrap_or_default();
            assert!(trusted.iter().any(|trusted| trusted == domain), "a foreign trust domain: {self:#?}");
        }
        let grants = self.grants.iter().filter(|grant| grant.opens(self, &host.name));
        let mut scopes = grants.filter(|grant| grant.includes(account, &host.account)).map(|grant| &grant.scope);
        let allowed = |action: &Action, scope: &Scope| match action {
            Action::Command { invocation, .. } => scope.allows_command(host.shell, invocation, &self.request),
            Action::Copy { filename, .. } => scope.allows_file(filename),
            Action::Stream { target } => *target == Target::Echo || scope.allows_target(target),
            Action::Host => true,
        };
        assert!(allowed(permit.action(), &host.scope), "the host does not allow {permit:?}: {self:#?}");
        assert!(scopes.any(|scope| allowed(permit.action(), scope)), "no grant allows {permit:?}: {self:#?}");
        match (permit.action(), &self.request) {
            (Action::Command { invocation, env, confined_agent, .. }, Request::Command { line, env: asked, .. }) => {
                check_invocation(invocation, line, host.shell);
                let is_agent =
                    matches!(invocation, Invocation::Argv(words) if words[0].starts_with(".mutagen/agents/"));
                assert!(is_agent || !confined_agent);
                assert!(env.is_sorted() && env.windows(2).all(|pair| pair[0].0 != pair[1].0));
                for (name, value) in env {
                    assert_eq!(asked.get(name), Some(value));
                    assert!(host.env.iter().any(|pattern| covers(pattern, name)), "{name}: {self:#?}");
                    assert!(!name.starts_with("LD_") && !["PATH", "HOME", "SHELL"].contains(&name.as_str()), "{name}");
                }
            }
            (Action::Copy { filename, .. }, Request::Copy { filename: asked, .. }) => {
                assert_eq!(filename, asked);
                assert!(!matches!(filename.as_str(), "" | "." | "..") && filename.len() <= 255, "{filename:?}");
                assert!(!filename.contains(['/', '\0']), "{filename:?}");
            }
            (Action::Stream { target }, Request::Stream { target: asked, .. }) => {
                assert!(
                    asked.as_ref().is_none_or(|asked| asked == ECHO || Target::parse(asked).as_ref() == Ok(target))
                );
            }
            (Action::Host, Request::Host { .. }) => {}
            (action, request) => panic!("{action:?} for {request:?}"),
        }
    }
}

impl Grant {
    /// Whether it is there for this principal, address and time, on this host.
    fn opens(&self, case: &Case, host: &str) -> bool {
        // A pattern of one kind covers no principal of another.
        let kind = |text: &str| (text.starts_with("spiffe://"), text.contains('@') && !text.starts_with("spiffe://"));
        let is_of_kind = self.principal == "*" || kind(&self.principal) == kind(&case.principal);
        is_of_kind
            && !case.principal.is_empty()
            && covers(&self.principal, &case.principal)
            && self.hosts.iter().any(|pattern| covers(&pattern.to_ascii_lowercase(), &host.to_ascii_lowercase()))
            && self.sources.as_ref().is_none_or(|networks| networks.iter().any(|network| holds(network, case.source)))
            && self.expires.is_none_or(|end| case.now < end)
    }

    fn includes(&self, account: &str, of_host: &str) -> bool {
        match &self.accounts {
            Some(accounts) => accounts.iter().any(|granted| granted == account),
            None => account == of_host,
        }
    }
}

impl Scope {
    fn is_any(&self) -> bool {
        self.commands.as_ref().is_none_or(|commands| commands == &["any"])
    }

    fn has(&self, entry: &str) -> bool {
        self.commands.iter().flatten().any(|listed| listed == entry)
    }

    fn allows_command(&self, shell: bool, invocation: &Invocation, request: &Request) -> bool {
        let Request::Command { line, .. } = request else { panic!("{request:?}") };
        let is_special = |c: char| !(c.is_ascii_alphanumeric() || " -_./:,@%+=".contains(c));
        let is_listed = |text: &str, pattern: &String| match shell {
            // A wildcard never covers what a shell reads as more than words.
            true if text.contains(is_special) => pattern == text,
            _ => covers(pattern, text),
        };
        let patterns = || self.commands.iter().flatten().filter(|entry| *entry != "mutagen");
        match invocation {
            Invocation::Shell(text) => self.is_any() || patterns().any(|pattern| is_listed(text, pattern)),
            Invocation::Argv(words) => {
                let is_one_line = words.iter().all(|word| !word.is_empty() && !word.contains(char::is_whitespace));
                // What a shell would get is compared, spaces and all, also where one of the two keeps it from the shell.
                let text = match line {
                    CommandLine::Line(line) if shell => line.clone(),
                    _ => words.join(" "),
                };
                self.is_any()
                    || (self.has("mutagen") && is_mutagens(words))
                    || (is_one_line && patterns().any(|pattern| is_listed(&text, pattern)))
            }
        }
    }

    fn allows_file(&self, name: &str) -> bool {
        let is_agent = name.starts_with(".mutagen-agent") && matches!(name.len(), 50 | 54);
        self.is_any() || (self.has("mutagen") && is_agent)
    }

    fn allows_target(&self, target: &Target) -> bool {
        self.targets.as_ref().is_none_or(|targets| targets.iter().any(|pattern| opens_target(pattern, target)))
    }
}

/// What is run is what was asked for, word by word.
fn check_invocation(invocation: &Invocation, asked: &CommandLine, shell: bool) {
    match (invocation, asked) {
        (Invocation::Argv(words), CommandLine::Line(line)) => {
            assert!(line.split(' ').filter(|word| !word.is_empty()).eq(words), "{words:?}");
        }
        (Invocation::Argv(words), CommandLine::Words(program, rest)) => {
            assert!([program].into_iter().chain(rest).eq(words), "{words:?}");
        }
        (Invocation::Shell(text), CommandLine::Line(line)) => assert_eq!(text, line),
        (Invocation::Shell(text), CommandLine::Words(program, words)) => assert_eq!(shell_words(text, program), *words),
    }
    match invocation {
        Invocation::Argv(words) => {
            assert!(!words[0].is_empty() && words.iter().all(|word| !word.contains('\0')), "{words:?}");
            assert!(!shell || is_mutagens(words), "past the shell: {words:?}");
        }
        Invocation::Shell(text) => assert!(shell && !text.trim().is_empty() && !text.contains('\0'), "{text:?}"),
    }
}

/// The words that a POSIX shell (XCU §2.2) reads behind the program in `line`.
fn shell_words(line: &str, program: &str) -> Vec<String> {
    let rest = line.strip_prefix(program).expect("the program as it was sent");
    let (mut words, mut is_quoted, mut letters) = (Vec::<String>::new(), false, rest.chars());
    while let Some(letter) = letters.next() {
        if letter == ' ' && !is_quoted {
            words.push(String::new());
            continue;
        }
        let word = words.last_mut().expect("a space before a word");
        match (letter, is_quoted) {
            ('\'', _) => is_quoted = !is_quoted,
            ('\\', false) => word.extend(letters.next()),
            (_, true) => word.push(letter),
            (_, false) => {
                assert!(letter.is_ascii_alphanumeric() || "-_./:,@%+=".contains(letter), "{letter:?} stands bare");
                word.push(letter);
            }
        }
    }
    assert!(!is_quoted, "an open quote");
    words
}

/// What looks like Mutagen's own commands, and can at least do no harm by its characters.
fn is_mutagens(words: &[String]) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".+-/=".contains(&byte);
    let starts = [".mutagen/agents/", "./.mutagen-agent"].iter().any(|start| words[0].starts_with(start));
    (starts || words[0] == "uname" || words[0] == "chmod")
        && words.len() <= 3
        && words.iter().all(|word| word.bytes().all(is_plain) && !word.contains(".."))
}

fn opens_target(pattern: &str, target: &Target) -> bool {
    match Target::parse(pattern) {
        Ok(one) if !pattern.contains(['*', '?']) => one == *target,
        // The parts without wildcards are in their one form.
        _ if pattern.starts_with("tcp:") => {
            let (host, port) = pattern.rsplit_once(':').expect("a port");
            let whole = Target::parse(&format!("{host}:1")).ok().filter(|_| !host.contains(['*', '?']));
            let host = whole.map_or(host.to_ascii_lowercase(), |target| {
                target.to_string().strip_suffix(":1").expect("its port").to_owned()
            });
            let port = port.parse::<u16>().map_or(port.to_owned(), |port| port.to_string());
            covers(&format!("{host}:{port}"), &target.to_string())
        }
        _ => covers(pattern, &target.to_string()),
    }
}

/// Whether `address` is in the network, bit by bit. IPv4 is compared as what it is mapped to.
fn holds(network: &str, address: IpAddr) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    };
    let (base, prefix) = network.split_once('/').unwrap_or((network, ""));
    let base: IpAddr = base.parse().expect("an address");
    let whole = if base.is_ipv4() { 32 } else { 128 };
    let prefix: u32 = if prefix.is_empty() { whole } else { prefix.parse().expect("a prefix") };
    // An IPv6 network that holds all of IPv4 is not meant to.
    let is_of_kind = base.to_canonical().is_ipv4() && prefix + 128 - whole >= 96 || address.to_canonical().is_ipv6();
    let differ = bits(base) ^ bits(address);
    is_of_kind && differ.checked_shr(whole - prefix).unwrap_or(0) == 0
}

/// The definition of a pattern, letter by letter: which beginnings of the text the pattern so far covers.
fn covers(pattern: &str, text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    let mut covered = vec![false; text.len() + 1];
    covered[0] = true;
    for wanted in pattern.chars() {
        if wanted == '*' {
            for end in 1..=text.len() {
                covered[end] |= covered[end - 1];
            }
        } else {
            for end in (1..=text.len()).rev() {
                covered[end] = covered[end - 1] && (wanted == '?' || wanted == text[end - 1]);
            }
            covered[0] = false;
        }
    }
    covered[text.len()]
}

fn list(entries: &[String]) -> String {
    format!("[{}]", entries.iter().map(|entry| quoted(entry)).collect::<Vec<_>>().join(", "))
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            _ if letter.is_control() => _ = write!(quoted, "\\u{:04X}", u32::from(letter)),
            _ => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}
