//! The command lines of the `ssh` and `scp` stand-ins, and of the program itself. Input: arguments with a NUL between them.
#![no_main]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use libfuzzer_sys::fuzz_target;
use tstunnel::cli;
use tstunnel::cli::openssh::{Action, Destination, Invocation, parse_scp, parse_ssh};
use tstunnel::error::{Code, Error};

fuzz_target!(|data: &[u8]| {
    let args: Vec<OsString> = data.split(|byte| *byte == 0).map(|arg| OsStr::from_bytes(arg).to_owned()).collect();
    ssh(&args);
    scp(&args);
    if let Err(error) = cli::parse(OsStr::new("tstunnel"), args) {
        assert_eq!(error.report().matches(char::is_control).count(), 1, "{error}");
    }
});

fn ssh(args: &[OsString]) {
    let Invocation::Host(parsed) = parse_ssh(args) else { return };
    check_destination(&parsed.destination);
    let ssh = match parsed.accept() {
        Ok(ssh) => ssh,
        Err(error) => return check_refusal(&error),
    };
    check_destination(&ssh.destination);
    assert!(ssh.environment.values.keys().all(|name| !name.contains('=')), "{ssh:?}");
    // Said in the plainest way it means the same.
    let mut again = Vec::new();
    if let Some(user) = &ssh.destination.user {
        again.extend(["-l".to_owned(), user.clone()]);
    }
    again.extend(ssh.destination.port.map(|port| format!("-p{port}")));
    if let Action::Forward(target) = &ssh.action {
        again.push(format!("-W{}", target.strip_prefix("tcp:").expect("a TCP target")));
    }
    again.extend(["--".to_owned(), ssh.destination.host.clone()]);
    if let Action::Command(line) = &ssh.action {
        assert!(!line.is_empty());
        again.push(line.clone());
    }
    // A host that reads as a user and a host, or as a URI, is one only where a URI gave it.
    if ssh.destination.host.contains('@') || ssh.destination.host.starts_with("ssh://") {
        return;
    }
    let again: Vec<OsString> = again.into_iter().map(OsString::from).collect();
    let Invocation::Host(parsed) = parse_ssh(&again) else { panic!("{again:?} names no host") };
    let again = parsed.accept().expect("what was accepted");
    assert_eq!((again.destination, again.action), (ssh.destination, ssh.action));
}

fn scp(args: &[OsString]) {
    let Invocation::Host(parsed) = parse_scp(args) else { return };
    assert!(!parsed.destinations.is_empty());
    parsed.destinations.iter().for_each(check_destination);
    match parsed.accept() {
        Ok(scp) => {
            check_destination(&scp.destination);
            assert!(!scp.uploads.is_empty());
            for upload in &scp.uploads {
                assert!(
                    !matches!(upload.name.as_str(), "" | "." | "..") && !upload.name.contains(['/', '\0']),
                    "{scp:?}"
                );
                assert!(args.iter().any(|arg| arg == upload.source.as_os_str()), "{scp:?}");
            }
        }
        Err(error) => check_refusal(&error),
    }
}

fn check_destination(destination: &Destination) {
    let Destination { host, port, .. } = destination;
    assert!(!host.is_empty() && !host.starts_with('-') && *port != Some(0), "{destination:?}");
}

fn check_refusal(error: &Error) {
    assert_eq!(error.code, Code::Usage);
    assert_eq!(error.report().matches(char::is_control).count(), 1, "{error}");
}
