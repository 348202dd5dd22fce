//! Limits of reads and writes where the daemon has no control group to divide: the member runs on, and says so. That the kernel keeps
//! them is shown in the virtual machine (`tests/vm/scripts/io-limits.sh`).

use crate::support::{Bed, SOON};
use anyhow::ensure;
use pgstead_api::view::Health;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_that_cannot_be_in_force_are_told_of_and_hold_nobody_up() -> anyhow::Result<()> {
    let bed = Bed::with_cluster(1).await?;
    bed.pgstead(&["cluster", "update", "app", "--io-write-rate", "200MB", "--io-read-iops", "4000"]).await?.output()?;
    let told = bed.finding("app", "io_limits_not_applied").await?;
    ensure!(told.contains("read_iops = 4000, write_rate = 200MB") && told.contains("runs on as before"), "{told}");
    ensure!(bed.health("app", Health::Healthy).await?.spec.io_limits.to_string().contains("200MB"));
    let said = bed.pgstead(&["cluster", "update", "app", "--io-write-rate", "1KB"]).await?;
    ensure!(!said.succeeded() && said.stderr.contains("such as 200MB"), "{said:?}");
    let none = ["cluster", "update", "app", "--io-write-rate", "none", "--io-read-iops", "none"];
    bed.pgstead(&none).await?.output()?;
    let client = bed.client()?;
    let gone = async || {
        let findings = client.cluster("app").await.map_err(|error| error.to_string())?.findings;
        match findings.iter().any(|finding| finding.code == "io_limits_not_applied") {
            true => Err(format!("{findings:?}")),
            false => Ok(()),
        }
    };
    bed.wait_for("nothing is said of limits that nobody asks for", SOON, gone).await
}
