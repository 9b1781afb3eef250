//! parse → dispatch → exit status: the only place that exits, and that prints an error.

use std::io::Write;
use std::process::ExitCode;

use tracing::level_filters::LevelFilter;

use tstunnel::cli::{self, Command};
use tstunnel::client::dial::Dialler;
use tstunnel::client::session::Offer;
use tstunnel::client::standin::{self, Ours};
use tstunnel::client::{check, classify, connect, exec, mutagen, status, upload};
use tstunnel::config::{self, Environment, Overrides, WeakDefaults};
use tstunnel::descriptors;
use tstunnel::error::{Code, Error, Result};
use tstunnel::log;
use tstunnel::protocol::CommandRequest;
use tstunnel::stdio;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let argv0 = args.next().unwrap_or_else(|| "tstunnel".into());
    #[cfg(feature = "server")]
    if argv0 == tstunnel::server::store::helper::NAME {
        return if tstunnel::server::store::helper::main().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let args: Vec<_> = args.collect();
    let is_standin = cli::stands_in(&argv0, &args);
    let result = cli::parse(&argv0, args).and_then(|command| {
        log_from(default_level(&command))?;
        dispatch(command)
    });
    let status = result.unwrap_or_else(|error| fail(&error, is_standin));
    if is_standin && status != 0 {
        stdio::stay_until_read();
    }
    ExitCode::from(status)
}

/// Prints the error's line and hint, and chooses the exit status.
fn fail(error: &Error, is_standin: bool) -> u8 {
    let _ = writeln!(std::io::stderr(), "{}", error.report());
    error.code.exit_status(is_standin)
}

/// A client is quiet unless it is asked: Mutagen shows its stderr to people.
fn default_level(command: &Command) -> LevelFilter {
    match command {
        #[cfg(feature = "server")]
        Command::Serve(_) => LevelFilter::INFO,
        _ => LevelFilter::OFF,
    }
}

/// Logs go to stderr, from `default` on where nothing else is asked.
fn log_from(default: LevelFilter) -> Result<()> {
    let asked = std::env::var("TSTUNNEL_LOG").ok().filter(|level| !level.is_empty());
    let level = match &asked {
        None => default,
        Some(level) => level.parse().map_err(|_| {
            Error::new(Code::Config, format!("TSTUNNEL_LOG is `{level}`, which is no level"))
                .with_hint("use one of off, error, warn, info, debug, trace")
        })?,
    };
    // Nothing that is not asked for is set up either: it takes memory, and time at every start.
    if level == LevelFilter::OFF {
        return Ok(());
    }
    // What was asked has been set up before a stand-in's own `-v` is read, and stays.
    log::set_up(level);
    Ok(())
}

fn dispatch(command: Command) -> Result<u8> {
    let env = Environment::from_process();
    match command {
        Command::Print(text) => print(&text),
        Command::Ssh(args) => stand_in(standin::ssh(&args, &env)?, &env),
        Command::Scp(args) => stand_in(standin::scp(&args, &env)?, &env),
        Command::Connect(command) => {
            let dialler = dialler(&command.host, &command.overrides, &env)?;
            block_on(async {
                let streams = stdio::take().map_err(|error| standin::no_streams(&error))?;
                connect::run(&dialler, command.target.as_deref(), offer(command.raw), streams).await
            })
        }
        Command::Exec(command) => {
            let dialler = dialler(&command.host, &command.overrides, &env)?;
            let mut sent = standin::environment(&Default::default());
            for (name, value) in command.env {
                if let Some(value) = value.or_else(|| std::env::var(&name).ok()) {
                    sent.insert(name, value);
                }
            }
            let request =
                CommandRequest { command: command.command, args: command.args, env: sent, ..Default::default() };
            block_on(async {
                let streams = stdio::take().map_err(|error| standin::no_streams(&error))?;
                exec::run(&dialler, request, offer(command.raw), streams).await
            })
        }
        Command::Upload(command) => {
            let dialler = dialler(&command.host, &command.overrides, &env)?;
            let cli::Upload { content, name, mode, compress, .. } = command;
            let upload = upload::Upload { content, name, mode, compress };
            block_on(upload::run(&dialler, &upload, &upload::Progress::on_stderr())).map(|()| 0)
        }
        Command::Check(command) => block_on(check::run(&command, &env, &mut std::io::stdout().lock())),
        Command::Classify(command) => {
            let mut stdout = std::io::stdout().lock();
            classify::run(&mut std::io::stdin().lock(), &mut stdout, command.exit_status, command.json)
        }
        Command::Status(command) => {
            let found = block_on(status::ask::tunnels())?;
            for pid in found.silent {
                let _ = writeln!(std::io::stderr(), "tstunnel: process {pid} has a tunnel, but gives no answer");
            }
            let now = status::unix_seconds(std::time::SystemTime::now());
            let tunnels = &found.tunnels;
            print(&if command.json { status::to_json(tunnels) } else { status::to_text(tunnels, now) })
        }
        Command::Mutagen(args) => block_on(mutagen::run(&args, &env, &mut std::io::stderr())),
        Command::MutagenEnv(shell) => print(&mutagen::env_lines(shell, &env)?),
        #[cfg(feature = "server")]
        Command::Serve(command) => {
            let path = command.config.unwrap_or_else(|| "/etc/tstunnel/server.toml".into());
            let question = match command.action {
                cli::ServeAction::Run => return serve(&path),
                cli::ServeAction::Check => return print(&tstunnel::server::check::report(&path)?),
                cli::ServeAction::Ask(question) => question,
            };
            let (is_allowed, text) = server_runtime()?.block_on(tstunnel::server::check::answer(&path, question))?;
            stdio::ended(std::io::stdout().write_all(text.as_ref()), u8::from(!is_allowed))
        }
        #[cfg(feature = "server")]
        Command::Pki(command) => print(&tstunnel::pki::report::run(command)?),
    }
}

