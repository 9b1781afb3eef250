//! A client that has agreed on keys and then sends other messages than TLS 1.3 has in their place (RFC 8446 §4.4, §4.6): data
//! before its certificate, no certificate or parts of its proof, a renegotiation, records of no sense.

use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk};
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, KeyLog, RootCertStore};

use crate::siege::{RAW, STARTS, Siege, get, post};
use crate::support::wait::SOON;
use crate::support_net::site::{PRINCIPAL, Plan, SERVER_NAME};

/// Content types of records.
const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;

/// How long a handshake may take here.
const TIME: Duration = Duration::from_secs(2);

/// Both of a client's traffic secrets, as the library tells them.
#[derive(Debug, Default)]
struct Secrets(Mutex<Vec<(String, Vec<u8>)>>);

impl KeyLog for Secrets {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        self.0.lock().unwrap().push((label.to_owned(), secret.to_vec()));
    }
}

/// A connection on which the server has said everything that it says first.
struct Speaker {
    tcp: TcpStream,
    connection: ClientConnection,
    secret: Vec<u8>,
    sequence: u64,
}

/// Records by type and content.
type Records = Vec<(u8, Vec<u8>)>;

/// What is said, in a record of which type, and the alerts that may answer it.
type Case<'a> = (&'a str, Option<u8>, &'a [u8], &'a [&'a str]);

/// The length of a key or an IV.
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl Speaker {
    /// One that has not answered the server's flight.
    fn in_handshake(siege: &Siege) -> Speaker {
        Speaker::new(siege, "CLIENT_HANDSHAKE_TRAFFIC_SECRET", false)
    }

    /// One that has finished the handshake as a granted client.
    fn authenticated(siege: &Siege) -> Speaker {
        Speaker::new(siege, "CLIENT_TRAFFIC_SECRET_0", true)
    }

    fn new(siege: &Siege, secret: &str, finishes: bool) -> Speaker {
        let site = &siege.site;
        let identity = site.clients.client(PRINCIPAL);
        let mut roots = RootCertStore::empty();
        roots.add(PemObject::from_pem_slice(site.servers.certificate().as_bytes()).unwrap()).unwrap();
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        provider.cipher_suites = vec![TLS13_AES_128_GCM_SHA256];
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![PemObject::from_pem_slice(identity.certificate.as_bytes()).unwrap()],
                PemObject::from_pem_slice(identity.key.as_bytes()).unwrap(),
            )
            .unwrap();
        let secrets = Arc::new(Secrets::default());
        config.key_log = secrets.clone();
        let mut tcp = TcpStream::connect(site.address()).unwrap();
        tcp.set_read_timeout(Some(SOON)).unwrap();
        tcp.set_write_timeout(Some(SOON)).unwrap();
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
        connection.write_tls(&mut tcp).unwrap();
        while connection.is_handshaking() {
            assert!(connection.read_tls(&mut tcp).unwrap() > 0, "the server hangs up");
            connection.process_new_packets().unwrap();
        }
        let mut flight = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut flight).unwrap();
        }
        if finishes {
            tcp.write_all(&flight).unwrap();
        }
        let secrets = secrets.0.lock().unwrap();
        let secret = secrets.iter().find(|(label, _)| label == secret).unwrap().1.clone();
        Speaker { tcp, connection, secret, sequence: 0 }
    }

    /// A record with this content of this type (RFC 8446 §5.2), or of none.
    fn sealed(&mut self, kind: Option<u8>, content: &[u8]) -> Vec<u8> {
        let mut text = content.to_vec();
        text.extend(kind);
        let length = u16::try_from(text.len() + 16).unwrap().to_be_bytes();
        let head = [DATA, 3, 3, length[0], length[1]];
        let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &expand(&self.secret, "key", 16)).unwrap());
        let mut nonce: [u8; 12] = expand(&self.secret, "iv", 12).try_into().unwrap();
        nonce.iter_mut().skip(4).zip(self.sequence.to_be_bytes()).for_each(|(byte, count)| *byte ^= count);
        self.sequence += 1;
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(head), &mut text).unwrap();
        [head.as_slice(), &text].concat()
    }

    /// Sends a record of this type.
    fn say(&mut self, kind: u8, content: &[u8]) {
        let record = self.sealed(Some(kind), content);
        // The server may have had enough before.
        let _ = self.tcp.write_all(&record);
    }

    /// What the server says until the end, and with which alert it ends, if with one.
    fn hear(mut self) -> (Vec<u8>, String) {
        let mut said = Vec::new();
        loop {
            let count = self.connection.read_tls(&mut self.tcp).expect("no reset and no silence");
            let state = self.connection.process_new_packets();
            let _ = std::io::Read::read_to_end(&mut self.connection.reader(), &mut said);
            match state {
                Ok(state) if state.peer_has_closed() => return (said, "close_notify".to_owned()),
                Ok(_) if count == 0 => return (said, String::new()),
                Ok(_) => {}
                Err(rustls::Error::AlertReceived(alert)) => return (said, format!("{alert:?}")),
                Err(other) => panic!("{other}"),
            }
        }
    }
}

