//! Everything that can be typed. The texts are the manual.

mod io_limits;
mod placement;

pub use io_limits::IoLimitArgs;
pub use placement::{ExplainArgs, PlacementArgs, PlacementCommands};

use clap::{Args, Subcommand, ValueEnum};
use pgstead_api::parse_duration;
use pgstead_types::placement::PlacementWeights;
use pgstead_types::replacement::ReplaceAfter;
use pgstead_types::schedule::SnapshotSchedule;
use pgstead_types::size::VolumeSize;
use pgstead_types::slots::WalBudget;
use pgstead_types::spec::{Cascade, Durability};
use pgstead_types::{OperationId, SnapshotId, VolumeId};
use std::path::PathBuf;
use std::time::Duration;

/// Options of every command.
#[derive(Args, Clone, Debug, Default)]
pub struct GlobalArgs {
    /// The file with the servers, the CA and the admin token [default: ~/.config/pgstead/profile.json]
    #[arg(long, global = true, env = "PGSTEAD_PROFILE", value_name = "FILE", help_heading = "Global options")]
    pub profile: Option<PathBuf>,
    /// Tables for people, or the API's JSON for programs
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORM", help_heading = "Global options")]
    pub output: Output,
}

#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    #[default]
    Table,
    Json,
}

#[derive(Subcommand, Clone, Debug)]
pub enum Commands {
    /// Show how the whole deployment is
    Status,
    /// Create, show, change and delete clusters
    #[command(subcommand)]
    Cluster(ClusterCommands),
    /// Make tokens with which hosts join
    #[command(subcommand)]
    Token(TokenCommands),
    /// Show members
    #[command(subcommand)]
    Member(MemberCommands),
    /// Show volumes, and remove those that no member has
    #[command(subcommand)]
    Volume(VolumeCommands),
    /// Take, show and remove snapshots of members' volumes
    #[command(subcommand)]
    Snapshot(SnapshotCommands),
    /// Show where members go, and why not elsewhere
    #[command(subcommand)]
    Placement(PlacementCommands),
    /// Show long work and wait for it
    #[command(subcommand)]
    Operation(OperationCommands),
    /// Show what happened, and follow along
    Events(EventsArgs),
    /// Open psql on a cluster
    Psql(PsqlArgs),
}

#[derive(Subcommand, Clone, Debug)]
pub enum ClusterCommands {
    /// Create a cluster and wait until it serves
    #[command(after_help = "Examples:\n  pgstead cluster create app\n  pgstead cluster create app --members 5 \
        --sync-replicas 2 --set max_connections=200\n  pgstead cluster create app --file app.toml")]
    Create(CreateArgs),
    /// Make a cluster that begins with the data of another one, as it is now or was at a snapshot, and wait until it serves. It has
    /// passwords, certificates and timelines of its own, no slots, and its subscriptions stand still
    #[command(
        after_help = "Examples:\n  pgstead cluster fork app app-test\n  pgstead cluster fork app app-test --member app-2 \
        --members 3\n  pgstead cluster fork app yesterday --snapshot 0193…"
    )]
    Fork(ForkArgs),
    /// Go back to what the cluster was at a snapshot. A cluster is made from it, with as many members, and takes this one's place: name,
    /// connection strings, passwords. Until then this one serves; then it is kept under another name and takes no clients. What was
    /// written after the snapshot is there alone
    #[command(
        after_help = "Examples:\n  pgstead cluster rollback app --to 0193…\n  pgstead cluster rollback app --undo\n  pgstead cluster \
        rollback app --cancel"
    )]
    Rollback(RollbackArgs),
    /// List clusters
    List,
    /// Show one cluster and why it is as it is
    Show {
        /// Name or id
        #[arg(value_name = "CLUSTER")]
        name: String,
    },
    /// Delete a cluster with all its data
    Delete {
        /// Name or id
        #[arg(value_name = "CLUSTER")]
        name: String,
        /// Do not ask to type the name
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Change how many members there are, how many standbys a commit needs, what happens without them, how much log a slot may
    /// keep, and how large volumes are, while the cluster runs
    #[command(after_help = "Examples:\n  pgstead cluster update app --members 5 --sync-replicas 2\n  \
        pgstead cluster update app --durability available\n  pgstead cluster update app --slot-wal-budget 20GB\n  pgstead cluster update app --volume-size 400GB --volume-limit 1TB")]
    Update(UpdateArgs),
    /// Restart every member, standbys first, one at a time
    Restart {
        /// Name or id
        #[arg(value_name = "CLUSTER")]
        name: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Change the leader in a planned way; nothing acknowledged is lost
    #[command(
        after_help = "Examples:\n  pgstead cluster switchover app --dry-run\n  pgstead cluster switchover app --to \
        app-2 --at 2026-11-29T02:00:00Z\n  pgstead cluster switchover app --in-window\n  pgstead cluster switchover app --undo"
    )]
    Switchover(SwitchoverArgs),
    /// Make a member lead although too few can promise that nothing is lost: shows what may be lost, and does it only
    /// with --accept-data-loss
    Failover(FailoverArgs),
    /// Print connection strings, with the password
    Connection {
        /// Name or id
        #[arg(value_name = "CLUSTER")]
        name: String,
        /// Print the cluster's CA alone, for `> ca.pem`
        #[arg(long)]
        ca: bool,
    },
}

