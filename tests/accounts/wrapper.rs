//! A host behind a wrapper that enters namespaces with a root and a home of their own, as containers are reached.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::machine::{ANN, Machine};
use crate::support::process::{self, Group, Signal};
use crate::support::wait::{SOON, wait_for, wait_until};
use crate::support_net::child::{Watched, run};
use crate::support_net::report::fails;
use crate::support_net::site::Plan;

/// A container: the machine's programs, and a root and a home of its own.
struct Container {
    folder: tempfile::TempDir,
    init: Group,
}

impl Container {
    fn start() -> Container {
        let folder = tempfile::Builder::new().prefix("ts-box-").tempdir().unwrap();
        let root = folder.path().join("root");
        for name in ["usr", "proc", "tmp", "home/box", "etc"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        for name in ["bin", "lib", "lib64", "sbin"] {
            std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name)).unwrap();
        }
        fs::write(root.join("etc/motd"), "inside\n").unwrap();
        let script = format!(
            "mount --bind /usr '{0}/usr' && mount -t proc proc '{0}/proc' && touch '{1}' && exec chroot '{0}' sleep infinity",
            root.display(),
            folder.path().join("up").display()
        );
        let init = Group::spawn(
            Command::new("unshare")
                .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--ipc", "--uts"])
                .args(["sh", "-c", &script])
                .stdin(Stdio::null())
                .stdout(Stdio::null()),
        );
        let container = Container { folder, init };
        wait_until("the container is up", SOON, || container.init_pid().is_some());
        container
    }

    /// The first process in it, once it has its root.
    fn init_pid(&self) -> Option<i32> {
        let children = process::descendants(self.init.id());
        children.iter().find(|process| process.mentions("infinity") && process.arguments[0] == "sleep").map(|p| p.pid)
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("root/home/box")
    }

    /// The words that enter it, as `account`.
    fn wrapper(&self) -> String {
        let pid = self.init_pid().expect("the container is up").to_string();
        let words = [
            "nsenter",
            "--target",
            &pid,
            "--mount",
            "--pid",
            "--ipc",
            "--uts",
            "--root",
            "--setuid",
            &ANN.to_string(),
            "--setgid",
            &ANN.to_string(),
            "--",
            "env",
            "-C",
            "/home/box",
            "HOME=/home/box",
        ]
        .map(|word| format!("{word:?}"));
        format!("wrapper = [{}]", words.join(", "))
    }
}

fn machine(container: &Container, lines: &str) -> Machine {
    std::os::unix::fs::chown(container.home(), Some(ANN), Some(ANN)).unwrap();
    let host = format!("[host.box]\naccount = \"root\"\n{}\n{lines}", container.wrapper());
    Machine::unconfined("\"any\"", Plan::any().tables(&host))
}

#[test]
fn commands_run_in_the_containers_own_root_and_home() {
    let container = Container::start();
    let machine = machine(&container, "commands = \"any\"\nshell = false");
    let words = ["sh", "-c", "pwd; cat /etc/motd; id -u; echo $HOME; exit 7"];
    let ran = run(&mut machine.exec("box", &words));
    assert_eq!((ran.code(), ran.text()), (Some(7), format!("/home/box\ninside\n{ANN}\n/home/box\n")), "{}", ran.stderr);
    let missing = run(&mut machine.exec("box", &["no-such-program"]));
    assert_eq!(missing.code(), Some(127), "{}", missing.stderr);
}

#[test]
fn uploads_land_in_the_containers_home_whole_or_not_at_all() {
    let container = Container::start();
    let machine = machine(&container, "commands = \"any\"\nshell = false");
    let content = vec![b'x'; 3 << 20];
    let file = machine.site.local_file("file", &content);
    for option in ["--no-compress", "--mode=0755"] {
        run(machine.upload(&file, "box", "arrived").arg(option)).ok();
        assert_eq!(fs::read(container.home().join("arrived")).unwrap(), content, "{option}");
    }
    run(&mut machine.exec("box", &["test", "-x", "arrived"])).ok();
    fs::create_dir(container.home().join("folder")).unwrap();
    fails(&mut machine.upload(&file, "box", "folder"), 1, "storage");
    let mut command = machine.site.curl_to("box.tunnel.test", "/tinyscale/v1/copy/bad");
    let answer = run(command
        .args(["--data-binary", "content", "--header"])
        .arg("Unencoded-Digest: sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:"))
    .ok()
    .text();
    assert!(answer.starts_with("HTTP/1.1 422 "), "{answer}");
    let mut names: Vec<_> = fs::read_dir(container.home())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["arrived", "folder"]);
}

#[test]
fn the_ladder_ends_what_runs_in_the_container() {
    let container = Container::start();
    let mut machine = machine(&container, "commands = \"any\"\nshell = false");
    let script = "exec 2>&-; trap 'echo told >/home/box/told' TERM; echo up; while :; do sleep 0.1; done";
    let mut session = Watched::start(machine.exec("box", &["sh", "-c", script]).stdin(Stdio::piped()));
    session.wait_for_output("up");
    let server = machine.site.server().id();
    let inside = || process::all().into_iter().filter(|process| process.mentions("/home/box/told")).count();
    assert!(inside() > 0);
    session.signal(Signal::KILL);
    machine.site.server().signal(Signal::TERM);
    wait_for("the server ends", SOON, || machine.site.server().ended());
    wait_until("nothing of it is left", SOON, || process::descendants(server).is_empty() && inside() == 0);
    assert!(container.home().join("told").exists(), "it was told before it was killed");
}

#[test]
fn a_program_cannot_pass_for_an_option_of_the_wrapper() {
    let host = "[host.box]\naccount = \"root\"\ncommands = \"any\"\nshell = false\n\
                wrapper = [\"setpriv\", \"--reuid\", \"65534\", \"--clear-groups\"]";
    let machine = Machine::unconfined("\"any\"", Plan::any().tables(host));
    assert_eq!(run(&mut machine.exec("box", &["id", "-u"])).ok().text(), "65534\n");
    let ran = run(&mut machine.exec("box", &["--reuid=0", "id", "-u"]));
    assert_eq!((ran.code(), ran.text()), (Some(126), String::new()), "{}", ran.stderr);
    assert!(ran.stderr.contains("cannot begin with `-`"), "{}", ran.stderr);
}
