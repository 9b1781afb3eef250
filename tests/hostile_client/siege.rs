//! A server under attack, with a client that it knows, and what must hold of it all the time and afterwards.

use std::fs;

use crate::caller::Caller;
use crate::support::process;
use crate::support::wait::{SOON, wait_until};
use crate::support_net::child::run;
use crate::support_net::site::{PRINCIPAL, Plan, SERVER_NAME, Site};

/// What a process may have grown by: the allocator keeps some of what was freed.
const SLACK_KIB: u64 = 4 << 10;

/// The command of a request that must never be carried out: it leaves a file in the home.
pub(crate) const STARTS: &str = "{\"command\": \"touch started\"}";

/// The name of an upload that every host takes: one of Mutagen's.
const UPLOADED: &str = ".mutagen-agent0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";

/// The fields of a request for a stream without frames.
pub(crate) const RAW: &str = "Connection: Upgrade\r\nUpgrade: tcp\r\n";

/// A server, a granted client, and what the server was like before.
pub(crate) struct Siege {
    pub(crate) site: Site,
    pub(crate) caller: Caller,
    pub(crate) pid: u32,
    before: Figures,
}

/// What a process holds.
#[derive(Clone, Copy, Debug)]
struct Figures {
    memory_kib: u64,
    descriptors: usize,
    children: usize,
}

impl Siege {
    /// Begins with a server of this plan that has served everything once.
    pub(crate) fn of(plan: &Plan) -> Siege {
        Siege::prepared(plan, |_| {})
    }

    /// The same, with files that are changed before the server reads them.
    pub(crate) fn prepared(plan: &Plan, prepare: impl FnOnce(&Site)) -> Siege {
        let mut site = Site::new();
        prepare(&site);
        site.serve(plan);
        let pid = site.server().id();
        let caller = Caller::new(&site, &site.clients.client(PRINCIPAL));
        let warm = Siege { before: Figures::of(pid), site, caller, pid };
        warm.serves();
        wait_until("the first clients are forgotten", SOON, || Figures::of(pid).descriptors <= warm.before.descriptors);
        Siege { before: Figures::of(pid), ..warm }
    }

    /// One with a host that takes every command, in a shell.
    pub(crate) fn any() -> Siege {
        Siege::of(&Plan::any())
    }

    /// One with a host that takes Mutagen's commands and uploads only.
    pub(crate) fn mutagen() -> Siege {
        Siege::of(&Plan::mutagen())
    }

    /// Checks that nothing was started and nothing stored.
    #[track_caller]
    pub(crate) fn nothing_happened(&self, what: &str) {
        assert_eq!(self.site.names(), Vec::<String>::new(), "{what}: something was stored");
        let running = process::with_home(&self.site.home);
        assert!(running.is_empty(), "{what}: something was started: {running:?}");
    }

    /// Checks that `wire` is refused as malformed; `what` shows it.
    #[track_caller]
    pub(crate) fn is_malformed(&self, what: &[u8], wire: &[u8]) {
        let what = what.escape_ascii().to_string();
        self.caller.say(wire).is_refused(&what, 400, "bad-request");
        self.nothing_happened(&what);
    }

    /// Checks that a good client is served as ever, and that nothing of the others is left.
    #[track_caller]
    pub(crate) fn end(self) {
        self.serves();
        self.site.wait_until_idle();
        wait_until("nothing is stored any more", SOON, || self.site.names().is_empty());
        let before = self.before;
        let mut now = Figures::of(self.pid);
        wait_until("the server holds no more descriptors and processes than before", SOON, || {
            now = Figures::of(self.pid);
            now.descriptors <= before.descriptors && now.children <= before.children
        });
        assert!(now.memory_kib <= before.memory_kib + SLACK_KIB, "the server has grown: {before:?}, now {now:?}");
        let log = self.site.server_log();
        assert!(!log.contains("panicked"), "{log}");
    }

    /// Has the granted client ask, run something and store something that every host takes, and tidies up.
    #[track_caller]
    pub(crate) fn serves(&self) {
        self.caller.say(get("/host", "")).is_served("a good client", 200);
        self.caller.say(post(&format!("/copy/{UPLOADED}"), "", "good")).is_served("a good upload", 201);
        assert_eq!(fs::read(self.site.home.join(UPLOADED)).unwrap(), b"good");
        fs::remove_file(self.site.home.join(UPLOADED)).unwrap();
        assert!(run(&mut self.site.exec(&["uname", "-s", "-m"])).ok().text().starts_with("Linux "));
    }
}

impl Figures {
    fn of(pid: u32) -> Figures {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the server is alive");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says VmRSS");
        Figures {
            memory_kib: resident.trim().trim_end_matches(" kB").parse().unwrap(),
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
            children: process::children(pid).len(),
        }
    }
}

/// A GET below the upgrade base; `fields` are whole lines.
pub(crate) fn get(path: &str, fields: &str) -> String {
    format!("GET /tinyscale/v1{path} HTTP/1.1\r\nHost: {SERVER_NAME}\r\n{fields}\r\n")
}

/// A POST below the upgrade base, with the length that its body has.
pub(crate) fn post(path: &str, fields: &str, body: &str) -> String {
    let length = body.len();
    post_as_is(path, &format!("{fields}Content-Length: {length}\r\n"), body)
}

/// A POST that has only the fields that are given.
pub(crate) fn post_as_is(path: &str, fields: &str, body: &str) -> String {
    format!("POST /tinyscale/v1{path} HTTP/1.1\r\nHost: {SERVER_NAME}\r\n{fields}\r\n{body}")
}

/// A whole request that would start something, with this request line and these fields before its own.
pub(crate) fn request(line: &[u8], fields: &[u8]) -> Vec<u8> {
    [line, b"\r\n", fields, RAW.as_bytes(), format!("Content-Length: {}\r\n\r\n{STARTS}", STARTS.len()).as_bytes()]
        .concat()
}
