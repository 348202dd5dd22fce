//! What a person does in a disaster, as the commands do it: looks at what would be lost, and forces a leader. Also the
//! courses of those seeds that have one; no other seed may lose a row.

use crate::faults::Fault;
use crate::rng::Rng;
use crate::world::{CLUSTER, Event, World, member_id, node_id};
use pgstead_core::{ForcedCheck, check_forced, check_switchover};
use pgstead_types::record::{ClusterChange, ClusterRecord, Command, ScheduledSwitchover};
use pgstead_types::{Finding, MemberId, RecoveryId, WallTime};
use std::time::Duration;

/// Nodes of a course with a forced failover: three members, and enough others that the consensus outlives two of them.
const NODES: usize = 5;

/// One seed in twenty-five has a forced failover.
pub fn is_forced(seed: u64) -> bool {
    Rng::new(seed ^ 0xF0_4CED).below(25) == 0
}

impl World {
    /// What forcing a leader would mean, by what the controller knows.
    pub fn check_forced(&mut self, to: usize) -> Result<ForcedCheck, String> {
        let n = self.newest_controller().ok_or("no node is the controller now")?;
        let record = self.raft.record(n);
        let cluster = record.clusters.get(&CLUSTER).ok_or("there is no cluster")?;
        let (now, policy) = (self.now, self.policy);
        let controller = self.machines[n].daemon.as_mut().and_then(|daemon| daemon.controller.as_mut());
        let controller = controller.ok_or("no node is the controller now")?;
        controller.observed.now = now;
        Ok(check_forced(cluster, &controller.observed, &policy, member_id(to)))
    }

    /// Forces a leader, if that is not refused.
    pub fn force(&mut self, to: usize) -> Result<(), String> {
        let ForcedCheck { loss, epoch, refused, .. } = self.check_forced(to)?;
        if let Some(finding) = refused.first() {
            self.say(format!("refused   {finding}"));
            return Err(finding.to_string());
        }
        let operation = self.next_operation();
        let at = WallTime(self.now.as_millis() as i64);
        let to = member_id(to);
        self.count("fault: failover forced");
        let change = ClusterChange::ForceEpoch { at, epoch, operation, to, by: "a person".into(), loss };
        let n = self.newest_controller().ok_or("no node is the controller now")?;
        let revision = self.raft.record(n).clusters.get(&CLUSTER).map(|cluster| cluster.revision);
        let revision = revision.ok_or("there is no cluster")?;
        self.propose_by_hand(n, Command::ChangeCluster { at, cluster: CLUSTER, revision, change });
        Ok(())
    }

    /// One that was cut off may still believe that it is the controller; a person finds out that it decides nothing.
    fn newest_controller(&self) -> Option<usize> {
        let thawed =
            (0..self.machines.len()).filter(|n| !self.machines[*n].frozen && self.machines[*n].daemon.is_some());
        thawed.filter_map(|n| Some((self.raft.leads(n)?, n))).max().map(|(_, n)| n)
    }

    /// To whoever leads, where somebody does.
    pub fn propose(&mut self, command: Command) {
        if let Some(n) = self.newest_controller() {
            self.propose_by_hand(n, command);
        }
    }

    fn propose_by_hand(&mut self, n: usize, command: Command) {
        self.serial += 1;
        self.tickets.insert(self.serial, (usize::MAX, 0));
        self.raft.propose(n, self.serial, command);
    }

    /// What the recovery of the record from a survivor's copy does to it, with these nodes given up as lost. The consensus itself
    /// goes on: that the last entries are missing is not modelled.
    pub fn recover_record(&mut self, lost: &[usize]) -> Result<(), String> {
        let n = self.newest_controller().ok_or("no node is the controller now")?;
        let at = WallTime(self.now.as_millis() as i64);
        let recovery = RecoveryId::from_u128(u128::from(self.serial) + 1);
        let lost = lost.iter().map(|node| node_id(*node)).collect();
        self.propose_by_hand(n, Command::RecoverQuorum { at, recovery, node: node_id(n), by: "a person".into(), lost });
        Ok(())
    }

    /// Asks for a switchover that begins after `from` and before `until` from now.
    pub fn schedule(&mut self, to: Option<usize>, from: Duration, until: Duration) -> Result<(), String> {
        let now = WallTime(self.now.as_millis() as i64);
        let (not_before, not_after) = (now.plus(from), now.plus(until));
        let scheduled =
            ScheduledSwitchover { operation: self.next_operation(), to: to.map(member_id), not_before, not_after };
        match self.request(ClusterChange::ScheduleSwitchover { scheduled }) {
            true => Ok(()),
            false => Err("no node is the controller now".into()),
        }
    }

    pub fn cancel(&mut self) -> Result<(), String> {
        let held = self.cluster().and_then(|cluster| cluster.planned.scheduled.as_ref());
        let operation = held.map(|scheduled| scheduled.operation).ok_or("no switchover is scheduled")?;
        match self.request(ClusterChange::CancelSwitchover { operation }) {
            true => Ok(()),
            false => Err("no node is the controller now".into()),
        }
    }

