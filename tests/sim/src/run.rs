//! One seed: a cluster is made, faults come in rounds, then all of them end and the world must heal.

use crate::faults::Fault;
use crate::invariants::{final_state, lost_rows, unsettled};
use crate::machine::Machine;
use crate::operator;
use crate::rng::Rng;
use crate::world::{Event, World};
use pgstead_types::record::Lifecycle;
use pgstead_types::spec::{ClusterSpec, Durability};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// Bounds on simulated time. A clone takes up to two seconds, a failed step is repeated after 0.3, and the longest
/// deadline that a healed world may have to wait for is the switchover's checkpoint (120 s).
const SETTLE: Duration = Duration::from_secs(60);
const HEAL: Duration = Duration::from_secs(180);
/// A request is lost where nobody leads, or where who leads is lost.
const ASKED_MAX: usize = 20;

pub struct Course {
    pub seed: u64,
    pub members: usize,
    pub transcript: Vec<String>,
    pub counts: BTreeMap<String, u64>,
    pub acknowledged: usize,
    pub epochs: u64,
    pub changed_leader: bool,
    pub failure: Option<String>,
}

/// Members and k of a seed: three and one mostly.
pub fn shape(seed: u64) -> (usize, Option<u8>) {
    match Rng::new(seed ^ 0x5AAD).below(10) {
        0 => (1, None),
        1 | 2 => (2, None),
        3 | 4 => (5, Some(2)),
        _ => (3, None),
    }
}

/// A share of the seeds whose leader acknowledges alone.
fn is_asynchronous(seed: u64, members: usize) -> bool {
    members > 1 && Rng::new(seed ^ 0xA5).below(10) < 2
}

pub fn run_seed(seed: u64) -> Course {
    let (members, needed) = shape(seed);
    let mut spec = ClusterSpec { members: members as u8, sync_replicas: needed, ..ClusterSpec::named("app") };
    if is_asynchronous(seed, members) {
        (spec.sync_replicas, spec.durability) = (None, Durability::Asynchronous);
    }
    spec.cascade = crate::cascade::of_seed(seed);
    let forced = operator::is_forced(seed);
    let mut world = if forced { operator::world(seed) } else { World::of(seed, spec, members.max(3)) };
    // Some courses see standbys leave the set in every pause, and others in none.
    let mut times = Rng::new(seed ^ 0x5E7);
    world.policy.shrink_after = times.ms(500, 30_000);
    world.policy.degrade_after = world.policy.cut_patience + times.ms(100, 5000);
    draw_cascade_times(&mut world, &mut times);
    let members = world.members;
    if world.asynchronous {
        world.count("asynchronous clusters");
    }
    play(seed, members, world, |world| match forced {
        true => operator::course(world).and_then(|()| heal(world)),
        false => course(world),
    })
}

fn draw_cascade_times(world: &mut World, times: &mut Rng) {
    world.policy.cascade_after = times.ms(200, 4000);
    world.policy.cascade_patience = times.ms(500, 5000);
    world.policy.cascade_pause = times.ms(1000, 20_000);
}

/// The same with more nodes than members, and a person who asks for other numbers of members all the while.
pub fn run_moving_seed(seed: u64) -> Course {
    let mut rng = Rng::new(seed ^ 0x30_7E);
    let (members, nodes) = (1 + rng.below(5) as usize, 5 + rng.below(3) as usize);
    let mut spec = ClusterSpec { members: members as u8, ..ClusterSpec::named("app") };
    if is_asynchronous(seed, members) {
        spec.durability = Durability::Asynchronous;
    }
    spec.cascade = crate::cascade::of_seed(seed);
    let mut world = World::of(seed, spec, nodes);
    world.policy.shrink_after = rng.ms(500, 30_000);
    draw_cascade_times(&mut world, &mut rng);
    play(seed, members, world, moving_course)
}

fn play(seed: u64, members: usize, mut world: World, run: impl Fn(&mut World) -> Result<(), String>) -> Course {
    let failure = match catch_unwind(AssertUnwindSafe(|| run(&mut world))) {
        Ok(ended) => ended.err(),
        Err(panic) => Some(format!("panicked: {}", text_of(&*panic))),
    };
    let acknowledged = world.acknowledged_rows().count();
    let (epochs, changed_leader) = (world.checks.noted_epoch.0, world.checks.changed_leader);
    let World { transcript, counts, .. } = world;
    Course { seed, members, transcript, counts, acknowledged, epochs, changed_leader, failure }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string())).unwrap_or_default()
}

/// Faults are over: it heals, and writes work.
fn heal(world: &mut World) -> Result<(), String> {
    world.calm();
    if world.rolled_back {
        stay(world)?;
    }
    let end = world.now + HEAL;
    let waits = |world: &World| unsettled(world).is_none() || world.next_leader_by_hand().is_some();
    if world.run_until(end, waits)?
        && let Some(to) = world.next_leader_by_hand()
    {
        world.switch_over(to);
    }
    settle(world, HEAL)?;
    let before = world.acknowledged_rows().count();
    let end = world.now + Duration::from_secs(20);
    if !world.run_until(end, |world| world.acknowledged_rows().count() > before + 5)? {
        return Err("no row is acknowledged in the healed world".into());
    }
    for client in &mut world.clients {
        client.to_write = 0;
    }
    world.run_for(Duration::from_secs(3))?;
    // What was asked for while nothing could be recorded may have been recorded only since.
    settle(world, HEAL)?;
    // Where nobody has to acknowledge, a standby that streams may have the last rows in a moment only.
    let end = world.now + Duration::from_secs(3);
    world.run_until(end, |world| world.member_machines().into_iter().all(|n| lost_rows(world, n).is_empty()))?;
    final_state(world)
}

