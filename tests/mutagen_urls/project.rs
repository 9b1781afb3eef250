//! `tstunnel mutagen project start`: URLs in a project's file, for a project that plain `mutagen` goes on with.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::mutagen::text;
use crate::support::process::run;
use crate::support::remote::Remote;
use crate::support::tree::{self, assert_same};
use crate::support::user::User;
use crate::support::wait::{SOON, wait_until};
use crate::{in_home, mutagen, plain_mutagen, remote, sessions, user};

/// A user with a project's folder below their home.
struct Project {
    user: User,
    name: &'static str,
}

impl Project {
    fn new(name: &'static str, yaml: &str) -> Project {
        let project = Project { user: user(), name };
        fs::create_dir(project.folder()).unwrap();
        project.write(yaml);
        project
    }

    fn folder(&self) -> PathBuf {
        self.user.home().join("project")
    }

    fn write(&self, yaml: &str) {
        fs::write(self.folder().join(self.name), yaml).unwrap();
    }

    fn start(&self) -> std::process::Command {
        let file = format!("project/{}", self.name);
        mutagen(&self.user, &["project", "start", "--no-global-configuration", "-f", &file])
    }

    fn plain(&self, words: &[&str]) -> std::process::Command {
        let mut command = plain_mutagen(&self.user, &["project"]);
        command.args(words).args(["-f", self.name]).current_dir(self.folder());
        command
    }

    /// What is in the folder.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder()).unwrap().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// A project with a folder and a forwarding to `remote`, with commands, comments and paths of its own.
fn yaml(remote: &Remote) -> String {
    let folder = remote.tunnel_url(&in_home(remote, "tree"));
    let port = remote.tunnel_url("/tcp:localhost:9");
    format!(
        "# beta: tstunnel://h\nbeforeCreate:\n  - 'echo tstunnel://h >before'\ncommands:\n  where: pwd >where\n\
         sync:\n  defaults: {{mode: two-way-resolved, flushOnCreate: true}}\n  tree:\n    alpha: tree\n    beta: {folder} # there\n\
         forward:\n  port:\n    source: \"unix:forward.sock\"\n    destination: '{port}'\n"
    )
}

#[test]
fn a_project_is_started_with_urls_and_gone_on_with_by_plain_mutagen() {
    for name in ["mutagen.yml", "other.yaml"] {
        let remote = remote();
        let project = Project::new(name, &yaml(&remote));
        let here = project.folder().join("tree");
        tree::generate(&here, 20, 1);
        run(&mut project.start());
        assert_same(&here, &remote.home().join("tree"));
        assert_eq!(fs::read_to_string(project.folder().join("before")).unwrap(), "tstunnel://h\n");
        let lock = format!("{name}.lock");
        assert_eq!(project.names(), ["before", "forward.sock", name, &lock, "tree"]);
        assert_eq!(fs::read_to_string(project.folder().join(name)).unwrap(), yaml(&remote));

        let again = project.start().output().unwrap();
        assert!(String::from_utf8_lossy(&again.stderr).contains("project already running"), "{again:?}");
        assert_eq!(again.status.code(), Some(1));
        assert!(project.folder().join(&lock).exists());

        let listed = run(&mut project.plain(&["list"]));
        assert!(listed.contains("Name: tree") && listed.contains("Name: port"), "{listed}");
        assert_eq!(sessions(&project.user).len(), 1);
        assert_eq!(text(&sessions(&project.user)[0], "/alpha/path"), here.to_str().unwrap());
        run(&mut project.plain(&["pause"]));
        assert_eq!(sessions(&project.user)[0]["paused"], true);
        fs::write(here.join("later"), "later").unwrap();
        run(&mut project.plain(&["resume"]));
        run(&mut project.plain(&["flush"]));
        assert_same(&here, &remote.home().join("tree"));
        run(&mut project.plain(&["run", "where"]));
        assert_eq!(
            fs::read_to_string(project.folder().join("where")).unwrap().trim(),
            project.folder().to_str().unwrap()
        );
        run(&mut project.plain(&["terminate"]));
        assert!(sessions(&project.user).is_empty());
        assert!(!project.folder().join(&lock).exists());
    }
}

#[test]
fn a_file_that_is_wrong_is_refused_by_its_line_and_leaves_nothing() {
    let project = Project::new("mutagen.yml", "sync:\n  a:\n    beta: tstunnel://host123/app?endpoint=localhost\n");
    let output = project.start().output().unwrap();
    crate::assert_refused(&output, 1, "project/mutagen.yml, line 3: `host123` has no `cert` and `key`", "cert=");
    project.write("sync: [\n# tstunnel://\n");
    let output = project.start().output().unwrap();
    crate::assert_refused(&output, 1, "project/mutagen.yml, line ", "");
    assert_eq!(project.names(), ["mutagen.yml"]);
    assert!(!project.user.memory().exists() && !project.user.home().join(".mutagen").exists());
}

#[test]
fn a_misspelt_scheme_is_refused_by_its_line_and_what_is_no_yaml_is_left_to_mutagen() {
    let misspelt = "sync:\n  a:\n    alpha: .\n    beta: tstunel://host123/app?endpoint=localhost\n";
    let project = Project::new("mutagen.yml", misspelt);
    let output = project.start().output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let expected = "tstunnel: error[usage]: project/mutagen.yml, line 4: the URL's `tstunel://` is not tstunnel://\n";
    assert!(stderr.starts_with(expected), "{stderr}");
    assert!(!project.user.home().join(".mutagen").exists());
    project.write("sync: [\n");
    let output = project.start().output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && !stderr.contains("tstunnel: "), "{stderr}");
}

