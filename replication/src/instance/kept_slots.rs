//! Slots that a standby keeps for the other members: whoever is promoted has one for each of them already.
//!
//! Making a slot writes and flushes files, on the way of a failover and maybe on a disk that is full. A kept slot holds the log
//! since the standby's last restartpoint, which its Postgres holds anyway, and so as much as one that is made at the promotion.

use super::access::one_of;
use super::clients::MEMBER_NAME;
use super::{Instance, InstanceError};
use pgstead_types::Incarnation;
use std::collections::BTreeSet;

impl Instance {
    /// On a standby: a slot for each of `others`, moved on with its restartpoints, and none for any other incarnation. Those in
    /// `relayed` are in use, or will be by who streams from here, and keep what that one needs. Does nothing where nobody is followed.
    pub async fn keep_slots(
        &self,
        others: &BTreeSet<Incarnation>,
        relayed: &BTreeSet<Incarnation>,
    ) -> Result<(), InstanceError> {
        let _changing = self.changing.lock().await;
        if self.applied().upstream().is_none() {
            return Ok(());
        }
        let idle: BTreeSet<Incarnation> = others.difference(relayed).copied().collect();
        // What the reader of a slot has said of rows is stale once nobody reads, and would be passed on to the leader for ever.
        let stale = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE pg_is_in_recovery() \
             AND slot_type = 'physical' AND NOT active AND slot_name ~ '{MEMBER_NAME}' AND NOT {} AND (NOT {} \
             OR coalesce(xmin, catalog_xmin) IS NOT NULL OR wal_status = 'lost' OR restart_lsn > pg_last_wal_replay_lsn())",
            one_of("slot_name", relayed),
            one_of("slot_name", &idle),
        );
        let moved = format!(
            "SELECT pg_replication_slot_advance(slot_name, redo_lsn) FROM pg_replication_slots, pg_control_checkpoint() \
             WHERE pg_is_in_recovery() AND slot_type = 'physical' AND NOT active AND {} \
             AND restart_lsn < redo_lsn AND redo_lsn <= pg_last_wal_replay_lsn()",
            one_of("slot_name", &idle),
        );
        let lacking = self.slots_text(&others.union(relayed).copied().collect());
        self.ask_soon("keep slots for the other members", &[stale, lacking, moved].join("; ")).await.map(drop)
    }
}
