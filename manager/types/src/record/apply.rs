//! The only way in which a record changes. Every command either applies whole or is refused with the record as it was;
//! the result depends on nothing but the record and the command, so all nodes agree.

use super::SyncSet;
use super::cluster::{ClusterRecord, EpochConfig, Forked, HistoryEntry, Leadership, Lifecycle, Restart, Switchover};
use super::command::{ClusterChange, Command, NewCluster};
use super::{
    EVENTS_MAX, EventRecord, NodeRecord, NodeService, OPERATIONS_MAX, OperationKind, OperationRecord, OperationState,
    Record, Standing,
};
use crate::ids::{ClusterId, MemberId, NodeId, OperationId};
use crate::position::{Epoch, Position, Timeline};
use crate::time::WallTime;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A command took effect (or had done so before and changed nothing now).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Applied {
    /// The record's revision after it.
    pub revision: u64,
}

/// Why a command did not apply. An answer, not an error: the record is as it was.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case", tag = "refusal")]
pub enum Refusal {
    #[error("the cluster is at revision {found}, not {expected}: it changed meanwhile; look again and decide anew")]
    StaleRevision { expected: u64, found: u64 },
    #[error("the cluster's epoch is {found}, this was for epoch {asked}")]
    StaleEpoch { asked: Epoch, found: Epoch },
    #[error("no {what} {id}")]
    NotFound { what: String, id: String },
    #[error("{what} {name:?} exists already; choose another name")]
    Exists { what: String, name: String },
    #[error("the join token is {why}; make a new one with `pgstead token create`")]
    BadToken { why: String },
    #[error("{why}")]
    Conflict { why: String },
}

pub(super) fn conflict(why: impl Into<String>) -> Refusal {
    Refusal::Conflict { why: why.into() }
}

