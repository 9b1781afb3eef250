//! Client certificates that no authority vouches for, for something else, or out of their time: the handshake ends with the alert
//! that says so (RFC 8446 §6.2), soon, whatever the chain.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DnType, ExtendedKeyUsagePurpose as Purpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SanType, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::caller::{Caller, End, Heard};
use crate::siege::{Siege, get};
use crate::support::process::program;
use crate::support::wait::{SOON, wait_until};
use crate::support_net::child::{Watched, run};
use crate::support_net::site::{PRINCIPAL, Plan, SERVER_NAME, Site, text};

type Authority = CertifiedIssuer<'static, KeyPair>;
type Der = CertificateDer<'static>;

/// An extension, and a usage, that nobody knows.
const UNKNOWN: [u64; 6] = [1, 3, 6, 1, 4, 99_999];

/// What the server is asked to trust, and a siege of it.
pub(crate) struct Setting {
    pub(crate) siege: Siege,
    authority: Authority,
}

/// The parameters of an authority.
fn authority(name: &str, is_ca: IsCa) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = is_ca;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn unconstrained() -> IsCa {
    IsCa::Ca(BasicConstraints::Unconstrained)
}

/// The parameters of a granted client.
fn granted() -> CertificateParams {
    named(vec![SanType::URI(PRINCIPAL.try_into().unwrap())])
}

pub(crate) fn named(names: Vec<SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "ann");
    params.subject_alt_names = names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![Purpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params
}

impl Setting {
    pub(crate) fn new(plan: &Plan) -> Setting {
        let mut params = authority("an authority", unconstrained());
        params.distinguished_name.push(DnType::OrganizationName, "the clients'");
        let authority = Authority::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let siege = Siege::prepared(plan, |site: &Site| {
            fs::write(site.root.join("clients-ca.crt"), authority.pem() + &site.clients.certificate()).unwrap();
        });
        Setting { siege, authority }
    }

    /// What a client with a certificate of this authority gets to hear.
    pub(crate) fn hear(&self, params: &CertificateParams) -> Heard {
        self.hear_below(params, &self.authority, &[])
    }

    fn hear_below(&self, params: &CertificateParams, issuer: &Issuer<'_, KeyPair>, chain: &[Der]) -> Heard {
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, issuer).unwrap();
        self.hear_chain([&[leaf.der().clone()], chain].concat(), &key)
    }

    fn hear_chain(&self, chain: Vec<Der>, key: &KeyPair) -> Heard {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Caller::with_chain(&self.siege.site, chain, &key).say(get("/host", ""))
    }

    #[track_caller]
    pub(crate) fn gets_alert(&self, what: &str, heard: &Heard, alerts: &[&str]) {
        assert!(heard.bytes.is_empty(), "{what}: {heard:?}");
        let End::Broken(why) = &heard.end else { panic!("{what}: {heard:?}") };
        assert!(alerts.iter().any(|alert| why.contains(alert)), "{what}: {why}");
        self.siege.nothing_happened(what);
    }
}

