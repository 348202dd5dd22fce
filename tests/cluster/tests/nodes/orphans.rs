//! Volumes that no member has: found, told of, kept, and removed when a person says so.

use crate::support::{Bed, LATER, SOON};
use anyhow::{Context, ensure};
use pgstead_api::view::VolumeState;
use pgstead_types::spec::ClusterSpec;
use pgstead_types::{MemberId, VolumeId};
use std::fs;
use std::path::{Path, PathBuf};

/// A volume like that of `from`, of a member that the record does not know.
fn leave_behind(from: &Path, number: u128, file: Option<&str>) -> anyhow::Result<(VolumeId, PathBuf)> {
    let (id, member) = (VolumeId::from_u128(number), MemberId::from_u128(number + 1));
    let pool = from.parent().context("a pool")?;
    let (made, place) = (pool.join(format!("made-{number}")), pool.join(id.to_string()));
    fs::create_dir_all(made.join("data"))?;
    let mut tags: serde_json::Value = serde_json::from_slice(&fs::read(from.join("volume.json"))?)?;
    tags["volume"] = serde_json::to_value(id)?;
    tags["member"] = serde_json::to_value(member)?;
    fs::write(made.join("volume.json"), serde_json::to_vec(&tags)?)?;
    if let Some(file) = file {
        fs::write(made.join("data").join(file), "rows")?;
    }
    fs::rename(made, &place)?;
    Ok((id, place))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_no_member_has_is_told_of_and_goes_when_a_person_says_so() -> anyhow::Result<()> {
    let bed = Bed::start(3).await?;
    let view = bed.create_cluster(&ClusterSpec { members: 1, ..ClusterSpec::named("app") }).await?;
    let member = view.members.first().context("one member")?;
    let node = bed.nodes().iter().find(|node| node.name == member.node.name).context("its node")?;
    let own = node.data_dir().join("pools/default").join(member.volume.to_string());
    let (held, held_at) = leave_behind(&own, 0x7001, Some("PG_VERSION"))?;
    let (_, empty_at) = leave_behind(&own, 0x7101, None)?;

    let client = bed.client()?;
    let states = async || {
        let all = client.volumes().await.map_err(|error| error.to_string())?;
        Ok::<_, String>(all.into_iter().map(|volume| (volume.id, volume.state)).collect::<Vec<_>>())
    };
    bed.wait_for("one is listed, and the empty one is gone", LATER, async || {
        let states = states().await?;
        let listed = states == [(held, VolumeState::Orphaned), (member.volume, VolumeState::InUse)];
        if listed && !empty_at.exists() { Ok(()) } else { Err(format!("{states:?}, {}", empty_at.exists())) }
    })
    .await?;
    let shown = bed.pgstead(&["node", "show", &node.name]).await?.output()?;
    ensure!(shown.contains("orphaned_volume") && shown.contains(&held.to_string()), "{shown}");
    ensure!(shown.contains("(dir): fine"), "{shown}");

    // A member's own is refused, and asking without an answer does nothing.
    let own_id = member.volume.to_string();
    let refused = bed.pgstead(&["volume", "remove", &own_id, "--yes"]).await?;
    ensure!(!refused.succeeded() && refused.stderr.contains("goes with its member"), "{refused:?}");
    let unasked = bed.pgstead(&["volume", "remove", &held.to_string()]).await?;
    ensure!(!unasked.succeeded() && held_at.join("data/PG_VERSION").exists(), "{unasked:?}");

    bed.pgstead(&["volume", "remove", &held.to_string(), "--yes"]).await?.output()?;
    let pool = own.parent().context("a pool")?.to_path_buf();
    bed.wait_for("nothing of it is left", LATER, async || {
        let left: Vec<_> = fs::read_dir(&pool).map_err(|error| error.to_string())?.flatten().collect();
        let left: Vec<_> = left.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        let stays = |name: &String| *name != own_id && !name.starts_with('.');
        let of_it = left.iter().any(|name| stays(name) || name.contains("trash"));
        if of_it { Err(format!("{left:?}")) } else { Ok(()) }
    })
    .await?;
    ensure!(own.join("data").exists());
    let writers = bed.writers().await?;
    writers.all_write_again(pgstead_types::Tick::now(), SOON).await?;
    writers.stop().await;
    Ok(())
}
