//! Names in client certificates (RFC 5280 §4.2.1.6) that are ambiguous, malformed, without end, or only look like those of a granted
//! client: they name nobody, which is 403, or somebody else, to whom the host does not exist, which is 421.

use rcgen::{CertificateParams, CustomExtension, DnType, SanType};

use crate::caller::End;
use crate::certificates::{Setting, named};
use crate::support_net::site::{PRINCIPAL, Plan};

/// The object identifier of the alternative names.
const SUBJECT_ALT_NAME: [u64; 4] = [2, 5, 29, 17];

/// A client with these bytes as the alternative names.
fn named_in_der(names: Vec<u8>) -> CertificateParams {
    let mut params = named(Vec::new());
    params.custom_extensions.push(CustomExtension::from_oid_content(&SUBJECT_ALT_NAME, names));
    params
}

/// A DER value.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let length: Vec<u8> = match length {
        0..0x80 => vec![length as u8],
        0x80..0x100 => vec![0x81, length as u8],
        0x100..0x10000 => [&[0x82], &(length as u16).to_be_bytes()[..]].concat(),
        _ => [&[0x84], &(length as u32).to_be_bytes()[..]].concat(),
    };
    [vec![tag], length, content.to_vec()].concat()
}

/// Alternative names of these tags and contents (RFC 5280 §4.2.1.6).
fn names(names: &[(u8, &[u8])]) -> Vec<u8> {
    der(0x30, &names.iter().flat_map(|(tag, content)| der(*tag, content)).collect::<Vec<u8>>())
}

const EMAIL: u8 = 0x81;
const DNS: u8 = 0x82;
const URI: u8 = 0x86;

#[test]
fn names_that_are_ambiguous_or_malformed_name_nobody() {
    let setting = Setting::new(&Plan::any());
    let ann = PRINCIPAL.as_bytes();
    let many: Vec<(u8, &[u8])> = vec![(URI, ann); 100];
    let long = format!("{PRINCIPAL}{}", "x".repeat(2000));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("the name twice", names(&[(URI, ann), (URI, ann)])),
        ("the name a hundred times", names(&many)),
        ("another scheme beside it", names(&[(URI, ann), (URI, b"https://tunnel.test/")])),
        ("another scheme before it", names(&[(URI, b"urn:x"), (URI, ann)])),
        ("a NUL behind it", names(&[(URI, &[ann, b"\0"].concat())])),
        ("a NUL and more behind it", names(&[(URI, &[ann, b"\0.example.org"].concat())])),
        ("a NUL inside", names(&[(URI, b"spiffe://tunnel.test/users\0/ann")])),
        ("a line feed", names(&[(URI, &[ann, b"\n"].concat())])),
        ("an escape sequence", names(&[(URI, &[ann, b"\x1b[2J"].concat())])),
        ("white space", names(&[(URI, &[ann, b" "].concat())])),
        ("a Cyrillic letter", names(&[(URI, "spiffe://tunnel.test/users/\u{430}nn".as_bytes())])),
        ("a combining accent", names(&[(URI, "spiffe://tunnel.test/users/ann\u{301}".as_bytes())])),
        ("an invisible letter", names(&[(URI, "spiffe://tunnel.test/users/ann\u{200b}".as_bytes())])),
        ("a Cyrillic domain", names(&[(URI, "spiffe://tunn\u{435}l.test/users/ann".as_bytes())])),
        ("an encoded letter", names(&[(URI, b"spiffe://tunnel.test/users/%61nn")])),
        ("upper case in the domain", names(&[(URI, b"spiffe://Tunnel.test/users/ann")])),
        ("upper case in the scheme", names(&[(URI, b"SPIFFE://tunnel.test/users/ann")])),
        ("a slash more", names(&[(URI, b"spiffe://tunnel.test/users/ann/")])),
        ("two slashes", names(&[(URI, b"spiffe://tunnel.test//users/ann")])),
        ("a way back", names(&[(URI, b"spiffe://tunnel.test/users/bob/../ann")])),
        ("a query", names(&[(URI, b"spiffe://tunnel.test/users/ann?x")])),
        ("a fragment", names(&[(URI, b"spiffe://tunnel.test/users/ann#x")])),
        ("a port", names(&[(URI, b"spiffe://tunnel.test:443/users/ann")])),
        ("a user", names(&[(URI, b"spiffe://ann@tunnel.test/users/ann")])),
        ("a name of 2 KiB", names(&[(URI, long.as_bytes())])),
        ("an empty URI", names(&[(URI, b"")])),
        ("no names at all in the list", names(&[])),
        ("an e-mail and a DNS name", names(&[(EMAIL, b"ann@tunnel.test"), (DNS, b"ann.tunnel.test")])),
        ("two e-mails", names(&[(EMAIL, b"ann@tunnel.test"), (EMAIL, b"bob@tunnel.test")])),
        ("an e-mail with a NUL", names(&[(EMAIL, b"ann@tunnel.test\0")])),
        ("an e-mail with two addresses", names(&[(EMAIL, b"ann@tunnel.test,bob@tunnel.test")])),
        ("a Cyrillic e-mail", names(&[(EMAIL, "\u{430}nn@tunnel.test".as_bytes())])),
        ("a DNS name with a NUL", names(&[(DNS, b"ann.tunnel.test\0.example.org")])),
        ("a wildcard", names(&[(DNS, b"*.tunnel.test")])),
        ("a trailing dot", names(&[(DNS, b"ann.tunnel.test.")])),
        ("a Cyrillic DNS name", names(&[(DNS, "\u{430}nn.tunnel.test".as_bytes())])),
    ];
    for (what, names) in cases {
        let heard = setting.hear(&named_in_der(names));
        // What the TLS library already refuses as no names at all never comes to a request.
        match heard.end {
            End::Proper => heard.is_refused(what, 403, "unauthorized"),
            End::Broken(_) => setting.gets_alert(what, &heard, &["BadCertificate", "DecodeError"]),
        }
        setting.siege.nothing_happened(what);
    }
    // Two lists of names, of which one reader could take the first and another the second.
    let mut twice = named_in_der(names(&[(URI, b"spiffe://tunnel.test/users/bob")]));
    twice.subject_alt_names = vec![SanType::URI(PRINCIPAL.try_into().unwrap())];
    let heard = setting.hear(&twice);
    setting.gets_alert("two lists of names", &heard, &["CertificateUnknown"]);
    setting.siege.end();
}

