//! `pg_hba.conf` and `pg_ident.conf`: who may connect, and as whom.

use super::InstanceConfig;
use super::applied::{Admitted, Applied};
use pgstead_types::report::ClientAccess;
pub use pgstead_types::spec::CONSUMER_ROLE;

/// The role that standbys stream as, and read the leader's slots as.
pub const REPLICATION_ROLE: &str = "pgstead_replication";
/// The role that `pg_rewind` and the checkpoint before it use.
pub const REWIND_ROLE: &str = "pgstead_rewind";
/// The superuser, reachable only through the Unix socket.
pub const SUPERUSER: &str = "postgres";

/// The common name in the certificate of an incarnation under an epoch: an older epoch's certificate opens nothing.
pub fn common_name(incarnation: pgstead_types::Incarnation, epoch: pgstead_types::Epoch) -> String {
    format!("{incarnation}.e{epoch}")
}

/// What decides who may connect.
pub struct Rules {
    access: ClientAccess,
    /// Standbys read the leader's logical slots, in a session.
    slots_read: bool,
    /// Consumers of logical slots log in.
    consumers: bool,
}

impl Rules {
    pub fn of(config: &InstanceConfig, applied: &Applied) -> Self {
        Self {
            access: applied.wanted.access,
            slots_read: applied.keeps_logical_slots(config.major),
            consumers: applied.logical && config.logical_replication && !applied.consumers_wait,
        }
    }
}

pub fn render_hba(rules: &Rules) -> String {
    let reads = if rules.slots_read { "replication,postgres" } else { "replication" };
    let mut text = format!(
        "# Written by pgstead; changes are overwritten.\n\
         # One line per role and way in; the first that fits decides.\n\
         local    all          {SUPERUSER}            peer map=pgstead_local\n\
         hostssl  {reads}  {REPLICATION_ROLE}  all  cert map=pgstead_members\n\
         hostssl  postgres     {REWIND_ROLE}       all  cert map=pgstead_members\n\
         # Nobody is the superuser or one of pgstead's own roles over the network.\n\
         host     all          {SUPERUSER},{REPLICATION_ROLE},{REWIND_ROLE}  all  reject\n\
         # Users never replicate. Consumers of logical slots connect to a database, which this line does not mean.\n\
         host     replication  all                 all  reject\n"
    );
    if !rules.consumers {
        text.push_str(&format!("host     all          {CONSUMER_ROLE}    all  reject\n"));
    }
    match rules.access {
        ClientAccess::Open => text.push_str("hostssl  all          all                 all  scram-sha-256\n"),
        ClientAccess::Holding => text.push_str("# Holding: no client is let in before the epoch is confirmed.\n"),
    }
    text.push_str("host     all          all                 all  reject\n");
    text
}

pub fn render_ident(local_users: &[String], admitted: Option<&Admitted>) -> String {
    let mut text = "# Written by pgstead; changes are overwritten.\n".to_string();
    for user in local_users {
        text.push_str(&format!("pgstead_local \"{user}\" {SUPERUSER}\n"));
    }
    if let Some(admitted) = admitted {
        for incarnation in &admitted.incarnations {
            let name = common_name(*incarnation, admitted.epoch);
            text.push_str(&format!("pgstead_members \"{name}\" {REPLICATION_ROLE}\n"));
            text.push_str(&format!("pgstead_members \"{name}\" {REWIND_ROLE}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgstead_types::{Epoch, Incarnation, MemberId};

    #[test]
    fn holding_lets_no_password_in_and_neither_form_trusts() {
        let rules = |access| Rules { access, slots_read: false, consumers: true };
        assert!(!render_hba(&rules(ClientAccess::Holding)).contains("scram"));
        for access in [ClientAccess::Holding, ClientAccess::Open] {
            let text = render_hba(&rules(access));
            assert!(!text.contains("trust") && text.ends_with("reject\n"), "{text}");
        }
    }

    #[test]
    fn without_consumers_none_gets_in_and_standbys_have_no_session() {
        let rules = Rules { access: ClientAccess::Open, slots_read: false, consumers: false };
        let text = render_hba(&rules);
        let refused = text.find(&format!("host     all          {CONSUMER_ROLE}    all  reject")).unwrap();
        assert!(refused < text.find("scram").unwrap(), "{text}");
        assert!(text.contains("hostssl  replication  pgstead_replication"), "{text}");
        let text = render_hba(&Rules { slots_read: true, consumers: true, ..rules });
        assert!(!text.contains(CONSUMER_ROLE) && text.contains("replication,postgres  pgstead_replication"), "{text}");
    }

    #[test]
    fn a_standby_admits_nobody_and_a_leader_only_its_epoch() {
        let users = ["postgres".to_string()];
        assert!(!render_ident(&users, None).contains("pgstead_members"));
        let one = Incarnation { member: MemberId::from_u128(1), number: 2 };
        let admitted = Admitted { epoch: Epoch(7), incarnations: [one].into() };
        let text = render_ident(&users, Some(&admitted));
        assert!(text.contains(&format!("\"{one}.e7\" pgstead_replication")), "{text}");
        assert!(common_name(one, Epoch(u64::MAX)).len() <= 63, "the server cuts names at 63 bytes");
    }
}
