//! A look at the instance: cheap, bounded in time, and never a guess. What cannot be told is said to be unknown.

use super::applied::Applied;
use super::position::{self, LogSeen};
use super::promote::Promotion;
use super::sql::{NoConnection, Sql};
use super::{Instance, InstanceConfig, InstanceError, hba, sync_names, timelines};
use crate::proc::ProcessId;
use pgstead_types::report::{PostgresSeen, PrimarySeen, ReceiverSeen, SenderSeen, StandbySeen};
use pgstead_types::{Incarnation, Lsn, Timeline};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::time::Duration;

/// For the whole look. Beyond it Postgres counts as unresponsive; a healthy one answers within a few milliseconds.
const PROBE_TIME_MAX: Duration = Duration::from_secs(3);

/// Three statements in one round trip: receiver and slots, then wait and positions as [`position`] wants them.
const STANDBY: &str = "SELECT json_build_object(\
      'streaming', status = 'streaming', \
      'slots', (SELECT coalesce(json_agg(slot_name), '[]') FROM pg_replication_slots \
        WHERE slot_type = 'physical' AND wal_status IS DISTINCT FROM 'lost'), \
      'silent_ms', greatest(0, (extract(epoch from clock_timestamp() - last_msg_receipt_time) * 1000)::bigint)) \
     FROM (VALUES (1)) AS one LEFT JOIN pg_stat_wal_receiver ON true";

const PRIMARY: &str = "SELECT json_build_object(\
     'flushed', pg_current_wal_flush_lsn(), \
     'file', pg_walfile_name(pg_current_wal_insert_lsn()), \
     'sync_names', current_setting('synchronous_standby_names'), \
     'slots', (SELECT coalesce(json_agg(slot_name), '[]') FROM pg_replication_slots \
        WHERE slot_type = 'physical' AND wal_status IS DISTINCT FROM 'lost'), \
     'senders', (SELECT coalesce(json_agg(json_build_object(\
        'pid', pid, 'counts', sync_priority > 0, 'name', application_name, 'streaming', state = 'streaming', \
        'flushed', flush_lsn, 'replayed', replay_lsn, 'dn', client_dn)), '[]') \
        FROM pg_stat_replication LEFT JOIN pg_stat_ssl USING (pid)))";

#[derive(Deserialize)]
struct ReceiverRow {
    streaming: Option<bool>,
    silent_ms: Option<u64>,
    slots: Vec<String>,
}

#[derive(Deserialize)]
struct PrimaryRow {
    flushed: Lsn,
    file: String,
    sync_names: String,
    slots: Vec<String>,
    senders: Vec<SenderRow>,
}

#[derive(Deserialize)]
struct SenderRow {
    pid: i32,
    counts: bool,
    name: String,
    streaming: Option<bool>,
    flushed: Option<Lsn>,
    replayed: Option<Lsn>,
    dn: Option<String>,
}

/// The timeline in a WAL file's name.
pub fn timeline_of_file(name: &str) -> Option<Timeline> {
    u32::from_str_radix(name.get(..8)?, 16).ok().map(Timeline)
}

impl Instance {
    /// How the member's Postgres is, as guard and Postgres say.
    pub async fn probe(&self) -> PostgresSeen {
        let unresponsive = |why: String| PostgresSeen::Unresponsive { why };
        let status = match self.guard_status().await {
            Ok(status) => status,
            Err(error) => return unresponsive(chain(&error)),
        };
        let Some(status) = status else {
            return match self.processes_there() {
                Ok(left) if left.is_empty() => PostgresSeen::Down { clean: self.clean_stop().await },
                Ok(left) => unresponsive(format!("the guard is gone and {} processes are left", left.len())),
                Err(error) => unresponsive(chain(&error)),
            };
        };
        let Some(postmaster) = status.postmaster else {
            return if status.tree_empty {
                PostgresSeen::Down { clean: self.clean_stop().await }
            } else {
                unresponsive("the postmaster has ended and some of its processes are left".to_string())
            };
        };
        match tokio::time::timeout(PROBE_TIME_MAX, self.look(postmaster)).await {
            Ok(Ok(seen)) => seen,
            Ok(Err(error)) => unresponsive(chain(&error)),
            Err(_) => unresponsive(format!("no answer within {PROBE_TIME_MAX:?}")),
        }
    }

