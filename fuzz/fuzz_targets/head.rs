//! An answer's head and its refusal's body, from bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tstunnel::protocol::MAX_HEAD_BYTES;
use tstunnel::protocol::head::Response;

fuzz_target!(|data: &[u8]| {
    match Response::parse(data) {
        Ok(Some((response, length))) => {
            assert!(length <= data.len().min(MAX_HEAD_BYTES));
            // What follows the head changes nothing, and a part of it is never a whole one.
            assert_eq!(Response::parse(&data[..length]).ok().flatten(), Some((response.clone(), length)));
            assert!(!matches!(Response::parse(&data[..length - 1]), Ok(Some((_, shorter))) if shorter >= length));
            let _ = response.content_length();
            let _ = response.refusal(&data[length..]).to_string();
        }
        Ok(None) => assert!(data.len() < MAX_HEAD_BYTES),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
