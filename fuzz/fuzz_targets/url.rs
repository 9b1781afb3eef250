//! What a user writes on one line to say where to go: `tstunnel://` URLs, endpoints and targets.
#![no_main]

use std::ffi::OsString;

use libfuzzer_sys::fuzz_target;
use tstunnel::client::mutagen::rewrite::rewrite;
use tstunnel::config::url::{Target, TunnelUrl, is_tunnel_url};
use tstunnel::config::{Endpoint, Environment, Parameters, Proxy, duration, value};
use tstunnel::error::Code;
use tstunnel::protocol::encoding::{percent_decode, percent_encode};
use tstunnel::protocol::target::Target as StreamTarget;

fuzz_target!(|text: &str| {
    assert_eq!(percent_decode(&percent_encode(text)).as_deref(), Some(text.as_bytes()));
    url(text);
    url(&format!("tstunnel://{text}"));
    single_values(text);
    mutagen(text);
});

fn url(text: &str) {
    match TunnelUrl::parse(text) {
        Ok(url) => {
            assert!(is_tunnel_url(text));
            let Parameters { endpoint, cert, key, ca, upgrade_base, sni, user } = &url.parameters;
            assert!(url.user.is_none() || user.is_none());
            let target = url.target.as_ref().map(|target| target.as_str().to_owned());
            let parts =
                [Some(&url.host), url.user.as_ref(), endpoint.as_ref(), cert.as_ref(), key.as_ref(), ca.as_ref()];
            for part in parts.into_iter().chain([upgrade_base.as_ref(), sni.as_ref(), user.as_ref()]).flatten() {
                assert!(!part.is_empty() && !part.contains(char::is_control), "{url:?}");
            }
            assert!(target.is_none_or(|target| !target.is_empty() && !target.contains(char::is_control)));
            assert_eq!(TunnelUrl::parse(&written(&url)), Ok(url));
        }
        Err(error) => {
            assert_eq!(error.code, Code::Usage);
            assert_eq!(error.report().matches(char::is_control).count(), 1, "{error}");
        }
    }
}

/// A URL that means the same, everything in it encoded that can be.
fn written(url: &TunnelUrl) -> String {
    let user = url.user.as_ref().map_or(String::new(), |user| format!("{}@", percent_encode(user)));
    let target = match &url.target {
        Some(Target::Path(path)) if path.starts_with('/') => percent_encode(path).replacen("%2F", "/", 1),
        Some(target) => format!("/{}", percent_encode(target.as_str())),
        None => String::new(),
    };
    let Parameters { endpoint, cert, key, ca, upgrade_base, sni, user: account } = &url.parameters;
    let query: Vec<String> = [
        ("endpoint", endpoint),
        ("cert", cert),
        ("key", key),
        ("ca", ca),
        ("upgrade_base", upgrade_base),
        ("sni", sni),
        ("user", account),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some(format!("{name}={}", percent_encode(value.as_ref()?))))
    .collect();
    format!("tstunnel://{user}{}{target}?{}", percent_encode(&url.host), query.join("&"))
}

fn single_values(text: &str) {
    if let Ok(endpoint) = Endpoint::parse(text) {
        assert!(endpoint.port > 0);
        assert_eq!(Endpoint::parse(&endpoint.to_string()), Ok(endpoint));
    }
    if let Ok(proxy) = Proxy::parse(text) {
        // What is shown of it is the same place, without the credentials.
        assert_eq!(Proxy::parse(&proxy.to_string()), Ok(Proxy { credentials: None, ..proxy }));
    }
    if let Ok(target) = StreamTarget::parse(text) {
        match &target {
            StreamTarget::Tcp { host, port } => assert!(*port > 0 && host.is_ascii() && *host == host.to_lowercase()),
            StreamTarget::Echo => panic!("the echo is no text of a configuration"),
            StreamTarget::Unix(path) => {
                let parts = path.strip_prefix('/').expect("an absolute path").split('/');
                assert!(
                    !path.contains('\0') && parts.into_iter().all(|part| !matches!(part, "" | "." | "..")),
                    "{path}"
                );
            }
        }
        assert_eq!(StreamTarget::parse(&target.to_string()), Ok(target));
    }
    if let Ok(base) = value::upgrade_base(text) {
        assert!(base.is_empty() || base.starts_with('/'), "{base}");
        assert!(!base.ends_with('/') && base.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'?'), "{base}");
    }
    if let Ok(duration) = duration::parse(text) {
        assert!(duration <= duration::MAX);
        assert_eq!(duration::parse(&format!("{}ms", duration.as_millis())), Ok(duration));
    }
}

/// The command line of `tstunnel mutagen`, a line an argument.
fn mutagen(lines: &str) {
    let args: Vec<OsString> = lines.lines().map(OsString::from).collect();
    let env = Environment {
        endpoint: Some("containers.example.net".into()),
        cert: Some("/c".into()),
        key: Some("/k".into()),
        current_dir: "/work".into(),
        ..Environment::default()
    };
    let Ok(rewritten) = rewrite(&args, &env) else { return };
    assert_eq!(rewritten.args.len(), args.len());
    for (before, after) in args.iter().zip(&rewritten.args) {
        let (before, after) = (before.to_string_lossy(), after.to_string_lossy());
        if !is_tunnel_url(&before) {
            assert_eq!(before, after);
            continue;
        }
        // Mutagen reads `[user@]host:path`, and knows the host by the name under which the URL's meaning is kept.
        let (destination, _) = after.split_once(':').expect("a colon");
        let alias = destination.split_once('@').map_or(destination, |(_, alias)| alias);
        assert!(rewritten.remember.iter().any(|(kept, _)| kept == alias), "{after}");
        assert!(!destination.starts_with('-') && !alias.contains(|c: char| !c.is_ascii_graphic()), "{after}");
    }
    let mut aliases: Vec<_> = rewritten.remember.iter().map(|(alias, _)| alias).collect();
    aliases.sort_unstable();
    assert!(aliases.windows(2).all(|pair| pair[0] != pair[1]), "one alias for two meanings: {aliases:?}");
}
