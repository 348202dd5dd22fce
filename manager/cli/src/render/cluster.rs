//! Clusters and members.

use super::{age, findings, or_dash, pairs, size, table, words};
use super::{leaders, slots};
use pgstead_api::view::{
    Access, ClusterSummary, ClusterView, ConnectionView, DataState, Health, MemberObserved, MemberState, MemberView,
    Phase, RpoState, WorkingView,
};
use pgstead_types::record::Standing;
use pgstead_types::spec::{Cascade, ClusterSpec};

pub fn clusters(all: &[ClusterSummary], width: u16) -> String {
    if all.is_empty() {
        return "no clusters; make one with `pgstead cluster create NAME`".to_string();
    }
    let row = |one: &ClusterSummary| {
        let well = one.members_well.map_or_else(|| "?".to_string(), |well| well.to_string());
        vec![
            one.name.clone(),
            words(&one.health),
            or_dash(one.leader.as_ref().map(|leader| leader.name.clone())),
            format!("{well}/{}", one.members),
            rpo_word(one.rpo.state).to_string(),
            one.epoch.to_string(),
            one.postgres_major.to_string(),
            one.why.clone(),
        ]
    };
    let head = ["name", "health", "leader", "well", "loss now", "epoch", "pg", "why"];
    table(&head, all.iter().map(row).collect(), width)
}

fn rpo_word(state: RpoState) -> &'static str {
    match state {
        RpoState::Zero | RpoState::WritesWait => "nothing",
        RpoState::SingleCopy => "one copy",
        RpoState::Asynchronous => "last commits",
        RpoState::Unbounded => "unbounded",
        RpoState::Unknown => "?",
    }
}

pub fn cluster(view: &ClusterView, width: u16) -> String {
    let set = &view.sync_set;
    let sync = if set.members.is_empty() && view.members.len() > 1 {
        "none: the leader acknowledges commits alone".to_string()
    } else if set.members.is_empty() {
        "none: one member".to_string()
    } else {
        let streaming = match set.streaming {
            Some(streaming) => format!("; {streaming} of them stream now"),
            None => String::new(),
        };
        format!("any {} of {} must have a commit on disk{streaming}", set.needed, set.members.join(", "))
    };
    let becoming = set.becoming.as_ref().map(|set| format!("; becoming {set}")).unwrap_or_default();
    let sync = format!("{sync}{becoming}; durability {}", view.spec.durability);
    let leader = match (&view.leader, view.phase) {
        (Some(leader), Phase::Confirmed) => leader.name.clone(),
        (Some(leader), Phase::Chosen) => format!("{} (chosen, to be promoted)", leader.name),
        (Some(leader), _) => format!("{} (promoted, not confirmed yet)", leader.name),
        (None, _) => {
            let because = view.electing_because.as_ref().map(words).unwrap_or_default();
            format!("none: election open because of {because}")
        }
    };
    let timeline = view.timeline.map_or_else(String::new, |timeline| format!(", timeline {timeline}"));
    let mut facts = vec![
        ("cluster", format!("{} ({})", view.name, view.id)),
        ("health", format!("{}: {}", words(&view.health), view.why)),
        ("leader", format!("{leader}, epoch {}{timeline}", view.epoch)),
        ("sync set", sync),
        ("rpo now", view.rpo.text.clone()),
        (
            "postgres",
            format!(
                "{}; ports {} read-write, {} read-only, {} members",
                view.postgres_major, view.ports.read_write, view.ports.read_only, view.ports.postgres
            ),
        ),
        ("created", format!("{}, revision {}", view.created_at, view.revision)),
    ];
    if let Some(by) = &view.kept_aside_by {
        facts.push(("kept aside", format!("takes no clients; its place is {}'s", by.name)));
    }
    if let Some(of) = &view.takes_place_of {
        facts.push(("takes place", format!("of {}, when it is complete", of.name)));
    }
    if let Some(forked) = &view.forked {
        facts.push(("forked from", format!("{} as it was at {}", forked.name, forked.taken_at)));
    }
    if let Some(held) = &view.slots {
        facts.push(("slots", slots::summary(held)));
    }
    if view.spec.cascade != Cascade::None {
        let leader = view.leader.as_ref().map(|leader| leader.name.as_str());
        let fed = view.members.iter().filter_map(|member| {
            let upstream = member.upstream.as_deref().filter(|upstream| Some(*upstream) != leader)?;
            Some(format!("{} is fed by {upstream}", member.name))
        });
        let fed: Vec<String> = fed.collect();
        let now = match (fed.is_empty(), leader) {
            (false, _) => fed.join(", "),
            (true, Some(leader)) => format!("{leader} feeds everybody now"),
            (true, None) => "nobody leads now".to_string(),
        };
        facts.push(("cascade", format!("{}: {now}", view.spec.cascade)));
    }
    if !view.spec.settings.is_empty() {
        let settings: Vec<String> =
            view.spec.settings.iter().map(|(name, value)| format!("{name} = {value}")).collect();
        facts.push(("settings", settings.join(", ")));
    }
    if let Some(scheduled) = &view.scheduled {
        let to = scheduled.to.as_deref().unwrap_or("the closest standby");
        facts.push((
            "scheduled",
            format!("switchover to {to} between {} and {}", scheduled.not_before, scheduled.not_after),
        ));
    }
    if let Some(asked) = placed(&view.spec) {
        facts.push(("placement", asked));
    }
    if !view.spec.io_limits.is_none() {
        facts.push(("io limits", format!("{}, for each member", view.spec.io_limits)));
    }
    if let Some(window) = &view.spec.maintenance_window {
        facts.push(("maintenance", format!("{window} UTC")));
    }
    if let Some(operation) = view.operation {
        facts.push(("under way", format!("operation {operation}")));
    }
    let mut parts = vec![pairs(facts, width), of_one_cluster(&view.members, width)];
    // Members' own are of interest where they keep much; findings say so.
    if let Some(held) = view.slots.as_ref().filter(|held| held.slots.iter().any(|slot| slot.member.is_none())) {
        parts.push(slots::slots(held, width));
    }
    if !view.history.is_empty() {
        // The latest few say how it came to be; the API has them all.
        let recent = view.history.iter().rev().take(5);
        let rows = recent.map(|entry| {
            vec![
                entry.epoch.to_string(),
                entry.leader.clone(),
                format!("{} from {} at {}", entry.timeline, entry.parent, entry.fork_lsn),
            ]
        });
        parts.push(table(&["epoch", "leader", "timeline"], rows.collect(), width));
    }
    if !view.forced.is_empty() {
        parts.push(leaders::forced(&view.forced, width));
    }
    if !view.findings.is_empty() {
        parts.push(format!("FINDINGS\n{}", findings(&view.findings, width)));
    }
    let quiet = view.health == Health::Healthy && view.findings.is_empty();
    if quiet {
        parts.push("no findings".to_string());
    }
    parts.join("\n\n")
}

