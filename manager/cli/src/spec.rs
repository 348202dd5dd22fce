//! A cluster's spec from a file and the options that win over it.

use crate::args::CreateArgs;
use crate::exit::Failure;
use pgstead_types::spec::ClusterSpec;
use serde_json::Value;
use std::path::Path;

pub fn read(args: &CreateArgs) -> Result<ClusterSpec, Failure> {
    let mut spec = match &args.file {
        Some(path) => from_file(path, &args.name)?,
        None => ClusterSpec::named(&args.name),
    };
    if let Some(members) = args.members {
        spec.members = members;
    }
    if args.sync_replicas.is_some() {
        spec.sync_replicas = args.sync_replicas;
    }
    if let Some(durability) = args.durability {
        spec.durability = durability;
    }
    if let Some(cascade) = args.cascade {
        spec.cascade = cascade;
    }
    if args.maintenance_window.is_some() {
        spec.maintenance_window.clone_from(&args.maintenance_window);
    }
    if let Some(budget) = args.slot_wal_budget {
        spec.slot_wal_budget = budget;
    }
    spec.volume_size = args.volume_size.or(spec.volume_size);
    spec.volume_limit = args.volume_limit.or(spec.volume_limit);
    spec.snapshots = args.snapshots.unwrap_or(spec.snapshots);
    spec.replace_after = args.replace_after.unwrap_or(spec.replace_after);
    let placement = &args.placement;
    if !placement.regions.is_empty() {
        spec.regions = placement.regions.iter().cloned().collect();
    }
    spec.zones_min = placement.zones_min.or(spec.zones_min);
    spec.storage_class = placement.storage_class.clone().or(spec.storage_class);
    spec.placement_weights = placement.placement_weights.unwrap_or(spec.placement_weights);
    spec.io_limits = args.io_limits.over(spec.io_limits);
    spec.logical_replication |= args.logical_replication;
    spec.settings.extend(args.set.iter().cloned());
    // The API checks again; here it needs no server.
    spec.check().map_err(|error| Failure::usage(error.to_string()))?;
    Ok(spec)
}

fn from_file(path: &Path, name: &str) -> Result<ClusterSpec, Failure> {
    let bad = |why: String| Failure::usage(format!("the spec {} cannot be used: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    let mut value: Value = match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?,
        Some("toml") => toml::from_str(&text).map_err(|error| bad(error.to_string()))?,
        _ => return Err(bad("its name ends neither in .toml nor in .json; expected one of the two".to_string())),
    };
    let fields = value.as_object_mut().ok_or_else(|| bad("it is not an object; expected fields".to_string()))?;
    match fields.get("name") {
        None => {
            fields.insert("name".to_string(), name.into());
        }
        Some(said) if said.as_str() == Some(name) => {}
        Some(said) => return Err(bad(format!("it names {said}, the command {name}; expected the same name or none"))),
    }
    // `max_connections = 200` is what people write; Postgres takes settings as text.
    if let Some(settings) = fields.get_mut("settings").and_then(Value::as_object_mut) {
        for value in settings.values_mut() {
            match value {
                Value::Number(number) => *value = number.to_string().into(),
                Value::Bool(true) => *value = "on".into(),
                Value::Bool(false) => *value = "off".into(),
                _ => {}
            }
        }
    }
    serde_json::from_value(value).map_err(|error| bad(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(suffix: &str, text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::Builder::new().suffix(suffix).tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn a_toml_file_takes_its_name_from_the_command_and_numbers_as_settings() {
        let file = file(".toml", "members = 5\nsync_replicas = 2\n[settings]\nmax_connections = 200\njit = false\n");
        let spec = from_file(file.path(), "app").unwrap();
        assert_eq!((spec.name.as_str(), spec.members, spec.sync_replicas), ("app", 5, Some(2)));
        assert_eq!((spec.settings["max_connections"].as_str(), spec.settings["jit"].as_str()), ("200", "off"));
    }

    #[test]
    fn a_json_file_that_names_another_cluster_or_an_unknown_key_is_refused() {
        let other = file(".json", r#"{"name":"b"}"#);
        assert!(from_file(other.path(), "app").unwrap_err().message.contains("the same name or none"));
        let unknown = file(".json", r#"{"replicas":3}"#);
        assert!(from_file(unknown.path(), "app").unwrap_err().message.contains("unknown field `replicas`"));
        let neither = file(".yaml", "name: app");
        assert!(from_file(neither.path(), "app").unwrap_err().message.contains(".toml"));
    }
}
