//! Room for a pool that is getting full, as long as its group has some: first of all nothing on it may fail a write.

use super::{Inner, METADATA_MAX};
use crate::driver::VolumeError;
use pgstead_lvm::{Health, Percent};
use pgstead_types::Bytes;

/// Well before a pool takes no new volume.
const GROW_FROM: Percent = Percent::whole(70);
/// By so much of what it has, where the group has as much.
const STEP_PERCENT: u64 = 20;

/// What a pool was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Step {
    data: Option<Bytes>,
    metadata: Option<Bytes>,
}

impl Inner {
    /// Gives the pool more of its group where it is getting full; says what it did.
    pub async fn relieve(&self) -> Result<Option<String>, VolumeError> {
        let pool = self.pool().await?;
        // What needs a repair takes nothing, and would be given all.
        let well = matches!(pool.health, Health::Fine | Health::OutOfData);
        if !well || (pool.data_used < GROW_FROM && pool.metadata_used < GROW_FROM) {
            return Ok(None);
        }
        let Some(group) = self.lvm.group(&self.config.group).await? else { return Ok(None) };
        let has = Has { data: pool.size, metadata: pool.metadata_size, free: group.free, extent: group.extent };
        let step = step(&has, pool.data_used >= GROW_FROM, pool.metadata_used >= GROW_FROM);
        let (path, mut done) = (self.path(self.config.pool.clone()), Vec::new());
        // A pool whose metadata is full is broken, one whose data is full only stands still.
        let mut failed = None;
        if let Some(to) = step.metadata {
            match self.lvm.extend_metadata(&path, to).await {
                Ok(()) => done.push(format!("metadata of {to}, which was {} full", pool.metadata_used)),
                Err(error) => failed = Some(error),
            }
        }
        if let Some(to) = step.data {
            let half = Bytes(pool.size.0 + (to.0 - pool.size.0) / 2);
            // Not all that is free may be of use, such as on a disk that takes nothing more.
            for to in [to, half] {
                match self.lvm.extend(&path, to).await {
                    Ok(()) => {
                        done.push(format!("data of {to}, which was {} full", pool.data_used));
                        break;
                    }
                    Err(error) => failed = Some(error),
                }
            }
        }
        match failed {
            Some(error) if done.is_empty() => Err(error.into()),
            _ => Ok((!done.is_empty()).then(|| done.join(" and "))),
        }
    }
}

/// What there is to give, and to whom.
struct Has {
    data: Bytes,
    metadata: Bytes,
    free: Bytes,
    extent: Bytes,
}

fn step(has: &Has, data_is_full: bool, metadata_is_full: bool) -> Step {
    let whole = |bytes: u64| bytes / has.extent.0 * has.extent.0;
    let more = |bytes: u64| whole(bytes / 100 * STEP_PERCENT).max(has.extent.0);
    let mut free = has.free.0;
    let mut step = Step { data: None, metadata: None };
    if metadata_is_full {
        // Its spare copy, for a repair, grows with it.
        let add = more(has.metadata.0 * 2).min(whole(free / 2));
        let to = has.metadata.0.saturating_add(add).min(METADATA_MAX.0);
        if add > 0 && to > has.metadata.0 {
            step.metadata = Some(Bytes(to));
            free = free.saturating_sub(2 * add);
        }
    }
    if data_is_full {
        // The metadata, and its spare, may have to double yet.
        let add = more(has.data.0).min(whole(free.saturating_sub(2 * has.metadata.0)));
        if add > 0 {
            step.data = Some(Bytes(has.data.0.saturating_add(add)));
        }
    }
    step
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn has(free: u64) -> Has {
        Has { data: Bytes(2048 * MIB), metadata: Bytes(16 * MIB), free: Bytes(free * MIB), extent: Bytes(4 * MIB) }
    }

    #[test]
    fn a_pool_grows_by_a_fifth_or_by_what_is_left() {
        let data = |free| step(&has(free), true, false).data.map(|to| to.0 / MIB);
        assert_eq!(data(6000), Some(2048 + 408));
        assert_eq!(data(200), Some(2048 + 168), "its metadata may have to double yet");
        assert_eq!(data(35), None);
        assert_eq!(data(0), None);
    }

    #[test]
    fn metadata_comes_first() {
        let both = step(&has(60), true, true);
        assert_eq!(both.metadata, Some(Bytes((16 + 4) * MIB)));
        assert_eq!(both.data, Some(Bytes((2048 + 20) * MIB)));
        let tight = step(&has(8), true, true);
        assert_eq!((tight.metadata, tight.data), (Some(Bytes(20 * MIB)), None));
        assert_eq!(step(&has(4), false, true).metadata, None);
        let largest = Has { metadata: METADATA_MAX, ..has(6000) };
        assert_eq!(step(&largest, false, true).metadata, None);
    }
}
