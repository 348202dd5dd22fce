//! Standbys that are fed by a standby of their zone: they follow, stream from the leader when their relay is gone, and lose
//! nothing whoever leads.

use crate::support::{Bed, LATER, LONG_LEASE, SOON};
use anyhow::{Context, ensure};
use pgstead_api::SwitchoverBody;
use pgstead_api::view::{ClusterView, MemberState, MemberView};
use pgstead_cluster_tests::{Setup, Testbed};
use pgstead_types::Tick;
use pgstead_types::spec::{Cascade, ClusterSpec};

/// Four members in two zones.
pub async fn bed(cascade: Cascade) -> anyhow::Result<Bed> {
    let bed = Bed::start_with(Setup { nodes: 4, zones: 2, config: LONG_LEASE.to_string(), ..Setup::default() }).await?;
    bed.create_cluster(&ClusterSpec { members: 4, cascade, ..ClusterSpec::named("app") }).await?;
    Ok(bed)
}

/// The member that is fed by another standby, with that one, once it streams.
pub fn fed(view: &ClusterView) -> Option<(&MemberView, &MemberView)> {
    let leader = view.leader.as_ref()?;
    let is_fed = |member: &&MemberView| member.upstream.as_ref().is_some_and(|upstream| *upstream != leader.name);
    let fed = view.members.iter().find(is_fed)?;
    let relay = view.members.iter().find(|member| Some(&member.name) == fed.upstream.as_ref())?;
    let streams = fed.observed.as_ref().is_some_and(|seen| !seen.stale && seen.state == MemberState::Streaming);
    (streams && !fed.in_sync_set && relay.in_sync_set).then_some((relay, fed))
}

async fn until_fed(bed: &Testbed) -> anyhow::Result<(usize, usize)> {
    let client = bed.client()?;
    let is_fed = async || {
        let view = client.cluster("app").await.map_err(|error| error.to_string())?;
        let number =
            |member: &MemberView| bed.nodes().iter().find(|node| node.name == member.node.name).map(|n| n.number);
        let found = fed(&view).and_then(|(relay, fed)| Some((number(relay)?, number(fed)?)));
        found.ok_or_else(|| format!("{:?}: {}; {:?}", view.health, view.why, view.members))
    };
    bed.wait_for("one standby feeds another", LATER, is_fed).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fed_standby_follows_outlives_its_relay_and_whoever_leads_has_every_row() -> anyhow::Result<()> {
    let mut bed = bed(Cascade::Zone).await?;
    let writers = bed.writers().await?;
    let (relay, member) = until_fed(&bed).await?;
    let leader = bed.leader_node("app").await?;
    ensure!(relay % 2 == member % 2 && relay % 2 != leader % 2, "{relay} feeds {member}, {leader} leads");
    bed.wait_healthy("app", LATER).await?;

    // Its relay is gone with everything: it streams from the leader, and counts.
    let name = bed.member_on("app", member).await?.name;
    bed.kill_node(relay)?;
    let client = bed.client()?;
    let counts = async || {
        let view = client.cluster("app").await.map_err(|error| error.to_string())?;
        let leader = view.leader.as_ref().map(|leader| leader.name.clone());
        let one = view.members.iter().find(|member| member.name == name).ok_or("it is no member")?;
        if one.upstream == leader && one.in_sync_set { Ok(()) } else { Err(format!("{one:?}")) }
    };
    bed.wait_for("it counts at the leader", SOON, counts).await?;
    writers.all_write_again(Tick::now(), SOON).await?;
    bed.start_daemon(relay)?;

    // It feeds, or is fed, again; then it leads.
    let (relay, _) = until_fed(&bed).await?;
    bed.wait_healthy("app", LATER).await?;
    let to = bed.member_on("app", relay).await?.name;
    let request = SwitchoverBody { to: Some(to), ..SwitchoverBody::default() };
    let asked = async || client.switchover("app", &request, None).await.map(drop).map_err(|error| error.to_string());
    bed.wait_for("the switchover is accepted", SOON, asked).await?;
    let next = bed.leader_leaves("app", leader).await?;
    ensure!(next == relay, "{next} leads instead of {relay}");
    writers.all_write_again(Tick::now(), SOON).await?;

    // And is lost with its node.
    bed.kill_node(next)?;
    bed.leader_leaves("app", next).await?;
    bed.start_daemon(next)?;
    until_fed(&bed).await?;
    let view = bed.nothing_is_lost(writers).await?;
    ensure!(view.members.iter().filter(|member| member.in_sync_set).count() >= 2, "{view:?}");
    let events = bed.client()?.events(None, Some("app"), std::time::Duration::ZERO).await?.events;
    for kind in ["cascaded", "cascade_ended"] {
        events.iter().find(|event| event.kind == kind).with_context(|| format!("no event {kind}: {events:?}"))?;
    }
    Ok(())
}
