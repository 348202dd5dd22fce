//! What the machine runs: the promises of every volume driver, on real LVM. Arguments are parts of the names of those to run.

use pgstead_vm::promises;
use pgstead_vm::suite::contract;
use pgstead_vm::suite::lvm_bench::LvmBench;
use pgstead_vm::suite::{Body, run};
use pgstead_vm::suite::{lvm_delta, lvm_encrypted, lvm_faults, lvm_hung, lvm_loop, lvm_own};
use pgstead_volumes::FileSystemKind;
use std::process::ExitCode;

macro_rules! bodies {
    ($kind:expr; $($name:ident,)+) => {
        vec![$(Body::new(format!("{}::{}", $kind.as_str(), stringify!($name)), || async {
            contract::$name(&mut LvmBench::new($kind).await).await;
        }),)+]
    };
}

macro_rules! encrypted {
    ($kind:expr; $($name:ident,)+) => {
        vec![$(Body::new(format!("luks::{}_on_{}", stringify!($name), $kind.as_str()), || async {
            contract::$name(&mut LvmBench::encrypted($kind).await).await;
        }),)+]
    };
}

macro_rules! own {
    ($of:ident; $($name:ident,)+) => { own!($of as "lvm"; $($name,)+) };
    ($of:ident as $as:literal; $($name:ident,)+) => {
        [$(Body::new(concat!($as, "::", stringify!($name)), || $of::$name()),)+]
    };
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let parts: Vec<String> = std::env::args().skip(1).collect();
    let mut bodies = promises!(bodies, FileSystemKind::Ext4);
    bodies.extend(promises!(bodies, FileSystemKind::Xfs));
    bodies.extend(own!(lvm_own;
        a_volume_is_back_after_a_reboot_with_what_is_in_it,
        a_creation_that_was_cut_short_is_no_volume_and_leaves_nothing,
        a_volume_comes_back_after_a_power_cut_with_what_was_synced,
        a_file_system_that_became_read_only_is_mounted_anew_when_nothing_uses_it,
        a_volume_whose_pool_was_full_can_be_written_to_again_once_it_has_room,
        a_disk_with_a_file_system_is_not_made_a_pool_of,
        a_pool_is_made_of_disks_that_hold_nothing_and_goes_on_where_it_stopped,
        a_snapshot_has_what_was_written_before_it_though_nobody_synced_it,
        a_growth_that_was_cut_short_is_finished_at_the_next_opening,
        what_is_not_ours_is_not_looked_at,
        a_volume_with_odd_tags_is_reported_and_never_touched,
        a_device_that_is_mounted_elsewhere_is_left_there,
        damage_that_a_check_cannot_mend_by_itself_is_left_for_a_person,
        a_pool_that_is_nearly_full_takes_no_volume_and_keeps_what_it_has,
        a_volume_that_is_too_small_is_refused,
        a_pool_that_is_not_there_is_said_so,
        a_group_belongs_to_the_node_that_used_it_first,
    ));
    bodies.extend(encrypted!(FileSystemKind::Ext4;
        a_created_volume_belongs_to_its_owner_alone,
        the_inventory_is_rebuilt_from_storage_after_a_restart,
        a_hard_removal_finishes_a_soft_one,
        an_id_may_be_used_again_after_its_removal,
        a_volume_in_use_grows_and_stays_grown,
        a_snapshot_keeps_what_was_and_goes_with_its_volume,
        a_fork_has_what_the_snapshot_has_and_is_a_volume_of_its_own,
    ));
    bodies.extend(encrypted!(FileSystemKind::Xfs; a_volume_in_use_grows_and_stays_grown,));
    bodies.extend(own!(lvm_encrypted as "luks";
        what_is_encrypted_is_not_on_the_disk_and_is_back_after_a_reboot,
        an_encrypted_creation_that_was_cut_short_leaves_no_mapping,
        a_mapping_that_was_left_open_is_used_and_one_of_another_device_is_closed,
        an_encrypted_growth_that_was_cut_short_is_finished,
        an_encrypted_snapshot_has_what_was_written_before_it_though_nobody_synced_it,
        a_new_key_takes_the_place_of_the_old_one_wherever_it_was_cut_short,
        a_volume_without_its_key_is_not_touched_and_is_back_with_it,
        a_header_that_was_written_over_comes_back_from_its_copy,
    ));
    bodies.extend(own!(lvm_faults;
        a_pools_own_metadata_is_backed_up_once_for_each_change,
        metadata_that_a_crash_has_left_held_is_released_and_that_of_others_is_not,
        metadata_that_is_full_keeps_what_was_synced_and_goes_on_when_it_was_repaired,
        a_volume_whose_disk_fails_says_so_and_is_back_with_its_disk,
        two_groups_with_one_name_are_refused_until_one_has_another,
        files_of_others_below_a_mount_are_kept,
        ballast_gives_a_full_pool_room_when_a_person_says_so,
    ));
    bodies.extend(own!(lvm_loop; a_pool_in_a_file_is_back_after_a_reboot_and_keeps_to_itself,));
    bodies.extend(own!(lvm_delta;
        what_changed_between_two_snapshots_is_what_was_written_between_them,
        a_comparison_that_cannot_be_made_says_why_and_holds_nothing,
    ));
    bodies.extend(own!(lvm_hung;
        an_xfs_that_was_cut_off_is_replayed_checked_and_goes_on,
        a_damaged_xfs_is_found_so_again_and_again_and_left_as_it_is,
        a_suspended_device_holds_up_no_other_volume_and_is_back_when_it_is_resumed,
    ));
    if run(bodies, &parts).await { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
