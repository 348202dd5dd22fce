//! A cluster takes another one's place: first it is all that its spec says, then the other one is seen to take no clients, and then
//! the two exchange what clients know them by. At no time do both take clients under one name.

use crate::lease;
use crate::observed::{Observed, Policy};
use pgstead_types::record::{Aside, ClusterChange, ClusterRecord, Leadership, Record};
use pgstead_types::report::{ClientAccess, PostgresSeen, PrimarySeen, SetBy};
use pgstead_types::{ClusterId, Finding};
use std::time::Duration;

/// For so long a cluster takes no clients before its place is taken: then it is given up.
pub const CLOSED_MAX: Duration = Duration::from_secs(10);

/// What comes next for a cluster that is to take another one's place.
#[derive(Clone, PartialEq, Debug)]
pub enum PlaceStep {
    /// A change of that cluster, decided on that revision.
    Change { cluster: ClusterId, revision: u64, change: ClusterChange },
    /// Both are at these revisions.
    Take { cluster: ClusterId, revision: u64, of_revision: u64 },
    /// The finding says what for.
    Wait(Finding),
}

/// `None` where the cluster takes nobody's place.
pub fn take_place(record: &Record, cluster: ClusterId, observed: &Observed, policy: &Policy) -> Option<PlaceStep> {
    let taker = record.clusters.get(&cluster)?;
    let place = taker.takes_place.as_ref()?;
    let Some(of) = record.clusters.get(&place.of) else {
        let (operation, why) = (place.operation, "the cluster whose place it was to take is gone".to_string());
        return Some(change(taker, ClusterChange::CancelPlace { operation, why }));
    };
    let wait = |on: &ClusterRecord, why: String| {
        let (name, taken) = (&taker.spec.name, &of.spec.name);
        let text = format!("{name} is to take the place of {taken}, and waits: {why}");
        Some(PlaceStep::Wait(Finding::info("place_not_taken_yet", text).on_cluster(on.id)))
    };
    if let Err(why) = is_complete(taker, observed, policy) {
        return wait(taker, why);
    }
    let Some(aside) = of.aside.filter(|aside| aside.to == taker.id) else {
        // Whoever cannot say that it takes no clients goes on to serve them.
        if primary(of, observed, policy).is_none() {
            return wait(
                taker,
                format!("{} has no leader that is seen to run, and could say that it takes no clients", of.spec.name),
            );
        }
        return Some(change(of, ClusterChange::SetAside { to: taker.id }));
    };
    if let Err(why) = takes_no_clients(of, aside, observed, policy) {
        return wait(of, why);
    }
    Some(PlaceStep::Take { cluster: taker.id, revision: taker.revision, of_revision: of.revision })
}

fn change(of: &ClusterRecord, change: ClusterChange) -> PlaceStep {
    PlaceStep::Change { cluster: of.id, revision: of.revision, change }
}

fn primary<'a>(cluster: &'a ClusterRecord, observed: &'a Observed, policy: &Policy) -> Option<&'a PrimarySeen> {
    let Leadership::Confirmed { leader } = cluster.leadership else { return None };
    let primary = observed.fresh(cluster, leader, policy)?.as_primary()?;
    (primary.epoch == Some(cluster.epoch)).then_some(primary)
}

/// Whether it is what its spec says, so that nothing is less safe in it than in the one whose place it takes.
fn is_complete(cluster: &ClusterRecord, observed: &Observed, policy: &Policy) -> Result<(), String> {
    if cluster.creating.is_some() {
        return Err("not all of its members are made yet".into());
    }
    let Some(primary) = primary(cluster, observed, policy) else {
        return Err("it has no leader that is seen to run".into());
    };
    let Some(config) = cluster.config() else { return Err("it has no leader".into()) };
    let needed = cluster.spec.needed();
    if config.target.is_some() || config.sync_set.needed < needed {
        return Err(format!("its commits need {} standbys now, and {needed} by the spec", config.sync_set.needed));
    }
    let streaming = crate::steady::acknowledging(primary, config);
    if !lease::is_asynchronous(cluster) && streaming < usize::from(needed) {
        return Err(format!("{streaming} of the {needed} standbys that its commits need stream"));
    }
    // One that takes its place back takes none either until it has it.
    if primary.access != ClientAccess::Open && cluster.aside.is_none() {
        return Err("it does not let clients in yet".into());
    }
    Ok(())
}

/// Whether its leader has said so by a record that has it, and will not let anybody in by an older one. A leader of a later epoch
/// begins with a record that has it; until there is one, an old leader that is not heard may still take clients.
pub fn takes_no_clients(
    cluster: &ClusterRecord,
    aside: Aside,
    observed: &Observed,
    policy: &Policy,
) -> Result<(), String> {
    let name = &cluster.spec.name;
    let Leadership::Confirmed { leader } = cluster.leadership else {
        return Err(format!("{name} has no confirmed leader, so nobody can say that an earlier one takes no clients"));
    };
    let unheard = || {
        let leader = cluster.members.get(&leader).map_or("its leader", |member| member.name.as_str());
        format!(
            "{leader} has not said yet that it takes no clients; if it is lost, have another member lead \
             (`pgstead cluster failover {name} --force`), or take this back (`pgstead cluster rollback {name} --cancel`)"
        )
    };
    let report = observed.fresh(cluster, leader, policy).ok_or_else(unheard)?;
    let primary = report.as_primary().filter(|primary| primary.epoch == Some(cluster.epoch)).ok_or_else(unheard)?;
    let by = SetBy { epoch: cluster.epoch, revision: aside.revision };
    let holds =
        primary.access == ClientAccess::Holding && report.revision >= aside.revision && report.set_by >= Some(by);
    if !holds {
        return Err(unheard());
    }
    // Those that are not heard may still be read from, by whoever is where they are.
    for member in cluster.members.values().filter(|member| member.id != leader) {
        let Some(report) = observed.fresh(cluster, member.id, policy) else { continue };
        let open = matches!(&report.postgres, PostgresSeen::Standby(standby) if standby.access == ClientAccess::Open);
        if open || report.revision < aside.revision {
            return Err(format!("{} has not said yet that it takes no clients", member.name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
