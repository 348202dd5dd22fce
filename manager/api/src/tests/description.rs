//! The description in docs/openapi.json is that of these routes.

use crate::openapi;
use pgstead_types::Bytes;
use pgstead_types::slots::WalBudget;
use pgstead_types::spec::{Cascade, ClusterSpec, OnLeaderCrash};
use std::collections::BTreeSet;
use std::path::Path;

fn checked_in() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json")
}

#[test]
fn the_checked_in_description_is_that_of_the_routes() {
    let made = openapi::text();
    if std::env::var_os("PGSTEAD_BLESS").is_some() {
        std::fs::create_dir_all(checked_in().parent().unwrap()).unwrap();
        std::fs::write(checked_in(), &made).unwrap();
    }
    let kept = std::fs::read_to_string(checked_in()).unwrap_or_default();
    assert!(kept == made, "docs/openapi.json is not that of the routes; run `make bless` and read the difference");
}

#[test]
fn the_description_is_whole() {
    let json = serde_json::to_value(openapi::description()).unwrap();
    assert!(json["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut names = BTreeSet::new();
    for (path, item) in json["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap_or_else(|| panic!("{method} {path} has no name"));
            assert!(names.insert(name.to_string()), "{name} names two operations");
            assert!(operation["summary"].is_string(), "{name} has no summary");
        }
    }
    assert!(names.len() >= 15, "{names:?}");
    // Every reference leads somewhere.
    let text = json.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(json["components"]["schemas"][name].is_object(), "no schema {name}");
    }
}

#[test]
fn the_described_spec_has_the_fields_of_the_real_one() {
    let json = serde_json::to_value(openapi::description()).unwrap();
    let described: BTreeSet<String> =
        json["components"]["schemas"]["ClusterSpec"]["properties"].as_object().unwrap().keys().cloned().collect();
    let window = Some("daily 02:00-03:00".to_string());
    let on_leader_crash = OnLeaderCrash::Restart;
    let slot_wal_budget = WalBudget::Fixed(Bytes(8 << 30));
    let cascade = Cascade::Zone;
    let full = ClusterSpec {
        maintenance_window: window,
        on_leader_crash,
        slot_wal_budget,
        cascade,
        logical_replication: true,
        volume_size: "20GB".parse().ok(),
        volume_limit: "40GB".parse().ok(),
        snapshots: "every 6h keep 7d".parse().unwrap(),
        replace_after: "1h".parse().unwrap(),
        regions: ["eu".to_string()].into(),
        zones_min: Some(2),
        storage_class: Some("nvme".into()),
        placement_weights: "idle=1".parse().unwrap(),
        io_limits: serde_json::from_str(r#"{"read_iops":4000}"#).unwrap(),
        ..ClusterSpec::named("app")
    };
    let real = serde_json::to_value(full).unwrap();
    let real: BTreeSet<String> = real.as_object().unwrap().keys().cloned().collect();
    assert_eq!(described, real);
}
