//! Whole nodes die at chosen moments of a switchover, a promotion and a rejoin. The daemon ends itself at a step, as in
//! `kill_points`, and with it everything else on its node.

use super::{Clients, Course, another_leads, end_with_a_row_of_its_own, in_lab, leader_of};
use crate::support::{Bed, LATER};
use anyhow::ensure;
use pgstead_cluster_tests::until;
use pgstead_types::Step;

/// `before:<step>` or `after:<step>`.
fn before(step: Step) -> String {
    format!("before:{step}")
}
fn after(step: Step) -> String {
    format!("after:{step}")
}

/// Starts the daemon of a node so that it ends at these points, once at each in all of the test.
fn start_mortal(bed: &mut Bed, node: usize, points: &[String]) -> anyhow::Result<()> {
    bed.start_daemon_with(node, &[("PGSTEAD_TEST_ABORT".to_string(), points.join(","))])
}

/// Kills what is left of every node whose daemon has ended, and starts it again with the same points, until the cluster
/// is well; how many died.
async fn nodes_die(bed: &mut Bed, mortals: &[(usize, Vec<String>)], at_least: usize) -> anyhow::Result<usize> {
    let mut deaths = 0;
    let outcome = until(LATER, async || {
        for (node, points) in mortals {
            if !bed.daemon_runs(*node) {
                deaths += 1;
                let again = |bed: &mut Bed| {
                    bed.kill_node(*node)?;
                    start_mortal(bed, *node, points)
                };
                again(bed).map_err(|error| format!("{error:#}"))?;
            }
        }
        if deaths < at_least {
            return Err(format!("{deaths} of {at_least} nodes died"));
        }
        let client = bed.client().map_err(|error| error.to_string())?;
        let view = client.cluster("app").await.map_err(|error| error.to_string())?;
        match leader_of(bed, &view) {
            Some(_) if view.health == pgstead_api::view::Health::Healthy => Ok(()),
            _ => Err(view.why),
        }
    });
    match outcome.await {
        Ok(()) => Ok(deaths),
        Err((passed, seen)) => {
            anyhow::bail!("after {passed:?} and {deaths} deaths: {seen}\n{}", bed.describe().await)
        }
    }
}

/// Daemons without points again.
async fn be_immortal(bed: &mut Bed, nodes: &[usize]) -> anyhow::Result<()> {
    for node in nodes {
        if bed.daemon_runs(*node) {
            bed.kill_daemon(*node)?;
        } else {
            bed.kill_node(*node)?;
        }
        bed.start_daemon(*node)?;
    }
    bed.wait_reachable(3).await?;
    bed.wait_healthy("app", LATER).await.map(drop)
}

#[test]
fn nodes_die_in_the_midst_of_switchovers() -> anyhow::Result<()> {
    in_lab(Course::default(), async |bed| {
        let clients = Clients::start(bed).await?;
        // The old leader when it has stopped; its target when it has been chosen, and when it has just promoted itself.
        let moments = [after(Step::StopCleanly), before(Step::PreparePromotion), after(Step::Promote)];
        for moment in moments {
            bed.wait_healthy("app", LATER).await?;
            let mortals: Vec<_> = [1, 2, 3].map(|node| (node, vec![moment.clone()])).to_vec();
            for (node, points) in &mortals {
                bed.kill_daemon(*node)?;
                start_mortal(bed, *node, points)?;
            }
            bed.wait_reachable(3).await?;
            bed.wait_healthy("app", LATER).await?;
            let asked = bed.client()?.switchover("app", &Default::default(), None).await;
            ensure!(asked.is_ok() || !bed.daemon_runs(1) || !bed.daemon_runs(2) || !bed.daemon_runs(3), "{asked:?}");
            nodes_die(bed, &mortals, 1).await?;
            be_immortal(bed, &[1, 2, 3]).await?;
        }
        clients.verify(bed).await.map(drop)
    })
}

/// The second is the one whose set has not caught up: it ends as soon as it is a primary, and nobody follows it yet.
#[test]
fn new_leaders_die_before_and_right_after_they_promote() -> anyhow::Result<()> {
    in_lab(Course::default(), async |bed| {
        let clients = Clients::start(bed).await?;
        for moment in [before(Step::Promote), after(Step::Promote), before(Step::OpenClients)] {
            bed.wait_healthy("app", LATER).await?;
            let leader = bed.leader_node("app").await?;
            let others = bed.others(leader);
            for node in &others {
                bed.kill_daemon(*node)?;
                start_mortal(bed, *node, std::slice::from_ref(&moment))?;
            }
            bed.wait_reachable(3).await?;
            bed.wait_healthy("app", LATER).await?;
            bed.kill_node(leader)?;
            // One of them dies as the new leader. Of the three, one is left then: the old one has to come back.
            let mut died = false;
            let dies = until(LATER, async || {
                died = others.iter().any(|node| !bed.daemon_runs(*node));
                if died { Ok(()) } else { Err("nobody died".to_string()) }
            });
            if let Err((passed, seen)) = dies.await {
                anyhow::bail!("after {passed:?} {seen} at {moment}\n{}", bed.describe().await);
            }
            for node in &others {
                if !bed.daemon_runs(*node) {
                    bed.kill_node(*node)?;
                    bed.start_daemon(*node)?;
                }
            }
            bed.start_daemon(leader)?;
            let mortals: Vec<_> = others.iter().map(|node| (*node, vec![moment.clone()])).collect();
            nodes_die(bed, &mortals, 0).await?;
            be_immortal(bed, &others).await?;
        }
        clients.verify(bed).await.map(drop)
    })
}

/// Its log holds a row that nobody else has, so that it has to be rewound.
#[test]
fn a_node_dies_at_every_step_of_its_return() -> anyhow::Result<()> {
    in_lab(Course::default(), async |bed| {
        let clients = Clients::start(bed).await?;
        let leader = bed.leader_node("app").await?;
        let others = bed.others(leader);
        end_with_a_row_of_its_own(bed, leader).await?;
        for other in &others {
            bed.start_daemon(*other)?;
        }
        another_leads(bed, leader, &others).await?;
        let steps = [Step::SavePromise, Step::Rewind, Step::StartStandby, Step::Follow];
        let points: Vec<String> = steps.iter().flat_map(|step| [before(*step), after(*step)]).collect();
        start_mortal(bed, leader, &points)?;
        let deaths = nodes_die(bed, &[(leader, points)], 6).await?;
        println!("the node died {deaths} times on its way back");
        let log = std::fs::read_to_string(bed.node(leader).log())?;
        for point in [before(Step::Rewind), after(Step::Rewind)] {
            ensure!(log.contains(&point), "it did not die at {point}: {}", bed.describe().await);
        }
        be_immortal(bed, &[leader]).await?;
        clients.verify(bed).await.map(drop)
    })
}
