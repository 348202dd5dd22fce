//! Replication slots as they are: whose, how much log each of them keeps, and which have lost theirs.

use super::consumers::HELD;
use super::{Instance, InstanceError};
use pgstead_types::slots::{SLOTS_SHOWN_MAX, SlotSeen, SlotsSeen};
use serde::Deserialize;
use std::time::Duration;

pub(super) const LOOK_TIME_MAX: Duration = Duration::from_millis(500);

#[derive(Deserialize)]
struct Row {
    budget_mb: i64,
    slots_max: u32,
    senders_max: u32,
    version: u32,
    logical: bool,
    total: u32,
    recovering: bool,
    slots: Vec<SlotSeen>,
}

/// One row, whatever the number of slots. `failover` and its like came with Postgres 17.
fn statement(major: u16) -> String {
    let newer = match major {
        17.. => ", 'failover', failover, 'synced', synced",
        // Before, every one is to be there: pgstead copies it.
        _ => ", 'failover', slot_type = 'logical' AND NOT temporary AND current_setting('wal_level') = 'logical'",
    };
    // A logical slot whose rows were removed, or whose log was, has a status of its own from 16 on.
    let lost = match major {
        17.. => "(wal_status = 'lost' OR invalidation_reason IS NOT NULL)",
        16 => "(wal_status = 'lost' OR coalesce(conflicting, false))",
        _ => "coalesce(wal_status = 'lost', false)",
    };
    // Places that are held for members are nobody's slots.
    format!(
        "WITH there AS (SELECT * FROM pg_replication_slots WHERE NOT {HELD}) \
         SELECT json_build_object('budget_mb', \
           (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size'), \
         'slots_max', current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots WHERE {HELD}), \
         'senders_max', current_setting('max_wal_senders')::int, \
         'version', current_setting('server_version_num')::int, \
         'logical', current_setting('wal_level') = 'logical', \
         'total', (SELECT count(*) FROM there), 'recovering', pg_is_in_recovery(), \
         'slots', (SELECT coalesce(json_agg(slot ORDER BY lost DESC, kept DESC NULLS LAST), '[]') FROM \
           (SELECT lost, kept, json_build_object('name', slot_name, 'kind', slot_type, 'database', database, \
              'plugin', plugin, 'ahead', CASE WHEN pg_is_in_recovery() THEN false \
                ELSE coalesce(confirmed_flush_lsn > pg_current_wal_flush_lsn(), false) END, 'active', active, 'temporary', temporary, 'lost', lost, 'retained', kept, 'rows_age', \
              CASE WHEN coalesce(xmin, catalog_xmin) IS NOT NULL THEN greatest(0, age(xmin), age(catalog_xmin)) END{newer}) AS slot \
            FROM (SELECT *, coalesce({lost}, false) AS lost, CASE WHEN restart_lsn IS NOT NULL THEN greatest(0, \
              pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, \
              restart_lsn))::bigint END AS kept FROM there) AS all_of_them \
            ORDER BY lost DESC, kept DESC NULLS LAST, slot_name LIMIT {SLOTS_SHOWN_MAX}) AS shown))"
    )
}

impl Instance {
    pub(super) async fn ask_soon(&self, doing: &'static str, text: &str) -> Result<Vec<Option<String>>, InstanceError> {
        let asked = tokio::time::timeout(LOOK_TIME_MAX, self.ask_kept(doing, text)).await;
        Ok(asked.map_err(|_| InstanceError::SqlTooSlow { doing, waited: LOOK_TIME_MAX })??)
    }

    /// The slots of a Postgres that runs. It takes a millisecond, and is given up soon: others wait for this member.
    pub async fn slots(&self) -> Result<SlotsSeen, InstanceError> {
        let doing = "look at the replication slots";
        let statement = statement(self.config().major);
        let answer = self.ask_soon(doing, &statement).await?;
        let answer = answer.into_iter().next().flatten().unwrap_or_default();
        let mut row: Row = serde_json::from_str(&answer)
            .map_err(|error| InstanceError::SqlAnswer { doing, answer: format!("{answer}: {error}") })?;
        if row.recovering {
            self.tell_copies(&mut row.slots);
        }
        // -1 is no limit.
        let budget = u64::try_from(row.budget_mb).ok().map(|mb| pgstead_types::Bytes(mb << 20));
        Ok(SlotsSeen {
            budget,
            slots: row.slots,
            total: row.total,
            slots_max: Some(row.slots_max),
            senders_max: Some(row.senders_max),
            logical: Some(row.logical),
            version: Some(row.version),
        })
    }
}
