//! A copy of a member's data while its Postgres runs: what the Postgres manual calls a low-level base backup. For storage that cannot
//! copy a volume at one moment. The copy begins with a label, by which recovery knows from where on it needs the log.

use super::basebackup::CloneProgress;
use super::folder_copy::{Copy, Left, NoRoom, plain_copy, shares_blocks, with_progress};
use super::sql::Sql;
use super::{Instance, InstanceError, on_disk, timelines};
use crate::files::{self, Survives};
use pgstead_types::{Bytes, Lsn};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// It begins with a checkpoint, which takes as long as there are dirty pages.
const BEGIN_TIME_MAX: Duration = Duration::from_secs(600);

/// Two copies of one member at a time are two slots.
static COPIES: AtomicU64 = AtomicU64::new(1);

/// A copy of a folder that does not change meanwhile, into one that is there.
pub async fn copy_folder(
    from: &Path,
    into: &Path,
    pool_free: Bytes,
    progress: CloneProgress<'_>,
) -> Result<(), InstanceError> {
    let failed = InstanceError::file("copy", from);
    let (from, into) = (from.to_path_buf(), into.to_path_buf());
    let copied = with_progress(
        move |stopped, percent| {
            let shares = match first_file(&from)? {
                Some(file) => shares_blocks(&file, &into)?,
                None => false,
            };
            let copy = Copy { stopped, percent, shares, ..Copy::of(&from, Left::Nothing)? };
            if let Some(no_room) = copy.no_room(&into, pool_free)? {
                return Ok(Some(no_room));
            }
            copy.run(&from, &into).map(|()| None)
        },
        progress,
    );
    match copied.await.map_err(failed)? {
        None => Ok(()),
        Some(NoRoom { needed, free }) => Err(InstanceError::NoRoom { needed: Bytes(needed), free: Bytes(free) }),
    }
}

fn first_file(folder: &Path) -> io::Result<Option<std::path::PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// What the end of a backup says, beside the label.
struct Ended {
    label: String,
    upto: Lsn,
}

