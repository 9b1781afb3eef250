//! Commands, arguments and variables with everything in them that a shell, a terminal or a log would take for more than text, and
//! agents that are not where they seem to be.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use serde_json::json;

use crate::siege::{RAW, Siege, post};
use crate::support::script;
use crate::support_net::site::Plan;

/// Words with a meaning to somebody; none has a NUL in it.
const ODD: [&str; 44] = [
    ";",
    "&",
    "&&",
    "|",
    "||",
    "$HOME",
    "${HOME}",
    "$(touch started)",
    "`touch started`",
    "<(touch started)",
    "> started",
    ">started",
    "<",
    "2>&1",
    "*",
    "?",
    "[a-z]*",
    "{a,b}",
    "~",
    "~root",
    "!!",
    "#",
    "#x",
    "'",
    "\"",
    "\\",
    "\\n",
    "'; touch started; '",
    "\"; touch started; \"",
    "\n",
    "a\nb",
    "\n touch started\n",
    "\r\n",
    "\t",
    "\u{b}\u{c}",
    "\u{7}\u{8}\u{1b}[2J\u{7f}",
    "\u{1}\u{2}\u{3}\u{4}",
    "\u{a0}\u{2028}",
    "\u{202e}\u{200b}\u{feff}",
    "\u{fffd}\u{10ffff}",
    "-rf",
    "--",
    "=",
    "%s%n%99999d",
];

/// What a command without frames writes.
#[track_caller]
fn output(siege: &Siege, what: &str, body: &serde_json::Value) -> Vec<u8> {
    let heard = siege.caller.say_all(post("/command", RAW, &body.to_string()));
    let (answers, stream) = heard.answers();
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [101], "{what}: {heard:?}");
    siege.site.wait_until_idle();
    stream.to_vec()
}

/// Words as `printf '%s\0'` writes them.
fn each_with_nul<'a>(words: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    words.into_iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect()
}

#[test]
fn arguments_and_variables_arrive_as_they_were_said() {
    for shell in [false, true] {
        let siege = Siege::of(&Plan::any().host(&format!("shell = {shell}\nenv = [\"T_*\", \"LC_*\"]")));
        let mut words = vec!["%s\\0"];
        words.extend(ODD);
        words.push("");
        let said = output(&siege, "arguments", &json!({"command": "printf", "args": words}));
        assert_eq!(String::from_utf8_lossy(&said), String::from_utf8_lossy(&each_with_nul(words[1..].to_vec())));
        for word in ODD {
            let body = json!({"command": "sh", "args": ["-c", "printf %s \"$T_X\""], "env": {"T_X": word}});
            assert_eq!(output(&siege, word, &body), word.as_bytes(), "{word:?}");
            let body = json!({"command": "sh", "args": ["-c", "printf %s \"$T_X\""], "envs": [format!("T_X={word}")]});
            assert_eq!(output(&siege, word, &body), word.as_bytes(), "{word:?}");
            siege.nothing_happened(word);
        }
        siege.end();
    }
}

#[test]
fn without_a_shell_a_line_is_split_at_spaces_and_at_nothing_else() {
    let siege = Siege::of(&Plan::any().host("shell = false"));
    for line in ODD.into_iter().chain([
        "a;touch started",
        "a && touch started",
        "a | touch started",
        "$(touch started) b",
        "'a b' \"c d\" e\\ f",
        "a\ttouch started",
        "a\ntouch started\n",
        "  a   b  ",
        "a #b",
    ]) {
        let said = output(&siege, line, &json!({"command": format!("printf %s\\0 {line}")}));
        let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
        assert_eq!(said, each_with_nul(words), "{line:?}");
        siege.nothing_happened(line);
    }
    // A word is no program because it has one in it.
    for line in
        ["touch;started", "sh\n-c\ntouch", "$SHELL -c x", "`touch` started", "\"touch\" started", "touch\tstarted"]
    {
        siege.caller.say(post("/command", RAW, &json!({"command": line}).to_string())).is_refused(
            line,
            404,
            "agent-missing",
        );
        siege.nothing_happened(line);
    }
    siege.end();
}

