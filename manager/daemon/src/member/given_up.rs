//! Data that was declared lost, by a forced failover or with its node, and came back: it may hold what nobody else has. It is
//! kept beside the member's data for a person, the last few lives of it, until the person removes it or the cluster goes.

use pgstead_types::{Finding, Incarnation};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

/// Lives of data kept. Each is as large as the database.
const KEPT_MAX: usize = 2;

const BETWEEN: &str = ".given-up-";

/// Moves the data folder out of the way of a copy, and the oldest one that is kept out of the world if there are too many.
pub fn keep(data_dir: &Path, life: Incarnation) -> io::Result<()> {
    let mut kept = kept(data_dir)?;
    while kept.len() >= KEPT_MAX {
        std::fs::remove_dir_all(kept.remove(0).1)?;
    }
    let mut name = data_dir.file_name().unwrap_or_default().to_os_string();
    name.push(format!("{BETWEEN}{}", life.number));
    let target = data_dir.with_file_name(name);
    match std::fs::remove_dir_all(&target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::rename(data_dir, target)
}

/// Oldest life first.
fn kept(data_dir: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let (Some(folder), Some(name)) = (data_dir.parent(), data_dir.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found?.collect::<io::Result<Vec<_>>>()?,
    };
    let life = |entry: &std::fs::DirEntry| {
        let found = entry.file_name();
        found.to_str()?.strip_prefix(name)?.strip_prefix(BETWEEN)?.parse().ok()
    };
    let mut kept: Vec<(u32, PathBuf)> = entries.iter().filter_map(|entry| Some((life(entry)?, entry.path()))).collect();
    kept.sort();
    Ok(kept)
}

/// The lives that are kept. A folder that cannot be read is an error: it may hold some.
pub fn lives(data_dir: &Path) -> io::Result<BTreeSet<u32>> {
    Ok(kept(data_dir)?.into_iter().map(|(life, _)| life).collect())
}

/// Whether what is seen of the data folder says anything of this volume: it is that one's folder, and the volume is there.
pub fn looks_into(volume: &Path, data_dir: &Path) -> bool {
    data_dir.starts_with(volume) && volume.is_dir()
}

/// Says where it is, for as long as it is there. `own`: the member is to go, and its own data is of that kind.
pub fn finding(data_dir: &Path, name: &str, own: bool) -> Option<Finding> {
    let kept = kept(data_dir).unwrap_or_default().into_iter().map(|(_, path)| path);
    let paths: Vec<String> = kept.chain(own.then(|| data_dir.into())).map(|path| path.display().to_string()).collect();
    (!paths.is_empty()).then(|| {
        let text = format!(
            "data of {name} that was given up is kept in {}: remove it once nobody wants anything of it",
            paths.join(" and ")
        );
        Finding::info("data_kept", text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgstead_types::MemberId;

    #[test]
    fn the_last_lives_are_kept_and_told() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("pgdata");
        assert_eq!((finding(&data, "app-1", false), lives(&data).unwrap()), (None, [].into()));
        for number in [9, 10, 11] {
            std::fs::create_dir(&data).unwrap();
            std::fs::write(data.join("number"), number.to_string()).unwrap();
            keep(&data, Incarnation { member: MemberId::from_u128(1), number }).unwrap();
        }
        assert!(!data.exists());
        let numbers: Vec<u32> = kept(&data).unwrap().into_iter().map(|(number, _)| number).collect();
        assert_eq!(numbers, [10, 11]);
        assert_eq!(lives(&data).unwrap(), [10, 11].into());
        assert!(looks_into(folder.path(), &data) && !looks_into(&folder.path().join("another"), &data));
        let unmounted = folder.path().join("unmounted");
        assert!(!looks_into(&unmounted, &unmounted.join("pgdata")));
        // Where nothing can be read nothing is known.
        assert!(lives(&folder.path().join("pgdata.given-up-10/number/pgdata")).is_err());
        let told = finding(&data, "app-1", false).unwrap();
        assert!(told.message.contains("pgdata.given-up-11") && !told.message.contains("pgdata:"), "{told}");
        assert!(finding(&data, "app-1", true).unwrap().message.contains("pgdata:"));
    }
}
