//! The volume suite on real LVM, in a virtual machine: the short form.

use pgstead_vm::machine::{self, Boot};
use std::path::Path;
use std::time::Duration;

#[test]
fn every_promise_of_a_volume_driver_is_kept_on_real_lvm() {
    let boot = Boot {
        root: &machine::root().unwrap(),
        programs: &[("vm-guest", Path::new(env!("CARGO_BIN_EXE_vm-guest")))],
        run: "exec /payload/vm-guest ext4 lvm::a",
        disks: 2,
        disk_bytes: 8 << 30,
        limit: Duration::from_secs(600),
    };
    let verdict = machine::run(&boot, |line| println!("{line}")).unwrap();
    assert!(verdict.succeeded, "{}", verdict.said.join("\n"));
}
