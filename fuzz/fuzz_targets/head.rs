//! An answer's head and its refusal's body, from bytes; and what a person is told of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tstunnel::client::classify::classify;
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
            // Whatever the server says of itself, what is printed is two lines, and they are read as what they mean.
            let report = response.refusal(&data[length..]).report();
            assert_eq!(report.matches(char::is_control).count(), 1, "{report}");
            assert_eq!(classify(&report, None).code, Some(response.refusal(&data[length..]).code));
        }
        Ok(None) => assert!(data.len() < MAX_HEAD_BYTES),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
