//! Whole nodes die at chosen moments of a switchover, a promotion and a rejoin. The daemon ends itself at a step, as in
//! `kill_points`, and with it everything else on its node.

use super::{Clients, Course, another_leads, end_with_a_row_of_its_own, in_lab, leader_of};
use crate::support::{Bed, LATER, LONG_LEASE};
use anyhow::ensure;
use pgstead_cluster_tests::{Setup, until};
use pgstead_types::{Step, Tick};
use std::fs;

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

/// No claim is made about leases here.
fn course() -> Course {
    Course { setup: Setup { config: LONG_LEASE.to_string(), ..Setup::default() }, ..Course::default() }
}

/// Where they have ended before they do again.
fn forget_ends(bed: &Bed, nodes: &[usize]) -> anyhow::Result<()> {
    for node in nodes {
        for note in fs::read_dir(bed.node(*node).data_dir().join("members"))? {
            let path = note?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("aborted-")) {
                fs::remove_file(path)?;
            }
        }
    }
    Ok(())
}

/// Kills what is left of every node whose daemon has ended, and starts it again with the same points, until the cluster
/// is well; how many died.
async fn nodes_die(bed: &mut Bed, mortals: &[(usize, Vec<String>)], at_least: usize) -> anyhow::Result<usize> {
    nodes_die_while(bed, mortals, at_least, async |_| "nothing more is done".to_string()).await
}

/// The same. While too few have died and the cluster is well, `provoke` does something more that they may die of.
async fn nodes_die_while(
    bed: &mut Bed,
    mortals: &[(usize, Vec<String>)],
    at_least: usize,
    provoke: impl AsyncFn(&Bed) -> String,
) -> anyhow::Result<usize> {
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
        let client = bed.client().map_err(|error| error.to_string())?;
        let view = client.cluster("app").await.map_err(|error| error.to_string())?;
        bed.are_reachable(3).await?;
        let well = leader_of(bed, &view).is_some() && view.health == pgstead_api::view::Health::Healthy;
        match (deaths >= at_least, well) {
            (true, true) => Ok(()),
            (false, true) => Err(format!("{deaths} of {at_least} nodes died; {}", provoke(bed).await)),
            (_, false) => Err(format!("{deaths} of {at_least} nodes died: {}", view.why)),
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
    in_lab(course(), async |bed| {
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
            // One that is blocked, or ends before this moment of it, kills nobody: then it is asked for again.
            let switch_over = async |bed: &Bed| match bed.client() {
                Ok(client) => {
                    let asked = client.switchover("app", &Default::default(), None).await;
                    format!("a switchover was asked for: {:?}", asked.map(|_| ()))
                }
                Err(error) => format!("{error:#}"),
            };
            nodes_die_while(bed, &mortals, 1, switch_over).await?;
            be_immortal(bed, &[1, 2, 3]).await?;
        }
        clients.verify(bed).await.map(drop)
    })
}

/// The leader's node, the others, and the others with the moment at which they end from now on.
async fn standbys_are_mortal(
    bed: &mut Bed,
    moment: &str,
) -> anyhow::Result<(usize, Vec<usize>, Vec<(usize, Vec<String>)>)> {
    let begun = Tick::now();
    loop {
        bed.wait_healthy("app", LATER).await?;
        let leader = bed.leader_node("app").await?;
        let others = bed.others(leader);
        let mortals: Vec<_> = others.iter().map(|node| (*node, vec![moment.to_string()])).collect();
        for (node, points) in &mortals {
            bed.kill_daemon(*node)?;
            start_mortal(bed, *node, points)?;
        }
        // An election because they were away, and who ends in that, is not what is meant.
        nodes_die(bed, &mortals, 0).await?;
        forget_ends(bed, &others)?;
        if bed.leader_node("app").await? == leader {
            return Ok((leader, others, mortals));
        }
        ensure!(Tick::now().since(begun) < LATER, "the leader does not stay where it is: {}", bed.describe().await);
        be_immortal(bed, &others).await?;
    }
}

/// The second is the one whose set has not caught up: it ends as soon as it is a primary, and nobody follows it yet.
#[test]
fn new_leaders_die_before_and_right_after_they_promote() -> anyhow::Result<()> {
    in_lab(course(), async |bed| {
        let clients = Clients::start(bed).await?;
        for moment in [before(Step::Promote), after(Step::Promote), before(Step::OpenClients)] {
            let (leader, others, mortals) = standbys_are_mortal(bed, &moment).await?;
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
