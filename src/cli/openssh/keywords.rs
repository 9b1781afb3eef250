//! Every keyword of `ssh_config(5)`, and what it means to a tunnel. Data alone: [`super::settings`] acts on it.
//!
//! A keyword that is missing here is one that OpenSSH doesn't know either, and is refused in OpenSSH's words.

use Meaning::{Ignored, Kept, Refused};

/// What a keyword means for a host that is reached through tstunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// It is about SSH's own keys, ciphers, prompts or files: a tunnel behaves the same with it and without it.
    Ignored,
    /// It asks for something that a tunnel cannot do, unless its value says no.
    Refused {
        /// What it asks for: `<keyword> asks for <what>, which …`.
        what: &'static str,
        /// What to do instead.
        instead: &'static str,
    },
    /// It is carried out, or decides whether something else is.
    Kept(Setting),
}

/// The keywords that are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    AddressFamily,
    BatchMode,
    ClearAllForwardings,
    Compression,
    ConnectTimeout,
    ForkAfterAuthentication,
    Forward,
    ForwardX11,
    HostName,
    IgnoreUnknown,
    Port,
    RemoteCommand,
    RequestTty,
    SendEnv,
    ServerAliveCountMax,
    ServerAliveInterval,
    SessionType,
    SetEnv,
    StdinNull,
    User,
}

/// Values with which a [`Meaning::Refused`] keyword asks for nothing.
pub(super) const HARMLESS: [&str; 5] = ["no", "none", "false", "auto", "autoask"];

/// What to do instead of telling SSH how to connect.
pub(super) const OWN_DIAL: &str =
    "set `proxy` in tstunnel's configuration where a proxy is needed, or leave the option away";

/// Finds a keyword; case makes no difference.
pub(super) fn find(keyword: &str) -> Option<Meaning> {
    KEYWORDS.iter().find(|(name, _)| name.eq_ignore_ascii_case(keyword)).map(|(_, meaning)| *meaning)
}

