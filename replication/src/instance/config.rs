//! `postgresql.conf`, written whole into the run folder, and the way in which a change of it is made and seen.
//!
//! The files live outside the volume: a full volume cannot keep a promise from being made, and a copy of another
//! member's data folder never brings that member's configuration along.

use super::applied::{Applied, Follow, Presented, Shape};
use super::sql::{NoConnection, Sql};
use super::{Instance, InstanceConfig, InstanceError, hba, sync_names};
use crate::files::{self, Survives};
use pgstead_types::Tick;
use pgstead_types::lease::SILENCE_MS_DEFAULT;
use rustix::process::Signal;
use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::Duration;

/// From a reload to its effect. It takes a few milliseconds; a postmaster that needs this long is not well.
const EFFECT_TIME_MAX: Duration = Duration::from_secs(10);

/// Of a new cluster. Seven members that each stream while further copies are made need fewer than twenty; the others are for
/// consumers, who must never keep a member out. Which no standby may be below, so a cluster keeps what it was made with.
const MAX_WAL_SENDERS: u64 = 64;
/// The same for slots, on every member from its next start on.
const MAX_SLOTS: u64 = 64;

/// How many slots a Postgres that is started by this has room for.
pub fn slots_max(config: &InstanceConfig) -> usize {
    let asked = config.settings.iter().find(|(name, _)| name.eq_ignore_ascii_case("max_replication_slots"));
    let asked = asked.map_or(Some(MAX_SLOTS), |(_, value)| value.trim().parse().ok());
    usize::try_from(asked.unwrap_or_default()).unwrap_or_default()
}