impl Record {
    /// Applies one command, whole or not at all.
    pub fn apply(&mut self, command: &Command) -> Result<Applied, Refusal> {
        match command {
            Command::Found { at, deployment, node } => {
                if self.deployment.is_some() {
                    return Err(Refusal::Exists { what: "deployment".into(), name: deployment.id.to_string() });
                }
                self.deployment = Some(deployment.clone());
                self.nodes.insert(node.id, node.clone());
                self.note(
                    *at,
                    "deployment_founded",
                    format!("deployment founded by node {}", node.name),
                    None,
                    Some(node.id),
                );
            }
            Command::UpdateNode { at, node } => {
                let Some(known) = self.nodes.get(&node.id) else { return Err(not_found("node", node.id)) };
                if *known == (NodeRecord { service: known.service, ..node.clone() }) {
                    return Ok(Applied { revision: self.revision });
                }
                self.check_node_name(node)?;
                // What a person has said of it holds, whatever the node knows of that.
                let service = known.service;
                self.nodes.insert(node.id, NodeRecord { service, ..node.clone() });
                self.note(*at, "node_updated", format!("node {} updated", node.name), None, Some(node.id));
            }
            Command::AdmitNode { at, token, node } => {
                self.check_node_name(node)?;
                let expired = |end: WallTime| *at >= end;
                let held = self.join_tokens.get_mut(token).ok_or(Refusal::BadToken { why: "unknown".into() })?;
                match held.used_by {
                    // The same node asking again (its answer was lost) gets the same answer.
                    Some(by) if by == node.id => return Ok(Applied { revision: self.revision }),
                    Some(_) => return Err(Refusal::BadToken { why: "used already".into() }),
                    None if expired(held.expires_at) => return Err(Refusal::BadToken { why: "expired".into() }),
                    None => held.used_by = Some(node.id),
                }
                self.nodes.insert(node.id, node.clone());
                let message = format!("node {} joined at {}:{}", node.name, node.host, node.port);
                self.note(*at, "node_joined", message, None, Some(node.id));
            }
            Command::SetNodeService { at, node, service } => {
                let held = self.nodes.get_mut(node).ok_or_else(|| not_found("node", node))?;
                if held.service == *service {
                    return Ok(Applied { revision: self.revision });
                }
                held.service = *service;
                let message = match service {
                    NodeService::Open => format!("node {} takes members again", held.name),
                    NodeService::Cordoned => format!("node {} takes no new members", held.name),
                    NodeService::Draining => format!("the members of node {} are to move to others", held.name),
                };
                self.note(*at, "node_service_changed", message, None, Some(*node));
            }
            Command::RemoveNode { at, node } => {
                let known = self.nodes.get(node).ok_or_else(|| not_found("node", node))?;
                // What is left of a cluster that is being deleted goes with the node.
                if let Some((cluster, _)) =
                    self.clusters_on(*node).find(|(cluster, _)| cluster.lifecycle == Lifecycle::Active)
                {
                    return Err(conflict(format!(
                        "node {} holds a member of cluster {}",
                        known.name, cluster.spec.name
                    )));
                }
                let message = format!("node {} removed", known.name);
                self.forget_left_on(*at, *node);
                self.nodes.remove(node);
                self.removed_nodes.insert(*node);
                self.note(*at, "node_removed", message, None, Some(*node));
            }
            Command::AddJoinToken { at, token } => {
                // Spent and expired tokens go here, so that the list is bounded by what is still of use.
                self.join_tokens.retain(|_, held| held.used_by.is_none() && held.expires_at > *at);
                self.join_tokens.insert(token.id, token.clone());
                let message = format!("join token {} made, expires {}", token.id, token.expires_at);
                self.note(*at, "join_token_made", message, None, None);
            }
            Command::CreateCluster { at, cluster } => self.create_cluster(*at, cluster, None)?,
            Command::ForkCluster { at, cluster, forked } => self.create_cluster(*at, cluster, Some(forked))?,
            Command::RollBackCluster { at, cluster, forked, takes_place } => {
                self.begin_rollback(*at, cluster, forked, takes_place)?;
            }
            Command::TakePlace { at, cluster, revision, of_revision } => {
                self.take_place(*at, *cluster, *revision, *of_revision)?;
            }
            Command::ChangeCluster { at, cluster, revision, change } => {
                self.change_cluster(*at, *cluster, *revision, change)?;
            }
            Command::RecoverQuorum { at, recovery, node, by, lost } => {
                self.recover_quorum(*at, *recovery, *node, by, lost);
            }
            Command::EndOperation { at, operation, failure } => {
                if !self.end_operation(*at, *operation, failure.clone()) {
                    return Ok(Applied { revision: self.revision });
                }
            }
        }
        self.revision += 1;
        Ok(Applied { revision: self.revision })
    }

    fn check_node_name(&self, node: &NodeRecord) -> Result<(), Refusal> {
        match self.node_named(&node.name) {
            Some(other) if other.id != node.id => Err(Refusal::Exists { what: "node".into(), name: node.name.clone() }),
            _ => Ok(()),
        }
    }

