//! Counting what the real client does against the real server, and the other way round.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::Task;
use crate::support::process::{self, Process, Signal, program};
use crate::support::serve::TSTUNNEL;
use crate::support::wait::{SOON, wait_for};
use crate::support_net::child::Watched;
use crate::support_net::site::{HOST, Plan, Site, text};

/// What was counted, by name.
pub(crate) type Counts = BTreeMap<String, u64>;

/// How long a counted process may take: emulated, on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Bytes of a transfer.
pub(crate) const BYTES: usize = 8 << 20;
/// How many messages come back, one after the other, and what one is.
const MESSAGES: usize = 200;
const MESSAGE: [u8; 64] = [b'.'; 64];

/// The name of the instructions among what callgrind counts.
pub(crate) const INSTRUCTIONS: &str = "instructions";

/// What counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    Callgrind,
    Strace,
}

impl Tool {
    /// The words before a command to count, where the result goes to `output`. A server's children are not counted.
    fn words(self, output: &Path) -> Vec<String> {
        let output = text(output);
        match self {
            Tool::Callgrind => vec![
                text(&program("valgrind")).to_owned(),
                "--tool=callgrind".to_owned(),
                "--callgrind-out-file=/dev/null".to_owned(),
                "--trace-syscalls=yes".to_owned(),
                format!("--log-file={output}"),
            ],
            Tool::Strace => {
                let options = ["-f", "-b", "execve", "-c", "-o", output].map(str::to_owned);
                [vec![text(&program("strace")).to_owned()], options.to_vec()].concat()
            }
        }
    }

    /// Reads what was counted.
    fn counts(self, output: &Path) -> Counts {
        let written = fs::read_to_string(output).unwrap();
        let counts = match self {
            Tool::Callgrind => emulated(&written),
            Tool::Strace => system_calls(&written),
        };
        counts.unwrap_or_else(|| panic!("{self:?} has counted nothing:\n{written}"))
    }
}

/// What a client does in a session.
pub(crate) fn client(task: Task, tool: Tool) -> Counts {
    let pinned = pinned(Processor::First);
    let site = site(&pinned);
    let output = site.root.join("local/counted");
    let launcher = [pinned, tool.words(&output)].concat();
    run(&site, task, &launcher);
    tool.counts(&output)
}

/// What a server does from its start to its end, with one session in between.
pub(crate) fn server(task: Task, tool: Tool) -> Counts {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("counted");
    let pinned = pinned(Processor::Last);
    let mut site = site(&[pinned.clone(), tool.words(&output)].concat());
    run(&site, task, &pinned);
    site.wait_until_idle();
    serving(site.server_id()).signal(Signal::TERM);
    let ended = wait_for("the server ends", LIMIT, || site.server().ended());
    assert!(ended.success(), "the server ended: {ended}");
    tool.counts(&output)
}

/// A site whose server is started by `launcher`. What is written beside the server's files while it runs makes it look at them a
/// moment later, which may be after the session or before. So nothing is: the client's configuration is a link to elsewhere.
fn site(launcher: &[String]) -> Site {
    let mut site = Site::new();
    std::os::unix::fs::symlink(site.root.join("local/config.toml"), site.configuration()).unwrap();
    site.serve_by(&Plan::any(), launcher);
    site
}

/// Runs a client to its end. Its streams are never waited for, as regular files or /dev/null, but where messages come back.
fn run(site: &Site, task: Task, launcher: &[String]) {
    let mut command = site.command(&launcher[0]);
    command.args(&launcher[1..]).args([TSTUNNEL, "exec", HOST, "--", &task.command()]).stderr(Stdio::piped());
    match task {
        Task::NoOp | Task::Down => {}
        Task::Up => {
            command.stdin(File::open(site.local_file("sent", &vec![0; BYTES])).unwrap());
        }
        Task::Echo => return exchange(command),
    }
    Watched::start_with(command.stdout(Stdio::null())).wait_within(LIMIT).ok();
}

