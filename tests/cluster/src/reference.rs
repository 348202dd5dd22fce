//! What pgstead is compared with: a plain Postgres primary with one synchronous standby, and somebody who promotes the
//! standby the instant the primary dies. Nothing decides, nothing is fenced, nobody could be wrong: the floor.

use crate::client::Target;
use crate::command;
use crate::place::{END_TIME, Place, address, end_all_below};
use crate::processes::{below_folder, wait_until_gone};
use crate::wait::until;
use anyhow::{Context, bail};
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;
use tokio_postgres::Client;
use tokio_postgres::config::TargetSessionAttrs;

const PATIENCE: Duration = Duration::from_secs(60);

struct Server {
    host: String,
    folder: PathBuf,
    postmaster: Option<Child>,
}

impl Server {
    fn data(&self) -> String {
        self.folder.join("data").display().to_string()
    }
}

/// Two servers; which of them is the primary changes with each promotion.
pub struct Reference {
    servers: [Server; 2],
    primary: usize,
    place: Place,
}

impl Reference {
    pub async fn start() -> anyhow::Result<Self> {
        let place = Place::fresh(2)?;
        let (uid, gid) = command::postgres_user().await?;
        let server = |number: usize| {
            let folder = place.folder.join(format!("s{number}"));
            fs::create_dir(&folder)?;
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
            chown(&folder, Some(uid), Some(gid))?;
            anyhow::Ok(Server { host: address(number), folder, postmaster: None })
        };
        let servers = [server(1)?, server(2)?];
        let mut reference = Self { servers, primary: 0, place };
        let data = reference.servers[0].data();
        let init = ["-D", &data, "--username=postgres", "--auth=trust", "--data-checksums", "--no-instructions"];
        command::run_postgres("initdb", &init).await?;
        let hba = "local all all trust\nhost all all 127.0.0.0/8 trust\nhost replication all 127.0.0.0/8 trust\n";
        fs::write(format!("{data}/pg_hba.conf"), hba)?;
        reference.start_server(0).await?;
        reference.rebuild_standby().await?;
        Ok(reference)
    }

    fn standby(&self) -> usize {
        1 - self.primary
    }