    pub(super) fn create_cluster(
        &mut self,
        at: WallTime,
        new: &NewCluster,
        forked: Option<&Forked>,
    ) -> Result<(), Refusal> {
        if self.clusters.contains_key(&new.id) || self.has_name(&new.spec.name) {
            return Err(Refusal::Exists { what: "cluster".into(), name: new.spec.name.clone() });
        }
        new.spec.check().map_err(|error| conflict(error.to_string()))?;
        let nodes: BTreeSet<NodeId> = new.members.iter().map(|member| member.node).collect();
        if nodes.len() != new.members.len() || new.members.len() != usize::from(new.spec.members) {
            return Err(conflict("every member needs a node of its own"));
        }
        if let Some(unknown) = nodes.iter().find(|node| !self.nodes.contains_key(node)) {
            return Err(not_found("node", unknown));
        }
        let taken = |port: u16| {
            self.clusters.values().any(|cluster| {
                [cluster.ports.postgres, cluster.ports.read_write, cluster.ports.read_only].contains(&port)
            })
        };
        if let Some(port) =
            [new.ports.postgres, new.ports.read_write, new.ports.read_only].into_iter().find(|p| taken(*p))
        {
            return Err(conflict(format!("port {port} belongs to another cluster")));
        }
        let Some(first) = new.members.first() else { return Err(conflict("a cluster needs a member")) };
        let asynchronous = new.spec.is_asynchronous();
        let counted = new.members.iter().skip(1).filter(|_| !asynchronous);
        let standbys = counted.map(super::MemberRecord::current).collect();
        let epoch = Epoch(1);
        // Timeline 1 is initdb's own; the first promotion makes timeline 2. That of a fork is above all that its source was given
        // until now: above all that its data can hold.
        let timeline = match forked {
            Some(forked) => self.check_forked(new, forked, first)?.last_timeline.next(),
            None => Timeline(2),
        };
        let config = EpochConfig {
            epoch,
            leader: first.current(),
            timeline,
            start: Position::default(),
            sync_set: SyncSet { members: standbys, needed: new.spec.needed() },
            asynchronous,
            possible_loss: None,
            degraded: false,
            target: None,
        };
        let record = ClusterRecord {
            id: new.id,
            spec: new.spec.clone(),
            revision: 1,
            created_at: at,
            lifecycle: Lifecycle::Active,
            ports: new.ports,
            postgres_major: new.postgres_major,
            secrets: new.secrets.clone(),
            system_identifier: None,
            members: new.members.iter().map(|member| (member.id, member.clone())).collect(),
            departed: Default::default(),
            epoch,
            leadership: Leadership::Chosen { leader: first.id },
            configs: vec![config],
            history: Vec::new(),
            last_timeline: timeline,
            switchover: None,
            restart: None,
            creating: Some(new.operation),
            planned: super::Planned::default(),
            forced: Vec::new(),
            recovered: None,
            updating: None,
            moving: None,
            fetch: None,
            upstreams: Default::default(),
            forked: forked.cloned(),
            returned: Default::default(),
            takes_place: None,
            aside: None,
        };
        let message = match forked {
            Some(forked) => {
                format!("cluster {} forked from {} as it was at {}", new.spec.name, forked.name, forked.taken)
            }
            None => format!("cluster {} created with {} members", new.spec.name, new.members.len()),
        };
        self.start_operation(at, new.operation, OperationKind::CreateCluster, new.id, &new.spec.name);
        self.clusters.insert(new.id, record);
        self.note(at, "cluster_created", message, Some(new.id), None);
        Ok(())
    }

    /// The cluster that a fork is of.
    fn check_forked(
        &self,
        new: &NewCluster,
        forked: &Forked,
        first: &super::MemberRecord,
    ) -> Result<&ClusterRecord, Refusal> {
        let source = self.clusters.get(&forked.cluster).filter(|held| held.lifecycle == Lifecycle::Active);
        let source = source.ok_or_else(|| not_found("cluster", forked.cluster))?;
        if forked.first != first.id {
            return Err(conflict("the data of a fork comes with its first member"));
        }
        if new.postgres_major != source.postgres_major {
            return Err(conflict(format!("a fork has the Postgres of its source, which is {}", source.postgres_major)));
        }
        if (&new.spec.database, &new.spec.owner) != (&source.spec.database, &source.spec.owner) {
            return Err(conflict("a fork has the database and the owner of its source"));
        }
        Ok(source)
    }