#[derive(Args, Clone, Debug)]
pub struct SwitchoverArgs {
    /// Name or id
    #[arg(value_name = "CLUSTER")]
    pub name: String,
    /// The member to lead next; the closest standby if absent
    #[arg(long, value_name = "MEMBER")]
    pub to: Option<String>,
    /// Show everything that blocks it, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Begin at this time, in RFC 3339 with an offset; given up if it cannot begin within 5 minutes
    #[arg(long, value_name = "TIME", conflicts_with_all = ["dry_run", "timeout"])]
    pub at: Option<String>,
    /// Begin in the next maintenance window of the cluster's spec, and not outside of it
    #[arg(long, conflicts_with_all = ["at", "dry_run", "timeout"])]
    pub in_window: bool,
    /// Take back one that was asked for later
    #[arg(long, conflicts_with_all = ["to", "at", "in_window", "undo", "overrule", "dry_run", "timeout"])]
    pub cancel: bool,
    /// Back to the leader before the last switchover
    #[arg(long, conflicts_with = "to")]
    pub undo: bool,
    /// Go on in spite of warnings, such as long transactions that it will end
    #[arg(long)]
    pub overrule: bool,
    #[command(flatten)]
    pub wait: WaitArgs,
}

#[derive(Args, Clone, Debug)]
pub struct FailoverArgs {
    /// Name or id
    #[arg(value_name = "CLUSTER")]
    pub name: String,
    /// The member to lead: of those that are here, the one whose log reaches farthest
    #[arg(long, value_name = "MEMBER")]
    pub to: String,
    /// Give up acknowledged commits that only the missing members have
    #[arg(long)]
    pub accept_data_loss: bool,
    /// Do not ask to type the name
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub wait: WaitArgs,
}

#[derive(Args, Clone, Debug)]
pub struct CreateArgs {
    /// 1 to 40 lower-case letters, digits and hyphens, beginning with a letter
    pub name: String,
    /// Members in all, the leader counted: 1 to 7 [default: 3]
    #[arg(long, value_name = "N")]
    pub members: Option<u8>,
    /// Standbys that must have a commit on disk before it is acknowledged [default: 1; 0 for one member, and where durability is asynchronous]
    #[arg(long, value_name = "K")]
    pub sync_replicas: Option<u8>,
    /// strict: commits wait while fewer standbys than that are there. available: after a moment they go on with fewer, at last
    /// with the leader alone, and say so. asynchronous: they never wait, and a failover may lose what no standby had yet, and
    /// says how much [default: strict]
    #[arg(long, value_name = "HOW", value_parser = durability)]
    pub durability: Option<Durability>,
    /// zone: outside the leader's zone one standby of a zone streams from the leader and feeds those beside it, as far as the
    /// sync set keeps one standby more than a commit needs. none: the leader feeds everybody [default: none]
    #[arg(long, value_name = "HOW", value_parser = cascade)]
    pub cascade: Option<Cascade>,
    /// A Postgres setting; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    pub set: Vec<(String, String)>,
    /// When planned work may disturb clients, in UTC, such as "Sun 02:00-04:00"
    #[arg(long, value_name = "WINDOW")]
    pub maintenance_window: Option<String>,
    /// How much log a replication slot may keep on the leader before it is lost, the one furthest behind first: a size such as
    /// 8GB, or auto, a share of the room on the volume [default: auto]
    #[arg(long, value_name = "SIZE")]
    pub slot_wal_budget: Option<WalBudget>,
    /// A role for consumers of logical slots: change data capture, subscriptions. Slots survive a change of leader: from Postgres 17
    /// on those made with failover => true, before that those made before the last start of the standbys
    #[arg(long)]
    pub logical_replication: bool,
    /// How large members' volumes are made, such as 200GB; of pools of driver lvm [default: what the pool says]
    #[arg(long, value_name = "SIZE")]
    pub volume_size: Option<VolumeSize>,
    /// Let a volume of which less than 20 % is free grow by itself, by a quarter at a time, up to this size
    #[arg(long, value_name = "SIZE")]
    pub volume_limit: Option<VolumeSize>,
    /// Take snapshots of the leader's volume by themselves, and keep them for so long, such as "every 6h keep 7d"; in pools of driver dir each is a copy
    #[arg(long, value_name = "SCHEDULE")]
    pub snapshots: Option<SnapshotSchedule>,
    /// Replace a member whose node is lost by a new one on another node after so long, such as 1h; or off [default: 10m]
    #[arg(long, value_name = "TIME")]
    pub replace_after: Option<ReplaceAfter>,
    #[command(flatten)]
    pub placement: PlacementArgs,
    #[command(flatten)]
    pub io_limits: IoLimitArgs,
    /// A spec in TOML or JSON; the other options win over it
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub wait: WaitArgs,
}