/// Runs the server.
#[cfg(feature = "server")]
fn serve(path: &std::path::Path) -> Result<u8> {
    let sockets = tstunnel::server::systemd::sockets()?;
    tstunnel::server::descriptors::raise();
    let runtime = server_runtime()?;
    let result = runtime.block_on(tstunnel::server::run(path, sockets));
    runtime.shutdown_background();
    result.map(|()| 0)
}

/// How many threads for what blocks a server may have. Each session may have one that a file system holds up, and how many sessions there
/// may be is the configuration's to say: a reload must not wait behind them. Under systemd the unit's `TasksMax=` counts too.
#[cfg(feature = "server")]
const MAX_BLOCKING_THREADS: usize = 1 << 16;

/// What runs the server. Its threads for what blocks last as long as it does: a process ends with the thread that started it.
#[cfg(feature = "server")]
fn server_runtime() -> Result<tokio::runtime::Runtime> {
    descriptors::ensure()?;
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().thread_keep_alive(std::time::Duration::MAX).max_blocking_threads(MAX_BLOCKING_THREADS);
    builder.build().map_err(no_runtime)
}

fn stand_in(ours: Ours, env: &Environment) -> Result<u8> {
    if ours.is_verbose() {
        log_from(LevelFilter::DEBUG)?;
    }
    block_on(standin::run(ours, env))
}

fn dialler(host: &str, overrides: &Overrides, env: &Environment) -> Result<Dialler> {
    Ok(Dialler::new(config::resolve(host, overrides, &WeakDefaults::default(), env)?))
}

fn offer(raw: bool) -> Offer {
    if raw { Offer::Raw } else { Offer::FramedFirst }
}

fn no_runtime(error: std::io::Error) -> Error {
    Error::new(Code::Internal, format!("cannot start the runtime: {error}"))
}

/// A client is one session in one thread: nothing else is as quick to start, and nothing was faster.
fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    descriptors::ensure()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(no_runtime)?;
    let result = runtime.block_on(future);
    // A thread that reads stdin may never return.
    runtime.shutdown_background();
    result
}

fn print(text: &(impl AsRef<[u8]> + ?Sized)) -> Result<u8> {
    stdio::ended(std::io::stdout().write_all(text.as_ref()), 0)
}

#[cfg(all(test, feature = "server"))]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::sync::{Arc, RwLock};

    use super::*;

    #[test]
    fn however_many_sessions_a_file_system_holds_up_what_else_blocks_goes_on() {
        let runtime = server_runtime().unwrap();
        // More than the runtime's own bound, of 512.
        let held = Arc::new(RwLock::new(()));
        let holding = held.write().unwrap();
        for _ in 0..600 {
            let held = held.clone();
            runtime.spawn_blocking(move || drop(held.read()));
        }
        let reload = runtime.spawn_blocking(|| ());
        let limit = std::time::Duration::from_secs(10);
        let waited = runtime.block_on(async { tokio::time::timeout(limit, reload).await });
        drop(holding);
        waited.unwrap().unwrap();
    }
}
