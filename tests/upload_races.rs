//! Uploads into a home that changes under them: whatever else runs as the account swaps every name that an upload goes by, as fast
//! as it can, between links out of the home, hard links, folders, pipes and nothing. No file outside is touched, every
//! upload is stored whole or refused, and nothing hangs; with a server of its own account, and with one that is root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "how much was raced is shown")]

mod support;
mod support_net;

#[path = "hostile_client/caller.rs"]
#[allow(dead_code, reason = "another test binary uses the rest")]
mod caller;
#[path = "accounts/machine.rs"]
#[allow(dead_code, reason = "another test binary uses the rest")]
mod machine;
#[path = "upload_races/racer.rs"]
mod racer;
#[path = "simulation/random.rs"]
#[allow(dead_code, reason = "another test binary uses the rest")]
mod random;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use caller::{Caller, field};
use machine::{ANN, Machine, mode};
use racer::Field;
use random::Random;
use support::process;
use support::wait::{SOON, wait_until};
use support_net::site::{PRINCIPAL, Plan, SERVER_NAME, Site};

/// How many upload at the same time, and how many swap.
const CLIENTS: usize = 4;
const RACERS: usize = 3;
/// Uploads of each client.
const UPLOADS: usize = 60;

/// Names that are swapped while they are uploaded to.
const NAMES: [&str; 3] = ["agent", "notes", ".profile"];

/// What is uploaded, again and again, so that much of it is known already; some of it is more than a pipe holds.
fn contents() -> Vec<Vec<u8>> {
    [0, 1, 100, 5000, 70_000, 700_000].iter().map(|size| random::bytes_at(0, *size, *size).to_vec()).collect()
}

/// The fields that an upload's client sends with this content.
fn fields(content: &[u8]) -> String {
    format!("Unencoded-Digest: sha-256=:{}:\r\n", BASE64.encode(digest(&SHA256, content)))
}

/// Every file below a folder, as an upload could have changed it.
fn snapshot(folder: &Path) -> BTreeMap<PathBuf, (u32, u32, i64, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let (path, metadata) = (entry.path(), entry.metadata().unwrap());
            let content = if metadata.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            let times = (metadata.mtime(), metadata.mtime_nsec());
            found.insert(path, (metadata.mode(), metadata.uid(), times.0, times.1, content));
        }
    }
    found
}

/// What must not be touched: a victim, and a folder of what looks like contents that could be let go.
fn lay_out(outside: &Path, owner: Option<u32>) {
    let folders = [outside.to_owned(), outside.join("tstunnel"), outside.join("tstunnel/content")];
    let mut files = vec![(outside.join("victim"), b"untouched".to_vec())];
    files.extend((0..20).map(|number| (folders[2].join(format!("{number:064x}")), b"old".to_vec())));
    files.extend(contents().into_iter().map(|content| (folders[2].join(racer::hex(&content)), content)));
    for folder in &folders {
        fs::create_dir(folder).unwrap();
        mode(folder, 0o755);
        chown(folder, owner, owner).unwrap();
    }
    for (path, content) in files {
        fs::write(&path, content).unwrap();
        mode(&path, 0o640);
        chown(&path, owner, owner).unwrap();
    }
}

/// A client that uploads; how often it got each status.
fn upload(caller: &Caller, server_name: &str, home: &Path, number: usize) -> BTreeMap<u16, usize> {
    let (contents, mut random) = (contents(), Random::new(number as u64));
    let calm = format!("calm-{number}");
    let mut statuses = BTreeMap::new();
    let request = |method: &str, name: &str, fields: &str, length: usize| {
        format!(
            "{method} /tinyscale/v1/copy/{name} HTTP/1.1\r\nHost: {server_name}\r\n{fields}Content-Length: {length}\r\n\r\n"
        )
    };
    for round in 0..UPLOADS {
        let content = &contents[random.below(contents.len())];
        let name = if round % 3 == 0 { calm.as_str() } else { random.pick(&NAMES) };
        let mut fields = if random.one_in(4) { String::new() } else { fields(content) };
        let mut rest = content.as_slice();
        if !fields.is_empty() && random.one_in(2) {
            // The first half, and then the rest from where the server is.
            let half = &rest[..rest.len() / 2];
            let mut tls = caller.connect();
            let head = request("POST", name, &fields, rest.len());
            let _ = tls.write_all(&[head.as_bytes(), half].concat()).and_then(|()| tls.flush());
            drop(tls);
            let answer = caller.say(request("HEAD", name, &fields, 0)).answer();
            if answer.status == 204 {
                let offset: usize = field(&answer.head, "upload-offset").unwrap().parse().unwrap();
                // What was planted in the part's place may be longer than the file.
                rest = &rest[offset.min(rest.len())..];
                fields += &format!("Upload-Offset: {offset}\r\n");
            }
        }
        let heard = caller.say([request("POST", name, &fields, rest.len()).as_bytes(), rest].concat());
        let answer = heard.answer();
        let what = format!("{name}, {} bytes, {fields:?}: {heard:?}", content.len());
        assert!([200, 201, 400, 422, 429, 507].contains(&answer.status), "{what}");
        // Nobody else touches this one, but its part is swapped like any other.
        if name == calm && answer.status < 300 {
            let path = home.join(name);
            assert!(fs::symlink_metadata(&path).unwrap().is_file(), "{what}");
            assert!(fs::read(&path).unwrap() == *content, "{what}");
        }
        *statuses.entry(answer.status).or_default() += 1;
    }
    statuses
}

