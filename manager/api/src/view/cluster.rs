//! A cluster as the API shows it. It must answer "why": who leads since when, whose acknowledgement counts, what each
//! member is at, and what would be lost if the leader were lost now.

use super::world::{cluster_named, cluster_ref, member_name, member_ref};
use super::{
    ClusterRef, FindingView, ForcedView, IoLimitsSchema, MemberRef, MemberView, ScheduledView, SlotsView, World,
    finding,
};
use pgstead_types::placement::PlacementWeights;
use pgstead_types::record::{ClusterRecord, EpochReason, HistoryEntry, Leadership, Lifecycle, SyncSet};
use pgstead_types::replacement::ReplaceAfter;
use pgstead_types::report::ClientAccess;
use pgstead_types::schedule::SnapshotSchedule;
use pgstead_types::size::VolumeSize;
use pgstead_types::slots::WalBudget;
use pgstead_types::spec::{Cascade, ClusterSpec, Durability, OnLeaderCrash};
use pgstead_types::{ClusterId, Epoch, Lsn, OperationId, SnapshotId, Timeline};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use utoipa::ToSchema;

/// One Postgres system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterView {
    #[schema(value_type = String, format = "uuid")]
    pub id: ClusterId,
    pub name: String,
    /// Grows with every change; the ETag.
    pub revision: u64,
    pub created_at: String,
    pub health: Health,
    /// What the health rests on, in one sentence.
    pub why: String,
    pub postgres_major: u16,
    /// Whose data it began with, where it is a fork.
    pub forked: Option<ForkedView>,
    /// The cluster that takes its place, or has taken it: until it has it back, this one takes no clients.
    pub kept_aside_by: Option<ClusterRef>,
    /// The cluster whose place it is to take.
    pub takes_place_of: Option<ClusterRef>,
    #[schema(value_type = SpecSchema)]
    pub spec: ClusterSpec,
    pub ports: PortsView,
    /// Grows with every change of leader.
    #[schema(value_type = u64)]
    pub epoch: Epoch,
    pub phase: Phase,
    /// Why the election is open, in snake case; `null` unless it is.
    #[schema(value_type = Option<String>)]
    pub electing_because: Option<EpochReason>,
    pub leader: Option<MemberRef>,
    /// The timeline that the epoch's leader has or shall have.
    #[schema(value_type = Option<u32>)]
    pub timeline: Option<Timeline>,
    pub sync_set: SyncSetView,
    /// What would be lost if the leader were lost now.
    pub rpo: RpoView,
    pub members: Vec<MemberView>,
    /// The leader's replication slots; `null` while they are not observed.
    pub slots: Option<SlotsView>,
    /// One entry per promotion, oldest first.
    pub history: Vec<HistoryView>,
    /// A switchover that begins later.
    pub scheduled: Option<ScheduledView>,
    /// Changes of leader that a person has forced, oldest first.
    pub forced: Vec<ForcedView>,
    /// The operation under way, if there is one.
    #[schema(value_type = Option<String>, format = "uuid")]
    pub operation: Option<OperationId>,
    /// Whether the controller's observations are in this answer. Without them every member's `observed` is `null`.
    pub observed: bool,
    /// Most severe first.
    pub findings: Vec<FindingView>,
}

/// Where the data of a fork came from. What it was taken from may be gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ForkedView {
    #[schema(value_type = String, format = "uuid")]
    pub cluster: ClusterId,
    /// That cluster's name when it was forked.
    pub name: String,
    #[schema(value_type = String, format = "uuid")]
    pub snapshot: SnapshotId,
    /// The data is as it was then.
    pub taken_at: String,
}

