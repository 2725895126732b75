//! Bounds on the cost of a comparison: a few bytes of a schema describe a lot, and schemas may be untrusted.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use vmstate::compat::{Reason, SectionDescription, SectionReport, Verdict, check, check_registry};
use vmstate::schema::{Description, Field, Kind, Limit, Presence};

use crate::{U8, U32, description, field, nested, plain, since, when};

/// Limit on processor time, which does not depend on other load of the machine. Every bounded comparison takes less than a fifth
/// of it, without optimisation; an unbounded one takes hours.
const SOON: Duration = Duration::from_secs(60);

/// True if at least one comparison was too large, and all ended soon.
fn is_too_large(report: &SectionReport) -> bool {
    assert!(!report.is_compatible(false), "{report}");
    let too_large = |verdict: &Verdict| matches!(verdict, Verdict::NotCompared(why) if why.reason == Reason::TooLarge);
    report.comparisons.iter().any(|comparison| too_large(&comparison.verdict))
}

#[track_caller]
fn ends_soon<T>(work: impl FnOnce() -> T) -> T {
    let start = processor_time();
    let done = work();
    let took = processor_time() - start;
    assert!(took < SOON, "{took:?}");
    done
}

/// The processor time of this thread so far.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("each thread has the clock").into()
}

fn array(element: Kind, count: usize) -> Kind {
    Kind::Array(element.into(), count)
}

#[test]
fn large_arrays_of_integers_are_one_item() {
    let dev = plain(vec![field("ram", array(array(U32, usize::MAX), usize::MAX))]);
    assert!(ends_soon(|| check(&dev, &dev)).is_compatible(true));
}

#[test]
fn large_arrays_of_structs_are_too_large() {
    let entry = || nested("entry", vec![field("a", U8), field("b", U32)]);
    let dev = plain(vec![field("entries", array(array(entry(), 1 << 20), 1 << 20))]);
    assert!(ends_soon(|| is_too_large(&check(&dev, &dev))));
}

#[test]
fn arrays_of_nothing_take_no_time() {
    let nothing = |kind| array(array(array(array(kind, usize::MAX), usize::MAX), usize::MAX), usize::MAX);
    let dev = plain(vec![field("none", nothing(Kind::Check)), field("empty", nothing(array(U8, 0)))]);
    assert!(ends_soon(|| check(&dev, &dev)).is_compatible(true));
}

#[test]
fn long_names_deep_inside_are_too_large() {
    let mut kind = U8;
    for _ in 0..30 {
        kind = nested("n", vec![field(&"n".repeat(1 << 16), kind.clone()), field("b", kind)]);
        if matches!(&kind, Kind::Struct(of) if of.fields.len() > 40) {
            break;
        }
    }
    let dev = plain(vec![field("all", kind)]);
    assert!(ends_soon(|| is_too_large(&check(&dev, &dev))));
}

#[test]
fn many_versions_are_not_all_compared() {
    let fields: Vec<Field> = (0..5000).map(|at| since(&format!("f{at}"), U8, at)).collect();
    let dev = description("dev", (5000, 0), fields, vec![]);
    let report = ends_soon(|| check(&dev, &dev));
    assert!(is_too_large(&report));
    assert_eq!(report.comparisons.len(), 64 + 1 + 1);
}

/// Each predicate exists on one side only, so that all of them are open at the same time.
#[test]
fn many_open_decisions_are_too_large() {
    let side = |name: &str| {
        let asked = (0..60).map(|at| when(&format!("{name}{at}"), U8, &format!("{name}{at}")));
        plain(asked.chain((0..60).map(|at| when(&format!("{name}{at}"), U32, &format!("{name}{at}")))).collect())
    };
    assert!(ends_soon(|| is_too_large(&check(&side("p"), &side("q")))));
}

#[test]
fn many_subsections_of_many_structs_are_too_large() {
    let subsection = |at: usize| description(&format!("entry/{at}"), (1, 1), vec![field("a", U8)], vec![]);
    let entry = description("entry", (1, 1), vec![], (0..1000).map(subsection).collect());
    let dev = plain(vec![field("entries", array(Kind::Struct(entry.into()), 1000))]);
    assert!(ends_soon(|| is_too_large(&check(&dev, &dev))));
}