#[test]
fn names_that_only_look_like_a_granted_one_open_nothing() {
    let grants = "[[grant]]\nprincipal = \"ann.tunnel.test\"\nhosts = [\"host123\"]\n\
        [[grant]]\nprincipal = \"ann@tunnel.test\"\nhosts = [\"host123\"]\n\
        [[grant]]\nprincipal = \"spiffe://tunnel.test/robots/*\"\nhosts = [\"host123\"]";
    let setting = Setting::new(&Plan::any().tables(grants));
    for (what, right) in [
        ("a SPIFFE ID", names(&[(URI, PRINCIPAL.as_bytes())])),
        ("a SPIFFE ID of a pattern", names(&[(URI, b"spiffe://tunnel.test/robots/1")])),
        ("a DNS name", names(&[(DNS, b"ann.tunnel.test")])),
        ("an e-mail", names(&[(EMAIL, b"ann@tunnel.test")])),
    ] {
        setting.hear(&named_in_der(right)).is_served(what, 200);
    }
    for (what, other) in [
        ("punycode", names(&[(DNS, b"xn--nn-6kc.tunnel.test")])),
        ("a name below it", names(&[(DNS, b"x.ann.tunnel.test")])),
        ("a name above it", names(&[(DNS, b"tunnel.test")])),
        ("a look-alike", names(&[(DNS, b"ann.tunne1.test")])),
        ("a longer one", names(&[(DNS, b"ann.tunnel.test.example.org")])),
        ("another trust domain", names(&[(URI, b"spiffe://tunnel.test.example.org/users/ann")])),
        ("a longer path", names(&[(URI, b"spiffe://tunnel.test/users/ann/x")])),
        ("another case in the path", names(&[(URI, b"spiffe://tunnel.test/users/Ann")])),
        ("the pattern itself", names(&[(URI, b"spiffe://tunnel.test/robots")])),
        ("an e-mail of another case", names(&[(EMAIL, b"Ann@tunnel.test")])),
        ("an e-mail with an extension", names(&[(EMAIL, b"ann+x@tunnel.test")])),
    ] {
        let heard = setting.hear(&named_in_der(other));
        heard.is_refused(what, 421, "host-unknown");
        setting.siege.nothing_happened(what);
    }
    // A common name is nobody's name unless it is said so, and a URI in its place is never one.
    let mut common = named(Vec::new());
    common.distinguished_name.push(DnType::CommonName, PRINCIPAL);
    setting.hear(&common).is_refused("a common name", 403, "unauthorized");
    setting.siege.end();
}

/// Kilobytes of names are read, and no more than a handshake holds.
#[test]
fn names_without_end_are_read_up_to_64_kib() {
    let setting = Setting::new(&Plan::any());
    let names_beside = |count: usize| {
        let others: Vec<Vec<u8>> = (0..count).map(|number| format!("name-{number}.tunnel.test").into_bytes()).collect();
        let mut all: Vec<(u8, &[u8])> = others.iter().map(|name| (DNS, name.as_slice())).collect();
        all.push((URI, PRINCIPAL.as_bytes()));
        named_in_der(names(&all))
    };
    setting.hear(&names_beside(2000)).is_served("48 KiB of names", 200);
    let heard = setting.hear(&names_beside(4000));
    setting.gets_alert("96 KiB of names", &heard, &["DecodeError", "without sending TLS close_notify"]);
    let one = named_in_der(names(&[(0x83, &vec![0; 50_000]), (URI, PRINCIPAL.as_bytes())]));
    let heard = setting.hear(&one);
    assert!(heard.end != End::Proper || [200, 403].contains(&heard.answer().status), "{heard:?}");
    for nested in
        [der(0xa0, &der(0x30, &der(0x06, &[1; 1000]))), (0..500).fold(Vec::new(), |inner, _| der(0xa4, &inner))]
    {
        let heard = setting.hear(&named_in_der(der(0x30, &[nested, der(URI, PRINCIPAL.as_bytes())].concat())));
        assert!(heard.end != End::Proper || [200, 403].contains(&heard.answer().status), "{heard:?}");
    }
    setting.siege.end();
}