/// A cluster in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterSummary {
    #[schema(value_type = String, format = "uuid")]
    pub id: ClusterId,
    pub name: String,
    pub revision: u64,
    pub health: Health,
    pub why: String,
    pub postgres_major: u16,
    #[schema(value_type = u64)]
    pub epoch: Epoch,
    pub phase: Phase,
    pub leader: Option<MemberRef>,
    /// Members that run as the record wants; `null` when the controller could not be asked.
    pub members_well: Option<u32>,
    pub members: u32,
    pub rpo: RpoView,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Everything runs as the spec says.
    Healthy,
    /// Serves reads and writes, with less in reserve than the spec says.
    Degraded,
    /// Reads are served; commits wait until enough standbys stream.
    WritesWait,
    /// Nobody leads now.
    NoLeader,
    Creating,
    Deleting,
    /// Nothing is observed.
    Unknown,
}

/// Where the present epoch has got to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Members promise; nobody is obeyed.
    Electing,
    /// The leader is named and promotes.
    Chosen,
    /// It runs on its timeline; enough standbys must have that on disk.
    Promoted,
    /// Clients are let in.
    Confirmed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortsView {
    /// The members' own Postgres.
    pub postgres: u16,
    /// The gateways' read-write port.
    pub read_write: u16,
    /// The gateways' read-only port.
    pub read_only: u16,
}

/// Whose acknowledgement counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SyncSetView {
    /// Names of the standbys. While an election is open: the last leader's set.
    pub members: Vec<String>,
    /// How many of them must have a commit on disk before it is acknowledged.
    pub needed: u8,
    /// What it is being changed to, in words; `null` unless it is.
    pub becoming: Option<String>,
    /// Of the set, how many stream to the leader now; `null` when that is not known.
    pub streaming: Option<u32>,
}

/// The recovery point objective as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RpoView {
    pub state: RpoState,
    /// For people.
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RpoState {
    /// Nothing acknowledged would be lost.
    Zero,
    /// Nothing acknowledged would be lost, and nothing new is acknowledged.
    WritesWait,
    /// Everything that is acknowledged is on one disk only.
    SingleCopy,
    /// What no standby has received yet would be lost: commits wait for none.
    Asynchronous,
    /// No standby is there, and the leader acknowledges alone until one is: whatever it has written since would be lost.
    Unbounded,
    Unknown,
}

/// A promotion that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HistoryView {
    #[schema(value_type = u64)]
    pub epoch: Epoch,
    #[schema(value_type = u32)]
    pub timeline: Timeline,
    #[schema(value_type = u32)]
    pub parent: Timeline,
    #[schema(value_type = String)]
    pub fork_lsn: Lsn,
    /// Its name, or its id when it has left the cluster.
    pub leader: String,
    /// What it may have lost, for people; `null` where it lost nothing.
    pub possible_loss: Option<String>,
    /// The same in bytes of log, at least; `null` also where that is not known.
    pub possible_loss_bytes: Option<u64>,
}

