//! Who a process is, and what it begins with.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::thread::available_parallelism;

use nix::sys::fanotify::{EventFFlags, Fanotify, FanotifyResponse, InitFlags, MarkFlags, MaskFlags, Response};

use crate::machine::{ANN, BOB, Machine, TEAM, mode};
use crate::support::serve::records;
use crate::support::wait::{SOON, wait_for, wait_until};
use crate::support::{process, script};
use crate::support_net::child::{Watched, run};
use crate::support_net::report::{check, fails};
use crate::support_net::site::Plan;

/// The fields of /proc/PID/status.
fn status(pid: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" "))).collect()
}

/// The four user ids of a process.
fn uids(pid: i32) -> String {
    status(&pid.to_string()).get("Uid").cloned().unwrap_or_default()
}

#[test]
fn a_command_has_the_ids_and_groups_of_its_account_and_no_way_back() {
    let machine = Machine::start("\"any\"", Plan::any());
    for (account, id, groups) in [("ann", ANN, format!("{ANN} {TEAM}")), ("bob", BOB, BOB.to_string())] {
        let text = run(&mut machine.exec(account, &["cat", "/proc/self/status"])).ok().text();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(field("Uid"), [id; 4].map(|id| id.to_string()).join(" "), "{account}");
        assert_eq!(field("Gid"), [id; 4].map(|id| id.to_string()).join(" "), "{account}");
        let mut own: Vec<String> = field("Groups").split(' ').map(str::to_owned).collect();
        own.sort();
        assert_eq!(own.join(" "), groups, "{account}");
        for capabilities in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(field(capabilities), "0000000000000000", "{account} {capabilities}");
        }
        for signals in ["SigBlk", "SigIgn"] {
            // Two are the C library's own, and nobody else can set them (signal(7)).
            let own = 0b11 << 31;
            assert_eq!(u64::from_str_radix(&field(signals), 16).unwrap() & !own, 0, "{account} {signals}");
        }
    }
}

