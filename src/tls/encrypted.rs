//! A private key with a passphrase, PKCS#8 (RFC 5958 §3) → the key; the passphrase comes from whoever calls.
//!
//! Of PBES2 (RFC 8018 §6.2) this knows what OpenSSL writes: PBKDF2 and AES-CBC, by the one cryptographic library that TLS
//! uses anyway. How long a file may have us compute is bounded.

use std::num::NonZeroU32;
use std::path::Path;

use aws_lc_rs::cipher::{
    AES_128, AES_192, AES_256, Algorithm as Cipher, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::pbkdf2;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::asn1_rs::{Any, FromDer, Oid, Tag, oid};
use zeroize::Zeroizing;

use super::pem::wrong_at;
use crate::error::{Result, printable};

/// Who is asked for a passphrase, with the prompt.
pub type Ask<'a> = dyn FnMut(&str) -> Result<Zeroizing<Vec<u8>>> + 'a;

/// How often a person may be wrong, as for OpenSSH (`NumberOfPasswordPrompts`).
const ATTEMPTS: usize = 3;
/// Most rounds of the derivation: a few seconds of work, and several times what is recommended (OWASP: 1,300,000 for SHA-1).
const MAX_ITERATIONS: u32 = 5_000_000;

/// The longest key of a cipher here.
const MAX_KEY_BYTES: usize = 32;

const CONVERT: &str = "write a copy with AES that only you can read: `umask 77; openssl pkcs8 -topk8 -v2 aes-256-cbc -in KEY -out NEWKEY`";

/// Decrypts a file's key, which begins at `line` of it.
///
/// # Errors
/// `config` where the key is malformed, encrypted in another way, or the passphrase is wrong; and what `ask` says.
pub(super) fn private_key(path: &Path, line: usize, der: &[u8], ask: &mut Ask<'_>) -> Result<PrivateKeyDer<'static>> {
    let key = EncryptedKey::parse(der).map_err(|why| wrong_at(path, line, why).with_hint(CONVERT))?;
    let file = printable(&path.display().to_string());
    let mut prompt = format!("Enter passphrase for key '{file}': ");
    for _ in 0..ATTEMPTS {
        let passphrase = ask(&prompt)?;
        if passphrase.is_empty() {
            return Err(wrong_at(path, line, "the private key has a passphrase, and none was given")
                .with_hint("start again and enter the passphrase"));
        }
        if let Some(key) = key.decrypt(&passphrase) {
            return Ok(key);
        }
        prompt = format!("Wrong passphrase, try again for key '{file}': ");
    }
    Err(wrong_at(path, line, "the passphrase was wrong three times, or the file is damaged")
        .with_hint("try it: `openssl pkey -noout -in KEY`"))
}

/// An `EncryptedPrivateKeyInfo`, as far as it is understood.
struct EncryptedKey<'a> {
    prf: pbkdf2::Algorithm,
    salt: &'a [u8],
    iterations: NonZeroU32,
    cipher: &'static Cipher,
    key_bytes: usize,
    iv: [u8; 16],
    contents: &'a [u8],
}

impl<'a> EncryptedKey<'a> {
    fn parse(der: &'a [u8]) -> Result<EncryptedKey<'a>, &'static str> {
        let mut whole = Fields(der);
        let mut info = whole.sequence()?;
        let (scheme, mut parameters) = info.algorithm()?;
        if scheme != oid!(1.2.840.113549.1.5.13) {
            return Err("the private key is encrypted in another way than by PBES2");
        }
        let mut parameters = parameters.sequence()?;
        let (derivation, mut derivation_parameters) = parameters.algorithm()?;
        let (cipher, mut cipher_parameters) = parameters.algorithm()?;
        if derivation != oid!(1.2.840.113549.1.5.12) {
            return Err("the private key's passphrase is stretched in another way than by PBKDF2");
        }
        let (cipher, key_bytes) = known_cipher(&cipher)?;
        let mut derivation = derivation_parameters.sequence()?;
        let salt = derivation.next(Tag::OctetString)?;
        let iterations = NonZeroU32::new(number(derivation.next(Tag::Integer)?)?).ok_or(MALFORMED)?;
        if iterations.get() > MAX_ITERATIONS {
            return Err("the private key's passphrase is stretched by more than five million rounds");
        }
        if derivation.is_next(Tag::Integer) && number(derivation.next(Tag::Integer)?)? as usize != key_bytes {
            return Err(MALFORMED);
        }
        let prf = if derivation.0.is_empty() { oid!(1.2.840.113549.2.7) } else { derivation.algorithm()?.0 };
        let iv = cipher_parameters.next(Tag::OctetString)?.try_into().map_err(|_| MALFORMED)?;
        let contents = info.next(Tag::OctetString)?;
        Ok(EncryptedKey { prf: known_prf(&prf)?, salt, iterations, cipher, key_bytes, iv, contents })
    }

    /// The key, or nothing where the passphrase is another.
    fn decrypt(&self, passphrase: &[u8]) -> Option<PrivateKeyDer<'static>> {
        let mut key = Zeroizing::new([0; MAX_KEY_BYTES]);
        let key = key.get_mut(..self.key_bytes)?;
        pbkdf2::derive(self.prf, self.iterations, self.salt, passphrase, key);
        let cipher = PaddedBlockDecryptingKey::cbc_pkcs7(UnboundCipherKey::new(self.cipher, key).ok()?).ok()?;
        let mut contents = Zeroizing::new(self.contents.to_vec());
        let context = DecryptionContext::Iv128(FixedLength::from(self.iv));
        let plain = cipher.decrypt(&mut contents, context).ok()?;
        // One wrong passphrase in 256 leaves something that looks padded.
        let is_key = Fields(plain).sequence().is_ok_and(|mut info| info.next(Tag::Integer).is_ok());
        is_key.then(|| PrivatePkcs8KeyDer::from(plain.to_vec()).into())
    }
}