/// HKDF-Expand-Label without a context (RFC 8446 §7.1).
fn expand(secret: &[u8], label: &str, length: u8) -> Vec<u8> {
    let label = format!("tls13 {label}");
    let lengths = [0, length, u8::try_from(label.len()).unwrap()];
    let info = [lengths.as_slice(), label.as_bytes(), &[0]];
    let mut bytes = vec![0; usize::from(length)];
    let prk = Prk::new_less_safe(HKDF_SHA256, secret);
    prk.expand(&info, Length(bytes.len())).unwrap().fill(&mut bytes).unwrap();
    bytes
}

/// A handshake message.
fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind], &u32::try_from(body.len()).unwrap().to_be_bytes()[1..], body].concat()
}

/// A Certificate of these, without extensions.
fn certificates(chain: &[&[u8]]) -> Vec<u8> {
    let sized = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[1..], bytes].concat();
    let entries: Vec<u8> = chain.iter().flat_map(|der| [sized(der), vec![0, 0]].concat()).collect();
    message(11, &[vec![0], sized(&entries)].concat())
}

fn siege() -> Siege {
    Siege::of(&Plan::any().limit("handshake_timeout = \"2s\""))
}

/// Where a granted client would show its certificate.
#[test]
fn nothing_but_a_certificate_and_its_proof_makes_a_client() {
    let siege = siege();
    let identity = siege.site.clients.client(PRINCIPAL);
    let der: rustls::pki_types::CertificateDer<'static> =
        PemObject::from_pem_slice(identity.certificate.as_bytes()).unwrap();
    let good = certificates(&[&der]);
    let request = post("/command", RAW, STARTS);
    let proof = |signature: &[u8]| {
        message(15, &[&[4, 3], &u16::try_from(signature.len()).unwrap().to_be_bytes()[..], signature].concat())
    };
    let finished = message(20, &[0; 32]);
    let cases: Vec<(&str, Records, &[&str])> = vec![
        ("data", vec![(DATA, request.into_bytes())], &["UnexpectedMessage"]),
        ("no certificate", vec![(HANDSHAKE, certificates(&[]))], &["CertificateRequired"]),
        ("Finished alone", vec![(HANDSHAKE, finished.clone())], &["UnexpectedMessage"]),
        ("a proof alone", vec![(HANDSHAKE, proof(&[0; 70]))], &["UnexpectedMessage"]),
        (
            "a certificate without a proof",
            vec![(HANDSHAKE, good.clone()), (HANDSHAKE, finished.clone())],
            &["UnexpectedMessage"],
        ),
        (
            "a certificate and data",
            vec![(HANDSHAKE, good.clone()), (DATA, get("/host", "").into_bytes())],
            &["UnexpectedMessage"],
        ),
        ("a certificate twice", vec![(HANDSHAKE, [good.clone(), good.clone()].concat())], &["UnexpectedMessage"]),
        ("a proof of zeros", vec![(HANDSHAKE, [good.clone(), proof(&[0; 70])].concat())], &["DecryptError"]),
        ("an empty proof", vec![(HANDSHAKE, [good.clone(), proof(&[])].concat())], &["DecryptError"]),
        (
            "noise as a certificate",
            vec![(HANDSHAKE, certificates(&[&[0xff; 500]]))],
            &["BadCertificate", "DecodeError"],
        ),
        ("an empty certificate", vec![(HANDSHAKE, certificates(&[b""]))], &["BadCertificate", "DecodeError"]),
        (
            "half a certificate",
            vec![(HANDSHAKE, certificates(&[&der[..der.len() / 2]]))],
            &["BadCertificate", "DecodeError"],
        ),
        (
            "more than a certificate",
            vec![(HANDSHAKE, certificates(&[&[&der, b"\0".as_slice()].concat()]))],
            &["BadCertificate", "DecodeError"],
        ),
        (
            "a context",
            vec![(HANDSHAKE, message(11, &[1, 0, 0, 0, 0]))],
            &["IllegalParameter", "DecodeError", "UnexpectedMessage"],
        ),
        ("lengths that do not fit", vec![(HANDSHAKE, message(11, &[0, 0xff, 0xff, 0xff, 0]))], &["DecodeError"]),
        ("a ClientHello", vec![(HANDSHAKE, message(1, &[0; 100]))], &["UnexpectedMessage", "DecodeError"]),
        ("a KeyUpdate", vec![(HANDSHAKE, message(24, &[1]))], &["UnexpectedMessage"]),
        ("an end of early data", vec![(HANDSHAKE, message(5, &[]))], &["UnexpectedMessage"]),
        ("a fatal alert", vec![(ALERT, vec![2, 40])], &["", "close_notify", "DecodeError"]),
        ("close_notify", vec![(ALERT, vec![1, 0])], &["", "close_notify", "DecodeError"]),
        ("half an alert", vec![(ALERT, vec![2])], &["DecodeError"]),
        ("nothing", vec![], &["", "close_notify", "DecodeError"]),
    ];
    std::thread::scope(|scope| {
        for (what, records, alerts) in cases {
            let siege = &siege;
            scope.spawn(move || {
                let start = Instant::now();
                let mut speaker = Speaker::in_handshake(siege);
                for (kind, content) in records {
                    speaker.say(kind, &content);
                }
                let (said, alert) = speaker.hear();
                assert!(alerts.contains(&alert.as_str()), "{what}: {alert}");
                assert_eq!(said, b"", "{what}");
                assert!(start.elapsed() < TIME * 3, "{what}: {:?}", start.elapsed());
            });
        }
    });
    siege.nothing_happened("no client");
    siege.end();
}

