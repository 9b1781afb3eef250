//! `tstunnel mutagen env`: plain `mutagen` finds tstunnel in a shell that evaluates it.

use std::fs;

use crate::support::process::run;
use crate::support::serve::TSTUNNEL;
use crate::support::tree::{self, assert_same};
use crate::support::user::User;
use crate::{in_home, plain_mutagen, remote, sessions, text, user};

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

#[test]
fn another_shell_or_word_is_wrong_usage() {
    for words in [&["--shell", "csh"][..], &["--shel"], &["x"], &["--shell"]] {
        let output = user().tstunnel(["mutagen", "env"].iter().chain(words)).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("tstunnel: error[usage]: "), "{output:?}");
        assert!(output.status.code() == Some(2) && output.stdout.is_empty());
    }
}
