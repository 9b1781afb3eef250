//! tmp
use crate::{config::Host, error::*};
pub fn client_config(_host: &Host) -> Result<rustls::ClientConfig> {
    Err(Error::new(Code::Internal, ""))
}
pub fn classify_client_error(_error: &std::io::Error, _host: &Host) -> Error {
    Error::new(Code::Internal, "")
}
pub fn server_config(
    _: &std::path::Path,
    _: &std::path::Path,
    _: &[std::path::PathBuf],
    _: &[std::path::PathBuf],
) -> Result<rustls::ServerConfig> {
    Err(Error::new(Code::Internal, ""))
}