#[test]
fn a_start_goes_on_after_the_signals_that_it_was_told_to_ignore() {
    let remote = remote();
    let project = Project::new("mutagen.yml", "");
    let pid = project.folder().join("pid");
    let tell = "  - 'for signal in HUP INT QUIT TERM; do kill -$signal $(cat pid); done'\ncommands:";
    project.write(&yaml(&remote).replace("commands:", tell));
    tree::generate(&project.folder().join("tree"), 5, 3);
    let mut command = project.user.run("sh");
    let start = project.start();
    let line = format!("trap '' HUP INT QUIT TERM; echo $$ >'{}'; exec \"$@\"", pid.display());
    command.args(["-c", &line, "sh"]).arg(start.get_program()).args(start.get_args());
    run(&mut command);
    assert_same(&project.folder().join("tree"), &remote.home().join("tree"));
}

#[test]
fn a_project_that_mutagen_gives_up_can_be_started_when_it_is_right() {
    let remote = remote();
    let right = yaml(&remote);
    let project = Project::new("mutagen.yml", &format!("{right}unknown: 1\n"));
    tree::generate(&project.folder().join("tree"), 5, 2);
    let output = project.start().output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("unknown"), "{output:?}");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(project.names(), ["mutagen.yml", "tree"]);
    project.write(&right);
    run(&mut project.start());
    assert_same(&project.folder().join("tree"), &remote.home().join("tree"));
}

#[test]
fn a_start_that_is_ended_leaves_only_what_mutagen_leaves() {
    let remote = remote();
    let project = Project::new(
        "mutagen.yml",
        &yaml(&remote).replace("commands:", "  - 'touch began; exec sleep 1000'\ncommands:"),
    );
    let mut child = project.start().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the command runs", SOON, || project.folder().join("began").exists());
    assert_eq!(project.names().iter().filter(|name| name.contains(".tstunnel-")).count(), 2);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(128 + 15));
    assert_eq!(project.names(), ["before", "began", "mutagen.yml", "mutagen.yml.lock"]);
    run(&mut project.plain(&["terminate"]));
    assert_eq!(project.names(), ["before", "began", "mutagen.yml"]);
}
