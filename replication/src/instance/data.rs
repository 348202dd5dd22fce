//! The data folder, its marker and its identity. The folder alone never says that it is complete.

use super::{Instance, InstanceConfig, InstanceError, on_disk};
use crate::files::{self, Survives};
use crate::proc;
use crate::run::Run;
use pgstead_types::report::{DataIdentity, DataSeen};
use pgstead_types::{Incarnation, Tick};
use rustix::process::Signal;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

/// The programs that an instance needs.
const PROGRAMS: [&str; 5] = ["postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_controldata"];
/// For strays to end after SIGKILL.
const STRAYS_TIME_MAX: Duration = Duration::from_secs(10);

impl InstanceConfig {
    fn marker(&self) -> std::path::PathBuf {
        self.beside_data("partial")
    }
    fn identity_file(&self) -> std::path::PathBuf {
        self.beside_data("identity")
    }
    /// Which incarnation's data was complete here last, kept outside the volume: a volume that comes back empty has lost it.
    fn completed_note(&self) -> std::path::PathBuf {
        self.run_file("completed.json")
    }
}

impl Instance {
    /// Every program is there and of the right major version.
    pub async fn check_binaries(&self) -> Result<(), InstanceError> {
        let config = self.config();
        for program in PROGRAMS {
            let path = config.program(program);
            if !path.is_file() {
                return Err(InstanceError::NoProgram { program, bin_dir: config.bin_dir.clone(), major: config.major });
            }
            let output = Run::new(&path, ["--version".to_string()]).deadline(Duration::from_secs(10)).output().await?;
            // `postgres (PostgreSQL) 15.20 (Debian ...)`
            let found = output.stdout.trim().to_string();
            let major = found.split(") ").nth(1).and_then(|version| version.split(['.', ' ']).next());
            if major.and_then(|text| text.parse().ok()) != Some(config.major) {
                return Err(InstanceError::WrongMajor { program: path, found, major: config.major });
            }
        }
        Ok(())
    }

    /// `server_version_num` of the Postgres that would be started; `None` where it does not say.
    pub(super) async fn version(&self) -> Result<Option<u32>, InstanceError> {
        let path = self.config().program("postgres");
        let output = Run::new(&path, ["--version".to_string()]).deadline(Duration::from_secs(10)).output().await?;
        Ok(version_in(&output.stdout))
    }

    /// What is in the data folder. `expected` is the cluster's system identifier, where the record knows it.
    pub async fn data_seen(&self, expected: Option<&str>) -> DataSeen {
        let config = self.config();
        if config.marker().exists() {
            return DataSeen::Partial;
        }
        let foreign = |why: String| DataSeen::Foreign { why };
        match fs::read_dir(&config.data_dir).map(|mut entries| entries.next().is_none()) {
            Ok(true) => return self.absent_or_lost(),
            Ok(false) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return self.absent_or_lost(),
            Err(error) => return foreign(format!("{} cannot be read: {error}", config.data_dir.display())),
        }
        let identity: DataIdentity = match files::read_json(&config.identity_file()) {
            Ok(Some(identity)) => identity,
            Ok(None) => return foreign(format!("{} is not there", config.identity_file().display())),
            Err(error) => {
                return foreign(format!("{} cannot be understood: {error}", config.identity_file().display()));
            }
        };
        let version = fs::read_to_string(config.data_dir.join("PG_VERSION")).unwrap_or_default();
        if version.trim().parse() != Ok(identity.postgres_major) || identity.postgres_major != config.major {
            return foreign(format!("it is of Postgres {:?}; expected {}", version.trim(), config.major));
        }
        match self.control_data().await {
            Ok(data) if data.system_identifier != identity.system_identifier => {
                return foreign(format!(
                    "its system identifier is {}; {} was noted",
                    data.system_identifier, identity.system_identifier
                ));
            }
            Ok(_) => {}
            Err(error) => return foreign(format!("its control file cannot be read: {error}")),
        }
        if expected.is_some_and(|expected| expected != identity.system_identifier) {
            return foreign(format!("its system identifier is {}, another cluster's", identity.system_identifier));
        }
        if identity.incarnation.member != config.incarnation.member {
            return foreign(format!("it is member {}'s", identity.incarnation.member));
        }
        DataSeen::Present(identity)
    }