/// A cluster as asked for. Unknown keys are refused. (Shows `pgstead_types::spec::ClusterSpec` to readers.)
#[derive(Serialize, ToSchema)]
#[schema(as = ClusterSpec)]
pub struct SpecSchema {
    /// 1 to 40 lower-case letters, digits and hyphens, beginning with a letter. Unique in the deployment.
    name: String,
    /// Members in all, the leader counted: 1 to 7. Default 3.
    #[schema(required = false, default = 3, minimum = 1, maximum = 7)]
    members: u8,
    /// Standbys that must have a commit on disk before it is acknowledged. Default 1, and 0 for one member.
    #[schema(required = false)]
    sync_replicas: Option<u8>,
    /// What happens when fewer standbys than that are there: `strict`, commits wait; `available`, they go on with fewer;
    /// `asynchronous`, they never wait.
    #[schema(required = false, default = "strict", value_type = String, pattern = "^(strict|available|asynchronous)$")]
    durability: Durability,
    /// The database made for the application.
    #[schema(required = false, default = "app")]
    database: String,
    /// The role that owns it and logs in with a password.
    #[schema(required = false, default = "app")]
    owner: String,
    /// What becomes of a leader whose Postgres ended while its node is well: `failover`, another member leads at once;
    /// `restart`, it is preferred where it is back within two seconds, twice in ten minutes at most.
    #[schema(required = false, default = "failover", value_type = String, pattern = "^(failover|restart)$")]
    on_leader_crash: OnLeaderCrash,
    /// `zone`: outside the leader's zone one standby of a zone streams from the leader and feeds those beside it, except where
    /// the sync set would keep less than one standby more than a commit needs.
    #[schema(required = false, default = "none", value_type = String, pattern = "^(none|zone)$")]
    cascade: Cascade,
    /// Postgres settings, without those that the cluster's safety rests on.
    #[schema(required = false)]
    settings: BTreeMap<String, String>,
    /// When planned work may disturb clients, in UTC, such as `Sun 02:00-04:00`.
    #[schema(required = false)]
    maintenance_window: Option<String>,
    /// How much log a replication slot may keep on the leader before it is lost, the one furthest behind first: `auto`, a share
    /// of the room on the volume; or a size such as `8GB`, 256MB at least.
    #[schema(required = false, default = "auto", value_type = String, pattern = "^(auto|[0-9]+ ?(MB|GB|TB))$")]
    slot_wal_budget: WalBudget,
    /// Whether there are consumers of logical slots: a role of their own (see the connection), which can make slots once every
    /// member was restarted since. From Postgres 17 on those made with `failover => true` survive a change of leader, before that those
    /// made before the last start of the standbys.
    #[schema(required = false, default = false)]
    logical_replication: bool,
    /// How large members' volumes are made, and grown to while the cluster runs, such as `200GB`, 512MB at least; without it the
    /// pool decides. A volume never gets smaller. Those of driver `dir` have no size.
    #[schema(required = false, value_type = Option<String>, pattern = "^[0-9]+ ?(MB|GB|TB)$")]
    volume_size: Option<VolumeSize>,
    /// Up to where a volume of which less than 20 % is free grows by itself, by a quarter at a time; without it none does.
    #[schema(required = false, value_type = Option<String>, pattern = "^[0-9]+ ?(MB|GB|TB)$")]
    volume_limit: Option<VolumeSize>,
    /// When snapshots of the leader's volume are taken by themselves, and for how long they are kept: `off`, or such as
    /// `every 6h keep 7d`, in minutes (`m`), hours or days; every 5 minutes at most, and 90 kept at most.
    #[schema(required = false, default = "off", value_type = String, pattern = "^(off|every [0-9]+[mhd] keep [0-9]+[mhd])$")]
    snapshots: SnapshotSchedule,
    /// After how long a member whose node is lost is replaced by a new one on another node: such as `10m`, in seconds (`s`, 10 at
    /// least), minutes, hours or days, or `off`.
    #[schema(required = false, default = "10m", value_type = String, pattern = "^(off|[0-9]+[smhd])$")]
    replace_after: ReplaceAfter,
    /// Members are placed in these regions only, 20 at most; in any where there are none.
    #[schema(required = false)]
    regions: BTreeSet<String>,
    /// Members are placed so that they are in so many zones at least: 1 to as many as there are members. A new member that would not
    /// bring that about is refused, unless it brings the cluster nearer to it.
    #[schema(required = false, minimum = 1, maximum = 7)]
    zones_min: Option<u8>,
    /// Members' volumes are made in pools of this class, those that there are already stay where they are; in pools of the class of each
    /// node's first one where none is named.
    #[schema(required = false, pattern = "^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")]
    storage_class: Option<String>,
    /// How much each term of a node's score counts among nodes that spread members equally well: some of `latency`, `free`, `health` and
    /// `idle`, 0 to 100 each, not all 0; what is not named counts as by default.
    #[schema(required = false, default = "latency=10,free=30,health=20,idle=40", value_type = String,
        pattern = "^(latency|free|health|idle)=[0-9]+(,(latency|free|health|idle)=[0-9]+)*$")]
    placement_weights: PlacementWeights,
    /// How much each member's Postgres may read and write on the device of its volume; changed while it runs. Without a limit as much
    /// as the device gives.
    #[schema(required = false)]
    io_limits: IoLimitsSchema,
}