const MALFORMED: &str = "the private key is malformed";

fn known_cipher(name: &Oid<'_>) -> Result<(&'static Cipher, usize), &'static str> {
    match () {
        () if *name == oid!(2.16.840.1.101.3.4.1.2) => Ok((&AES_128, 16)),
        () if *name == oid!(2.16.840.1.101.3.4.1.22) => Ok((&AES_192, 24)),
        () if *name == oid!(2.16.840.1.101.3.4.1.42) => Ok((&AES_256, MAX_KEY_BYTES)),
        () => Err("the private key is encrypted by another cipher than AES-CBC"),
    }
}

fn known_prf(name: &Oid<'_>) -> Result<pbkdf2::Algorithm, &'static str> {
    match () {
        () if *name == oid!(1.2.840.113549.2.7) => Ok(pbkdf2::PBKDF2_HMAC_SHA1),
        () if *name == oid!(1.2.840.113549.2.9) => Ok(pbkdf2::PBKDF2_HMAC_SHA256),
        () if *name == oid!(1.2.840.113549.2.10) => Ok(pbkdf2::PBKDF2_HMAC_SHA384),
        () if *name == oid!(1.2.840.113549.2.11) => Ok(pbkdf2::PBKDF2_HMAC_SHA512),
        () => Err("the private key's passphrase is stretched by a hash that is not supported"),
    }
}

/// A whole number that is not negative (X.690 §8.3).
fn number(bytes: &[u8]) -> Result<u32, &'static str> {
    let digits = bytes.strip_prefix(&[0]).unwrap_or(bytes);
    let is_negative = bytes.first().is_some_and(|first| *first >= 0x80);
    match digits.len() {
        _ if is_negative || bytes.is_empty() => Err(MALFORMED),
        0..=4 => Ok(digits.iter().fold(0, |number, digit| number << 8 | u32::from(*digit))),
        _ => Ok(u32::MAX),
    }
}

