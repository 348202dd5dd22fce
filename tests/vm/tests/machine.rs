//! Volumes on real LVM, in a virtual machine: the short form.

use pgstead_vm::machine::{self, Boot};
use std::path::{Path, PathBuf};
use std::time::Duration;

fn run(programs: &[(&str, &Path)], run: &str) {
    let boot = Boot {
        root: &machine::root().expect("setup has made it"),
        programs,
        run,
        disks: 2,
        disk_bytes: 8 << 30,
        limit: Duration::from_secs(1200),
    };
    let verdict = machine::run(&boot, |line| println!("{line}")).expect("it boots and ends");
    assert!(verdict.succeeded, "{}", verdict.said.join("\n"));
}

#[test]
fn every_promise_of_a_volume_driver_is_kept_on_real_lvm() {
    let guest = Path::new(env!("CARGO_BIN_EXE_vm-guest"));
    run(
        &[("vm-guest", guest)],
        "PGSTEAD_TEST_OWNER=105:105 exec /payload/vm-guest ext4:: lvm::a luks::what_is_encrypted luks::a_new_key",
    );
}

/// The product's binary is built beside this test's own by `scripts/test.sh`.
#[test]
fn a_cluster_on_lvm_outlives_its_processes_and_its_hosts_reboot() {
    let product: PathBuf = Path::new(env!("CARGO_BIN_EXE_vm-guest")).with_file_name("pgstead");
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let (script, common) = (scripts.join("postgres-on-lvm.sh"), scripts.join("common.sh"));
    let programs = [("pgstead", product.as_path()), ("common.sh", &common), ("postgres-on-lvm.sh", &script)];
    run(&programs, "exec /payload/postgres-on-lvm.sh");
}
