//! A new key for what is encrypted: each volume, snapshot and removed volume is given the newest one, which has to open it before an older
//! one is taken away. Its tag says which key it was given last, and changes after its header: whoever is killed in between does it again.

use super::keys::Key;
use super::tags::{self, Layout, Unreadable};
use super::{Inner, LvmDriver, luks, unusable, whole};
use crate::driver::{KeysSeen, VolumeError};
use crate::entry::Entry;
use pgstead_lvm::{LogicalVolume, LvName};
use pgstead_types::VolumeId;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// More than a header has room for.
const SLOTS_MAX: usize = 32;

/// Something encrypted in the pool.
struct Encrypted {
    name: LvName,
    /// Its own, or that of the volume that it is a snapshot of.
    id: VolumeId,
    key: u32,
    in_use: bool,
}

impl LvmDriver {
    /// What cannot be changed keeps nothing else from it.
    pub(super) async fn tend_keys(&self, headers: &Path) -> Result<KeysSeen, VolumeError> {
        let keys = self.inner.all_keys().await?;
        let (all, unread) = self.inner.encrypted().await?;
        let locked = self.inner.locked(&all, &keys).await?;
        let mut seen = KeysSeen { encrypted: all.len(), locked, ..KeysSeen::default() };
        let Some(newest) = keys.first() else { return Ok(seen) };
        seen.newest = Some(newest.number);
        for one in &all {
            if one.key == newest.number {
                continue;
            }
            if seen.changed {
                seen.pending += 1;
                continue;
            }
            let (inner, keys, name, id) = (Arc::clone(&self.inner), keys.clone(), one.name.clone(), one.id);
            match whole(async move { inner.give_key(&name, id, &keys).await }).await {
                Ok(()) => seen.changed = true,
                Err(error) => {
                    seen.pending += 1;
                    seen.fails.push((one.name.to_string(), error));
                }
            }
        }
        if seen.pending == 0 && unread == 0 {
            seen.not_needed = keys[1..].iter().map(|key| key.path.clone()).collect();
        }
        if !seen.changed {
            let volumes = all.iter().filter(|one| one.in_use).map(|one| (one.id, one.key)).collect();
            let (inner, headers) = (Arc::clone(&self.inner), headers.to_path_buf());
            seen.headers_fail = whole(async move { inner.save_headers(&headers, volumes).await }).await.err();
        }
        Ok(seen)
    }
}

impl Inner {
    /// And how many of ours cannot be read, of which nobody knows which key they need.
    async fn encrypted(&self) -> Result<(Vec<Encrypted>, usize), VolumeError> {
        let (mut all, mut unread) = (Vec::new(), 0);
        for held in self.lvm.volumes(&self.config.group).await? {
            match tags::read_encrypted(&held) {
                Ok(Some((id, Layout { key: Some(key), .. }))) => {
                    let in_use = held.active && matches!(tags::entry(&held), Some(Entry::Volume(_)));
                    all.push(Encrypted { name: held.name, id, key, in_use });
                }
                Ok(_) => {}
                Err(Unreadable(_)) => unread += 1,
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok((all, unread))
    }

    /// Those that were made active to be opened, and were not.
    async fn locked(&self, all: &[Encrypted], keys: &[Key]) -> Result<Vec<VolumeError>, VolumeError> {
        let mut locked = Vec::new();
        for one in all.iter().filter(|one| one.in_use) {
            let device = self.path(one.name.clone()).device();
            if luks::find(luks::name(one.id)).await?.is_none() && self.one_that_opens(&device, keys).await?.is_none() {
                locked.push(self.no_key(one.id, one.key));
            }
        }
        Ok(locked)
    }

    async fn give_key(&self, name: &LvName, id: VolumeId, keys: &[Key]) -> Result<(), VolumeError> {
        let turn = self.turn(id);
        let _turn = turn.lock().await;
        let path = self.path(name.clone());
        // It may be another one by now, or gone.
        let Some(held) = self.lvm.volume(&path).await? else { return Ok(()) };
        let Ok(Some((_, Layout { key: Some(had), .. }))) = tags::read_encrypted(&held) else { return Ok(()) };
        let newest = &keys[0];
        if had == newest.number {
            return Ok(());
        }
        let is_snapshot = tags::snapshot_entry(&held).is_some();
        if held.read_only {
            self.lvm.set_writable(&path, true).await?;
        }
        if !held.active {
            self.lvm.activate(&path).await?;
        }
        let changed = self.change_key(&held, id, had, keys).await;
        // As it was, before its tag says that nothing is to be done.
        if !matches!(tags::entry(&held), Some(Entry::Volume(_))) {
            self.lvm.deactivate(&path).await?;
        }
        if is_snapshot {
            self.lvm.set_writable(&path, false).await?;
        }
        changed?;
        let tag = |number| BTreeSet::from([tags::key_tag(number)]);
        self.lvm.change_tags(&path, &tag(newest.number), &tag(had)).await?;
        tracing::info!(volume = %name, key = newest.number, "what is encrypted has a new key");
        Ok(())
    }

    /// Each key is taken away by one that was seen to open it.
    async fn change_key(&self, held: &LogicalVolume, id: VolumeId, had: u32, keys: &[Key]) -> Result<(), VolumeError> {
        let device = held.path().device();
        let [newest, older @ ..] = keys else { return Ok(()) };
        let slot = match luks::slot_of(&device, newest).await? {
            Some(slot) => slot,
            None => {
                let with = self.one_that_opens(&device, older).await?.ok_or_else(|| self.no_key(id, had))?;
                luks::add_key(&device, with, newest).await?;
                let slot = luks::slot_of(&device, newest).await?;
                slot.ok_or_else(|| {
                    unusable(id, "it was given a new key, which does not open it; it keeps the one that it had")
                })?
            }
        };
        for key in older {
            // One and the same key may have been given twice.
            for _ in 0..SLOTS_MAX {
                match luks::slot_of(&device, key).await? {
                    Some(old) if old != slot => luks::kill_slot(&device, newest, old).await?,
                    _ => break,
                }
            }
        }
        Ok(())
    }

    async fn one_that_opens<'a>(&self, device: &Path, keys: &'a [Key]) -> Result<Option<&'a Key>, VolumeError> {
        for key in keys {
            if luks::slot_of(device, key).await?.is_some() {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }
}
