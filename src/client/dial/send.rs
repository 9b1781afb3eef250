//! A request → a connection whose peer may have ended its direction meanwhile.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

/// Most bytes of an answer that are taken while the request is sent: whoever says more than that is not waited for.
const MAX_ANSWER_BYTES: usize = 4 << 10;

/// Writes all of `bytes`, and takes into `answer` what comes meanwhile. Whoever has ended its direction is taken to read no more: it
/// might never say so, and what waits for it only ends with the system's patience.
///
/// # Errors
/// Those of `stream`, and `UnexpectedEof` where the peer has ended its direction before it took everything.
pub(super) async fn send(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    answer: &mut BytesMut,
    bytes: &[u8],
) -> io::Result<()> {
    let mut rest = bytes;
    poll_fn(|cx| {
        loop {
            let written = match rest {
                [] => Pin::new(&mut *stream).poll_flush(cx).map_ok(|()| 0),
                _ => Pin::new(&mut *stream).poll_write(cx, rest),
            };
            match written {
                Poll::Ready(Ok(0)) if rest.is_empty() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => rest = &rest[count..],
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => match listen(stream, answer, cx) {
                    Poll::Ready(Ok(())) => {}
                    other => return other,
                },
            }
        }
    })
    .await
}

/// Takes what the peer says, or its end.
fn listen(stream: &mut (impl AsyncRead + Unpin), answer: &mut BytesMut, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    if answer.len() >= MAX_ANSWER_BYTES {
        return Poll::Pending;
    }
    pin!(stream.read_buf(answer)).poll(cx).map(|read| match read? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn whoever_takes_everything_gets_it_and_what_it_says_meanwhile_is_kept() {
        let (mut ours, mut theirs) = tokio::io::duplex(16);
        let mut answer = BytesMut::new();
        let (request, mut taken) = ([b'x'; 100], [0; 100]);
        let (sent, read) = tokio::join!(send(&mut ours, &mut answer, &request), async {
            theirs.write_all(b"so far").await?;
            theirs.read_exact(&mut taken).await
        });
        sent.unwrap();
        read.unwrap();
        assert_eq!(taken, request);
        assert_eq!(answer, "so far");
    }

    #[tokio::test]
    async fn whoever_has_ended_its_direction_and_takes_nothing_is_not_waited_for() {
        let (mut ours, mut theirs) = tokio::io::duplex(16);
        theirs.write_all(b"no").await.unwrap();
        theirs.shutdown().await.unwrap();
        let mut answer = BytesMut::new();
        let error = send(&mut ours, &mut answer, &[b'x'; 100]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(answer, "no");
    }

    /// As many turns as others need to do all that they can.
    async fn turns(count: usize) {
        for _ in 0..count {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn whoever_talks_on_and_takes_nothing_makes_nothing_grow() {
        let (mut ours, mut theirs) = tokio::io::duplex(1024);
        let mut answer = BytesMut::new();
        let talk = async { while theirs.write_all(&[b'y'; 1024]).await.is_ok() {} };
        tokio::select! {
            biased;
            _ = send(&mut ours, &mut answer, &[b'x'; 10_000]) => panic!("nobody has taken it"),
            () = talk => panic!("nobody has ended"),
            () = turns(100) => {}
        }
        assert!(answer.len() <= MAX_ANSWER_BYTES + 1024, "{}", answer.len());
    }
}
