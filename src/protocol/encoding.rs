//! Bytes as text: percent-encoding (RFC 3986 §2.1) in request targets, URLs and file names, and hexadecimal.

use std::fmt::Write as _;

/// Percent-encodes everything but unreserved characters (RFC 3986 §2.3), so that the result is one path segment or one
/// query value.
pub fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// Undoes percent-encoding; `None` where a `%` is not followed by two hexadecimal digits. A `+` stays what it is.
pub fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        decoded.push(if byte == b'%' { u8::try_from(digit()? * 16 + digit()?).ok()? } else { byte });
    }
    Some(decoded)
}

/// Writes bytes in lower-case hexadecimal, two digits each.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_percent_sign_needs_two_digits() {
        assert_eq!(percent_decode("a%2Fb%c3+"), Some(b"a/b\xc3+".to_vec()));
        for bad in ["%", "%4", "%zz", "%+1", "a%é0"] {
            assert_eq!(percent_decode(bad), None, "{bad}");
        }
    }

    #[test]
    fn hexadecimal_has_two_digits_a_byte() {
        assert_eq!(hex(&[0, 10, 255]), "000aff");
    }

    proptest! {
        #[test]
        fn any_text_survives_as_one_segment(text in any::<String>()) {
            let encoded = percent_encode(&text);
            prop_assert!(!encoded.contains(['/', '?', '#', '&', '=', ' ', '+']) && encoded.is_ascii());
            prop_assert_eq!(percent_decode(&encoded), Some(text.into_bytes()));
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = percent_decode(&text);
        }
    }
}