impl Instance {
    /// Copies the data of the running Postgres, and whose it is, into an empty folder, under the names that they have here. Of a
    /// primary it has all that was acknowledged before this was called, of a standby all that it had received.
    pub async fn copy_running(
        &self,
        into: &Path,
        pool_free: Bytes,
        progress: CloneProgress<'_>,
    ) -> Result<(), InstanceError> {
        let config = self.config();
        let identity = self.present_data().await?;
        self.check_self_contained().await?;
        let control = self.control_data().await?;
        let name = config.data_dir.file_name().unwrap_or_default();
        let target = into.join(name);
        // The slot and the backup end with the connection.
        let sql = Sql::connect(&config).await?;
        let slot = format!("pgstead_copy_{}_{}", std::process::id(), COPIES.fetch_add(1, Ordering::Relaxed));
        let reserve = format!("SELECT pg_create_physical_replication_slot('{slot}', true, true)");
        sql.values("keep log for a copy", &reserve).await?;
        // On a standby it may be more than was replayed, and all of it was acknowledged.
        let received = "SELECT coalesce(pg_last_wal_receive_lsn(), '0/0')::text";
        let received = sql.value("ask what was received", received).await?.and_then(|text| text.parse::<Lsn>().ok());
        sql.values_within("begin a copy", "SELECT pg_backup_start('pgstead', true)", BEGIN_TIME_MAX).await?;
        let (from, to) = (config.data_dir.clone(), target.clone());
        let failed = InstanceError::file("copy", &from);
        let copied = with_progress(
            move |stopped, percent| {
                fs::create_dir(&to)?;
                let shares = shares_blocks(&from.join("PG_VERSION"), &to)?;
                let copy = Copy { stopped, percent, shares, ..Copy::of(&from, Left::OfRunning)? };
                if let Some(no_room) = copy.no_room(&to, pool_free)? {
                    return Ok(Some(no_room));
                }
                copy.run(&from, &to)?;
                // Last: on a standby it says how far the log has to be replayed.
                copy_file(&from.join("global/pg_control"), &to.join("global/pg_control"))?;
                Ok(None)
            },
            progress,
        );
        if let Some(NoRoom { needed, free }) = copied.await.map_err(failed)? {
            return Err(InstanceError::NoRoom { needed: Bytes(needed), free: Bytes(free) });
        }
        let mut ended = end(&sql).await?;
        ended.upto = ended.upto.max(received.unwrap_or_default());
        // A tablespace may have been made meanwhile.
        self.check_self_contained().await?;
        let (from, segment_bytes) = (config.data_dir.clone(), control.segment_bytes);
        let (whose, owner) = (config.beside_data("identity"), config.owner());
        on_disk("copy the log of", &config.data_dir, move || {
            let Some(begin) = begin_of(&ended.label) else {
                return Err(io::Error::other("the label of the copy does not say where its log begins"));
            };
            for folder in ["pg_wal", "pg_wal/archive_status"] {
                match fs::create_dir(target.join(folder)) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                    _ => {}
                }
                own(&target.join(folder), &from.join("pg_wal"))?;
            }
            let needed = timelines::segment_numbers(begin, ended.upto, segment_bytes);
            let mut missing: BTreeSet<u64> = needed.clone().collect();
            for entry in fs::read_dir(from.join("pg_wal"))? {
                let entry = entry?;
                let Some(name) = entry.file_name().to_str().map(str::to_string) else { continue };
                let number = timelines::number_of_segment(&name, segment_bytes).filter(|n| needed.contains(n));
                if number.is_some() || name.ends_with(".history") {
                    copy_file(&entry.path(), &target.join("pg_wal").join(name))?;
                }
                number.map(|number| missing.remove(&number));
            }
            files::replace(&target.join("backup_label"), ended.label.as_bytes(), owner, Survives::PowerLoss)?;
            let mut beside = target.clone().into_os_string();
            beside.push(".identity");
            copy_file(&whose, Path::new(&beside))?;
            files::sync_parent(&target.join("pg_wal/archive_status"))?;
            files::sync_parent(&target)?;
            Ok(missing)
        })
        .await
        .and_then(|missing| match missing.first() {
            Some(segment) => Err(InstanceError::LogGone { segment: *segment }),
            None => Ok(()),
        })?;
        // The slot was there to the end, and so was the data.
        sql.value("see the copy through", "SELECT 1").await?;
        let found = self.present_data().await?.incarnation;
        match found == identity.incarnation {
            true => Ok(()),
            false => Err(InstanceError::OtherIncarnation { found, expected: identity.incarnation }),
        }
    }
}

/// With its owner and mode, and on disk.
fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    plain_copy(from, to)?;
    own(to, from)?;
    fs::File::open(to)?.sync_all()
}

fn own(path: &Path, like: &Path) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, chown};
    let like = fs::metadata(like)?;
    fs::set_permissions(path, like.permissions())?;
    chown(path, Some(like.uid()), Some(like.gid()))
}

async fn end(sql: &Sql) -> Result<Ended, InstanceError> {
    let doing = "end a copy";
    let text = "SELECT json_build_array(lsn, labelfile)::text FROM pg_backup_stop(false)";
    let answer = sql.values_within(doing, text, BEGIN_TIME_MAX).await?.into_iter().next().flatten();
    let answer = answer.unwrap_or_default();
    let read: Option<(Lsn, String)> = serde_json::from_str::<(String, String)>(&answer)
        .ok()
        .and_then(|(lsn, label)| Some((lsn.parse().ok()?, label)));
    match read {
        Some((upto, label)) => Ok(Ended { label, upto }),
        None => Err(InstanceError::SqlAnswer { doing, answer }),
    }
}

/// `START WAL LOCATION: 0/2000028 (file 000000010000000000000002)`, where the log begins that recovery needs.
fn begin_of(label: &str) -> Option<Lsn> {
    let line = label.lines().find_map(|line| line.strip_prefix("START WAL LOCATION: "))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_says_where_the_log_begins() {
        let label = "START WAL LOCATION: 1/2000028 (file 000000010000000100000002)\nCHECKPOINT LOCATION: 1/2000060\n";
        assert_eq!(begin_of(label), "1/2000028".parse().ok());
        assert_eq!(begin_of("CHECKPOINT LOCATION: 1/2000060\n"), None);
    }
}
