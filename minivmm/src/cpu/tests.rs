//! The tables of features and models are consistent, and a selection is parsed as intended.

use super::{Choice, Feature, MODELS};
use crate::config::Cpu;

fn choose(text: &str) -> Result<Choice, String> {
    Choice::new(&text.parse::<Cpu>()?)
}

/// Every feature name of a model is in the table of features; an unknown name would be lost.
#[test]
fn models_have_features_that_there_are_each_once() {
    let mut names: Vec<&str> = Vec::new();
    for model in MODELS {
        let features: Vec<&str> = model.features.split_whitespace().collect();
        for (n, name) in features.iter().enumerate() {
            assert_eq!(Feature::find(name).map(Feature::name), Some(*name), "{}", model.names[0]);
            assert!(!features[..n].contains(name), "{}: {name} twice", model.names[0]);
        }
        assert_eq!(model.features().count(), features.len() + 7, "{}", model.names[0]);
        // The brand string has 48 bytes, the last of which is NUL (Intel SDM volume 2, CPUID).
        assert!(model.brand.len() < 48, "{}", model.names[0]);
        names.extend(model.names);
    }
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "a name that stands for two models");
}

#[test]
fn a_choice_is_a_model_and_changes() {
    let chosen = choose("EPYC,-sse4_1,+invtsc,avx2=off,x2apic=on,clzero").unwrap();
    assert_eq!(chosen.name(), "EPYC-v4");
    let changes: Vec<_> = chosen.changes().iter().map(|(feature, on)| (feature.name(), *on)).collect();
    assert_eq!(changes, [("sse4.1", false), ("invtsc", true), ("avx2", false), ("x2apic", true), ("clzero", true)]);
    assert!(choose("host").unwrap().model().is_none());
    assert_eq!(choose("qemu64").unwrap().name(), "qemu64-v1");
    // A feature may be switched twice to the same value.
    assert_eq!(choose("host,+avx,avx=on").unwrap().changes().len(), 1);
}

#[test]
fn a_choice_that_cannot_be_is_refused_with_what_to_change() {
    for (text, expected) in [
        (
            "EPYC-v9",
            "'EPYC-v9' is no model; models are host, qemu64-v1, qemu64, x86-64-v2, x86-64-v3, EPYC-v4, EPYC, \
                     Skylake-Server-v5, Skylake-Server",
        ),
        ("host,+sse9", "'sse9' is no CPU feature; names are those of `qemu-system-x86_64 -cpu help`"),
        ("host,+avx,-avx", "avx is switched on and off; say it once"),
        ("host,sse4-1=on,-sse4.1", "sse4.1 is switched on and off; say it once"),
        ("host,avx=maybe", "'avx=maybe': write +FEATURE, -FEATURE, FEATURE=on or FEATURE=off"),
        ("", "write MODEL or MODEL,+FEATURE,-FEATURE"),
        (",+avx", "write MODEL or MODEL,+FEATURE,-FEATURE"),
        ("host,,", "'': write +FEATURE, -FEATURE, FEATURE=on or FEATURE=off"),
    ] {
        assert_eq!(choose(text).unwrap_err(), expected, "{text}");
    }
}
