//! Names of uploads that would lead out of the home in every encoding, and names that are odd and nothing more.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use crate::siege::Siege;
use crate::support_net::site::SERVER_NAME;

/// A whole upload of `x` to a target's last part as it is, byte for byte.
fn upload(name: &[u8]) -> Vec<u8> {
    let fields = format!(" HTTP/1.1\r\nHost: {SERVER_NAME}\r\nContent-Length: 1\r\n\r\nx");
    [b"POST /tinyscale/v1/copy/", name, fields.as_bytes()].concat()
}

/// Everything below a folder.
fn tree(folder: &Path) -> BTreeSet<OsString> {
    let mut all = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
            all.insert(entry.path().into_os_string());
        }
    }
    all
}

#[test]
fn names_that_lead_out_of_the_home_or_are_none_are_refused_in_every_encoding() {
    let siege = Siege::any();
    let before = tree(&siege.site.root);
    let (long, wide) = ("n".repeat(256), "%c3%a9".repeat(128));
    let malformed: &[&[u8]] = &[
        b"",
        b".",
        b"..",
        b"%2e",
        b"%2E",
        b".%2e",
        b"%2e.",
        b"%2e%2e",
        b"%2E%2e",
        b"../x",
        b"..%2fx",
        b"..%2Fx",
        b"%2e%2e/x",
        b"%2e%2e%2fx",
        b".%2e/x",
        b"./x",
        b"x/..",
        b"x/../../y",
        b"x%2f..%2f..%2fy",
        b"x/",
        b"x//",
        b"x%2f",
        b"/x",
        b"//x",
        b"%2fetc%2fx",
        b"%2F%2Fx",
        b"%2f",
        b"..;/x",
        b"..;x/../y",
        b"a/b",
        b".mutagen/x",
        b".ssh%2fauthorized_keys",
        b"x%00",
        b"%00",
        b"x%00.txt",
        b"..%00",
        b"..%00/x",
        // Not UTF-8, and dots and slashes in more bytes than they have.
        b"%ff",
        b"%80",
        b"%c0%ae",
        b"%c0%ae%c0%ae",
        b"%c0%ae%c0%ae%c0%afx",
        b"..%c0%afx",
        b"%e0%80%ae%e0%80%ae",
        b"%f0%80%80%ae",
        b"%f8%80%80%80%ae",
        b"%c0%80",
        b"%ed%a0%80",
        b"%f4%90%80%80",
        b"%c3",
        // No encoding at all.
        b"%",
        b"%2",
        b"%zz",
        b"%2g",
        b"% 2",
        b"%u002e%u002e",
        b"%%32%65",
        b"x%",
        b"..%",
        b"..?y",
        b"?y",
        long.as_bytes(),
        wide.as_bytes(),
    ];
    for name in malformed {
        siege.is_malformed(name, &upload(name));
    }
    // RFC 9112 §3: nothing of this is in a target.
    for byte in (0..=0x20).chain([0x7f]) {
        let name = [b"a", &[byte][..], b"b"].concat();
        siege.is_malformed(&name, &upload(&name));
    }
    assert_eq!(tree(&siege.site.root), before);
    siege.end();
}

#[test]
fn a_name_is_decoded_once_and_taken_for_what_it_then_is() {
    let siege = Siege::any();
    let before = tree(&siege.site.root);
    let (long, wide) = ("n".repeat(255), "%c3%a9".repeat(127));
    let names: &[(&[u8], &[u8])] = &[
        (b"%252e%252e", b"%2e%2e"),
        (b"%252e%252e%252fx", b"%2e%2e%2fx"),
        (b"..%252fx", b"..%2fx"),
        (b"%2500", b"%00"),
        (b"%25", b"%"),
        (b"...", b"..."),
        (b"x.", b"x."),
        (b"x..", b"x.."),
        (b"..x", b"..x"),
        (b"..%20", b".. "),
        (b"%20", b" "),
        (b"..;", b"..;"),
        (b"..%5cx", b"..\\x"),
        (b"..%5c..%5cetc%5cx", b"..\\..\\etc\\x"),
        (b"c:x", b"c:x"),
        (b"~", b"~"),
        (b"~root", b"~root"),
        (b"-rf", b"-rf"),
        (b"--help", b"--help"),
        (b"*", b"*"),
        (b"$HOME", b"$HOME"),
        (b"$(id)", b"$(id)"),
        (b"%60id%60", b"`id`"),
        (b"x;id", b"x;id"),
        (b"x&id", b"x&id"),
        (b"x%7cid", b"x|id"),
        (b"x%0a", b"x\n"),
        (b"%0d%0aX:%20y", b"\r\nX: y"),
        (b"%1b%5b2J", b"\x1b[2J"),
        (b"%07%7f", b"\x07\x7f"),
        (b"%e2%80%ae", "\u{202e}".as_bytes()),
        (b"%ef%bc%8f", "\u{ff0f}".as_bytes()),
        (b"%e2%80%a4%e2%80%a4", "\u{2024}\u{2024}".as_bytes()),
        (b"e%cc%81", "e\u{301}".as_bytes()),
        (b"x?../../y", b"x"),
        (b"x+y", b"x+y"),
        (long.as_bytes(), long.as_bytes()),
        (wide.as_bytes(), &[0xc3, 0xa9].repeat(127)),
    ];
    for (name, stored) in names {
        let what = name.escape_ascii().to_string();
        siege.caller.say(upload(name)).is_served(&what, 201);
        let path = siege.site.home.join(OsString::from_vec(stored.to_vec()));
        assert_eq!(fs::read(&path).unwrap_or_else(|error| panic!("{what}: {error}")), b"x");
        fs::remove_file(path).unwrap();
        siege.nothing_happened(&what);
    }
    let kept = |path: &OsString| !Path::new(path).starts_with(siege.site.home.join(".cache"));
    let after: BTreeSet<OsString> = tree(&siege.site.root).into_iter().filter(kept).collect();
    assert_eq!(after, before.into_iter().filter(kept).collect());
    let log = siege.site.server_log();
    assert!(!log.contains('\x1b') && !log.contains('\x07'), "{log}");
    siege.end();
}
