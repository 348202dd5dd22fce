//! What a person asks for. Every field is checked here, before anything is recorded, with one sentence per mistake.

use crate::io_limits::{BadIoLimit, IoLimits};
use crate::placement::{PlacementWeights, REGIONS_MAX};
use crate::replacement::ReplaceAfter;
use crate::schedule::SnapshotSchedule;
use crate::size::VolumeSize;
use crate::slots::WalBudget;
use crate::window::{BadWindow, Window};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The role that consumers of logical slots log in as. No user can make one of that name: Postgres' own checks and
/// [`check_identifier`] keep `pg` for others.
pub const CONSUMER_ROLE: &str = "pgstead_consumer";

/// More members than this make elections slower and nothing safer.
pub const MEMBERS_MAX: u8 = 7;

/// A spec that cannot be. The text is for the person who wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error(
        "{what} {text:?} is not a valid name; expected 1 to 40 characters: lower-case letters, digits and hyphens, \
         beginning with a letter and not ending with a hyphen"
    )]
    BadName { what: &'static str, text: String },
    #[error("a cluster of {asked} members cannot be; expected 1 to {MEMBERS_MAX}")]
    BadMembers { asked: u8 },
    #[error(
        "sync_replicas = {asked} is more than the {standbys} standbys that {members} members leave; expected at most \
         {standbys}: ask for more members or fewer sync_replicas"
    )]
    TooManySyncReplicas { asked: u8, standbys: u8, members: u8 },
    #[error(
        "sync_replicas = 0 with {members} members and durability = {durability} contradict each other: a commit would be \
         acknowledged on one disk alone; expected at least 1"
    )]
    NoSyncReplicas { members: u8, durability: Durability },
    #[error(
        "durability = asynchronous needs no standby, and sync_replicas = {asked} asks for some; leave one of them out"
    )]
    AsynchronousWithReplicas { asked: u8 },
    #[error("the setting {name} belongs to pgstead ({why}); remove it from settings")]
    OwnedSetting { name: String, why: &'static str },
    #[error(
        "{name:?} is not the name of a Postgres setting; expected letters, digits, underscores and one dot at most"
    )]
    BadSetting { name: String },
    #[error("the value of the setting {name} has a line break or a NUL in it; expected one line")]
    BadSettingValue { name: String },
    #[error(
        "database and owner must be Postgres identifiers of lower-case letters, digits and underscores that begin with \
         a letter, up to 63 characters, and not begin with pg; {text:?} is not"
    )]
    BadIdentifier { text: String },
    #[error(
        "slot_wal_budget = {budget} and the setting max_slot_wal_keep_size both say how much log a slot may keep; leave one out"
    )]
    TwoWalBudgets { budget: WalBudget },
    #[error("volume_limit = {limit} is below volume_size = {size}; expected a limit that is not")]
    LimitBelowSize { size: VolumeSize, limit: VolumeSize },
    #[error("{asked} regions are too many; expected at most {REGIONS_MAX}")]
    TooManyRegions { asked: usize },
    #[error(
        "zones_min = {asked} cannot be with {members} members; expected 1 to {members}: ask for more members or fewer zones"
    )]
    BadZonesMin { asked: u8, members: u8 },
    #[error(transparent)]
    BadWindow(#[from] BadWindow),
    #[error(transparent)]
    BadIoLimit(#[from] BadIoLimit),
}

/// What happens to commits when too few standbys are there to have them on disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// They wait. Nothing acknowledged is ever lost while one of the `k + 1` copies is left.
    #[default]
    Strict,
    /// They wait as long as a standby could be back in a moment, and are then acknowledged with fewer, visibly.
    Available,
    /// They never wait for a standby.
    Asynchronous,
}

