//! A local stream → session: read straight into a frame's own buffer.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead as _, ReadBuf};

use super::{RECORD_BYTES, Reader};
use crate::protocol::frame::{DATA_BYTES, FRAME_BYTES, HEADER_BYTES, Kind};
use crate::protocol::session::Session;

/// A read shorter than this is copied into a frame of its own size, so that what is kept is what was sent.
const COPY_BELOW_BYTES: usize = RECORD_BYTES;

/// What is read from.
pub(super) struct Source {
    pub(super) stream: Kind,
    /// Until it has ended.
    pub(super) reader: Option<Reader>,
    /// It has nothing more, for now.
    pub(super) is_dry: bool,
}

/// What a read has come to.
pub(super) enum Read {
    /// There is nothing now, or nothing any more.
    Nothing,
    /// So many bytes, which are queued.
    Bytes(usize),
    /// The end, which is queued too, and the error that is the reason for it.
    End(Option<io::Error>),
}

impl Source {
    pub(super) fn new(stream: Kind, reader: Reader) -> Source {
        Source { stream, reader: Some(reader), is_dry: false }
    }

    /// Reads once, at most what `session` has room for, and queues it there.
    pub(super) fn read(&mut self, cx: &mut Context<'_>, session: &mut Session) -> Read {
        let Some(reader) = self.reader.as_mut().filter(|_| !self.is_dry) else { return Read::Nothing };
        let room = session.room().min(DATA_BYTES);
        let mut frame = blank_frame(session);
        let mut place = ReadBuf::new(&mut frame[HEADER_BYTES..HEADER_BYTES + room]);
        let read = Pin::new(reader).poll_read(cx, &mut place);
        let count = place.filled().len();
        let read = match read {
            Poll::Pending => {
                self.is_dry = true;
                Read::Nothing
            }
            Poll::Ready(Ok(())) if count >= COPY_BELOW_BYTES => {
                session.queue_data(self.stream, frame, HEADER_BYTES + count);
                return Read::Bytes(count);
            }
            Poll::Ready(Ok(())) if count > 0 => {
                session.queue_data(self.stream, frame[..HEADER_BYTES + count].to_vec(), HEADER_BYTES + count);
                Read::Bytes(count)
            }
            Poll::Ready(ended) => {
                self.end(session);
                Read::End(ended.err())
            }
        };
        BLANK_FRAME.set(frame);
        read
    }

    /// Reads no more, and queues the end.
    pub(super) fn end(&mut self, session: &mut Session) {
        if self.reader.take().is_some() {
            session.queue_end(self.stream);
        }
    }
}

thread_local! {
    /// A frame to read into, for whichever bridge of the thread has something to read: one that is idle holds none.
    static BLANK_FRAME: Cell<Vec<u8>> = Cell::default();
}

/// A whole frame whose bytes do not matter: the header's place, then that of what is read.
fn blank_frame(session: &mut Session) -> Vec<u8> {
    match BLANK_FRAME.take() {
        none if none.is_empty() => session.spare_frame().unwrap_or_else(|| vec![0; FRAME_BYTES]),
        frame => frame,
    }
}