    fn config_of(&self, server: usize) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host(&self.servers[server].host).port(self.place.node_port).user("postgres").dbname("postgres");
        config
    }

    /// Both servers, for whoever wants to write.
    pub fn read_write(&self) -> Target {
        let mut config = self.config_of(0);
        config.host(&self.servers[1].host).target_session_attrs(TargetSessionAttrs::ReadWrite);
        Target::plain(config)
    }

    pub async fn primary_session(&self) -> anyhow::Result<Client> {
        Ok(Target::plain(self.config_of(self.primary)).connect_within(PATIENCE).await?)
    }
    pub async fn standby_session(&self) -> anyhow::Result<Client> {
        Ok(Target::plain(self.config_of(self.standby())).connect_within(PATIENCE).await?)
    }

    async fn start_server(&mut self, number: usize) -> anyhow::Result<()> {
        let port = self.place.node_port;
        let server = &mut self.servers[number];
        let mut args = vec!["-D".to_string(), server.data()];
        for setting in [
            format!("listen_addresses={}", server.host),
            format!("port={port}"),
            format!("unix_socket_directories={}", server.folder.display()),
            // The standby's name in synchronous_standby_names.
            "cluster_name=standby".to_string(),
            // Its default of 5 s would be measured instead of the promotion.
            "wal_retrieve_retry_interval=100ms".to_string(),
        ] {
            args.extend(["-c".to_string(), setting]);
        }
        server.postmaster = Some(command::spawn_postgres(&args, &server.folder.join("log")).await?);
        let target = Target::plain(self.config_of(number));
        let answers = async || target.connect().await.map(drop).map_err(|error| error.to_string());
        if let Err((passed, seen)) = until(PATIENCE, answers).await {
            bail!("the reference does not answer after {passed:?}: {seen}");
        }
        Ok(())
    }

    /// Ends whatever is left of the server that is not the primary, and copies it anew. A commit then needs it.
    pub async fn rebuild_standby(&mut self) -> anyhow::Result<()> {
        let (standby, port) = (self.standby(), self.place.node_port.to_string());
        self.end(standby)?;
        let data = self.servers[standby].data();
        if fs::exists(&data)? {
            fs::remove_dir_all(&data)?;
        }
        let host = &self.servers[self.primary].host;
        let copy = ["-D", &data, "-h", host, "-p", &port, "-U", "postgres", "-R", "-X", "stream", "-c", "fast"];
        command::run_postgres("pg_basebackup", &copy).await?;
        self.start_server(standby).await?;
        let primary = self.primary_session().await?;
        // After the copy, so that the copy does not have it: promoted, it would wait for a standby that it has not.
        primary.batch_execute("alter system set synchronous_standby_names = 'ANY 1 (standby)'").await?;
        primary.batch_execute("select pg_reload_conf()").await?;
        let sql = "select count(*) from pg_stat_replication where state = 'streaming' and sync_state = 'quorum'";
        let counts = async || match primary.query_one(sql, &[]).await {
            Ok(row) if row.get::<_, i64>(0) == 1 => Ok(()),
            Ok(_) => Err("no synchronous standby streams".to_string()),
            Err(error) => Err(error.to_string()),
        };
        match until(PATIENCE, counts).await {
            Ok(()) => Ok(()),
            Err((passed, seen)) => bail!("the reference has no standby after {passed:?}: {seen}"),
        }
    }

    /// Ends the standby's WAL receiver and keeps it from coming back, so that the standby lags from here on.
    pub async fn cut_standby(&self) -> anyhow::Result<()> {
        let session = self.standby_session().await?;
        session.batch_execute("alter system set primary_conninfo = ''").await?;
        session.batch_execute("select pg_reload_conf()").await?;
        let gone = async || match session.query_one("select count(*) from pg_stat_wal_receiver", &[]).await {
            Ok(row) if row.get::<_, i64>(0) == 0 => Ok(()),
            Ok(_) => Err("the receiver is still there".to_string()),
            Err(error) => Err(error.to_string()),
        };
        match until(PATIENCE, gone).await {
            Ok(()) => Ok(()),
            Err((passed, seen)) => bail!("after {passed:?}: {seen}"),
        }
    }

    /// SIGKILL to the primary's postmaster alone; then the standby is promoted at once, over `standby`.
    pub async fn kill_postmaster_and_promote(&mut self, standby: &Client) -> anyhow::Result<()> {
        self.servers[self.primary].postmaster.as_mut().context("the primary runs")?.kill()?;
        self.promote(standby).await
    }

    /// SIGKILL to every process of the primary; then the standby is promoted at once.
    pub async fn kill_all_and_promote(&mut self, standby: &Client) -> anyhow::Result<()> {
        for process in below_folder(&self.servers[self.primary].folder) {
            process.signal(Signal::KILL);
        }
        self.promote(standby).await
    }

    /// A clean stop, then the promotion.
    pub async fn switch_over(&mut self, standby: &Client) -> anyhow::Result<()> {
        let data = self.servers[self.primary].data();
        command::run_postgres("pg_ctl", &["stop", "-D", &data, "-m", "fast", "-w"]).await?;
        self.promote(standby).await
    }

    async fn promote(&mut self, standby: &Client) -> anyhow::Result<()> {
        let row = standby.query_one("select pg_promote(true, 60)", &[]).await.context("pg_promote")?;
        if !row.get::<_, bool>(0) {
            bail!("the reference's standby was not promoted within 60 s");
        }
        self.primary = self.standby();
        Ok(())
    }

    fn end(&mut self, number: usize) -> anyhow::Result<()> {
        let server = &mut self.servers[number];
        end_all_below(&server.folder)?;
        if let Some(mut postmaster) = server.postmaster.take() {
            // Killed just now, or before.
            let _ = postmaster.kill();
            postmaster.wait()?;
        }
        let left = wait_until_gone(&below_folder(&server.folder), END_TIME);
        if left.is_empty() { Ok(()) } else { bail!("processes of the reference are left: {left:?}") }
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        for number in [0, 1] {
            if let Err(error) = self.end(number) {
                eprintln!("{error:#}");
            }
        }
    }
}