#[test]
fn many_values_are_too_large() {
    let odd = |from: i128| {
        Kind::Limited(U32.into(), Limit::OneOf((0..2000).map(|at| from + 2 * at).collect::<Vec<_>>().into()))
    };
    let entry = |from| nested("entry", vec![field("a", odd(from)), field("b", U8)]);
    let dev = |from| plain(vec![field("entries", array(entry(from), 10_000))]);
    assert!(ends_soon(|| is_too_large(&check(&dev(0), &dev(1)))));
}

/// Variants whose numbers have gaps: the numbers of no variant are not one range.
#[test]
fn many_variants_are_too_large() {
    let mode = |count: i128| {
        let numbers: Vec<_> = (0..count).map(|at| 2 * at).collect();
        let tag = Kind::Limited(U32.into(), Limit::OneOf(numbers.clone().into()));
        let variant = |number: &i128| Field::new(number.to_string().as_str().into(), U8, Presence::Tag(*number));
        nested("mode", [field("tag", tag)].into_iter().chain(numbers.iter().map(variant)).collect())
    };
    let dev = |count, variants| plain(vec![field("modes", array(mode(variants), count))]);
    assert!(ends_soon(|| is_too_large(&check(&dev(1, 10_000), &dev(1, 10_000)))));
    assert!(ends_soon(|| is_too_large(&check(&dev(1000, 60), &dev(1000, 60)))));
    // As many variants as a device has.
    assert!(ends_soon(|| check(&dev(64, 16), &dev(64, 16))).is_compatible(true));
    assert!(ends_soon(|| check(&dev(1, 256), &dev(1, 256))).is_compatible(true));
}

#[test]
fn many_sections_share_one_budget() {
    let entry = || nested("entry", vec![field("a", U8), field("b", U32)]);
    let dev = plain(vec![field("entries", array(entry(), 1 << 14))]);
    let names: Vec<String> = (0..1000).map(|at| format!("dev{at}")).collect();
    let section = |name| SectionDescription { name, aliases: &[], description: &dev, required: true };
    let sections: Vec<_> = names.iter().map(|name| section(name)).collect();
    let report = ends_soon(|| check_registry(&sections, &sections));
    assert!(report.sections[0].is_compatible(true));
    assert!(is_too_large(&report.sections[999]));
}

/// Forty subsections: the verdict must not take 2^40 steps.
#[test]
fn many_subsections_and_predicates_are_quick() {
    let fields: Vec<_> = (0..40).map(|i| when(&format!("f{i}"), U8, &format!("p{i}"))).collect();
    let subsection = |i: i32| description(&format!("dev/s{i:02}"), (1, 1), vec![field("x", U8)], vec![]);
    let old = description("dev", (1, 1), fields.clone(), (0..40).map(subsection).collect());
    let new = description("dev", (1, 1), fields, (0..41).map(subsection).collect());
    let report = check(&old, &new).to_string();
    assert!(report.contains("old -> new, version 1: loads\n"), "{report}");
    assert!(report.contains("loads if subsection \"dev/s40\" is not sent, else"), "{report}");
}

/// Each element has an outcome of its own, which has another name on the other side.
#[test]
fn many_predicates_in_renamed_structs_are_quick() {
    let entry = || nested("entry", vec![field("id", U8), when("tag", U8, "tagged")]);
    let dev = |name: &str, count| plain(vec![field(name, array(entry(), count))]);
    let report = ends_soon(|| check(&dev("queue", 10_000), &dev("requests", 10_000)));
    assert!(report.is_compatible(true), "{report}");
    // Nothing shows which one is new.
    assert!(!ends_soon(|| check(&dev("queue", 10_000), &dev("requests", 9_999))).is_compatible(true));
}

/// As many fields with unnamed predicates as QEMU's largest devices have.
#[test]
fn many_predicates_without_a_name_are_quick() {
    let fields = |prefix: &str| -> Vec<Field> {
        let field = |at| Field::new(format!("{prefix}{at}").as_str().into(), U8, Presence::If("".into()));
        (0..100).map(field).collect()
    };
    let dev = |prefix| -> Description { plain(fields(prefix)) };
    assert!(ends_soon(|| check(&dev("f"), &dev("f"))).is_compatible(true));
}