/// The fields of a SEQUENCE that are still to be read.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self, tag: Tag) -> Result<&'a [u8], &'static str> {
        let (rest, field) = <Any<'a> as FromDer<'a>>::from_der(self.0).map_err(|_| MALFORMED)?;
        if field.tag() != tag {
            return Err(MALFORMED);
        }
        self.0 = rest;
        Ok(field.data)
    }

    fn is_next(&self, tag: Tag) -> bool {
        Fields(self.0).next(tag).is_ok()
    }

    fn sequence(&mut self) -> Result<Fields<'a>, &'static str> {
        self.next(Tag::Sequence).map(Fields)
    }

    /// An `AlgorithmIdentifier`: which one, and its parameters.
    fn algorithm(&mut self) -> Result<(Oid<'a>, Fields<'a>), &'static str> {
        let mut fields = self.sequence()?;
        let name = Oid::new(fields.next(Tag::Oid)?.into());
        Ok((name, fields))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;
    use crate::error::Error;

    const PASSPHRASE: &str = "corréct horse";

    /// A new key with the passphrase, as openssl(1) writes it with `options`, DER.
    fn encrypted(options: &[&str]) -> Vec<u8> {
        let openssl = |args: &[&str], input: &[u8]| {
            let mut command = Command::new("openssl");
            command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(input).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "openssl {args:?}");
            output.stdout
        };
        let plain = openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"], b"");
        let passphrase = format!("pass:{PASSPHRASE}");
        openssl(&[&["pkcs8", "-topk8", "-outform", "DER", "-passout", &passphrase][..], options].concat(), &plain)
    }

    /// What comes of a key and these answers, and how often somebody was asked.
    fn opened(der: &[u8], answers: &[&str]) -> (Result<PrivateKeyDer<'static>>, Vec<String>) {
        let mut asked = Vec::new();
        let mut ask = |prompt: &str| {
            asked.push(prompt.to_owned());
            Ok(Zeroizing::new(answers[asked.len() - 1].as_bytes().to_vec()))
        };
        (private_key(Path::new("/k.key"), 1, der, &mut ask), asked)
    }

    fn refusal(der: &[u8], answers: &[&str]) -> Error {
        opened(der, answers).0.unwrap_err()
    }

    #[test]
    fn what_openssl_writes_is_opened() {
        for options in [
            &[][..],
            &["-v2", "aes-128-cbc"],
            &["-v2", "aes-192-cbc", "-v2prf", "hmacWithSHA1"],
            &["-v2", "aes-256-cbc", "-v2prf", "hmacWithSHA384", "-iter", "100000"],
            &["-v2prf", "hmacWithSHA512"],
        ] {
            let (key, asked) = opened(&encrypted(options), &[PASSPHRASE]);
            let key = key.unwrap();
            assert!(rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).is_ok(), "{options:?}");
            assert_eq!(asked, ["Enter passphrase for key '/k.key': "]);
        }
    }

    #[test]
    fn a_wrong_passphrase_is_asked_for_three_times() {
        let der = encrypted(&[]);
        let (key, asked) = opened(&der, &["a", "b", PASSPHRASE]);
        assert!(key.is_ok());
        assert_eq!(asked[2], "Wrong passphrase, try again for key '/k.key': ");
        let (key, asked) = opened(&der, &["a", "b", "c", PASSPHRASE]);
        assert!(key.unwrap_err().text.contains("wrong three times") && asked.len() == 3);
        assert!(refusal(&der, &[""]).text.contains("none was given"));
    }

    #[test]
    fn another_encryption_is_refused_before_anybody_is_asked() {
        for (options, said) in [
            (&["-scrypt"][..], "in another way than by PBKDF2"),
            (&["-v2", "des3"], "another cipher than AES-CBC"),
            (&["-v2", "aes-256-cbc", "-v2prf", "hmacWithSHA224"], "by a hash that is not supported"),
            (&["-v1", "PBE-SHA1-3DES"], "in another way than by PBES2"),
        ] {
            let error = refusal(&encrypted(options), &[]);
            assert!(error.text.contains(said) && error.hint().contains("openssl pkcs8"), "{options:?}: {error}");
        }
    }

    #[test]
    fn a_file_cannot_have_us_compute_for_ever() {
        let der = encrypted(&["-iter", "1234567"]);
        let rounds = 1_234_567_u32.to_be_bytes();
        let at = der.windows(3).position(|window| window == &rounds[1..]).unwrap();
        // The field's length stays, its value becomes the largest that fits.
        let mut endless = der.clone();
        endless[at..at + 3].copy_from_slice(&[0x7f, 0xff, 0xff]);
        assert!(EncryptedKey::parse(&der).is_ok_and(|key| key.iterations.get() == 1_234_567));
        assert!(refusal(&endless, &[]).text.contains("more than five million rounds"));
        assert_eq!(number(&[0x7f, 0xff, 0xff, 0xff]), Ok(0x7fff_ffff));
        assert_eq!(number(&[1, 0, 0, 0, 0]), Ok(u32::MAX));
        assert_eq!((number(&[0x80]), number(&[]), number(&[0])), (Err(MALFORMED), Err(MALFORMED), Ok(0)));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = EncryptedKey::parse(&bytes);
        }

        #[test]
        fn no_damage_panics(at in 0_usize..200, byte in any::<u8>()) {
            static KEY: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| encrypted(&[]));
            let mut der = KEY.clone();
            let at = at % der.len();
            der[at] = byte;
            let _ = EncryptedKey::parse(&der);
            let _ = EncryptedKey::parse(&der[..at]);
        }
    }
}