impl ClusterView {
    pub fn new(world: &World<'_>, cluster: &ClusterRecord) -> Self {
        let members: Vec<MemberView> =
            cluster.members.values().map(|member| MemberView::new(world, cluster, member)).collect();
        let (health, why) = judge(world, cluster, &members);
        Self {
            id: cluster.id,
            name: cluster.spec.name.clone(),
            revision: cluster.revision,
            created_at: cluster.created_at.to_string(),
            health,
            why,
            postgres_major: cluster.postgres_major,
            kept_aside_by: cluster.aside.map(|aside| cluster_named(world.record, aside.to)),
            takes_place_of: cluster.takes_place.as_ref().map(|place| cluster_named(world.record, place.of)),
            forked: cluster.forked.as_ref().map(|forked| ForkedView {
                cluster: forked.cluster,
                name: forked.name.clone(),
                snapshot: forked.snapshot,
                taken_at: forked.taken.to_string(),
            }),
            spec: cluster.spec.clone(),
            ports: PortsView {
                postgres: cluster.ports.postgres,
                read_write: cluster.ports.read_write,
                read_only: cluster.ports.read_only,
            },
            epoch: cluster.epoch,
            phase: Phase::of(cluster),
            electing_because: match cluster.leadership {
                Leadership::Electing { reason, .. } => Some(reason),
                _ => None,
            },
            leader: cluster.leader().map(member_ref),
            timeline: cluster.config().map(|config| config.timeline),
            sync_set: SyncSetView::new(world, cluster),
            rpo: RpoView::new(world, cluster),
            members,
            slots: SlotsView::of(world, cluster),
            history: cluster.history.iter().map(|entry| HistoryView::new(cluster, entry)).collect(),
            scheduled: ScheduledView::of(cluster),
            forced: cluster.forced.iter().map(|forced| ForcedView::new(cluster, forced)).collect(),
            operation: operation(cluster),
            observed: world.observed.is_some(),
            findings: finding::of_cluster(world, cluster),
        }
    }

    pub fn as_ref(&self) -> ClusterRef {
        ClusterRef { id: self.id, name: self.name.clone() }
    }
}

impl ClusterSummary {
    pub fn new(world: &World<'_>, cluster: &ClusterRecord) -> Self {
        let members: Vec<MemberView> =
            cluster.members.values().map(|member| MemberView::new(world, cluster, member)).collect();
        let (health, why) = judge(world, cluster, &members);
        let ClusterRef { id, name } = cluster_ref(cluster);
        Self {
            id,
            name,
            revision: cluster.revision,
            health,
            why,
            postgres_major: cluster.postgres_major,
            epoch: cluster.epoch,
            phase: Phase::of(cluster),
            leader: cluster.leader().map(member_ref),
            members_well: world.observed.map(|_| count(members.iter().filter(|member| member.is_well()))),
            members: count(members.iter()),
            rpo: RpoView::new(world, cluster),
        }
    }
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}

fn operation(cluster: &ClusterRecord) -> Option<OperationId> {
    match cluster.lifecycle {
        Lifecycle::Deleting { operation } => Some(operation),
        Lifecycle::Active => (cluster.restart.as_ref().map(|restart| restart.operation))
            .or(cluster.switchover.as_ref().map(|switchover| switchover.operation))
            .or(cluster.forced.last().filter(|forced| !forced.ended).map(|forced| forced.operation))
            .or(cluster.moving.map(|moving| moving.operation))
            .or(cluster.updating)
            .or(cluster.creating),
    }
}

