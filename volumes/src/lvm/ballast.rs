//! A part of a group that its pool gets only when a person says so.

use super::{LvmConfig, tags};
use crate::ballast::BallastError;
use pgstead_lvm::{GroupName, LogicalVolume, LvName, LvPath, Lvm, NewPlainVolume};
use pgstead_types::Bytes;

const NAME: &str = "ballast";

fn name() -> LvName {
    NAME.parse().expect("it is a name that LVM takes")
}

/// Of all that a group has.
pub(super) fn size_among(all: &[LogicalVolume]) -> Bytes {
    let ours = all.iter().find(|held| held.name.as_str() == NAME && tags::is_ballast(held));
    ours.map_or(Bytes(0), |held| held.size)
}

/// Sets so much aside, and no more where there is some already. What the pool's metadata and its spare may yet need stays free.
pub(crate) async fn reserve(config: &LvmConfig, asked: Bytes) -> Result<Bytes, BallastError> {
    let lvm = Lvm::find().await?;
    let group = lvm.group(&config.group).await?;
    let group = group.ok_or_else(|| BallastError::NoPool { place: format!("volume group {}", config.group) })?;
    let all = lvm.volumes(&config.group).await?;
    if let Some(held) = held(&all, &config.group)? {
        return match held.size >= asked {
            true => Ok(held.size),
            false => Err(BallastError::Smaller { has: held.size, asked }),
        };
    }
    if asked > group.free {
        return Err(BallastError::NoRoom { place: format!("volume group {}", config.group), free: group.free, asked });
    }
    make(&lvm, &config.group, asked).await?;
    Ok(size_among(&lvm.volumes(&config.group).await?))
}

pub(super) async fn make(lvm: &Lvm, group: &GroupName, size: Bytes) -> Result<(), pgstead_lvm::LvmError> {
    let path = LvPath { group: group.clone(), name: name() };
    lvm.create_plain_volume(&NewPlainVolume { path, size, tags: tags::of_ballast() }).await
}

/// Gives it back to the group; how much that was.
pub(crate) async fn release(config: &LvmConfig) -> Result<Bytes, BallastError> {
    let lvm = Lvm::find().await?;
    let all = lvm.volumes(&config.group).await?;
    let Some(held) = held(&all, &config.group)? else { return Ok(Bytes(0)) };
    lvm.remove(&held.path()).await?;
    Ok(held.size)
}

/// What has its name is it, or is not touched.
fn held<'a>(all: &'a [LogicalVolume], group: &GroupName) -> Result<Option<&'a LogicalVolume>, BallastError> {
    match all.iter().find(|held| held.name.as_str() == NAME) {
        Some(held) if !tags::is_ballast(held) => {
            Err(BallastError::NotOurs { place: format!("the logical volume {group}/{NAME}") })
        }
        held => Ok(held),
    }
}
