//! Scripts that a DBA can read. A file is: a title, `expect:` lines that only a person changes, `do:` with one command
//! per line, and `transcript:` with what happened, which blessing rewrites.

use crate::faults::{Fault, Phase};
use crate::invariants::{lost_rows, unsettled};
use crate::world::{World, member_id};
use pgstead_types::record::{ClusterChange, EpochReason};
use pgstead_types::spec::{Cascade, ClusterSpec, Durability};
use std::time::Duration;

/// A scenario as written.
pub struct Script {
    /// Everything up to and including the commands; kept as it is.
    pub head: String,
    pub expects: Vec<(String, String)>,
    pub commands: Vec<String>,
    pub transcript: String,
}

pub fn parse(text: &str) -> Result<Script, String> {
    let (head, transcript) = text.split_once("\ntranscript:\n").unwrap_or((text.trim_end(), ""));
    let mut expects = Vec::new();
    let mut commands = Vec::new();
    let mut in_commands = false;
    for line in head.lines() {
        let line = line.trim();
        if let Some(list) = line.strip_prefix("expect:") {
            for pair in list.split(',') {
                let (key, value) = pair.split_once('=').ok_or_else(|| format!("expected key=value, found {pair:?}"))?;
                expects.push((key.trim().to_string(), value.trim().to_string()));
            }
        } else if line == "do:" {
            in_commands = true;
        } else if in_commands && !line.is_empty() && !line.starts_with('#') {
            commands.push(line.to_string());
        }
    }
    if expects.is_empty() || commands.is_empty() {
        return Err("a scenario needs an `expect:` line and commands after `do:`".into());
    }
    Ok(Script { head: head.trim_end().to_string(), expects, commands, transcript: transcript.to_string() })
}

/// What came of it.
pub struct Played {
    pub transcript: String,
    /// Expectations that do not hold, and broken invariants.
    pub failures: Vec<String>,
}

pub fn play(script: &Script) -> Played {
    let mut failures = Vec::new();
    let mut commands = script.commands.iter();
    let first = commands.next().map(String::as_str).unwrap_or_default();
    let world = match first.split_whitespace().collect::<Vec<_>>().as_slice() {
        ["cluster", "app", "members", members] => {
            members.parse().ok().map(|members: usize| World::new(1, members, None, members.max(3)))
        }
        // More nodes than members: enough of them stay for the consensus.
        ["cluster", "app", "members", members, "nodes", nodes] => {
            members.parse().ok().zip(nodes.parse().ok()).map(|(members, nodes)| World::new(1, members, None, nodes))
        }
        ["cluster", "app", "members", members, "asynchronous"] => members.parse().ok().map(|members: u8| {
            let durability = Durability::Asynchronous;
            World::of(1, ClusterSpec { members, durability, ..ClusterSpec::named("app") }, usize::from(members).max(3))
        }),
        // In two zones, turn and turn about.
        ["cluster", "app", "members", members, "cascade"] => members.parse().ok().map(|members: u8| {
            let spec = ClusterSpec { members, cascade: Cascade::Zone, ..ClusterSpec::named("app") };
            World::of(1, spec, usize::from(members).max(3))
        }),
        ["cluster", "app", "members", members, "asynchronous", "cascade", "nodes", nodes] => {
            members.parse().ok().zip(nodes.parse().ok()).map(|(members, nodes): (u8, usize)| {
                let (durability, cascade) = (Durability::Asynchronous, Cascade::Zone);
                World::of(1, ClusterSpec { members, durability, cascade, ..ClusterSpec::named("app") }, nodes)
            })
        }
        ["cluster", "app", "members", members, "sync", needed] => members
            .parse()
            .ok()
            .zip(needed.parse().ok())
            .map(|(members, needed)| World::new(1, members, Some(needed), members)),
        _ => None,
    };
    let Some(mut world) = world else {
        let failures = vec![format!(
            "the first command must be `cluster app members N [sync K | nodes M | asynchronous | cascade | asynchronous cascade nodes M]`, not {first:?}"
        )];
        return Played { transcript: String::new(), failures };
    };
    world.say(format!("> {first}"));
    for command in commands {
        world.say(format!("> {command}"));
        if let Err(why) = run(&mut world, command) {
            failures.push(format!("{command}: {why}"));
            break;
        }
    }
    for (key, value) in &script.expects {
        if let Err(why) = expect(&world, key, value) {
            failures.push(why);
        }
    }
    Played { transcript: world.transcript.join("\n") + "\n", failures }
}

fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time such as 20s or 300ms");
    if let Some(ms) = text.strip_suffix("ms") {
        return ms.parse().map(Duration::from_millis).map_err(|_| wrong());
    }
    text.strip_suffix('s').and_then(|s| s.parse().ok()).map(Duration::from_secs).ok_or_else(wrong)
}

/// `n2`, `app-2`, `leader`, `controller`, or `standby` (the first one that does not lead).
fn who(world: &World, text: &str) -> Result<usize, String> {
    let leader = world.leader().ok_or_else(|| "nobody leads now".to_string());
    let number = |text: &str| text.parse::<usize>().ok().and_then(|n| n.checked_sub(1));
    match text {
        "leader" => leader,
        "standby" => {
            let leader = leader?;
            world.member_machines().into_iter().find(|n| *n != leader).ok_or_else(|| "there is no standby".to_string())
        }
        "controller" => world.controller().ok_or_else(|| "no node is the controller now".to_string()),
        _ => text
            .strip_prefix("app-")
            .or_else(|| text.strip_prefix('n'))
            .and_then(number)
            .filter(|n| *n < world.machines.len())
            .ok_or_else(|| format!("there is no {text:?}")),
    }
}

fn phase(text: &str) -> Result<Phase, String> {
    Phase::ALL
        .into_iter()
        .find(|phase| format!("{phase:?}").to_lowercase() == text)
        .ok_or_else(|| format!("{text:?} is not one of electing, chosen, promoted, confirmed"))
}