/// What is asked of the nodes of members, where anything is.
fn placed(spec: &ClusterSpec) -> Option<String> {
    let regions: Vec<&str> = spec.regions.iter().map(String::as_str).collect();
    let asked = [
        (!regions.is_empty()).then(|| format!("in region {} only", regions.join(" or "))),
        spec.zones_min.map(|zones| format!("in {zones} zones at least")),
        spec.storage_class.as_ref().map(|class| format!("in pools of class {class}")),
        (!spec.placement_weights.is_default()).then(|| format!("weights {}", spec.placement_weights)),
    ];
    let asked: Vec<String> = asked.into_iter().flatten().collect();
    (!asked.is_empty()).then(|| asked.join("; "))
}

pub fn members(all: &[MemberView], width: u16) -> String {
    if all.is_empty() {
        return "no members".to_string();
    }
    let rows = all.iter().map(|one| {
        let mut row = vec![one.cluster.name.clone()];
        row.extend(member_row(one));
        row
    });
    table(&["cluster", "member", "node", "role", "state", "behind", "sync", "doing"], rows.collect(), width)
}

fn of_one_cluster(all: &[MemberView], width: u16) -> String {
    table(&["member", "node", "role", "state", "behind", "sync", "doing"], all.iter().map(member_row).collect(), width)
}

fn member_row(one: &MemberView) -> Vec<String> {
    let seen = one.observed.as_ref();
    vec![
        one.name.clone(),
        one.node.name.clone(),
        match one.standing {
            Standing::Settled => words(&one.role),
            joining_or_leaving => format!("{}, {}", words(&one.role), words(&joining_or_leaving)),
        },
        seen.map_or_else(|| "?".to_string(), state),
        size(seen.and_then(|seen| seen.lag_bytes)),
        if one.in_sync_set { "yes" } else { "-" }.to_string(),
        seen.and_then(|seen| seen.working.as_ref()).map_or_else(|| "-".to_string(), working),
    ]
}

fn state(seen: &MemberObserved) -> String {
    let mut text = match (seen.state, seen.data) {
        (MemberState::Down, DataState::Absent) => "no data yet".to_string(),
        (MemberState::Down, DataState::Partial) => "copy incomplete".to_string(),
        (MemberState::Down, DataState::Lost) => "data lost".to_string(),
        (_, DataState::Foreign) => "foreign data".to_string(),
        (MemberState::Primary, _) if seen.access == Some(Access::Holding) => "primary, holding clients".to_string(),
        (state, _) => words(&state),
    };
    if let Some(why) = &seen.why {
        text.push_str(&format!(" ({why})"));
    }
    if seen.stale {
        text.push_str(&format!(", {} ago", age(seen.age_ms)));
    }
    text
}

fn working(one: &WorkingView) -> String {
    let mut text = one.step.replace('_', " ");
    if let Some(percent) = one.percent {
        text.push_str(&format!(" {percent} %"));
    }
    match &one.error {
        Some(error) => text.push_str(&format!(", attempt {} failed: {error}", one.attempt)),
        None => {
            text.push_str(&format!(", {}", age(one.elapsed_ms)));
            if one.attempt > 1 {
                text.push_str(&format!(", attempt {}", one.attempt));
            }
        }
    }
    text
}

/// What the members are at, in one line, without times that would make every line new.
pub fn describe_steps(view: &ClusterView) -> String {
    let steps = view.members.iter().filter_map(|one| {
        let working = one.observed.as_ref()?.working.as_ref()?;
        let percent = working.percent.map_or_else(String::new, |percent| format!(" {percent} %"));
        let failed = working.error.as_ref().map_or_else(String::new, |error| format!(" (failed: {error})"));
        Some(format!("{}: {}{percent}{failed}", one.name, working.step.replace('_', " ")))
    });
    steps.collect::<Vec<_>>().join(", ")
}

pub fn connection(name: &str, view: &ConnectionView) -> String {
    let consumer =
        view.consumer.as_ref().map_or_else(String::new, |consumer| format!("\nconsumers   {}", consumer.url));
    // Strings are to be copied whole, so nothing here is wrapped.
    format!(
        "read-write  {}\nread-only   {}\ndirect      {}{consumer}\n\n`direct` goes to the members without a gateway; the driver \
         finds the leader.\nSave the CA where sslrootcert points: pgstead cluster connection {name} --ca > ca.pem",
        view.read_write.url, view.read_only.url, view.direct.url
    )
}
