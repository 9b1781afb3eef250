//! Several `tstunnel mutagen` at the same time: an alias has one meaning, whoever is first.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use crate::mutagen;
use crate::support::script;
use crate::support::user::User;

/// One URL for each certificate; all would have the same alias.
fn url(certificate: &str) -> String {
    format!("tstunnel://h/p?endpoint=e&cert=/{certificate}&key=/k")
}

/// The alias that Mutagen is given, by what [`shows_what_it_gets`] printed.
fn alias(said: &str) -> String {
    let word =
        said.split(|character: char| character.is_whitespace() || character == '"').find(|word| word.ends_with(":/p"));
    word.unwrap_or_else(|| panic!("no alias: {said}")).strip_suffix(":/p").unwrap().to_owned()
}

/// A `mutagen` that prints its arguments, or the project's file of the last one.
fn shows_what_it_gets(file: &Path) -> User {
    script::write(
        file,
        "for last; do :; done\ncase $last in --project-file=*) cat \"${last#*=}\";; *) echo \"$*\";; esac",
    );
    User::with(vec![("TSTUNNEL_MUTAGEN", file.into())])
}

#[track_caller]
fn assert_means(user: &User, alias: &str, certificate: &str) {
    let kept = fs::read_to_string(user.memory().join(format!("{}.toml", alias.replace('+', "%2B")))).unwrap();
    assert!(kept.contains(&format!("parameters.cert = \"/{certificate}\"\n")), "{alias}: {kept}");
}

#[test]
fn urls_of_commands_and_projects_that_start_together_get_an_alias_each() {
    let folder = tempfile::tempdir().unwrap();
    let user = shows_what_it_gets(&folder.path().join("mutagen"));
    let certificates: Vec<String> = (0..12).map(|number| format!("c{number}")).collect();
    let start = |certificate: &String| {
        let mut command = if certificate.ends_with(['1', '3', '5']) {
            let file = format!("{certificate}.yml");
            fs::write(user.home().join(&file), format!("sync: {{a: {{beta: \"{}\"}}}}\n", url(certificate))).unwrap();
            mutagen(&user, &["project", "start", "-f", &file])
        } else {
            mutagen(&user, &["sync", "create", ".", &url(certificate)])
        };
        command.stdout(Stdio::piped()).spawn().unwrap()
    };
    let children: Vec<_> = certificates.iter().map(start).collect();
    let aliases: Vec<String> = children
        .into_iter()
        .map(|child| alias(&String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()))
        .collect();
    assert_eq!(aliases.iter().collect::<BTreeSet<_>>().len(), certificates.len(), "{aliases:?}");
    for (alias, certificate) in aliases.iter().zip(&certificates) {
        assert_means(&user, alias, certificate);
    }
}
