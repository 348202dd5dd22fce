//! A person asks for more members or for fewer.

use crate::world::{World, member_id, member_record};
use pgstead_types::MemberId;
use pgstead_types::record::{ClusterChange, Lifecycle};
use std::collections::BTreeSet;

impl World {
    /// So many members are asked for, and `needed` acknowledgements. New ones get the first nodes that hold nothing of the
    /// cluster. Whether anybody took the request; what the record refuses changes nothing.
    pub fn ask_members(&mut self, members: usize, needed: Option<u8>) -> Result<(), String> {
        let Some(cluster) = self.cluster() else { return Err("there is no cluster".into()) };
        let mut spec = cluster.spec.clone();
        spec.members = u8::try_from(members).map_err(|_| "too many members")?;
        spec.sync_replicas = needed.or(spec.sync_replicas.filter(|k| usize::from(*k) < members));
        let held: BTreeSet<MemberId> = cluster.members.keys().chain(cluster.departed.keys()).copied().collect();
        let lacking = members.saturating_sub(cluster.members.len());
        let free = (0..self.machines.len()).filter(|n| !held.contains(&member_id(*n)));
        let free: Vec<usize> = free.take(lacking).collect();
        if free.len() < lacking {
            return Err("there are too few nodes".into());
        }
        self.members = self.members.max(free.iter().map(|n| n + 1).max().unwrap_or(0));
        let operation = self.next_operation();
        let added = free.into_iter().map(member_record).collect();
        self.count("changes of the number of members");
        match self.request(ClusterChange::ChangeMembers {
            operation,
            spec: Box::new(spec),
            added,
            consumer_password: None,
        }) {
            true => Ok(()),
            false => Err("no node is the controller now".into()),
        }
    }

    /// The member on a machine is to be replaced by one on the first machine that holds nothing of the cluster.
    pub fn move_member(&mut self, from: usize) -> Result<(), String> {
        let Some(cluster) = self.cluster() else { return Err("there is no cluster".into()) };
        let held: BTreeSet<MemberId> = cluster.members.keys().chain(cluster.departed.keys()).copied().collect();
        let to = (0..self.machines.len()).find(|n| !held.contains(&member_id(*n))).ok_or("there is no free node")?;
        self.members = self.members.max(to + 1);
        let operation = self.next_operation();
        self.count("moves of members");
        let change = ClusterChange::MoveMember { operation, member: member_id(from), added: member_record(to) };
        match self.request(change) {
            true => Ok(()),
            false => Err("no node is the controller now".into()),
        }
    }

    /// Machines with a member of the cluster, by the record.
    pub fn member_machines(&self) -> Vec<usize> {
        let recorded = |n: &usize| self.cluster().is_some_and(|cluster| cluster.members.contains_key(&member_id(*n)));
        (0..self.members).filter(recorded).collect()
    }

    /// Machines without a member that still have data or a process of one. An empty volume is none of these: a daemon that was
    /// restarted makes one where it is shown a record from before its member has left, and cannot be copied to.
    pub fn left_overs(&self) -> Vec<usize> {
        let active = self.cluster().is_some_and(|cluster| cluster.lifecycle == Lifecycle::Active);
        let members = self.member_machines();
        let holds = |n: &usize| {
            let machine = &self.machines[*n];
            let disk = &machine.disk;
            disk.data.is_some() || disk.aside.is_some() || !disk.kept.is_empty() || machine.run.is_some()
        };
        (0..self.machines.len()).filter(|n| active && !members.contains(n) && holds(n)).collect()
    }

    /// A member has left this machine, and data that was given up stays for a person.
    pub fn is_kept_for_a_person(&self, n: usize) -> bool {
        let given_up = |life| self.cluster().is_some_and(|cluster| cluster.is_given_up(life));
        let departed = self.cluster().is_some_and(|cluster| cluster.departed.contains_key(&member_id(n)));
        let machine = &self.machines[n];
        let kept = !machine.disk.kept.is_empty() || machine.data().is_some_and(|data| given_up(data.incarnation));
        departed && kept && machine.run.is_none()
    }
}
