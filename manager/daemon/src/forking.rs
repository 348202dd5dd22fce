//! Clusters that begin with the data of others: what is to be forked is found or taken first, and recorded with the fork.

use crate::backend::{NODES_AGAIN, NodeBackend, internal, node_of};
use crate::storage::SnapshotRequest;
use pgstead_api::backend::{Accepted, Backend, ForkAsked, ForkOf, Rejected};
use pgstead_core::{Who, place};
use pgstead_types::record::{Command, Forked, TakesPlace};
use pgstead_types::schedule::SnapshotSchedule;
use pgstead_types::spec::ClusterSpec;
use pgstead_types::storage::SnapshotSeen;
use pgstead_types::{ClusterId, OperationId, SnapshotId, Tick, WallTime};
use std::time::Duration;
use uuid::Uuid;

/// A snapshot that was taken for a fork goes after that, whatever became of the fork.
const FORK_TIME_MAX: Duration = Duration::from_secs(24 * 3600);

/// What a fork is to be.
#[derive(Clone, Debug)]
pub(crate) enum Becomes {
    Itself,
    /// It takes the place of the cluster that asked for it, which is called so from then on.
    Source {
        operation: OperationId,
        kept_as: String,
    },
}

impl NodeBackend {
    /// `of`: the cluster whose spec it has, and whose data but for a snapshot of another one.
    pub(crate) async fn make_fork(
        &self,
        of: ClusterId,
        asked: ForkAsked,
        becomes: Becomes,
    ) -> Result<Accepted, Rejected> {
        let held = self.cluster(of)?;
        let source = match &asked.of {
            ForkOf::Member(_) => of,
            ForkOf::Snapshot(_, snapshot) => snapshot.cluster,
        };
        let first_node = match &asked.of {
            ForkOf::Member(member) => node_of(&held, *member)?,
            ForkOf::Snapshot(node, _) => *node,
        };
        let (spec, secrets) = match becomes {
            Becomes::Itself => (fork_spec(&held.spec, &asked), None),
            // Clients are to find it as they left the other one.
            Becomes::Source { .. } => (taker_spec(&held.spec, &asked), Some(held.secrets.clone())),
        };
        let who = Who::Fork { first: first_node, major: held.postgres_major };
        self.await_nodes(|record, facts| place(record, facts, &spec, who).refused.is_none()).await;
        // Whatever speaks against it is found before anything is copied.
        let mut new = self.new_cluster(spec, who)?;
        new.secrets = secrets.unwrap_or(new.secrets);
        let Some(first) = new.members.first().map(|member| member.id) else {
            return Err(Rejected::Invalid { why: "a cluster needs a member".into() });
        };
        let accepted = Accepted { operation: new.operation, cluster: new.id };
        let (backend, source_name) = (self.clone(), held.spec.name);
        let cluster = Box::new(new);
        // It goes on where whoever asked has gone: a snapshot may be a copy.
        let recorded = tokio::spawn(async move {
            let of_now = matches!(asked.of, ForkOf::Member(_));
            let snapshot = backend.forked(source, asked.of).await?;
            let forked = Forked {
                cluster: source,
                name: source_name,
                member: snapshot.member,
                snapshot: snapshot.id,
                taken: snapshot.created,
                first,
                keeps_passwords: asked.keeps_passwords,
            };
            let at = WallTime::now();
            let command = match becomes {
                Becomes::Itself => Command::ForkCluster { at, cluster, forked },
                Becomes::Source { operation, kept_as } => {
                    Command::RollBackCluster { at, cluster, forked, takes_place: TakesPlace { operation, of, kept_as } }
                }
            };
            let recorded = backend.propose(command).await.map(drop);
            // What was taken for it alone; where nobody knows whether it was recorded, its time ends by itself.
            if of_now
                && matches!(recorded, Err(Rejected::Refused(_)))
                && let Err(why) = backend.remove_snapshot(first_node, snapshot.id).await
            {
                tracing::warn!(snapshot = %snapshot.id, %why, "cannot remove the snapshot of a fork that was refused");
            }
            recorded
        });
        recorded.await.map_err(internal)?.map(|()| accepted)
    }

    /// What is there to be forked, and where it is; a snapshot is taken only of a member that is asked for as it is now.
    async fn forked(&self, source: ClusterId, of: ForkOf) -> Result<SnapshotSeen, Rejected> {
        match of {
            ForkOf::Snapshot(_, snapshot) => Ok(snapshot),
            ForkOf::Member(member) => {
                let asked = SnapshotRequest {
                    id: SnapshotId::from_uuid(Uuid::now_v7()),
                    cluster: source,
                    member,
                    keep_s: Some(FORK_TIME_MAX.as_secs()),
                    fork: true,
                };
                let node = node_of(&self.cluster(source)?, member)?;
                let begun = Tick::now();
                loop {
                    match self.ask_snapshot(node, asked).await {
                        // A copy that takes longer than an answer may: asked for again, it is the same one.
                        Err(Rejected::Unknown { .. }) if Tick::now().since(begun) < FORK_TIME_MAX => {
                            tokio::time::sleep(NODES_AGAIN).await;
                        }
                        answer => return answer,
                    }
                }
            }
        }
    }
}

/// What the source asks for, but for what is a fork's own: by default it has one member, and takes no snapshots by itself.
fn fork_spec(source: &ClusterSpec, asked: &ForkAsked) -> ClusterSpec {
    let mut settings = source.settings.clone();
    // A fork has none of them, until somebody gives it some.
    settings.retain(|name, _| !name.eq_ignore_ascii_case("max_logical_replication_workers"));
    ClusterSpec {
        name: asked.name.clone(),
        members: asked.members,
        sync_replicas: source.sync_replicas.filter(|_| asked.members == source.members),
        zones_min: source.zones_min.filter(|zones| *zones <= asked.members),
        snapshots: SnapshotSchedule::Off,
        settings,
        ..source.clone()
    }
}

/// All that the source asks for, but for workers of subscriptions. Its schedule of snapshots comes with its place.
fn taker_spec(source: &ClusterSpec, asked: &ForkAsked) -> ClusterSpec {
    let mut settings = source.settings.clone();
    // Its subscriptions would take changes before they are disabled.
    settings.retain(|name, _| !name.eq_ignore_ascii_case("max_logical_replication_workers"));
    ClusterSpec { name: asked.name.clone(), snapshots: SnapshotSchedule::Off, settings, ..source.clone() }
}
