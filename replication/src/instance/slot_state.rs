//! The state of a slot as Postgres 15 and 16 keep it in `pg_replslot/<name>/state`: `ReplicationSlotOnDisk` of `slot.c`, whose
//! fields up to the position are where they were in both. Postgres ends its start over a file that is not right, so it is checked
//! before it is written anywhere.

use pgstead_types::Lsn;

/// Of what is not covered by the checksum, the version and the length.
const HEAD_BYTES: usize = 16;
const MAGIC: u32 = 0x0105_1CA1;
/// 200 in both versions; a longer file is no slot's.
pub const STATE_BYTES_MAX: usize = 4096;

/// What a copy must know of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotState {
    pub name: String,
    pub restart: Lsn,
    pub confirmed: Lsn,
}

impl SlotState {
    /// `None` for what is no whole, persistent, logical slot of this machine's byte order.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let lsn = |at: usize| Some(Lsn(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?)));
        let whole = word(0)? == MAGIC && usize::try_from(word(12)?).ok()? == bytes.len().checked_sub(HEAD_BYTES)?;
        let (database, persistency) = (word(80)?, word(84)?);
        if !whole || word(4)? != crc32c(&bytes[8..]) || database == 0 || persistency != 0 {
            return None;
        }
        let name = bytes[HEAD_BYTES..80].split(|byte| *byte == 0).next()?;
        let name = String::from_utf8(name.to_vec()).ok().filter(|name| is_slot_name(name))?;
        Some(Self { name, restart: lsn(96)?, confirmed: lsn(112)? })
    }
}

/// What Postgres allows, and what no path or statement is bent by.
pub fn is_slot_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    (1..=63).contains(&name.len()) && name.bytes().all(fits)
}

/// CRC-32C, as Postgres has it for its files.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Postgres 15 wrote for a slot `warehouse` of `test_decoding`.
    fn written() -> Vec<u8> {
        let mut bytes = vec![0; 200];
        let head = [0xa1, 0x1c, 0x05, 0x01, 0x2f, 0x81, 0x76, 0x09, 2, 0, 0, 0, 0xb8, 0, 0, 0];
        bytes[..16].copy_from_slice(&head);
        bytes[16..25].copy_from_slice(b"warehouse");
        bytes[80] = 5;
        bytes[92..94].copy_from_slice(&[0xd4, 0x02]);
        bytes[96..100].copy_from_slice(&[0xc8, 0x07, 0x50, 0x01]);
        bytes[112..116].copy_from_slice(&[0x00, 0x08, 0x50, 0x01]);
        bytes[129..142].copy_from_slice(b"test_decoding");
        bytes
    }

    #[test]
    fn a_state_that_postgres_wrote_is_read() {
        let name = "warehouse".to_string();
        let state = SlotState { name, restart: Lsn(0x150_07C8), confirmed: Lsn(0x150_0800) };
        assert_eq!(SlotState::parse(&written()), Some(state));
    }

    #[test]
    fn what_would_end_a_start_is_refused() {
        let written = written();
        assert_eq!(SlotState::parse(&written[..199]), None, "cut short");
        assert_eq!(SlotState::parse(&[]), None);
        for at in [0, 5, 9, 13, 20, 80, 97, 130] {
            let mut changed = written.clone();
            changed[at] ^= 1;
            assert_eq!(SlotState::parse(&changed), None, "byte {at}");
        }
    }

    #[test]
    fn a_name_is_never_a_path() {
        for name in ["", ".", "..", "a/b", "A", "a'b", &"a".repeat(64)] {
            assert!(!is_slot_name(name), "{name}");
        }
        assert!(is_slot_name("warehouse_2"));
    }
}