impl Durability {
    pub const fn as_str(self) -> &'static str {
        match self {
            Durability::Strict => "strict",
            Durability::Available => "available",
            Durability::Asynchronous => "asynchronous",
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A cluster as asked for. Unknown keys are refused.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSpec {
    /// A label, unique in the deployment.
    pub name: String,
    /// Members in all, the leader counted: 1 to 7.
    #[serde(default = "three")]
    pub members: u8,
    /// `k`: standbys that must have a commit on disk before it is acknowledged. Default 1, and 0 for one member.
    #[serde(default)]
    pub sync_replicas: Option<u8>,
    /// What happens when so many standbys are not there.
    #[serde(default)]
    pub durability: Durability,
    /// The database made for the application. Default `app`.
    #[serde(default = "app")]
    pub database: String,
    /// The role that owns it and logs in with a password. Default `app`.
    #[serde(default = "app")]
    pub owner: String,
    /// What becomes of a leader whose Postgres ended while its node is well. The default is not written, so that voters of
    /// the version before can read what does not ask for more.
    #[serde(default, skip_serializing_if = "OnLeaderCrash::is_default")]
    pub on_leader_crash: OnLeaderCrash,
    /// Whether standbys may stream from other standbys. The default is not written, for the same reason.
    #[serde(default, skip_serializing_if = "Cascade::is_none")]
    pub cascade: Cascade,
    /// Postgres settings, as in `postgresql.conf`, without those that the cluster's safety rests on.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// When planned work may disturb clients, in UTC, such as `Sun 02:00-04:00`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance_window: Option<String>,
    /// How much log a replication slot may keep: `auto`, or a size such as `8GB`.
    #[serde(default, skip_serializing_if = "WalBudget::is_default")]
    pub slot_wal_budget: WalBudget,
    /// Whether there are consumers of logical slots: a role of their own, and a `wal_level` for it from the next restart on. From
    /// Postgres 17 on slots that are made for it survive a failover.
    #[serde(default, skip_serializing_if = "is_not")]
    pub logical_replication: bool,
    /// How large members' volumes are made, and grown to, such as `200GB`. Without it the pool decides. None gets smaller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_size: Option<VolumeSize>,
    /// Up to where a volume that has become nearly full grows by itself; without it none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_limit: Option<VolumeSize>,
    /// When snapshots of the leader's volume are taken by themselves: `off`, or such as `every 6h keep 7d`.
    #[serde(default, skip_serializing_if = "SnapshotSchedule::is_off")]
    pub snapshots: SnapshotSchedule,
    /// After how long a member whose node is lost is replaced by a new one on another node: `10m`, or `off`.
    #[serde(default, skip_serializing_if = "ReplaceAfter::is_default")]
    pub replace_after: ReplaceAfter,
    /// Members are placed in these regions only; in any where there are none.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub regions: BTreeSet<String>,
    /// Members are placed so that they are in so many zones at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zones_min: Option<u8>,
    /// Members' volumes are made in pools of this class; in those of the class of each node's first pool where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// How much each term of a node's score counts: some of `latency=10,free=30,health=20,idle=40`.
    #[serde(default, skip_serializing_if = "PlacementWeights::is_default")]
    pub placement_weights: PlacementWeights,
    /// How much each member's Postgres may read and write; without limits as much as its device gives.
    #[serde(default, skip_serializing_if = "IoLimits::is_none")]
    pub io_limits: IoLimits,
}

/// Another member leads at once, or the same one after a restart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnLeaderCrash {
    /// Fastest: a standby is there already.
    #[default]
    Failover,
    /// The crashed leader is preferred where it is back within two seconds, twice in ten minutes at most. For clusters whose
    /// leader has a place that others do not have.
    Restart,
}

impl OnLeaderCrash {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Who feeds standbys that are far from the leader.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cascade {
    /// The leader feeds every standby.
    #[default]
    None,
    /// Outside the leader's zone one standby of a zone streams from the leader, and feeds those of its zone without which the
    /// sync set has at least one standby more than a commit needs.
    Zone,
}

impl Cascade {
    pub const fn as_str(self) -> &'static str {
        match self {
            Cascade::None => "none",
            Cascade::Zone => "zone",
        }
    }
    fn is_none(&self) -> bool {
        *self == Cascade::None
    }
}

impl fmt::Display for Cascade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn is_not(asked: &bool) -> bool {
    !asked
}
fn three() -> u8 {
    3
}
fn app() -> String {
    "app".to_string()
}

impl ClusterSpec {
    /// A spec with every default.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_string(),
            members: three(),
            sync_replicas: None,
            durability: Durability::Strict,
            database: app(),
            owner: app(),
            on_leader_crash: OnLeaderCrash::default(),
            cascade: Cascade::default(),
            settings: BTreeMap::new(),
            maintenance_window: None,
            slot_wal_budget: WalBudget::Auto,
            logical_replication: false,
            volume_size: None,
            volume_limit: None,
            snapshots: SnapshotSchedule::Off,
            replace_after: ReplaceAfter::default(),
            regions: BTreeSet::new(),
            zones_min: None,
            storage_class: None,
            placement_weights: PlacementWeights::default(),
            io_limits: IoLimits::default(),
        }
    }

    /// The maintenance window, if there is one.
    pub fn window(&self) -> Result<Option<Window>, BadWindow> {
        self.maintenance_window.as_deref().map(str::parse).transpose()
    }

    /// `k`, with the default filled in.
    pub fn needed(&self) -> u8 {
        match self.durability {
            Durability::Asynchronous => 0,
            Durability::Strict | Durability::Available => self.sync_replicas.unwrap_or(u8::from(self.members > 1)),
        }
    }

    /// A Postgres setting, by its name in any case.
    pub fn setting(&self, name: &str) -> Option<&str> {
        let named = self.settings.iter().find(|(held, _)| held.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str())
    }

    /// A leader of several members that acknowledges alone. A cluster of one acknowledges alone too, and has nobody to
    /// fail over to.
    pub fn is_asynchronous(&self) -> bool {
        self.durability == Durability::Asynchronous && self.members > 1
    }

    /// Everything that can be said without knowing the nodes.
    pub fn check(&self) -> Result<(), SpecError> {
        check_name("cluster name", &self.name)?;
        if self.members == 0 || self.members > MEMBERS_MAX {
            return Err(SpecError::BadMembers { asked: self.members });
        }
        let standbys = self.members - 1;
        if self.needed() > standbys {
            return Err(SpecError::TooManySyncReplicas { asked: self.needed(), standbys, members: self.members });
        }
        match (self.durability, self.sync_replicas) {
            (Durability::Asynchronous, Some(asked)) if asked > 0 => {
                return Err(SpecError::AsynchronousWithReplicas { asked });
            }
            (Durability::Strict | Durability::Available, _) if standbys > 0 && self.needed() == 0 => {
                return Err(SpecError::NoSyncReplicas { members: self.members, durability: self.durability });
            }
            (Durability::Strict | Durability::Available | Durability::Asynchronous, _) => {}
        }
        check_identifier(&self.database)?;
        check_identifier(&self.owner)?;
        self.window()?;
        self.io_limits.check()?;
        self.check_placement()?;
        if self.slot_wal_budget != WalBudget::Auto && self.setting("max_slot_wal_keep_size").is_some() {
            return Err(SpecError::TwoWalBudgets { budget: self.slot_wal_budget });
        }
        if let (Some(size), Some(limit)) = (self.volume_size, self.volume_limit)
            && limit < size
        {
            return Err(SpecError::LimitBelowSize { size, limit });
        }
        if self.logical_replication && self.setting(FEEDBACK).is_some() {
            let why = "without it a leader removes rows that standbys' copies of logical slots need";
            return Err(SpecError::OwnedSetting { name: FEEDBACK.to_string(), why });
        }
        self.settings.iter().try_for_each(|(name, value)| check_setting(name, value))
    }
}

