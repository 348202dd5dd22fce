//! `pgstead psql`: psql on the right member. The password is in no argument and in no environment.

use crate::args::PsqlArgs;
use crate::exit::{Exit, Failure};
use pgstead_api::client::Client;
use pgstead_api::view::ConnectionView;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

pub async fn run(args: &PsqlArgs, client: &Client) -> Result<(), Failure> {
    let connection = client.connection(&args.name).await?;
    let failed = |error: std::io::Error| {
        Failure::failed(format!("the files for psql cannot be written: {error}; check the temporary folder"))
    };
    // Mode 700, removed with what is in it when psql has ended.
    let folder = tempfile::Builder::new().prefix("pgstead-").tempdir().map_err(failed)?;
    let environment = environment(&connection, args.read_only, folder.path()).map_err(failed)?;
    let status = spawn(environment, &args.args).await?;
    drop(folder);
    match status.code() {
        Some(0) => Ok(()),
        // psql has said why itself.
        Some(_) => Err(Failure::failed("")),
        None => Err(Failure::failed("psql was ended by a signal")),
    }
}

/// What libpq reads, with the files that it names.
fn environment(
    connection: &ConnectionView,
    read_only: bool,
    folder: &Path,
) -> std::io::Result<Vec<(&'static str, OsString)>> {
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes())?;
        Ok::<_, std::io::Error>(path.into_os_string())
    };
    let escape = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
    let line = format!("*:*:*:{}:{}\n", escape(&connection.user), escape(&connection.password));
    let endpoints = if read_only { &connection.read_only } else { &connection.read_write };
    Ok(vec![
        ("PGHOST", endpoints.hosts.join(",").into()),
        ("PGPORT", endpoints.port.to_string().into()),
        ("PGUSER", connection.user.clone().into()),
        ("PGDATABASE", connection.database.clone().into()),
        ("PGSSLMODE", "verify-full".into()),
        ("PGSSLROOTCERT", write("ca.pem", &connection.ca_pem)?),
        ("PGPASSFILE", write("passfile", &line)?),
        // A dead host must not hold up the next one for minutes.
        ("PGCONNECT_TIMEOUT", "10".into()),
    ])
}

#[expect(clippy::disallowed_methods, reason = "the one program that the operator's commands run")]
async fn spawn(
    environment: Vec<(&'static str, OsString)>,
    args: &[OsString],
) -> Result<std::process::ExitStatus, Failure> {
    let mut command = tokio::process::Command::new("psql");
    // What the person has set for other servers must not win over this cluster's.
    for name in ["PGPASSWORD", "PGSERVICE", "PGSERVICEFILE", "PGHOSTADDR", "PGTARGETSESSIONATTRS", "PGREQUIRESSL"] {
        command.env_remove(name);
    }
    let mut child = command.envs(environment).args(args).spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::new(
            Exit::Failed,
            "psql is not on the PATH; install the Postgres client, or use `pgstead cluster connection`",
        ),
        _ => Failure::failed(format!("psql cannot be started: {error}")),
    })?;
    loop {
        tokio::select! {
            status = child.wait() => {
                return status.map_err(|error| Failure::failed(format!("psql cannot be waited for: {error}")));
            }
            // Ctrl-C cancels a query in psql, which gets the signal itself.
            Ok(()) = tokio::signal::ctrl_c() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgstead_api::view::Endpoints;

    #[test]
    fn the_password_is_in_a_file_for_its_owner_alone_and_nowhere_else() {
        use std::os::unix::fs::MetadataExt;
        let end = |port| Endpoints { url: String::new(), hosts: vec!["a".into(), "b".into()], port };
        let connection = ConnectionView {
            database: "app".into(),
            user: "app".into(),
            password: "a:b\\c".into(),
            read_write: end(6001),
            read_only: end(6002),
            direct: end(6000),
            consumer: None,
            ca_pem: "ca".into(),
        };
        let folder = tempfile::tempdir().unwrap();
        let environment = environment(&connection, true, folder.path()).unwrap();
        let get =
            |name: &str| environment.iter().find(|(held, _)| *held == name).unwrap().1.to_str().unwrap().to_string();
        assert_eq!(
            (get("PGHOST"), get("PGPORT"), get("PGSSLMODE")),
            ("a,b".into(), "6002".into(), "verify-full".into())
        );
        assert!(environment.iter().all(|(_, value)| !value.to_str().unwrap().contains("a:b")));
        let passfile = get("PGPASSFILE");
        assert_eq!(std::fs::read_to_string(&passfile).unwrap(), "*:*:*:app:a\\:b\\\\c\n");
        assert_eq!(std::fs::metadata(&passfile).unwrap().mode() & 0o777, 0o600);
    }
}