#[test]
fn a_certificate_that_no_authority_vouches_for_ends_the_handshake() {
    let setting = Setting::new(&Plan::any());
    let another =
        |name: &str| Authority::self_signed(authority(name, unconstrained()), KeyPair::generate().unwrap()).unwrap();
    let namesake = {
        let mut params = authority("an authority", unconstrained());
        params.distinguished_name.push(DnType::OrganizationName, "the clients'");
        Authority::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    setting.hear(&granted()).is_served("the right one", 200);
    setting.gets_alert("another authority", &setting.hear_below(&granted(), &another("another"), &[]), &["UnknownCA"]);
    let other = another("another");
    let chain = [other.der().clone()];
    setting.gets_alert(
        "another authority with its own",
        &setting.hear_below(&granted(), &other, &chain),
        &["UnknownCA"],
    );
    let heard = setting.hear_below(&granted(), &namesake, &[]);
    setting.gets_alert("another authority of that name", &heard, &["DecryptError", "UnknownCA", "BadCertificate"]);
    let heard = setting.hear_below(&granted(), &namesake, &[namesake.der().clone(), setting.authority.der().clone()]);
    setting.gets_alert("the same with both", &heard, &["DecryptError", "UnknownCA", "BadCertificate"]);

    let key = KeyPair::generate().unwrap();
    let alone = granted().self_signed(&key).unwrap();
    setting.gets_alert("one that signs itself", &setting.hear_chain(vec![alone.der().clone()], &key), &["UnknownCA"]);
    let mut as_authority = granted();
    as_authority.is_ca = unconstrained();
    let heard = setting.hear(&as_authority);
    setting.gets_alert("an authority as a client", &heard, &["BadCertificate", "UnknownCA", "CertificateUnknown"]);
    let root = setting.authority.der().clone();
    let heard = setting.hear_chain(vec![root], setting.authority.key());
    setting.gets_alert("the authority itself", &heard, &["BadCertificate", "UnknownCA", "CertificateUnknown"]);
    // A leaf that is somebody else's, with another key.
    let leaf = granted().signed_by(&key, &setting.authority).unwrap();
    let thief = KeyPair::generate().unwrap();
    setting.gets_alert(
        "a stolen certificate",
        &setting.hear_chain(vec![leaf.der().clone()], &thief),
        &["DecryptError"],
    );
    // The right leaf behind a wrong one.
    let heard = setting.hear_chain(vec![alone.der().clone(), leaf.der().clone()], &key);
    setting.gets_alert("a right certificate second", &heard, &["UnknownCA"]);
    setting.siege.end();
}

#[test]
fn a_certificate_for_something_else_or_another_time_ends_the_handshake() {
    let setting = Setting::new(&Plan::any());
    let change = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = granted();
        change(&mut params);
        setting.hear(&params)
    };
    let times = ["CertificateExpired", "CertificateUnknown", "BadCertificate"];
    let heard = change(&|params| {
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1))
    });
    setting.gets_alert("expired", &heard, &times[..1]);
    let heard = change(&|params| {
        (params.not_before, params.not_after) = (date_time_ymd(2098, 1, 1), date_time_ymd(2099, 1, 1))
    });
    setting.gets_alert("not yet valid", &heard, &times);
    let heard = change(&|params| {
        (params.not_before, params.not_after) = (date_time_ymd(2099, 1, 1), date_time_ymd(2020, 1, 1))
    });
    setting.gets_alert("valid backwards", &heard, &times);
    let usages = ["UnsupportedCertificate", "BadCertificate", "CertificateUnknown"];
    for usage in [
        Purpose::ServerAuth,
        Purpose::CodeSigning,
        Purpose::EmailProtection,
        Purpose::OcspSigning,
        Purpose::Other(UNKNOWN.to_vec()),
    ] {
        let heard = change(&|params| params.extended_key_usages = vec![usage.clone()]);
        setting.gets_alert(&format!("{usage:?}"), &heard, &usages);
    }
    let unknown = |content: &[u8], is_critical: bool| {
        let mut extension = CustomExtension::from_oid_content(&UNKNOWN, content.to_vec());
        extension.set_criticality(is_critical);
        extension
    };
    let heard = change(&|params| params.custom_extensions.push(unknown(b"\x05\0", true)));
    setting.gets_alert(
        "an unknown critical extension",
        &heard,
        &["UnsupportedCertificate", "BadCertificate", "CertificateUnknown"],
    );
    change(&|params| params.custom_extensions.push(unknown(b"\x05\0", false))).is_served("an unknown extension", 200);
    setting.siege.end();
}