    /// By the node's own note, which is not on the volume.
    fn absent_or_lost(&self) -> DataSeen {
        let config = self.config();
        match files::read_json::<Incarnation>(&config.completed_note()) {
            Ok(None) => DataSeen::Absent,
            Ok(Some(incarnation)) if incarnation == config.incarnation => DataSeen::Lost { incarnation },
            // An earlier life of this member: the next one begins with nothing.
            Ok(Some(_)) => DataSeen::Absent,
            Err(error) => DataSeen::Foreign {
                why: format!("{} cannot be understood: {error}", config.completed_note().display()),
            },
        }
    }

    /// Whether a copy of the volume is a copy of the data: it is complete, and nothing of it lies elsewhere, where two would share it.
    pub async fn check_self_contained(&self) -> Result<(), InstanceError> {
        self.present_data().await?;
        let config = self.config();
        let data_dir = config.data_dir.clone();
        match on_disk("look into", &config.data_dir, move || elsewhere(&data_dir)).await? {
            None => Ok(()),
            Some(link) => Err(InstanceError::Elsewhere { link }),
        }
    }

    /// The identity of complete data, or why there is none.
    pub(super) async fn present_data(&self) -> Result<DataIdentity, InstanceError> {
        let config = self.config();
        match self.data_seen(None).await {
            DataSeen::Present(identity) => Ok(identity),
            DataSeen::Absent => Err(InstanceError::NoData { data_dir: config.data_dir.clone() }),
            DataSeen::Partial => {
                let what = files::read_json(&config.marker()).ok().flatten().unwrap_or("making".to_string());
                Err(InstanceError::PartialData { data_dir: config.data_dir.clone(), what })
            }
            DataSeen::Lost { incarnation } => Err(InstanceError::LostData { incarnation }),
            DataSeen::Foreign { why } => Err(InstanceError::ForeignData { why }),
        }
    }

    /// Marks the data as unfinished, on disk, before the first byte of it changes.
    pub(super) async fn mark_partial(&self, what: &'static str) -> Result<(), InstanceError> {
        let config = self.config();
        let marker = config.marker();
        on_disk("write", &marker.clone(), move || {
            files::replace_json(&marker, &what, config.owner(), Survives::PowerLoss)
        })
        .await
    }

    /// The data is complete: writes whose it is, then takes the mark away.
    pub(super) async fn mark_complete(&self) -> Result<DataIdentity, InstanceError> {
        let config = self.config();
        let control = super::control::ControlData::read(&config).await?;
        let identity = DataIdentity {
            incarnation: config.incarnation,
            system_identifier: control.system_identifier,
            postgres_major: config.major,
        };
        let written = identity.clone();
        on_disk("complete", &config.data_dir.clone(), move || {
            // Configuration that came with the data is not ours, and would be used by whoever starts it by hand.
            let stub = b"# pgstead keeps the configuration in the member's run folder.\nlisten_addresses = ''\n";
            files::replace(&config.data_dir.join("postgresql.conf"), stub, config.owner(), Survives::PowerLoss)?;
            files::replace_json(&config.identity_file(), &written, config.owner(), Survives::PowerLoss)?;
            let incarnation = written.incarnation;
            files::replace_json(&config.completed_note(), &incarnation, config.owner(), Survives::PowerLoss)?;
            files::remove(&config.marker())?;
            files::sync_parent(&config.data_dir)
        })
        .await?;
        Ok(identity)
    }

