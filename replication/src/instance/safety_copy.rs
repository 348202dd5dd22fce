//! A copy of a data folder beside it, made before something rewrites the folder in place.

use super::basebackup::CloneProgress;
use super::folder_copy::{Copy, Left, NoRoom, shares_blocks, with_progress};
use super::{Instance, InstanceError};
use crate::files;
use pgstead_types::Bytes;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8};
use std::{fs, io};

/// Whether there is a copy now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SafetyCopy {
    /// Of so many bytes; none of them were written where the file system shares blocks.
    Made { bytes: u64, shared: bool },
    /// An earlier one of the same data, or the data has been made anew since.
    AlreadyThere,
    /// It would have left the file system too full, so there is none.
    NoRoom { needed: u64, free: u64 },
}

impl Instance {
    /// Where data is kept that something else takes the place of: beside the data folder, on its volume.
    pub fn kept_data(&self) -> PathBuf {
        self.config().beside_data("previous")
    }

    /// Copies the complete data of an earlier incarnation to [`Self::kept_data`], unless that is there already. Postgres must be
    /// down. A copy that was cut short is not there, and is begun anew. `pool_free`: what the storage below can still take, which
    /// may be less than its file system says.
    pub async fn copy_aside(&self, pool_free: Bytes, progress: CloneProgress<'_>) -> Result<SafetyCopy, InstanceError> {
        let config = self.config();
        let identity = self.present_data().await?;
        if identity.incarnation == config.incarnation {
            return Ok(SafetyCopy::AlreadyThere);
        }
        self.must_be_down().await?;
        self.end_strays().await?;
        let (from, to) = (config.data_dir.clone(), self.kept_data());
        // Whose copy it is, beside it, so that nothing in the copy is ours.
        let label = config.beside_data("previous-identity");
        if to.exists() && files::read_json(&label).ok().flatten().as_ref() == Some(&identity) {
            return Ok(SafetyCopy::AlreadyThere);
        }
        let unfinished = config.beside_data("previous-unfinished");
        let error = InstanceError::file("make a safety copy of", &from);
        let copying = move |stopped: &AtomicBool, percent: &AtomicU8| {
            for old in [&unfinished, &to] {
                remove_folder(old)?;
            }
            files::remove(&label)?;
            fs::create_dir(&unfinished)?;
            let shares = shares_blocks(&from.join("global/pg_control"), &unfinished)?;
            let copy = Copy { stopped, percent, shares, ..Copy::of(&from, Left::Nothing)? };
            if let Some(NoRoom { needed, free }) = copy.no_room(&from, pool_free)? {
                remove_folder(&unfinished)?;
                return Ok(SafetyCopy::NoRoom { needed, free });
            }
            let made = copy.run(&from, &unfinished);
            if let Err(error) = made {
                // What is left of it would take the room that is missing.
                remove_folder(&unfinished)?;
                return Err(error);
            }
            fs::rename(&unfinished, &to)?;
            files::replace_json(&label, &identity, config.owner(), files::Survives::PowerLoss)?;
            files::sync_parent(&to)?;
            Ok(SafetyCopy::Made { bytes: copy.bytes, shared: copy.shares })
        };
        with_progress(copying, progress).await.map_err(error)
    }

    /// Removes what is kept, if there is anything.
    pub async fn discard_kept_data(&self) -> Result<(), InstanceError> {
        let config = self.config();
        let kept = self.kept_data();
        super::on_disk("remove", &kept.clone(), move || {
            for folder in [kept, config.beside_data("previous-unfinished")] {
                remove_folder(&folder)?;
            }
            files::remove(&config.beside_data("previous-identity")).map(drop)
        })
        .await
    }
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
