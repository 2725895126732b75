//! Which predicates share one outcome: those of one struct in one field. Pairs of releases of which the real load refuses real
//! bytes because two structs of one type, or two predicates of one name, had different outcomes; and the verdict on the two
//! descriptions. The oracle is the load.

use vmstate::VmState;
use vmstate::codec::{Reader, Writer};
use vmstate::compat::{Comparison, Direction, Verdict, check};
use vmstate::schema::of;

/// The comparison of streams of `Old` in `New`.
fn comparison<Old: VmState, New: VmState>() -> Comparison {
    let mut comparisons = check(of::<Old>(), of::<New>()).comparisons.into_iter();
    comparisons
        .find(|comparison| comparison.direction == Direction::OldToNew)
        .expect("streams of the old release are looked at")
}

/// True if `into` loads everything that `sent` writes.
fn takes<Old: VmState, New: VmState>(mut sent: Old, mut into: New) -> bool {
    let mut out = Writer::new();
    sent.save_version(&mut out, 1).unwrap();
    let bytes = out.into_bytes();
    let mut input = Reader::strict(&bytes).complete();
    into.load_or_keep(&mut input, 1).is_ok() && input.rest().is_empty()
}

/// Checks that `sent` does not load into `into`, and that the verdict requires exactly `conditions`.
#[track_caller]
fn refused<Old: VmState, New: VmState>(sent: Old, into: New, conditions: &[&str]) {
    assert!(!takes(sent, into), "the example loads");
    let said = comparison::<Old, New>();
    let conditions: Vec<_> = conditions.iter().map(|condition| (*condition).to_owned()).collect();
    assert!(said.verdict.loads_given(&conditions), "{said}");
    for left_out in 0..conditions.len() {
        let others: Vec<_> = conditions.iter().filter(|other| **other != conditions[left_out]).cloned().collect();
        assert!(!said.verdict.loads_given(&others), "{said}");
    }
    // Each release loads its own streams.
    assert_eq!(comparison::<Old, Old>().verdict, Verdict::Loads);
    assert_eq!(comparison::<New, New>().verdict, Verdict::Loads);
}

/// Checks that `New` accepts everything that `Old` sends, and that the verdict relies on `relies`.
#[track_caller]
fn loads<Old: VmState, New: VmState>(sent: Old, into: New, relies: &str) {
    assert!(takes(sent, into), "the example does not load");
    let said = comparison::<Old, New>();
    assert_eq!(said.verdict, Verdict::Loads, "{said}");
    assert!(said.to_string().contains(relies), "{said}");
}

