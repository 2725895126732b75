//! Inputs that are known: seeds made of real streams, and what the driver found worth keeping or fixing (`corpus/`).

use std::fs;
use std::path::Path;

use vmstate_fuzz::{TARGETS, Target};

fn replay(name: &str) {
    let target = Target::named(name).expect("a target");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut inputs: Vec<_> =
        target.seeds().into_iter().enumerate().map(|(i, seed)| (format!("seed {i}"), seed)).collect();
    for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("a folder that can be listed").path();
        inputs.push((path.display().to_string(), fs::read(&path).expect("an input")));
    }
    assert!(inputs.len() > target.seeds().len(), "no input in {}", folder.display());
    for (name, input) in inputs {
        // Captured unless the test fails: the last one is the guilty one.
        println!("{name}");
        target.run(&input);
    }
}

#[test]
fn section() {
    replay("section");
}

#[test]
fn stream() {
    replay("stream");
}

#[test]
fn inspect() {
    replay("inspect");
}

#[test]
fn schema() {
    replay("schema");
}

#[test]
fn compat() {
    replay("compat");
}

#[test]
fn zoo() {
    replay("zoo");
}

#[test]
fn every_target_is_replayed() {
    let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names, ["section", "stream", "inspect", "schema", "compat", "zoo"]);
}
