//! The checker covers every reason for which a load can refuse: pairs of releases of which the real load refuses real bytes, and
//! the verdict on the two descriptions. The oracle is the load.

use std::collections::BTreeMap;

use vmstate::VmState;
use vmstate::codec::{Reader, Writer};
use vmstate::compat::{Assumption, Comparison, Direction, Verdict, check};
use vmstate::schema::json::Schema;
use vmstate::schema::{Description, of};

/// The comparison of streams of `old` in `new`, at `version`.
fn comparison(old: &Description, new: &Description, version: u32) -> Comparison {
    let comparisons = check(old, new).comparisons;
    let found = |comparison: &Comparison| (comparison.direction, comparison.version) == (Direction::OldToNew, version);
    comparisons.into_iter().find(found).expect("the version is looked at")
}

/// The description after a round trip through a file, which must not change a verdict.
fn kept(description: &Description) -> Description {
    let mut schema = Schema::new(None);
    schema.add("dev", description).unwrap();
    Schema::from_json(&schema.to_json()).unwrap().section("dev").unwrap().clone()
}

/// Checks that `sent` does not load completely into `into`, and that the verdict does not say that all streams load.
#[track_caller]
fn refused<Old: VmState, New: VmState>(mut sent: Old, mut into: New, condition: &str) {
    let (old, new) = (Old::DESCRIPTION, New::DESCRIPTION);
    let mut out = Writer::new();
    sent.save_version(&mut out, old.version).unwrap();
    let bytes = out.into_bytes();
    let mut input = Reader::strict(&bytes).complete();
    let loaded = into.load_or_keep(&mut input, old.version);
    assert!(loaded.is_err() || !input.rest().is_empty(), "the example loads");
    let said = comparison(old, new, old.version);
    assert_eq!(comparison(&kept(old), &kept(new), old.version), said, "through a file");
    match &said.verdict {
        Verdict::LoadsIf(_) => assert!(said.verdict.loads_given(&[condition.to_owned()]), "{said}"),
        verdict => assert!(condition.is_empty() && matches!(verdict, Verdict::Breaks(_)), "{said}"),
    }
    // Each release loads its own streams.
    for own in [old, new] {
        assert_eq!(comparison(own, own, own.version).verdict, Verdict::Loads, "{}", check(own, own));
    }
}

/// Checks that `new` accepts everything that `old` sends.
#[track_caller]
fn loads<Old: VmState, New: VmState>() {
    let said = comparison(of::<Old>(), of::<New>(), of::<Old>().version);
    assert_eq!(said.verdict, Verdict::Loads, "{said}");
}

macro_rules! dev {
    ($name:ident { $($fields:tt)* }) => {
        #[derive(VmState, Default, Clone)]
        #[vmstate(name = "dev")]
        struct $name { $($fields)* }
    };
}