/// Races, as `account`, against uploads into its home by a server of `site`.
fn race(site: &mut Site, server_name: &str, home: &Path, outsides: &[PathBuf], account: Option<u32>) {
    let server = site.server().id();
    let caller = Caller::new(site, &site.clients.client(PRINCIPAL)).of(server_name);
    let names = || {
        let entries = fs::read_dir(&site.root).unwrap().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        names.sort();
        names
    };
    let before: Vec<_> = outsides.iter().map(|outside| snapshot(outside)).collect();
    let root_before = names();
    let field = Field::new(home, outsides, &NAMES, CLIENTS, &contents());
    let is_over = AtomicBool::new(false);
    let (statuses, swaps) = thread::scope(|scope| {
        let racers: Vec<_> = (0..RACERS)
            .map(|number| {
                let (field, is_over) = (&field, &is_over);
                scope.spawn(move || field.race(number, account, is_over))
            })
            .collect();
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| (&caller, number))
            .collect::<Vec<_>>()
            .into_iter()
            .map(|(caller, number)| scope.spawn(move || upload(caller, server_name, home, number)))
            .collect();
        let all: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        is_over.store(true, Ordering::Relaxed);
        let swaps: u64 = racers.into_iter().map(|racer| racer.join().unwrap()).sum();
        let mut statuses = BTreeMap::<u16, usize>::new();
        for (status, count) in all.into_iter().flat_map(Result::unwrap) {
            *statuses.entry(status).or_default() += count;
        }
        (statuses, swaps)
    });
    println!("{swaps} swaps; uploads by status: {statuses:?}");
    field.tidy();
    let count = |status: u16| statuses.get(&status).copied().unwrap_or_default();
    assert!(count(201) > 0 && count(507) > 0, "{statuses:?}");
    let mut left = Vec::new();
    wait_until("nothing of an upload runs or is held any more", SOON, || {
        left = process::children(server).iter().map(|child| format!("{child:?}")).collect();
        let entries = fs::read_dir(home).unwrap().flatten();
        left.extend(entries.map(|entry| entry.file_name().to_string_lossy().into_owned()));
        left.retain(|name| name != ".cache" && !name.starts_with("calm-"));
        left.is_empty()
    });
    for (outside, before) in outsides.iter().zip(before) {
        assert!(snapshot(outside) == before, "{}: {:#?}", outside.display(), snapshot(outside).keys());
    }
    assert_eq!(names(), root_before);
    let good = format!("POST /tinyscale/v1/copy/good HTTP/1.1\r\nHost: {server_name}\r\nContent-Length: 4\r\n\r\ngood");
    caller.say(good).is_served("a good upload", 201);
    assert_eq!(fs::read(home.join("good")).unwrap(), b"good");
    assert!(!site.server_log().contains("panicked"));
}

#[test]
fn no_link_leads_an_upload_of_the_servers_own_account_out_of_the_home() {
    let mut site = Site::new();
    let outside = site.root.join("outside");
    lay_out(&outside, None);
    site.serve(&Plan::any().limit("resume_grace = \"1s\""));
    let home = site.home.clone();
    race(&mut site, SERVER_NAME, &home, &[outside], None);
}

#[test]
fn no_link_leads_an_upload_of_another_account_out_of_its_home() {
    let mut machine = Machine::start("\"any\"", Plan::any().limit("resume_grace = \"1s\""));
    let outsides = [machine.site.root.join("roots"), machine.site.root.join("anns")];
    lay_out(&outsides[0], None);
    lay_out(&outsides[1], Some(ANN));
    let home = machine.home("ann");
    race(&mut machine.site, "ann.tunnel.test", &home, &outsides, Some(ANN));
}
