//! A Postgres 15 of its own per test, copied from one that was initialised once.

use crate::programs;
use crate::world::{Certificates, eventually, free_port};
use pgstead_types::MemberId;
use pgstead_types::routes::Endpoint;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::OnceLock;

pub const PASSWORD: &str = "correct horse";

/// A temporary directory that the server's user owns.
fn server_dir() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("gw").tempdir_in("/tmp").unwrap();
    give(dir.path(), 0o700);
    dir
}

fn give(path: &Path, mode: u32) {
    let (uid, gid) = programs::server_user();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    chown(path, Some(uid), Some(gid)).unwrap();
}

/// An initialised data directory. Each test process makes one and removes it when it is told to by its last user.
fn template() -> std::sync::Arc<tempfile::TempDir> {
    static TEMPLATE: OnceLock<std::sync::Mutex<std::sync::Weak<tempfile::TempDir>>> = OnceLock::new();
    let mut template = TEMPLATE.get_or_init(Default::default).lock().unwrap();
    if let Some(made) = template.upgrade() {
        return made;
    }
    let dir = server_dir();
    let password_file = dir.path().join("password");
    fs::write(&password_file, PASSWORD).unwrap();
    give(&password_file, 0o600);
    let data = dir.path().join("data");
    programs::run_as_server(
        "initdb",
        &[
            "-D",
            data.to_str().unwrap(),
            "--username=postgres",
            "--auth=scram-sha-256",
            &format!("--pwfile={}", password_file.display()),
            "--no-sync",
            "--no-instructions",
        ],
    );
    let made = std::sync::Arc::new(dir);
    *template = std::sync::Arc::downgrade(&made);
    made
}

pub struct Postgres {
    child: Child,
    pub port: u16,
    dir: tempfile::TempDir,
    _template: std::sync::Arc<tempfile::TempDir>,
}

impl Postgres {
    pub async fn start(certificates: &Certificates) -> Self {
        Self::start_with(certificates, &[]).await
    }

    /// With more settings, each `name=value`.
    pub async fn start_with(certificates: &Certificates, settings: &[&str]) -> Self {
        let template = template();
        let dir = server_dir();
        let data = dir.path().join("data");
        programs::copy_tree(template.path().join("data").to_str().unwrap(), data.to_str().unwrap());
        for (name, text) in [("server.crt", &certificates.certificate_pem), ("server.key", &certificates.key_pem)] {
            fs::write(data.join(name), text).unwrap();
            give(&data.join(name), 0o600);
        }
        fs::write(data.join("pg_hba.conf"), "hostssl all all 127.0.0.1/32 scram-sha-256\n").unwrap();
        let port = free_port();
        let mut args = vec!["-D".to_string(), data.display().to_string()];
        let socket_dir = format!("unix_socket_directories={}", dir.path().display());
        let port_setting = format!("port={port}");
        for setting in
            ["listen_addresses=127.0.0.1", "ssl=on", "fsync=off", &socket_dir, &port_setting].iter().chain(settings)
        {
            args.extend(["-c".to_string(), setting.to_string()]);
        }
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let child = programs::spawn_server(&args, log);
        let postgres = Self { child, port, dir, _template: template };
        eventually("Postgres accepts connections", async || {
            fs::read_to_string(postgres.log()).unwrap().contains("ready to accept connections")
        })
        .await;
        postgres
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint { member: MemberId::from_u128(self.port.into()), host: "127.0.0.1".into(), port: self.port }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        // Immediate shutdown: the postmaster ends its children itself.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("log of Postgres on port {}:\n{}", self.port, fs::read_to_string(self.log()).unwrap_or_default());
        }
    }
}
