//! A disk in memory that can be full, die in the middle of a write, and forget or tear what was not synced.

use redb::StorageBackend;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

const SECTOR: usize = 512;

/// Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct Medium(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// What survives a power cut.
    durable: Vec<u8>,
    /// What a reader sees.
    seen: Vec<u8>,
    unsynced: Vec<Change>,
    full: bool,
    /// Operations that still succeed.
    alive_for: Option<u64>,
}

#[derive(Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

/// How much of what was not synced is on the disk after a power cut.
#[derive(Clone, Copy, Debug)]
pub enum Survives {
    Nothing,
    Everything,
    /// Each 512-byte sector or not, as this seed says.
    SomeSectors(u64),
}

impl Medium {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics while it holds this")
    }
    /// From now on every write fails for want of space.
    pub fn fill_up(&self) {
        self.state().full = true;
    }
    /// The next `operations` writes and syncs succeed, and then nothing does.
    pub fn die_after(&self, operations: u64) {
        self.state().alive_for = Some(operations);
    }
    /// A disk with space and power again, as it would be after a power cut now. This one is dead.
    pub fn after_power_cut(&self, survives: Survives) -> Medium {
        let mut state = self.state();
        state.alive_for = Some(0);
        let mut durable = state.durable.clone();
        let mut random = match survives {
            Survives::SomeSectors(seed) => seed.wrapping_mul(2).wrapping_add(0x9E37_79B9_7F4A_7C15),
            _ => 0,
        };
        let mut kept = || match survives {
            Survives::Nothing => false,
            Survives::Everything => true,
            Survives::SomeSectors(_) => {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random & 1 == 0
            }
        };
        for change in &state.unsynced {
            match change {
                Change::Length(length) => {
                    if kept() {
                        durable.resize(*length, 0);
                    }
                }
                Change::Write(offset, data) => {
                    for (n, sector) in data.chunks(SECTOR).enumerate() {
                        if kept() {
                            put(&mut durable, offset + n * SECTOR, sector);
                        }
                    }
                }
            }
        }
        Medium(Arc::new(Mutex::new(State { seen: durable.clone(), durable, ..State::default() })))
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(data);
}

impl State {
    fn check_write(&mut self) -> io::Result<()> {
        if let Some(left) = &mut self.alive_for {
            if *left == 0 {
                return Err(io::Error::other("the disk is dead"));
            }
            *left -= 1;
        }
        if self.full { Err(io::Error::from(io::ErrorKind::StorageFull)) } else { Ok(()) }
    }
}

impl StorageBackend for Medium {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().seen.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        if state.alive_for == Some(0) {
            return Err(io::Error::other("the disk is dead"));
        }
        let offset = offset as usize;
        let bytes = state.seen.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        state.check_write()?;
        state.seen.resize(len as usize, 0);
        state.unsynced.push(Change::Length(len as usize));
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state();
        state.check_write()?;
        for change in std::mem::take(&mut state.unsynced) {
            match change {
                Change::Length(length) => state.durable.resize(length, 0),
                Change::Write(offset, data) => put(&mut state.durable, offset, &data),
            }
        }
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        state.check_write()?;
        put(&mut state.seen, offset as usize, data);
        state.unsynced.push(Change::Write(offset as usize, data.to_vec()));
        Ok(())
    }
}
