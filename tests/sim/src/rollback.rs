//! A person has the cluster go back to a snapshot: another one is to take its place, which is complete as soon as it is recorded, and of
//! which nothing else is modelled. From when the place is taken nothing may be acknowledged by the cluster, until the other one is
//! deleted.

use crate::world::{CLUSTER, World, member_id, node_id};
use pgstead_core::{Observed, Policy, takes_no_clients};
use pgstead_types::record::{
    ClusterChange, ClusterPorts, ClusterRecord, Command, Forked, Lifecycle, MemberRecord, NewCluster, Record,
    TakesPlace,
};
use pgstead_types::spec::ClusterSpec;
use pgstead_types::{ClusterId, MemberId, SnapshotId, Tick, VolumeId, WallTime};

const TAKER: ClusterId = ClusterId::from_u128(0xc2);

/// Whether another one has the cluster's place.
pub fn is_taken(record: &Record) -> bool {
    let taker = record.clusters.get(&TAKER).filter(|taker| taker.lifecycle == Lifecycle::Active);
    let aside = record.clusters.get(&CLUSTER).is_some_and(|cluster| cluster.aside.is_some());
    aside && taker.is_some_and(|taker| taker.takes_place.is_none())
}

/// What comes next of it, in the order of `pgstead_core::take_place`.
pub fn next(record: &Record, observed: &Observed, policy: &Policy, now: Tick) -> Option<Command> {
    let taker = record.clusters.get(&TAKER)?;
    taker.takes_place.as_ref()?;
    let of = record.clusters.get(&CLUSTER)?;
    let at = WallTime(now.as_millis() as i64);
    match of.aside {
        None => {
            let change = ClusterChange::SetAside { to: TAKER };
            Some(Command::ChangeCluster { at, cluster: CLUSTER, revision: of.revision, change })
        }
        Some(aside) => {
            takes_no_clients(of, aside, observed, policy).ok()?;
            Some(Command::TakePlace { at, cluster: TAKER, revision: taker.revision, of_revision: of.revision })
        }
    }
}

impl World {
    /// Once in a course: what was made for it is never gone for good.
    pub fn roll_back(&mut self) {
        let Some(cluster) = self.cluster().filter(|_| !self.record.clusters.contains_key(&TAKER)) else { return };
        let (cluster, forked, operation) = (taker(cluster), forked(cluster), self.next_operation());
        let takes_place = TakesPlace { operation, of: CLUSTER, kept_as: "app-kept".into() };
        let at = WallTime(self.now.as_millis() as i64);
        self.rolled_back = true;
        self.say("> the cluster is to go back to a snapshot");
        self.propose(Command::RollBackCluster { at, cluster: Box::new(cluster), forked, takes_place });
    }

    /// What was to take its place, or has, is deleted. Whether that is still to be recorded.
    pub fn keep_as_it_is(&mut self) -> bool {
        let taker = self.record.clusters.get(&TAKER).filter(|taker| taker.lifecycle == Lifecycle::Active);
        let Some(revision) = taker.map(|taker| taker.revision) else { return false };
        let (operation, at) = (self.next_operation(), WallTime(self.now.as_millis() as i64));
        let change = ClusterChange::RequestDelete { operation };
        self.say("> what takes the cluster's place is deleted");
        self.propose(Command::ChangeCluster { at, cluster: TAKER, revision, change });
        true
    }
}

fn taker(of: &ClusterRecord) -> NewCluster {
    let member = MemberRecord {
        id: MemberId::from_u128(0xd0),
        name: "app-rollback-1".into(),
        node: node_id(0),
        volume: VolumeId::from_u128(0xd0),
        incarnation: 1,
        restarts: 0,
        standing: Default::default(),
    };
    let ports = ClusterPorts { postgres: 6003, read_write: 6004, read_only: 6005 };
    NewCluster {
        id: TAKER,
        operation: pgstead_types::OperationId::from_u128(0xd0),
        spec: ClusterSpec { members: 1, ..ClusterSpec::named("app-rollback") },
        postgres_major: of.postgres_major,
        ports,
        secrets: of.secrets.clone(),
        members: vec![member],
    }
}

fn forked(of: &ClusterRecord) -> Forked {
    Forked {
        cluster: CLUSTER,
        name: of.spec.name.clone(),
        member: member_id(0),
        snapshot: SnapshotId::from_u128(1),
        taken: WallTime(0),
        first: MemberId::from_u128(0xd0),
        keeps_passwords: true,
    }
}
