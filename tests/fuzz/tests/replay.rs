//! Replays the known inputs: seeds made from real streams, and inputs that the driver found worth keeping or fixing
//! (`corpus/`).

use vmstate_fuzz::{TARGETS, Target, corpus};

fn replay(name: &str) {
    let target = Target::named(name).expect("a target");
    let mut inputs: Vec<_> =
        target.seeds().into_iter().enumerate().map(|(i, seed)| (format!("seed {i}"), seed)).collect();
    let archived = corpus::archived(name).expect("an archive");
    assert!(
        !archived.is_empty(),
        "no archive, or nothing in it: `tests/fuzz/run {name}`, then `tests/fuzz/run --keep {name}`"
    );
    inputs.extend(archived);
    inputs.extend(corpus::finds(name).expect("finds"));
    for (name, input) in inputs {
        // Shown only if the test fails: the last name is that of the failing input.
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
fn every_kind() {
    replay("every_kind");
}

#[test]
fn qmp() {
    replay("qmp");
}

#[test]
fn kernel() {
    replay("kernel");
}

#[test]
fn guest() {
    replay("guest");
}

#[test]
fn xbzrle() {
    replay("xbzrle");
}

#[test]
fn multifd() {
    replay("multifd");
}

#[test]
fn pairing() {
    replay("pairing");
}

#[test]
fn arrival() {
    replay("arrival");
}

#[test]
fn each_archive_is_the_encoding_of_its_inputs() {
    for target in TARGETS {
        let inputs = corpus::archived(target.name).expect("an archive");
        let again = corpus::encode(inputs.into_iter().map(|(_, input)| input)).expect("an archive");
        let kept = std::fs::read(corpus::archive(target.name)).expect("an archive");
        assert!(again == kept, "{}: not in order; make it with `tests/fuzz/run --keep {0}`", target.name);
    }
}

#[test]
fn every_target_is_replayed() {
    let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(
        names,
        [
            "section",
            "stream",
            "inspect",
            "schema",
            "compat",
            "every_kind",
            "qmp",
            "kernel",
            "guest",
            "xbzrle",
            "multifd",
            "pairing",
            "arrival"
        ]
    );
}
