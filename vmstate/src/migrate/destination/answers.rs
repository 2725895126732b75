//! Messages of the destination to the source: answers to pings, the final answer, and measurements that only this side has.

use super::{Destination, FINAL_ANSWER};
use crate::codec::Outbox;
use crate::error::Result;
use crate::migrate::wire::Timeout;
use crate::stream::{Command, Element, Reply, put_reason, put_times};

impl Destination<'_, '_> {
    /// Opens the return path: the source's command for it comes right after the configuration, so that a source whose
    /// configuration is refused receives the reason, too.
    pub(super) fn look_for_return_path(&mut self) {
        let timeout = Timeout::Until(self.clock.now().saturating_add(FINAL_ANSWER));
        let next = self.loader.wire.decode(timeout, |input| Element::read(input).map(Element::into_owned));
        self.answers = matches!(next, Ok(Element::Command(Command::OpenReturnPath)));
    }

    pub(super) fn answer(&mut self, reply: Reply, timeout: Timeout) -> Result<()> {
        let mut answer = Outbox::new();
        reply.write(answer.bytes_mut());
        self.loader.wire.send(&mut answer, timeout)
    }

    /// Sends the final answer to a source that listens, with the reason of a refusal.
    pub(super) fn send_final_answer(&mut self, reply: Reply) -> Result<()> {
        if !std::mem::take(&mut self.answers) {
            return Ok(());
        }
        let mut word = Outbox::new();
        reply.write(word.bytes_mut());
        if let (Reply::Shut(1..), Some(reason)) = (reply, &self.reason) {
            put_reason(&reason.to_string(), word.bytes_mut());
        }
        let deadline = self.clock.now().saturating_add(FINAL_ANSWER);
        self.loader.wire.send(&mut word, Timeout::Until(deadline))
    }

    /// Sends this side's measurements to a source that understands them. The guest already runs, so this does not prolong the
    /// pause.
    pub(super) fn send_times(&mut self) {
        if !self.accepts_times {
            return;
        }
        let sections = self.loader.whole.iter().map(|section| section.loaded.unwrap_or_default());
        let times: Vec<_> = [self.takeover.machine, self.takeover.resume].into_iter().chain(sections).collect();
        let mut word = Outbox::new();
        put_times(&times, word.bytes_mut());
        let deadline = self.clock.now().saturating_add(FINAL_ANSWER);
        if let Err(error) = self.loader.wire.send(&mut word, Timeout::Until(deadline)) {
            tracing::debug!("the loading times of the sections were not sent to the source: {error}");
        }
    }
}