    /// Back to the leader before the last switchover, as the route decides it.
    pub fn undo(&mut self) -> Result<(), String> {
        let n = self.controller().ok_or("no node is the controller now")?;
        let cluster = self.cluster().cloned().ok_or("there is no cluster")?;
        let last = cluster.planned.last.filter(|last| cluster.leadership.leader() == Some(last.to));
        let to = last.ok_or("there is no switchover to undo")?.from;
        if let Some(finding) = self.blocks_switchover(n, &cluster, to)?.first() {
            return Err(finding.to_string());
        }
        let operation = self.next_operation();
        self.request(ClusterChange::RequestSwitchover { operation, to });
        Ok(())
    }

    /// What speaks against handing over to `to`, as the command shows it.
    fn blocks_switchover(&self, n: usize, cluster: &ClusterRecord, to: MemberId) -> Result<Vec<Finding>, String> {
        let controller = self.machines[n].daemon.as_ref().and_then(|daemon| daemon.controller.as_ref());
        let observed = &controller.ok_or("no node is the controller now")?.observed;
        Ok(check_switchover(cluster, observed, &self.policy, Some(to)).findings)
    }

    /// Whom a person hands over to where a finding says that only that helps. Nobody, where none does, or nobody could take over.
    pub fn next_leader_by_hand(&self) -> Option<MemberId> {
        let says = |finding: &String| finding.contains("have another member lead with `pgstead cluster switchover");
        self.findings.iter().find(|finding| says(finding))?;
        let (n, cluster) = (self.controller()?, self.cluster()?);
        let leader = cluster.leadership.leader()?;
        let can_lead = |to: &MemberId| self.blocks_switchover(n, cluster, *to).is_ok_and(|found| found.is_empty());
        cluster.members.keys().copied().filter(|member| *member != leader).find(can_lead)
    }
    pub fn switch_over(&mut self, to: MemberId) {
        self.say("> a person has another member lead");
        let operation = self.next_operation();
        self.request(ClusterChange::RequestSwitchover { operation, to });
    }
}

/// A world for [`course`].
pub fn world(seed: u64) -> World {
    World::new(seed, 3, None, NODES)
}

/// The leader and a standby become useless in one of several ways, a person forces the one that is left, and later
/// everything comes back.
pub fn course(world: &mut World) -> Result<(), String> {
    for home in [None, Some(0), Some(2)] {
        world.add_client(home, u64::MAX);
    }
    world.run_for(Duration::from_secs(1))?;
    crate::run::settle(world, Duration::from_secs(120))?;
    let pause = world.rng.ms(500, 4000);
    world.run_for(pause)?;
    let leader = world.leader().unwrap_or(0);
    let survivor = (leader + 1 + world.rng.below(2) as usize) % 3;
    let other = 3 - leader - survivor;
    // One that lags, so that something is lost.
    if world.rng.chance(60) {
        world.inflict(Fault::CutPostgres(leader, survivor));
        let pause = world.rng.ms(200, 3000);
        world.run_for(pause)?;
    }
    match world.rng.below(4) {
        0 => [leader, other].into_iter().for_each(|node| world.inflict(Fault::KillNode { node, heard: true })),
        1 => [leader, other].into_iter().for_each(|node| world.inflict(Fault::KillNode { node, heard: false })),
        2 => [leader, other].into_iter().for_each(|node| world.inflict(Fault::Freeze(node))),
        // The harshest: the two go on for clients on their side.
        _ => {
            for near in [leader, other] {
                for far in (0..NODES).filter(|far| ![leader, other].contains(far)) {
                    world.inflict(Fault::Cut(near, far));
                    world.inflict(Fault::Cut(far, near));
                }
            }
        }
    }
    if world.rng.chance(30) {
        // Until those who are left have a controller.
        let pause = world.rng.ms(3000, 9000);
        world.run_for(pause)?;
        let lost = if world.rng.chance(50) { vec![leader, other] } else { vec![other] };
        let _ = world.recover_record(&lost);
    }
    // The person comes late, looks, and is refused as long as an ordinary election may succeed.
    for _ in 0..20 {
        let pause = world.rng.ms(1000, 6000);
        world.run_for(pause)?;
        if world.force(survivor).is_ok() {
            break;
        }
    }
    let more = world.rng.below(4);
    match more {
        0 => world.inflict(Fault::KillPostmaster(survivor)),
        1 => {
            if let Some(node) = world.controller() {
                world.inflict(Fault::KillDaemon(node));
                let back = world.rng.ms(500, 3000);
                world.after(back, Event::Fault(Fault::StartDaemon(node)));
            }
        }
        _ => {}
    }
    let pause = world.rng.ms(500, 15_000);
    world.run_for(pause)?;
    // Without a person it stays without a leader, also when everything is back: the data of the lost is not the cluster's.
    if world.cluster().is_some_and(|cluster| cluster.recovering().is_some()) {
        world.calm();
        for _ in 0..20 {
            world.run_for(Duration::from_secs(3))?;
            if world.cluster().is_none_or(|cluster| cluster.recovering().is_none()) {
                break;
            }
            // Refused where another that is back has more: the person names that one then.
            if [survivor, leader, other].into_iter().any(|member| world.force(member).is_ok()) {
                break;
            }
        }
    }
    Ok(())
}
