//! `tstunnel exec`: a command on the host, with this process's streams and exit status.

use crate::client::dial::Dialler;
use crate::client::session::{self, Offer, Opening};
use crate::error::{Code, Error, Result};
use crate::protocol::{CommandRequest, MAX_COMMAND_BYTES};
use crate::stdio::Streams;

/// Runs `request` on the host; returns the exit status.
///
/// # Errors
/// `usage` for more than a request holds, before anything is connected; those of [`session::open`] and [`session::run`].
pub async fn run(dialler: &Dialler, mut request: CommandRequest, offer: Offer, streams: Streams) -> Result<u8> {
    if request.user.is_none() {
        request.user.clone_from(&dialler.host().user);
    }
    let body = serde_json::to_vec(&request)
        .map_err(|error| Error::new(Code::Internal, format!("cannot encode the request: {error}")))?;
    if body.len() > MAX_COMMAND_BYTES {
        let size = body.len();
        let text = format!(
            "the command with its environment takes {size} bytes, more than the {MAX_COMMAND_BYTES} of a request"
        );
        return Err(Error::new(Code::Usage, text).with_hint("pass what is long through stdin, or upload it as a file"));
    }
    let command = std::iter::once(&request.command).chain(request.args.iter().flatten());
    let command = command.map(String::as_str).collect::<Vec<_>>().join(" ");
    let opening = Opening { path: "/command".to_owned(), body: Some(body), offer, command: Some(command) };
    let opened = session::open(dialler, &opening).await?;
    session::run(opened, streams, dialler).await
}
