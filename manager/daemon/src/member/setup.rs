//! From the record to an instance's configuration: where it is, who it is, what it presents.

use super::killpoint::{self, When};
use super::supervise::NodeContext;
use crate::io_limits::Group;
use crate::pki::{self, Pair};
use pgstead_replication::instance::{ServerTls, UpstreamSource};
use pgstead_replication::{GuardLaunch, Instance, InstanceConfig, InstanceError};
use pgstead_types::record::{ClusterRecord, MemberRecord, Record};
use pgstead_types::report::Upstream;
use pgstead_types::{MemberId, Step};
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("this node has no Postgres {major}, which the cluster runs; install it or set postgres_bin")]
    NoPostgres { major: u16 },
    #[error("the record knows no {0}")]
    Unknown(String),
    #[error(transparent)]
    Instance(#[from] InstanceError),
    #[error(transparent)]
    Pki(#[from] pki::PkiError),
    #[error(transparent)]
    Volume(#[from] pgstead_volumes::VolumeError),
}

pub fn instance_config(
    context: &NodeContext,
    cluster: &ClusterRecord,
    member: &MemberRecord,
    volume: Option<&Path>,
) -> Result<InstanceConfig, SetupError> {
    let major = cluster.postgres_major;
    let bin_dir = context.postgres.get(&major).cloned().ok_or(SetupError::NoPostgres { major })?;
    // The whole id would make the sockets' paths too long; the random end of a v7 id is unique enough on one node, and
    // the guard's own checks catch the rest.
    let run_dir = context.layout.run().join(member.id.short());
    // Without a volume there is no data, at a path where none can be.
    let data_dir = volume.map_or_else(|| run_dir.join("no-volume"), |volume| volume.join("pgdata"));
    Ok(InstanceConfig {
        bin_dir,
        major,
        data_dir,
        run_dir,
        run_as: context.run_as,
        listen_host: context.config.host.clone(),
        port: cluster.ports.postgres,
        incarnation: member.current(),
        tls: ServerTls {
            ca_pem: cluster.secrets.ca_cert_pem.clone(),
            cert_pem: cluster.secrets.server_cert_pem.clone(),
            key_pem: cluster.secrets.server_key_pem.clone(),
        },
        settings: cluster.spec.settings.clone(),
        forked: cluster.forked.is_some(),
        logical_replication: cluster.spec.logical_replication,
        guard: GuardLaunch {
            program: context.binary.clone(),
            args: vec!["guard".to_string()],
            cgroup: context.groups.of(member.id).ok().map(Group::into_path),
        },
    })
}

/// Takes what has changed in the record, or in `settings`, into the instance.
pub fn refresh(
    context: &NodeContext,
    instance: &Instance,
    cluster: &ClusterRecord,
    member: MemberId,
    volume: Option<&Path>,
    settings: BTreeMap<String, String>,
) -> Result<(), SetupError> {
    let member = cluster.held(member).ok_or_else(|| SetupError::Unknown(format!("member {member}")))?;
    let wanted = InstanceConfig { settings, ..instance_config(context, cluster, member, volume)? };
    let held = instance.config();
    let same = held.incarnation == wanted.incarnation && held.data_dir == wanted.data_dir;
    let asked = held.settings == wanted.settings && held.logical_replication == wanted.logical_replication;
    if !same || held.tls != wanted.tls || !asked {
        instance.set_config(wanted);
    }
    Ok(())
}

/// Brings changed settings and certificates to a Postgres that runs. Whether it did anything.
pub async fn ensure_loaded(context: &NodeContext, instance: &Instance) -> Result<bool, SetupError> {
    let runs = async || Ok::<_, InstanceError>(instance.guard_status().await?.is_some_and(|s| s.postmaster.is_some()));
    if instance.presents_config() || !runs().await? {
        return Ok(false);
    }
    killpoint::pass(When::Before, Step::Reload, &context.layout.members());
    instance.reload().await?;
    killpoint::pass(When::After, Step::Reload, &context.layout.members());
    Ok(true)
}

/// How to reach an upstream, with a certificate that is good for this incarnation and the upstream's epoch only.
pub fn upstream(
    record: &Record,
    cluster: &ClusterRecord,
    member: &MemberRecord,
    of: Upstream,
) -> Result<UpstreamSource, SetupError> {
    let source = of.source();
    let unknown = |what: &str| SetupError::Unknown(format!("{what} {source}"));
    let sends = cluster.members.get(&source).ok_or_else(|| unknown("member"))?;
    let node = record.nodes.get(&sends.node).ok_or_else(|| unknown("node of member"))?;
    let ca = Pair { cert_pem: cluster.secrets.ca_cert_pem.clone(), key_pem: cluster.secrets.ca_key_pem.clone() };
    let pair = pki::make_replica(&ca, member.current(), of.epoch)?;
    Ok(UpstreamSource {
        of,
        host: node.host.clone(),
        port: cluster.ports.postgres,
        cert_pem: pair.cert_pem,
        key_pem: pair.key_pem,
    })
}
