use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::error::Code;
use crate::server::policy::CommandLine;

/// A script in a folder of its own, which writes down what it is asked in `asked`, a line each.
struct Script {
    folder: tempfile::TempDir,
    file: PathBuf,
}

impl Script {
    fn new(body: &str) -> Script {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let notes = folder.path().join("notes");
        fs::create_dir(&notes).unwrap();
        fs::set_permissions(&notes, fs::Permissions::from_mode(0o1777)).unwrap();
        let file = folder.path().join("authorize");
        let notes = notes.display();
        let script = format!("#!/bin/sh\nnotes={notes}\nread -r question\necho \"$question\" >>$notes/asked\n{body}\n");
        write_program(&file, &script);
        Script { folder, file }
    }

    fn authorize(&self, timeout: Duration) -> Authorize {
        let (config, account) = (config(&self.file, timeout), account());
        Authorize::new(&config, &account, 64).unwrap()
    }

    fn asked(&self) -> usize {
        fs::read_to_string(self.folder.path().join("notes/asked")).unwrap_or_default().lines().count()
    }

    fn note(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.folder.path().join("notes").join(name)).ok()
    }
}

/// Written by another process: this one may be between fork(2) and execve(2) of another test's child, which would have the
/// descriptor too.
fn write_program(file: &Path, text: &str) {
    let draft = file.with_extension("draft");
    fs::write(&draft, text).unwrap();
    let status = std::process::Command::new("install").args(["-m", "755"]).arg(&draft).arg(file).status().unwrap();
    assert!(status.success());
    fs::remove_file(&draft).unwrap();
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn account() -> Account {
    Account { name: "own".into(), home: "/".into(), is_root: is_root() }
}

fn config(program: &Path, timeout: Duration) -> AuthorizeConfig {
    let account = is_root().then(|| "nobody".to_owned());
    AuthorizeConfig { program: program.to_owned(), arguments: vec!["one".into(), "two three".into()], account, timeout }
}

const SOON: Duration = Duration::from_secs(20);

fn asker(principal: &str) -> Asker {
    let (source, now) = ([127, 0, 0, 1].into(), SystemTime::now());
    Asker { principal: Principal(principal.into()), source, now, authorized: None }
}

fn command(line: &str) -> Request {
    Request::Command { line: CommandLine::Line(line.into()), env: BTreeMap::new(), user: None }
}

async fn ask(authorize: &Authorize, principal: &str, line: &str) -> Option<Arc<Authorized>> {
    authorize
        .grant(&asker(principal), &HostId::parse("web").unwrap(), &command(line), Some("0a"))
        .await
        .unwrap_or_default()
}

#[tokio::test]
async fn an_answer_is_a_grant_to_who_was_asked_about() {
    let script = Script::new("echo '{\"commands\": [\"git *\"]}'");
    let authorize = script.authorize(SOON);
    let granted = ask(&authorize, "ann", "git log").await.unwrap();
    assert_eq!((granted.principal.0.as_str(), granted.host.as_str()), ("ann", "web"));
    assert!(granted.terms.commands.is_some());
    let question: serde_json::Value = serde_json::from_str(&script.note("asked").unwrap()).unwrap();
    assert_eq!(question["principal"], "ann");
    assert_eq!(question["request"]["command"], "git log");
    assert_eq!(question["serial"], "0a");
}

#[tokio::test]
async fn the_command_has_its_arguments_and_nothing_of_the_servers() {
    let script = Script::new(
        "env | sort >$notes/env; id -u >$notes/uid; pwd >$notes/folder; printf '%s\\n' \"$@\" >$notes/arguments\n\
         ls /proc/self/fd >$notes/descriptors; echo '{}'",
    );
    assert!(ask(&script.authorize(SOON), "ann", "id").await.is_some());
    let environment = script.note("env").unwrap();
    // The shell adds some of its own.
    let names: Vec<&str> = environment.lines().filter_map(|line| line.split('=').next()).collect();
    assert_eq!(
        names.iter().filter(|name| !["PWD", "OLDPWD", "SHLVL", "_"].contains(name)).collect::<Vec<_>>(),
        [&"PATH"]
    );
    assert_ne!(script.note("uid").unwrap().trim(), "0");
    // The fourth is the folder that `ls` reads.
    assert_eq!(script.note("descriptors").unwrap(), "0\n1\n2\n3\n");
    assert_eq!(script.note("folder").unwrap(), "/\n");
    assert_eq!(script.note("arguments").unwrap(), "one\ntwo three\n");
}

#[tokio::test]
async fn nothing_but_a_whole_answer_is_a_grant() {
    for (what, body) in [
        ("nothing", ":"),
        ("null", "echo null"),
        ("a failure", "echo '{}'; exit 1"),
        ("a signal", "echo '{}'; kill -9 $$"),
        ("garbage", "echo yes"),
        ("an unknown key", "echo '{\"host\": \"web\"}'"),
        ("two answers", "echo '{}'; echo '{}'"),
        ("more than fits", "printf '{\"accounts\": [\"'; head -c 70000 /dev/zero | tr '\\0' x; echo '\"]}'"),
        ("without an end", "yes"),
    ] {
        let script = Script::new(body);
        assert_eq!(ask(&script.authorize(SOON), "ann", "id").await, None, "{what}");
        assert_eq!(script.asked(), 1, "{what}");
    }
}

#[tokio::test]
async fn what_it_says_on_stderr_is_no_answer_and_does_not_hold_it_up() {
    let script = Script::new("head -c 200000 /dev/zero >&2; echo '{}'");
    assert!(ask(&script.authorize(SOON), "ann", "id").await.is_some());
}

#[tokio::test]
async fn a_command_that_does_not_read_its_question_is_heard() {
    let folder = Script::new(":");
    write_program(&folder.file, "#!/bin/sh\nexec 0<&-\necho '{}'\n");
    let authorize = folder.authorize(SOON);
    assert!(ask(&authorize, "ann", &"x".repeat(200_000)).await.is_some());
}

#[tokio::test]
async fn a_command_that_is_too_slow_is_killed_with_its_group() {
    let script = Script::new("sleep 987 & echo $! >$notes/pid; echo '{}'; wait");
    let authorize = script.authorize(Duration::from_secs(3));
    assert_eq!(ask(&authorize, "ann", "id").await, None);
    let pid = script.note("pid").unwrap();
    let deadline = std::time::Instant::now() + SOON;
    // Its parent is gone, and whoever takes its place may reap it late.
    let is_running = || fs::read_to_string(format!("/proc/{}/cmdline", pid.trim())).is_ok_and(|line| !line.is_empty());
    while is_running() {
        assert!(std::time::Instant::now() < deadline, "{pid} is still alive");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_program_that_cannot_be_started_grants_nothing() {
    let script = Script::new("echo '{}'");
    let authorize = script.authorize(SOON);
    fs::remove_file(&script.file).unwrap();
    assert_eq!(ask(&authorize, "ann", "id").await, None);
    write_program(&script.file, "neither a script nor a program");
    assert_eq!(ask(&authorize, "ann", "id").await, None);
}

#[tokio::test]
async fn an_answer_is_asked_for_again_unless_it_says_how_long_it_is_good() {
    let script = Script::new("echo '{}'");
    let authorize = script.authorize(SOON);
    for _ in 0..2 {
        assert!(ask(&authorize, "ann", "id").await.is_some());
    }
    assert_eq!(script.asked(), 2);
    let script = Script::new("echo '{\"cache\": \"10m\"}'");
    let authorize = script.authorize(SOON);
    for line in ["id", "ls"] {
        assert!(ask(&authorize, "ann", line).await.is_some());
    }
    assert_eq!(script.asked(), 1);
    assert!(ask(&authorize, "bob", "id").await.is_some());
    assert_eq!(script.asked(), 2);
    let script = Script::new("echo '{\"cache\": \"10m\", \"expires\": \"2001-01-01T00:00:00Z\"}'");
    let authorize = script.authorize(SOON);
    for _ in 0..2 {
        // The policy sees to its end.
        assert!(ask(&authorize, "ann", "id").await.is_some());
    }
    assert_eq!(script.asked(), 2);
}

/// A script that answers when the file `go` is there, and counts how many of it run at once.
const WAITS: &str = "echo $$ >$notes/running.$$; while [ ! -e $notes/go ]; do sleep 0.01; done; echo '{}'";

fn running(script: &Script) -> usize {
    let names = fs::read_dir(script.folder.path().join("notes")).unwrap().flatten();
    names.filter(|entry| entry.file_name().to_string_lossy().starts_with("running")).count()
}

async fn wait_for_running(script: &Script, count: usize) {
    let deadline = std::time::Instant::now() + SOON;
    while running(script) < count {
        assert!(std::time::Instant::now() < deadline, "{} run", running(script));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn the_same_question_is_asked_once_at_a_time() {
    let script = Script::new(WAITS);
    let authorize = Arc::new(script.authorize(SOON));
    let asking = |line: &'static str| {
        let authorize = authorize.clone();
        tokio::spawn(async move { ask(&authorize, "ann", line).await })
    };
    let (first, second, abandoned) = (asking("id"), asking("id"), asking("ls"));
    wait_for_running(&script, 2).await;
    // Whoever waits for what another asks goes on when that one is gone.
    first.abort();
    abandoned.abort();
    fs::write(script.folder.path().join("notes/go"), "").unwrap();
    assert!(second.await.unwrap().is_some());
    assert!(script.asked() <= 3);
    assert!(lock(&authorize.asking).is_empty());
    assert!(ask(&authorize, "ann", "id").await.is_some());
}

#[tokio::test]
async fn so_many_run_at_once_and_no_principal_keeps_the_others_waiting() {
    let script = Script::new(WAITS);
    let authorize = Arc::new(script.authorize(SOON));
    let mut all = Vec::new();
    let mut asking = |principal: String, line: String| {
        let authorize = authorize.clone();
        all.push(tokio::spawn(async move { ask(&authorize, &principal, &line).await }));
    };
    for number in 0..20 {
        asking("greedy".into(), format!("echo {number}"));
    }
    wait_for_running(&script, MAX_RUNNING_FOR_ONE).await;
    for number in 0..10 {
        asking(format!("p{number}"), "id".into());
    }
    wait_for_running(&script, MAX_RUNNING).await;
    assert_eq!(running(&script), MAX_RUNNING);
    fs::write(script.folder.path().join("notes/go"), "").unwrap();
    for task in all {
        assert!(task.await.unwrap().is_some());
    }
    assert_eq!(script.asked(), 30);
}

#[tokio::test]
async fn a_principal_with_too_many_questions_gets_no_answer_to_the_next() {
    let script = Script::new(WAITS);
    let authorize = Arc::new(Authorize::new(&config(&script.file, SOON), &account(), 2).unwrap());
    let mut all = Vec::new();
    for number in 0..2 {
        let authorize = authorize.clone();
        all.push(tokio::spawn(async move { ask(&authorize, "ann", &number.to_string()).await }));
    }
    wait_for_running(&script, 2).await;
    assert_eq!(ask(&authorize, "ann", "one too many").await, None);
    fs::write(script.folder.path().join("notes/go"), "").unwrap();
    assert!(ask(&authorize, "bob", "id").await.is_some());
    for task in all {
        assert!(task.await.unwrap().is_some());
    }
}

#[test]
fn a_program_that_others_can_change_is_refused() {
    let script = Script::new("echo '{}'");
    let refused = |file: &Path| {
        let error = Authorize::new(&config(file, SOON), &account(), 2).unwrap_err();
        assert_eq!(error.code, Code::Config);
        error.text
    };
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for bad in [0o775, 0o757] {
        mode(&script.file, bad);
        assert!(refused(&script.file).contains("others can change"));
    }
    mode(&script.file, 0o644);
    assert!(refused(&script.file).contains("no program"));
    mode(&script.file, 0o755);
    mode(script.folder.path(), 0o777);
    assert!(refused(&script.file).contains("others can change"));
    mode(script.folder.path(), 0o755);
    let link = script.folder.path().join("notes/link");
    std::os::unix::fs::symlink(&script.file, &link).unwrap();
    Authorize::new(&config(&link, SOON), &account(), 2).unwrap();
    if is_root() {
        std::os::unix::fs::lchown(&link, Some(65534), None).unwrap();
        assert!(refused(&link).contains("others can change"));
        chown(&script.file, Some(65534), None).unwrap();
        assert!(refused(&script.file).contains("others can change"));
    }
    refused(Path::new("/no/such/program"));
    refused(script.folder.path());
}
