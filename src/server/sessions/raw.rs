//! The same streams without frames: nothing of them is kept, and they end with the connection.

use tokio::io::AsyncReadExt as _;

use super::link::{Link, outcome_of};
use crate::bridge::{self, Connection, RawEnd, RawOver, Reader, Writer};
use crate::server::admission::Ending;
use crate::server::child::Pipes;
use crate::server::process::{self, Ladder, Process};
use crate::server::trail::Outcome;

/// Carries a process's stdin and stdout without frames. Its stderr goes nowhere, but is read.
pub async fn command(
    connection: Box<dyn Connection>,
    leftover: &[u8],
    mut process: Process,
    pipes: Pipes,
    link: Link,
    mut ending: Ending,
) -> Outcome {
    let Pipes { stdin, stdout, mut stderr } = pipes;
    let (stdout, stdin) = (link.outgoing(stdout), link.incoming(stdin));
    let mut connection = connection;
    let discard = tokio::spawn(async move {
        let mut rest = vec![0; 4096];
        while matches!(stderr.read(&mut rest).await, Ok(count) if count > 0) {}
    });
    let mut exit = None;
    let mut streams = Box::pin(async move {
        let result = bridge::raw(&mut *connection, leftover, stdout, stdin, RawEnd::Outgoing).await;
        (outcome(result), Some(connection))
    });
    let (mut outcome, connection) = loop {
        tokio::select! {
            over = &mut streams => break over,
            end = process.wait(), if exit.is_none() => exit = Some(end),
            end = ending.wait() => break (outcome_of(&end), None),
        }
    };
    // What the server cuts does not wait for the process: its stdin ends here, and the client's connection.
    drop(streams);
    discard.abort();
    process::end(process, Ladder::default(), exit.is_some()).await;
    drop(connection);
    outcome.exit = exit;
    outcome
}

/// Carries a target's stream without frames.
pub async fn stream(
    connection: Box<dyn Connection>,
    leftover: &[u8],
    (reader, writer): (Reader, Writer),
    link: Link,
    mut ending: Ending,
) -> Outcome {
    let (reader, writer) = (link.outgoing(reader), link.incoming(writer));
    let mut connection = connection;
    tokio::select! {
        result = bridge::raw(&mut *connection, leftover, reader, writer, RawEnd::Both) => outcome(result),
        end = ending.wait() => outcome_of(&end),
    }
}

fn outcome(result: std::io::Result<RawOver>) -> Outcome {
    match result {
        Ok(_) => Outcome::because("finished"),
        Err(error) => Outcome::because(format!("connection lost: {error}")),
    }
}