/// How pgstead's own settings are and why. Those of the spec come after them and were checked not to repeat them.
fn render_conf(config: &InstanceConfig, applied: &Applied) -> String {
    let shape = &applied.wanted;
    let mut text =
        "# Written whole by pgstead; changes are overwritten. Settings of the cluster's spec come last.\n".to_string();
    let mut set = |name: &str, value: &str| text.push_str(&format!("{name} = {}\n", quoted(value)));
    // A backend's word for the configuration that it was born with.
    set("pgstead.generation", &applied.generation.to_string());
    // A leader's word for its logical slots; see `slots_tended`.
    set("pgstead.slots_settled", if applied.slots_settled { "on" } else { "off" });
    set("cluster_name", &config.incarnation.to_string());
    set("listen_addresses", &config.listen_host);
    set("port", &config.port.to_string());
    set("unix_socket_directories", &config.run_dir.to_string_lossy());
    set("unix_socket_permissions", "0700");
    set("hba_file", &config.run_file("pg_hba.conf").to_string_lossy());
    set("ident_file", &config.run_file("pg_ident.conf").to_string_lossy());

    set("ssl", "on");
    set("ssl_ca_file", &config.run_file("tls/ca.crt").to_string_lossy());
    set("ssl_cert_file", &config.run_file("tls/server.crt").to_string_lossy());
    set("ssl_key_file", &config.run_file("tls/server.key").to_string_lossy());
    set("password_encryption", "scram-sha-256");

    // What acknowledged means.
    set("fsync", "on");
    set("full_page_writes", "on");
    set("synchronous_commit", "on");
    set("synchronous_standby_names", &sync_names::render(&shape.sync_names));
    // A crash ends the postmaster: after a restart in place, commits that nobody acknowledged would be readable.
    set("restart_after_crash", "off");

    // By what was noted at the start: none of the rest may be loaded by a Postgres that was started without.
    set("wal_level", if applied.logical { "logical" } else { "replica" });
    let keeps_slots = applied.keeps_logical_slots(config.major);
    // For pg_rewind; checksums, which every cluster made here has, would do as well.
    set("wal_log_hints", "on");
    set("max_wal_senders", &applied.floors.get("max_wal_senders").unwrap_or(&MAX_WAL_SENDERS).to_string());
    set("max_replication_slots", &MAX_SLOTS.to_string());
    set("hot_standby", "on");
    let follow = shape.upstream.as_ref();
    let fed = follow.is_some_and(|follow| follow.of.relay.is_some());
    // A standby's copies of logical slots, Postgres' or ours, need rows that the leader might remove otherwise. Those of one that
    // another standby feeds go on from nowhere, and would hold rows for nobody.
    set("hot_standby_feedback", if applied.logical && !fed { "on" } else { "off" });
    let copies_slots = keeps_slots && follow.is_some() && !fed;
    if keeps_slots {
        // Without an upstream nothing may be copied: a promotion waits for the worker that does. From a standby nothing can be.
        set("sync_replication_slots", if copies_slots { "on" } else { "off" });
        set("synchronized_standby_slots", &sync_names::slots(&shape.sync_names));
    }
    set("recovery_target_timeline", "latest");
    set("restore_command", "");
    set("archive_mode", "off");
    // The default of 5 s is a hidden floor under every failover: a standby that has just lost its upstream would sit it
    // out before it dials again. The set acknowledges a promotion only once it streams, and dials before it is let in.
    set("wal_retrieve_retry_interval", "50ms");
    // A receiver asks its sender for a sign of life after half of this, and gives up after all of it. Shorter would cut
    // streams at every hiccup of a disk; longer hides a dead network behind a stream that looks alive.
    set("wal_receiver_timeout", &format!("{SILENCE_MS_DEFAULT}ms"));
    set("wal_receiver_status_interval", "1s");
    // Only ends senders whose standby has vanished without a word. It decides nothing, so it need not be short; it must be
    // far above the receivers' status interval.
    set("wal_sender_timeout", "10s");
    // A database is for the worker that copies logical slots; a WAL receiver connects to none, whatever this says.
    let database = if copies_slots { " dbname='postgres'" } else { "" };
    let conninfo = |follow: &Follow| format!("{}{database}", follow.conninfo(config));
    set("primary_conninfo", &follow.map_or_else(String::new, conninfo));
    let slot = follow.map_or_else(String::new, |_| config.incarnation.to_string());
    set("primary_slot_name", &slot);

    // The guard keeps the log.
    set("log_destination", "stderr");
    set("logging_collector", "off");
    for (name, value) in DEFAULTS {
        set(name, value);
    }
    if config.major >= 17 {
        set("allow_alter_system", "off");
    }
    if config.forked {
        set("max_logical_replication_workers", "0");
    }
    for (name, value) in &config.settings {
        set(name, value);
    }
    if shape.read_only {
        set("default_transaction_read_only", "on");
    }
    // Every start is a standby start, and a standby that is below the last primary in one of these does not start. So
    // they can be raised and not lowered.
    for (name, floor) in applied.floors.iter().filter(|(name, _)| *name != "max_wal_senders") {
        let asked = config.settings.iter().find(|(asked, _)| asked.eq_ignore_ascii_case(name));
        let asked = asked.and_then(|(_, value)| value.trim().parse().ok()).unwrap_or_else(|| standard(name));
        if *floor > asked {
            set(name, &floor.to_string());
        }
    }
    text
}

/// Postgres' own values for the settings of the spec that a standby must share.
fn standard(name: &str) -> u64 {
    match name {
        "max_connections" => 100,
        "max_worker_processes" => 8,
        "max_locks_per_transaction" => 64,
        _ => 0,
    }
}

/// Settings of the spec that a standby must share with its primary, for a single-user start to put into the control file.
pub fn shared_with_standbys(config: &InstanceConfig) -> Vec<(String, String)> {
    let shared = ["max_connections", "max_worker_processes", "max_prepared_transactions", "max_locks_per_transaction"];
    let asked = config.settings.iter().filter(|(name, _)| shared.contains(&name.to_ascii_lowercase().as_str()));
    let mut found: Vec<(String, String)> = asked.map(|(name, value)| (name.clone(), value.clone())).collect();
    found.push(("max_wal_senders".to_string(), MAX_WAL_SENDERS.to_string()));
    found
}