#[derive(Args, Clone, Debug)]
pub struct ForkArgs {
    /// The cluster with the data, by name or id
    #[arg(value_name = "SOURCE")]
    pub source: String,
    /// Of the new cluster
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Of this member as it is now [default: the leader]
    #[arg(long, value_name = "MEMBER", conflicts_with = "snapshot")]
    pub member: Option<String>,
    /// Of this snapshot, as `pgstead snapshot list` shows it
    #[arg(long, value_name = "SNAPSHOT")]
    pub snapshot: Option<SnapshotId>,
    /// Members in all: 1 to 7. The first one is made where the data is, the others are copies of it [default: 1]
    #[arg(long, value_name = "N")]
    pub members: Option<u8>,
    /// Leave roles but the owner the passwords that they have in the source; without it none but the owner can log in
    #[arg(long)]
    pub keep_passwords: bool,
    #[command(flatten)]
    pub wait: WaitArgs,
}

#[derive(Args, Clone, Debug)]
#[command(group = clap::ArgGroup::new("where").required(true).args(["to", "undo", "cancel"]))]
pub struct RollbackArgs {
    /// Name or id
    #[arg(value_name = "CLUSTER")]
    pub name: String,
    /// This snapshot, as `pgstead snapshot list` shows it
    #[arg(long, value_name = "SNAPSHOT")]
    pub to: Option<SnapshotId>,
    /// Exchange the cluster again with what the last rollback has kept. What was written since the rollback is kept aside then
    #[arg(long)]
    pub undo: bool,
    /// Take back a rollback that is under way: the cluster stays as it is, and what was made for the rollback is deleted
    #[arg(long, conflicts_with_all = ["keep_as", "no_wait", "timeout", "yes"])]
    pub cancel: bool,
    /// Under this name is kept what the cluster is now [default: its name with -kept or -undone]
    #[arg(long, value_name = "NAME")]
    pub keep_as: Option<String>,
    /// Do not ask to type the name
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub wait: WaitArgs,
}

#[derive(Args, Clone, Debug)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true)
    .args(["members", "sync_replicas", "durability", "slot_wal_budget", "cascade", "logical_replication", "volume_size",
        "volume_limit", "snapshots", "replace_after", "regions", "any_region", "zones_min", "storage_class",
        "placement_weights", "read_iops", "write_iops", "read_rate", "write_rate"]))]
