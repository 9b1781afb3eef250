use super::*;
use crate::client::upload::Content;
use crate::config::Overrides;
use crate::error::Code;
#[cfg(feature = "server")]
use crate::server::check::Question;
use std::os::unix::ffi::OsStringExt;

fn words(line: &[&str]) -> Vec<OsString> {
    line.iter().map(OsString::from).collect()
}

fn parsed(line: &[&str]) -> Command {
    parse(OsStr::new("/usr/bin/tstunnel"), words(line)).unwrap_or_else(|error| panic!("{line:?}: {error}"))
}

fn refused(line: &[&str]) -> Error {
    let error = parse(OsStr::new("tstunnel"), words(line)).expect_err("is refused");
    assert_eq!(error.code, Code::Usage);
    error
}

fn page(line: &[&str]) -> String {
    match parsed(line) {
        Command::Print(page) => page,
        other => panic!("{line:?}: {other:?}"),
    }
}

fn exec(line: &[&str]) -> Exec {
    match parsed(line) {
        Command::Exec(exec) => exec,
        other => panic!("{line:?}: {other:?}"),
    }
}

#[test]
fn the_name_it_is_started_under_decides() {
    for (name, scp) in [("ssh", false), ("/a/b/ssh", false), ("ssh.exe", false), ("./scp", true), ("scp.exe", true)] {
        let expected = if scp { Command::Scp(words(&["-V"])) } else { Command::Ssh(words(&["-V"])) };
        assert_eq!(parse(OsStr::new(name), words(&["-V"])), Ok(expected));
    }
    for name in ["tstunnel", "ssh2", ""] {
        assert!(matches!(parse(OsStr::new(name), words(&["--version"])), Ok(Command::Print(_))));
    }
}

#[test]
fn ssh_scp_and_mutagen_take_their_arguments_untouched() {
    assert_eq!(parsed(&["ssh", "-V", "--", "-h"]), Command::Ssh(words(&["-V", "--", "-h"])));
    assert_eq!(parsed(&["scp"]), Command::Scp(words(&[])));
    let args = ["sync", "create", "--help", "a", "tstunnel://h/p"];
    assert_eq!(parsed(&[&["mutagen"][..], &args].concat()), Command::Mutagen(words(&args)));
    assert!(page(&["mutagen", "--help"]).contains("tstunnel://"));
}

#[test]
fn every_command_has_a_page_in_three_ways() {
    for row in options::COMMANDS.iter().filter(|row| WITH_SERVER || !row.server) {
        let name: Vec<&str> = row.name.split(' ').collect();
        let expected = help::command_help(row);
        assert_eq!(page(&[&name[..], &["--help"]].concat()), expected);
        assert_eq!(page(&[&["help"][..], &name].concat()), expected);
        if row.words != Words::Verbatim {
            assert_eq!(page(&[&name[..], &["-h"]].concat()), expected);
        }
    }
    assert_eq!(page(&["help"]), page(&["--help"]));
    assert!(page(&["-V"]).starts_with("tstunnel 0"));
}

#[test]
fn one_word_is_a_command_line_and_several_are_exact_arguments() {
    let line = exec(&["exec", "h", "uname -s -m"]);
    assert_eq!((line.command.as_str(), line.args), ("uname -s -m", None));
    for same in [&["exec", "h", "--", "grep", "a b", "--", "-x"][..], &["exec", "h", "grep", "a b", "--", "-x"]] {
        let exact = exec(same);
        assert_eq!(exact.command, "grep");
        assert_eq!(exact.args, Some(vec!["a b".to_owned(), "--".to_owned(), "-x".to_owned()]));
    }
    assert_eq!(exec(&["exec", "h", "--", "-odd"]).command, "-odd");
}

#[test]
fn options_of_exec_end_at_its_command() {
    let found = exec(&["exec", "--user", "dev", "h", "--raw", "--env=A=1=2", "--env", "B", "ls", "--raw", "--user=x"]);
    assert_eq!(found.overrides.user.as_deref(), Some("dev"));
    assert_eq!(found.env, [("A".to_owned(), Some("1=2".to_owned())), ("B".to_owned(), None)]);
    assert!(found.raw);
    assert_eq!(found.args, Some(vec!["--raw".to_owned(), "--user=x".to_owned()]));
    assert!(!exec(&["exec", "h", "ls", "--help"]).raw);
}

