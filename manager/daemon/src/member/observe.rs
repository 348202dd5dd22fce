//! One look at a member: its volume, its data, its Postgres, and the node's notes. Nothing else is remembered.

use super::notes::Notes;
use super::{at_rest, given_up};
use pgstead_replication::Instance;
use pgstead_types::record::ClusterRecord;
use pgstead_types::report::{DataSeen, LeaseSeen, MemberReport, PostgresSeen};
use pgstead_types::{MemberId, Tick};

pub struct Observer {
    member: MemberId,
    session: u64,
    /// The WAL receiver to watch for its end.
    receiver: Option<i32>,
    unsettled: bool,
}

impl Observer {
    pub fn new(member: MemberId, session: u64) -> Self {
        Self { member, session, receiver: None, unsettled: true }
    }

    pub async fn observe(
        &mut self,
        instance: &Instance,
        cluster: &ClusterRecord,
        notes: &mut Notes,
        volume_present: bool,
    ) -> MemberReport {
        let mut data = self.data(instance, cluster, notes, volume_present).await;
        let kept = given_up::lives(&instance.config().data_dir).unwrap_or_else(|error| {
            if cluster.departed.contains_key(&self.member) {
                data = DataSeen::Foreign { why: format!("what is kept beside it cannot be read: {error}") };
            }
            Default::default()
        });
        let postgres = instance.probe().await;
        let receiving = matches!(&postgres, PostgresSeen::Standby(standby) if standby.receiver.is_some());
        self.receiver = match (receiving, self.receiver) {
            (true, Some(known)) => Some(known),
            (true, None) => instance.receiver_pid().await,
            (false, _) => None,
        };
        let oldest_log = match &data {
            DataSeen::Present(_) => instance.oldest_log().await,
            _ => None,
        };
        let noted = notes.get();
        let report = MemberReport {
            cluster: cluster.id,
            member: self.member,
            revision: cluster.revision,
            volume_present,
            volume_size: None,
            data,
            promised: noted.promised,
            // An answer holds only while nothing was received since.
            answer: noted.answer.filter(|answer| answer.epoch == noted.promised),
            fetched: noted.fetch.filter(|fetch| fetch.done).map(|fetch| fetch.epoch),
            postgres,
            restarts: noted.restarts,
            checkpointed: noted.checkpointed,
            set_by: noted.set_by,
            lease: instance.lease_end().map(|end| LeaseSeen {
                remaining_ms: u64::try_from(end.since(Tick::now()).as_millis()).unwrap_or(u64::MAX),
            }),
            refusing: None,
            working: None,
            oldest_log,
            slots: None,
            session: self.session,
            kept,
            troubles: Vec::new(),
            findings: Vec::new(),
        };
        self.unsettled = !at_rest(&report);
        report
    }

    async fn data(
        &self,
        instance: &Instance,
        cluster: &ClusterRecord,
        notes: &mut Notes,
        volume_present: bool,
    ) -> DataSeen {
        let seen = match volume_present {
            true => instance.data_seen(cluster.system_identifier.as_deref()).await,
            false => DataSeen::Absent,
        };
        match (&seen, notes.get().complete) {
            (DataSeen::Present(identity), noted) if noted != Some(identity.incarnation) => {
                let incarnation = identity.incarnation;
                // Before it can acknowledge anything: a later absence is then known to be a loss.
                if let Err(error) = notes.change(|noted| noted.complete = Some(incarnation)) {
                    tracing::error!(%error, member = %self.member, "cannot keep notes; is the disk of data_dir full?");
                    return DataSeen::Foreign { why: format!("the node cannot keep notes about it: {error}") };
                }
                seen
            }
            (DataSeen::Absent, Some(incarnation)) => DataSeen::Lost { incarnation },
            _ => seen,
        }
    }

    pub fn receiver_pid(&self) -> Option<i32> {
        self.receiver
    }
    /// The watched receiver is gone; the next look says what is there now.
    pub fn receiver_ended(&mut self) {
        self.receiver = None;
        self.unsettled = true;
    }
    /// Something was done; look again soon.
    pub fn forget_probe(&mut self) {
        self.unsettled = true;
    }
    pub fn is_unsettled(&self) -> bool {
        self.unsettled
    }
}