    fn change_cluster(
        &mut self,
        at: WallTime,
        id: ClusterId,
        revision: u64,
        change: &ClusterChange,
    ) -> Result<(), Refusal> {
        let Some(held) = self.clusters.get(&id) else { return Err(not_found("cluster", id)) };
        if held.revision != revision {
            return Err(Refusal::StaleRevision { expected: revision, found: held.revision });
        }
        let added = match change {
            ClusterChange::ChangeMembers { added, .. } => added.as_slice(),
            ClusterChange::MoveMember { added, .. } => std::slice::from_ref(added),
            _ => &[],
        };
        if let Some(stranger) = added.iter().find(|member| !self.nodes.contains_key(&member.node)) {
            return Err(not_found("node", stranger.node));
        }
        let mut nodes = added.iter().filter_map(|member| self.nodes.get(&member.node));
        if let Some(node) = nodes.find(|node| !node.service.is_open()) {
            return Err(conflict(format!("node {} takes no members now; look again and decide anew", node.name)));
        }
        self.check_places(held, change)?;
        // On a copy: a refusal half way leaves the record as it was.
        let before = held.clone();
        let mut cluster = before.clone();
        let mut outcome = Outcome::default();
        cluster.change(change, &mut outcome)?;
        cluster.drop_void_upstreams();
        cluster.revision += 1;
        cluster.note_returned(&before);
        let name = cluster.spec.name.clone();
        if cluster.is_gone() {
            self.clusters.remove(&id);
        } else {
            self.clusters.insert(id, cluster);
        }
        if let Some((operation, kind)) = outcome.start {
            self.start_operation(at, operation, kind, id, &name);
        }
        for (operation, failure) in outcome.end.into_iter().chain(outcome.also_end) {
            self.end_operation(at, operation, failure);
        }
        for (kind, message) in outcome.events {
            self.note(at, kind, message, Some(id), None);
        }
        self.reopen_those_aside(at, change, &before);
        Ok(())
    }

    pub(super) fn start_operation(
        &mut self,
        at: WallTime,
        id: OperationId,
        kind: OperationKind,
        cluster: ClusterId,
        name: &str,
    ) {
        if self.operations.len() >= OPERATIONS_MAX {
            // Ids are UUIDs v7, so the first ended one is the oldest.
            let oldest = self.operations.iter().find(|(_, held)| held.state != OperationState::Running);
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                self.operations.remove(&oldest);
            }
        }
        let state = OperationState::Running;
        let cluster_name = name.to_string();
        self.operations.insert(id, OperationRecord { id, kind, cluster, cluster_name, started_at: at, state });
    }

    /// False when there was nothing to end.
    pub(super) fn end_operation(&mut self, at: WallTime, id: OperationId, failure: Option<String>) -> bool {
        match self.operations.get_mut(&id) {
            Some(held) if held.state == OperationState::Running => {
                held.state = match failure {
                    Some(why) => OperationState::Failed { at, why },
                    None => OperationState::Succeeded { at },
                };
                if let Some(cluster) = self.clusters.get_mut(&held.cluster) {
                    cluster.creating.take_if(|creating| *creating == id);
                    if cluster.updating.take_if(|updating| *updating == id).is_some() {
                        cluster.settle_joining();
                    }
                    if let Some(moving) = cluster.moving.take_if(|moving| moving.operation == id)
                        && let Some(held) = cluster.members.get_mut(&moving.to)
                    {
                        held.standing = Standing::Settled;
                    }
                }
                true
            }
            _ => false,
        }
    }

    pub(super) fn note(
        &mut self,
        at: WallTime,
        kind: &str,
        message: String,
        cluster: Option<ClusterId>,
        node: Option<NodeId>,
    ) {
        while self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
        }
        let sequence = self.next_event;
        self.next_event += 1;
        self.events.push_back(EventRecord { sequence, at, kind: kind.to_string(), message, cluster, node });
    }
}

