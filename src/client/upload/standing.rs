//! How an upload stands, for `tstunnel status`: kept by whoever sends, read by whoever tells. Both are one task.

use std::cell::Cell;
use std::convert::Infallible;
use std::time::SystemTime;

use crate::client::status::report::{Measure, Report};

/// What changes while an upload lasts.
#[derive(Debug, Default)]
pub(super) struct Standing {
    sent: Cell<u64>,
    is_interrupted: Cell<bool>,
    interruptions: Cell<u32>,
    last_interruption: Cell<Option<SystemTime>>,
}

impl Standing {
    /// So much of the file has been sent.
    pub(super) fn sent(&self, bytes: u64) {
        self.sent.set(bytes);
    }

    /// The connection is gone.
    pub(super) fn broke(&self) {
        if !self.is_interrupted.replace(true) {
            self.last_interruption.set(Some(SystemTime::now()));
        }
    }

    /// There is another.
    pub(super) fn mended(&self) {
        if self.is_interrupted.replace(false) {
            self.interruptions.set(self.interruptions.get() + 1);
        }
    }

    /// Answers whoever asks, until it is dropped.
    pub(super) async fn tell(&self, report: &mut Report) -> Infallible {
        loop {
            let question = report.question().await;
            report.answer(question, self.measure());
        }
    }

    fn measure(&self) -> Measure {
        Measure {
            bytes: (self.sent.get(), 0),
            is_interrupted: self.is_interrupted.get(),
            interruptions: self.interruptions.get(),
            last_interruption: self.last_interruption.get(),
            ..Measure::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interruption_counts_once_however_many_attempts_it_takes() {
        let standing = Standing::default();
        standing.mended();
        assert_eq!(standing.measure().interruptions, 0);
        standing.broke();
        let began = standing.measure().last_interruption;
        standing.broke();
        let measure = standing.measure();
        assert!(measure.is_interrupted && began.is_some() && measure.last_interruption == began);
        standing.mended();
        standing.mended();
        let measure = standing.measure();
        assert_eq!((measure.is_interrupted, measure.interruptions), (false, 1));
        assert_eq!(measure.last_interruption, began);
    }
}
