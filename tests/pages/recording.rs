//! The recording of the demonstration, and the script that makes it.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::process::run;
use crate::{project, read};

/// Records what `printf '%b'` makes of a text.
fn record(svg: &Path, output: &str) {
    run(Command::new(project("packaging/record.sh")).arg(svg).args(["printf", "%b", output]));
}

/// The texts of the elements that an XPath finds, which takes a well-formed document.
fn xpath(svg: &Path, path: &str) -> String {
    run(Command::new("xmllint").args(["--nonet", "--xpath", path]).arg(svg))
}

#[test]
fn the_recording_is_small_and_complete_and_needs_nothing_else() {
    let svg = project("docs/demo.svg");
    let said = read("packaging/demo.sh").lines().filter(|line| line.starts_with("say \"")).count();
    assert_eq!(xpath(&svg, "count(//*[local-name() = 'text'])").trim(), (said + 1).to_string(), "run `make recording`");
    assert!(xpath(&svg, "string(//*[local-name() = 'text'][last()])").contains("everything arrived"));

    let recording = read("docs/demo.svg");
    assert!(recording.len() < 30_000, "{}", recording.len());
    for foreign in ["href", "url(", "@import", "<script", "<image", "<!"] {
        assert!(!recording.contains(foreign), "{foreign}");
    }
}

#[test]
fn a_recording_holds_what_was_said_whatever_that_is() {
    let folder = tempfile::tempdir().unwrap();
    let svg = folder.path().join("recording.svg");
    record(&svg, r#"   0.50 s  <a href="b">&amp; $(c) ]]>\n\0033[31mwithout a time\n   1.00 s  last\n"#);

    let line = |number: u32| xpath(&svg, &format!("string(//*[local-name() = 'text'][{number}])"));
    assert_eq!(line(2), "   0.50 s  <a href=\"b\">&amp; $(c) ]]>\n");
    assert_eq!(line(3), " [31mwithout a time\n");
    let styles = fs::read_to_string(&svg).unwrap();
    for (name, moment) in [("at1", "7.14%"), ("at2", "7.14%"), ("at3", "14.29%")] {
        assert!(styles.contains(&format!("@keyframes {name} {{ 0% {{ opacity: 0 }} {moment} ")), "{styles}");
    }
}

#[test]
fn what_fails_leaves_no_recording_and_the_old_one_alone() {
    let folder = tempfile::tempdir().unwrap();
    let svg = folder.path().join("recording.svg");
    record(&svg, "old");
    let old = fs::read(&svg).unwrap();

    for failing in ["echo said; exit 3", "true"] {
        let output =
            Command::new(project("packaging/record.sh")).arg(&svg).args(["sh", "-c", failing]).output().unwrap();
        assert!(!output.status.success(), "{failing}");
    }

    assert_eq!(fs::read(&svg).unwrap(), old);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