    /// Removes unfinished data; never touches data without the mark. False when there was nothing to remove.
    pub async fn discard_partial(&self) -> Result<bool, InstanceError> {
        let config = self.config();
        if !config.marker().exists() {
            return Ok(false);
        }
        self.must_be_down().await?;
        self.end_strays().await?;
        on_disk("discard", &config.data_dir.clone(), move || {
            match fs::remove_dir_all(&config.data_dir) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            files::remove(&config.identity_file())?;
            files::sync_parent(&config.data_dir)?;
            // Last: a removal that is cut short is still a partial folder.
            files::remove(&config.marker())?;
            files::sync_parent(&config.data_dir)
        })
        .await?;
        Ok(true)
    }

    /// Gives up the complete data of an earlier incarnation of this member, so that a copy can take its place. False when there
    /// is none. The caller has made sure that it is not the only copy of anything.
    pub async fn discard_superseded(&self) -> Result<bool, InstanceError> {
        let config = self.config();
        match self.data_seen(None).await {
            DataSeen::Present(identity) if identity.incarnation.number < config.incarnation.number => {}
            DataSeen::Present(_) | DataSeen::Absent | DataSeen::Lost { .. } => return Ok(false),
            DataSeen::Partial => return self.discard_partial().await,
            DataSeen::Foreign { why } => return Err(InstanceError::ForeignData { why }),
        }
        self.must_be_down().await?;
        self.mark_partial("removal").await?;
        self.discard_partial().await
    }

    /// No process of Postgres is left on this data: by the guard's word, or by looking where there is no guard.
    pub(super) async fn must_be_down(&self) -> Result<(), InstanceError> {
        if let Some(status) = self.guard_status().await?
            && !status.tree_empty
        {
            return Err(InstanceError::StillRunning);
        }
        if self.processes_there()?.is_empty() { Ok(()) } else { Err(InstanceError::StillRunning) }
    }

    pub(super) fn processes_there(&self) -> Result<Vec<proc::Stat>, InstanceError> {
        let config = self.config();
        proc::postgres_in(&config.data_dir).map_err(InstanceError::file("look for processes in", &config.data_dir))
    }

    /// Kills copies, rewinds and the like that a dead daemon has left at work on the data folder.
    pub(super) async fn end_strays(&self) -> Result<(), InstanceError> {
        let config = self.config();
        let begun = Tick::now();
        loop {
            let found = proc::programs_on(&config.data_dir).map_err(looking(&config.data_dir))?;
            if found.is_empty() {
                return Ok(());
            }
            for stray in &found {
                stray.id().signal(Signal::KILL).map_err(looking(&config.data_dir))?;
            }
            let waited = Tick::now().since(begun);
            if waited > STRAYS_TIME_MAX {
                return Err(InstanceError::DidNotStop { waited });
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// An empty data folder for a program to fill, belonging to the user that it runs as.
    pub(super) async fn empty_data_folder(&self) -> Result<(), InstanceError> {
        let config = self.config();
        on_disk("make", &config.data_dir.clone(), move || files::ensure_folder(&config.data_dir, config.owner())).await
    }
}

fn looking(data_dir: &Path) -> impl FnOnce(std::io::Error) -> InstanceError + use<> {
    InstanceError::file("look for programs at work on", data_dir)
}

/// `postgres (PostgreSQL) 15.20 (Debian ...)`
/// A link of a data folder that leads out of it: a tablespace, or log on another disk.
pub(super) fn elsewhere(data_dir: &Path) -> std::io::Result<Option<std::path::PathBuf>> {
    for folder in [data_dir.to_path_buf(), data_dir.join("pg_tblspc")] {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_symlink() {
                return Ok(Some(entry.path()));
            }
        }
    }
    Ok(None)
}

fn version_in(said: &str) -> Option<u32> {
    let mut numbers = said.split(") ").nth(1)?.split_whitespace().next()?.split('.');
    let (major, minor): (u32, u32) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
    Some(major * 10_000 + minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_says_its_version() {
        assert_eq!(version_in("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(150_018));
        assert_eq!(version_in("postgres (PostgreSQL) 16.9"), Some(160_009));
        assert_eq!(version_in("postgres (PostgreSQL) 18beta1"), None);
    }
}