#[test]
fn a_command_begins_as_a_login_does() {
    let machine = Machine::start("\"any\"", Plan::any());
    let home = machine.home("bob");
    let mut expected = [
        format!("HOME={}", home.display()),
        "USER=bob".to_owned(),
        "LOGNAME=bob".to_owned(),
        "SHELL=/bin/bash".to_owned(),
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
    ];
    expected.sort();
    let mut command = machine.exec("bob", &["env"]);
    let mut environment: Vec<String> = run(&mut command).ok().text().lines().map(str::to_owned).collect();
    environment.sort();
    assert_eq!(environment, expected);
    let words = ["sh", "-c", "pwd; umask; ulimit -n; ls -C /proc/self/fd; ps -o sid=,pgid= -p $$; echo $$"];
    let text = run(&mut machine.exec("bob", &words)).ok().text();
    let lines: Vec<&str> = text.lines().collect();
    let [folder, umask, _descriptors, open, group, pid] = lines.as_slice() else { panic!("{text}") };
    assert_eq!((*folder, *umask), (home.to_str().unwrap(), "0022"));
    assert_eq!(open.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    assert_eq!(group.split_whitespace().collect::<Vec<_>>(), [*pid, *pid]);
}

#[test]
fn an_account_that_nobody_may_use_is_refused() {
    let machine = Machine::start("\"any\"", Plan::any());
    let file = machine.site.local_file("file", b"content");
    for (host, why) in [
        ("locked", "is locked"),
        ("expired", "has expired"),
        ("nologin", "lets nobody in"),
        ("shellless", "cannot be executed"),
        ("stranger", "does not exist"),
    ] {
        let ran = run(&mut machine.exec(host, &["true"]));
        let said = check(host, &ran, 255, "unauthorized");
        assert!(said.contains(why), "{host}: {said}");
        assert!(ran.stderr.contains("hint: ask whoever runs the endpoint to see to that account"), "{}", ran.stderr);
        fails(&mut machine.upload(&file, host, "file"), 1, "unauthorized");
    }
    wait_until("each refusal is recorded", SOON, || records(&machine.site.server_log(), "refused").len() == 10);
    let log = machine.site.server_log();
    assert!(records(&log, "session").is_empty() && records(&log, "upload").is_empty(), "nothing was allowed: {log}");
    for (mut command, status, code) in [
        (machine.exec("homeless", &["true"]), 255, "internal"),
        (machine.upload(&file, "homeless", "file"), 1, "storage"),
    ] {
        let said = fails(&mut command, status, code);
        assert!(said.contains(" cannot be entered on the host"), "{said}");
        let hinted = run(&mut command).stderr;
        assert!(hinted.contains("hint: ask whoever runs the endpoint to make it there"), "{hinted}");
    }
    run(&mut machine.exec("ann", &["true"])).ok();
    fs::write(machine.site.root.join("etc/nologin"), "maintenance\n").unwrap();
    let said = fails(&mut machine.exec("ann", &["true"]), 255, "unauthorized");
    assert!(said.contains("nologin"), "{said}");
}

#[test]
fn a_shadow_that_is_closed_to_root_takes_the_right_to_read_all_files() {
    let machine = Machine::start_with_closed_shadow("\"any\"", Plan::any(), "");
    let said = fails(&mut machine.exec("ann", &["true"]), 255, "unauthorized");
    assert!(said.contains("lacks CAP_DAC_READ_SEARCH"), "{said}");
    let machine = Machine::start_with_closed_shadow("\"any\"", Plan::any(), ",+dac_read_search");
    run(&mut machine.exec("ann", &["true"])).ok();
    let ran = run(&mut machine.exec("ann", &["cat", "/etc/shadow"]));
    assert_eq!((ran.code(), ran.text()), (Some(1), String::new()), "the account has not that right: {}", ran.stderr);
    let said = fails(&mut machine.exec("locked", &["true"]), 255, "unauthorized");
    assert!(said.contains("is locked"), "{said}");
}

#[test]
fn the_home_is_entered_with_the_accounts_rights() {
    let machine = Machine::start("\"any\"", Plan::any());
    let home = machine.home("ann");
    std::os::unix::fs::chown(&home, Some(0), Some(0)).unwrap();
    let said = fails(&mut machine.exec("ann", &["true"]), 255, "internal");
    assert!(said.contains("cannot be entered"), "{said}");
}

/// Mutagen would install an agent that is missing, and say of all this no more than that it cannot tell what system the host has.
#[test]
fn an_agent_in_a_home_that_cannot_be_entered_is_not_a_missing_one() {
    let machine = Machine::start("\"mutagen\"", Plan::any());
    let home = machine.home("ann");
    std::os::unix::fs::chown(&home, Some(0), Some(0)).unwrap();
    for host in ["homeless", "ann"] {
        let mut agent = machine.exec(host, &[".mutagen/agents/0.18.1/mutagen-agent", "synchronizer"]);
        let said = fails(&mut agent, 255, "internal");
        assert!(said.contains("cannot be entered"), "{host}: {said}");
    }
}

/// As on a disk that is far away, or where somebody stops the account's processes at just that moment.
#[test]
fn programs_that_cannot_be_executed_now_hold_up_nobody_else() {
    let machine = Machine::start("\"any\"", Plan::any());
    let program = machine.home("ann").join("far-away");
    script::install(Path::new("/bin/true"), &program);
    let (group, mark) = (InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_NONBLOCK, MarkFlags::FAN_MARK_ADD);
    let guard = Fanotify::init(group, EventFFlags::O_RDONLY).unwrap();
    guard.mark(mark, MaskFlags::FAN_OPEN_EXEC_PERM, rustix::fs::CWD, Some(&program)).unwrap();
    // More than the server has processors, and than it starts at once.
    let count = 2 * available_parallelism().unwrap().get() + 9;
    let sessions: Vec<Watched> =
        (0..count).map(|_| Watched::start(&mut machine.exec("ann", &["./far-away"]))).collect();
    let mut asked = Vec::new();
    wait_until("each waits for its program", SOON, || {
        asked.extend(guard.read_events().unwrap_or_default());
        asked.len() == count
    });
    run(&mut machine.exec("bob", &["true"])).ok();
    for event in &asked {
        guard.write_response(FanotifyResponse::new(event.fd().unwrap(), Response::FAN_ALLOW)).unwrap();
    }
    for session in sessions {
        session.wait().ok();
    }
}

/// The whole life of the server, and the user of every process that it has started.
#[test]
fn every_process_of_a_servers_life_belongs_to_the_account_it_works_for() {
    let mut machine = Machine::start("\"any\"", Plan::any());
    let server = machine.site.server().id();
    let mut seen = BTreeMap::<String, String>::new();
    for (account, id) in [("ann", ANN), ("bob", BOB)] {
        // Two sessions, one with children of its own, and an upload before and after.
        let file = machine.site.local_file("file", b"content");
        run(&mut machine.upload(&file, account, "file")).ok();
        let mut sessions: Vec<Watched> = [vec!["cat"], vec!["sh", "-c", "cat | cat"]]
            .into_iter()
            .map(|words| Watched::start(machine.exec(account, &words).stdin(Stdio::piped())))
            .collect();
        for session in &mut sessions {
            session.write(b"hello\n");
            session.wait_for_output("hello");
        }
        // What has stored the file may outlive its answer.
        let alive = wait_for("both sessions alone run", SOON, || {
            let alive = process::descendants(server);
            (alive.len() == 4).then_some(alive)
        });
        for process in alive {
            let words: Vec<_> = process.arguments.iter().map(|word| word.to_string_lossy()).collect();
            assert_eq!(uids(process.pid), [id; 4].map(|id| id.to_string()).join(" "), "{account}: {process:?}");
            seen.insert(format!("{account}: {}", words.join(" ")), uids(process.pid));
        }
        for session in sessions {
            session.wait().ok();
        }
        assert_eq!(machine.home(account).join("file").metadata().unwrap().uid(), id);
        wait_until("nothing of it runs any more", SOON, || process::descendants(server).is_empty());
    }
    println!("{seen:#?}");
    assert!(seen.len() == 4, "{seen:?}");
}

#[test]
fn an_upload_is_stored_by_a_process_of_the_accounts_and_belongs_to_it() {
    let mut machine = Machine::start("\"any\"", Plan::any());
    let server = machine.site.server().id();
    let address = machine.site.address();
    let mut command = machine.site.command(process::program("curl"));
    command
        .args(["--silent", "--http1.1", "--max-time", "20", "--upload-file", "-", "--request", "POST"])
        .args(["--header", "Content-Length: 6", "--header", "Transfer-Encoding:", "--header", "Expect:"])
        .args(["--cert", "client.crt", "--key", "client.key", "--cacert", "servers-ca.crt"])
        .arg("--resolve")
        .arg(format!("ann.tunnel.test:{}:{}", address.port(), address.ip()))
        .arg(format!("https://ann.tunnel.test:{}/tinyscale/v1/copy/slow", address.port()))
        .current_dir(&machine.site.root)
        .stdin(Stdio::piped());
    let mut upload = Watched::start(&mut command);
    let mut body = upload.stdin();
    body.write_all(b"con").unwrap();
    body.flush().unwrap();
    // Others look for what an earlier server has left, there too; but this one has a file open.
    let is_in_home = |child: &process::Process| {
        let open = fs::read_dir(format!("/proc/{}/fd", child.pid)).into_iter().flatten().flatten();
        open.filter_map(|entry| fs::read_link(entry.path()).ok())
            .any(|file| file.parent() == Some(&machine.home("ann")))
    };
    let children = || process::children(server).into_iter().filter(|child| child.mentions("tstunnel-store"));
    let storing = || children().find(is_in_home);
    wait_until("the upload has a process", SOON, || storing().is_some());
    let helper = storing().unwrap();
    assert_eq!(uids(helper.pid), [ANN; 4].map(|id| id.to_string()).join(" "));
    println!("tstunnel-store for ann: uid {}", uids(helper.pid));
    // The account's other processes could take whatever it has open: there is no log, and they may not look.
    assert_eq!(fs::read_link(format!("/proc/{}/fd/2", helper.pid)).unwrap(), Path::new("/dev/null"));
    assert_eq!(fs::metadata(format!("/proc/{}/fd", helper.pid)).unwrap().uid(), 0);
    body.write_all(b"ten").unwrap();
    drop(body);
    assert!(upload.wait().ok().text().contains("\"size\":6"));
    let path = machine.home("ann").join("slow");
    let metadata = path.metadata().unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (ANN, ANN, 0o644));
    assert_eq!(fs::read(path).unwrap(), b"conten");
    wait_until("its process has ended", SOON, || storing().is_none());
}

#[test]
fn a_home_that_the_account_cannot_write_takes_no_upload() {
    let machine = Machine::start("\"any\"", Plan::any());
    let file = machine.site.local_file("file", b"content");
    mode(&machine.home("ann"), 0o500);
    fails(&mut machine.upload(&file, "ann", "file"), 1, "storage");
}