/// What a change does outside its cluster.
#[derive(Default)]
pub(super) struct Outcome {
    pub start: Option<(OperationId, OperationKind)>,
    pub end: Option<(OperationId, Option<String>)>,
    /// Further operations that end with it.
    pub also_end: Vec<(OperationId, Option<String>)>,
    events: Vec<(&'static str, String)>,
}

impl Outcome {
    pub fn event(&mut self, kind: &'static str, message: String) {
        self.events.push((kind, message));
    }
    pub fn into_events(self) -> impl Iterator<Item = (&'static str, String)> {
        self.events.into_iter()
    }
}

impl ClusterRecord {
    fn change(&mut self, change: &ClusterChange, outcome: &mut Outcome) -> Result<(), Refusal> {
        match change {
            ClusterChange::BeginEpoch { epoch, reason, preferred } => {
                self.begin_epoch(*epoch, *reason, *preferred, outcome)
            }
            ClusterChange::Choose { epoch, leader, timeline, start, sync_set, rebuild, possible_loss } => {
                let config = EpochConfig {
                    epoch: *epoch,
                    leader: *leader,
                    timeline: *timeline,
                    start: *start,
                    sync_set: sync_set.clone(),
                    asynchronous: self.spec.is_asynchronous(),
                    possible_loss: *possible_loss,
                    degraded: self.stays_degraded(sync_set),
                    target: None,
                };
                self.choose(config, rebuild, outcome)
            }
            ClusterChange::NotePromotion { epoch, timeline, parent, fork_lsn, end_of_recovery, system_identifier } => {
                let entry = HistoryEntry {
                    epoch: *epoch,
                    timeline: *timeline,
                    parent: *parent,
                    fork_lsn: *fork_lsn,
                    end_of_recovery: *end_of_recovery,
                    leader: self.in_epoch(*epoch)?,
                    possible_loss: self.config().and_then(|config| config.possible_loss),
                };
                self.note_promotion(entry, system_identifier, outcome)
            }
            ClusterChange::Confirm { epoch } => self.confirm(*epoch, outcome),
            ClusterChange::FetchLog { fetch } => self.order_fetch(*fetch, outcome),
            ClusterChange::AddToSyncSet { epoch, incarnation } => {
                let leader = self.in_epoch(*epoch)?;
                if !self.is_confirmed() {
                    return Err(conflict("the sync set changes only in a confirmed epoch"));
                }
                if !self.changes_in_place() {
                    return Err(conflict("nobody counts in an asynchronous cluster"));
                }
                if self.config().is_some_and(|config| config.sync_set.members.contains(incarnation)) {
                    return Err(conflict("that incarnation counts in the sync set already"));
                }
                let current = self.members.get(&incarnation.member).map(super::MemberRecord::current);
                if incarnation.member == leader || current != Some(*incarnation) {
                    return Err(conflict("only the present incarnation of a standby can join the sync set"));
                }
                let revision = self.revision + 1;
                let config = self.configs.last_mut().ok_or_else(|| conflict("no configuration"))?;
                config.sync_set.members.insert(*incarnation);
                if let Some(change) = &mut config.target {
                    change.set.members.insert(*incarnation);
                    change.revision = revision;
                }
                let name = self.member_name(incarnation.member);
                outcome.event("sync_set_grew", format!("{name} counts in the sync set"));
                Ok(())
            }
            ClusterChange::SetSyncSet { epoch, set } => self.set_sync_set(*epoch, set, outcome),
            ClusterChange::SettleSyncSet { epoch, set } => self.settle_sync_set(*epoch, set, outcome),
            ClusterChange::SetUpstreams { epoch, upstreams } => self.set_upstreams(*epoch, upstreams, outcome),
            ClusterChange::Rebuild { member, incarnation, why } => self.rebuild(*member, *incarnation, why, outcome),
            ClusterChange::AdoptIncarnation { member, incarnation } => self.adopt(*member, *incarnation, outcome),
            ClusterChange::UpdateSpec { operation, spec, consumer_password } => {
                self.update_spec(*operation, spec, None, consumer_password.as_ref(), outcome)
            }
            ClusterChange::ChangeMembers { operation, spec, added, consumer_password } => {
                self.update_spec(*operation, spec, Some(added), consumer_password.as_ref(), outcome)
            }
            ClusterChange::MoveMember { operation, member, added } => {
                self.move_member(*operation, *member, added, outcome)
            }
            ClusterChange::CancelMove { operation, why } => self.cancel_move(*operation, why, outcome),
            ClusterChange::MarkLeaving { member, instead_of } => self.mark_leaving(*member, *instead_of, outcome),
            ClusterChange::RemoveMember { member } => self.remove_member(*member, outcome),
            ClusterChange::ReleaseData { member, session } => self.release_data(*member, *session),
            ClusterChange::RequestSwitchover { operation, to } => {
                self.check_idle()?;
                self.begin_switchover(*operation, *to, false, outcome)?;
                outcome.start = Some((*operation, OperationKind::Switchover));
                Ok(())
            }
            ClusterChange::RestartLeader { to } => {
                let operation = self.restart.as_ref().ok_or_else(|| conflict("no restart is under way"))?.operation;
                if self.switchover.is_some() {
                    return Err(conflict("the leader is being restarted already"));
                }
                self.begin_switchover(operation, *to, true, outcome)
            }
            ClusterChange::ScheduleSwitchover { scheduled } => self.schedule_switchover(scheduled, outcome),
            ClusterChange::CancelSwitchover { operation } => {
                self.drop_scheduled(*operation, "switchover_cancelled", "it was cancelled", outcome)
            }
            ClusterChange::MissSwitchover { operation, why } => {
                self.drop_scheduled(*operation, "switchover_missed", why, outcome)
            }
            ClusterChange::BeginScheduledSwitchover { operation, to } => self.begin_scheduled(*operation, *to, outcome),
            ClusterChange::ForceEpoch { at, epoch, operation, to, by, loss } => {
                self.force_epoch(*at, *epoch, *operation, *to, by, loss, outcome)
            }
            ClusterChange::DrainLeader => match &mut self.switchover {
                Some(switchover) => {
                    switchover.draining = true;
                    Ok(())
                }
                None => Err(conflict("no switchover is under way")),
            },
            ClusterChange::EndSwitchover { failure } => {
                let ended = self.switchover.take().ok_or_else(|| conflict("no switchover is under way"))?;
                if failure.is_none() && !ended.for_restart {
                    self.note_switchover_done(ended.from, ended.to);
                }
                if ended.for_restart {
                    return self.end_restart(failure.clone(), outcome);
                }
                let text = failure.as_ref().map_or_else(|| "done".to_string(), |why| format!("failed: {why}"));
                outcome.event("switchover_ended", format!("switchover to {}: {text}", self.member_name(ended.to)));
                outcome.end = Some((ended.operation, failure.clone()));
                Ok(())
            }
            ClusterChange::RequestRestart { operation } => {
                self.check_idle()?;
                if self.members_surplus() > 0 {
                    return Err(conflict("members are leaving the cluster; wait for that to end"));
                }
                self.restart = Some(Restart {
                    operation: *operation,
                    remaining: self.members.keys().copied().collect(),
                    current: None,
                    leader_restarted_in: None,
                });
                outcome.start = Some((*operation, OperationKind::RestartCluster));
                outcome.event("restart_requested", "restart of every member requested".to_string());
                Ok(())
            }
            ClusterChange::RestartMember { member } => {
                let restart = self.restart.as_mut().ok_or_else(|| conflict("no restart is under way"))?;
                match member {
                    Some(id) => {
                        let held = self.members.get_mut(id).ok_or_else(|| not_found("member", id))?;
                        held.restarts += 1;
                        restart.current = Some(*id);
                    }
                    None => {
                        if let Some(done) = restart.current.take() {
                            restart.remaining.remove(&done);
                        }
                    }
                }
                Ok(())
            }
            ClusterChange::EndRestart { failure } => self.end_restart(failure.clone(), outcome),
            ClusterChange::RequestDelete { operation } => {
                if let Lifecycle::Deleting { .. } = self.lifecycle {
                    return Err(conflict("the cluster is being deleted already"));
                }
                let ended = "the cluster is being deleted".to_string();
                if let Some(creating) = self.creating.take() {
                    outcome.end = Some((creating, Some(ended.clone())));
                } else if let Some(switchover) = self.switchover.take() {
                    outcome.end = Some((switchover.operation, Some(ended.clone())));
                } else if let Some(restart) = self.restart.take() {
                    outcome.end = Some((restart.operation, Some(ended)));
                } else if let Some(updating) = self.updating.take() {
                    outcome.end = Some((updating, Some(ended)));
                }
                self.end_asked(&format!("cluster {} is being deleted", self.spec.name), outcome);
                self.switchover = None;
                self.restart = None;
                self.updating = None;
                self.lifecycle = Lifecycle::Deleting { operation: *operation };
                outcome.start = Some((*operation, OperationKind::DeleteCluster));
                outcome.event("delete_requested", format!("deletion of cluster {} requested", self.spec.name));
                Ok(())
            }
            ClusterChange::SetAside { to } => self.set_aside(*to, outcome),
            ClusterChange::TakeBackPlace { operation, kept_as } => self.take_back_place(*operation, kept_as, outcome),
            ClusterChange::CancelPlace { operation, why } => self.cancel_place(*operation, why, outcome),
            ClusterChange::NoteRemoved { member } => self.note_removed(*member, outcome),
            ClusterChange::ReplaceSecrets { secrets } => {
                self.secrets = secrets.clone();
                outcome.event("certificate_renewed", "server certificate renewed for the present nodes".to_string());
                Ok(())
            }
        }
    }

