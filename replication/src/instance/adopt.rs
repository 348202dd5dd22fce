//! Data of another cluster's member, as a volume was made with it, becomes this member's own: the beginning of a fork.

use super::data::elsewhere;
use super::{Instance, InstanceConfig, InstanceError, hba, on_disk};
use crate::files;
use crate::instance::sql::Sql;
use pgstead_types::report::{DataIdentity, DataSeen};
use pgstead_types::{ClusterId, MemberId, Secret};
use std::fs;
use std::io;

/// Who may still use a fork, and how.
#[derive(Clone, Debug)]
pub struct Isolation {
    /// The fork.
    pub cluster: ClusterId,
    pub owner: String,
    pub owner_password: Secret,
    /// Roles that are not pgstead's keep the passwords that they have in the source.
    pub keeps_passwords: bool,
}

impl Instance {
    /// Makes the data of member `of` this incarnation's, whose volume has it. What only the source can use goes: slots, and what was
    /// kept beside the data. Anything else than that member's data is left alone.
    pub async fn adopt_data(&self, of: MemberId) -> Result<DataIdentity, InstanceError> {
        let config = self.config();
        match self.data_seen(None).await {
            DataSeen::Present(identity) if identity.incarnation == config.incarnation => return Ok(identity),
            DataSeen::Partial => return self.present_data().await,
            _ => {}
        }
        self.must_be_down().await?;
        self.end_strays().await?;
        on_disk("make a fork's own", &config.data_dir.clone(), move || {
            let identity: Option<DataIdentity> = files::read_json(&config.beside_data("identity"))?;
            let found = identity.map(|identity| identity.incarnation.member);
            if found != Some(of) {
                let found = found.map_or_else(|| "nobody's".to_string(), |found| format!("member {found}'s"));
                return Err(io::Error::other(format!("it is {found}, expected that of member {of}")));
            }
            // Two that share a folder would destroy each other's data.
            if let Some(link) = elsewhere(&config.data_dir)? {
                let link = link.display();
                return Err(io::Error::other(format!(
                    "a part of it lies outside of its volume, by {link}; expected none"
                )));
            }
            discard_what_is_the_sources(&config)
        })
        .await?;
        self.mark_complete().await
    }

    /// Cuts a fork off from what its source is connected to, once, before anyone is let in: the owner gets its own password, the other
    /// roles none, subscriptions stand still and forget their slots. On the primary. Whether it did so now.
    pub async fn isolate(&self, isolation: &Isolation) -> Result<bool, InstanceError> {
        let doing = "isolate a fork";
        let config = self.config();
        let (role, mark) = (hba::REPLICATION_ROLE, format!("fork {}", isolation.cluster));
        let sql = Sql::connect(&config).await?;
        let marked =
            format!("SELECT coalesce(shobj_description(oid, 'pg_authid'), '') FROM pg_authid WHERE rolname = '{role}'");
        if sql.value(doing, &marked).await?.as_deref() == Some(&mark) {
            return Ok(false);
        }
        let of_subscriptions = "SELECT DISTINCT datname FROM pg_subscription JOIN pg_database ON pg_database.oid = subdbid \
                                WHERE datallowconn AND datconnlimit <> -2 AND (subenabled OR subslotname IS NOT NULL)";
        for database in sql.values(doing, of_subscriptions).await?.into_iter().flatten() {
            let inside = Sql::try_connect_to(&config, &database).await?;
            let statements = "SELECT format('ALTER SUBSCRIPTION %I DISABLE; ALTER SUBSCRIPTION %I SET (slot_name = NONE)', subname, subname) \
                              FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())";
            for statement in inside.values(doing, statements).await?.into_iter().flatten() {
                inside.values(doing, &statement).await?;
            }
        }
        let owner = format!("\"{}\"", isolation.owner.replace('"', "\"\""));
        let verifier = postgres_protocol::password::scram_sha_256(isolation.owner_password.expose().as_bytes());
        let known = format!("SELECT 1 FROM pg_authid WHERE rolname = '{}'", isolation.owner.replace('\'', "''"));
        let verb = if sql.value(doing, &known).await?.is_some() { "ALTER" } else { "CREATE" };
        let mut statements = vec![format!("{verb} ROLE {owner} LOGIN PASSWORD '{verifier}'")];
        if !isolation.keeps_passwords {
            let others = format!(
                "SELECT format('ALTER ROLE %I PASSWORD NULL', rolname) FROM pg_authid WHERE rolpassword IS NOT NULL AND rolname <> '{}'",
                isolation.owner.replace('\'', "''")
            );
            statements.extend(sql.values(doing, &others).await?.into_iter().flatten());
        }
        // Their role is tended later, by a mark that tells which password it has.
        let consumers = hba::CONSUMER_ROLE;
        let consumers_known = format!("SELECT 1 FROM pg_authid WHERE rolname = '{consumers}'");
        if sql.value(doing, &consumers_known).await?.is_some() {
            statements.push(format!("ALTER ROLE {consumers} PASSWORD NULL; COMMENT ON ROLE {consumers} IS NULL"));
        }
        statements.push(format!("COMMENT ON ROLE {role} IS '{mark}'"));
        // What the statements say stays out of logs.
        let quiet =
            "SET log_statement = 'none'; SET log_min_duration_statement = -1; SET log_min_error_statement = 'panic'";
        sql.values(doing, quiet).await?;
        // It waits for no standby: all that is acknowledged later comes after it in the log. A leader that lacks it does it again.
        let text = format!("BEGIN; {}; COMMIT", statements.join("; "));
        sql.values(doing, &text).await?;
        Ok(true)
    }
}

fn discard_what_is_the_sources(config: &InstanceConfig) -> io::Result<()> {
    let slots = config.data_dir.join("pg_replslot");
    for slot in fs::read_dir(&slots)? {
        fs::remove_dir_all(slot?.path())?;
    }
    fs::File::open(&slots)?.sync_all()?;
    let name = config.data_dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let identity = config.beside_data("identity");
    let beside = config.data_dir.parent().unwrap_or(&config.data_dir);
    for entry in fs::read_dir(beside)? {
        let entry = entry?;
        let ours = entry.file_name().to_str().is_some_and(|found| found.starts_with(&format!("{name}.")));
        if !ours || entry.path() == identity {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    files::sync_parent(&config.data_dir)
}
