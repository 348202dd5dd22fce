//! Backups of what a pool knows of itself, for a person who mends it (docs/operating/repair.md): LVM's description of the group, and the
//! thin pool's own metadata, without which nobody knows what block belongs to which volume.

mod kept;

use super::{Inner, blocking};
use crate::driver::{BackedUp, VolumeError};
use kept::Kept;
use pgstead_types::Bytes;
use pgstead_types::storage::PoolState;
use std::path::Path;
use std::time::Duration;

/// It reads all of the pool's metadata, which has 16 GiB at most, beside what Postgres reads and writes.
const DUMP_DEADLINE: Duration = Duration::from_secs(1800);

impl Inner {
    pub async fn back_up(&self, to: &Path) -> Result<BackedUp, VolumeError> {
        let not_now = |why: String| VolumeError::NotBackedUp { pool: self.pool_path(), why };
        match self.pool().await?.state() {
            PoolState::Fine | PoolState::NearlyFull { .. } => {}
            // What is damaged must not take the place of what is good, and what is full needs all that is deleted at once.
            PoolState::Full { why } | PoolState::Brimming { why } | PoolState::Unwell { why } => {
                return Err(not_now(why));
            }
        }
        let kept = Kept::new(to);
        let pool = self.path(self.config.pool.clone());
        if self.lvm.holds_metadata(&pool).await? {
            if !kept.was_cut_short() {
                return Err(not_now(format!(
                    "another program holds the pool's metadata; when it has ended: dmsetup message {} 0 release_metadata_snap",
                    self.lvm.pool_device(&pool).await?
                )));
            }
            self.lvm.release_metadata(&pool).await?;
        }
        let begun = kept.clone();
        // On disk before the metadata is held: only by this does the next attempt know that it was ours.
        let most = blocking(move || begun.begin()).await?.map_err(not_now)?;
        let written = self.write(&kept, most).await;
        // What is still held is released by the next attempt, which has to find this one.
        if written.is_err() && self.lvm.holds_metadata(&pool).await.is_ok_and(|held| !held) {
            let begun = kept.clone();
            blocking(move || begun.discard()).await?;
        }
        written?;
        blocking(move || kept.finish()).await
    }

    async fn write(&self, kept: &Kept, most: Bytes) -> Result<(), VolumeError> {
        self.lvm.back_up_group(&self.config.group, &kept.group()).await?;
        let pool = self.path(self.config.pool.clone());
        self.lvm.hold_metadata(&pool).await?;
        let dumped = self.lvm.dump_metadata(&pool, &kept.mappings(), most, DUMP_DEADLINE).await;
        let released = self.lvm.release_metadata(&pool).await;
        if dumped.is_err() && kept.mappings_size() >= most {
            let why = format!(
                "the text of its metadata is larger than {most}, which is what may be taken of {}",
                kept.folder().display()
            );
            return Err(VolumeError::NotBackedUp { pool: self.pool_path(), why });
        }
        dumped?;
        released?;
        let blocks = self.pool().await?.blocks;
        let kept = kept.clone();
        blocking(move || kept.note_blocks(blocks)).await
    }
}