/// OpenSSH 9.2's own keywords, Debian's, the deprecated ones that it still takes, and those of later releases.
const KEYWORDS: &[(&str, Meaning)] = &[
    ("AddKeysToAgent", Ignored),
    ("AddressFamily", Kept(Setting::AddressFamily)),
    ("AFSTokenPassing", Ignored),
    ("BatchMode", Kept(Setting::BatchMode)),
    ("BindAddress", Refused { what: "a source address", instead: OWN_DIAL }),
    ("BindInterface", Refused { what: "a network interface", instead: OWN_DIAL }),
    ("CanonicalDomains", Ignored),
    ("CanonicalizeFallbackLocal", Ignored),
    ("CanonicalizeHostname", Ignored),
    ("CanonicalizeMaxDots", Ignored),
    ("CanonicalizePermittedCNAMEs", Ignored),
    ("CASignatureAlgorithms", Ignored),
    ("CertificateFile", Ignored),
    ("ChallengeResponseAuthentication", Ignored),
    ("ChannelTimeout", Ignored),
    ("CheckHostIP", Ignored),
    ("Cipher", Ignored),
    ("Ciphers", Ignored),
    ("ClearAllForwardings", Kept(Setting::ClearAllForwardings)),
    ("Compression", Kept(Setting::Compression)),
    ("CompressionLevel", Ignored),
    ("ConnectionAttempts", Ignored),
    ("ConnectTimeout", Kept(Setting::ConnectTimeout)),
    // A shared connection that is not there yet, `auto`, is as good as none.
    (
        "ControlMaster",
        Refused { what: "a connection to share", instead: "leave it away: every session is a connection of its own" },
    ),
    ("ControlPath", Ignored),
    ("ControlPersist", Ignored),
    ("DSAAuthentication", Ignored),
    ("DynamicForward", Kept(Setting::Forward)),
    ("EnableEscapeCommandline", Ignored),
    ("EnableSSHKeysign", Ignored),
    ("EscapeChar", Ignored),
    ("ExitOnForwardFailure", Ignored),
    ("FallBackToRsh", Ignored),
    ("FingerprintHash", Ignored),
    ("ForkAfterAuthentication", Kept(Setting::ForkAfterAuthentication)),
    ("ForwardAgent", Ignored),
    ("ForwardX11", Kept(Setting::ForwardX11)),
    ("ForwardX11Timeout", Ignored),
    ("ForwardX11Trusted", Ignored),
    ("GatewayPorts", Ignored),
    ("GlobalKnownHostsFile", Ignored),
    ("GlobalKnownHostsFile2", Ignored),
    ("GSSAPIAuthentication", Ignored),
    ("GSSAPIClientIdentity", Ignored),
    ("GSSAPIDelegateCredentials", Ignored),
    ("GSSAPIKexAlgorithms", Ignored),
    ("GSSAPIKeyExchange", Ignored),
    ("GSSAPIRenewalForcesRekey", Ignored),
    ("GSSAPIServerIdentity", Ignored),
    ("GSSAPITrustDNS", Ignored),
    ("HashKnownHosts", Ignored),
    ("HostbasedAcceptedAlgorithms", Ignored),
    ("HostbasedAuthentication", Ignored),
    ("HostbasedKeyTypes", Ignored),
    ("HostKeyAlgorithms", Ignored),
    ("HostKeyAlias", Ignored),
    ("HostName", Kept(Setting::HostName)),
    ("IdentitiesOnly", Ignored),
    ("IdentityAgent", Ignored),
    ("IdentityFile", Ignored),
    ("IdentityFile2", Ignored),
    ("IgnoreUnknown", Kept(Setting::IgnoreUnknown)),
    ("IPQoS", Ignored),
    ("KbdInteractiveAuthentication", Ignored),
    ("KbdInteractiveDevices", Ignored),
    ("KeepAlive", Ignored),
    ("KerberosAuthentication", Ignored),
    ("KerberosTGTPassing", Ignored),
    ("KexAlgorithms", Ignored),
    ("KnownHostsCommand", Ignored),
    // Without PermitLocalCommand it does nothing.
    ("LocalCommand", Ignored),
    ("LocalForward", Kept(Setting::Forward)),
    ("LogLevel", Ignored),
    ("LogVerbose", Ignored),
    ("MACs", Ignored),
    ("NoHostAuthenticationForLocalhost", Ignored),
    ("NumberOfPasswordPrompts", Ignored),
    ("ObscureKeystrokeTiming", Ignored),
    ("PasswordAuthentication", Ignored),
    (
        "PermitLocalCommand",
        Refused { what: "a local command", instead: "run the local command before or after this one" },
    ),
    ("PermitRemoteOpen", Ignored),
    ("PKCS11Provider", Ignored),
    ("Port", Kept(Setting::Port)),
    ("PreferredAuthentications", Ignored),
    ("Protocol", Ignored),
    ("ProtocolKeepAlives", Ignored),
    ("ProxyCommand", Refused { what: "a connection of another program's", instead: OWN_DIAL }),
    ("ProxyJump", Refused { what: "a jump host", instead: OWN_DIAL }),
    ("ProxyUseFdpass", Ignored),
    ("PubkeyAcceptedAlgorithms", Ignored),
    ("PubkeyAcceptedKeyTypes", Ignored),
    ("PubkeyAuthentication", Ignored),
    ("RefuseConnection", Ignored),
    ("RekeyLimit", Ignored),
    ("RemoteCommand", Kept(Setting::RemoteCommand)),
    ("RemoteForward", Kept(Setting::Forward)),
    ("RequestTTY", Kept(Setting::RequestTty)),
    ("RequiredRSASize", Ignored),
    ("RevokedHostKeys", Ignored),
    ("RhostsAuthentication", Ignored),
    ("RhostsRSAAuthentication", Ignored),
    ("RSAAuthentication", Ignored),
    ("SecurityKeyProvider", Ignored),
    ("SendEnv", Kept(Setting::SendEnv)),
    ("ServerAliveCountMax", Kept(Setting::ServerAliveCountMax)),
    ("ServerAliveInterval", Kept(Setting::ServerAliveInterval)),
    ("SessionType", Kept(Setting::SessionType)),
    ("SetEnv", Kept(Setting::SetEnv)),
    ("SetupTimeOut", Ignored),
    ("SkeyAuthentication", Ignored),
    ("SmartcardDevice", Ignored),
    ("StdinNull", Kept(Setting::StdinNull)),
    ("StreamLocalBindMask", Ignored),
    ("StreamLocalBindUnlink", Ignored),
    ("StrictHostKeyChecking", Ignored),
    ("SyslogFacility", Ignored),
    ("Tag", Ignored),
    ("TCPKeepAlive", Ignored),
    ("TISAuthentication", Ignored),
    (
        "Tunnel",
        Refused {
            what: "a tunnel device",
            instead: "forward single ports with `mutagen forward create` or `tstunnel connect`",
        },
    ),
    ("TunnelDevice", Ignored),
    ("UpdateHostKeys", Ignored),
    ("UseBlacklistedKeys", Ignored),
    ("UsePrivilegedPort", Ignored),
    ("User", Kept(Setting::User)),
    ("UserKnownHostsFile", Ignored),
    ("UserKnownHostsFile2", Ignored),
    ("UseRoaming", Ignored),
    ("UseRsh", Ignored),
    ("VerifyHostKeyDNS", Ignored),
    ("VersionAddendum", Ignored),
    ("VisualHostKey", Ignored),
    ("WarnWeakCrypto", Ignored),
    ("XAuthLocation", Ignored),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_keyword_is_listed_twice_and_all_are_in_order() {
        let names: Vec<String> = KEYWORDS.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{names:?}");
    }

    #[test]
    fn a_keyword_is_found_whatever_its_case() {
        assert_eq!(find("strictHOSTkeychecking"), Some(Ignored));
        assert_eq!(find("connecttimeout"), Some(Kept(Setting::ConnectTimeout)));
        for name in ["PermitRemoteOpen", "GlobalKnownHostsFile2", "UserKnownHostsFile2", "UseBlacklistedKeys"] {
            assert_eq!(find(name), Some(Ignored), "{name}");
        }
        assert_eq!(find("UseKeychain"), None);
        assert_eq!(find("Host"), None);
    }
}
