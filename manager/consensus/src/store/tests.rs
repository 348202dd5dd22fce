//! The store on good, full, failing and power-cut media.

use super::disk::{Disk, Write};
use super::envelope::{Ballot, Envelope, LogPosition, StoredEntry};
use super::writer::Writer;
use super::*;
use crate::type_config::TypeConfig;
use medium::{Medium, Survives};
use openraft::TokioRuntime;
use openraft::testing::log::{StoreBuilder, Suite};
use serde_json::json;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;

#[path = "../../tests/support/medium.rs"]
mod medium;

const NODE: NodeId = NodeId::from_u128(1);
const DEPLOYMENT: DeploymentId = DeploymentId::from_u128(9);

fn on(medium: &Medium) -> StoreAt {
    StoreAt::Backend { name: "test medium".into(), backend: Box::new(medium.clone()) }
}
fn entry(index: u64) -> StoredEntry {
    let envelope = Envelope { version: 1, kind: "blank".into(), body: json!({}) };
    StoredEntry { at: LogPosition { term: 1, index }, envelope }
}

struct Builder(Flush);

impl StoreBuilder<TypeConfig<TokioRuntime>, LogStore<TokioRuntime>, StateMachine<TokioRuntime>> for Builder {
    async fn build(
        &self,
    ) -> Result<
        ((), LogStore<TokioRuntime>, StateMachine<TokioRuntime>),
        openraft::StorageError<TypeConfig<TokioRuntime>>,
    > {
        let store = Store::open(on(&Medium::default()), self.0, NODE, DEPLOYMENT).expect("an empty medium opens");
        Ok(((), store.log, store.state_machine))
    }
}

#[test]
fn openrafts_own_suite_passes_with_writes_inline() {
    TokioRuntime::run(Suite::test_all(Builder(Flush::Inline))).unwrap();
}

#[test]
fn openrafts_own_suite_passes_with_a_writer_thread() {
    TokioRuntime::run(Suite::test_all(Builder(Flush::WriterThread))).unwrap();
}

#[test]
fn a_file_is_private_and_refuses_a_second_owner() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("raft.redb");
    let open = |node, deployment| Disk::open(StoreAt::File(path.clone()), node, deployment).map(|(disk, _)| disk);

    let disk = open(NODE, DEPLOYMENT).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(open(NODE, DEPLOYMENT), Err(StoreError::InUse { .. })));
    drop(disk);

    let other_node = open(NodeId::from_u128(2), DEPLOYMENT).err().unwrap();
    assert!(matches!(other_node, StoreError::OtherNode { .. }), "{other_node}");
    assert!(other_node.to_string().contains("belongs to node"), "{other_node}");
    let other_deployment = open(NODE, DeploymentId::from_u128(8)).err().unwrap();
    assert!(matches!(other_deployment, StoreError::OtherDeployment { .. }), "{other_deployment}");
    open(NODE, DEPLOYMENT).unwrap();
}

#[test]
fn an_entry_of_an_unknown_kind_or_a_newer_version_stops_the_store() {
    for (kind, version) in [("reticulate", 1), ("remove_node", 2), ("blank", 2), ("membership", 2)] {
        let medium = Medium::default();
        let (disk, _) = Disk::open(on(&medium), NODE, DEPLOYMENT).unwrap();
        let envelope = Envelope { version, kind: kind.into(), body: json!({"new": true}) };
        disk.write(&[Write::Append(vec![entry(0), StoredEntry { at: LogPosition { term: 1, index: 1 }, envelope }])])
            .unwrap();
        drop(disk);
        let error = Store::<TokioRuntime>::open(on(&medium), Flush::Inline, NODE, DEPLOYMENT).err().unwrap();
        let text = error.to_string();
        assert!(text.contains("entry 1") && text.contains(kind) && text.contains("no longer votes"), "{text}");
    }
}

#[test]
fn a_hole_in_the_log_is_damage() {
    let medium = Medium::default();
    let (disk, _) = Disk::open(on(&medium), NODE, DEPLOYMENT).unwrap();
    disk.write(&[Write::Append(vec![entry(0), entry(2)])]).unwrap();
    drop(disk);
    let error = Disk::open(on(&medium), NODE, DEPLOYMENT).err().unwrap();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
}