impl Phase {
    fn of(cluster: &ClusterRecord) -> Self {
        match cluster.leadership {
            Leadership::Electing { .. } => Phase::Electing,
            Leadership::Chosen { .. } => Phase::Chosen,
            Leadership::Promoted { .. } => Phase::Promoted,
            Leadership::Confirmed { .. } => Phase::Confirmed,
        }
    }
}

/// Standbys of the sync set that stream to the leader; `None` while no leader of this epoch is seen.
fn streaming(world: &World<'_>, cluster: &ClusterRecord) -> Option<u32> {
    let set = &cluster.config()?.sync_set.members;
    let primary = world.leading(cluster)?;
    let counts = |standby: &&pgstead_types::Incarnation| {
        primary.senders.iter().any(|sender| sender.streaming && sender.incarnation.as_ref() == Some(*standby))
    };
    Some(count(set.iter().filter(counts)))
}

impl SyncSetView {
    fn new(world: &World<'_>, cluster: &ClusterRecord) -> Self {
        let Some(config) = cluster.configs.last() else {
            return Self { members: Vec::new(), needed: cluster.spec.needed(), becoming: None, streaming: None };
        };
        let names = |set: &SyncSet| {
            let mut names: Vec<String> =
                set.members.iter().map(|standby| member_name(cluster, standby.member)).collect();
            names.sort();
            names
        };
        let becoming = config.target.as_ref().map(|change| &change.set).map(|target| match target.needed {
            0 => "the leader alone".to_string(),
            needed => format!("any {needed} of {}", names(target).join(", ")),
        });
        let (members, needed) = (names(&config.sync_set), config.sync_set.needed);
        Self { members, needed, becoming, streaming: streaming(world, cluster) }
    }
}

impl RpoView {
    fn new(world: &World<'_>, cluster: &ClusterRecord) -> Self {
        let of = |state, text: String| Self { state, text };
        let Some(config) = cluster.config().filter(|_| cluster.is_confirmed()) else {
            return of(
                RpoState::WritesWait,
                "0, and writes wait: no leader is confirmed, so nothing new is acknowledged, and only a member that has \
                 every acknowledged commit can become the leader"
                    .to_string(),
            );
        };
        let needed = u32::from(config.sync_set.needed);
        if config.asynchronous {
            return of(
                RpoState::Asynchronous,
                "what the standbys have not received yet, if the leader is lost: commits wait for no standby"
                    .to_string(),
            );
        }
        if needed == 0 && cluster.members.len() > 1 {
            return of(RpoState::Unbounded, alone_text(world, cluster));
        }
        if needed == 0 {
            return of(
                RpoState::SingleCopy,
                "everything, if the node's disk is lost: this cluster has one member and so one copy".to_string(),
            );
        }
        match streaming(world, cluster) {
            Some(streaming) if streaming >= needed => {
                of(RpoState::Zero, format!("0: every acknowledged commit is on {} disks", needed + 1))
            }
            Some(streaming) => of(
                RpoState::WritesWait,
                format!(
                    "0, and writes wait: {streaming} of the {needed} standbys that must have a commit on disk stream; \
                     what was acknowledged is on {} disks",
                    needed + 1
                ),
            ),
            None => of(
                RpoState::Unknown,
                format!(
                    "not observed now; by the record, a commit is acknowledged only once it is on {} disks",
                    needed + 1
                ),
            ),
        }
    }
}

/// What only the leader has, as far as it can be measured.
fn alone_text(world: &World<'_>, cluster: &ClusterRecord) -> String {
    let nearest = world.leading(cluster).and_then(|primary| {
        let flushed = primary.senders.iter().filter(|sender| sender.incarnation.is_some()).filter_map(|s| s.flushed);
        flushed.max().map(|flushed| primary.flushed.bytes_since(flushed))
    });
    match nearest {
        Some(bytes) => {
            format!("unbounded: the leader acknowledges alone, and the nearest standby is {bytes} behind it")
        }
        None => "unbounded: the leader acknowledges alone, and no standby streams from it".to_string(),
    }
}

