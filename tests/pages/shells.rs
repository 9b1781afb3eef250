//! The completions in the real shells, at a terminal: what is there when a line is typed and all of its completions are inserted.

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Stdio;

use tstunnel::cli::options::{COMMANDS, Words};

use crate::offers::{self, names};
use crate::project;
use crate::support::user::User;

/// Inserts all completions.
const INSERT: &str = "\x14";
/// Writes the line to the file `line` and ends the shell.
const DUMP: &str = "\x07";
/// What the shells prompt with once they have read their files.
const PROMPT: &str = "what-next:";

#[derive(Clone, Copy, Debug)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// Somebody with hosts in their configuration, and files in their home.
struct Person {
    user: User,
}

impl Person {
    fn new() -> Person {
        let person = Person { user: User::with(vec![("TERM", "xterm".into()), ("LC_ALL", "C.UTF-8".into())]) };
        let config = person.home(".config/tstunnel");
        fs::create_dir_all(&config).unwrap();
        fs::write(
            config.join("config.toml"),
            "[host.web]\nuser = \"a\"\n  [host.\"db.example.net\"] # one\n[host.'work']\n[host.\"dev-*\"]\n[other.x]\n",
        )
        .unwrap();
        for file in ["certain.pem", "key file", "work.txt"] {
            fs::write(person.home(file), "").unwrap();
        }
        fs::create_dir(person.home("cabinet")).unwrap();
        let completions = project("packaging/completions");
        let completions = completions.display();
        let bash = format!(
            "PS1={PROMPT}\n. /usr/share/bash-completion/bash_completion\n. {completions}/tstunnel.bash\n\
             bind '\"\\C-t\": insert-completions'\nbind -x '\"\\C-g\": printf %s \"$READLINE_LINE\" >line; exit'\n"
        );
        let zsh = format!(
            "PS1={PROMPT}\nfpath=({completions} $fpath)\nautoload -Uz compinit\ncompinit -u -D\n\
             all() {{ _main_complete; compstate[insert]=all }}\nzle -C all complete-word all\nbindkey '^T' all\n\
             dump() {{ print -rn -- $BUFFER >line; exit }}\nzle -N dump\nbindkey '^G' dump\n"
        );
        fs::write(person.home("bashrc"), bash).unwrap();
        fs::write(person.home(".zshrc"), zsh).unwrap();
        person
    }

    fn home(&self, path: &str) -> PathBuf {
        self.user.home().join(path)
    }

    /// What `shell` makes of the last word of a line, in the order of the alphabet; without what stands behind a name to
    /// go on with.
    fn completions(&self, shell: Shell, line: &str) -> Vec<String> {
        let found = match shell {
            Shell::Fish => self.in_fish(line),
            Shell::Bash => self.at_terminal("bash --rcfile bashrc -i", line),
            Shell::Zsh => self.at_terminal("zsh -i", line),
        };
        let mut found: Vec<String> =
            found.into_iter().map(|word| word.trim_end_matches(['/', '=']).to_owned()).collect();
        found.sort();
        found.dedup();
        found
    }

    fn in_fish(&self, line: &str) -> Vec<String> {
        let script =
            format!("source {}; complete -C $argv[1]", project("packaging/completions/tstunnel.fish").display());
        let output = self.user.run("fish").args(["-c", &script, line]).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{line}: {output:?}");
        let lines = String::from_utf8(output.stdout).unwrap();
        lines.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
    }