/// A label: short, lower case, safe in a path, a URL and a DNS name.
pub fn check_name(what: &'static str, text: &str) -> Result<(), SpecError> {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let good = (1..=40).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
        && text.chars().all(letters);
    if good { Ok(()) } else { Err(SpecError::BadName { what, text: text.chars().take(80).collect() }) }
}

fn check_identifier(text: &str) -> Result<(), SpecError> {
    let good = (1..=63).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !text.starts_with("pg")
        && !["postgres", "template0", "template1", "public", "user", "all", "replication"].contains(&text);
    if good { Ok(()) } else { Err(SpecError::BadIdentifier { text: text.chars().take(80).collect() }) }
}

/// Ours where there is logical replication. Else it is for people who read from standbys.
const FEEDBACK: &str = "hot_standby_feedback";

/// Settings that pgstead derives itself, or whose change would lose acknowledged commits, each with why.
const OWNED: &[(&str, &str)] = &[
    ("fsync", "without it a crash loses acknowledged commits"),
    ("full_page_writes", "without it a crash corrupts pages"),
    ("synchronous_standby_names", "it follows the recorded sync set"),
    ("synchronous_commit", "it decides what acknowledged means; set it per session or role if you must"),
    ("primary_conninfo", "it follows the recorded leader"),
    ("primary_slot_name", "it follows the recorded leader"),
    ("restore_command", "a streaming member has none: it would delay a promotion"),
    ("archive_mode", "archiving is not offered by this version"),
    ("archive_command", "archiving is not offered by this version"),
    ("archive_library", "archiving is not offered by this version"),
    ("recovery_target_timeline", "members follow the recorded history"),
    ("recovery_target", "members follow the recorded history"),
    ("recovery_target_lsn", "members follow the recorded history"),
    ("recovery_target_name", "members follow the recorded history"),
    ("recovery_target_time", "members follow the recorded history"),
    ("recovery_target_xid", "members follow the recorded history"),
    ("recovery_target_action", "members follow the recorded history"),
    ("restart_after_crash", "a crash must end the postmaster, so that unacknowledged commits stay hidden"),
    ("hot_standby", "members are observed through it"),
    ("wal_level", "logical_replication of the spec says it"),
    ("wal_log_hints", "rewinding needs it"),
    ("max_wal_senders", "replication needs them"),
    ("wal_retrieve_retry_interval", "a long one delays promotions"),
    ("wal_receiver_timeout", "detection rests on it"),
    ("wal_sender_timeout", "detection rests on it"),
    ("wal_receiver_status_interval", "detection rests on it"),
    ("cluster_name", "it names the member's incarnation"),
    ("data_directory", "it is the member's volume"),
    ("hba_file", "access follows the recorded state"),
    ("ident_file", "access follows the recorded state"),
    ("config_file", "it is written by pgstead"),
    ("include", "it could change any of the others"),
    ("include_dir", "it could change any of the others"),
    ("include_if_exists", "it could change any of the others"),
    ("external_pid_file", "it is the guard's business"),
    ("listen_addresses", "it is the node's address"),
    ("port", "it is recorded per cluster"),
    ("unix_socket_directories", "it is the node's"),
    ("unix_socket_permissions", "it is the node's"),
    ("unix_socket_group", "it is the node's"),
    ("ssl", "connections are always encrypted"),
    ("ssl_ca_file", "it is the cluster's"),
    ("ssl_cert_file", "it is the cluster's"),
    ("ssl_key_file", "it is the cluster's"),
    ("password_encryption", "logins use SCRAM"),
    ("logging_collector", "the guard keeps the log"),
    ("log_destination", "the guard keeps the log"),
    ("max_replication_slots", "replication needs them"),
    ("sync_replication_slots", "it follows logical_replication"),
    ("synchronized_standby_slots", "it follows the recorded sync set"),
    ("data_sync_retry", "after a failed sync, trying again would acknowledge what is lost"),
    ("zero_damaged_pages", "it hides corruption"),
    ("ignore_invalid_pages", "it hides corruption"),
    ("ignore_checksum_failure", "it hides corruption"),
    ("allow_alter_system", "settings are recorded, not edited"),
];