    fn rebuild(&mut self, member: MemberId, incarnation: u32, why: &str, outcome: &mut Outcome) -> Result<(), Refusal> {
        let name = self.member_name(member);
        let leader = self.leadership.leader();
        let held = self.members.get(&member).ok_or_else(|| not_found("member", member))?;
        if incarnation != self.next_incarnation(held) {
            return Err(conflict(format!("{name} is at incarnation {}", held.incarnation)));
        }
        if leader == Some(member) {
            return Err(conflict("a leader is never rebuilt"));
        }
        let current = held.current();
        if !self.is_confirmed() {
            return Err(conflict("a member forgets only when the epoch is confirmed"));
        }
        if self.configs.iter().any(|config| config.sync_set.members.contains(&current)) {
            return Err(conflict(format!("{name} counts in the sync set and must leave it before it forgets")));
        }
        if let Some(held) = self.members.get_mut(&member) {
            held.incarnation = incarnation;
        }
        outcome.event("member_rebuilt", format!("{name} starts again as incarnation {incarnation}: {why}"));
        Ok(())
    }

    pub(super) fn begin_switchover(
        &mut self,
        operation: OperationId,
        to: MemberId,
        for_restart: bool,
        outcome: &mut Outcome,
    ) -> Result<(), Refusal> {
        let Leadership::Confirmed { leader: from } = self.leadership else {
            return Err(conflict("the cluster has no confirmed leader now"));
        };
        if !self.members.contains_key(&to) {
            return Err(not_found("member", to));
        }
        if from == to {
            return Err(conflict(format!("{} leads already", self.member_name(to))));
        }
        if !for_restart && self.is_leaving(to) {
            return Err(conflict(format!("{} is leaving the cluster; choose another one", self.member_name(to))));
        }
        self.switchover = Some(Switchover { operation, from, to, epoch: self.epoch, draining: false, for_restart });
        let message = format!("switchover from {} to {} requested", self.member_name(from), self.member_name(to));
        outcome.event("switchover_requested", message);
        Ok(())
    }

