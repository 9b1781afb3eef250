//! `tstunnel serve --check`: the server's files → what is wrong with them and what they let each principal do, or the answer to
//! one question, by the same policy that the server goes by. Starts nothing.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::time::SystemTime;

use crate::error::{Code, Error, Result, printable};
use crate::protocol::{HostId, Principal};
use crate::server::account::Login;
use crate::server::audit;
use crate::server::config::{Account, Commands, HostConfig, ServerConfig};
use crate::server::policy::grant::Grant;
use crate::server::policy::{Action, Asker, CommandLine, Permit, Refused, Request};
use crate::server::principal::{SPIFFE_PREFIX, check_principal_text, check_spiffe_id};
use crate::server::process;
use crate::server::state::State;
use crate::server::succession::folder::{self, IS_ALONE, NO_PLACE, Usual};
use crate::tls;

/// What a command of a question begins with where it is a file's name, or a target.
const UPLOAD: &str = "upload:";
const STREAM: &str = "stream:";

/// Who asks for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The principal.
    pub principal: String,
    /// The host's id.
    pub host: String,
    /// A whole command line, or a program and its arguments; or `upload:NAME`, or `stream:TARGET`.
    pub command: Vec<String>,
    /// The account asked for.
    pub user: Option<String>,
    /// Where the principal comes from; this machine where nothing is said.
    pub source: Option<IpAddr>,
    /// Whether the `authorize` command is asked, where the server would.
    pub authorize: bool,
}

/// Reads everything that a server with the configuration at `path` would, and says what it finds. It does not try to listen: an
/// address in use may well be so by the server that is to read this next.
///
/// # Errors
/// `config` where such a server would not take it.
pub fn report(path: &Path) -> Result<String> {
    let (state, warnings) = load(path)?;
    let mut text = String::new();
    for warning in warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    for doubt in doubts(&state)? {
        let _ = writeln!(text, "warning: {doubt}");
    }
    let shown = path.display();
    let who = match state.check_as_next() {
        Ok(()) => "a server takes it, with the files that it names".to_owned(),
        Err(error) => format!(
            "a server starts with it, with the files that it names, but one that runs refuses it: {}",
            error.text
        ),
    };
    let _ = writeln!(text, "{shown}: {who}; whether its addresses are free shows at the start");
    for (index, grant) in state.config.grants.iter().enumerate() {
        let _ = write!(text, "\ngrant {} to `{}`", index + 1, grant.principal.as_str());
        describe(&mut text, &state.config, grant);
    }
    if state.authorize.is_some() {
        let _ = writeln!(text, "\nwhere none of these opens a host, the `authorize` command is asked");
    }
    Ok(text)
}

/// What a server with the configuration at `path` would go by, and what is hardly meant.
fn load(path: &Path) -> Result<(State, Vec<String>)> {
    let loaded = State::load(path, &Account::of_process()?)?;
    audit::check(&loaded.0.config.audit)?;
    Ok(loaded)
}

/// What only this machine and this moment show.
fn doubts(state: &State) -> Result<Vec<String>> {
    let mut doubts = tls::ending(&state.config.cert, &state.config.crl, SystemTime::now())?;
    if folder::place(state.config.run_dir.as_deref(), Usual::of_process()).is_none() {
        // The server's own environment may be another.
        doubts.push(format!("a server that is started from here {IS_ALONE}: {NO_PLACE}"));
    }
    for (name, home) in state.config.accounts() {
        match Login::find(&name, home.as_deref()) {
            Err(error) => doubts.push(error.text),
            Ok(login) if !login.home.is_dir() => {
                doubts.push(format!("the account `{name}` has no home directory: {}", login.home.display()));
            }
            Ok(_) => {}
        }
    }
    for (id, host) in &state.config.hosts {
        if let Some(program) = host.wrapper.first().filter(|program| process::is_missing(program)) {
            doubts.push(format!("the `wrapper` of `{id}` cannot be run: there is no program `{program}`"));
        }
    }
    Ok(doubts)
}

/// What `grant` comes to on each host that it opens.
fn describe(text: &mut String, config: &ServerConfig, grant: &Grant) {
    let terms = &grant.terms;
    if let Some(sources) = &terms.sources {
        let _ = write!(text, " from {}", list(sources.iter().map(ToString::to_string)));
    }
    if let Some(expires) = &terms.expires {
        let is_over = if expires.is_after(SystemTime::now()) { "" } else { ", which is over" };
        let _ = write!(text, " until {expires}{is_over}");
    }
    text.push('\n');
    let opened = config.hosts.iter().filter(|(id, _)| grant.hosts.iter().any(|pattern| pattern.covers(id)));
    for (id, host) in opened {
        let accounts = match &terms.accounts {
            Some(accounts) => list(accounts.iter().cloned()),
            None => host.account.clone(),
        };
        let _ = writeln!(text, "  on `{id}` as {accounts}: {}", allowed(host, grant));
    }
}