/// What was asked for while nothing could be recorded is recorded first, and then whoever wants the cluster as it is asks until that is.
fn stay(world: &mut World) -> Result<(), String> {
    for _ in 0..ASKED_MAX {
        world.run_for(Duration::from_secs(5))?;
        if !world.keep_as_it_is() {
            return Ok(());
        }
    }
    Err("what was to take the cluster's place is not deleted in a sound world".into())
}

fn course(world: &mut World) -> Result<(), String> {
    for home in [None, Some(0), Some(world.members - 1)] {
        world.add_client(home, u64::MAX);
    }
    // One standby farther away than another is behind it by what was just acknowledged.
    for from in 0..world.members {
        for to in (0..world.members).filter(|to| *to != from) {
            if world.rng.chance(30) {
                let far = 1 + world.rng.below(80);
                world.far_ms.insert((from, to), far);
            }
        }
    }
    // Some courses begin before the cluster has come to be, but none before it is recorded: whoever asked for it would ask again.
    if !world.run_until(world.now + SETTLE, |world| world.cluster().is_some())? {
        return Err("the cluster is not recorded in a sound world".into());
    }
    if world.rng.chance(80) {
        settle(world, SETTLE)?;
    }
    let rounds = 1 + world.rng.below(4);
    for _ in 0..rounds {
        let settled = unsettled(world).is_none();
        world.draw_faults(settled);
        world.run_for(Duration::from_secs(4))?;
        // Half of the rounds fall into what the one before has left.
        let pause = if world.rng.chance(50) { world.rng.ms(0, 1000) } else { world.rng.ms(2000, 12_000) };
        world.run_for(pause)?;
    }
    heal(world)?;
    if world.rng.chance(20) {
        delete(world)?;
    }
    Ok(())
}

fn moving_course(world: &mut World) -> Result<(), String> {
    for home in [None, Some(0)] {
        world.add_client(home, u64::MAX);
    }
    settle(world, SETTLE)?;
    let rounds = 2 + world.rng.below(4);
    for _ in 0..rounds {
        // At least two while faults take data away: what one disk has alone goes with it.
        let members = 2 + world.rng.below(world.machines.len() as u64 - 1) as usize;
        // What is asked for while there is no controller, or no leader, is refused and asked for no more.
        let _ = world.ask_members(members, None);
        if world.later.chance(40) {
            let machines = world.member_machines();
            let from = world.later.below(machines.len().max(1) as u64) as usize;
            // A leader, or one of a cluster whose members are coming or going, is refused.
            let _ = machines.get(from).map(|from| world.move_member(*from));
        }
        let pause = world.rng.ms(0, 4000);
        world.run_for(pause)?;
        if world.rng.chance(70) {
            let settled = unsettled(world).is_none();
            world.draw_faults(settled);
        }
        let pause = world.rng.ms(500, 8000);
        world.run_for(pause)?;
    }
    heal(world)?;
    // Down to one, and up again.
    for members in [1, 2] {
        let asked = world.ask_members(members, None);
        asked.map_err(|why| format!("{members} members were asked for in the healed world: {why}"))?;
        world.run_for(Duration::from_secs(1))?;
        settle(world, HEAL)?;
        final_state(world)?;
    }
    if world.rng.chance(20) {
        delete(world)?;
    }
    Ok(())
}

/// The cluster is not wanted any more, and a daemon dies on the way: nothing of it stays.
fn delete(world: &mut World) -> Result<(), String> {
    let operation = world.next_operation();
    world.say("> the cluster is deleted");
    let ask = |world: &mut World| world.request(pgstead_types::record::ClusterChange::RequestDelete { operation });
    if !ask(world) {
        return Err("no node is the controller in the healed world".into());
    }
    let (gone, back) = (world.rng.ms(1, 60), world.rng.ms(500, 3000));
    let node = world.rng.below(world.machines.len() as u64) as usize;
    world.after(gone, Event::Fault(Fault::KillDaemon(node)));
    world.after(gone + back, Event::Fault(Fault::StartDaemon(node)));
    let left = |world: &World| {
        let has = |machine: &&Machine| machine.disk.volume || machine.run.is_some();
        let folders: Vec<_> = world.machines.iter().filter(has).map(|machine| machine.name.clone()).collect();
        (world.cluster().is_some(), folders)
    };
    // Whoever hears no answer, the one that was asked having died with the question, asks again.
    let is_known = |world: &World| world.cluster().is_none_or(|cluster| cluster.lifecycle != Lifecycle::Active);
    let mut asked_again = 0;
    while !world.run_until(world.now + Duration::from_secs(5), is_known)? && asked_again < 5 {
        ask(world);
        asked_again += 1;
    }
    let end = world.now + SETTLE;
    match world.run_until(end, |world| left(world) == (false, vec![]))? {
        true => Ok(()),
        false => Err(format!("the deleted cluster is still there (recorded, members): {:?}", left(world))),
    }
}

/// Until the cluster is what its spec says, or the time is over.
pub fn settle(world: &mut World, limit: Duration) -> Result<(), String> {
    let end = world.now + limit;
    if world.run_until(end, |world| unsettled(world).is_none())? {
        return Ok(());
    }
    let why = unsettled(world).unwrap_or_default();
    Err(format!("not settled after {} s: {why}; findings: {:?}", limit.as_secs(), world.findings))
}
