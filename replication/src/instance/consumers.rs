//! Consumers of logical slots: their role, their slots after a change of leader, and the places that they must leave to members.
//! Nothing of this is on the way to a promotion.

use super::slots::LOOK_TIME_MAX;
use super::sql::Sql;
use super::{Instance, InstanceError, UpstreamSource, hba};
use pgstead_types::Secret;
use std::collections::BTreeSet;
use tokio_postgres::SimpleQueryMessage;

/// What consumers log in with.
#[derive(Clone, Debug)]
pub struct Consumer {
    pub password: Secret,
    /// Another one for another password, of which it tells nothing: lower-case letters and digits.
    pub mark: String,
}

/// The slots that hold places: they keep nothing, and give way to a member's.
pub const HELD: &str = "(slot_type = 'physical' AND slot_name ~ '^pgstead_place_[0-9]+$')";
/// As many as a leader of the largest cluster makes for others at once, and one for a member that returns under another number.
pub const PLACES: u32 = 7;
/// The mark of a role that nobody logs in as.
const LOCKED: &str = "locked";
/// WAL senders that consumers leave to members: two each, for the stream and a copy, and some that are ending.
const SENDERS_LEFT: u32 = 16;

/// A member that led has its logical slots still, as its own, and Postgres copies none over one of the same name. `synced` marks
/// the copies.
const LEFT_OVER: &str =
    "pg_is_in_recovery() AND slot_type = 'logical' AND failover AND NOT synced AND NOT active AND NOT temporary";
/// Those that Postgres would copy from the leader.
const COPIED: &str = "SELECT slot_name FROM pg_replication_slots WHERE slot_type = 'logical' AND failover AND NOT temporary \
     AND invalidation_reason IS NULL";

/// Whether it is one of them, by its name.
pub fn is_place(slot: &str) -> bool {
    slot.starts_with("pgstead_place_")
}

/// Gives way to a slot for a member where there is no other place.
pub fn leave_place_for(slot: &str) -> String {
    format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM (SELECT slot_name FROM pg_replication_slots WHERE {HELD} AND NOT active \
         AND (SELECT count(*) FROM pg_replication_slots) >= current_setting('max_replication_slots')::int \
         AND NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{slot}') LIMIT 1) AS place"
    )
}

impl Instance {
    /// Whether the running Postgres was started for logical slots.
    pub fn is_logical(&self) -> bool {
        self.applied().logical
    }

    /// Holds places for members' slots, as long as there are any: whoever leads must have one for each.
    pub async fn hold_places(&self) -> Result<(), InstanceError> {
        let text = format!(
            "SELECT pg_create_physical_replication_slot(place) FROM (SELECT 'pgstead_place_' || number AS place \
             FROM generate_series(1, {PLACES}) AS number \
             WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = 'pgstead_place_' || number) ORDER BY number \
             LIMIT greatest(0, current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots))) AS lacking"
        );
        self.ask_soon("hold places for slots", &text).await.map(drop)
    }

    /// Lets consumers log in, or locks them out. Only on the primary. What a person has taken from the role since is not given back,
    /// until there is another password.
    pub async fn tend_consumers(&self, consumer: Option<&Consumer>) -> Result<(), InstanceError> {
        let role = hba::CONSUMER_ROLE;
        let doing = "tend the role of consumers";
        let state = format!(
            "SELECT coalesce(shobj_description(oid, 'pg_authid'), '') FROM pg_authid WHERE rolname = '{role}'; \
             SELECT greatest(2, current_setting('max_wal_senders')::int - {SENDERS_LEFT})"
        );
        let mut answer = self.ask_soon(doing, &state).await?;
        let limit = answer.pop().flatten().unwrap_or_else(|| "2".to_string());
        let held = answer.into_iter().next().flatten();
        let statement = match (consumer, held.as_deref()) {
            (Some(Consumer { mark, .. }), Some(held)) if held == mark => return Ok(()),
            (Some(Consumer { password, mark }), _) => {
                let verb = if held.is_some() { "ALTER" } else { "CREATE" };
                let verifier = postgres_protocol::password::scram_sha_256(password.expose().as_bytes());
                format!(
                    "{verb} ROLE {role} LOGIN REPLICATION CONNECTION LIMIT {limit} PASSWORD '{verifier}'; \
                     COMMENT ON ROLE {role} IS '{mark}'"
                )
            }
            (None, Some(held)) if held != LOCKED => format!(
                "ALTER ROLE {role} NOLOGIN NOREPLICATION PASSWORD NULL; COMMENT ON ROLE {role} IS '{LOCKED}'; \
                 SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"
            ),
            (None, _) => return Ok(()),
        };
        let sql = Sql::connect(&self.config()).await?;
        // What the statement says stays out of logs.
        let quiet =
            "SET log_statement = 'none'; SET log_min_duration_statement = -1; SET log_min_error_statement = 'panic'";
        sql.values(doing, quiet).await?;
        sql.values(doing, &statement).await.map(drop)
    }

    /// Logical slots from a time when this standby led that keep it from having copies of the leader's.
    pub async fn slots_left_over(&self) -> Result<BTreeSet<String>, InstanceError> {
        let config = self.config();
        if !self.applied().keeps_logical_slots(config.major) {
            return Ok(BTreeSet::new());
        }
        let text = format!("SELECT slot_name FROM pg_replication_slots WHERE {LEFT_OVER}");
        let names = self.ask_soon("look for slots of a former leader", &text).await?;
        Ok(names.into_iter().flatten().collect())
    }

    /// Drops those of them that the leader has too, so that Postgres copies the leader's here. What the leader does not have may
    /// be the last of its kind, and is for a person.
    pub async fn drop_slots_left_over(&self, source: &UpstreamSource) -> Result<(), InstanceError> {
        let left = self.slots_left_over().await?;
        if left.is_empty() {
            return Ok(());
        }
        let doing = "ask the leader for its logical slots";
        let asking = async {
            let leader = self.try_connect_to_source(source).await?;
            leader.simple_query(COPIED).await.map_err(InstanceError::sql(doing))
        };
        let too_slow = |_| InstanceError::SqlTooSlow { doing, waited: LOOK_TIME_MAX };
        let rows = tokio::time::timeout(LOOK_TIME_MAX, asking).await.map_err(too_slow)??;
        let name = |row: &SimpleQueryMessage| match row {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_string),
            _ => None,
        };
        let copied: BTreeSet<String> = rows.iter().filter_map(name).collect();
        for slot in left.intersection(&copied) {
            // A slot's name is of lower-case letters, digits and underscores.
            let text = format!(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE {LEFT_OVER} AND slot_name = '{slot}'"
            );
            self.ask_soon("drop a logical slot of a former leader", &text).await?;
        }
        Ok(())
    }

    /// A sender that called itself a member, without a member's certificate, since this was asked last. It was ended.
    pub fn take_false_sender(&self) -> Option<String> {
        self.false_sender.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }
}
