//! Copying the leader's data folder.

use super::{Instance, InstanceError, UpstreamSource};
use crate::run::Run;
use pgstead_types::report::{DataIdentity, DataSeen};
use std::time::Duration;

/// A copy takes as long as the data is large; its end is the caller's decision, by dropping the future.
const COPY_TIME_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Called with 0 to 100 as a copy or rewind goes on. It runs on the copying task and must not wait.
pub type CloneProgress<'a> = &'a (dyn Fn(u8) + Send + Sync);

impl Instance {
    /// Copies the data of `source` for this incarnation. There must be no data: what becomes of old data is the caller's
    /// decision. Dropping the future ends the copy and leaves a folder that is marked as unfinished.
    pub async fn copy_from(
        &self,
        source: &UpstreamSource,
        progress: CloneProgress<'_>,
    ) -> Result<DataIdentity, InstanceError> {
        let config = self.config();
        match self.data_seen(None).await {
            DataSeen::Present(identity) if identity.incarnation == config.incarnation => return Ok(identity),
            DataSeen::Present(_) => return Err(InstanceError::DataExists { data_dir: config.data_dir.clone() }),
            DataSeen::Absent => {}
            DataSeen::Partial | DataSeen::Lost { .. } | DataSeen::Foreign { .. } => return self.present_data().await,
        }
        self.must_be_down().await?;
        self.end_strays().await?;
        // Before anything is made: a leader that does not let it in yet, or is not there, costs nothing.
        drop(self.connect_to_source(source).await?);
        self.mark_partial("copy").await?;
        self.empty_data_folder().await?;
        self.write_upstream_certificates(source)?;
        let args = [
            "--pgdata",
            &config.data_dir.to_string_lossy(),
            "--dbname",
            &source.follow().copy_conninfo(&config),
            "--slot",
            &config.incarnation.to_string(),
            "--wal-method=stream",
            "--checkpoint=fast",
            "--progress",
            "--no-password",
        ]
        .map(str::to_string);
        let on_line = |line: &str| {
            if let Some(percent) = percent_in(line) {
                progress(percent);
            }
        };
        let run = Run::new(&config.program("pg_basebackup"), args).run_as(config.owner());
        let copied = run.on_line(&on_line).deadline(COPY_TIME_MAX).output().await;
        // Streaming gets its certificates when it begins, under whatever epoch is the right one then.
        self.remove_upstream_certificates(None)?;
        copied?;
        self.mark_complete().await
    }
}

/// `  12345/67890 kB (18%), 0/1 tablespace`
pub fn percent_in(line: &str) -> Option<u8> {
    let before = line.split_once("%)")?.0;
    before.rsplit_once('(')?.1.trim().parse().ok().filter(|percent| *percent <= 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_progress_that_the_programs_print() {
        assert_eq!(percent_in("  4567/22789 kB (20%), 0/1 tablespace"), Some(20));
        assert_eq!(percent_in("56123/56123 kB (100%) copied"), Some(100));
        assert_eq!(percent_in("waiting for checkpoint"), None);
    }
}