#[test]
fn variables_of_odd_names_and_those_that_make_a_program_another_are_dropped() {
    for shell in [false, true] {
        let siege = Siege::of(&Plan::any().host(&format!("shell = {shell}\nenv = [\"*\"]")));
        fs::write(siege.site.root.join("evil"), "touch started\n").unwrap();
        let evil = siege.site.root.join("evil");
        let mut env = serde_json::Map::new();
        for name in [
            "",
            "=",
            "A=B",
            "A B",
            "A\nB",
            "a-b",
            "1A",
            "é",
            "BASH_FUNC_echo%%",
            "BASH_FUNC_env()",
            "PATH",
            "HOME",
            "SHELL",
            "USER",
            "LOGNAME",
            "IFS",
            "ENV",
            "BASH_ENV",
            "SHELLOPTS",
            "BASHOPTS",
            "PS4",
            "PROMPT_COMMAND",
            "LD_PRELOAD",
            "LD_LIBRARY_PATH",
            "LD_AUDIT",
            "GCONV_PATH",
            "GLIBC_TUNABLES",
            "MUTAGEN_DATA_DIRECTORY",
        ] {
            env.insert(name.to_owned(), json!(evil.to_str().unwrap()));
        }
        let envs: Vec<String> = ["", "=", "=x", "LD_PRELOAD=/x", "PATH=/x", "NOTHING"].map(str::to_owned).into();
        let body = |extra: serde_json::Value| {
            let mut env = env.clone();
            env.extend(extra.as_object().unwrap().clone());
            json!({"command": "env", "args": ["-0"], "env": env, "envs": envs})
        };
        let variables = |said: &[u8]| {
            let text = String::from_utf8(said.to_vec()).unwrap();
            let mut all: Vec<String> = text.split_terminator('\0').map(str::to_owned).collect();
            // What a shell adds itself.
            all.retain(|line| !["PWD=", "OLDPWD=", "SHLVL=", "_="].iter().any(|own| line.starts_with(own)));
            all.sort();
            all
        };
        let without = variables(&output(&siege, "no variables", &json!({"command": "env", "args": ["-0"]})));
        assert_eq!(variables(&output(&siege, "odd variables", &body(json!({})))), without);
        let mut with = without;
        with.push("good=x".to_owned());
        with.sort();
        assert_eq!(variables(&output(&siege, "a good one among them", &body(json!({"good": "x"})))), with);
        siege.nothing_happened("variables");
        siege.end();
    }
}

#[test]
fn a_nul_anywhere_or_what_is_no_text_is_malformed() {
    let siege = Siege::any();
    for body in [
        r#"{"command": "touch started\u0000"}"#,
        r#"{"command": "\u0000touch started"}"#,
        r#"{"command": "touch", "args": ["started\u0000x"]}"#,
        r#"{"command": "touch\u0000", "args": ["started"]}"#,
        r#"{"command": "touch started", "env": {"LC_X": "a\u0000b"}}"#,
        r#"{"command": "touch started", "env": {"LC_X\u0000": "a"}}"#,
        r#"{"command": "touch started", "envs": ["LC_X=a\u0000b"]}"#,
        r#"{"command": "touch started\ud800"}"#,
        r#"{"command": "touch started\udc00\ud800"}"#,
        "{\"command\": \"touch started\n\"}",
    ] {
        siege.is_malformed(body.as_bytes(), post("/command", RAW, body).as_bytes());
    }
    let (start, end) = (&b"{\"command\": \"touch started "[..], &b"\"}"[..]);
    for bytes in [&b"\xff"[..], b"\xc0\xae", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80"] {
        let body = [start, bytes, end].concat();
        let head = format!("{RAW}Content-Length: {}\r\n", body.len());
        let wire = [crate::siege::post_as_is("/command", &head, "").as_bytes(), &body].concat();
        siege.is_malformed(bytes, &wire);
    }
    siege.end();
}

#[test]
fn under_mutagen_nothing_near_its_commands_is_run() {
    let siege = Siege::mutagen();
    let agent = ".mutagen/agents/0.18.1/mutagen-agent";
    let folder = siege.site.home.join(".mutagen/agents/0.18.1");
    fs::create_dir_all(&folder).unwrap();
    for path in [folder.join("mutagen-agent"), siege.site.home.join("x"), siege.site.home.join(".mutagen/x")] {
        script::write(&path, "touch started");
    }
    let is_denied = |body: serde_json::Value| {
        let what = body.to_string();
        // A program of white space is none at all.
        let command = body["command"].as_str().unwrap();
        let mut words = command.split(' ').filter(|word| !word.is_empty());
        let program = if body["args"].is_array() { Some(command) } else { words.next() };
        let is_empty = program.is_none_or(|program| program.trim().is_empty());
        let (status, code) = if is_empty { (400, "bad-request") } else { (403, "command-denied") };
        siege.caller.say(post("/command", RAW, &what)).is_refused(&what, status, code);
        assert_eq!(siege.site.names(), [".mutagen", "x"], "{what}");
    };
    for odd in ODD {
        for words in [
            vec![agent, "synchronizer", odd],
            vec![agent, "synchronizer", "--log-level=info", odd],
            vec![agent, odd],
            vec!["uname", "-s", "-m", odd],
            vec![odd, "uname", "-s", "-m"],
            vec![odd],
        ] {
            is_denied(json!({"command": words[0], "args": words[1..]}));
        }
        for line in [
            format!("{agent} synchronizer{odd}"),
            format!("{agent} synchronizer --log-level=info{odd}"),
            format!("uname -s -m{odd}"),
            format!("{odd}uname -s -m"),
            format!(".mutagen/agents/0.18.1{odd}/mutagen-agent synchronizer"),
        ] {
            // A version may have this in it, and a line may end in nothing.
            if !["-rf", "--"].contains(&odd) {
                is_denied(json!({"command": line}));
            }
        }
    }
    for program in [
        ".mutagen/agents/../../x",
        ".mutagen/agents/../../x/mutagen-agent",
        ".mutagen/agents/../x",
        ".mutagen/agents/./0.18.1/mutagen-agent",
        ".mutagen/agents/0.18.1/../../../x",
        ".mutagen/agents/0.18.1/../0.18.1/mutagen-agent",
        ".mutagen/agents/0.18.1//mutagen-agent",
        ".mutagen/agents/0..18/mutagen-agent",
        ".mutagen//agents/0.18.1/mutagen-agent",
        ".mutagen/./agents/0.18.1/mutagen-agent",
        "./.mutagen/agents/0.18.1/mutagen-agent",
        "/.mutagen/agents/0.18.1/mutagen-agent",
        "..%2f..%2fx",
        ".mutagen/agents/0.18.1/mutagen-agent/",
        ".mutagen/agents/0.18.1/mutagen-agent/.",
        ".mutagen\\agents\\0.18.1\\mutagen-agent",
    ] {
        is_denied(json!({"command": format!("{program} synchronizer")}));
        is_denied(json!({"command": program, "args": ["synchronizer"]}));
    }
    let absolute = folder.join("mutagen-agent").to_str().unwrap().to_owned();
    is_denied(json!({"command": absolute, "args": ["synchronizer"]}));
    fs::remove_dir_all(siege.site.home.join(".mutagen")).unwrap();
    fs::remove_file(siege.site.home.join("x")).unwrap();
    siege.end();
}