/// Chains that the handshake's own bound, 64 KiB, lets through or does not.
#[test]
fn a_chain_without_end_is_refused_by_its_size() {
    let siege = siege();
    let one = [0x30; 10_000];
    for (what, chain) in
        [("1 MiB", certificates(&vec![one.as_slice(); 100])), ("16 MiB", message(11, &vec![0; (1 << 24) - 1]))]
    {
        let mut speaker = Speaker::in_handshake(&siege);
        for piece in chain.chunks(16_000) {
            speaker.say(HANDSHAKE, piece);
        }
        let (said, alert) = speaker.hear();
        assert!(
            said.is_empty() && ["DecodeError", "IllegalParameter", ""].contains(&alert.as_str()),
            "{what}: {alert}"
        );
    }
    siege.nothing_happened("large chains");
    siege.end();
}

#[test]
fn records_of_no_sense_end_an_authenticated_connection() {
    let siege = siege();
    let hello = message(1, &[&[3, 3], [5; 32].as_slice(), &[0, 0, 2, 0x13, 1, 1, 0, 0, 0]].concat());
    let cases: &[Case<'_>] = &[
        ("a renegotiation", Some(HANDSHAKE), &hello, &["UnexpectedMessage", "DecodeError"]),
        ("a HelloRequest", Some(HANDSHAKE), &message(0, &[]), &["UnexpectedMessage"]),
        ("a certificate", Some(HANDSHAKE), &certificates(&[]), &["UnexpectedMessage"]),
        ("a CertificateRequest", Some(HANDSHAKE), &message(13, &[0, 0, 0]), &["UnexpectedMessage", "DecodeError"]),
        ("a ticket", Some(HANDSHAKE), &message(4, &[0; 20]), &["UnexpectedMessage", "DecodeError"]),
        ("Finished again", Some(HANDSHAKE), &message(20, &[0; 32]), &["UnexpectedMessage"]),
        ("a KeyUpdate of no kind", Some(HANDSHAKE), &message(24, &[7]), &["IllegalParameter", "DecodeError"]),
        ("a KeyUpdate with more", Some(HANDSHAKE), &message(24, &[0, 0]), &["DecodeError", "IllegalParameter"]),
        ("an empty alert", Some(ALERT), b"", &["UnexpectedMessage", "DecodeError"]),
        ("a change of keys", Some(CHANGE_CIPHER_SPEC), &[1], &["UnexpectedMessage", "DecodeError"]),
        ("an unknown type", Some(99), b"x", &["UnexpectedMessage", "DecodeError"]),
        ("no type", None, &[0; 100], &["UnexpectedMessage", "close_notify"]),
        ("a record of 16 KiB and more", Some(DATA), &[b'x'; (1 << 14) + 1], &["RecordOverflow"]),
    ];
    for (what, kind, content, alerts) in cases {
        let mut speaker = Speaker::authenticated(&siege);
        let record = speaker.sealed(*kind, content);
        speaker.tcp.write_all(&record).unwrap();
        speaker.say(DATA, post("/command", RAW, STARTS).as_bytes());
        let (said, alert) = speaker.hear();
        assert!(alerts.contains(&alert.as_str()), "{what}: {alert}");
        assert_eq!(said, b"", "{what}");
        siege.nothing_happened(what);
    }
    // Records that were changed, sent twice, or are not sealed at all.
    for what in ["a changed byte", "the same again", "not sealed", "a version of no sense"] {
        let mut speaker = Speaker::authenticated(&siege);
        let mut record = speaker.sealed(Some(DATA), &post("/command", RAW, STARTS).as_bytes()[..20]);
        match what {
            "a changed byte" => record[10] ^= 1,
            "the same again" => record = record.repeat(2),
            "not sealed" => record = [&[DATA, 3, 3, 0, 40], &post("/command", RAW, STARTS).as_bytes()[..40]].concat(),
            _ => record[1..3].copy_from_slice(&[9, 9]),
        }
        speaker.tcp.write_all(&record).unwrap();
        let (said, alert) = speaker.hear();
        assert!(
            ["BadRecordMac", "DecodeError", "ProtocolVersion", "DecryptError"].contains(&alert.as_str()),
            "{what}: {alert}"
        );
        assert_eq!(said, b"", "{what}");
        siege.nothing_happened(what);
    }
    siege.end();
}

#[test]
fn floods_of_records_that_say_nothing_are_bounded() {
    let siege = siege();
    for what in ["empty data", "key updates"] {
        let mut speaker = Speaker::authenticated(&siege);
        let start = Instant::now();
        for _ in 0..20_000 {
            let (kind, content) =
                if what == "empty data" { (DATA, Vec::new()) } else { (HANDSHAKE, message(24, &[1])) };
            let record = speaker.sealed(Some(kind), &content);
            if what == "key updates" {
                (speaker.secret, speaker.sequence) = (expand(&speaker.secret, "traffic upd", 32), 0);
            }
            if speaker.tcp.write_all(&record).is_err() || start.elapsed() > TIME {
                break;
            }
        }
        let (said, alert) = speaker.hear();
        // One that read on would answer in the end that no request has come.
        assert!(said.is_empty(), "{what}: {alert}");
        siege.nothing_happened(what);
    }
    siege.end();
}
