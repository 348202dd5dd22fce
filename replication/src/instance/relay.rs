//! A standby that passes on what it streams itself, to the members that the record names.

use super::applied::{Admitted, Shape};
use super::clients::Senders;
use super::sql::Sql;
use super::{Instance, InstanceError};
use pgstead_types::{Epoch, Incarnation};
use std::collections::BTreeSet;

impl Instance {
    /// Lets these stream from here, and nobody else, in the epoch in which this standby streams from its leader. Each gets a slot
    /// that keeps log for it. Ending the stream of this standby ([`Instance::cut_upstream`]) ends theirs.
    pub async fn relay(&self, epoch: Epoch, incarnations: &BTreeSet<Incarnation>) -> Result<(), InstanceError> {
        let _changing = self.changing.lock().await;
        let sql = Sql::connect(&self.config()).await?;
        if !sql.is_in_recovery().await? {
            return Err(InstanceError::NotAStandby);
        }
        let wanted = self.wanted();
        let streams =
            wanted.upstream.as_ref().is_some_and(|follow| follow.of.epoch == epoch && follow.of.relay.is_none());
        // To admit nobody is always possible: slots may be left of an earlier time.
        if !streams && !incarnations.is_empty() {
            return Err(InstanceError::NothingToRelay { epoch });
        }
        // Slots first: whoever is admitted finds its own.
        self.ensure_slots(&sql, incarnations).await.or_else(InstanceError::without_slots)?;
        let admitted = Admitted { epoch, incarnations: incarnations.clone() };
        let shape = Shape { admitted: (!incarnations.is_empty()).then(|| admitted.clone()), ..wanted };
        let (sql, generation) = self.load_shape(shape).await?;
        self.end_senders(&sql, Senders::AllBut(&admitted)).await?;
        self.note_seen(generation)?;
        self.ensure_slots(&sql, incarnations).await
    }
}
