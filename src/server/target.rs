//! A permitted target → a connection to it, made before the request is answered.

use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};

use crate::bridge::{Reader, Writer};
use crate::error::{Code, Error, Result};
use crate::server::policy::target::Target;

/// How long a target has to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to `target`.
///
/// # Errors
/// `target-unreachable`.
pub async fn connect(target: &Target) -> Result<(Reader, Writer)> {
    let unreachable = |why: String| Error::new(Code::TargetUnreachable, format!("cannot reach {target}: {why}"));
    let connecting = async {
        match target {
            Target::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                let (reader, writer) = stream.into_split();
                Ok((Box::new(reader) as Reader, Box::new(writer) as Writer))
            }
            Target::Unix(path) => {
                let (reader, writer) = UnixStream::connect(path).await?.into_split();
                Ok((Box::new(reader) as Reader, Box::new(writer) as Writer))
            }
        }
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(result) => result.map_err(|error: std::io::Error| unreachable(error.kind().to_string())),
        Err(_) => Err(unreachable("no answer in time".to_owned())),
    }
}
