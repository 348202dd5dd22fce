//! The Postgres of this node's members, for questions from outside their tasks.

use pgstead_replication::Instance;
use pgstead_types::sessions::SessionsSeen;
use pgstead_types::{Bytes, MemberId};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Cheap to clone; all clones are the same.
#[derive(Clone, Default)]
pub struct Instances(Arc<Mutex<BTreeMap<MemberId, Arc<Instance>>>>);

impl Instances {
    pub fn put(&self, member: MemberId, instance: Arc<Instance>) {
        self.0.lock().expect("nothing panics while it holds the instances").insert(member, instance);
    }
    pub fn remove(&self, member: MemberId) {
        self.0.lock().expect("nothing panics while it holds the instances").remove(&member);
    }
    /// Whether the member has a task here.
    pub fn has(&self, member: MemberId) -> bool {
        self.get(member).is_ok()
    }
    fn get(&self, member: MemberId) -> Result<Arc<Instance>, String> {
        let held = self.0.lock().expect("nothing panics while it holds the instances").get(&member).cloned();
        held.ok_or_else(|| "the member is not on this node".to_string())
    }
    /// What the clients of a member are at.
    pub async fn sessions(&self, member: MemberId) -> Result<SessionsSeen, String> {
        self.get(member)?.sessions().await.map_err(|error| error.to_string())
    }
    /// Whether a copy of a member's volume can be another cluster's data.
    pub async fn check_self_contained(&self, member: MemberId) -> Result<(), String> {
        let checked = self.get(member)?.check_self_contained().await;
        checked.map_err(|error| crate::member::chain(&error))
    }
    /// Copies a member's data while its Postgres runs, into an empty folder. `pool_free`: what its pool can still take.
    pub async fn copy_running(&self, member: MemberId, into: &Path, pool_free: Bytes) -> Result<(), String> {
        let copied = self.get(member)?.copy_running(into, pool_free, &|_| ()).await;
        copied.map_err(|error| crate::member::chain(&error))
    }
    /// A segment of a member's log.
    pub async fn segment(&self, member: MemberId, name: &str) -> Result<Vec<u8>, String> {
        self.get(member)?.read_segment(name).await.map_err(|error| error.to_string())
    }
}