fn allowed(host: &HostConfig, grant: &Grant) -> String {
    let mut parts = vec![commands(&host.commands)];
    parts.extend(grant.terms.commands.as_ref().map(|narrower| format!("of that only {}", commands(narrower))));
    if !host.targets.is_empty() {
        parts.push(format!("streams to {}", list(host.targets.iter().map(ToString::to_string))));
        let narrower = grant.terms.targets.as_ref();
        parts.extend(narrower.map(|targets| format!("of them only {}", list(targets.iter().map(ToString::to_string)))));
    }
    parts.join("; ")
}

fn commands(commands: &Commands) -> String {
    match commands {
        Commands::Any => "any command and upload".to_owned(),
        Commands::Listed { mutagen, patterns } => {
            let mutagen = mutagen.then(|| "what Mutagen asks for".to_owned());
            list(mutagen.into_iter().chain(patterns.iter().map(|pattern| format!("`{pattern}`"))))
        }
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    if items.is_empty() { "nothing".to_owned() } else { items.join(", ") }
}

/// Answers one question as a server with the configuration at `path` would: whether it is allowed, and the words.
///
/// # Errors
/// `config` where such a server would not take it, `usage` where there can be no such principal or host.
pub async fn answer(path: &Path, question: Question) -> Result<(bool, String)> {
    let (state, _) = load(path)?;
    let Question { principal, host, command, user, source, authorize } = question;
    let malformed = |why: &str| Error::new(Code::Usage, format!("`{principal}` cannot be a principal: it {why}"));
    check_principal_text(&principal).map_err(malformed)?;
    if principal.starts_with(SPIFFE_PREFIX) {
        check_spiffe_id(&principal).map_err(malformed)?;
    }
    let host = HostId::parse(&host).map_err(|error| Error::new(Code::Usage, error.text))?;
    let request = request(command, user);
    let source = source.unwrap_or(IpAddr::from([127, 0, 0, 1]));
    let mut asker = Asker { principal: Principal(principal), source, now: SystemTime::now(), authorized: None };
    let mut text = String::new();
    if let (Some(command), Some(closed)) = (&state.authorize, state.policy.closed(&asker, host.as_str())) {
        if authorize {
            asker.authorized = command.grant(&asker, &closed, &request, None).await.unwrap_or_default();
            // Asking has taken its time.
            asker.now = SystemTime::now();
        } else {
            text.push_str("no grant of the file opens this host; the server would ask the `authorize` command\n");
        }
    }
    let judged = state.policy.judge(&asker, host.as_str(), &request).and_then(with_account);
    let is_allowed = match judged {
        Ok(permit) => {
            let _ = writeln!(text, "allowed by {}", printable(permit.rule()));
            let _ = writeln!(text, "account {}", permit.account());
            true
        }
        Err(refused) => {
            let _ = writeln!(text, "refused [{}]: {}", refused.error.code, printable(&refused.error.text));
            let _ = writeln!(text, "by {}", printable(&refused.rule));
            false
        }
    };
    Ok((is_allowed, text))
}

/// The account of what has to be run, stored or reached: one that nobody may use refuses it, as the server does.
fn with_account(permit: Permit) -> Result<Permit, Refused> {
    if matches!(permit.action(), Action::Command { .. } | Action::Copy { .. } | Action::Stream { .. })
        && let Err(error) = Login::find(permit.account(), permit.home_override())
    {
        return Err(Refused::by(permit.rule(), error));
    }
    Ok(permit)
}

/// The request that a command of a question stands for.
fn request(mut command: Vec<String>, user: Option<String>) -> Request {
    let is_alone = command.len() == 1;
    let program = if command.is_empty() { String::new() } else { command.remove(0) };
    let whole = |prefix: &str| program.strip_prefix(prefix).filter(|_| is_alone).map(str::to_owned);
    if let Some(filename) = whole(UPLOAD) {
        return Request::Copy { filename, user };
    }
    if let Some(target) = whole(STREAM) {
        return Request::Stream { target: Some(target).filter(|target| !target.is_empty()), user };
    }
    let line = if is_alone { CommandLine::Line(program) } else { CommandLine::Words(program, command) };
    Request::Command { line, env: Default::default(), user }
}