#[test]
fn a_chain_through_what_may_not_issue_ends_the_handshake() {
    let setting = Setting::new(&Plan::any());
    let below = |params: CertificateParams| {
        Authority::signed_by(params, KeyPair::generate().unwrap(), &setting.authority).unwrap()
    };
    let heard_below = |middle: &Authority| setting.hear_below(&granted(), middle, &[middle.der().clone()]);

    let good = below(authority("a good one", unconstrained()));
    heard_below(&good).is_served("an authority between", 200);
    let refused = ["UnknownCA", "BadCertificate", "CertificateUnknown", "UnsupportedCertificate", "CertificateExpired"];
    setting.gets_alert("without the one between", &setting.hear_below(&granted(), &good, &[]), &refused[..1]);
    setting.gets_alert("a client as an authority", &heard_below(&below(granted())), &refused);
    setting.gets_alert("no authority", &heard_below(&below(authority("none", IsCa::ExplicitNoCa))), &refused);
    let servers = {
        let mut params = authority("for servers", unconstrained());
        params.extended_key_usages = vec![Purpose::ServerAuth];
        below(params)
    };
    setting.gets_alert("an authority for servers", &heard_below(&servers), &refused);
    let expired = {
        let mut params = authority("expired", unconstrained());
        params.not_after = date_time_ymd(2021, 1, 1);
        below(params)
    };
    setting.gets_alert("an authority that has expired", &heard_below(&expired), &refused);
    let elsewhere = {
        let mut params = authority("constrained", unconstrained());
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("elsewhere.test".to_owned())],
            excluded_subtrees: Vec::new(),
        });
        below(params)
    };
    let params = named(vec![SanType::DnsName("ann.tunnel.test".try_into().unwrap())]);
    let heard = setting.hear_below(&params, &elsewhere, &[elsewhere.der().clone()]);
    setting.gets_alert("a name outside its authority's", &heard, &refused);
    let leafs_only = below(authority("leafs only", IsCa::Ca(BasicConstraints::Constrained(0))));
    let second =
        Authority::signed_by(authority("second", unconstrained()), KeyPair::generate().unwrap(), &leafs_only).unwrap();
    let heard = setting.hear_below(&granted(), &second, &[second.der().clone(), leafs_only.der().clone()]);
    setting.gets_alert("an authority below one for leafs", &heard, &refused);
    setting.siege.end();
}

/// Chains that make a verifier work: the answer comes soon whatever it is.
#[test]
fn a_chain_of_a_hundred_is_refused_soon() {
    let setting = Setting::new(&Plan::any());
    let key = || KeyPair::generate().unwrap();
    let deep = {
        let mut chain = vec![Authority::signed_by(authority("0", unconstrained()), key(), &setting.authority).unwrap()];
        for depth in 1..100 {
            let next =
                Authority::signed_by(authority(&depth.to_string(), unconstrained()), key(), chain.last().unwrap())
                    .unwrap();
            chain.push(next);
        }
        chain.reverse();
        chain
    };
    // Every one could be the issuer of every other, and none leads to an anchor.
    let tangle: Vec<Authority> = {
        let roots: Vec<_> =
            (0..10).map(|_| Authority::self_signed(authority("the same", unconstrained()), key()).unwrap()).collect();
        let all = (0..100).map(|number: usize| {
            Authority::signed_by(authority("the same", unconstrained()), key(), &roots[number % 10]).unwrap()
        });
        all.collect()
    };
    let ders = |chain: &[Authority]| chain.iter().map(|one| one.der().clone()).collect::<Vec<Der>>();
    for (what, issuer, chain) in [
        ("a chain of 100", &deep[0], ders(&deep)),
        ("100 of one name", &tangle[0], ders(&tangle)),
        ("100 of one name, the last first", &tangle[99], ders(&tangle)),
    ] {
        let start = Instant::now();
        let heard = setting.hear_below(&granted(), issuer, &chain);
        let refused =
            ["UnknownCA", "BadCertificate", "CertificateUnknown", "DecryptError", "InternalError", "AccessDenied"];
        setting.gets_alert(what, &heard, &refused);
        assert!(start.elapsed() < Duration::from_secs(4), "{what}: {:?}", start.elapsed());
    }
    let repeated = |count| vec![setting.authority.der().clone(); count];
    setting.hear_below(&granted(), &setting.authority, &repeated(4)).is_served("the authority four times", 200);
    let heard = setting.hear_below(&granted(), &setting.authority, &repeated(5));
    setting.gets_alert("the authority five times", &heard, &["CertificateUnknown"]);
    setting.siege.end();
}

