//! Statements to the local Postgres as its superuser, through the Unix socket. Every wait has an end.

use super::{Instance, InstanceConfig, InstanceError, hba};
use std::time::Duration;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// To be let in by a Postgres on the same host.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(3);
/// For any statement but a checkpoint.
pub const STATEMENT_TIME_MAX: Duration = Duration::from_secs(5);

/// One connection. It closes when dropped.
pub struct Sql {
    client: Client,
}

/// Why there is no connection, or no answer on a new one.
#[derive(Debug)]
pub enum NoConnection {
    /// It answers that it is starting up, shutting down or in recovery.
    NotYet,
    /// Nobody listens.
    Refused,
    Other(InstanceError),
}

impl From<NoConnection> for InstanceError {
    fn from(why: NoConnection) -> Self {
        match why {
            NoConnection::NotYet | NoConnection::Refused => InstanceError::NotRunning,
            NoConnection::Other(error) => error,
        }
    }
}

impl Sql {
    pub async fn connect(config: &InstanceConfig) -> Result<Self, InstanceError> {
        Ok(Self::try_connect(config).await?)
    }

    pub async fn try_connect(config: &InstanceConfig) -> Result<Self, NoConnection> {
        Self::try_connect_to(config, "postgres").await
    }

    pub async fn try_connect_to(config: &InstanceConfig, database: &str) -> Result<Self, NoConnection> {
        let doing = "connect";
        let mut options = tokio_postgres::Config::new();
        options.host_path(&config.run_dir).port(config.port).user(hba::SUPERUSER).dbname(database);
        options.application_name("pgstead").ssl_mode(tokio_postgres::config::SslMode::Disable);
        // Nothing that a role or database is set to may bend our own statements, or make them wait for standbys.
        options.options(
            "-c search_path=pg_catalog -c synchronous_commit=local -c statement_timeout=0 -c lock_timeout=0 \
             -c default_transaction_read_only=off -c idle_session_timeout=0 -c idle_in_transaction_session_timeout=0",
        );
        let connecting = tokio::time::timeout(CONNECT_TIME_MAX, options.connect(NoTls)).await;
        let too_slow = NoConnection::Other(InstanceError::SqlTooSlow { doing, waited: CONNECT_TIME_MAX });
        let (client, connection) = connecting.map_err(|_| too_slow)?.map_err(|error| {
            if error.code() == Some(&SqlState::CANNOT_CONNECT_NOW) {
                return NoConnection::NotYet;
            }
            let kind = std::error::Error::source(&error)
                .and_then(|cause| cause.downcast_ref::<std::io::Error>())
                .map(std::io::Error::kind);
            match kind {
                Some(std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused) => NoConnection::Refused,
                _ => NoConnection::Other(InstanceError::Sql { doing, error }),
            }
        })?;
        // Ends with the client.
        tokio::spawn(connection);
        Ok(Self { client })
    }

    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Runs statements one after the other; every row's first column, in order.
    pub async fn values(&self, doing: &'static str, text: &str) -> Result<Vec<Option<String>>, InstanceError> {
        self.values_within(doing, text, STATEMENT_TIME_MAX).await
    }

    pub async fn values_within(
        &self,
        doing: &'static str,
        text: &str,
        deadline: Duration,
    ) -> Result<Vec<Option<String>>, InstanceError> {
        let answer = tokio::time::timeout(deadline, self.client.simple_query(text)).await;
        let messages = answer
            .map_err(|_| InstanceError::SqlTooSlow { doing, waited: deadline })?
            .map_err(InstanceError::sql(doing))?;
        let first = |message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_string)),
            _ => None,
        };
        Ok(messages.into_iter().filter_map(first).collect())
    }

    /// The first row's first column; `None` for NULL and for no row.
    pub async fn value(&self, doing: &'static str, text: &str) -> Result<Option<String>, InstanceError> {
        Ok(self.values(doing, text).await?.into_iter().next().flatten())
    }

    pub async fn is_in_recovery(&self) -> Result<bool, InstanceError> {
        let answer = self.value("ask whether it is in recovery", "SELECT pg_is_in_recovery()").await?;
        Ok(answer.as_deref() == Some("t"))
    }
}

impl Instance {
    /// A new connection costs Postgres a process with cold caches, milliseconds that are nobody's during a failover. So one
    /// is kept: the probe's, and the youngest that a step has made. Where none is any good a new one takes its place, and the
    /// statement is run again: it must be one that may be.
    pub(super) async fn ask_kept(&self, doing: &'static str, text: &str) -> Result<Vec<Option<String>>, NoConnection> {
        // Taken out while in use: whoever is cut short drops the connection with it.
        let mut kept = self.kept.lock().await;
        if let Some(sql) = kept.take().filter(|sql| !sql.is_closed())
            && let Ok(answer) = sql.values(doing, text).await
        {
            *kept = Some(sql);
            return Ok(answer);
        }
        let sql = Sql::try_connect(&self.config()).await?;
        let answer = sql.values(doing, text).await.map_err(NoConnection::Other)?;
        *kept = Some(sql);
        Ok(answer)
    }

    /// Whether the running Postgres is a standby, by the kept connection.
    pub(super) async fn is_in_recovery(&self) -> Result<bool, NoConnection> {
        let answer = self.ask_kept("ask whether it is in recovery", "SELECT pg_is_in_recovery()").await?;
        Ok(answer.first().is_some_and(|answer| answer.as_deref() == Some("t")))
    }

    pub(super) async fn keep(&self, sql: Sql) {
        *self.kept.lock().await = Some(sql);
    }

    pub(super) async fn close_kept(&self) {
        *self.kept.lock().await = None;
    }
}
