//! A client written by hand from tstunnel-protocol(7) alone, over rustls and a blocking socket: it can ask what tstunnel's own never
//! would.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::support::remote::{DOMAIN, Remote};
use crate::support::wait::SOON;

const STDIN: u8 = 0x00;
const STDOUT: u8 = 0x01;
const STDERR: u8 = 0x02;
const EXIT: u8 = 0x03;
const PING: u8 = 0x10;
const PONG: u8 = 0x11;
const ACK: u8 = 0x12;

/// How long a read waits before the caller looks around.
const GLANCE: Duration = Duration::from_millis(20);

/// Who connects, by the name of the files with the certificate and the key, and to which host.
#[derive(Clone)]
pub(crate) struct Caller {
    config: Arc<ClientConfig>,
    address: std::net::SocketAddr,
    host: String,
}

/// What the server has answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

/// A connection, and what was received on it and not looked at.
pub(crate) struct Wire {
    stream: StreamOwned<ClientConnection, TcpStream>,
    buffer: Vec<u8>,
}

impl Caller {
    /// The client that the host's setup grants it to.
    pub(crate) fn of(remote: &Remote) -> Caller {
        Caller::named(remote, "client", remote.host())
    }

    pub(crate) fn named(remote: &Remote, name: &str, host: &str) -> Caller {
        let file = |name: &str| remote.folder().join(name);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(file("servers-ca.crt")).unwrap()).unwrap();
        let certificate = CertificateDer::from_pem_file(file(&format!("{name}.crt"))).unwrap();
        let key = PrivateKeyDer::from_pem_file(file(&format!("{name}.key"))).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)
            .unwrap();
        Caller { config: Arc::new(config), address: remote.server_address(), host: host.to_owned() }
    }

    /// Asks on a connection of its own.
    pub(crate) fn ask(&self, method: &str, path: &str, fields: &[(&str, &str)], body: &str) -> (Answer, Wire) {
        self.try_ask(method, path, fields, body).unwrap()
    }

    fn try_ask(&self, method: &str, path: &str, fields: &[(&str, &str)], body: &str) -> io::Result<(Answer, Wire)> {
        let name = format!("{}.{DOMAIN}", self.host);
        let tcp = TcpStream::connect(self.address)?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(SOON))?;
        let server = ServerName::try_from(name.clone()).unwrap();
        let tls = ClientConnection::new(self.config.clone(), server).unwrap();
        let mut wire = Wire { stream: StreamOwned::new(tls, tcp), buffer: Vec::new() };
        let mut head =
            format!("{method} /tinyscale/v1{path} HTTP/1.1\r\nHost: {name}\r\nContent-Length: {}\r\n", body.len());
        for (field, value) in fields {
            head += &format!("{field}: {value}\r\n");
        }
        wire.stream.write_all(format!("{head}\r\n{body}").as_bytes())?;
        let answer = wire.answer()?;
        Ok((answer, wire))
    }

    /// Asks to go on with a session.
    pub(crate) fn resume(&self, token: &str, received: &str) -> (Answer, Wire) {
        self.try_resume(token, received).unwrap()
    }

    /// The same with frames in the body, behind `early` others.
    pub(crate) fn resume_with(&self, token: &str, received: u64, early: &str, body: &str) -> (Answer, Wire) {
        self.try_resume_with(token, &received.to_string(), &[("Tstunnel-Early", early)], body).unwrap()
    }

    pub(crate) fn try_resume(&self, token: &str, received: &str) -> io::Result<(Answer, Wire)> {
        self.try_resume_with(token, received, &[], "")
    }

    fn try_resume_with(
        &self,
        token: &str,
        received: &str,
        more: &[(&str, &str)],
        body: &str,
    ) -> io::Result<(Answer, Wire)> {
        let fields = [
            ("Connection", "Upgrade"),
            ("Upgrade", "tstunnel/1"),
            ("Tstunnel-Session", token),
            ("Tstunnel-Received", received),
        ];
        self.try_ask("POST", "/resume", &[&fields, more].concat(), body)
    }

    /// Starts `sh -c SCRIPT` on the host.
    pub(crate) fn start(&self, script: &str) -> (Answer, Wire) {
        let body = serde_json::json!({"command": "sh", "args": ["-c", script]}).to_string();
        self.ask("POST", "/command", &[("Connection", "Upgrade"), ("Upgrade", "tstunnel/1")], &body)
    }
}

impl Answer {
    /// A field's value.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    #[track_caller]
    pub(crate) fn assert_refused(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.body.contains(&format!("\"urn:tstunnel:{code}\"")), "{self:?}");
    }
}

impl Wire {
    fn answer(&mut self) -> io::Result<Answer> {
        let end = loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            self.read()?;
        };
        let head = String::from_utf8_lossy(&self.buffer.drain(..end).collect::<Vec<u8>>()).into_owned();
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("an answer has a status");
        let mut answer = Answer { status, head, body: String::new() };
        let length = answer.field("content-length").map_or(0, |value| value.parse().unwrap());
        while status != 101 && self.buffer.len() < length {
            self.read()?;
        }
        if status != 101 {
            answer.body = String::from_utf8_lossy(&self.buffer).into_owned();
        }
        Ok(answer)
    }

    fn read(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16_384];
        let count = self.stream.read(&mut chunk)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.buffer.extend_from_slice(&chunk[..count]);
        Ok(())
    }

    /// The next whole frame that has been received.
    fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let &[kind, a, b, c, ..] = &self.buffer[..] else { return None };
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        if self.buffer.len() < 4 + length {
            return None;
        }
        let frame: Vec<u8> = self.buffer.drain(..4 + length).skip(4).collect();
        Some((kind, frame))
    }
}

