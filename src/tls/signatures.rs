//! Signatures under clients' certificates and revocation lists: each is calculated once.
//!
//! Whether a key has signed some bytes never changes, so that alone is remembered, as a digest of what was found good. All that
//! can change (the time, the authorities, the lists, who may be whom) is looked at in every handshake, and so is the client's
//! signature under the handshake itself, which shows that it has the key.

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, PoisonError};

use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};

/// How many are remembered before all are forgotten. What was never signed by an authority that is trusted here is not among them.
const MAX_SIGNATURES: usize = 4096;

/// What verifies certificates and lists: the provider's algorithms, which remember what they find good.
pub(super) fn remembering_algorithms() -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    static MEMORY: LazyLock<Memory> = LazyLock::new(Memory::default);
    static ALGORITHMS: LazyLock<Vec<&'static dyn SignatureVerificationAlgorithm>> = LazyLock::new(|| {
        let all = super::provider().signature_verification_algorithms.all.iter().enumerate();
        let remembering = all.map(|(index, algorithm)| Remembering { index, algorithm: *algorithm, memory: &MEMORY });
        remembering.map(|algorithm| &*Box::leak(Box::new(algorithm)) as _).collect()
    });
    &ALGORITHMS
}

/// SHA-256 of a signature and all that it depends on.
type Digest = [u8; SHA256_OUTPUT_LEN];

/// Those that were good.
#[derive(Debug, Default)]
struct Memory(Mutex<HashSet<Digest>>);

impl Memory {
    fn has(&self, digest: &Digest) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(digest)
    }

    fn add(&self, digest: Digest) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_SIGNATURES {
            known.clear();
        }
        known.insert(digest);
    }
}

/// An algorithm that calculates no good signature twice.
#[derive(Debug)]
struct Remembering {
    /// Tells it from every other algorithm.
    index: usize,
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    memory: &'static Memory,
}

impl SignatureVerificationAlgorithm for Remembering {
    fn verify_signature(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let mut context = Context::new(&SHA256);
        context.update(&self.index.to_be_bytes());
        for part in [public_key, message, signature] {
            context.update(&part.len().to_be_bytes());
            context.update(part);
        }
        let mut digest = Digest::default();
        digest.copy_from_slice(context.finish().as_ref());
        if self.memory.has(&digest) {
            return Ok(());
        }
        self.algorithm.verify_signature(public_key, message, signature)?;
        self.memory.add(digest);
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }

    fn fips(&self) -> bool {
        self.algorithm.fips()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls_pki_types::alg_id;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Finds a signature good that is the key and the message, and counts how often it looked.
    #[derive(Debug, Default)]
    struct Counting(AtomicUsize);

    impl SignatureVerificationAlgorithm for Counting {
        fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
            self.0.fetch_add(1, Ordering::Relaxed);
            if signature == [key, message].concat() { Ok(()) } else { Err(InvalidSignature) }
        }

        fn public_key_alg_id(&self) -> AlgorithmIdentifier {
            alg_id::ECDSA_P256
        }

        fn signature_alg_id(&self) -> AlgorithmIdentifier {
            alg_id::ECDSA_SHA256
        }
    }

    fn remembering() -> (Remembering, &'static Counting) {
        let algorithm: &Counting = Box::leak(Box::default());
        (Remembering { index: 0, algorithm, memory: Box::leak(Box::default()) }, algorithm)
    }

    #[test]
    fn a_good_signature_is_calculated_once() {
        let (remembering, calculated) = remembering();
        for _ in 0..3 {
            remembering.verify_signature(b"key", b"message", b"keymessage").unwrap();
        }
        assert_eq!(calculated.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_bad_signature_is_refused_each_time() {
        let (remembering, calculated) = remembering();
        for _ in 0..3 {
            remembering.verify_signature(b"key", b"message", b"another").unwrap_err();
        }
        assert_eq!(calculated.0.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn what_was_good_says_nothing_of_another_key_message_or_signature() {
        let (remembering, _) = remembering();
        remembering.verify_signature(b"key", b"message", b"keymessage").unwrap();
        remembering.verify_signature(b"kez", b"message", b"keymessage").unwrap_err();
        remembering.verify_signature(b"key", b"messagf", b"keymessage").unwrap_err();
        remembering.verify_signature(b"key", b"message", b"keymessagf").unwrap_err();
    }

    #[test]
    fn what_was_good_says_nothing_of_another_algorithm() {
        let (remembering, calculated) = remembering();
        let another = Remembering { index: 1, ..remembering };
        remembering.verify_signature(b"key", b"message", b"keymessage").unwrap();
        another.verify_signature(b"key", b"message", b"keymessage").unwrap();
        assert_eq!(calculated.0.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn bytes_do_not_move_from_one_part_to_the_next() {
        let (remembering, calculated) = remembering();
        remembering.verify_signature(b"key", b"message", b"keymessage").unwrap();
        remembering.verify_signature(b"keym", b"essage", b"keymessage").unwrap();
        assert_eq!(calculated.0.load(Ordering::Relaxed), 2, "the two are told apart");
    }

    #[test]
    fn the_memory_is_bounded_and_begins_anew() {
        let (remembering, calculated) = remembering();
        for index in 0..=MAX_SIGNATURES {
            let message = index.to_be_bytes();
            remembering.verify_signature(b"key", &message, &[b"key", &message[..]].concat()).unwrap();
        }
        assert_eq!(remembering.memory.0.lock().unwrap().len(), 1);
        let first = 0usize.to_be_bytes();
        remembering.verify_signature(b"key", &first, &[b"key", &first[..]].concat()).unwrap();
        assert_eq!(calculated.0.load(Ordering::Relaxed), MAX_SIGNATURES + 2);
    }
}
