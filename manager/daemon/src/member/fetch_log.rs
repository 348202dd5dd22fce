//! Fetches log from the one promiser that holds it, so that this member can be chosen instead.
//!
//! The answer that was given without that log is dropped first, durably; Postgres is stopped; segments come one by one, each
//! whole; and a new answer is given when Postgres has read them all. Whatever cannot be had is given up: what has come by then
//! is a longer prefix of the same log.

use super::execute::{ExecuteError, Executor};
use super::notes::NotedFetch;
use crate::peers::{Lane, PeerAddress};
use backon::{ConstantBuilder, Retryable};
use pgstead_replication::instance::Segment;
use pgstead_types::record::Record;
use pgstead_types::{ClusterId, Epoch, MemberId, Position};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// For one segment, 16 MiB.
const SEGMENT_TIME_MAX: Duration = Duration::from_secs(5);
/// The other node may not know of the order yet, or be about to start again.
const TRIES: usize = 10;
const PAUSE: Duration = Duration::from_millis(500);

/// What the other member's node is asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LogRequest {
    pub cluster: ClusterId,
    pub epoch: Epoch,
    pub segment: String,
}

impl Executor<'_> {
    pub(super) async fn fetch_log(&mut self, epoch: Epoch, from: MemberId, upto: Position) -> Result<(), ExecuteError> {
        let noted = self.notes.get();
        if noted.promised != epoch {
            return Err(ExecuteError::StalePromise);
        }
        let begun = noted.fetch.filter(|fetch| fetch.epoch == epoch).map(|fetch| fetch.own);
        let answered = noted.answer.filter(|answer| answer.epoch == epoch).map(|answer| answer.position);
        let own = begun.or(answered).filter(|own| own.timeline == upto.timeline);
        if let Some(own) = own {
            // From here on nobody goes by a position that is about to change.
            self.note(|noted| {
                noted.fetch = Some(NotedFetch { epoch, own, done: false });
                noted.answer = None;
            })?;
            self.stop().await?;
            let (cluster, member) = (&self.cluster.spec.name, self.member);
            match self.fetch_segments(epoch, from, own, upto).await {
                Ok(segments) => tracing::info!(%cluster, %member, segments, %upto, "the log that it lacked is here"),
                Err(why) => {
                    tracing::warn!(%cluster, %member, %why, "cannot fetch the log that it lacks; it goes on with what it has");
                }
            }
        }
        let own = own.unwrap_or_default();
        self.note(|noted| noted.fetch = Some(NotedFetch { epoch, own, done: true }))
    }

    async fn fetch_segments(
        &self,
        epoch: Epoch,
        from: MemberId,
        own: Position,
        upto: Position,
    ) -> Result<usize, String> {
        let text = |error: pgstead_replication::InstanceError| super::chain(&error);
        let segments = self.instance.segments_between(own.lsn, upto).await.map_err(text)?;
        self.instance.has_room_for(&segments).await.map_err(text)?;
        let id = self.cluster.id;
        let is_over = |next: &Record| {
            let fetch = next.clusters.get(&id).and_then(|cluster| cluster.fetch());
            fetch.is_none_or(|fetch| fetch.epoch != epoch)
        };
        let mut record = self.context.consensus.watch_record();
        for (done, segment) in segments.iter().enumerate() {
            let pauses = ConstantBuilder::default().with_delay(PAUSE).with_max_times(TRIES - 1);
            // Only the way there may be left: a write that went on without its step would meet the next start of Postgres.
            let bytes = tokio::select! {
                bytes = (|| self.fetch_segment(epoch, from, segment)).retry(pauses) => bytes?,
                _ = record.wait_until(|next| is_over(next)) => return Err("the election has ended".to_string()),
            };
            self.instance.take_segment(segment, bytes, own.lsn).await.map_err(text)?;
            self.reports.progress(self.member, ((done + 1) * 100 / segments.len()) as u8);
        }
        Ok(segments.len())
    }

    async fn fetch_segment(&self, epoch: Epoch, from: MemberId, segment: &Segment) -> Result<Vec<u8>, String> {
        let record = self.context.consensus.record();
        let node = self.cluster.members.get(&from).and_then(|member| record.nodes.get(&member.node));
        let node = node.ok_or_else(|| format!("member {from} is on no known node"))?;
        let to = PeerAddress { node: node.id, host: node.host.clone(), port: node.port };
        let request = LogRequest { cluster: self.cluster.id, epoch, segment: segment.name.clone() };
        let body = serde_json::to_vec(&request).map_err(|error| error.to_string())?;
        let answer = self.context.peers.post_json(&to, Lane::Log, "/internal/log", body, SEGMENT_TIME_MAX).await;
        let answer = answer.map_err(|error| error.to_string())?;
        if answer.status().is_success() {
            return Ok(answer.into_body().to_vec());
        }
        let why: String = String::from_utf8_lossy(answer.body()).chars().take(200).collect();
        Err(format!("{} for segment {}: {why}", answer.status(), segment.name))
    }
}