    async fn look(&self, postmaster: ProcessId) -> Result<PostgresSeen, InstanceError> {
        let mut kept = self.kept.lock().await;
        // Taken out while in use: a look that is given up drops the connection with it.
        if let Some(sql) = kept.take().filter(|sql| !sql.is_closed())
            && let Ok(seen) = self.ask(&sql, postmaster).await
        {
            *kept = Some(sql);
            return Ok(seen);
        }
        match Sql::try_connect(&self.config()).await {
            Ok(sql) => {
                let seen = self.ask(&sql, postmaster).await?;
                *kept = Some(sql);
                Ok(seen)
            }
            // A postmaster that has not opened its socket yet is starting as well.
            Err(NoConnection::NotYet | NoConnection::Refused) if self.is_standby_start() => Ok(PostgresSeen::Starting),
            Err(NoConnection::NotYet | NoConnection::Refused) => Ok(PostgresSeen::Unresponsive {
                why: "a primary that takes no connections: it is being shut down, or was not started as a standby"
                    .into(),
            }),
            Err(NoConnection::Other(error)) => Err(error),
        }
    }

    /// Every start is a standby start, and a promotion takes the sign of it away before anything is written as a primary.
    fn is_standby_start(&self) -> bool {
        self.config().data_dir.join("standby.signal").exists()
    }

    async fn ask(&self, sql: &Sql, postmaster: ProcessId) -> Result<PostgresSeen, InstanceError> {
        let config = self.config();
        let applied = self.applied();
        if sql.is_in_recovery().await? {
            let doing = "ask a standby how it is";
            let mut values = sql.values(doing, &format!("{STANDBY}; {}", position::STATEMENTS)).await?;
            let positions: Option<LogSeen> = values.pop().flatten().and_then(|text| serde_json::from_str(&text).ok());
            let wait = values.pop().flatten();
            let receiver: Option<ReceiverRow> =
                values.pop().flatten().and_then(|text| serde_json::from_str(&text).ok());
            let (Some(log), Some(receiver)) = (positions, receiver) else {
                return Err(InstanceError::SqlAnswer { doing, answer: format!("{values:?}") });
            };
            standby_seen(&config, &applied, LogSeen { startup_wait: wait, ..log }, receiver)
        } else {
            let doing = "ask a primary how it is";
            let text = sql.value(doing, PRIMARY).await?.unwrap_or_default();
            let row: PrimaryRow = serde_json::from_str(&text)
                .map_err(|error| InstanceError::SqlAnswer { doing, answer: format!("{text}: {error}") })?;
            let timeline = timeline_of_file(&row.file).unwrap_or_default();
            self.end_false_senders(sql, &row.senders).await;
            let promotion = self.promotion_of(postmaster, timeline, row.flushed)?;
            primary_seen(&config, &applied, row, timeline, promotion)
        }
    }
}

impl SenderRow {
    /// It counts as a member, or would if the set named that one, and has no certificate of one. Postgres compares names without
    /// regard to case.
    fn is_false(&self) -> bool {
        let named = self.name.to_ascii_lowercase().parse::<Incarnation>().ok();
        (self.counts || named.is_some()) && (named.is_none() || certified(self.dn.as_deref()) != named)
    }
}

impl Instance {
    /// Whoever may replicate can take a member's name and say that it has flushed what nobody has. It cannot be kept from that, and
    /// is ended as soon as it is seen.
    async fn end_false_senders(&self, sql: &Sql, senders: &[SenderRow]) {
        for sender in senders.iter().filter(|sender| sender.is_false()) {
            let name = &sender.name;
            tracing::error!(
                name,
                pid = sender.pid,
                "a WAL sender has a member's name and no certificate for it, and is ended"
            );
            *self.false_sender.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(name.clone());
            let end = format!("SELECT pg_terminate_backend({})", sender.pid);
            if let Err(error) = sql.value("end a WAL sender", &end).await {
                tracing::error!(name, %error, "cannot end it");
            }
        }
    }
}

fn standby_seen(
    config: &InstanceConfig,
    applied: &Applied,
    log: LogSeen,
    receiver: ReceiverRow,
) -> Result<PostgresSeen, InstanceError> {
    let pg_wal = config.pg_wal();
    let reading = InstanceError::file("read", &pg_wal);
    let logged = || -> std::io::Result<_> {
        let position = position::position_of(&log, &pg_wal)?;
        let expects = position.map(|position| timelines::expected_after(&pg_wal, position.timeline)).transpose()?;
        Ok((position, expects.flatten()))
    };
    let (position, expects) = logged().map_err(reading)?;
    Ok(PostgresSeen::Standby(StandbySeen {
        upstream: applied.upstream(),
        unfinished: applied.unfinished(),
        receiver: receiver
            .streaming
            .map(|streaming| ReceiverSeen { streaming, silent_ms: receiver.silent_ms.unwrap_or(0) }),
        replayed: log.replayed.unwrap_or_default(),
        position,
        expects,
        relays_to: applied.relays_to(),
        slots: members_of(&receiver.slots),
        access: applied.access(),
    }))
}