fn check_setting(name: &str, value: &str) -> Result<(), SpecError> {
    let good = (1..=63).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
        && name.matches('.').count() <= 1;
    if !good {
        return Err(SpecError::BadSetting { name: name.chars().take(80).collect() });
    }
    // Postgres ignores the case of setting names.
    let lower = name.to_ascii_lowercase();
    if lower.starts_with("pgstead.") {
        return Err(SpecError::OwnedSetting { name: lower, why: "pgstead talks to its own Postgres by it" });
    }
    if let Some((_, why)) = OWNED.iter().find(|(owned, _)| *owned == lower) {
        return Err(SpecError::OwnedSetting { name: lower, why });
    }
    if value.contains(['\n', '\r', '\0']) {
        return Err(SpecError::BadSettingValue { name: lower });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_spec_is_three_members_and_one_acknowledgement() {
        let spec = ClusterSpec::named("app");
        spec.check().unwrap();
        assert_eq!((spec.members, spec.needed()), (3, 1));
    }

    #[test]
    fn refuses_more_acknowledgements_than_standbys() {
        let spec = ClusterSpec { sync_replicas: Some(3), ..ClusterSpec::named("app") };
        assert!(matches!(spec.check(), Err(SpecError::TooManySyncReplicas { asked: 3, standbys: 2, .. })));
    }

    #[test]
    fn rows_that_copies_of_slots_need_are_not_for_a_setting_to_decide() {
        let mut spec = ClusterSpec::named("app");
        spec.settings.insert("Hot_Standby_Feedback".to_string(), "off".to_string());
        spec.check().unwrap();
        spec.logical_replication = true;
        assert!(matches!(spec.check(), Err(SpecError::OwnedSetting { .. })));
    }

    #[test]
    fn refuses_settings_that_safety_rests_on_in_any_case() {
        let mut spec = ClusterSpec::named("app");
        spec.settings.insert("FSYNC".to_string(), "off".to_string());
        assert!(matches!(spec.check(), Err(SpecError::OwnedSetting { .. })));
    }

    #[test]
    fn refuses_names_that_would_surprise_a_path_or_a_shell() {
        for name in ["", "App", "1app", "app-", "a/b", "a b", "ä", &"a".repeat(41)] {
            assert!(check_name("cluster name", name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn durability_is_strict_unless_said_otherwise_and_named_in_snake_case() {
        let spec: ClusterSpec = serde_json::from_str(r#"{"name":"app"}"#).unwrap();
        assert_eq!(spec.durability, Durability::Strict);
        let spec: ClusterSpec = serde_json::from_str(r#"{"name":"app","durability":"asynchronous"}"#).unwrap();
        assert_eq!((spec.durability, spec.needed()), (Durability::Asynchronous, 0));
        assert_eq!((spec.check(), spec.is_asynchronous()), (Ok(()), true));
        let both = ClusterSpec { sync_replicas: Some(1), ..spec };
        assert_eq!(both.check(), Err(SpecError::AsynchronousWithReplicas { asked: 1 }));
    }

    #[test]
    fn no_sync_replica_under_a_synchronous_durability_is_refused() {
        let spec = ClusterSpec { sync_replicas: Some(0), ..ClusterSpec::named("app") };
        assert!(matches!(spec.check(), Err(SpecError::NoSyncReplicas { members: 3, .. })));
    }

    #[test]
    fn a_wal_budget_is_said_once_and_written_only_where_it_was() {
        let mut spec: ClusterSpec = serde_json::from_str(r#"{"name":"app","slot_wal_budget":"8GB"}"#).unwrap();
        assert_eq!(spec.check(), Ok(()));
        assert_eq!(serde_json::to_value(&spec).unwrap()["slot_wal_budget"], "8GB");
        spec.settings.insert("Max_Slot_Wal_Keep_Size".into(), "4GB".into());
        assert!(matches!(spec.check(), Err(SpecError::TwoWalBudgets { .. })));
        // Voters of the version before read what does not ask for more.
        assert!(!serde_json::to_string(&ClusterSpec::named("app")).unwrap().contains("slot_wal_budget"));
        assert!(serde_json::from_str::<ClusterSpec>(r#"{"name":"app","slot_wal_budget":"8"}"#).is_err());
    }

    #[test]
    fn a_volumes_limit_is_not_below_its_size() {
        let text = r#"{"name":"app","volume_size":"200GB","volume_limit":"1TB"}"#;
        let spec: ClusterSpec = serde_json::from_str(text).unwrap();
        assert_eq!(spec.check(), Ok(()));
        let less = ClusterSpec { volume_limit: "199GB".parse().ok(), ..spec };
        assert!(matches!(less.check(), Err(SpecError::LimitBelowSize { .. })));
        assert!(!serde_json::to_string(&ClusterSpec::named("app")).unwrap().contains("volume"));
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(serde_json::from_str::<ClusterSpec>(r#"{"name":"app","replicas":3}"#).is_err());
    }
}