pub struct UpdateArgs {
    /// Name or id
    #[arg(value_name = "CLUSTER")]
    pub name: String,
    /// Members in all, the leader counted: 1 to 7. The data of members that leave is removed
    #[arg(long, value_name = "N")]
    pub members: Option<u8>,
    /// Standbys that must have a commit on disk before it is acknowledged
    #[arg(long, value_name = "K")]
    pub sync_replicas: Option<u8>,
    /// What happens when fewer standbys than that are there. strict: commits wait. available: after a moment they go on with
    /// fewer. asynchronous: they never wait for any; clients are held for a moment at the change to it and from it
    #[arg(long, value_name = "HOW", value_parser = durability)]
    pub durability: Option<Durability>,
    /// How much log a replication slot may keep on the leader before it is lost, the one furthest behind first: a size such as
    /// 8GB, or auto, a share of the room on the volume
    #[arg(long, value_name = "SIZE")]
    pub slot_wal_budget: Option<WalBudget>,
    /// zone: outside the leader's zone one standby of a zone feeds those beside it. none: the leader feeds everybody
    #[arg(long, value_name = "HOW", value_parser = cascade)]
    pub cascade: Option<Cascade>,
    /// A role for consumers of logical slots, who can make some after the next `cluster restart`; false locks them out
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub logical_replication: Option<bool>,
    /// How much every member's volume is to hold, such as 200GB: they grow while Postgres runs, and never get smaller
    #[arg(long, value_name = "SIZE")]
    pub volume_size: Option<VolumeSize>,
    /// Let a volume of which less than 20 % is free grow by itself, by a quarter at a time, up to this size
    #[arg(long, value_name = "SIZE")]
    pub volume_limit: Option<VolumeSize>,
    /// Take snapshots of the leader's volume by themselves, and keep them for so long, such as "every 6h keep 7d"; or off
    #[arg(long, value_name = "SCHEDULE")]
    pub snapshots: Option<SnapshotSchedule>,
    /// Replace a member whose node is lost by a new one on another node after so long, such as 1h; or off
    #[arg(long, value_name = "TIME")]
    pub replace_after: Option<ReplaceAfter>,
    /// Place new members in this region only; may be repeated. Members that are elsewhere stay until they are moved
    #[arg(long = "region", value_name = "REGION", conflicts_with = "any_region")]
    pub regions: Vec<String>,
    /// Place new members in any region
    #[arg(long)]
    pub any_region: bool,
    /// Place new members so that the cluster is in so many zones at least; 1 asks for nothing
    #[arg(long, value_name = "N")]
    pub zones_min: Option<u8>,
    /// Make the volumes of new members in pools of this class. Those that are there stay where they are
    #[arg(long, value_name = "CLASS")]
    pub storage_class: Option<String>,
    /// How much each term of a node's score counts, 0 to 100 each, some of latency, free, health and idle
    #[arg(long, value_name = "TERM=N,…")]
    pub placement_weights: Option<PlacementWeights>,
    #[command(flatten)]
    pub io_limits: IoLimitArgs,
    #[command(flatten)]
    pub wait: WaitArgs,
}

fn cascade(text: &str) -> Result<Cascade, String> {
    let all = [Cascade::None, Cascade::Zone];
    let found = all.into_iter().find(|cascade| cascade.as_str() == text);
    found.ok_or_else(|| format!("expected one of {}", all.map(Cascade::as_str).join(", ")))
}

fn durability(text: &str) -> Result<Durability, String> {
    let all = [Durability::Strict, Durability::Available, Durability::Asynchronous];
    let found = all.into_iter().find(|durability| durability.as_str() == text);
    found.ok_or_else(|| format!("expected one of {}", all.map(Durability::as_str).join(", ")))
}

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_string(), value.trim().to_string())),
        _ => Err("expected NAME=VALUE, such as max_connections=200".to_string()),
    }
}

/// Whether and how long to wait for long work.
#[derive(Args, Clone, Copy, Debug)]
pub struct WaitArgs {
    /// Begin the work and do not wait for its end
    #[arg(long, conflicts_with = "timeout")]
    pub no_wait: bool,
    /// Wait at most so long, such as 30s or 1h; the work goes on after that
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "15m")]
    pub timeout: Duration,
}

