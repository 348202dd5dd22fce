//! Every script in `tests/scenarios`: its expectations must hold, and its transcript must be the one in the file.
//! `PGSTEAD_BLESS=1` rewrites transcripts; it cannot change what is expected.

use pgstead_sim::scenario::{parse, play};
use std::path::Path;

#[test]
fn every_scenario_goes_as_it_is_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios");
    let bless = std::env::var_os("PGSTEAD_BLESS").is_some();
    let only = std::env::var("PGSTEAD_SCENARIO").ok();
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "txt"));
    files.sort();
    assert!(files.len() > 10, "the scenarios are in {}", folder.display());
    let mut failures = Vec::new();
    for path in files {
        let name = path.file_stem().unwrap().to_string_lossy().to_string();
        if only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        let script = parse(&std::fs::read_to_string(&path).unwrap()).unwrap_or_else(|why| panic!("{name}: {why}"));
        let played = play(&script);
        failures.extend(played.failures.iter().map(|why| format!("{name}: {why}")));
        if bless {
            std::fs::write(&path, format!("{}\n\ntranscript:\n{}", script.head, played.transcript)).unwrap();
        } else if played.transcript != script.transcript {
            let differs = played.transcript.lines().zip(script.transcript.lines()).find(|(now, then)| now != then);
            failures.push(format!("{name}: another course: {differs:?}; `make bless` rewrites it if that is right"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
