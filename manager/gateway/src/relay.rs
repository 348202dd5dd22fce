//! Carries messages both ways, a bounded window each, until one side ends or the session must. One task and one loop:
//! whatever ends the session is looked at before any further byte moves.

use crate::cancel::KeySwap;
use crate::commit_watch::{CommitWatch, Withheld};
use crate::frames::{ClientFrames, ServerFrames, Stop};
use crate::gateway::Stopping;
use crate::window::Window;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

/// For the farewell to a member that may be frozen.
pub const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// How a relay ended.
#[derive(Debug)]
pub enum Ended {
    Client,
    Member,
    Deposed,
    Stopped,
    Withheld(Withheld),
    Protocol(Stop),
}

impl From<Stop> for Ended {
    fn from(why: Stop) -> Self {
        match why {
            Stop::Withheld(why) => Self::Withheld(why),
            Stop::NotAMessage { .. } => Self::Protocol(why),
        }
    }
}

pub struct Relay {
    watch: Arc<CommitWatch>,
    to_client: Direction<ServerFrames>,
    to_member: Direction<ClientFrames>,
}

struct Direction<Frames> {
    window: Window,
    frames: Frames,
    /// Written but perhaps still in the TLS layer.
    unflushed: bool,
}

/// What a step did.
enum Step {
    Moved,
    /// The reading side has ended and everything it said is written.
    Ended,
}

impl Relay {
    /// `early` came from the client, `answer` from the member, before the relay began.
    pub fn new(swap: KeySwap, watch: Arc<CommitWatch>, early: &[u8], answer: &[u8]) -> Self {
        let to_client = Direction { window: Window::with(answer), frames: ServerFrames::new(swap), unflushed: false };
        let to_member = Direction { window: Window::with(early), frames: ClientFrames::default(), unflushed: false };
        Self { watch, to_client, to_member }
    }

    /// The client has been given whole messages only, and no part of another.
    pub fn is_between_messages(&self) -> bool {
        self.to_client.window.judged().is_empty() && self.to_client.frames.is_between_messages()
    }

    pub async fn run<C, M>(
        &mut self,
        client: &mut C,
        member: &mut M,
        deposed: impl Future<Output = ()>,
        mut stopping: watch::Receiver<Stopping>,
    ) -> Ended
    where
        C: AsyncRead + AsyncWrite + Unpin,
        M: AsyncRead + AsyncWrite + Unpin,
    {
        let (mut client_reads, mut client_writes) = tokio::io::split(client);
        let (mut member_reads, mut member_writes) = tokio::io::split(member);
        let Self { watch, to_client, to_member } = self;
        if let Err(why) = to_member.frames.judge(&mut to_member.window, watch) {
            return why.into();
        }
        if let Err(why) = to_client.frames.judge(&mut to_client.window, watch) {
            return why.into();
        }
        // Outside the scheduler's budget: a used-up budget must not hide the change of routes for a turn.
        let deposed = tokio::task::unconstrained(deposed);
        tokio::pin!(deposed);
        let mut drain = *stopping.borrow_and_update();
        let mut member_is_deaf = false;
        loop {
            if drain == Stopping::Now || (drain == Stopping::WhenIdle && watch.is_idle() && to_client.is_empty()) {
                return Ended::Stopped;
            }
            // What was taken from the client already goes on its way: the answer to it may be what is waited for.
            let hears_client = !member_is_deaf && (to_member.has_to_write() || !watch.is_held());
            let moves = async {
                tokio::select! {
                    step = to_client.step(&mut member_reads, &mut client_writes, |frames, window| frames.judge(window, watch)) => {
                        Moved::ToClient(step)
                    }
                    step = to_member.step(&mut client_reads, &mut member_writes, |frames, window| frames.judge(window, watch)), if hears_client => {
                        Moved::ToMember(step)
                    }
                }
            };
            // In this order: nothing that a deposed member says after the change of routes is written or even judged.
            let moved = tokio::select! {
                biased;
                () = &mut deposed => return Ended::Deposed,
                changed = stopping.changed() => match changed {
                    Ok(()) => {
                        drain = *stopping.borrow_and_update();
                        continue;
                    }
                    Err(_) => return Ended::Stopped,
                },
                () = watch.cancels_changed() => continue,
                moved = moves => moved,
            };
            match moved {
                Moved::ToClient(Ok(Step::Moved)) | Moved::ToMember(Ok(Step::Moved)) => {}
                Moved::ToClient(Err(StepError::Stop(why))) | Moved::ToMember(Err(StepError::Stop(why))) => {
                    return why.into();
                }
                Moved::ToClient(Ok(Step::Ended) | Err(StepError::Reading)) => return Ended::Member,
                Moved::ToMember(Ok(Step::Ended) | Err(StepError::Reading)) => return Ended::Client,
                Moved::ToClient(Err(StepError::Writing)) => return Ended::Client,
                // Its last words, such as an error, may still be on their way to the client.
                Moved::ToMember(Err(StepError::Writing)) => member_is_deaf = true,
            }
        }
    }

    /// Writes what was passed before a stop, so that a farewell may follow it.
    pub async fn write_passed(&mut self, client: &mut (impl AsyncWrite + Unpin)) {
        let write = client.write_all(self.to_client.window.judged());
        if let Ok(Ok(())) = tokio::time::timeout(CLOSE_DEADLINE, write).await {
            let length = self.to_client.window.judged().len();
            self.to_client.window.written(length);
        }
    }
}

enum Moved {
    ToClient(Result<Step, StepError>),
    ToMember(Result<Step, StepError>),
}

enum StepError {
    Stop(Stop),
    /// A lost connection is no news; why does not matter.
    Reading,
    Writing,
}

impl<Frames> Direction<Frames> {
    fn is_empty(&self) -> bool {
        self.window.judged().is_empty() && self.window.unjudged().is_empty()
    }

    fn has_to_write(&self) -> bool {
        self.unflushed || !self.window.judged().is_empty()
    }

    /// One read, write or flush. Safe to drop at its await: each is recorded in the same poll that completes it.
    async fn step(
        &mut self,
        reads: &mut (impl AsyncRead + Unpin),
        writes: &mut (impl AsyncWrite + Unpin),
        judge: impl FnOnce(&mut Frames, &mut Window) -> Result<(), Stop>,
    ) -> Result<Step, StepError> {
        if !self.window.judged().is_empty() {
            let length = writes.write(self.window.judged()).await.map_err(|_| StepError::Writing)?;
            if length == 0 {
                return Err(StepError::Writing);
            }
            self.window.written(length);
            self.unflushed = true;
            return Ok(Step::Moved);
        }
        if self.unflushed {
            writes.flush().await.map_err(|_| StepError::Writing)?;
            self.unflushed = false;
            return Ok(Step::Moved);
        }
        let length = reads.read(self.window.room()).await.map_err(|_| StepError::Reading)?;
        if length == 0 {
            return Ok(Step::Ended);
        }
        self.window.filled(length);
        judge(&mut self.frames, &mut self.window).map_err(StepError::Stop)?;
        Ok(Step::Moved)
    }
}

#[cfg(test)]
mod tests;
