//! What clients are at, for whoever thinks of stopping this Postgres.

use super::sql::Sql;
use super::{Instance, InstanceError};
use pgstead_types::sessions::{LONG_TRANSACTION_MS, PREPARED_NAMED_MAX, SessionsSeen};

impl Instance {
    /// Asks the running primary. Our own sessions do not count.
    pub async fn sessions(&self) -> Result<SessionsSeen, InstanceError> {
        let sql = Sql::connect(&self.config()).await?;
        let text = format!(
            "SELECT count(*) || ' ' || count(*) FILTER (WHERE age_ms >= {LONG_TRANSACTION_MS}) || ' ' || \
             coalesce(max(age_ms), 0) FROM (SELECT (extract(epoch FROM clock_timestamp() - xact_start) * 1000)::bigint \
             AS age_ms FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name <> 'pgstead') s"
        );
        let counts = sql.value("count the sessions", &text).await?.unwrap_or_default();
        let mut numbers = counts.split(' ').map(|number| number.parse().unwrap_or(0));
        let prepared =
            sql.values("list prepared transactions", "SELECT gid FROM pg_prepared_xacts ORDER BY prepared").await?;
        Ok(SessionsSeen {
            sessions: numbers.next().unwrap_or(0),
            long_transactions: numbers.next().unwrap_or(0),
            oldest_ms: numbers.next().unwrap_or(0),
            prepared: prepared.len() as u64,
            prepared_names: prepared.into_iter().flatten().take(PREPARED_NAMED_MAX).collect(),
        })
    }
}
