//! Ending clients, for certain: also those who were let in by the old rules and have not finished logging in.

use super::sql::Sql;
use super::{Instance, InstanceError, hba};
use crate::proc::{self, ProcessId};
use pgstead_types::Tick;
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::time::Duration;

/// For clients to be gone after they were told. A backend in the middle of a large sort or a stuck system call is the
/// slowest.
const CLIENTS_TIME_MAX: Duration = Duration::from_secs(15);

/// Background processes of a cluster's own roles are clients as well: they run what clients ask for. So are consumers of
/// logical slots, which a clean stop would wait for. Standbys are not. Who is logging in is none yet; Postgres 18 lists those too.
const CLIENTS: &str = "backend_type IN ('client backend', 'parallel worker', 'walsender') AND state IS DISTINCT FROM 'starting' \
                       AND usename IS DISTINCT FROM 'postgres' AND usename IS DISTINCT FROM 'pgstead_replication'";

/// Processes that have logged in, or never will.
const LOGGED_IN: &str = "SELECT pid FROM pg_stat_activity WHERE state IS DISTINCT FROM 'starting' \
                         AND (backend_type IS DISTINCT FROM 'walsender' OR pid IN (SELECT pid FROM pg_stat_replication))";

/// What a member calls itself where it streams, and what its slot is called, as a pattern.
pub(super) const MEMBER_NAME: &str = "^[0-9a-f]{32}_[0-9]+$";

/// Whom [`Instance::end_senders`] ends.
#[derive(Clone, Copy)]
pub(super) enum Senders<'a> {
    All,
    /// And what calls itself one. A consumer of logical slots that is stuck in decoding must not hold up a promise.
    Members,
    /// All but those whose certificate names one of these incarnations.
    AllBut(&'a super::applied::Admitted),
}