    /// Types at a pseudo-terminal of script(1).
    fn at_terminal(&self, shell: &str, line: &str) -> Vec<String> {
        let mut script = self.user.run("timeout");
        script
            .args(["60", "script", "-q", "-e", "-c", shell, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = script.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut shown = Vec::new();
        let mut byte = [0];
        while !String::from_utf8_lossy(&shown).ends_with(PROMPT) {
            assert_eq!(stdout.read(&mut byte).unwrap(), 1, "{shell}: {}", String::from_utf8_lossy(&shown));
            shown.extend(byte);
        }
        write!(stdin, "{line}{INSERT}{DUMP}").unwrap();
        stdout.read_to_end(&mut shown).unwrap();
        child.wait().unwrap();
        let dumped =
            fs::read_to_string(self.home("line")).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&shown)));
        fs::remove_file(self.home("line")).unwrap();
        let typed = line.rfind(' ').unwrap() + 1;
        let inserted = dumped.get(typed..).unwrap_or_else(|| panic!("{line}: {dumped}"));
        inserted.replace("\\ ", "\u{1}").split_whitespace().map(|word| word.replace('\u{1}', " ")).collect()
    }
}

fn complete(line: &str, expected: &[&str]) {
    let person = Person::new();
    for shell in SHELLS {
        assert_eq!(person.completions(shell, line), expected, "{shell:?}: {line}");
    }
}

/// The last word stays as it is.
fn complete_nothing(line: &str) {
    let person = Person::new();
    let typed = line.split(' ').next_back().unwrap();
    for shell in SHELLS {
        let found = person.completions(shell, line);
        assert!(found.is_empty() || found == [typed], "{shell:?}: {line}: {found:?}");
    }
}

fn commands() -> Vec<&'static str> {
    let mut names: Vec<&str> = names().into_iter().map(|(name, _)| name).collect();
    names.sort_unstable();
    names
}

/// The options of a command, written out.
fn options(command: &str) -> Vec<String> {
    let row = tstunnel::cli::options::command(command).unwrap();
    let mut options: Vec<String> = offers::options(row).iter().map(|option| format!("--{}", option.long)).collect();
    options.sort();
    options
}

fn complete_options(line: &str, command: &str) {
    complete(line, &options(command).iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn commands_and_groups_are_completed() {
    complete("tstunnel ser", &["serve"]);
    complete("tstunnel ", &commands());
    complete("tstunnel pki ", &["client", "init", "revoke", "server"]);
    complete("tstunnel --", &["--help", "--version"]);
    complete("tstunnel help pk", &["pki"]);
}

#[test]
fn options_are_completed_for_every_command_that_has_some() {
    for row in COMMANDS.iter().filter(|row| row.words != Words::Verbatim) {
        complete_options(&format!("tstunnel {} --", row.name), row.name);
    }
}

#[test]
fn options_end_where_a_remote_command_begins() {
    complete("tstunnel exec web --ra", &["--raw"]);
    complete("tstunnel exec tstunnel://web/x?endpoint=a:1 --ra", &["--raw"]);
    complete_nothing("tstunnel exec web ls --r");
    complete_nothing("tstunnel exec web l");
}

#[test]
fn files_and_folders_are_completed_where_they_are_expected() {
    complete("tstunnel exec --cert ce", &["certain.pem"]);
    complete("tstunnel upload k", &["key file"]);
    complete("tstunnel upload --mode 755 c", &["cabinet", "certain.pem"]);
    complete("tstunnel pki init --dir c", &["cabinet"]);
    let person = Person::new();
    for shell in SHELLS {
        let found = person.completions(shell, "tstunnel exec --key=ce");
        assert_eq!(found.concat().trim_start_matches("--key="), "certain.pem", "{shell:?}");
    }
}

#[test]
fn hosts_of_the_configuration_are_completed_and_patterns_are_not() {
    complete("tstunnel exec ", &["db.example.net", "web", "work"]);
    complete("tstunnel exec --raw --env A=b w", &["web", "work"]);
    complete("tstunnel upload work.txt w", &["web", "work"]);
    complete_nothing("tstunnel upload work.txt web:");
    complete_nothing("tstunnel upload work.txt web:w");
    complete_nothing("tstunnel connect web w");
}

#[test]
fn the_arguments_of_another_program_are_completed_as_its_own() {
    complete("tstunnel ssh -o ServerAliveI", &["ServerAliveInterval"]);
}
