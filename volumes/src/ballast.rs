//! Room that is set aside while there is some, and given back by a person when a pool is full: the time to find out what fills it.

use crate::dir::{self, DirConfig};
use crate::lvm::{self, LvmConfig};
use pgstead_lvm::LvmError;
use pgstead_types::Bytes;
use std::io;
use std::path::PathBuf;

/// Why nothing is set aside or given back. The text is for the person who asked for it.
#[derive(Debug, thiserror::Error)]
pub enum BallastError {
    #[error(transparent)]
    Lvm(#[from] LvmError),
    #[error("cannot change {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("there is no {place}")]
    NoPool { place: String },
    #[error(
        "{place} has {free} free, and {asked} of ballast cannot be taken of that; ask for less, or give it more disks"
    )]
    NoRoom { place: String, free: Bytes, asked: Bytes },
    #[error("there are {has} of ballast already, and {asked} were asked for; release that first")]
    Smaller { has: Bytes, asked: Bytes },
    #[error("{place} has the name of the ballast and is not ours; it is left alone")]
    NotOurs { place: String },
}

/// Sets so much of a folder's disk aside. As often as it is called there is so much; beside a daemon that uses the pool.
pub async fn reserve_in_dir(pool: DirConfig, size: Bytes) -> Result<Bytes, BallastError> {
    let path = pool.path.clone();
    let made = tokio::task::spawn_blocking(move || dir::ballast::reserve(&pool, size)).await;
    made.map_err(|error| BallastError::Io { path, source: io::Error::other(error) })?
}

/// Sets so much of a group aside.
pub async fn reserve_in_group(pool: &LvmConfig, size: Bytes) -> Result<Bytes, BallastError> {
    lvm::ballast::reserve(pool, size).await
}

/// Gives a folder's disk back what was set aside; how much that was.
pub fn release_in_dir(pool: &DirConfig) -> Result<Bytes, BallastError> {
    dir::ballast::release(pool)
}

/// Gives a group back what was set aside. Its pool takes of it when it is relieved next.
pub async fn release_in_group(pool: &LvmConfig) -> Result<Bytes, BallastError> {
    lvm::ballast::release(pool).await
}