/// Ours unless the spec says otherwise.
const DEFAULTS: &[(&str, &str)] = &[
    // For a standby that was away a little, before the new leader has a slot for it.
    ("wal_keep_size", "256MB"),
    // A member that never comes back must not fill the leader's volume. Until the node has measured what there is room for.
    ("max_slot_wal_keep_size", "4GB"),
    ("log_line_prefix", "%m [%p] %q%u@%d %a "),
    ("log_timezone", "UTC"),
    ("timezone", "UTC"),
    ("log_checkpoints", "on"),
    ("log_lock_waits", "on"),
    // A client whose host is gone must not hold its locks for the hours that TCP takes by itself.
    ("tcp_keepalives_idle", "30"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "3"),
];

pub fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

impl Instance {
    pub(super) fn conf_path(&self) -> PathBuf {
        self.config().run_file("postgresql.conf")
    }

    /// Writes the server's certificates and all three configuration files for a shape, without telling anyone.
    async fn write_files(&self, applied: &Applied) -> Result<(), InstanceError> {
        let config = self.config();
        let local_users = self.local_users().await?;
        let applied = applied.clone();
        super::on_disk("write the configuration in", &config.run_dir.clone(), move || {
            let owner = config.owner();
            let write =
                |name: &str, bytes: &[u8]| files::ensure(&config.run_file(name), bytes, owner, Survives::Processes);
            write("tls/ca.crt", config.tls.ca_pem.as_bytes())?;
            write("tls/server.crt", config.tls.cert_pem.as_bytes())?;
            write("tls/server.key", config.tls.key_pem.expose().as_bytes())?;
            write("pg_hba.conf", hba::render_hba(&hba::Rules::of(&config, &applied)).as_bytes())?;
            write("pg_ident.conf", hba::render_ident(&local_users, applied.wanted.admitted.as_ref()).as_bytes())?;
            // Last: its generation vouches for the two before it.
            write("postgresql.conf", render_conf(&config, &applied).as_bytes())?;
            // ALTER SYSTEM would override the file.
            files::ensure(&config.data_dir.join("postgresql.auto.conf"), b"", owner, Survives::Processes)
        })
        .await
    }

    /// Takes note of a shape and writes it. Nobody has been told yet.
    pub(super) async fn write_shape(&self, wanted: Shape, forget_seen: bool) -> Result<Applied, InstanceError> {
        let config = self.config();
        let may_have_copies = self.may_have_copies();
        let applied = {
            let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
            applied.generation += 1;
            applied.want(wanted);
            applied.note_slots(config.major, may_have_copies);
            if forget_seen {
                applied.seen = None;
            }
            if applied.presented.as_ref() != Some(&Presented::of(&config)) {
                applied.presented = None;
            }
            applied.clone()
        };
        applied.save(&config).map_err(InstanceError::file("write", &config.run_file("applied.json")))?;
        self.write_files(&applied).await?;
        Ok(applied)
    }

    /// Notes that the wanted shape is in effect.
    pub(super) fn note_seen(&self, generation: u64) -> Result<(), InstanceError> {
        let config = self.config();
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        if applied.generation == generation {
            applied.note_seen();
            applied.save(&config).map_err(InstanceError::file("write", &config.run_file("applied.json")))?;
        }
        Ok(())
    }

    /// See [`Applied::note_set_seen`].
    pub(super) fn note_set_seen(&self, generation: u64) -> Result<(), InstanceError> {
        let config = self.config();
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        if applied.generation == generation {
            applied.note_set_seen();
            applied.save(&config).map_err(InstanceError::file("write", &config.run_file("applied.json")))?;
        }
        Ok(())
    }

    /// Notes that nobody connects by other rules than the wanted ones; see [`Applied::note_access_seen`].
    pub(super) fn note_access_seen(&self, generation: u64) -> Result<(), InstanceError> {
        let config = self.config();
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        if applied.generation == generation {
            applied.note_access_seen();
            applied.save(&config).map_err(InstanceError::file("write", &config.run_file("applied.json")))?;
        }
        Ok(())
    }