#[test]
fn host_options_become_overrides() {
    let Command::Connect(connect) = parsed(&[
        "connect",
        "--config=c",
        "--endpoint=e:1",
        "--cert=a",
        "--key=b",
        "--ca=d",
        "--upgrade-base=/x",
        "--sni=n",
        "--user=u",
        "--user=v",
        "tstunnel://h?endpoint=e",
        "--target",
        "unix:/run/s",
    ]) else {
        panic!()
    };
    let overrides = Overrides {
        config: Some("c".into()),
        endpoint: Some("e:1".into()),
        cert: Some("a".into()),
        key: Some("b".into()),
        ca: Some("d".into()),
        upgrade_base: Some("/x".into()),
        sni: Some("n".into()),
        user: Some("v".into()),
    };
    let host = "tstunnel://h?endpoint=e".to_owned();
    assert_eq!(connect, Connect { host, overrides, target: Some("unix:/run/s".into()), raw: false });
}

#[test]
fn a_urls_forwarding_is_the_target_of_connect_unless_an_option_says_otherwise() {
    let target = |line: &[&str]| match parsed(&[&["connect"], line].concat()) {
        Command::Connect(connect) => connect.target,
        other => panic!("{other:?}"),
    };
    assert_eq!(target(&["tstunnel://h/tcp:localhost:80?endpoint=e"]).as_deref(), Some("tcp:localhost:80"));
    assert_eq!(target(&["tstunnel://h/tcp:a:1", "--target=unix:/s"]).as_deref(), Some("unix:/s"));
    assert_eq!(target(&["tstunnel://h/home/dev"]), None);
    assert_eq!(target(&["h"]), None);
}