impl Instance {
    /// Ends every client, and returns once none is left. The holding rules must be in effect already. `sql` was born
    /// under them.
    pub(super) async fn end_clients(&self, sql: &Sql) -> Result<(), InstanceError> {
        let begun = Tick::now();
        let terminate = format!("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {CLIENTS}");
        // Those who come later are judged by the holding rules: clients that dial again and again would never let this end.
        let mut logging_in = self.backends_logging_in(sql).await?;
        loop {
            // SIGTERM to a backend that is not logged in yet makes it exit; to any other it is a request to end.
            self.signal_backends(&logging_in)?;
            // Before the clients are counted: one that was let in at the last moment is listed by then.
            logging_in.retain(|backend| backend.is_alive());
            let count = sql.value("end the clients", &terminate).await?;
            if count.as_deref() == Some("0") && logging_in.is_empty() {
                return Ok(());
            }
            let waited = Tick::now().since(begun);
            if waited > CLIENTS_TIME_MAX {
                let what = format!("{} clients and {} logins are left", count.unwrap_or_default(), logging_in.len());
                return Err(InstanceError::NotInEffect { what, waited });
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    /// Ends clients whose transactions have written.
    pub(super) async fn end_writers(&self, sql: &Sql) -> Result<(), InstanceError> {
        let terminate = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND {CLIENTS}"
        );
        sql.value("end clients that write", &terminate).await.map(drop)
    }

    fn signal_backends(&self, backends: &[ProcessId]) -> Result<(), InstanceError> {
        backends.iter().try_for_each(|backend| {
            let told = backend.signal(Signal::TERM);
            told.map(drop).map_err(InstanceError::file("signal a backend of", &self.config().data_dir))
        })
    }

    /// Ends the logins that are under way, and returns once none of them is left: whoever logs in from then on is judged by the
    /// present rules, which must be in effect already. `sql` was born under them.
    pub(super) async fn end_logins(&self, sql: &Sql) -> Result<(), InstanceError> {
        let begun = Tick::now();
        let mut logging_in = self.backends_logging_in(sql).await?;
        while !logging_in.is_empty() {
            self.signal_backends(&logging_in)?;
            let waited = Tick::now().since(begun);
            if waited > CLIENTS_TIME_MAX {
                let what = format!("{} logins are left", logging_in.len());
                return Err(InstanceError::NotInEffect { what, waited });
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
            logging_in.retain(|backend| backend.is_alive());
        }
        Ok(())
    }

    /// Children of the postmaster that Postgres does not list, or not as what they will be: backends that are still checking who
    /// they talk to, and WAL senders that are not seen to be ones yet. One that was forked before the rules changed judges by the
    /// old ones.
    async fn backends_logging_in(&self, sql: &Sql) -> Result<Vec<ProcessId>, InstanceError> {
        let Some(postmaster) = self.guard_status().await?.and_then(|status| status.postmaster) else {
            return Err(InstanceError::NotRunning);
        };
        let data_dir = self.config().data_dir.clone();
        // First the processes, then the list: one that is in neither was born in between, under the new rules.
        let children =
            proc::children_of(postmaster.pid).map_err(InstanceError::file("look for processes in", &data_dir))?;
        let listed: BTreeSet<i32> = sql
            .values("list the backends", LOGGED_IN)
            .await?
            .into_iter()
            .filter_map(|pid| pid.and_then(|pid| pid.parse().ok()))
            .collect();
        let unlisted = children.into_iter().filter(|stat| stat.state != 'Z' && !listed.contains(&stat.pid));
        Ok(unlisted.map(|stat| stat.id()).filter(|id| id.is_alive()).collect())
    }

    /// Ends WAL senders. Consumers of logical slots that dial in meanwhile go by the new rules and stay, unless they call
    /// themselves what a member is called.
    pub(super) async fn end_senders(&self, sql: &Sql, which: Senders<'_>) -> Result<(), InstanceError> {
        let list = format!(
            "SELECT json_build_object('pid', pid, 'dn', client_dn, 'consumes', \
             usename IS DISTINCT FROM 'pgstead_replication' AND coalesce(application_name, '') !~* '{MEMBER_NAME}' \
             AND EXISTS (SELECT FROM pg_stat_activity AS process WHERE process.pid = senders.pid AND datid IS NOT NULL)) \
             FROM pg_stat_replication AS senders LEFT JOIN pg_stat_ssl USING (pid)"
        );
        let keep = match which {
            Senders::AllBut(keep) => Some(keep),
            Senders::All | Senders::Members => None,
        };
        let names: BTreeSet<String> = keep
            .iter()
            .flat_map(|keep| keep.incarnations.iter().map(|one| format!("/CN={}", hba::common_name(*one, keep.epoch))))
            .collect();
        #[derive(serde::Deserialize)]
        struct Row {
            pid: i32,
            dn: Option<String>,
            consumes: bool,
        }
        let begun = Tick::now();
        let mut doomed: Option<BTreeSet<i32>> = None;
        loop {
            let rows = sql.values("list the WAL senders", &list).await?;
            let rows = rows.into_iter().flatten().filter_map(|text| serde_json::from_str::<Row>(&text).ok());
            let unkept = rows.filter(|row| !row.dn.as_ref().is_some_and(|dn| names.contains(dn)));
            let unkept: Vec<Row> = unkept.filter(|row| !(row.consumes && matches!(which, Senders::Members))).collect();
            // Without anyone to keep, those count that were there at first: the next ones know the new rules.
            let was_there = |row: &&Row| doomed.as_ref().is_none_or(|doomed| doomed.contains(&row.pid));
            let counts = |row: &&Row| was_there(row) || (keep.is_some() && !row.consumes);
            let found: BTreeSet<i32> = unkept.iter().filter(counts).map(|row| row.pid).collect();
            if doomed.is_none() {
                doomed = Some(found.clone());
            }
            if found.is_empty() {
                return Ok(());
            }
            for pid in &found {
                sql.value("end a WAL sender", &format!("SELECT pg_terminate_backend({pid})")).await?;
            }
            let waited = Tick::now().since(begun);
            if waited > CLIENTS_TIME_MAX {
                let what = format!("WAL senders {found:?} are left");
                return Err(InstanceError::NotInEffect { what, waited });
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }
}