fn run(world: &mut World, command: &str) -> Result<(), String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    match words.as_slice() {
        ["settle"] => crate::run::settle(world, Duration::from_secs(120)),
        ["run", span] => world.run_for(time(span)?),
        ["write", count] => write(world, count.parse().map_err(|_| "expected a number of rows")?, None),
        ["write", count, "from", node] => {
            let home = who(world, node)?;
            write(world, count.parse().map_err(|_| "expected a number of rows")?, Some(home))
        }
        // Writes whose answers nobody waits for here.
        ["begin", "writing"] => {
            world.add_client(None, u64::MAX);
            Ok(())
        }
        ["begin", "writing", "from", node] => {
            let home = who(world, node)?;
            world.add_client(Some(home), u64::MAX);
            Ok(())
        }
        ["stop", "writing"] => {
            world.clients.iter_mut().for_each(|client| client.to_write = 0);
            world.run_for(Duration::from_secs(2))
        }
        ["kill", "node", node] => fault(world, node, |node| Fault::KillNode { node, heard: true }),
        ["power", "off", node] => fault(world, node, |node| Fault::KillNode { node, heard: false }),
        ["restart", "node", node] | ["power", "on", node] => fault(world, node, Fault::StartNode),
        ["kill", "all", "nodes"] => {
            for node in 0..world.machines.len() {
                world.inflict(Fault::KillNode { node, heard: true });
            }
            Ok(())
        }
        ["restart", "all", "nodes"] => {
            (0..world.machines.len()).for_each(|node| world.inflict(Fault::StartNode(node)));
            Ok(())
        }
        ["kill", "postgres", "of", member] => fault(world, member, Fault::KillPostmaster),
        ["kill", "guard", "of", member] => fault(world, member, Fault::KillGuard),
        ["hang", "postgres", "of", member] => fault(world, member, Fault::HangPostgres),
        ["resume", "postgres", "of", member] => fault(world, member, Fault::ResumePostgres),
        ["fill", "disk", "of", node] => fault(world, node, Fault::FillDisk),
        ["free", "disk", "of", node] => fault(world, node, Fault::FreeDisk),
        ["fill", "pool", "of", node] => fault(world, node, |node| Fault::FillPool { node, brimming: false }),
        ["fill", "pool", "of", node, "to", "the", "brim"] => {
            fault(world, node, |node| Fault::FillPool { node, brimming: true })
        }
        ["free", "pool", "of", node] => fault(world, node, Fault::FreePool),
        ["kill", "daemon", "of", node] => fault(world, node, Fault::KillDaemon),
        ["start", "daemon", "of", node] => fault(world, node, Fault::StartDaemon),
        ["suspend", node] => fault(world, node, Fault::Freeze),
        ["resume", node] => fault(world, node, Fault::Thaw),
        ["freeze", "node", node, "for", span] => {
            let node = who(world, node)?;
            world.inflict(Fault::Freeze(node));
            let span = time(span)?;
            world.after(span, crate::world::Event::Fault(Fault::Thaw(node)));
            Ok(())
        }
        ["cut", a, "from", b] => {
            let (a, b) = (who(world, a)?, who(world, b)?);
            world.inflict(Fault::Cut(a, b));
            world.inflict(Fault::Cut(b, a));
            Ok(())
        }
        ["cut", "leader", "from", "its", "standbys", "in", "postgres"] => {
            let leader = who(world, "leader")?;
            for n in (0..world.members).filter(|n| *n != leader) {
                // The daemons still talk: only the replication's way is broken.
                world.cut_postgres.insert((leader, n));
                world.cut_postgres.insert((n, leader));
            }
            world.say("fault     the leader's standbys cannot reach its Postgres, and their daemons can");
            Ok(())
        }
        ["join", "all"] => {
            world.cut_postgres.clear();
            for (a, b) in world.cut.clone() {
                world.inflict(Fault::Join(a, b));
            }
            world.resend_stalled();
            Ok(())
        }
        ["remove", "old", "log", "of", member] => fault(world, member, Fault::RemoveLog),
        ["corrupt", "data", "of", member] => fault(world, member, Fault::Corrupt),
        ["lose", "the", "quorum"] => {
            world.inflict(Fault::LoseQuorum);
            Ok(())
        }
        ["regain", "the", "quorum"] => {
            world.inflict(Fault::RegainQuorum);
            Ok(())
        }
        // From every other node, or from the daemons alone: its standbys still stream.
        ["cut", "off", node] => fault(world, node, Fault::CutOff),
        ["cut", "daemon", "of", node, "from", "the", "controller"] => {
            let node = who(world, node)?;
            let controller = world.controller().ok_or("no node is the controller now")?;
            world.inflict(Fault::Cut(node, controller));
            world.inflict(Fault::Cut(controller, node));
            Ok(())
        }
        ["lose", "data", "of", member] => fault(world, member, Fault::LoseData),
        ["kill", "controller", "in", name] => {
            world.inflict(Fault::KillControllerIn(phase(name)?));
            Ok(())
        }
        ["kill", "postgres", "of", "candidate", "in", name] => {
            let wanted = phase(name)?;
            let end = world.now + Duration::from_secs(60);
            let reached = |world: &World| world.cluster().is_some_and(|c| Phase::of(&c.leadership) == wanted);
            if !world.run_until(end, reached)? {
                return Err(format!("the phase {name} was not reached in 60 s"));
            }
            fault(world, "leader", Fault::KillPostmaster)
        }
        ["kill", "node", "of", "candidate", "in", name] => {
            let wanted = phase(name)?;
            let end = world.now + Duration::from_secs(60);
            let reached = |world: &World| world.cluster().is_some_and(|c| Phase::of(&c.leadership) == wanted);
            if !world.run_until(end, reached)? {
                return Err(format!("the phase {name} was not reached in 60 s"));
            }
            fault(world, "leader", |node| Fault::KillNode { node, heard: true })
        }
        ["kill", "postgres", "of", member, "once", "it", "is", "a", "primary"] => {
            let member = who(world, member)?;
            let end = world.now + Duration::from_secs(60);
            let promoted = |world: &World| world.machines[member].run.as_ref().is_some_and(|run| run.is_primary());
            if !world.run_until(end, promoted)? {
                return Err("it was not promoted in 60 s".into());
            }
            world.inflict(Fault::KillPostmaster(member));
            Ok(())
        }
        ["show", "an", "old", "record", "to", node] => fault(world, node, Fault::OldRecord),
        ["show", "a", "record", back, "changes", "old", "to", node] => {
            let back = back.parse().map_err(|_| "expected a number of changes")?;
            fault(world, node, |node| Fault::RecentRecord { node, back })
        }
        ["show", "the", "newest", "record", "to", node] => fault(world, node, Fault::NewRecord),
        ["slow", "disk", "of", node] => fault(world, node, Fault::SlowDisk),
        ["switchover", "to", member] => fault(world, member, Fault::Switchover),
        ["ask", "for", "sync", needed, durability] => {
            let needed = needed.parse().map_err(|_| "expected a number of standbys")?;
            let all = [Durability::Strict, Durability::Available, Durability::Asynchronous];
            let found = all.into_iter().find(|one| one.as_str() == *durability);
            let durability = found.ok_or("expected strict, available or asynchronous")?;
            world.inflict(Fault::ChangeSpec { needed, durability });
            Ok(())
        }
        ["ask", "for", members, "members"] => {
            world.ask_members(members.parse().map_err(|_| "expected a number of members")?, None)
        }
        ["ask", "for", members, "members", "sync", needed] => {
            let needed = needed.parse().map_err(|_| "expected a number of standbys")?;
            world.ask_members(members.parse().map_err(|_| "expected a number of members")?, Some(needed))
        }
        ["move", member] => {
            let from = who(world, member)?;
            world.move_member(from)
        }
        // As soon as somebody is to leave.
        ["while", "a", "member", "leaves", rest @ ..] => {
            let end = world.now + Duration::from_secs(60);
            let leaving =
                |world: &World| world.cluster().is_some_and(|c| c.members.keys().any(|member| c.is_leaving(*member)));
            if !world.run_until(end, leaving)? {
                return Err("nobody left in 60 s".into());
            }
            run(world, &rest.join(" "))
        }
        ["ask", "for", "cascade", how] => {
            let cascade = [Cascade::None, Cascade::Zone].into_iter().find(|one| one.as_str() == *how);
            world.inflict(Fault::ChangeCascade(cascade.ok_or("expected none or zone")?));
            Ok(())
        }
        // As soon as the record says that the set is being changed.
        ["while", "the", "set", "changes", rest @ ..] => {
            let end = world.now + Duration::from_secs(60);
            let changing = |world: &World| {
                world.cluster().and_then(|cluster| cluster.config()).is_some_and(|config| config.target.is_some())
            };
            if !world.run_until(end, changing)? {
                return Err("the set was not changed in 60 s".into());
            }
            run(world, &rest.join(" "))
        }
        ["once", "the", "leader", "is", name, rest @ ..] => {
            let wanted = phase(name)?;
            let end = world.now + Duration::from_secs(60);
            let reached = |world: &World| world.cluster().is_some_and(|c| Phase::of(&c.leadership) == wanted);
            if !world.run_until(end, reached)? {
                return Err(format!("the phase {name} was not reached in 60 s"));
            }
            run(world, &rest.join(" "))
        }
        ["once", "a", "step", "of", node, "has", "failed", rest @ ..] => {
            let node = who(world, node)?;
            let end = world.now + Duration::from_secs(60);
            let failed = |world: &World| world.machines[node].daemon.as_ref().is_some_and(|d| d.failed.is_some());
            if !world.run_until(end, failed)? {
                return Err("none failed in 60 s".into());
            }
            run(world, &rest.join(" "))
        }
        ["restart", "cluster"] => {
            world.inflict(Fault::Restart);
            Ok(())
        }
        // A person opens an epoch without need.
        ["begin", "epoch"] => {
            let epoch = world.cluster().map(|cluster| cluster.epoch.next()).ok_or("there is no cluster")?;
            let change = ClusterChange::BeginEpoch { epoch, reason: EpochReason::SyncSetChange, preferred: None };
            if world.request(change) { Ok(()) } else { Err("no node is the controller now".into()) }
        }
        ["force", member] => {
            let member = who(world, member)?;
            // What it refuses is in the transcript.
            let _ = world.force(member);
            Ok(())
        }
        // The record goes on from a survivor's copy, with these nodes given up.
        ["recover", "record", "lost", nodes @ ..] => {
            let lost = nodes.iter().map(|node| who(world, node)).collect::<Result<Vec<_>, _>>()?;
            world.recover_record(&lost)
        }
        ["schedule", "switchover", "to", member, "from", from, "until", until] => {
            let member = who(world, member)?;
            world.schedule(Some(member), time(from)?, time(until)?)
        }
        ["cancel", "switchover"] => world.cancel(),
        ["undo", "switchover"] => world.undo(),
        ["calm"] => {
            world.calm();
            Ok(())
        }
        _ => Err("unknown command".into()),
    }
}