impl HistoryView {
    fn new(cluster: &ClusterRecord, entry: &HistoryEntry) -> Self {
        Self {
            epoch: entry.epoch,
            timeline: entry.timeline,
            parent: entry.parent,
            fork_lsn: entry.fork_lsn,
            leader: member_name(cluster, entry.leader),
            possible_loss: entry.possible_loss.map(|loss| loss.to_string()),
            possible_loss_bytes: entry.possible_loss.and_then(|loss| loss.bytes),
        }
    }
}

fn judge(world: &World<'_>, cluster: &ClusterRecord, members: &[MemberView]) -> (Health, String) {
    if let Lifecycle::Deleting { .. } = cluster.lifecycle {
        return (Health::Deleting, format!("{} members still have a volume", members.len()));
    }
    let leader = cluster.leadership.leader().map(|id| member_name(cluster, id)).unwrap_or_default();
    match &cluster.leadership {
        _ if cluster.creating.is_some() && !cluster.is_confirmed() => {
            return (Health::Creating, format!("the first leader, {leader}, is being made"));
        }
        Leadership::Electing { .. } => {
            return (Health::NoLeader, format!("epoch {} has no leader yet: members are promising", cluster.epoch));
        }
        Leadership::Chosen { .. } => return (Health::NoLeader, format!("{leader} is chosen and is to be promoted")),
        Leadership::Promoted { .. } => {
            let needed = cluster.config().map_or(0, |config| config.sync_set.needed);
            return (
                Health::NoLeader,
                format!("{leader} is promoted; {needed} of its standbys must have that on disk before clients come in"),
            );
        }
        Leadership::Confirmed { .. } => {}
    }
    if world.observed.is_none() {
        return (Health::Unknown, "the controller could not be asked".to_string());
    }
    let alone = cluster.config().is_some_and(|config| config.asynchronous);
    let Some(primary) = world.leading(cluster) else {
        return (Health::NoLeader, format!("{leader} leads by the record and is not seen to run as the primary"));
    };
    if primary.access != ClientAccess::Open && cluster.aside.is_none() {
        return (Health::NoLeader, format!("{leader} leads and does not let clients in yet"));
    }
    let set = SyncSetView::new(world, cluster);
    let streaming = set.streaming.unwrap_or(0);
    if streaming < u32::from(set.needed) {
        return (
            Health::WritesWait,
            format!("{streaming} of the {} standbys that must have a commit on disk stream to {leader}", set.needed),
        );
    }
    if set.needed < cluster.spec.needed() {
        let text = match set.needed {
            0 => format!("{leader} acknowledges commits alone: no standby is there to have them too"),
            needed => format!("commits need {needed} standbys now, and {} by the spec", cluster.spec.needed()),
        };
        return (Health::Degraded, text);
    }
    let ill: Vec<&str> = members.iter().filter(|member| !member.is_well()).map(|member| member.name.as_str()).collect();
    if !ill.is_empty() {
        return (Health::Degraded, format!("{leader} leads; not well: {}", ill.join(", ")));
    }
    // Whoever is fed by another standby, or is about to be, does not count; one more than a commit needs does.
    let spares = cluster.spec.cascade != Cascade::None && set.members.len() > usize::from(set.needed);
    if set.members.len() + 1 < members.len() && !alone && !spares {
        let total = members.len() - 1;
        return (Health::Degraded, format!("{} of {total} standbys count in the sync set", set.members.len()));
    }
    if cluster.aside.is_some() {
        return (
            Health::Healthy,
            format!("{leader} leads and every standby streams; it is kept aside and takes no clients"),
        );
    }
    (Health::Healthy, format!("{leader} leads and every standby streams"))
}
