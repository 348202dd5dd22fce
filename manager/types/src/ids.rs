//! Identities. A UUID names a thing for life; names are labels and addresses are never identity.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

/// Not a UUID, or not the identity that was expected here.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not a {kind} id; expected a UUID such as 0192f3a0-7c1e-7000-8000-000000000001")]
pub struct BadId {
    kind: &'static str,
    text: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }
            /// For the simulation and tests, whose identities must repeat.
            pub const fn from_u128(value: u128) -> Self {
                Self(Uuid::from_u128(value))
            }
            pub const fn as_uuid(&self) -> Uuid {
                self.0
            }
            /// 32 hexadecimal digits without hyphens, for names with a length limit.
            pub fn simple(&self) -> String {
                self.0.simple().to_string()
            }
            /// The last 8 hexadecimal digits (the random end of a v7 UUID): for people and short paths, never identity.
            pub fn short(&self) -> String {
                let text = self.simple();
                text[24..].to_string()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}:{}", $kind, self.0)
            }
        }
        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                Uuid::parse_str(text).map(Self).map_err(|_| BadId { kind: $kind, text: text.to_string() })
            }
        }
    };
}

id!(
    /// One installation: one Raft group, one CA.
    DeploymentId, "deployment"
);
id!(
    /// A host that runs the daemon; also its identity in Raft. A node that lost its state joins under a new one.
    NodeId, "node"
);
id!(
    /// One Postgres system and its history.
    ClusterId, "cluster"
);
id!(
    /// One Postgres instance of a cluster, on one node and one volume, through all its incarnations.
    MemberId, "member"
);
id!(
    /// A file system pinned to its node for life.
    VolumeId, "volume"
);
id!(
    /// A volume as it was at one moment.
    SnapshotId, "snapshot"
);
id!(
    /// A long piece of work that can be waited for.
    OperationId, "operation"
);
id!(
    /// A recovery from the permanent loss of most voters; what came before it has none.
    RecoveryId, "recovery"
);
id!(
    /// A join token; the secret itself is never recorded, only its hash.
    TokenId, "token"
);

/// For test suites that number their nodes, as openraft's does.
impl From<u64> for NodeId {
    fn from(number: u64) -> Self {
        Self::from_u128(number.into())
    }
}

/// One life of a member's data. A member that was rewound or cloned has forgotten what it acknowledged, so it
/// comes back under the next number; sync sets, slots and `application_name` name incarnations, never members.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Incarnation {
    pub member: MemberId,
    pub number: u32,
}

impl fmt::Display for Incarnation {
    /// `<member, 32 hex digits>_<number>`: within Postgres' 63 bytes for `application_name` and slot names, and made
    /// of the letters that slot names allow.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.member.simple(), self.number)
    }
}

impl FromStr for Incarnation {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId { kind: "incarnation", text: text.to_string() };
        let (member, number) = text.split_once('_').ok_or_else(bad)?;
        Ok(Self { member: member.parse()?, number: number.parse().map_err(|_| bad())? })
    }
}

impl Serialize for Incarnation {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Incarnation {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incarnation_survives_its_text_form() {
        let one = Incarnation { member: MemberId::from_u128(7), number: 3 };
        assert_eq!(one.to_string().parse::<Incarnation>().unwrap(), one);
        assert!(one.to_string().len() < 64, "application_name is cut at 63 bytes");
    }

    #[test]
    fn a_wrong_id_says_what_was_expected() {
        let error = "app".parse::<ClusterId>().unwrap_err().to_string();
        assert!(error.contains("cluster id") && error.contains("UUID"), "{error}");
    }
}
