//! What a name in a pool stands for, with every driver: only the prefixes differ.

use pgstead_types::VolumeId;

/// Names that are none of these are not ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    Volume(VolumeId),
    /// Being made; it never held data.
    Unfinished(VolumeId),
    Trash(VolumeId),
}

/// How a driver's names begin.
pub struct Prefixes {
    pub volume: &'static str,
    pub unfinished: &'static str,
    pub trash: &'static str,
}

impl Prefixes {
    pub fn parse(&self, name: &str) -> Option<Entry> {
        if let Some(rest) = name.strip_prefix(self.unfinished) {
            return exact(rest).map(Entry::Unfinished);
        }
        if let Some(rest) = name.strip_prefix(self.trash) {
            let (id, number) = rest.rsplit_once('-')?;
            number.parse::<u32>().ok()?;
            return exact(id).map(Entry::Trash);
        }
        exact(name.strip_prefix(self.volume)?).map(Entry::Volume)
    }
    pub fn volume(&self, id: VolumeId) -> String {
        format!("{}{id}", self.volume)
    }
    pub fn unfinished(&self, id: VolumeId) -> String {
        format!("{}{id}", self.unfinished)
    }
    pub fn trash(&self, id: VolumeId, number: u32) -> String {
        format!("{}{id}-{number}", self.trash)
    }
}

/// Only the one spelling that we write: other forms of the same UUID would be a second name for one volume.
fn exact(text: &str) -> Option<VolumeId> {
    text.parse::<VolumeId>().ok().filter(|id| id.to_string() == text)
}
