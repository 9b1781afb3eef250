//! `tstunnel mutagen env`: plain `mutagen` finds tstunnel in a shell that evaluates it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::support::mutagen::{Daemon, programs};
use crate::support::process::run;
use crate::support::remote::Remote;
use crate::support::serve::TSTUNNEL;
use crate::support::tree::{self, assert_same};
use crate::support::user::User;
use crate::{in_home, plain_mutagen, remote, sessions, sync, text, user};

/// Evaluates it in a shell, and prints the variable.
fn in_shell(user: &User, shell: &str, script: &str) -> String {
    run(user.run(shell).args(["-c", &script.replace("tstunnel", TSTUNNEL)])).trim_end().to_owned()
}

#[test]
fn shells_find_a_folder_with_both_programs() {
    let user = user();
    let folder = user.home().join(".local/share/tstunnel/mutagen");
    for (shell, script) in [
        ("sh", "eval \"$(tstunnel mutagen env)\""),
        ("bash", "eval \"$(tstunnel mutagen env --shell=bash)\""),
        ("zsh", "eval \"$(tstunnel mutagen env --shell zsh)\""),
        ("fish", "tstunnel mutagen env --shell fish | source"),
    ] {
        let found = in_shell(&user, shell, &format!("{script}; printenv MUTAGEN_SSH_PATH"));
        assert_eq!(found, folder.to_str().unwrap(), "{shell}");
    }
    for name in ["ssh", "scp"] {
        assert_eq!(fs::read_link(folder.join(name)).unwrap(), fs::canonicalize(TSTUNNEL).unwrap());
    }
}

#[test]
fn plain_mutagen_reaches_a_host_of_the_configuration() {
    let (user, remote) = (user(), remote());
    let here = user.home().join("tree");
    tree::generate(&here, 5, 1);
    let config = remote.environment().into_iter().find(|(name, _)| *name == "TSTUNNEL_CONFIG").unwrap();
    let folder = in_shell(&user, "sh", "eval \"$(tstunnel mutagen env)\"; printenv MUTAGEN_SSH_PATH");
    let beta = format!("host123:{}", in_home(&remote, "tree"));
    let mut create = plain_mutagen(&user, &["sync", "create", "--no-global-configuration", "tree", &beta]);
    run(create.envs([config]).env("MUTAGEN_SSH_PATH", folder));
    run(&mut plain_mutagen(&user, &["sync", "flush", "--all"]));
    assert_same(&here, &remote.home().join("tree"));
    assert_eq!(text(&sessions(&user)[0], "/beta/host"), "host123");
}

/// The host's files below the user's home, and the variables that lead to them from there.
fn relative_variables(user: &User, remote: &Remote) -> [(&'static str, &'static str); 3] {
    let (_, config) = remote.environment().into_iter().find(|(name, _)| *name == "TSTUNNEL_CONFIG").unwrap();
    symlink(Path::new(&config).parent().unwrap(), user.home().join("files")).unwrap();
    let kept = fs::read_to_string(&config).unwrap();
    let others: Vec<&str> =
        kept.lines().filter(|line| !line.starts_with("cert =") && !line.starts_with("key =")).collect();
    fs::write(user.home().join("files/others.toml"), others.join("\n")).unwrap();
    [
        ("TSTUNNEL_CONFIG", "files/others.toml"),
        ("TSTUNNEL_CERT", "./files/client.crt"),
        ("TSTUNNEL_KEY", "files/client.key"),
    ]
}

#[test]
fn files_that_variables_name_from_where_the_user_is_are_found_from_where_the_daemon_is() {
    let daemon = Daemon::start_with(Vec::new());
    let data_directory = ("MUTAGEN_DATA_DIRECTORY", daemon.folder("data").into());
    let restarting = User::with(vec![("TSTUNNEL_MUTAGEN", programs().join("mutagen").into()), data_directory]);
    for user in [user(), restarting] {
        // Mutagen copies its agent there by `scp`, which it starts where it has unpacked that.
        let remote = remote();
        let variables = relative_variables(&user, &remote);
        let here = user.home().join("tree");
        tree::generate(&here, 5, 1);
        let beta = format!("host123:{}", in_home(&remote, "tree"));
        run(sync(&user, &here, &beta).envs(variables));
        run(&mut plain_mutagen(&user, &["sync", "flush", "--all"]));
        assert_same(&here, &remote.home().join("tree"));
    }
}

#[test]
fn a_shell_gets_files_that_variables_name_by_paths_that_hold_everywhere() {
    let user = user();
    let script = "cd / && printenv TSTUNNEL_CONFIG TSTUNNEL_CERT TSTUNNEL_KEY TSTUNNEL_CA";
    let home = user.home().display().to_string();
    for (shell, evaluated) in
        [("sh", "eval \"$(tstunnel mutagen env)\""), ("fish", "tstunnel mutagen env --shell fish | source")]
    {
        let script = format!("{evaluated}; {script}").replace("tstunnel", TSTUNNEL);
        let mut command = user.run(shell);
        command.args(["-c", &script]);
        command.envs([("TSTUNNEL_CONFIG", "it's/c.toml"), ("TSTUNNEL_CERT", "~/c"), ("TSTUNNEL_KEY", "/k")]);
        let output = command.output().unwrap();
        let found = String::from_utf8(output.stdout).unwrap();
        assert_eq!(found, format!("{home}/it's/c.toml\n{home}/c\n/k\n"), "{shell}");
    }
    let output = user.tstunnel(["mutagen", "env"]).env("TSTUNNEL_KEY", "/k").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 1, "what holds everywhere stays as it is");
}

#[test]
fn another_shell_or_word_is_wrong_usage() {
    for words in [&["--shell", "csh"][..], &["--shel"], &["x"], &["--shell"]] {
        let output = user().tstunnel(["mutagen", "env"].iter().chain(words)).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("tstunnel: error[usage]: "), "{output:?}");
        assert!(output.status.code() == Some(2) && output.stdout.is_empty());
    }
}
