//! Streaming from the leader of an epoch, or from the standby that passes its log on.

use super::applied::Shape;
use super::sql::NoConnection;
use super::{Instance, InstanceError, UpstreamSource};
use std::collections::BTreeSet;

impl Instance {
    /// Has the standby stream from `source`. A receiver of another upstream is ended first, as for a promise. The caller has
    /// made the epoch durable. Works on a Postgres that does not accept connections yet, which may need this stream to.
    pub async fn follow(&self, source: &UpstreamSource) -> Result<(), InstanceError> {
        let follow = source.follow();
        let applied = self.applied();
        // Also where it is prepared for a promotion that did not happen: whoever streams from here by that must be gone before
        // the log of another leader arrives.
        if applied.upstream().is_some_and(|upstream| upstream != source.of) || applied.may_admit() {
            self.cut_upstream().await?;
        }
        let _changing = self.changing.lock().await;
        self.write_upstream_certificates(source)?;
        self.remove_upstream_certificates(Some(source.of.epoch))?;
        // Before any of its log arrives, and with it the removal of rows that a slot may need.
        self.note_follows(source.of).await?;
        let shape = Shape { upstream: Some(follow), ..Shape::at_start(self.wanted().access) };
        match self.is_in_recovery().await {
            Ok(false) => Err(InstanceError::NotAStandby),
            Ok(true) => {
                let (sql, generation) = self.load_shape(shape).await?;
                // Slots of a time as a leader, or of a promotion that did not happen, would keep WAL for ever.
                self.drop_slots(&sql, &BTreeSet::new()).await?;
                self.keep(sql).await;
                self.note_seen(generation)
            }
            Err(NoConnection::NotYet | NoConnection::Refused) => {
                self.write_shape(shape, false).await?;
                self.signal_reload().await
            }
            Err(why @ NoConnection::Other(_)) => Err(why.into()),
        }
    }
}
