//! A machine with accounts of its own, and a server on it that is root.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::process;
use crate::support_net::site::{DOMAIN, PRINCIPAL, Plan, Site};

/// The ids of the accounts that may be used. Nobody on a real machine has them.
pub(crate) const ANN: u32 = 61_001;
pub(crate) const BOB: u32 = 61_002;
/// A group that ann is a member of, beside her own.
pub(crate) const TEAM: u32 = 61_100;

/// An account: its name, its ids, its password field, its day of expiry and its shell.
const ACCOUNTS: [(&str, u32, &str, &str, &str); 7] = [
    ("ann", ANN, "*", "", "/bin/sh"),
    ("bob", BOB, "*", "", "/bin/bash"),
    ("locked", 61_003, "!*", "", "/bin/sh"),
    ("expired", 61_004, "*", "10000", "/bin/sh"),
    ("nologin", 61_005, "*", "", "/usr/sbin/nologin"),
    ("shellless", 61_006, "*", "", "/no/such/shell"),
    ("homeless", 61_007, "*", "", "/bin/sh"),
];

/// The machine, whose server has a host of the same name for each account, and one for an account that is not there.
pub(crate) struct Machine {
    pub(crate) site: Site,
}

impl Machine {
    /// Starts one whose server has of root's rights what its systemd unit leaves it. `plan` may add hosts and grants; `commands` is
    /// what the accounts' hosts allow.
    pub(crate) fn start(commands: &str, plan: Plan) -> Machine {
        let confinement = format!("setpriv --no-new-privs --bounding-set=-all{} --", unit_capabilities());
        Machine::start_in(&confinement, commands, plan)
    }

    /// The same with a session keyring of its own, as systemd gives a service one.
    pub(crate) fn start_with_keyring(commands: &str, plan: Plan) -> Machine {
        let join =
            "import ctypes, os, sys; ctypes.CDLL(None).syscall(250, 1, None); os.execvp(sys.argv[1], sys.argv[1:])";
        let confinement =
            format!("python3 -c '{join}' setpriv --no-new-privs --bounding-set=-all{} --", unit_capabilities());
        Machine::start_in(&confinement, commands, plan)
    }

    /// The same with every right of root's, for a wrapper that enters a container by itself.
    pub(crate) fn unconfined(commands: &str, plan: Plan) -> Machine {
        Machine::start_in("", commands, plan)
    }

    /// The same where /etc/shadow has mode 0000, as on RHEL, and with more `rights` of root's.
    pub(crate) fn start_with_closed_shadow(commands: &str, plan: Plan, rights: &str) -> Machine {
        let bounds = format!("-all{}{rights}", unit_capabilities());
        let confinement = format!(
            "sh -c 'chmod 0000 /etc/shadow && exec setpriv --no-new-privs --bounding-set={bounds} -- \"$@\"' sh"
        );
        Machine::start_in(&confinement, commands, plan)
    }

    fn start_in(confinement: &str, commands: &str, plan: Plan) -> Machine {
        assert!(rustix::process::geteuid().is_root(), "these tests need root: they become other accounts");
        let mut site = Site::new();
        // What the accounts must pass through to their homes.
        mode(&site.root, 0o711);
        let etc = site.root.join("etc");
        process::run(Command::new("cp").args(["-a", "/etc"]).arg(&etc));
        let mut plan = plan;
        let mut tables = String::new();
        for (name, id, password, expiry, shell) in ACCOUNTS {
            let home = site.root.join(name);
            append(&etc.join("passwd"), &format!("{name}:x:{id}:{id}::{}:{shell}\n", home.display()));
            append(&etc.join("shadow"), &format!("{name}:{password}:19000:0:99999:7::{expiry}:\n"));
            append(&etc.join("group"), &format!("{name}:x:{id}:\n"));
            if name != "homeless" {
                fs::create_dir(&home).unwrap();
                mode(&home, 0o700);
                chown(&home, Some(id), Some(id)).unwrap();
            }
            let _ = writeln!(tables, "[host.{name}]\naccount = \"{name}\"\ncommands = {commands}\nshell = false");
        }
        append(&etc.join("group"), &format!("team:x:{TEAM}:ann\n"));
        let _ = writeln!(tables, "[host.stranger]\naccount = \"no-such-account\"\ncommands = \"any\"");
        let _ = writeln!(tables, "[[grant]]\nprincipal = \"{PRINCIPAL}\"\nhosts = [\"*\"]");
        plan = plan.tables(&tables);
        let script = format!("mount --bind '{}' /etc && exec {confinement} \"$@\"", etc.display());
        let launcher = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script, "sh"];
        site.serve_by(&plan, &launcher.map(str::to_owned));
        let machine = Machine { site };
        machine.configure();
        machine
    }

    /// The client's configuration: every host of the server by its own name.
    fn configure(&self) {
        let text = format!(
            "[host.\"*\"]\nendpoint = \"{}\"\ncert = \"client.crt\"\nkey = \"client.key\"\nca = \"servers-ca.crt\"\n",
            self.site.address()
        );
        let mut whole = String::new();
        for name in ACCOUNTS.map(|account| account.0).into_iter().chain(["stranger", "box", "host123"]) {
            let _ = writeln!(whole, "[host.{name}]\nsni = \"{name}.{DOMAIN}\"");
        }
        fs::write(self.site.configuration(), whole + &text).unwrap();
    }

    pub(crate) fn home(&self, account: &str) -> PathBuf {
        self.site.root.join(account)
    }

    /// `tstunnel exec HOST -- WORDS…`.
    pub(crate) fn exec(&self, host: &str, words: &[&str]) -> Command {
        let mut command = self.site.tstunnel(&["exec", host, "--"]);
        command.args(words);
        command
    }

    /// `tstunnel upload FILE HOST:NAME`.
    pub(crate) fn upload(&self, file: &Path, host: &str, name: &str) -> Command {
        self.site.tstunnel(&["upload", file.to_str().unwrap(), &format!("{host}:{name}")])
    }

    /// Writes a file into an account's home, as that account's and for nobody else.
    pub(crate) fn write(&self, account: &str, name: &str, content: &[u8]) -> PathBuf {
        let id = ACCOUNTS.iter().find(|row| row.0 == account).expect("an account of the machine").1;
        let path = self.home(account).join(name);
        fs::write(&path, content).unwrap();
        mode(&path, 0o600);
        chown(&path, Some(id), Some(id)).unwrap();
        path
    }
}

/// The capabilities that the unit names, as setpriv(1) takes them.
fn unit_capabilities() -> String {
    let unit = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/tstunnel.service")).unwrap();
    let names = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("the unit names some");
    names.split(' ').map(|name| name.replace("CAP_", ",+").to_lowercase()).collect()
}

pub(crate) fn mode(path: &Path, bits: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap();
}

pub(crate) fn append(path: &Path, text: &str) {
    let whole = fs::read_to_string(path).unwrap() + text;
    fs::write(path, whole).unwrap();
}
