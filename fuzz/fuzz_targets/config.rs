//! A configuration file's text, read as the client's and as the server's.
#![no_main]

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use tstunnel::config::{Endpoint, Environment, Overrides, WeakDefaults, duration, is_ours, resolve};
use tstunnel::error::{Code, Error};
use tstunnel::protocol::is_dns_name;
use tstunnel::server::config::{Account, Commands, MIN_WINDOW_BYTES, ServerConfig};

fuzz_target!(|text: &str| {
    client(text);
    server(text, false);
    server(text, true);
});

/// The client reads files alone: this one is in memory.
static FILE: LazyLock<(File, PathBuf)> = LazyLock::new(|| {
    let file = memfd_create("config.toml", MemfdFlags::CLOEXEC).expect("a file in memory");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    (file.into(), path.into())
});

fn client(text: &str) {
    let (file, path) = &*FILE;
    file.set_len(0).and_then(|()| file.write_all_at(text.as_bytes(), 0)).expect("a file in memory");
    let overrides = Overrides { config: Some(path.clone()), ..Overrides::default() };
    let env = Environment { current_dir: "/work".into(), home: Some("/nowhere".into()), ..Environment::default() };
    let ours = is_ours("dev.example.net", &env, &overrides);
    match resolve("ann@dev.example.net", &overrides, &WeakDefaults::default(), &env) {
        Ok(host) => {
            assert_eq!(ours, Ok(true));
            assert_eq!(host.user.as_deref(), Some("ann"));
            assert_eq!(Endpoint::parse(&host.endpoint.to_string()).as_ref(), Ok(&host.endpoint));
            assert!(is_dns_name(host.host_id.as_str()) && is_dns_name(&host.server_name), "{host:?}");
            assert!(
                host.upgrade_base.starts_with('/') && host.upgrade_base.bytes().all(|byte| byte.is_ascii_graphic())
            );
            assert!(host.cert.is_absolute() && host.key.is_absolute() && host.ca.is_none_or(|ca| ca.is_absolute()));
            for time in [host.connect_timeout, host.answer_timeout, host.alive_interval] {
                assert!(time > Duration::ZERO && time <= duration::MAX);
            }
            assert!(host.alive_count > 0 && host.resume != Some(Duration::ZERO));
        }
        Err(error) => check_refusal(&error),
    }
    if let Err(error) = ours {
        check_refusal(&error);
        assert!(error.text.starts_with(&format!("{}:", path.display())), "{error}");
    }
}

fn server(text: &str, is_root: bool) {
    let account = Account { name: "dev".into(), home: "/home/dev".into(), is_root };
    let (config, warnings) = match ServerConfig::parse(Path::new("/etc/tstunnel/server.toml"), text, &account) {
        Ok(parsed) => parsed,
        Err(error) => {
            check_refusal(&error);
            assert!(error.text.starts_with("/etc/tstunnel/server.toml:"), "{error}");
            return;
        }
    };
    assert!(warnings.iter().all(|warning| !warning.contains(char::is_control)), "{warnings:?}");
    assert!(!config.client_ca.is_empty());
    let files = [&config.cert, &config.key].into_iter().chain(&config.client_ca).chain(&config.crl);
    assert!(files.into_iter().all(|path| path.is_absolute()));
    assert!(config.domain.is_none_or(|domain| is_dns_name(&domain) && domain == domain.to_ascii_lowercase()));
    let base = &config.upgrade_base;
    assert!(
        base.is_empty()
            || (base.starts_with('/') && !base.ends_with('/') && base.bytes().all(|b| b.is_ascii_graphic()))
    );
    let limits = &config.limits;
    for time in [limits.handshake_timeout, limits.head_timeout, limits.body_idle_timeout] {
        assert!(time > Duration::ZERO && time <= duration::MAX);
    }
    assert!(limits.resume_window_bytes.get() >= MIN_WINDOW_BYTES && limits.resume_grace <= duration::MAX);
    for host in config.hosts.values() {
        assert!(is_root || host.account == account.name);
        assert!(host.home.as_ref().is_none_or(|home| home.is_absolute()));
        assert!(host.home.is_some() || host.account != account.name);
        assert!(host.wrapper.iter().all(|word| !word.is_empty() && !word.contains('\0')));
        assert!(host.agent_digests.iter().all(|digest| digest.len() == 64 && *digest == digest.to_ascii_lowercase()));
        if let Commands::Listed { patterns, .. } = &host.commands {
            assert!(patterns.iter().all(|pattern| pattern != "any" && pattern != "mutagen" && !pattern.is_empty()));
        }
    }
}

fn check_refusal(error: &Error) {
    assert_eq!(error.code, Code::Config);
    assert_eq!(error.report().matches(char::is_control).count(), 1, "{error}");
}