/// The part of `pgstead node` that asks the API.
#[derive(Subcommand, Clone, Debug)]
pub enum NodeCommands {
    /// List nodes
    List,
    /// Show one node
    Show {
        /// Name or id
        #[arg(value_name = "NODE")]
        name: String,
    },
    /// Have a node take no new members; those that it has stay
    Cordon {
        /// Name or id
        #[arg(value_name = "NODE")]
        name: String,
    },
    /// Have a node that is cordoned or being drained take members again
    Uncordon {
        /// Name or id
        #[arg(value_name = "NODE")]
        name: String,
    },
    /// Empty a node: leaders on it hand over, and its members are replaced by new ones on other nodes, which are copied and count before
    /// the old ones leave. It takes no new members until `pgstead node uncordon`
    Drain {
        /// Name or id
        #[arg(value_name = "NODE")]
        name: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Remove a node that holds no members
    Remove {
        /// Name or id
        #[arg(value_name = "NODE")]
        name: String,
    },
}

#[derive(Subcommand, Clone, Debug)]
pub enum TokenCommands {
    /// Make a token with which one host may join; it is shown this once
    Create {
        /// How long it can be used, up to 7 days
        #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1h")]
        ttl: Duration,
    },
}

#[derive(Subcommand, Clone, Debug)]
pub enum MemberCommands {
    /// List members of all clusters, or of one
    List {
        /// Only this cluster's
        #[arg(long, value_name = "CLUSTER")]
        cluster: Option<String>,
    },
    /// Replace a member by a new one on another node, which is copied and counts before the old one leaves. A leader does not move: have
    /// another member lead first
    #[command(
        after_help = "Examples:\n  pgstead member move app-2\n  pgstead member move app-2 --to db4\n  pgstead member move app-2 --cancel"
    )]
    Move {
        /// Name or id
        #[arg(value_name = "MEMBER")]
        name: String,
        /// The node for the new one [default: the best one for the cluster]
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
        /// Take a move back that is under way: the old member stays
        #[arg(long, conflicts_with_all = ["to", "no_wait", "timeout"])]
        cancel: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
}

#[derive(Subcommand, Clone, Debug)]
pub enum VolumeCommands {
    /// List volumes: of members, and those that nodes have found and no member has
    List,
    /// Remove a volume that no member has, with all its data
    Remove {
        /// As `pgstead volume list` shows it
        #[arg(value_name = "VOLUME")]
        id: VolumeId,
        /// Do not ask to type the node's name
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Subcommand, Clone, Debug)]
pub enum SnapshotCommands {
    /// Take a snapshot of a member's volume as it is now: in a moment, whatever the size, or as a copy in a pool of driver dir
    #[command(
        after_help = "Examples:\n  pgstead snapshot create app --keep 12h\n  pgstead snapshot create app --member app-2"
    )]
    Create {
        /// The cluster, by name or id
        #[arg(value_name = "CLUSTER")]
        name: String,
        /// Of this member [default: the leader]
        #[arg(long, value_name = "MEMBER")]
        member: Option<String>,
        /// Remove it by itself after that, such as 12h [default: it is kept until it is removed]
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        keep: Option<Duration>,
    },
    /// List snapshots
    List {
        /// Only this cluster's
        #[arg(long, value_name = "CLUSTER")]
        cluster: Option<String>,
    },
    /// Remove a snapshot
    Remove {
        /// As `pgstead snapshot list` shows it
        #[arg(value_name = "SNAPSHOT")]
        id: SnapshotId,
    },
}

#[derive(Subcommand, Clone, Debug)]
pub enum OperationCommands {
    /// List operations, the newest last
    List,
    /// Show one operation
    Show { id: OperationId },
    /// Wait until an operation has ended
    Wait {
        id: OperationId,
        /// Wait at most so long, such as 30s or 1h; the work goes on after that
        #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "15m")]
        timeout: Duration,
    },
}

#[derive(Args, Clone, Debug)]
pub struct EventsArgs {
    /// Go on printing as things happen
    #[arg(long, short)]
    pub follow: bool,
    /// Only this cluster's, by name or id
    #[arg(long, value_name = "CLUSTER")]
    pub cluster: Option<String>,
    /// Only events after this sequence number
    #[arg(long, value_name = "SEQUENCE")]
    pub after: Option<u64>,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "The password goes to psql in a file that only you can read, never in its arguments.\n\n\
    Examples:\n  pgstead psql app\n  pgstead psql app --read-only -- -c 'select now()'")]
pub struct PsqlArgs {
    /// Name or id
    #[arg(value_name = "CLUSTER")]
    pub name: String,
    /// Connect to a standby, or to the leader where none streams
    #[arg(long)]
    pub read_only: bool,
    /// Handed to psql
    #[arg(last = true, value_name = "ARGS")]
    pub args: Vec<std::ffi::OsString>,
}