#[test]
fn an_agent_that_a_link_leads_anywhere_else_is_not_run() {
    let siege = Siege::mutagen();
    let (home, root) = (&siege.site.home, &siege.site.root);
    let (version, agent) = ("0.18.1", ".mutagen/agents/0.18.1/mutagen-agent");
    let script = |path: &Path| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        script::write(path, "echo agent");
    };
    for path in ["outside/agents/0.18.1/mutagen-agent", "outside/0.18.1/mutagen-agent", "outside/mutagen-agent"] {
        script(&root.join(path));
    }
    script(&home.join("elsewhere/mutagen-agent"));
    let body = json!({"command": format!("{agent} synchronizer")});
    let start = || siege.caller.say(post("/command", RAW, &body.to_string()));
    let agents = home.join(".mutagen/agents");
    // Where a link is put, and where it leads.
    let links = [
        (home.join(agent), root.join("outside/mutagen-agent")),
        (home.join(agent), home.join("elsewhere/mutagen-agent")),
        (home.join(agent), Path::new("../../../../outside/mutagen-agent").to_owned()),
        (home.join(agent), Path::new("../../../elsewhere/mutagen-agent").to_owned()),
        (home.join(agent), Path::new("/proc/self/exe").to_owned()),
        (home.join(agent), Path::new("/bin/echo").to_owned()),
        (agents.join(version), root.join("outside")),
        (agents.join(version), home.join("elsewhere")),
        (agents.join(version), Path::new("../../elsewhere").to_owned()),
        (agents.clone(), root.join("outside")),
        (home.join(".mutagen"), root.join("outside")),
    ];
    for (link, target) in &links {
        let what = format!("{} -> {}", link.display(), target.display());
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(target, link).unwrap();
        start().is_refused(&what, 403, "agent-not-executable");
        fs::remove_file(link).unwrap();
        let _ = fs::remove_dir_all(home.join(".mutagen"));
    }
    // One that leads round in a circle, and ones that are no file.
    for (what, status, code) in
        [("circle", 0, ""), ("folder", 403, "agent-not-executable"), ("pipe", 403, "agent-not-executable")]
    {
        fs::create_dir_all(agents.join(version)).unwrap();
        let path = home.join(agent);
        match what {
            "circle" => symlink("mutagen-agent", &path).unwrap(),
            "folder" => fs::create_dir(&path).unwrap(),
            _ => {
                rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o755.into(), 0).unwrap();
            }
        }
        let answer = start().answer();
        if status == 0 {
            assert!(answer.status >= 400, "{what}: {}", answer.head);
        } else {
            start().is_refused(what, status, code);
        }
        fs::remove_dir_all(home.join(".mutagen")).unwrap();
    }
    // A link that stays within the folder is one that leads nowhere else, and a hard link is a file of the account's own.
    script(&agents.join("0.18.0/mutagen-agent"));
    symlink("0.18.0", agents.join(version)).unwrap();
    assert_eq!(output(&siege, "a link beside it", &body), b"agent\n");
    fs::remove_file(agents.join(version)).unwrap();
    fs::create_dir(agents.join(version)).unwrap();
    fs::hard_link(home.join("elsewhere/mutagen-agent"), home.join(agent)).unwrap();
    assert_eq!(output(&siege, "a hard link", &body), b"agent\n");
    fs::set_permissions(home.join(agent), fs::Permissions::from_mode(0o644)).unwrap();
    start().is_refused("without its execute bit", 403, "agent-not-executable");
    fs::remove_dir_all(home.join(".mutagen")).unwrap();
    fs::remove_dir_all(home.join("elsewhere")).unwrap();
    siege.end();
}
