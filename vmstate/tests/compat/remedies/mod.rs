//! Every remedy that the checker or a lock prints, followed literally: a careless change breaks and prints its remedy, and after
//! the remedy is applied, the verdict is that the streams load, and their real bytes do.

use std::collections::{BTreeMap, BTreeSet};

use vmstate::codec::{Reader, Writer};
use vmstate::compat::{Comparison, Direction, SectionReport, Verdict, check, check_schemas};
use vmstate::schema::json::Schema;
use vmstate::schema::{Description, Field, Kind, Presence, of};
use vmstate::section::Sections;
use vmstate::testing::Lock;
use vmstate::{Unused, VmState};

use Direction::{NewToOld, OldToNew};

/// The remedies that were followed.
#[derive(Default)]
struct Followed(BTreeSet<&'static str>);

impl Followed {
    /// `Careless` is a change of `Old` that breaks in `direction` with `remedy`; `Careful` applies the remedy. Of these two,
    /// `sent` is written and loads into `into`, given what is `assumed`.
    #[track_caller]
    fn follow<Old: VmState, Careless: VmState, Careful: VmState>(
        &mut self,
        direction: Direction,
        remedy: &'static str,
        assumed: &[&str],
        mut sent: impl VmState,
        mut into: impl VmState,
    ) {
        self.printed(&check(of::<Old>(), of::<Careless>()), direction, remedy);
        loads_now(&check(of::<Old>(), of::<Careful>()), direction, assumed);
        let mut out = Writer::new();
        sent.save(&mut out).expect("it is sent");
        let bytes = out.into_bytes();
        let mut input = Reader::strict(&bytes).complete();
        into.load_or_keep(&mut input, version_of(&sent)).expect("it loads");
        assert!(input.rest().is_empty(), "bytes are left");
    }

    /// The same for whole machines, whose schemas are compared.
    #[track_caller]
    fn follow_machines(
        &mut self,
        direction: Direction,
        remedy: &'static str,
        assumed: &[&str],
        [old, careless, careful]: [fn() -> Sections<'static>; 3],
    ) {
        let schema = |make: fn() -> Sections<'static>| make().schema(None).unwrap();
        let reports = |new| check_schemas(&schema(old), &schema(new)).sections;
        let broken: Vec<_> = reports(careless).into_iter().filter(|report| breaks(report, direction)).collect();
        self.printed(&broken[0], direction, remedy);
        reports(careful).iter().for_each(|report| loads_now(report, direction, assumed));
        let (sent, into) = if direction == OldToNew { (old, careful) } else { (careful, old) };
        let folder = tempfile::tempdir().unwrap();
        // A lock on another layout loads the streams of the layout before.
        for machine in [sent, into] {
            let lock = Lock::new(folder.path()).state("machine", machine).bless(true);
            assumed.iter().fold(lock, |lock, condition| lock.assume(condition)).check();
        }
    }

    #[track_caller]
    fn printed(&mut self, report: &SectionReport, direction: Direction, remedy: &'static str) {
        let text: Vec<_> = comparisons(report, direction).map(Comparison::to_string).collect();
        assert!(text.iter().any(|text| text.contains(&format!("-> {remedy}"))), "{text:#?}");
        self.0.insert(remedy);
    }
}

fn version_of<S: VmState>(_: &S) -> u32 {
    of::<S>().version
}

fn comparisons(report: &SectionReport, direction: Direction) -> impl Iterator<Item = &Comparison> {
    report.comparisons.iter().filter(move |comparison| comparison.direction == direction)
}

fn breaks(report: &SectionReport, direction: Direction) -> bool {
    comparisons(report, direction).any(|comparison| comparison.verdict != Verdict::Loads)
}

#[track_caller]
fn loads_now(report: &SectionReport, direction: Direction, assumed: &[&str]) {
    let assumed: Vec<String> = assumed.iter().map(|condition| (*condition).to_owned()).collect();
    for comparison in comparisons(report, direction) {
        assert!(comparison.verdict.loads_given(&assumed), "{comparison}");
    }
}

macro_rules! dev {
    ($name:ident $(: $($attributes:meta),+)? { $($fields:tt)* }) => {
        dev!($name as "dev" $(: $($attributes),+)? { $($fields)* });
    };
    ($name:ident as $on_wire:literal $(: $($attributes:meta),+)? { $($fields:tt)* }) => {
        #[derive(VmState, Default, Clone)]
        #[vmstate(name = $on_wire)]
        $($(#[$attributes])+)?
        struct $name { $($fields)* }
    };
}

mod inside;

fn never<T>(_: &T) -> bool {
    false
}

fn text_of_remedies() -> BTreeSet<String> {
    let source = include_str!("../../../src/compat/remedy.rs").split("pub(super) fn of").nth(1).unwrap();
    source.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_remedy_holds_once_it_is_followed() {
    let mut followed = Followed::default();
    fields(&mut followed);
    inside::nested_fields(&mut followed);
    inside::fields_of_variants(&mut followed);
    items(&mut followed);
    counts(&mut followed);
    values(&mut followed);
    versions(&mut followed);
    subsections(&mut followed);
    whole_layouts(&mut followed);
    sections(&mut followed);
    let followed: BTreeSet<_> = followed.0.iter().map(|remedy| (*remedy).to_owned()).collect();
    assert_eq!(text_of_remedies().difference(&followed).collect::<Vec<_>>(), Vec::<&String>::new(), "not followed");
}

dev!(One { a: u8 });
dev!(Two { a: u8, b: u8 });
dev!(TwoPadded { a: u8, _was_b: Unused<1> });
dev!(TwoBySubsection: vmstate(subsection(name = "dev/b", needed = never)) {
    a: u8,
    #[vmstate(subsection = "dev/b")]
    b: u8,
});
dev!(TwoSince: vmstate(version = 2, minimum_version = 1) { a: u8, #[vmstate(since = 2)] b: u8 });

const NOT_SENT: &str = "subsection \"dev/b\" is not sent";

fn fields(followed: &mut Followed) {
    let remedy = "put the new field into a subsection, or raise the version and give it since = that version";
    followed.follow::<One, Two, TwoBySubsection>(OldToNew, remedy, &[], One { a: 1 }, TwoBySubsection::default());
    followed.follow::<One, Two, TwoSince>(OldToNew, remedy, &[], One { a: 1 }, TwoSince::default());

    let remedy = "go on sending the field, or Unused of its size if the old release takes 0 for it";
    followed.follow::<Two, One, Two>(NewToOld, remedy, &[], Two { a: 1, b: 2 }, Two::default());
    followed.follow::<Two, One, TwoPadded>(NewToOld, remedy, &[], TwoPadded::default(), Two::default());

    let remedy = "go on reading the field, or put Unused of its size in its place";
    followed.follow::<Two, One, Two>(OldToNew, remedy, &[], Two { a: 1, b: 2 }, Two::default());
    followed.follow::<Two, One, TwoPadded>(OldToNew, remedy, &[], Two { a: 1, b: 2 }, TwoPadded::default());

    let remedy = "put the new field into a subsection that is sent only when needed";
    let sent = TwoBySubsection { a: 1, b: 2 };
    followed.follow::<One, Two, TwoBySubsection>(NewToOld, remedy, &[NOT_SENT], sent, One::default());
}

mod bcd {
    use vmstate::codec::{Reader, Writer};
    use vmstate::schema::{Kind, MaybeStatic};

    pub(crate) const KIND: Kind = Kind::Custom(MaybeStatic::Static("bcd"));

    pub(crate) fn save(value: &u8, out: &mut Writer) -> vmstate::Result<()> {
        out.u8(*value);
        Ok(())
    }

    pub(crate) fn load(input: &mut Reader<'_>) -> vmstate::Result<u8> {
        input.u8()
    }
}

fn items(followed: &mut Followed) {
    dev!(Old { a: u16, b: u8 });
    dev!(Wider { a: u32, b: u8 });
    dev!(SameWire {
        #[vmstate(wire = u16)]
        a: u32,
        b: u8
    });
    dev!(Swapped { b: u8, a: u16 });
    let remedy = "keep the order and the type on the wire (wire = the old type); new fields go into a subsection, removed ones \
                  become Unused";
    let old = || Old { a: 500, b: 1 };
    followed.follow::<Old, Wider, SameWire>(OldToNew, remedy, &[], old(), SameWire::default());
    followed.follow::<Old, Wider, SameWire>(NewToOld, remedy, &[], SameWire { a: 500, b: 1 }, Old::default());
    followed.follow::<Old, Swapped, Old>(OldToNew, remedy, &[], old(), Old::default());

    dev!(Coded {
        #[vmstate(with = bcd)]
        a: u8
    });
    dev!(Uncoded { a: u8 });
    let remedy = "keep the codec and the name of its type";
    followed.follow::<Coded, Uncoded, Coded>(OldToNew, remedy, &[], Coded { a: 1 }, Coded::default());
    followed.follow::<Coded, Uncoded, Coded>(NewToOld, remedy, &[], Coded { a: 1 }, Coded::default());

    dev!(Pointer { p: Option<Box<u8>> });
    dev!(Value { p: u8 });
    let remedy = "keep the pointer as it was; send what is new in a subsection";
    followed.follow::<Pointer, Value, Pointer>(OldToNew, remedy, &[], Pointer::default(), Pointer::default());
    followed.follow::<Pointer, Value, Pointer>(NewToOld, remedy, &[], Pointer::default(), Pointer::default());

    dev!(Unsigned { #[vmstate(map, max = 4)] map: BTreeMap<u8, u8> });
    dev!(Signed { #[vmstate(map, max = 4)] map: BTreeMap<i8, u8> });
    let remedy = "keep the type of the key";
    let map = || Unsigned { map: BTreeMap::from([(1, 1), (200, 1)]) };
    followed.follow::<Unsigned, Signed, Unsigned>(OldToNew, remedy, &[], map(), Unsigned::default());
    followed.follow::<Unsigned, Signed, Unsigned>(NewToOld, remedy, &[], map(), Unsigned::default());
}

fn counts(followed: &mut Followed) {
    dev!(Fixed { x: [u8; 2] });
    dev!(Counted { #[vmstate(skip)] n: u8, #[vmstate(len = n, max = 4)] x: Vec<u8> });
    dev!(FixedAndMore: vmstate(subsection(name = "dev/b", needed = never)) {
        x: [u8; 2],
        #[vmstate(subsection = "dev/b")]
        more: [u8; 2],
    });
    let remedy = "keep length and elements as they were; send more in a subsection";
    followed.follow::<Fixed, Counted, FixedAndMore>(
        OldToNew,
        remedy,
        &[],
        Fixed { x: [1, 2] },
        FixedAndMore::default(),
    );
    let sent = FixedAndMore { x: [1, 2], more: [3, 4] };
    followed.follow::<Fixed, Counted, FixedAndMore>(NewToOld, remedy, &[NOT_SENT], sent, Fixed::default());

    dev!(First { a: u8, b: u8, #[vmstate(len = a, max = 4)] x: Vec<u8> });
    dev!(Second { a: u8, b: u8, #[vmstate(len = b, max = 4)] x: Vec<u8> });
    let remedy = "go on counting the elements by the same field, times the same number";
    let first = || First { a: 1, b: 3, x: vec![7] };
    followed.follow::<First, Second, First>(OldToNew, remedy, &[], first(), First::default());
    followed.follow::<First, Second, First>(NewToOld, remedy, &[], first(), First::default());

    dev!(Sent { n: u8, #[vmstate(len = n, max = 4)] x: Vec<u8> });
    dev!(Known { #[vmstate(skip)] n: u8, _was_n: Unused<1>, #[vmstate(len = n, max = 4)] x: Vec<u8> });
    let remedy =
        "count the elements by what the writer counts them by, or configure both machines to have the same length";
    let sent = || Sent { n: 2, x: vec![1, 2] };
    followed.follow::<Sent, Known, Sent>(OldToNew, remedy, &[], sent(), Sent::default());
    let alike = ["both machines have the same n"];
    followed.follow::<Sent, Known, Known>(OldToNew, remedy, &alike, sent(), Known { n: 2, ..Known::default() });

    dev!(Sixteen {
        n: u8,
        #[vmstate(len = n, max = 16)]
        x: [u8; 16]
    });
    dev!(Eight {
        n: u8,
        #[vmstate(len = n, max = 8)]
        x: [u8; 16]
    });
    dev!(RoomForEight {
        n: u8,
        #[vmstate(len = n, max = 16)]
        x: [u8; 8]
    });
    dev!(EightAndMore: vmstate(subsection(name = "dev/b", needed = never)) {
        n: u8,
        #[vmstate(len = n, max = 8)]
        x: [u8; 16],
        #[vmstate(subsection = "dev/b")]
        more: [u8; 8],
    });
    let remedy = "keep `max`, and the room of an array, as large as they were";
    let full = || Sixteen { n: 16, x: [1; 16] };
    followed.follow::<Sixteen, Eight, Sixteen>(OldToNew, remedy, &[], full(), Sixteen::default());
    followed.follow::<Sixteen, RoomForEight, Sixteen>(OldToNew, remedy, &[], full(), Sixteen::default());
    let remedy = "send what the old release does not take in a subsection that is sent only when needed";
    let sent = EightAndMore { n: 8, ..EightAndMore::default() };
    followed.follow::<Eight, Sixteen, EightAndMore>(NewToOld, remedy, &[NOT_SENT], sent, Eight::default());
}

fn values(followed: &mut Followed) {
    dev!(UpTo5 {
        #[vmstate(range = ..=5)]
        mode: u8
    });
    dev!(UpTo3 {
        #[vmstate(range = ..=3)]
        mode: u8
    });
    dev!(Mapped: vmstate(post_load = Mapped::map) { #[vmstate(range = ..=5)] mode: u8 });
    impl Mapped {
        fn map(&mut self, _version: u32) -> Result<(), &'static str> {
            self.mode = self.mode.min(3);
            Ok(())
        }
    }
    let remedy = "go on taking what was written, and map it after the load";
    followed.follow::<UpTo5, UpTo3, Mapped>(OldToNew, remedy, &[], UpTo5 { mode: 5 }, Mapped::default());

    dev!(UpTo3AndMore: vmstate(subsection(name = "dev/b", needed = never)) {
        #[vmstate(range = ..=3)]
        mode: u8,
        #[vmstate(subsection = "dev/b")]
        new_mode: u8,
    });
    let remedy = "send what the old release does not take in a subsection that is sent only when needed";
    let sent = UpTo3AndMore { mode: 3, new_mode: 4 };
    followed.follow::<UpTo3, UpTo5, UpTo3AndMore>(NewToOld, remedy, &[NOT_SENT], sent, UpTo3::default());

    dev!(Any { sectors: u16 });
    dev!(Equal {
        #[vmstate(equal)]
        sectors: u16
    });
    dev!(Compared: vmstate(validate = Compared::compare) { sectors: u16, #[vmstate(skip)] has: u16 });
    impl Compared {
        fn compare(&self) -> Result<(), &'static str> {
            if self.sectors == self.has { Ok(()) } else { Err("another disk") }
        }
    }
    let remedy = "take any value and compare it in validate, or configure both machines to have the same";
    let compared = Compared { has: 64, sectors: 0 };
    followed.follow::<Any, Equal, Compared>(OldToNew, remedy, &[], Any { sectors: 64 }, compared);
    let alike = ["both machines have the same sectors"];
    followed.follow::<Any, Equal, Equal>(OldToNew, remedy, &alike, Any { sectors: 64 }, Equal { sectors: 64 });
    let remedy = "configure both machines to have the same";
    followed.follow::<Equal, Any, Any>(NewToOld, remedy, &alike, Any { sectors: 64 }, Equal { sectors: 64 });
}

fn versions(followed: &mut Followed) {
    let remedy = "do not raise the version: put what is new into a subsection that is sent only when needed";
    let sent = TwoBySubsection { a: 1, b: 2 };
    followed.follow::<One, TwoSince, TwoBySubsection>(NewToOld, remedy, &[NOT_SENT], sent, One::default());

    let remedy = "do not lower a version that was released";
    followed.follow::<TwoSince, Two, TwoSince>(OldToNew, remedy, &[], TwoSince { a: 1, b: 2 }, TwoSince::default());

    dev!(Newest: vmstate(version = 2) { a: u8, b: u8 });
    let remedy = "keep minimum_version as it was while such streams may come";
    followed.follow::<TwoSince, Newest, TwoSince>(OldToNew, remedy, &[], TwoSince { a: 1, b: 2 }, TwoSince::default());

    let remedy = "do not lower the version below what the old release takes";
    followed.follow::<Newest, One, Newest>(NewToOld, remedy, &[], Newest { a: 1, b: 2 }, Newest::default());
}

fn subsections(followed: &mut Followed) {
    dev!(Old: vmstate(subsection(name = "dev/b")) { a: u8, #[vmstate(subsection = "dev/b")] b: u8 });
    let remedy = "keep the subsection, if only to read it";
    followed.follow::<Old, One, TwoBySubsection>(OldToNew, remedy, &[], Old { a: 1, b: 2 }, TwoBySubsection::default());

    let remedy = "send it only when needed, and never for a machine of the old release";
    let sent = TwoBySubsection { a: 1, b: 2 };
    followed.follow::<One, Old, TwoBySubsection>(NewToOld, remedy, &[NOT_SENT], sent, One::default());
}

/// These have no verdicts: descriptions that no derive creates, or that are too large.
fn whole_layouts(followed: &mut Followed) {
    let byte = |name: &str| Field::new(name.into(), Kind::Unsigned(1), Presence::Since(0));
    let description = |name: &str, fields: Vec<Field>, subsections: Vec<Description>| {
        Description::new(name.into(), 1, 1, fields.into(), subsections.into())
    };
    let list = |name: &str, kind: Kind| Field::new(name.into(), kind, Presence::Since(0));

    let entry = || description("entry", vec![byte("a"), byte("b")], vec![]);
    let large = description("dev", vec![list("all", Kind::Array(Kind::Struct(entry().into()).into(), 70_000))], vec![]);
    followed.printed(&check(&large, &large), OldToNew, "compare the parts one by one");
    loads_now(&check(&entry(), &entry()), OldToNew, &[]);

    let schema = machine(&["dev", "net"]).schema(None).unwrap();
    let edited = schema.to_json().replacen("\"version_id\": 1", "\"version_id\": 2", 1);
    let edited = Schema::from_dump(&edited).unwrap();
    let reports = check_schemas(&schema, &edited).sections;
    followed.printed(&reports[0], OldToNew, "write the schema again with the program whose streams it describes");
    loads_now(&reports[1], OldToNew, &[]);
    check_schemas(&schema, &schema).sections.iter().for_each(|report| loads_now(report, OldToNew, &[]));

    let remedy = "put the struct last, and begin no subsection's name with that of a struct inside";
    let of_structs = |subsection: &str| {
        let element = description("dev/x", vec![byte("a")], vec![]);
        let list = list("list", Kind::CountedArray(Kind::Struct(element.into()).into()));
        description("dev", vec![list], vec![description(subsection, vec![byte("a")], vec![])])
    };
    followed.printed(&check(&of_structs("dev/x/y"), &of_structs("dev/x/y")), OldToNew, remedy);
    loads_now(&check(&of_structs("dev/y"), &of_structs("dev/y")), OldToNew, &[]);
}

fn machine(names: &[&str]) -> Sections<'static> {
    let mut sections = Sections::new();
    for name in names {
        sections.register(name, 0, One { a: 1 }).unwrap();
    }
    sections
}

fn sections(followed: &mut Followed) {
    let remedy = "keep the section, or add its old name to the new one with Sections::add_alias";
    followed.follow_machines(
        OldToNew,
        remedy,
        &[],
        [|| machine(&["uart", "rtc"]), || machine(&["serial", "rtc"]), || machine(&["uart", "rtc"])],
    );
    followed.follow_machines(
        OldToNew,
        remedy,
        &[],
        [
            || machine(&["uart", "rtc"]),
            || machine(&["serial", "rtc"]),
            || {
                let mut sections = machine(&["serial", "rtc"]);
                sections.add_alias("serial", "uart").unwrap();
                sections
            },
        ],
    );

    let with_net = || machine(&["rtc", "net"]);
    let remedy = "leave the device out of machines of the old release";
    followed.follow_machines(NewToOld, remedy, &[], [|| machine(&["rtc"]), with_net, || machine(&["rtc"])]);

    let remedy = "register it as optional: it keeps its reset state if it does not come";
    followed.follow_machines(
        OldToNew,
        remedy,
        &[],
        [
            || machine(&["rtc"]),
            with_net,
            || {
                let mut sections = machine(&["rtc"]);
                sections.register("net", 0, One { a: 1 }).unwrap().optional();
                sections
            },
        ],
    );

    let remedy = "go on sending the section";
    followed.follow_machines(NewToOld, remedy, &[], [with_net, || machine(&["rtc"]), with_net]);
}