#[test]
fn a_full_disk_stops_the_writer_and_loses_nothing() {
    for flush in [Flush::Inline, Flush::WriterThread] {
        let medium = Medium::default();
        let (disk, _) = Disk::open(on(&medium), NODE, DEPLOYMENT).unwrap();
        let writer = Writer::start(disk, flush).unwrap();
        let write = |write| {
            let (answer, written) = channel();
            writer.submit(write, move |result| answer.send(result).unwrap());
            written.recv().unwrap()
        };
        write(Write::Append(vec![entry(0), entry(1)])).unwrap();
        medium.fill_up();
        let error = write(Write::Append(vec![entry(2)])).unwrap_err();
        let text = chain(&error);
        assert!(
            text.contains("test medium") && text.contains("Free space") && text.contains("no storage space"),
            "{text}"
        );
        // Not even with space again: what the failed write has left behind is not known to this process.
        assert!(write(Write::Append(vec![entry(2)])).is_err());
        assert!(matches!(writer.failure(), Some(StoreError::Io { .. })));

        let again = medium.after_power_cut(Survives::Everything);
        let (disk, contents) = Disk::open(on(&again), NODE, DEPLOYMENT).unwrap();
        assert_eq!(contents.entries.len(), 2);
        disk.write(&[Write::Append(vec![entry(2)])]).unwrap();
    }
}

#[test]
fn closing_writes_what_waits_and_gives_the_file_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("raft.redb");
    let (disk, _) = Disk::open(StoreAt::File(path.clone()), NODE, DEPLOYMENT).unwrap();
    let writer = Writer::start(disk, Flush::WriterThread).unwrap();
    let written = Arc::new(AtomicU64::new(0));
    for index in 0..500 {
        let written = written.clone();
        writer.submit(Write::Append(vec![entry(index)]), move |result| {
            result.unwrap();
            written.fetch_add(1, Ordering::Relaxed);
        });
    }
    let (answer, closed) = channel();
    writer.close(move |result| answer.send(result).unwrap());
    closed.recv().unwrap().unwrap();
    assert_eq!(written.load(Ordering::Relaxed), 500);
    let (_disk, contents) = Disk::open(StoreAt::File(path), NODE, DEPLOYMENT).unwrap();
    assert_eq!(contents.entries.len(), 500);
    let (answer, refused) = channel();
    writer.submit(Write::Append(vec![entry(500)]), move |result| answer.send(result).unwrap());
    assert!(matches!(refused.recv().unwrap(), Err(StoreError::Closed { .. })));
}

/// The disk dies at every single operation of a workload in turn, and comes back with none, all, or some of what was
/// not synced. Whatever was answered is there, whole, and the store goes on from it.
#[test]
fn a_power_cut_at_any_moment_loses_nothing_that_was_answered() {
    let workload = || {
        vec![
            Write::Ballot(Ballot { term: 1, node: NODE, granted_by_quorum: false }),
            Write::Append((0..3).map(entry).collect()),
            Write::Append((3..40).map(entry).collect()),
            Write::TruncateFrom(38),
            Write::Append(vec![entry(38)]),
            Write::Ballot(Ballot { term: 2, node: NODE, granted_by_quorum: true }),
            Write::Committed(LogPosition { term: 1, index: 20 }),
            Write::Purge(LogPosition { term: 1, index: 10 }),
            Write::Append((39..60).map(entry).collect()),
        ]
    };
    // (first entry, one past the last, term) after so many answered writes.
    let states = [
        (0, 0, 0),
        (0, 0, 1),
        (0, 3, 1),
        (0, 40, 1),
        (0, 38, 1),
        (0, 39, 1),
        (0, 39, 2),
        (0, 39, 2),
        (11, 39, 2),
        (11, 60, 2),
    ];
    let mut deaths = 0;
    for operations in 0.. {
        let medium = Medium::default();
        let (disk, _) = Disk::open(on(&medium), NODE, DEPLOYMENT).unwrap();
        medium.die_after(operations);
        let answered = workload().iter().take_while(|write| disk.write([*write]).is_ok()).count();
        if answered == workload().len() {
            break;
        }
        deaths += 1;
        let outcomes = [Survives::Nothing, Survives::Everything]
            .into_iter()
            .chain((0..4).map(|n| Survives::SomeSectors(operations * 7 + n)));
        for survives in outcomes {
            let (disk, contents) = Disk::open(on(&medium.after_power_cut(survives)), NODE, DEPLOYMENT)
                .unwrap_or_else(|error| panic!("{operations} operations, {survives:?}: {}", chain(&error)));
            let first = contents.entries.first_key_value().map_or(0, |(index, _)| *index);
            let end = contents.entries.last_key_value().map_or(0, |(index, _)| *index + 1);
            let found = (first, end, contents.ballot.map_or(0, |ballot| ballot.term));
            // The one write that was under way may be there as well: whole, or not at all.
            assert!(
                found == states[answered] || found == states[answered + 1],
                "{operations} operations, {survives:?}, {answered} answered: {found:?}"
            );
            disk.write(&[Write::Append(vec![entry(end)])]).unwrap();
        }
    }
    assert!(deaths > 30, "only {deaths} moments were tried");
}