    fn end_restart(&mut self, failure: Option<String>, outcome: &mut Outcome) -> Result<(), Refusal> {
        let ended = self.restart.take().ok_or_else(|| conflict("no restart is under way"))?;
        let text = failure.as_ref().map_or_else(|| "done".to_string(), |why| format!("failed: {why}"));
        outcome.event("restart_ended", format!("restart: {text}"));
        outcome.end = Some((ended.operation, failure));
        Ok(())
    }

    pub(super) fn check_active(&self) -> Result<(), Refusal> {
        match self.lifecycle {
            Lifecycle::Active => Ok(()),
            Lifecycle::Deleting { .. } => Err(conflict("the cluster is being deleted")),
        }
    }

    pub(super) fn check_idle(&self) -> Result<(), Refusal> {
        self.check_active()?;
        if self.switchover.is_some() {
            return Err(conflict("a switchover is under way; wait for it to end"));
        }
        if self.restart.is_some() {
            return Err(conflict("a restart is under way; wait for it to end"));
        }
        Ok(())
    }

    pub(super) fn member_name(&self, id: MemberId) -> String {
        self.members.get(&id).map_or_else(|| id.to_string(), |member| member.name.clone())
    }
}

pub(super) fn not_found(what: &str, id: impl ToString) -> Refusal {
    Refusal::NotFound { what: what.to_string(), id: id.to_string() }
}