#[test]
fn a_lower_max_of_a_length() {
    dev!(Old { n: u8, #[vmstate(len = n, max = 16)] data: Vec<u8> });
    dev!(New { n: u8, #[vmstate(len = n, max = 8)] data: Vec<u8> });
    refused(Old { n: 9, data: vec![1; 9] }, New::default(), "data has at most 8 elements");
    loads::<New, Old>();
}

#[test]
fn a_max_that_the_length_cannot_reach_is_none() {
    dev!(Old { n: u8, #[vmstate(len = n, max = 1000)] data: Vec<u8> });
    dev!(New { n: u8, #[vmstate(len = n, max = 255)] data: Vec<u8> });
    loads::<Old, New>();
    dev!(Less { #[vmstate(range = ..=8)] n: u8, #[vmstate(len = n * 2, max = 1000)] data: Vec<u8> });
    dev!(Enough { n: u8, #[vmstate(len = n * 2, max = 16)] data: Vec<u8> });
    loads::<Less, Enough>();
}

#[test]
fn a_lower_max_of_a_list_or_map() {
    dev!(Old { #[vmstate(list, max = 4)] list: Vec<u8>, #[vmstate(map, max = 4)] map: BTreeMap<u8, u8> });
    dev!(List { #[vmstate(list, max = 2)] list: Vec<u8>, #[vmstate(map, max = 4)] map: BTreeMap<u8, u8> });
    dev!(Map { #[vmstate(list, max = 4)] list: Vec<u8>, #[vmstate(map, max = 2)] map: BTreeMap<u8, u8> });
    let full = || Old { list: vec![1, 2, 3], map: BTreeMap::from([(1, 1), (2, 2), (3, 3)]) };
    refused(full(), List::default(), "list has at most 2 elements");
    refused(full(), Map::default(), "map has at most 2 elements");
    loads::<List, Old>();
    loads::<Map, Old>();
}

#[test]
fn less_room_in_a_counted_array() {
    dev!(Old {
        n: u8,
        #[vmstate(len = n, max = 16)]
        data: [u8; 16]
    });
    dev!(New {
        n: u8,
        #[vmstate(len = n, max = 16)]
        data: [u8; 4]
    });
    refused(Old { n: 5, ..Old::default() }, New::default(), "data has at most 4 elements");
    dev!(OldBits {
        n: u8,
        #[vmstate(bitmap, len = n, max = 200)]
        bits: [u64; 4]
    });
    dev!(NewBits {
        n: u8,
        #[vmstate(bitmap, len = n, max = 200)]
        bits: [u64; 1]
    });
    refused(OldBits { n: 65, ..OldBits::default() }, NewBits::default(), "bits has at most 64 elements");
    dev!(OldRaw {
        n: u8,
        #[vmstate(buffer, len = n, max = 9)]
        raw: [u8; 9]
    });
    dev!(NewRaw {
        n: u8,
        #[vmstate(buffer, len = n, max = 9)]
        raw: [u8; 8]
    });
    refused(OldRaw { n: 9, ..OldRaw::default() }, NewRaw::default(), "raw has at most 8 elements");
}

/// The size of a boxed slice's memory is fixed when the device is created.
#[test]
fn the_room_of_a_boxed_slice_is_relied_on() {
    dev!(Dev { n: u8, #[vmstate(len = n, max = 16)] data: Box<[u8]> });
    let said = comparison(of::<Dev>(), of::<Dev>(), 1);
    assert!(said.relies_on.contains(&Assumption::Configuration(vec!["room of data".into()])), "{said}");
}

#[test]
fn a_field_that_is_narrower_than_the_wire() {
    dev!(Old {
        #[vmstate(wire = u16)]
        n: u32
    });
    dev!(Byte {
        #[vmstate(wire = u16)]
        n: u8
    });
    dev!(Signed {
        #[vmstate(wire = u16)]
        n: i16
    });
    dev!(SignedByte {
        #[vmstate(wire = u16)]
        n: i8
    });
    dev!(Same { n: u16 });
    refused(Old { n: 256 }, Byte::default(), "n is 0 to 255");
    refused(Old { n: 0x8000 }, Signed::default(), "n is 0 to 32767");
    refused(Same { n: 128 }, SignedByte::default(), "n is 0 to 127");
    loads::<Old, Same>();
    loads::<Same, Old>();
    loads::<Byte, Signed>();
    dev!(Ranged {
        #[vmstate(wire = u16, range = ..300)]
        n: u32
    });
    refused(Ranged { n: 299 }, Byte::default(), "n is 0 to 255");
}

#[test]
fn a_length_that_becomes_signed() {
    dev!(Old { n: u8, #[vmstate(len = n, max = 200)] data: Vec<u8> });
    dev!(New { n: i8, #[vmstate(len = n, max = 200)] data: Vec<u8> });
    refused(Old { n: 128, data: vec![0; 128] }, New::default(), "data has at most 127 elements");
}

#[test]
fn keys_in_another_order() {
    dev!(Old { #[vmstate(map, max = 4)] map: BTreeMap<u8, u8> });
    dev!(New { #[vmstate(map, max = 4)] map: BTreeMap<i8, u8> });
    let both = BTreeMap::from([(1, 1), (200, 2)]);
    refused(Old { map: both }, New::default(), "map[].key is 0 to 127");
    refused(New { map: BTreeMap::from([(-1, 1), (1, 2)]) }, Old::default(), "map[].key is 0 to 127");
    // The parts of a key that is a struct or tuple count separately.
    dev!(OldPair { #[vmstate(map, max = 4)] map: BTreeMap<(u8, u16), u8> });
    dev!(NewPair { #[vmstate(map, max = 4)] map: BTreeMap<(u8, i16), u8> });
    let both = BTreeMap::from([((1, 1), 1), ((1, 0xffff), 2)]);
    refused(OldPair { map: both }, NewPair::default(), "map[].key.1 is 0 to 32767");
    // Values may come in any order.
    dev!(Unsigned { #[vmstate(map, max = 4)] map: BTreeMap<u8, u8> });
    dev!(Values { #[vmstate(map, max = 4)] map: BTreeMap<u8, i8> });
    loads::<Unsigned, Values>();
}

#[derive(VmState, Default, Clone)]
#[vmstate(name = "dev", version = 2, minimum_version = 1)]
struct LateLength {
    #[vmstate(since = 2)]
    n: u8,
    #[vmstate(len = n, max = 4)]
    data: Vec<u8>,
}

/// The load uses the number of its machine: bytes of the array remain, or bytes after it are consumed.
#[test]
fn a_length_that_old_versions_lack() {
    let dev = || LateLength { n: 2, data: vec![1, 2] };
    let mut out = Writer::new();
    dev().save_version(&mut out, 1).unwrap();
    let bytes = out.into_bytes();
    let mut into = LateLength::default();
    let mut input = Reader::strict(&bytes);
    into.load_or_keep(&mut input, 1).unwrap();
    assert_eq!((into.data.len(), input.rest()), (0, &[1, 2][..]), "the array is left in the stream");
    let said = comparison(of::<LateLength>(), of::<LateLength>(), 1);
    assert!(!said.verdict.loads_given(&[]), "{said}");
    assert!(said.verdict.loads_given(&["both machines have the same n".into()]), "{said}");
    assert_eq!(comparison(of::<LateLength>(), of::<LateLength>(), 2).verdict, Verdict::Loads);
}

#[derive(VmState, Default, Clone)]
#[vmstate(name = "dev")]
struct MaybeLength {
    has: bool,
    #[vmstate(exists = Self::has_length)]
    n: u8,
    #[vmstate(len = n, max = 4)]
    data: Vec<u8>,
}

impl MaybeLength {
    fn has_length(&self, _version: u32) -> bool {
        self.has
    }
}

#[test]
fn a_length_that_is_there_if_a_predicate_holds() {
    let said = comparison(of::<MaybeLength>(), of::<MaybeLength>(), 1);
    assert!(!said.verdict.loads_given(&[]), "{said}");
    assert!(said.verdict.loads_given(&["Self::has_length is true".into()]), "{said}");
}

/// Both read the same bytes, but count by different ones.
#[test]
fn two_lengths_change_places() {
    dev!(Old { a: u8, b: u8, #[vmstate(len = a, max = 9)] data: Vec<u8> });
    dev!(New { a: u8, b: u8, #[vmstate(len = b, max = 9)] data: Vec<u8> });
    refused(Old { a: 1, b: 2, data: vec![1] }, New::default(), "");
    dev!(Renamed { x: u8, y: u8, #[vmstate(len = x, max = 9)] data: Vec<u8> });
    loads::<Old, Renamed>();
    dev!(Half { a: u8, b: u8, #[vmstate(len = a * 2, max = 9)] data: Vec<u8> });
    refused(Old { a: 1, b: 2, data: vec![1] }, Half::default(), "data is empty");
}

/// A length that is not on the wire is configuration.
#[test]
fn a_length_that_is_skipped_is_relied_on() {
    dev!(Dev { #[vmstate(skip)] n: u8, #[vmstate(len = n, max = 4)] data: Vec<u8> });
    let said = comparison(of::<Dev>(), of::<Dev>(), 1);
    assert_eq!(said.verdict, Verdict::Loads);
    assert!(said.relies_on.contains(&Assumption::Configuration(vec!["n".into()])), "{said}");
    // A length that is no longer on the wire is not known to be the writer's number.
    dev!(Sent { n: u8, #[vmstate(len = n, max = 4)] data: Vec<u8> });
    dev!(Known { #[vmstate(skip)] n: u8, _was_n: vmstate::Unused<1>, #[vmstate(len = n, max = 4)] data: Vec<u8> });
    refused(Sent { n: 1, data: vec![7] }, Known::default(), "both machines have the same n");
}

/// No reader ever accepted a negative value, so none is sent.
#[test]
fn at_most_current_sends_nothing_below_zero() {
    dev!(Dev {
        #[vmstate(at_most_current)]
        n: i8
    });
    let mut out = Writer::new();
    assert!(Dev { n: -1 }.save_version(&mut out, 1).is_err());
    dev!(Unsigned {
        #[vmstate(at_most_current)]
        n: u8
    });
    refused(Unsigned { n: 200 }, Dev { n: 127 }, "n is 0 to 127");
    loads::<Dev, Unsigned>();
}

#[derive(Clone, Copy, Default)]
struct Percent(u8);

impl From<&Percent> for u8 {
    fn from(percent: &Percent) -> u8 {
        percent.0
    }
}

impl TryFrom<u8> for Percent {
    type Error = &'static str;

    fn try_from(value: u8) -> Result<Self, &'static str> {
        if value <= 100 { Ok(Self(value)) } else { Err("more than all") }
    }
}

mod word {
    use vmstate::codec::{Reader, Writer};
    use vmstate::schema::Kind;

    pub(crate) const KIND: Kind = Kind::Unsigned(4);

    pub(crate) fn save(value: &u32, out: &mut Writer) -> vmstate::Result<()> {
        out.u32(*value);
        Ok(())
    }

    pub(crate) fn load(input: &mut Reader<'_>) -> vmstate::Result<u32> {
        input.u32()
    }
}

#[derive(VmState, Default, Clone)]
#[vmstate(name = "dev", pre_load = Self::ready, validate = Self::sane, post_load = Self::thaw)]
#[vmstate(subsection(name = "dev/more", post_load = Self::thaw_more))]
struct Hooked {
    #[vmstate(via = u8)]
    speed: Percent,
    #[vmstate(with = word)]
    word: u32,
    #[vmstate(validate = Self::even)]
    count: u8,
    #[vmstate(must_exist = Self::has_it)]
    it: u8,
    #[vmstate(subsection = "dev/more")]
    more: u8,
}

impl Hooked {
    fn ready(&mut self) -> Result<(), &'static str> {
        Ok(())
    }
    fn sane(&self) -> Result<(), &'static str> {
        Ok(())
    }
    fn thaw(&mut self, _version: u32) -> Result<(), &'static str> {
        Ok(())
    }
    fn thaw_more(&mut self, _version: u32) -> Result<(), &'static str> {
        Ok(())
    }
    fn even(&self) -> Result<(), &'static str> {
        Ok(())
    }
    fn has_it(&self, _version: u32) -> bool {
        true
    }
}

/// The device's own functions can refuse anything: the verdict names each.
#[test]
fn what_no_description_shows_is_named() {
    for description in [of::<Hooked>(), &kept(of::<Hooked>())] {
        let said = comparison(description, description, 1);
        let hooks = said.relies_on.iter().find_map(|assumption| match assumption {
            Assumption::Hooks(hooks) => Some(hooks.as_slice()),
            _ => None,
        });
        let expected = [
            "post_load = Self::thaw of dev",
            "post_load = Self::thaw_more of dev/more",
            "pre_load = Self::ready of dev",
            "the check Self::even of dev",
            "the check Self::has_it of dev",
            "validate = Self::sane of dev",
            "via = u8 of speed",
            "with = word of word",
        ];
        assert_eq!(hooks.unwrap_or_default(), expected, "{said}");
    }
}

/// A schema that an older release of this library wrote states neither limits on elements, nor the length fields, nor the hooks.
#[test]
fn properties_missing_in_an_old_file_are_relied_on() {
    dev!(Dev { n: u8, #[vmstate(len = n, max = 4)] data: Vec<u8>, #[vmstate(list, max = 4)] list: Vec<u8> });
    let mut schema = Schema::new(None);
    schema.add("dev", of::<Dev>()).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&schema.to_json()).unwrap();
    let description = json["dev"]["Description"].as_object_mut().unwrap();
    description.remove("hooks").expect("a new file says it");
    for field in description["Fields"].as_array_mut().unwrap() {
        field.as_object_mut().unwrap().remove("count");
    }
    let old = Schema::from_json(&json.to_string()).unwrap();
    let old = old.section("dev").unwrap();
    let counts = Assumption::Counts(vec!["data".into(), "list".into()]);
    let said = comparison(old, of::<Dev>(), 1);
    assert_eq!((&said.verdict, &said.relies_on[..]), (&Verdict::Loads, std::slice::from_ref(&counts)), "{said}");
    let said = comparison(of::<Dev>(), old, 1);
    assert!(said.relies_on.contains(&counts), "{said}");
    assert!(said.relies_on.contains(&Assumption::Unsaid(vec!["dev".into()])), "{said}");
}
