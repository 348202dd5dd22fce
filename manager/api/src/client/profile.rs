//! How to reach a deployment and prove that one may: a file that only its owner can read.

use pgstead_types::Secret;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The servers of one deployment, its CA and the admin token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// `https://host:port`, tried in turn.
    pub servers: Vec<String>,
    /// The deployment's CA; no other is trusted.
    pub ca_pem: String,
    pub token: Secret,
}

#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error(
        "there is no profile at {}; expected the file that `pgstead init` writes: copy it there with mode 600, or name \
         it with --profile or PGSTEAD_PROFILE",
        .0.display()
    )]
    Missing(PathBuf),
    #[error("no home directory is known (HOME is not set); name the profile with --profile or PGSTEAD_PROFILE")]
    NoHome,
    #[error(
        "the profile {} has mode {mode:03o} and can be read by others, but it holds the admin token; expected 600: run \
         chmod 600 {}",
        path.display(), path.display()
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error("the profile {} cannot be read or written: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error(
        "the profile {} is not valid: {why}; expected {{\"servers\": [\"https://host:port\"], \"ca_pem\": ..., \
         \"token\": ...}} as `pgstead init` writes it",
        path.display()
    )]
    Bad { path: PathBuf, why: String },
}

impl Profile {
    /// `given` (from `--profile` or `PGSTEAD_PROFILE`), or the default place.
    pub fn path(given: Option<&Path>) -> Result<PathBuf, ProfileError> {
        if let Some(path) = given {
            return Ok(path.to_path_buf());
        }
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).ok_or(ProfileError::NoHome)?;
        Ok(Path::new(&home).join(".config/pgstead/profile.json"))
    }

    pub fn load(path: &Path) -> Result<Self, ProfileError> {
        let io = |source| ProfileError::Io { path: path.to_path_buf(), source };
        let mut file = std::fs::File::open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => ProfileError::Missing(path.to_path_buf()),
            _ => io(error),
        })?;
        // Of the opened file, so that it is the one that is read.
        let mode = file.metadata().map_err(io)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(ProfileError::Exposed { path: path.to_path_buf(), mode });
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(io)?;
        let bad = |why: String| ProfileError::Bad { path: path.to_path_buf(), why };
        let profile: Self = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        if profile.servers.is_empty() {
            return Err(bad("servers is empty".to_string()));
        }
        Ok(profile)
    }

    /// Writes it whole or not at all, with mode 600.
    pub fn save(&self, path: &Path) -> Result<(), ProfileError> {
        let io = |source| ProfileError::Io { path: path.to_path_buf(), source };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io)?;
        }
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        let stale = std::fs::remove_file(&beside);
        if let Err(error) = stale
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(io(error));
        }
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).map_err(io)?;
        let mut text = serde_json::to_vec_pretty(self).expect("a profile is plain text");
        text.push(b'\n');
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(io)?;
        std::fs::rename(&beside, path).map_err(io)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn profile() -> Profile {
        Profile { servers: vec!["https://a:7480".into()], ca_pem: "x".into(), token: Secret::new("t") }
    }

    #[test]
    fn a_profile_is_written_for_its_owner_alone_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/profile.json");
        profile().save(&path).unwrap();
        profile().save(&path).expect("saving again replaces it");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Profile::load(&path).unwrap(), profile());
    }

    #[test]
    fn a_profile_that_others_can_read_is_refused_with_the_cure() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("profile.json");
        profile().save(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = Profile::load(&path).unwrap_err().to_string();
        assert!(error.contains("640") && error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_missing_or_wrong_profile_says_what_was_expected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("profile.json");
        assert!(Profile::load(&path).unwrap_err().to_string().contains("--profile"));
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).unwrap();
        assert!(Profile::load(&path).unwrap_err().to_string().contains("servers"));
    }
}