#[test]
fn upload_splits_host_and_name_and_a_urls_path_is_the_name() {
    let upload = |target: &str| match parsed(&["upload", "f", target]) {
        Command::Upload(Upload { content, host, name, mode: None, compress: true, .. })
            if content == Content::File("f".into()) =>
        {
            (host, name)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(upload("h"), ("h".to_owned(), None));
    assert_eq!(upload("h:"), ("h".to_owned(), None));
    assert_eq!(upload("h:a:b"), ("h".to_owned(), Some("a:b".to_owned())));
    for (url, name) in [
        ("Tstunnel://h/n?endpoint=e:1", Some("n")),
        ("tstunnel://h/~/a%20b", Some("a b")),
        ("tstunnel://h/", None),
        ("tstunnel://h", None),
    ] {
        assert_eq!(upload(url), (url.to_owned(), name.map(str::to_owned)));
    }
    assert!(refused(&["upload", "f", "tstunnel://h/n?x=1"]).text.contains("unknown parameter"));
    let Command::Upload(found) = parsed(&["upload", "--mode=0755", "--no-compress", "f", "h"]) else { panic!() };
    assert_eq!((found.mode, found.compress), (Some(0o755), false));
    let Command::Upload(found) = parsed(&["upload", "-", "h:n"]) else { panic!() };
    assert_eq!((found.content, found.name), (Content::Stdin, Some("n".to_owned())));
    for mode in ["", "9", "+7", "1777", "rwx", "00000000000000000"] {
        let said = parse(OsStr::new("tstunnel"), words(&["upload", "--mode", mode, "f", "h"]));
        assert_eq!(said.is_ok(), mode.len() > 4, "{mode}");
    }
}

#[test]
fn check_measures_with_a_size_that_may_have_a_unit_or_be_left_out() {
    let throughput = |option: &str| match parsed(&["check", option, "h"]) {
        Command::Check(check) => check.throughput,
        other => panic!("{other:?}"),
    };
    assert_eq!(throughput("--mutagen"), None);
    for (option, bytes) in [
        ("--throughput", 32 << 20),
        ("--throughput=1", 1),
        ("--throughput=5k", 5 << 10),
        ("--throughput=64M", 64 << 20),
        ("--throughput=2G", 2 << 30),
    ] {
        assert_eq!(throughput(option), Some(bytes), "{option}");
    }
    for wrong in ["", "0", "M", "-1", "+1", "1T", "1 M", "1.5M", "99999999999999999999", "99999999999999G", "1é"] {
        let error = refused(&["check", &format!("--throughput={wrong}"), "h"]);
        assert!(error.text.contains("not a size"), "{wrong}: {}", error.text);
    }
    assert!(refused(&["check"]).text.contains("HOST"));
}

#[test]
fn classify_takes_a_negative_exit_status() {
    let expected = Classify { exit_status: Some(-1), json: true };
    assert_eq!(parsed(&["classify", "--json", "--exit-status", "-1"]), Command::Classify(expected));
    assert!(refused(&["classify", "--exit-status", "x"]).text.contains("not an exit status"));
}

#[test]
fn status_is_a_table_unless_json_is_asked_for() {
    assert_eq!(parsed(&["status"]), Command::Status(Status { json: false }));
    assert_eq!(parsed(&["status", "--json"]), Command::Status(Status { json: true }));
}

#[cfg(feature = "server")]
#[test]
fn the_servers_commands_are_read() {
    let serve = |config: Option<&str>, action| Command::Serve(Serve { config: config.map(Into::into), action });
    assert_eq!(parsed(&["serve", "--config", "s"]), serve(Some("s"), ServeAction::Run));
    assert_eq!(parsed(&["serve", "--check"]), serve(None, ServeAction::Check));
    let question = Question {
        principal: "ann@example.org".into(),
        host: "web".into(),
        command: vec!["ls".into()],
        source: None,
        user: None,
        authorize: false,
    };
    let asks = |more: &[&str]| parsed(&[&["serve", "--check", "--as", "ann@example.org"][..], more].concat());
    assert_eq!(asks(&["web", "ls"]), serve(None, ServeAction::Ask(question.clone())));
    let asked = Question {
        command: ["ls", "-l", "--user", "x"].map(str::to_owned).into(),
        source: Some(std::net::Ipv6Addr::LOCALHOST.into()),
        user: Some("dev".into()),
        authorize: true,
        ..question
    };
    let more = ["--source", "::1", "web", "--user", "dev", "--authorize", "ls", "-l", "--user", "x"];
    assert_eq!(asks(&more), serve(None, ServeAction::Ask(asked)));
    for wrong in [
        &["serve", "web"][..],
        &["serve", "--check", "web", "ls"],
        &["serve", "--check", "--user", "dev"],
        &["serve", "--check", "--source", "::1"],
        &["serve", "--authorize"],
        &["serve", "--as", "ann", "web", "ls"],
        &["serve", "--check", "--as", "ann"],
        &["serve", "--check", "--as", "ann", "web"],
        &["serve", "--check", "--as", "ann", "--source", "here", "web", "ls"],
    ] {
        refused(wrong);
    }
    let pki = |line: &[&str]| match parsed(line) {
        Command::Pki(pki) => pki,
        other => panic!("{other:?}"),
    };
    assert_eq!(pki(&["pki", "init"]), Pki { dir: None, action: PkiAction::Init(None) });
    let names = vec!["a.b".to_owned(), "*.c".to_owned()];
    let server = Pki { dir: Some("d".into()), action: PkiAction::Server(names) };
    assert_eq!(pki(&["pki", "server", "a.b", "--dir=d", "*.c"]), server);
    assert_eq!(pki(&["pki", "client", "spiffe://x/y"]).action, PkiAction::Client("spiffe://x/y".into()));
    assert_eq!(pki(&["pki", "revoke", "c.crt"]).action, PkiAction::Revoke(Some("c.crt".into())));
    assert_eq!(pki(&["pki", "revoke"]).action, PkiAction::Revoke(None));
    assert!(page(&["pki", "--help"]).contains("revoke [NAME]"));
    assert!(page(&["help", "pki"]).contains("revoke [NAME]"));
}

#[cfg(feature = "server")]
#[test]
fn a_servers_file_without_its_option_is_told_the_option() {
    for line in [&["serve", "server.toml"][..], &["serve", "--check", "server.toml"]] {
        assert!(refused(line).hint().starts_with("did you mean `--config server.toml`? "), "{line:?}");
    }
    assert!(refused(&["serve", "--config", "s", "host"]).hint().starts_with("see "));
}

#[cfg(not(feature = "server"))]
#[test]
fn the_servers_commands_are_refused_in_words() {
    for line in [&["serve"][..], &["pki", "init"], &["pki", "--help"], &["help", "serve"], &["help", "pki"]] {
        assert!(refused(line).text.contains("a client alone"), "{line:?}");
    }
}

#[test]
fn what_no_server_takes_for_a_target_is_refused() {
    for (target, meant) in [
        ("127.0.0.1:7100", "write `tcp:127.0.0.1:7100`"),
        ("[::1]:80", "write `tcp:[::1]:80`"),
        ("/run/s.sock", "write `unix:/run/s.sock`"),
        ("7100", "write tcp:HOST:PORT or unix:PATH"),
        ("tcp:7100", "write tcp:HOST:PORT or unix:PATH"),
        ("unix:run/s", "write tcp:HOST:PORT or unix:PATH"),
        ("", "write tcp:HOST:PORT or unix:PATH"),
    ] {
        for command in ["connect", "check"] {
            let error = refused(&[command, "h", "--target", target]);
            assert_eq!((error.code, error.hint()), (Code::Usage, meant), "{error:?}");
            assert!(error.text.starts_with(&format!("`{target}` is no target: ")), "{error:?}");
        }
    }
    assert_eq!(refused(&["connect", "tstunnel://h/tcp:80"]).code, Code::Usage);
    assert!(matches!(parsed(&["connect", "h", "--target", "echo"]), Command::Connect(_)));
}

#[test]
fn a_name_that_leads_out_of_the_home_directory_is_no_name_for_an_upload() {
    for (target, name) in [
        ("h:sub/dir/x", "sub/dir/x"),
        ("h:/home/dev/x", "/home/dev/x"),
        ("h:x/", "x/"),
        ("tstunnel://h/a/b", "a/b"),
        ("tstunnel://h/a%2fb", "a/b"),
        ("h:..", ".."),
        ("h:.", "."),
    ] {
        for content in ["f", "-"] {
            let error = refused(&["upload", content, target]);
            let why = if name.contains('/') { "has a slash in it" } else { "is empty, `.` or `..`" };
            assert_eq!(error.text, format!("`{name}` is no name for a file in the home directory: it {why}"));
            assert!(error.hint().contains("without a slash"), "{error:?}");
        }
    }
}

#[test]
fn a_name_that_no_server_takes_is_refused_for_an_upload() {
    let long = "x".repeat(256);
    let target = format!("h:{long}");
    let error = refused(&["upload", "f", &target]);
    assert_eq!(error.code.exit_status(false), 2);
    assert!(error.text.ends_with(": it is longer than 255 bytes"), "{error:?}");
    assert!(error.hint().contains("a shorter name"), "{error:?}");
    let target = format!("h:{}", &long[1..]);
    assert!(matches!(parsed(&["upload", "f", &target]), Command::Upload(_)));
}

#[test]
fn a_misspelt_name_is_answered_with_the_nearest() {
    for (line, meant) in [
        (&["conect", "h"][..], "`connect`"),
        (&["exec", "--usr=x", "h", "ls"], "`--user`"),
        (&["upload", "--mod", "755", "f", "h"], "`--mode`"),
        (&["--versoin"], "`--version`"),
        (&["help", "clasify"], "`classify`"),
    ] {
        let error = refused(line);
        assert!(error.text.starts_with("there is no ") && error.hint().contains(meant), "{line:?}: {error:?}");
    }
    assert!(!refused(&["frobnicate"]).hint().contains("mean"));
    if WITH_SERVER {
        assert!(refused(&["pik", "init"]).hint().contains("`pki`"));
        assert!(refused(&["pki", "revok"]).hint().contains("`pki revoke`"));
    }
}

#[test]
fn what_is_wrong_is_refused_in_words() {
    for (line, said) in [
        (&[][..], "no command"),
        (&["connect"], "needs HOST"),
        (&["connect", "h", "i"], "`i` is one argument too many"),
        (&["exec", "h"], "needs HOST [--] COMMAND"),
        (&["exec", "-x", "h", "ls"], "`-x`"),
        (&["connect", "h", "--raw=yes"], "--raw"),
        (&["connect", "h", "--user"], "--user"),
        (&["exec", "--env", "=x", "h", "ls"], "names no variable"),
        (&["connect", "--env", "A", "h"], "--env"),
        (&["upload", "f"], "needs FILE HOST"),
        (&["upload", "-", "h"], "no name"),
        (&["mutagen", "env", "--shell", "x"], "no shell"),
        (&["classify", "x"], "too many"),
        (&["status", "x"], "too many"),
    ] {
        let error = refused(line);
        assert!(error.text.contains(said), "{line:?}: {error}");
    }
}

#[test]
fn an_argument_that_is_not_utf8_is_refused_where_it_must_be_text() {
    let odd = || OsString::from_vec(b"\xff".to_vec());
    let parse = |line: Vec<OsString>| parse(OsStr::new("tstunnel"), line);
    assert!(parse(vec![odd()]).is_err());
    assert!(parse(vec!["exec".into(), "h".into(), odd()]).is_err_and(|error| error.text.contains("not UTF-8")));
    assert!(parse(vec!["connect".into(), odd()]).is_err());
    assert!(parse(vec!["upload".into(), odd(), "h".into()]).is_ok());
    assert!(parse(vec!["connect".into(), "--cert".into(), odd(), "h".into()]).is_ok());
}