/// A session, whose connection may break and be replaced at any time.
pub(crate) struct Session {
    caller: Caller,
    wire: Option<Wire>,
    pub(crate) token: String,
    /// Sequenced frames received, and how many of those were acknowledged.
    pub(crate) received: u64,
    pub(crate) acknowledged: u64,
    pub(crate) stdout: Vec<u8>,
    exit: Option<u32>,
    /// Every frame that was ever sent, and the first that this connection has not carried.
    sent: Vec<Vec<u8>>,
    next: usize,
    /// Whether what comes is acknowledged.
    pub(crate) acknowledges: bool,
}

impl Session {
    /// Starts `sh -c SCRIPT`.
    pub(crate) fn start(caller: &Caller, script: &str) -> Session {
        let (answer, wire) = caller.start(script);
        assert_eq!(answer.status, 101, "{answer:?}");
        let token = answer.field("Tstunnel-Session").expect("the session can be resumed").to_owned();
        let mut session = Session {
            caller: caller.clone(),
            wire: None,
            token,
            received: 0,
            acknowledged: 0,
            stdout: Vec::new(),
            exit: None,
            sent: Vec::new(),
            next: 0,
            acknowledges: true,
        };
        session.attach(wire);
        session
    }

    pub(crate) fn attach(&mut self, wire: Wire) {
        wire.stream.sock.set_read_timeout(Some(GLANCE)).unwrap();
        self.wire = Some(wire);
    }

    /// How the process has ended.
    pub(crate) fn exit(&self) -> Option<u32> {
        self.exit
    }

    pub(crate) fn is_attached(&self) -> bool {
        self.wire.is_some()
    }

    /// Gives the connection up without a word.
    pub(crate) fn drop_connection(&mut self) {
        self.wire = None;
    }

    /// Goes on over a new connection of somebody else's.
    pub(crate) fn resume_as(&mut self, caller: &Caller) {
        self.caller = caller.clone();
        self.resume().unwrap();
    }

    /// Goes on over a new connection, with everything that was sent since frame `first` in the request's body.
    pub(crate) fn resume_early(&mut self, first: usize) {
        let body = String::from_utf8(self.sent[first..].concat()).unwrap();
        let (answer, wire) = self.caller.resume_with(&self.token, self.received, &first.to_string(), &body);
        assert_eq!(answer.status, 101, "{answer:?}");
        self.next = answer.field("Tstunnel-Received").unwrap().parse().unwrap();
        self.attach(wire);
    }

    /// Whether there is a frame that no connection has carried, as far as is known.
    pub(crate) fn has_unsent(&self) -> bool {
        self.next < self.sent.len()
    }

    /// Goes on over a new connection.
    pub(crate) fn resume(&mut self) -> io::Result<()> {
        let (answer, wire) = self.caller.try_resume(&self.token, &self.received.to_string())?;
        assert_eq!(answer.status, 101, "{answer:?}");
        self.next = answer.field("Tstunnel-Received").unwrap().parse().unwrap();
        self.attach(wire);
        Ok(())
    }

    /// Sends stdin, in a frame of its own; nothing ends it.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
        self.sent.push([&[STDIN], &length[1..], bytes].concat());
    }

    /// Carries both directions until `is_enough`. A connection that breaks is replaced where `mends` says so, and a failure
    /// otherwise.
    #[track_caller]
    pub(crate) fn carry(&mut self, mends: bool, mut is_enough: impl FnMut(&Session) -> bool) {
        let deadline = Instant::now() + SOON * 3;
        while !is_enough(self) {
            assert!(Instant::now() < deadline, "too little came: {} bytes, exit {:?}", self.stdout.len(), self.exit);
            let result = match self.wire.take() {
                None => self.resume(),
                Some(wire) => self.carry_some(wire),
            };
            assert!(mends || result.is_ok(), "{result:?}");
        }
    }

    /// Carries until stdout is so long.
    #[track_caller]
    pub(crate) fn carry_until(&mut self, stdout_bytes: usize) {
        self.carry(false, |session| session.stdout.len() >= stdout_bytes);
    }

    /// Asks `cat` for an answer, over the connection that there is.
    #[track_caller]
    pub(crate) fn assert_alive(&mut self) {
        let word = format!("alive {}\n", self.sent.len());
        let expected = [&self.stdout[..], word.as_bytes()].concat();
        self.send(word.as_bytes());
        self.carry_until(expected.len());
        assert!(self.stdout == expected);
    }

    /// Sends one frame, and takes what has come; the connection stays where it has not failed.
    fn carry_some(&mut self, mut wire: Wire) -> io::Result<()> {
        if let Some(frame) = self.sent.get(self.next) {
            wire.stream.write_all(frame)?;
            self.next += 1;
        }
        match wire.read() {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
        while let Some((kind, payload)) = wire.frame() {
            match kind {
                STDOUT => self.stdout.extend_from_slice(&payload),
                EXIT => self.exit = Some(u32::from_be_bytes(payload[1..].try_into().unwrap())),
                PING => wire.stream.write_all(&[&[PONG, 0, 0, 8], &payload[..]].concat())?,
                STDERR | PONG | ACK => {}
                _ => panic!("the server sent a frame of kind {kind:#x}: {}", String::from_utf8_lossy(&payload)),
            }
            self.received += u64::from(kind < PING);
        }
        if self.acknowledges && self.acknowledged < self.received {
            wire.stream.write_all(&[&[ACK, 0, 0, 8], &self.received.to_be_bytes()[..]].concat())?;
            self.acknowledged = self.received;
        }
        self.wire = Some(wire);
        Ok(())
    }
}