macro_rules! lane {
    ($name:ident, $wire:literal { $($field:ident),* }) => {
        #[derive(VmState, Default, Clone)]
        #[vmstate(name = $wire)]
        struct $name {
            #[vmstate(skip)]
            open: bool,
            $(#[vmstate(exists = Self::is_open)] $field: u8,)*
        }

        impl $name {
            fn is_open(&self, _version: u32) -> bool {
                self.open
            }
        }

        impl From<bool> for $name {
            fn from(open: bool) -> Self {
                Self { open, ..Self::default() }
            }
        }
    };
}

lane!(Lane, "lane" { level });
lane!(Tail, "tail" { end });
lane!(Both, "both" { level, end });

macro_rules! dev {
    ($name:ident { $($field:ident: $ty:ty),* }) => {
        #[derive(VmState, Default, Clone)]
        #[vmstate(name = "dev")]
        struct $name { $($field: $ty),* }
    };
}

#[test]
fn one_struct_type_in_two_fields() {
    dev!(Two { a: Lane, b: Lane });
    dev!(One { a: Both });
    let (open, shut) = (|| Lane::from(true), || Lane::from(false));
    // One shared outcome would be both open or both shut.
    let conditions = ["Self::is_open of a is true", "Self::is_open of b is true"];
    refused(Two { a: open(), b: shut() }, One { a: true.into() }, &conditions);
    assert!(!takes(Two { a: shut(), b: open() }, One { a: false.into() }));
    refused(One { a: true.into() }, Two { a: open(), b: shut() }, &conditions);
}

#[test]
fn one_predicate_name_in_two_structs() {
    dev!(Two { a: Lane, b: Tail });
    dev!(One { a: Both });
    let conditions = ["Self::is_open of a is true", "Self::is_open of b is true"];
    refused(Two { a: true.into(), b: false.into() }, One { a: true.into() }, &conditions);
    refused(One { a: true.into() }, Two { a: true.into(), b: false.into() }, &conditions);
}

#[test]
fn a_predicate_of_the_device_and_one_of_a_struct_in_it() {
    #[derive(VmState, Default, Clone)]
    #[vmstate(name = "dev")]
    struct Around {
        #[vmstate(skip)]
        open: bool,
        #[vmstate(exists = Self::is_open)]
        level: u8,
        b: Tail,
    }
    impl Around {
        fn is_open(&self, _version: u32) -> bool {
            self.open
        }
    }
    dev!(One { b: Both });
    let sent = Around { open: true, level: 1, b: false.into() };
    refused(sent, One { b: true.into() }, &["Self::is_open is true", "Self::is_open of b is true"]);
}

#[test]
fn elements_of_two_arrays() {
    dev!(Two { a: [Lane; 1], b: [Lane; 1] });
    dev!(One { a: [Both; 1] });
    let conditions = ["Self::is_open of a[0] is true", "Self::is_open of b[0] is true"];
    refused(Two { a: [true.into()], b: [false.into()] }, One { a: [true.into()] }, &conditions);
    refused(One { a: [true.into()] }, Two { a: [true.into()], b: [false.into()] }, &conditions);
}

#[test]
fn structs_in_structs() {
    dev!(Pair { a: Lane, b: Lane });
    dev!(Outer { x: Pair, y: Pair });
    dev!(Wide { a: Both, b: Lane });
    dev!(Narrow { b: Lane });
    dev!(Other { x: Wide, y: Narrow });
    let lanes = |a: bool, b: bool| Pair { a: a.into(), b: b.into() };
    let sent = Outer { x: lanes(true, true), y: lanes(false, true) };
    let into = Other { x: Wide { a: true.into(), b: true.into() }, y: Narrow { b: true.into() } };
    refused(sent, into, &["Self::is_open of x.a is true", "Self::is_open of y.a is true"]);
}

/// An equal name means the same predicate only in what may be the same struct.
#[test]
fn a_struct_in_the_place_of_another() {
    dev!(Old { a: Lane });
    dev!(New { b: Tail });
    let conditions = ["Self::is_open of a is true", "Self::is_open of b is true"];
    refused(Old { a: true.into() }, New { b: false.into() }, &conditions);
}

#[derive(VmState, Default, Clone)]
#[repr(u8)]
enum Mode {
    #[default]
    Idle = 0,
    Busy(u16) = 1,
}

#[derive(VmState, Default, Clone)]
#[repr(u8)]
enum Bare {
    #[default]
    Idle = 0,
    Busy = 1,
}

#[test]
fn one_enum_in_two_fields() {
    dev!(Old { a: Mode, b: Mode });
    dev!(New { a: Mode, b: Bare });
    refused(Old { a: Mode::Idle, b: Mode::Busy(7) }, New::default(), &["b.tag is 0"]);
    assert!(!takes(Old { a: Mode::Busy(1), b: Mode::Busy(7) }, New::default()));
    assert!(takes(Old { a: Mode::Busy(1), b: Mode::Idle }, New::default()));
}

/// A field may have a name that looks like a path, as QEMU's `env.regs`.
mod names_like_paths {
    use super::*;

    dev!(Wrapped { b: Lane });
    dev!(WrappedBoth { b: Both });

    #[derive(VmState, Default, Clone)]
    #[vmstate(name = "dev")]
    struct Two {
        a: Wrapped,
        #[vmstate(name = "a.b")]
        flat: Lane,
    }

    dev!(One { a: WrappedBoth });

    #[test]
    fn have_predicates_of_their_own() {
        let sent = Two { a: Wrapped { b: true.into() }, flat: false.into() };
        let into = One { a: WrappedBoth { b: true.into() } };
        refused(sent, into, &["Self::is_open of a.b is true", "Self::is_open of \"a.b\" is true"]);
    }

    dev!(Byte { b: u8 });

    #[derive(VmState, Default, Clone)]
    #[vmstate(name = "dev")]
    struct Plain {
        a: Byte,
        #[vmstate(name = "a.b")]
        flat: u8,
    }

    #[derive(VmState, Default, Clone)]
    #[vmstate(name = "byte")]
    struct Low {
        #[vmstate(range = ..=3)]
        b: u8,
    }

    #[derive(VmState, Default, Clone)]
    #[vmstate(name = "dev")]
    struct Limited {
        a: Low,
        #[vmstate(name = "a.b", range = ..=3)]
        flat: u8,
    }

    #[test]
    fn have_values_of_their_own() {
        let conditions = ["a.b is 0 to 3".to_owned(), "\"a.b\" is 0 to 3".to_owned()];
        for sent in [Plain { a: Byte { b: 9 }, flat: 1 }, Plain { a: Byte { b: 1 }, flat: 9 }] {
            assert!(!takes(sent, Limited::default()));
        }
        let said = comparison::<Plain, Limited>();
        assert!(said.verdict.loads_given(&conditions), "{said}");
        assert!(!said.verdict.loads_given(&conditions[..1]) && !said.verdict.loads_given(&conditions[1..]), "{said}");
    }

    /// The container of a field, on which the remedy depends, is looked up by its place as well.
    #[test]
    fn are_in_what_they_are_in() {
        #[derive(VmState, Default, Clone)]
        #[vmstate(name = "dev")]
        struct First {
            #[vmstate(name = "a.b")]
            flat: u8,
        }
        #[derive(VmState, Default, Clone)]
        #[vmstate(name = "dev")]
        struct Second {
            #[vmstate(name = "a.b")]
            flat: u8,
            a: Byte,
        }
        let said = comparison::<First, Second>().to_string();
        assert!(said.contains("put the new field into a subsection of the nested struct"), "{said}");
    }
}

/// The same structs in the same order are the same, whatever the names of their fields.
#[test]
fn names_of_fields_are_free() {
    dev!(Old { a: Lane, b: Lane, c: u8 });
    dev!(New { first: Lane, second: Lane, c: u8 });
    let relies = "Self::is_open of a and Self::is_open of first, Self::is_open of b and Self::is_open of second, to have the same outcome";
    loads(
        Old { a: true.into(), b: false.into(), c: 1 },
        New { first: true.into(), second: false.into(), c: 0 },
        relies,
    );
    dev!(Array { lanes: [Lane; 2], c: u8 });
    let relies =
        "Self::is_open of lanes[0] and Self::is_open of first, Self::is_open of lanes[1] and Self::is_open of second";
    loads(
        Array { lanes: [true.into(), false.into()], c: 1 },
        New { first: true.into(), second: false.into(), c: 0 },
        relies,
    );
}

/// One new struct among several: the order does not show which of them are the old ones.
#[test]
fn one_of_several_that_is_new() {
    dev!(Old { a: Lane });
    dev!(New { x: Lane, y: Lane });
    refused(
        Old { a: true.into() },
        New { x: false.into(), y: false.into() },
        &["Self::is_open of a is false", "Self::is_open of x is false", "Self::is_open of y is false"],
    );
}
