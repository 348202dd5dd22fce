//! A new database cluster: `initdb`, then roles and the application's database through a single-user backend, so that
//! nobody can connect before they are right.

use super::{Instance, InstanceError, hba};
use crate::run::Run;
use pgstead_types::Secret;
use pgstead_types::report::{DataIdentity, DataSeen};
use std::time::Duration;

/// `initdb` writes and syncs about 40 MB; slow disks take many seconds for it.
const INITDB_TIME_MAX: Duration = Duration::from_secs(300);

/// What the application gets.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    pub database: String,
    /// Logs in with a password and owns the database. Not a superuser, and never a replicating role.
    pub owner: String,
    pub owner_password: Secret,
}

impl Instance {
    /// Makes the data folder of a new cluster. Nothing happens when this incarnation's data is there already; an unfinished
    /// folder has to be discarded first.
    pub async fn init_database(&self, bootstrap: &Bootstrap) -> Result<DataIdentity, InstanceError> {
        let config = self.config();
        match self.data_seen(None).await {
            DataSeen::Present(identity) if identity.incarnation == config.incarnation => return Ok(identity),
            DataSeen::Present(identity) => {
                return Err(InstanceError::OtherIncarnation {
                    found: identity.incarnation,
                    expected: config.incarnation,
                });
            }
            DataSeen::Absent => {}
            DataSeen::Partial | DataSeen::Lost { .. } | DataSeen::Foreign { .. } => return self.present_data().await,
        }
        self.must_be_down().await?;
        self.end_strays().await?;
        self.mark_partial("init").await?;
        self.empty_data_folder().await?;
        let data_dir = config.data_dir.to_string_lossy().into_owned();
        let args = [
            "--pgdata",
            &data_dir,
            "--username",
            hba::SUPERUSER,
            "--data-checksums",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            // Nothing of initdb's own access rules is used; they are the strictest all the same.
            "--auth-local=peer",
            "--auth-host=reject",
            "--no-instructions",
        ]
        .map(str::to_string);
        let run = Run::new(&config.program("initdb"), args).run_as(config.owner());
        run.deadline(INITDB_TIME_MAX).output().await?;
        let mut args = vec!["--single".to_string(), "-D".to_string(), data_dir.clone()];
        // A failed statement fails the program, and what it was stays out of logs and errors.
        let strict = [("exit_on_error", "on"), ("log_min_error_statement", "panic")];
        let strict = strict.map(|(name, value)| (name.to_string(), value.to_string()));
        // A standby start refuses settings below those in the control file, which are initdb's choice until now.
        for (name, value) in strict.into_iter().chain(super::config::shared_with_standbys(&config)) {
            args.extend(["-c".to_string(), format!("{name}={value}")]);
        }
        args.push("postgres".to_string());
        let run = Run::new(&config.program("postgres"), args).run_as(config.owner());
        run.stdin(statements(bootstrap).into_bytes()).deadline(INITDB_TIME_MAX).output().await?;
        self.mark_complete().await
    }
}

/// One statement per line, as a single-user backend reads them. The password goes in as its SCRAM verifier, made here.
fn statements(bootstrap: &Bootstrap) -> String {
    let verifier = postgres_protocol::password::scram_sha_256(bootstrap.owner_password.expose().as_bytes());
    let (replication, rewind) = (hba::REPLICATION_ROLE, hba::REWIND_ROLE);
    let (owner, database) = (identifier(&bootstrap.owner), identifier(&bootstrap.database));
    let mut lines = vec![
        format!("CREATE ROLE {replication} LOGIN REPLICATION"),
        format!("CREATE ROLE {rewind} LOGIN"),
        // What pg_rewind calls, by the Postgres manual; and a checkpoint before it.
        format!("GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_dir(text, boolean, boolean) TO {rewind}"),
        format!("GRANT EXECUTE ON FUNCTION pg_catalog.pg_stat_file(text, boolean) TO {rewind}"),
        format!("GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_binary_file(text) TO {rewind}"),
        format!("GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean) TO {rewind}"),
        format!("GRANT pg_checkpoint TO {rewind}"),
        format!("CREATE ROLE {owner} LOGIN NOSUPERUSER NOREPLICATION NOCREATEROLE NOBYPASSRLS PASSWORD '{verifier}'"),
        format!("CREATE DATABASE {database} OWNER {owner}"),
    ];
    lines.push(String::new());
    lines.join("\n")
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_itself_is_in_no_statement() {
        let text = statements(&Bootstrap {
            database: "app".to_string(),
            owner: "app".to_string(),
            owner_password: Secret::new("open sesame"),
        });
        assert!(!text.contains("sesame") && text.contains("SCRAM-SHA-256$"), "{text}");
        assert!(text.lines().all(|line| !line.is_empty()), "an empty line would end the input early");
    }
}