/// Sends messages, each when the one before has come back.
fn exchange(mut command: Command) {
    let (stdin, mut there) = std::io::pipe().unwrap();
    let (mut back, stdout) = std::io::pipe().unwrap();
    let client = Watched::start_with(command.stdin(stdin).stdout(stdout));
    // With its copies of the pipes' other ends.
    drop(command);
    for _ in 0..MESSAGES {
        there.write_all(&MESSAGE).unwrap();
        let mut message = [0; MESSAGE.len()];
        back.read_exact(&mut message).unwrap();
        assert_eq!(message, MESSAGE);
    }
    drop(there);
    client.wait_within(LIMIT).ok();
}

/// The server itself: strace is its parent, and valgrind has become it.
fn serving(id: u32) -> Process {
    let is_server =
        |process: &Process| process.arguments.first().is_some_and(|word| Path::new(word) == Path::new(TSTUNNEL));
    wait_for("the server is there", SOON, || {
        let all = process::all().into_iter().filter(|process| u32::try_from(process.pid) == Ok(id));
        let children = process::children(id).into_iter().filter(is_server);
        children.chain(all).next()
    })
}

/// Where both sides run; the client's test and the server's are not in each other's way where there are two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Processor {
    First,
    Last,
}

/// The words before a command that keep it on one processor, its dynamic linker to where a user's looks, and no signal ignored
/// that a shell in the background had ignored.
fn pinned(processor: Processor) -> Vec<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    let mut numbers = allowed.split([',', '-']);
    let number = match processor {
        Processor::First => numbers.next(),
        Processor::Last => numbers.next_back(),
    };
    let programs = ["env", "taskset"].map(program);
    [text(&programs[0]), "--default-signal", "-u", "LD_LIBRARY_PATH", text(&programs[1]), "-c", number.unwrap()]
        .map(str::to_owned)
        .to_vec()
}

/// The number in callgrind's `==PID== Collected : N`, and the calls in lines as `SYSCALL[PID,THREAD](NUMBER) sys_NAME (…`. Without
/// emulation the clock is read by no system call.
fn emulated(log: &str) -> Option<Counts> {
    let collected = log.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok())?;
    let mut counts: Counts = [(INSTRUCTIONS.to_owned(), collected)].into();
    let calls = log
        .lines()
        .filter_map(|line| line.strip_prefix("SYSCALL[")?.split_once(") sys_")?.1.split([' ', '(', '[']).next());
    for name in calls.filter(|name| *name != "clock_gettime") {
        *counts.entry(name.to_owned()).or_default() += 1;
    }
    Some(counts)
}

/// The calls by name in strace's table, whose columns are share, seconds, microseconds a call, calls, errors or none, name.
fn system_calls(table: &str) -> Option<Counts> {
    let rows = table.lines().filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        Some(((*columns.last()?).to_owned(), columns.get(3)?.parse().ok()?))
    });
    let mut counts: Counts = rows.collect();
    // The sum, which is also proof that the table is whole.
    let total = counts.remove("total")?;
    (total == counts.values().sum::<u64>()).then_some(counts)
}

#[test]
fn what_the_tools_write_is_read() {
    let log = "SYSCALL[7,1](0) sys_read ( 3, 0x1, 832 ) --> [async] ... \nSYSCALL[7,1](0) ... [async] --> Success(0x340) \n\
               SYSCALL[7,1](72) sys_fcntl[ARG3=='arg'] ( 3, 1030, 3 )[sync] --> Success(0x4) \n\
               SYSCALL[7,1](228) sys_clock_gettime( 1, 0x1 )[sync] --> Success(0x0) \n==7== Collected : 5578423\n";
    assert_eq!(
        emulated(log),
        Some([(INSTRUCTIONS.to_owned(), 5_578_423), ("fcntl".to_owned(), 1), ("read".to_owned(), 1)].into())
    );
    assert_eq!(emulated("==7== killed\n"), None);
    let table = "% time     seconds  usecs/call     calls    errors syscall\n\
                 ------ ----------- ----------- --------- --------- ------------------\n\
                 100.00    0.000253          11        23         1 openat\n  \
                 0.00    0.000000           0         5           write\n\
                 ------ ----------- ----------- --------- --------- ------------------\n\
                 100.00    0.000253           0        28         1 total\n";
    let counts: Counts = [("openat".to_owned(), 23), ("write".to_owned(), 5)].into();
    assert_eq!(system_calls(table), Some(counts));
    assert_eq!(system_calls("strace: cannot attach\n"), None);
    assert_eq!(system_calls(&table.replace(" 28 ", " 29 ")), None);
}
