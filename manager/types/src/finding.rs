//! An observed fact that explains what the controller or an agent does or does not do.

use crate::ids::{ClusterId, MemberId, NodeId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How much a person should care.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Explains what goes on.
    Info,
    /// Odd, and handled.
    Warning,
    /// A person must look.
    Error,
}

/// One finding. The code is stable and documented; the message says what is wrong, what was expected, what happens next.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Finding {
    pub severity: Severity,
    /// In snake case, such as `leader_lost` or `promise_missing`.
    pub code: String,
    pub message: String,
    #[serde(default)]
    pub cluster: Option<ClusterId>,
    #[serde(default)]
    pub member: Option<MemberId>,
    #[serde(default)]
    pub node: Option<NodeId>,
}

impl Finding {
    pub fn new(severity: Severity, code: &str, message: impl Into<String>) -> Self {
        Self { severity, code: code.to_string(), message: message.into(), cluster: None, member: None, node: None }
    }
    pub fn info(code: &str, message: impl Into<String>) -> Self {
        Self::new(Severity::Info, code, message)
    }
    pub fn warning(code: &str, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, code, message)
    }
    pub fn error(code: &str, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, code, message)
    }
    pub fn on_cluster(mut self, cluster: ClusterId) -> Self {
        self.cluster = Some(cluster);
        self
    }
    pub fn on_member(mut self, member: MemberId) -> Self {
        self.member = Some(member);
        self
    }
    pub fn on_node(mut self, node: NodeId) -> Self {
        self.node = Some(node);
        self
    }
}
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}
