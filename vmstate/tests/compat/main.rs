//! The compatibility checker: verdicts on hand-written pairs of releases and on dumps of QEMU, and their sentences.
#![cfg(feature = "tools")]

mod bounds;
mod counted;
mod dump;
mod gaps;
mod kinds;
mod limits;
mod predicates;
mod property;
mod remedies;

use vmstate::compat::check;
use vmstate::schema::{Description, Field, Kind, MaybeStatic, Presence};

const U8: Kind = Kind::Unsigned(1);
const U32: Kind = Kind::Unsigned(4);

fn field(name: &str, kind: Kind) -> Field {
    since(name, kind, 0)
}

fn since(name: &str, kind: Kind, version: u32) -> Field {
    Field::new(name.into(), kind, Presence::Since(version))
}

fn when(name: &str, kind: Kind, predicate: &str) -> Field {
    Field::new(name.into(), kind, Presence::If(predicate.into()))
}

fn description(name: &str, versions: (u32, u32), fields: Vec<Field>, subsections: Vec<Description>) -> Description {
    let (newest, oldest) = versions;
    Description::new(name.into(), newest, oldest, MaybeStatic::from(fields), MaybeStatic::from(subsections))
}

fn plain(fields: Vec<Field>) -> Description {
    description("dev", (1, 1), fields, vec![])
}

fn nested(name: &str, fields: Vec<Field>) -> Kind {
    Kind::Struct(description(name, (1, 1), fields, vec![]).into())
}

/// Checks the report without its first line.
#[track_caller]
fn says(old: &Description, new: &Description, expected: &str) {
    let report = check(old, new).to_string();
    let (_, sentences) = report.split_once('\n').expect("a report has a first line");
    let expected: String =
        expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n");
    let sentences: String = sentences.lines().map(str::trim).collect::<Vec<_>>().join("\n");
    assert_eq!(sentences, expected);
}

const ALL_LOADS: &str = "old -> new, version 1: loads
    new -> old, version 1: loads";
