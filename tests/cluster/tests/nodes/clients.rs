//! The programs and drivers that people use, on the strings that pgstead prints.

use crate::support::{Bed, SOON, session};
use anyhow::{Context, ensure};
use pgstead_api::view::ConnectionView;
use pgstead_cluster_tests::{Said, run};
use std::fs;
use std::path::{Path, PathBuf};
use tokio_postgres::Client;

/// A program of the newest Postgres on this machine.
fn postgres_program(name: &str) -> anyhow::Result<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir("/usr/lib/postgresql")?.flatten().map(|entry| entry.path().join("bin").join(name)).collect();
    found.retain(|path| path.exists());
    found.sort();
    found.pop().with_context(|| format!("{name} is not installed; scripts/setup.sh installs it"))
}

/// Strings as printed, with the CA where they say.
struct Strings {
    ca: String,
    view: ConnectionView,
}

impl Strings {
    async fn of(bed: &Bed) -> anyhow::Result<Self> {
        let ca = bed.folder().join("ca.pem");
        let view = bed.connection("app").await?;
        fs::write(&ca, &view.ca_pem)?;
        Ok(Self { ca: ca.display().to_string(), view })
    }
    fn with_ca(&self, url: &str, ca: &str) -> String {
        url.replace("sslrootcert=ca.pem", &format!("sslrootcert={ca}"))
    }
    fn read_write(&self) -> String {
        self.with_ca(&self.view.read_write.url, &self.ca)
    }
    fn read_only(&self) -> String {
        self.with_ca(&self.view.read_only.url, &self.ca)
    }
    fn direct(&self) -> String {
        self.with_ca(&self.view.direct.url, &self.ca)
    }
}

async fn psql(url: &str, statement: &str) -> anyhow::Result<Said> {
    run(&postgres_program("psql")?, &["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement, url], &[]).await
}

async fn answer(url: &str, statement: &str) -> anyhow::Result<String> {
    Ok(psql(url, statement).await?.output()?.trim().to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_pgbench_psycopg_and_tokio_postgres_work_on_the_printed_strings() -> anyhow::Result<()> {
    let bed = Bed::with_cluster(3).await?;
    let strings = Strings::of(&bed).await?;
    let (read_write, read_only) = (strings.read_write(), strings.read_only());
    session(&bed.read_write("app").await?).await?;

    ensure!(answer(&read_write, "select pg_is_in_recovery()").await? == "f");
    // While no standby can be had, the leader answers.
    let by_a_standby = async || match answer(&read_only, "select pg_is_in_recovery()").await {
        Ok(answer) if answer == "t" => Ok(()),
        other => Err(format!("{other:?}")),
    };
    bed.wait_for("a standby answers who only reads", SOON, by_a_standby).await?;
    let pgbench =
        async |args: &[&str]| run(&postgres_program("pgbench")?, args, &[]).await?.output().context("pgbench");
    pgbench(&["-i", "-q", "-s", "1", &read_write]).await?;
    pgbench(&["-c", "4", "-T", "3", &read_write]).await?;
    pgbench(&["-c", "4", "-T", "3", "-M", "prepared", &read_write]).await?;
    let written = answer(&read_write, "select count(*) from pgbench_history").await?;
    ensure!(written.parse::<u64>()? > 0);
    let there = async || match answer(&read_only, "select count(*) from pgbench_history").await {
        Ok(count) if count == written => Ok(()),
        other => Err(format!("{other:?}")),
    };
    bed.wait_for("the standbys have what pgbench wrote", SOON, there).await?;
    pgbench(&["-n", "-S", "-c", "4", "-T", "3", "-M", "prepared", &read_only]).await?;

    let script = "import sys, psycopg2\n\
        connection = psycopg2.connect(sys.argv[1])\n\
        cursor = connection.cursor()\n\
        cursor.execute('create table from_python (n int)')\n\
        cursor.executemany('insert into from_python values (%s)', [(n,) for n in range(10)])\n\
        connection.commit()\n\
        cursor.execute('select sum(n) from from_python')\n\
        print(cursor.fetchone()[0])\n";
    let said = run(Path::new("/usr/bin/python3"), &["-c", script, &read_write], &[]).await?;
    ensure!(said.output().context("psycopg2; scripts/setup.sh installs python3-psycopg2")?.trim() == "45");

    let mut client = session(&bed.read_write("app").await?).await?;
    let transaction = client.transaction().await?;
    transaction.execute("insert into from_python values ($1)", &[&100_i32]).await?;
    transaction.commit().await?;
    let count: i64 = client.query_one("select count(*) from from_python", &[]).await?.get(0);
    ensure!(count == 11);
    let read_only_target = bed.read_only("app").await?;
    let asks = async |client: &Client| client.query_one("select pg_is_in_recovery()", &[]).await;
    let by_a_standby = async || match read_only_target.in_a_session(asks).await {
        Ok(row) if row.get::<_, bool>(0) => Ok(()),
        Ok(_) => Err("the leader answers".to_string()),
        Err(error) => Err(format!("{error:#}")),
    };
    bed.wait_for("a standby answers a program that only reads", SOON, by_a_standby).await?;

    strangers_are_refused(&bed, &strings).await?;

    // Straight to the members, before and after the leader changes.
    ensure!(answer(&strings.direct(), "select pg_is_in_recovery()").await? == "f");
    let leader = bed.leader_node("app").await?;
    bed.pgstead(&["cluster", "switchover", "app"]).await?.output()?;
    ensure!(bed.leader_node("app").await? != leader);
    ensure!(answer(&strings.direct(), "select pg_is_in_recovery()").await? == "f");
    ensure!(
        answer(&read_write, "insert into from_python values (1) returning pg_is_in_recovery()").await?.starts_with('f')
    );
    Ok(())
}

/// `sslmode=verify-full` with a CA that did not sign, and with a server that is another.
async fn strangers_are_refused(bed: &Bed, strings: &Strings) -> anyhow::Result<()> {
    let key = rcgen::KeyPair::generate()?;
    let wrong = bed.folder().join("wrong-ca.pem");
    fs::write(&wrong, rcgen::CertificateParams::new(vec!["nobody".to_string()])?.self_signed(&key)?.pem())?;
    let wrong = wrong.display().to_string();
    for url in [&strings.view.read_write.url, &strings.view.read_only.url, &strings.view.direct.url] {
        let said = psql(&strings.with_ca(url, &wrong), "select 1").await?;
        ensure!(!said.succeeded() && said.stderr.contains("certificate verify failed"), "{said:?}");
    }
    let host = &bed.node(1).host;
    for port in [strings.view.read_write.port, strings.view.direct.port] {
        let (view, ca) = (&strings.view, &strings.ca);
        let url = format!(
            "host=elsewhere.example hostaddr={host} port={port} user={} password={} dbname={} sslmode=verify-full sslrootcert={ca}",
            view.user, view.password, view.database
        );
        let said = psql(&url, "select 1").await?;
        ensure!(!said.succeeded() && said.stderr.contains("does not match host name"), "{said:?}");
    }
    // The other way round: a password that is not the owner's, and no TLS at all.
    let said = psql(&strings.read_write().replace(&strings.view.password, "swordfish"), "select 1").await?;
    ensure!(!said.succeeded() && said.stderr.contains("password authentication failed"), "{said:?}");
    let said = psql(&strings.read_write().replace("verify-full", "disable"), "select 1").await?;
    ensure!(!said.succeeded() && said.stderr.contains("TLS"), "{said:?}");
    Ok(())
}