fn primary_seen(
    config: &InstanceConfig,
    applied: &Applied,
    row: PrimaryRow,
    timeline: Timeline,
    promotion: Option<Promotion>,
) -> Result<PostgresSeen, InstanceError> {
    let pg_wal = config.pg_wal();
    let done = promotion.and_then(|promotion| promotion.outcome.map(|outcome| (promotion.epoch, outcome)));
    let (parent, fork_lsn) = match done {
        Some((_, outcome)) => (Some(outcome.parent), outcome.fork_lsn),
        None => timelines::read_fork(&pg_wal, timeline)
            .map_err(InstanceError::file("read", &pg_wal))?
            .map_or((None, Lsn(0)), |fork| (Some(fork.parent), fork.at)),
    };
    let epoch = done.map(|(epoch, _)| epoch);
    let sync_set = sync_names::parse(&row.sync_names).filter(|set| applied.sync_set() == Some(set));
    Ok(PostgresSeen::Primary(PrimarySeen {
        epoch,
        timeline,
        flushed: row.flushed,
        fork_lsn,
        parent,
        end_of_recovery: done.map_or(row.flushed, |(_, outcome)| outcome.end_of_recovery),
        access: applied.access(),
        read_only: applied.read_only(),
        sync_set,
        admitted: applied.admitted(epoch),
        slots: members_of(&row.slots),
        senders: row.senders.into_iter().map(sender_seen).collect(),
    }))
}

/// The slots that are named after a member; what else there is belongs to someone else.
fn members_of(slots: &[String]) -> BTreeSet<Incarnation> {
    slots.iter().filter_map(|name| name.parse().ok()).collect()
}

fn sender_seen(row: SenderRow) -> SenderSeen {
    let named = row.name.parse::<Incarnation>().ok();
    SenderSeen {
        incarnation: named.filter(|incarnation| certified(row.dn.as_deref()) == Some(*incarnation)),
        name: row.name,
        streaming: row.streaming.unwrap_or(false),
        flushed: row.flushed,
        replayed: row.replayed,
    }
}

/// The incarnation in a client certificate's distinguished name, as `pg_stat_ssl` shows it: `/CN=<incarnation>.e<epoch>`.
pub fn certified(dn: Option<&str>) -> Option<Incarnation> {
    let (incarnation, epoch) = dn?.strip_prefix("/CN=")?.split_once(".e")?;
    let incarnation: Incarnation = incarnation.parse().ok()?;
    let epoch = pgstead_types::Epoch(epoch.parse().ok()?);
    (dn == Some(&format!("/CN={}", hba::common_name(incarnation, epoch)))).then_some(incarnation)
}

/// An error with its causes, for a report.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgstead_types::MemberId;

    #[test]
    fn a_sender_is_whom_its_certificate_names() {
        let one = Incarnation { member: MemberId::from_u128(1), number: 1 };
        let other = Incarnation { member: MemberId::from_u128(2), number: 1 };
        let row = |name: Incarnation, dn: Option<String>| SenderRow {
            pid: 1,
            counts: false,
            name: name.to_string(),
            streaming: Some(true),
            flushed: None,
            replayed: None,
            dn,
        };
        let dn = |who: Incarnation| Some(format!("/CN={who}.e3"));
        assert_eq!(sender_seen(row(one, dn(one))).incarnation, Some(one));
        assert_eq!(sender_seen(row(one, dn(other))).incarnation, None);
        assert_eq!(sender_seen(row(one, None)).incarnation, None);
        assert_eq!(sender_seen(row(one, Some(format!("/CN={one}")))).incarnation, None);

        assert!(!row(one, dn(one)).is_false());
        assert!(row(one, dn(other)).is_false() && row(one, None).is_false());
        let called = |name: &str, counts: bool| SenderRow { name: name.to_string(), counts, ..row(one, None) };
        assert!(called(&one.to_string().to_ascii_uppercase(), false).is_false(), "Postgres counts it all the same");
        assert!(called("anything", true).is_false() && !called("anything", false).is_false());
    }
}
