//! A mutation is an edit of our own sources: it must still fit them.

use pgstead_sim::mutant::Mutant;
use std::path::Path;

#[test]
fn every_mutant_still_fits_the_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mutants = Mutant::all(&root.join("tests/sim/mutants")).unwrap();
    assert!(mutants.len() > 10, "the mutants are in tests/sim/mutants");
    let mut faults = Vec::new();
    for mutant in &mutants {
        // Applied one after the other, as two edits may be of one file.
        let mut texts = std::collections::BTreeMap::new();
        for edit in &mutant.edits {
            let read = || std::fs::read_to_string(root.join(&edit.file)).unwrap_or_default();
            let text = texts.entry(edit.file.clone()).or_insert_with(read);
            match edit.applied(text) {
                Ok(applied) if applied == *text => faults.push(format!("{}: nothing is changed", mutant.name)),
                Ok(applied) => *text = applied,
                Err(why) => faults.push(format!("{}: {why}", mutant.name)),
            }
        }
    }
    assert!(faults.is_empty(), "rewrite these mutants, or say why their rule is gone: {faults:#?}");
}
