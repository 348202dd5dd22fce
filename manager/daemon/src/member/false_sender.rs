//! Senders that took a member's name without being it, as the leader's node has seen them: what was acknowledged may be on one disk.

use super::notes::Notes;
use pgstead_replication::Instance;
use pgstead_types::record::ClusterRecord;
use pgstead_types::{Epoch, Finding};
use serde::{Deserialize, Serialize};

/// In a member's notes: a daemon that was restarted since still says so.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FalseSender {
    /// In which it was seen first.
    epoch: Epoch,
    name: String,
}

/// Takes note of one that was seen and ended, the first of an epoch.
pub fn note(instance: &Instance, notes: &mut Notes, epoch: Epoch) {
    let Some(name) = instance.take_false_sender() else { return };
    if notes.get().false_sender.as_ref().is_some_and(|noted| noted.epoch == epoch) {
        return;
    }
    if let Err(error) = notes.change(|noted| noted.false_sender = Some(FalseSender { epoch, name: name.clone() })) {
        tracing::error!(name, %epoch, %error, "cannot note that a WAL sender had a member's name");
    }
}

/// For that epoch and the one after, in which something may be found missing.
pub fn finding(notes: &Notes, cluster: &ClusterRecord, member: &str) -> Option<Finding> {
    let FalseSender { epoch, name } = notes.get().false_sender.as_ref()?;
    if cluster.epoch.0 > epoch.0 + 1 {
        return None;
    }
    let text = format!(
        "{member}, which leads in epoch {epoch}, had a WAL sender called {name} without that member's certificate, and ended it: commits may \
         have been acknowledged that no standby had. Whoever replicates by the password of consumers can do that: find out who, and \
         change the password (logical_replication off and on); a switchover makes sure of what there is"
    );
    Some(Finding::error("false_sender", text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgstead_types::MemberId;

    #[test]
    fn a_false_sender_is_still_named_by_a_daemon_that_was_restarted() {
        let dir = tempfile::tempdir().unwrap();
        let notes = || Notes::open(dir.path(), MemberId::from_u128(1)).unwrap();
        let seen = FalseSender { epoch: Epoch(7), name: "somebody_1".to_string() };
        notes().change(|noted| noted.false_sender = Some(seen.clone())).unwrap();
        assert_eq!(notes().get().false_sender, Some(seen));
    }
}
