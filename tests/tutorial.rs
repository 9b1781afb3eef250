//! tstunnel-mutagen(7) and the five minutes of the README, command by command, with a real Mutagen: only addresses, homes and the
//! words that enter a container are this machine's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use support::manual::literal_blocks;
use support::mutagen::programs;
use support::serve::{Server, TSTUNNEL};
use support::user::User;
use support::wait::{SOON, wait_until};

/// What starts the server, and does not come back.
const SERVE: &str = "tstunnel serve --config server.toml\n";

/// Both machines of the reader: one user, whose home is the client's and the folder of the server.
struct Reader {
    user: User,
    server: Option<Server>,
}

impl Reader {
    fn new() -> Reader {
        let mut path = vec![Path::new(TSTUNNEL).parent().unwrap().to_owned(), programs().to_owned()];
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
        let path: OsString = std::env::join_paths(path).unwrap();
        let reader = Reader { user: User::with(vec![("PATH", path)]), server: None };
        for host in ["host123", "box"] {
            fs::create_dir(reader.home(host)).unwrap();
        }
        reader
    }

    fn home(&self, path: &str) -> PathBuf {
        self.user.home().join(path)
    }

    /// A block with what is this machine's own.
    fn adapted(&self, block: &str) -> String {
        let port = self.server.as_ref().map_or(0, |server| server.address().port());
        let host = if block.contains("[host.box]") { "box" } else { "host123" };
        let container = self.home("box");
        let container = container.display();
        block
            .replace("0.0.0.0:8443", "127.0.0.1:0")
            .replace("127.0.0.1:8443", &format!("127.0.0.1:{port}"))
            .replace(
                "endpoint = \"containers.example.net:8443\"",
                &format!("endpoint = \"127.0.0.1:{port}\"\nsni = \"{host}.containers.example.net\""),
            )
            .replace(
                "endpoint=containers.example.net:8443",
                &format!("endpoint=127.0.0.1:{port}&sni=host123.containers.example.net"),
            )
            .replace(
                "[host.host123]\n\n",
                &format!("[host.host123]\nhome = \"{}\"\n\n", self.home("host123").display()),
            )
            .replace(
                "[\"docker\", \"exec\", \"-i\", \"-w\", \"/root\", \"box\"]",
                &format!("[\"env\", \"-C\", \"{container}\", \"HOME={container}\"]"),
            )
            .replace("tcp:localhost:8080 host123", &format!("unix:{} host123", self.home("forward.sock").display()))
    }

    /// Does what a block says in a folder of the home; returns what it printed.
    fn follow(&mut self, block: &str, folder: &str) -> String {
        if block == SERVE {
            self.server = Some(Server::start(&self.home("server.toml")));
            return String::new();
        }
        let script = self.adapted(block);
        let output = self.user.run("sh").args(["-ec", &script]).current_dir(self.home(folder)).output().unwrap();
        let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{block}{stdout}{stderr}");
        if let Some(server) = self.server.as_ref().filter(|_| block.contains(">>server.toml")) {
            // A reader takes longer than the server does.
            wait_until("the server has noticed", SOON, || server.log().contains("reloaded"));
        }
        stdout
    }
}

#[test]
fn the_tutorial_leads_to_a_folder_that_is_synchronised() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("man/tstunnel-mutagen.7")).unwrap();
    let mut reader = Reader::new();
    let mut printed = String::new();
    for block in literal_blocks(&page) {
        let folder = if block.contains("cert=ann.crt") { ".config/tstunnel" } else { "" };
        printed.push_str(&reader.follow(&block, folder));
    }
    assert!(printed.contains("Linux x86_64\n") || printed.contains("Linux aarch64\n"), "{printed}");
    assert!(printed.contains("allowed"), "{printed}");
    for host in ["host123", "box"] {
        assert_eq!(fs::read_to_string(reader.home(host).join("app/hello.txt")).unwrap(), "hello\n");
    }
    assert!(reader.home("forward.sock").exists());
    assert_eq!(fs::read_to_string(reader.home("host123/src/hello.txt")).unwrap(), "hello\n");
}

#[test]
fn the_five_minutes_of_the_readme_lead_to_a_folder_that_is_synchronised() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let (_, section) = readme.split_once("\n## Five minutes\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let lines = section.lines().filter(|line| line.is_empty() || line.starts_with("    "));
    let commands: String = lines.map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect();
    let (on_the_host, on_your_machine) = commands.split_once(SERVE).unwrap();

    let mut reader = Reader::new();
    reader.follow(on_the_host, "");
    reader.follow(SERVE, "");
    fs::create_dir(reader.home("app")).unwrap();
    fs::write(reader.home("app/hello.txt"), "hello\n").unwrap();
    reader.follow(on_your_machine, "tstunnel-pki");

    assert_eq!(fs::read_to_string(reader.home("host123/app-there/hello.txt")).unwrap(), "hello\n");
}