fn fault(world: &mut World, whom: &str, fault: impl Fn(usize) -> Fault) -> Result<(), String> {
    let whom = who(world, whom)?;
    world.inflict(fault(whom));
    Ok(())
}

/// Rows by a new client, all of them acknowledged before the script goes on.
fn write(world: &mut World, count: u64, home: Option<usize>) -> Result<(), String> {
    world.add_client(home, count);
    let client = world.clients.len() - 1;
    let end = world.now + Duration::from_secs(60);
    if world.run_until(end, |world| world.clients[client].to_write == 0)? {
        return Ok(());
    }
    Err(format!("{} of {count} rows were not acknowledged in 60 s", world.clients[client].to_write))
}

fn expect(world: &World, key: &str, value: &str) -> Result<(), String> {
    let found = match key {
        "leader" => match world.leader().filter(|_| world.cluster().is_some_and(|cluster| cluster.is_confirmed())) {
            Some(leader) if world.machines[leader].run.as_ref().is_some_and(|run| run.is_primary()) => {
                World::member_name(leader)
            }
            _ => "none".to_string(),
        },
        "epoch" => world.cluster().map_or(0, |cluster| cluster.epoch.0).to_string(),
        // Acknowledged rows that a change of leader has left behind and says so, or whose loss a person has accepted.
        "given-up" => {
            let left = |row: &u64| world.given_up.contains(row) || world.checks.forgiven.contains(row);
            world.clients.iter().flat_map(|client| &client.acknowledged).filter(|row| left(row)).count().to_string()
        }
        "writes" => {
            // Whether the member that leads still acknowledges.
            let open =
                |n: usize| world.machines[n].run.as_ref().is_some_and(|run| run.is_primary() && run.takes_writes());
            if world.leader().is_some_and(open) { "yes" } else { "no" }.to_string()
        }
        // On the leader; where nobody leads, on the disk that holds most.
        "lost" => {
            let leads = |n: &usize| world.machines[*n].run.as_ref().is_some_and(|run| run.is_primary());
            match world.leader().filter(leads) {
                Some(leader) => lost_rows(world, leader).len().to_string(),
                None => (0..world.members).map(|n| lost_rows(world, n).len()).min().unwrap_or(0).to_string(),
            }
        }
        // As recorded: how many acknowledgements of which members, such as `1 of app-2+app-3`.
        "set" => match world.cluster().and_then(|cluster| cluster.config()) {
            Some(config) => {
                let names = config.sync_set.members.iter().filter_map(|life| {
                    (0..world.machines.len()).find(|n| member_id(*n) == life.member).map(World::member_name)
                });
                let names: Vec<String> = names.collect();
                format!(
                    "{} of {}",
                    config.sync_set.needed,
                    if names.is_empty() { "none".into() } else { names.join("+") }
                )
            }
            None => "none".to_string(),
        },
        // Who is a member, such as `app-1+app-2`.
        "members" => {
            let names: Vec<String> = world.member_machines().into_iter().map(World::member_name).collect();
            names.join("+")
        }
        // Nothing of a member is on a node without one.
        "left-over" => match world.left_overs().as_slice() {
            [] => "none".to_string(),
            all => all.iter().map(|n| format!("n{}", n + 1)).collect::<Vec<_>>().join("+"),
        },
        "settled" => if unsettled(world).is_none() { "yes" } else { "no" }.to_string(),
        "finding" => {
            let known = world.findings.iter().any(|finding| finding.starts_with(&format!("{value}:")));
            return if known { Ok(()) } else { Err(format!("expected finding {value}, found {:?}", world.findings)) };
        }
        "refused" => {
            let told = world.transcript.iter().any(|line| line.contains(&format!(" {value}:")));
            return if told { Ok(()) } else { Err(format!("expected the refusal {value} in the transcript")) };
        }
        // By the record: `upstream-of-app-4`, which is the leader's name where nobody else feeds it.
        _ if key.starts_with("upstream-of-") => {
            let n = who(world, &key["upstream-of-".len()..])?;
            let relay = world.cluster().and_then(|cluster| cluster.relay_of(member_id(n)));
            let relay = relay.and_then(|relay| (0..world.machines.len()).find(|m| member_id(*m) == relay));
            relay.or(world.leader()).map_or("none".to_string(), World::member_name)
        }
        // `incarnation-of-app-2`
        _ if key.starts_with("incarnation-of-") => {
            let n = who(world, &key["incarnation-of-".len()..])?;
            let member = world.cluster().and_then(|cluster| cluster.members.get(&member_id(n)));
            member.map_or(0, |member| member.incarnation).to_string()
        }
        _ => return Err(format!("unknown expectation {key:?}")),
    };
    // `leader=app-2/app-3`: either.
    if value.split('/').any(|value| found == value) {
        Ok(())
    } else {
        Err(format!("expected {key}={value}, found {key}={found}"))
    }
}
