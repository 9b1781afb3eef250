//! tmp
use crate::{config::Host, error::*};
pub fn client_config(_host: &Host) -> Result<rustls::ClientConfig> {
    Err(Error::new(Code::Internal, ""))
}
pub fn classify_client_error(_error: &std::io::Error, _host: &Host) -> Error {
    Error::new(Code::Internal, "")
}
