//! A secret that cannot be printed by accident.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Text that must not reach logs or errors. It is written in full only where the whole value is stored or sent
/// on purpose (the record, a file of mode 0600, a mutually authenticated connection).
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
    /// The text itself; the call is the place to look for when asking where a secret goes.
    pub fn expose(&self) -> &str {
        &self.0
    }
}
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}