/// Seconds of processor time that a process has taken.
fn processor_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0
}

/// Every one could be the issuer of every other, is as large as there is room for, and has no signature that fits: a search for a path
/// reads each again at each step.
#[test]
fn strangers_with_large_tangles_of_certificates_take_no_time() {
    let setting = Setting::new(&Plan::any());
    let key = || KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let wide = |extensions: usize| {
        let mut params = authority("x", unconstrained());
        params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 999], Vec::new()); extensions];
        params
    };
    let root = Authority::self_signed(wide(0), key()).unwrap();
    let before = processor_seconds(setting.siege.pid);
    for (count, extensions) in [(220, 0), (9, 840), (5, 1500), (4, 1900)] {
        let tangle: Vec<Der> =
            (0..count).map(|_| Authority::signed_by(wide(extensions), key(), &root).unwrap().der().clone()).collect();
        let heard = setting.hear_below(&granted(), &root, &tangle);
        setting.gets_alert(&format!("{count} of one name"), &heard, &["UnknownCA", "CertificateUnknown"]);
    }
    let took = processor_seconds(setting.siege.pid) - before;
    // With nine it was six seconds with optimisation, and is not bounded by any time-out.
    assert!(took < 3.0, "{took} s of the server's processor");
    setting.siege.end();
}

/// Keys and signatures that were good once, which the library behind this client would not use: openssl does.
#[test]
fn weak_keys_and_signatures_end_the_handshake() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| text(&folder.path().join(name)).to_owned();
    let openssl = |line: &str| {
        let mut command = Command::new(program("openssl"));
        run(command.args(line.split(' ')).current_dir(folder.path())).ok();
    };
    let names =
        "subjectAltName=URI:spiffe://tunnel.test/users/ann\nextendedKeyUsage=clientAuth\nkeyUsage=digitalSignature\n";
    fs::write(file("names"), names).unwrap();
    openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 30 -subj /CN=rsa");
    let issue = |name: &str, key: &str, hash: &str| {
        openssl(&format!("{key} -out {name}.key"));
        openssl(&format!("req -new -key {name}.key -subj /CN=ann -out {name}.csr"));
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -set_serial 1 -days 30 -{hash} -extfile names -out {name}.crt"
        ));
    };
    issue("good", "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048", "sha256");
    issue("short", "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024", "sha256");
    issue("sha1", "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048", "sha1");
    issue("md5", "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048", "md5");
    issue("curve", "ecparam -name secp256k1 -genkey -noout", "sha256");
    let siege = Siege::prepared(&Plan::any(), |site| {
        let clients = fs::read_to_string(file("ca.crt")).unwrap() + &site.clients.certificate();
        fs::write(site.root.join("clients-ca.crt"), clients).unwrap();
    });
    let endpoint = siege.site.address().to_string();
    for name in ["good", "short", "sha1", "md5", "curve"] {
        let mut client = Command::new(program("openssl"));
        client.args([
            "s_client",
            "-connect",
            &endpoint,
            "-servername",
            SERVER_NAME,
            "-tls1_3",
            "-cipher",
            "ALL:@SECLEVEL=0",
        ]);
        client.args(["-cert", &file(&format!("{name}.crt")), "-key", &file(&format!("{name}.key")), "-ign_eof"]);
        let mut client = Watched::start(client.stdin(Stdio::piped()));
        client.write(get("/host", "").as_bytes());
        if name == "good" {
            client.wait_for_output("HTTP/1.1 200 OK");
            continue;
        }
        // secp256k1 has no signature in TLS 1.3, so that openssl sends no certificate.
        wait_until(&format!("{name}: the alert has come"), SOON, || client.stderr().contains("alert "));
        assert!(!String::from_utf8_lossy(&client.stdout()).contains("HTTP/1.1"), "{name}");
        siege.nothing_happened(name);
    }
    siege.end();
}
