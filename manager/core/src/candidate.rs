//! Who is chosen, and with whom: the promiser with the greatest (timeline on disk, LSN).

use crate::lease;
use crate::quorum::{Missing, electable_but};
use pgstead_types::record::{ClusterChange, ClusterRecord, EpochConfig, PossibleLoss, SyncSet};
use pgstead_types::report::PromiseAnswer;
use pgstead_types::spec::Durability;
use pgstead_types::{Epoch, Incarnation, MemberId, Timeline};
use std::collections::{BTreeMap, BTreeSet};

/// Promises of the present epoch by incarnations that the record knows, from members that are here.
pub(crate) type Promises = BTreeMap<Incarnation, PromiseAnswer>;

/// The one to be chosen among `promises`. The suspected old leader is taken only when the others are not enough without it
/// or when it is `preferred`: its log may reach further, but only with commits that nobody was told of. An asynchronous
/// leader has told its clients of all of them, so it is ranked like the others, and all of them by how much of its log they
/// have. The `unfit` are passed over where whoever is left is enough without them, so that nothing acknowledged is passed
/// over with them; of an asynchronous cluster what that may lose is recorded. `over`: see [`crate::lease`].
pub(crate) fn rank(
    cluster: &ClusterRecord,
    promises: &Promises,
    preferred: Option<MemberId>,
    unfit: &BTreeSet<MemberId>,
    over: &BTreeSet<Epoch>,
) -> Result<PromiseAnswer, Option<Missing>> {
    let all: BTreeSet<Incarnation> = promises.keys().copied().collect();
    electable_but(&cluster.configs, &all, over)?;
    let suspect = cluster.configs.last().map(|config| config.leader);
    let acknowledged_alone = lease::acknowledged_alone(cluster).is_some();
    let suspect_wanted = acknowledged_alone || suspect.is_some_and(|life| preferred == Some(life.member));
    let is_suspect = |life: &Incarnation| Some(*life) == suspect && !suspect_wanted;
    let is_unfit = |life: &Incarnation| unfit.contains(&life.member);
    let without = |passed_over: &dyn Fn(&Incarnation) -> bool| -> BTreeSet<Incarnation> {
        all.iter().copied().filter(|life| !passed_over(life)).collect()
    };
    // Of an asynchronous cluster one that leaves may have what nobody else has.
    let leaves = |life: &Incarnation| cluster.is_leaving(life.member);
    let passes_leaving = |life: &Incarnation| leaves(life) && !acknowledged_alone;
    let fields = [
        without(&|life| is_suspect(life) || is_unfit(life) || passes_leaving(life)),
        without(&|life| is_suspect(life) || is_unfit(life)),
        without(&is_unfit),
        without(&is_suspect),
    ];
    // Whether the others are enough, a record that was recovered and may not know the last configuration cannot say.
    let others = fields.iter().filter(|_| cluster.recovering().is_none());
    let field = { others }.find(|field| electable_but(&cluster.configs, field, over).is_ok()).unwrap_or(&all);
    let best = field
        .iter()
        .filter_map(|life| promises.get(life))
        // Of equals, one that is well, is to stay, and has not just been lost or failed to be promoted.
        .max_by_key(|answer| {
            let life = &answer.incarnation;
            let shared = lease::shared(cluster, answer.position);
            (shared, answer.position, !is_unfit(life), !leaves(life), Some(*life) != suspect)
        })
        .ok_or(None)?;
    // Whoever holds as much and is well, even where the others would not be enough without the unfit one.
    let equal = |answer: &&PromiseAnswer| answer.position == best.position && !is_unfit(&answer.incarnation);
    let fit = promises.values().find(equal).filter(|_| is_unfit(&best.incarnation)).unwrap_or(best);
    // The preferred one only where it holds as much.
    let wanted = field
        .iter()
        .filter_map(|life| promises.get(life))
        .find(|answer| Some(answer.incarnation.member) == preferred && answer.position == best.position)
        .filter(|answer| !is_unfit(&answer.incarnation));
    Ok(*wanted.unwrap_or(fit))
}

/// The change that names `chosen`, with a timeline never given before and the set that it starts with: whoever has
/// promised and is part of its history. Where those are too few, the missing ones are waited for, under a new
/// incarnation if they must be made anew.
pub(crate) fn choice(
    cluster: &ClusterRecord,
    promises: &Promises,
    chosen: PromiseAnswer,
    must_rebuild: &BTreeSet<MemberId>,
    possible_loss: Option<PossibleLoss>,
) -> ClusterChange {
    let mut members: BTreeSet<Incarnation> = promises
        .values()
        // In an asynchronous cluster nobody counts.
        .filter(|answer| answer.incarnation != chosen.incarnation && !cluster.spec.is_asynchronous())
        .filter(|answer| cluster.is_prefix(answer.position, chosen.position))
        .filter(|answer| !must_rebuild.contains(&answer.incarnation.member))
        .map(|answer| answer.incarnation)
        .collect();
    // Never more than was asked for last, or than are here to acknowledge: what is still being raised is raised again under
    // the new leader. Never fewer than are here either: a leader that was left alone for want of standbys has these now. After
    // one that was to acknowledge alone, or went on with fewer and must not any more, all of it.
    let waits_again = |config: &&EpochConfig| config.degraded && cluster.spec.durability == Durability::Strict;
    let last = cluster.configs.last().filter(|config| !config.asynchronous && !waits_again(config));
    let here = u8::try_from(members.len()).unwrap_or(u8::MAX);
    let needed = cluster.spec.needed().min(last.map_or(u8::MAX, |config| config.sync_set.needed.max(here)));
    if needed == 0 {
        members.clear();
    }
    let mut rebuild = Vec::new();
    if members.len() < usize::from(needed) {
        for member in cluster.members.values().filter(|member| member.id != chosen.incarnation.member) {
            if members.contains(&member.current()) {
                continue;
            }
            let mut life = member.current();
            // One that promised and is no part of the chosen one's history is made anew as well: as it is, it could never
            // follow. The chosen one holds all that its promise vouched for.
            if must_rebuild.contains(&member.id) || promises.contains_key(&life) {
                life.number = cluster.next_incarnation(member);
                rebuild.push(member.id);
            }
            members.insert(life);
        }
    }
    let newest = cluster.last_timeline.max(chosen.position.timeline);
    ClusterChange::Choose {
        epoch: cluster.epoch,
        leader: chosen.incarnation,
        timeline: Timeline(newest.0 + 1),
        start: chosen.position,
        sync_set: SyncSet { members, needed },
        rebuild,
        possible_loss,
    }
}

#[cfg(test)]
mod tests;