    /// SIGHUP to the postmaster, through the guard's knowledge of who that is. Works while nobody can connect.
    pub(super) async fn signal_reload(&self) -> Result<(), InstanceError> {
        let status = self.guard_status().await?.ok_or(InstanceError::NotRunning)?;
        let postmaster = status.postmaster.ok_or(InstanceError::NotRunning)?;
        let told = postmaster.signal(Signal::HUP).map_err(InstanceError::file("signal", &self.conf_path()))?;
        if told { Ok(()) } else { Err(InstanceError::NotRunning) }
    }

    /// Waits until a backend is born with this generation, which means that the postmaster has read the files: it loads
    /// `pg_hba.conf` and `pg_ident.conf` in the same breath, and keeps the old ones where they have mistakes, so those
    /// are asked for as well. The connection that was born last is returned.
    pub(super) async fn wait_in_effect(&self, generation: u64) -> Result<Sql, NoConnection> {
        let config = self.config();
        let begun = Tick::now();
        let failed = |what| {
            let waited = Tick::now().since(begun);
            NoConnection::Other(InstanceError::NotInEffect { what, waited })
        };
        // Only the first attempt can find a Postgres that has never accepted connections.
        let gone = |why: NoConnection| NoConnection::Other(why.into());
        let mut first = true;
        loop {
            let connecting = Sql::try_connect(&config).await;
            let sql = if std::mem::take(&mut first) { connecting? } else { connecting.map_err(gone)? };
            let asking = sql.value("read the configuration's generation", "SHOW pgstead.generation").await;
            let answer = asking.map_err(NoConnection::Other)?;
            if answer.as_deref().and_then(|text| text.parse::<u64>().ok()).is_some_and(|seen| seen >= generation) {
                // Any backend reads the files themselves for this.
                let mistakes = "SELECT string_agg(error, '; ') FROM (SELECT error FROM pg_hba_file_rules \
                                UNION ALL SELECT error FROM pg_ident_file_mappings) AS rules WHERE error IS NOT NULL";
                let found = self.ask_kept("look for mistakes in the access rules", mistakes).await.map_err(gone)?;
                return match found.into_iter().next().flatten() {
                    None => Ok(sql),
                    Some(what) => Err(failed(what)),
                };
            }
            if Tick::now().since(begun) > EFFECT_TIME_MAX {
                return Err(failed(format!("backends still start with generation {answer:?} instead of {generation}")));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Changes the shape of a running, accepting Postgres and returns once it is seen in effect on new backends. What is
    /// left for the caller, such as WAL senders and clients of the old shape, comes before [`Instance::note_seen`].
    pub(super) async fn load_shape(&self, wanted: Shape) -> Result<(Sql, u64), InstanceError> {
        let applied = self.write_shape(wanted, false).await?;
        self.signal_reload().await?;
        let sql = self.wait_in_effect(applied.generation).await?;
        self.note_presented(applied.generation)?;
        Ok((sql, applied.generation))
    }

    /// Notes that the files of this generation were loaded, certificates and settings with them.
    pub(super) fn note_presented(&self, generation: u64) -> Result<(), InstanceError> {
        let config = self.config();
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = Some(Presented::of(&config));
        if applied.generation == generation && applied.presented != loaded {
            applied.presented = loaded;
            applied.save(&config).map_err(InstanceError::file("write", &config.run_file("applied.json")))?;
        }
        Ok(())
    }

    /// Whether a running Postgres is known to have the settings and certificates of the [`InstanceConfig`]. Survives the
    /// daemon: one that was killed between taking a change and loading it finds it not loaded.
    pub fn presents_config(&self) -> bool {
        self.applied().presented.as_ref() == Some(&Presented::of(&self.config()))
    }

    /// Brings changed settings and certificates of the [`InstanceConfig`] to a running Postgres.
    pub async fn reload(&self) -> Result<(), InstanceError> {
        let _changing = self.changing.lock().await;
        // Keeps what was left unfinished unfinished: only a step that saw its own change says so.
        let applied = self.applied();
        let settled = !applied.senders_pending && applied.seen.as_ref() == Some(&applied.wanted);
        let (_, generation) = self.load_shape(self.wanted()).await?;
        if settled { self.note_seen(generation) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_leave_its_quotes() {
        assert_eq!(quoted("it's a \\ path"), "'it''s a \\\\ path'");
    }
}
