//! A naive model of real loads: bytes, each tagged with its origin, so that "loads" means that every field got the bytes of one
//! whole item, not only the right number of bytes.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use vmstate::compat::{Assumption, Case, Subject, Verdict};
use vmstate::schema::{Count, Description, Field, Kind, Length, Limit, Presence};

/// Run-time decisions, the same on both sides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcomes(pub(crate) u64);

impl Outcomes {
    pub(crate) fn number(self, about: &str, name: &str) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.0, about, name).hash(&mut hasher);
        hasher.finish() >> 7
    }

    pub(crate) fn holds(self, about: &str, name: &str) -> bool {
        self.number(about, name) % 2 == 1
    }

    pub(crate) fn count(self, path: &str) -> u64 {
        self.number("count", path) % 3
    }

    /// The values that each byte of a field may have, likeliest first.
    pub(crate) fn values(self, path: &str) -> impl Iterator<Item = u8> {
        let first = self.number("value", path);
        (0..4).map(move |i| [0, 1, 2, 0xff][usize::try_from((first + i) % 4).unwrap()])
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Tag {
    /// A byte of an integer: the integer, the byte's position, the width.
    Integer(usize, u64, u64),
    Raw,
    Custom(String),
    Header,
    Null,
    List,
    Map,
}

/// The field that a byte belongs to.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) path: String,
    pub(crate) is_integer: bool,
    pub(crate) limit: Option<Limit>,
}

#[derive(Clone, Debug)]
pub(crate) struct Byte {
    pub(crate) value: u8,
    pub(crate) tag: Tag,
    /// The counted field that the byte belongs to.
    pub(crate) counted: Option<usize>,
    pub(crate) origin: Rc<Origin>,
}

/// Path of the field.
#[derive(Clone, Default)]
pub(crate) struct Place {
    pub(crate) path: String,
}

impl Place {
    pub(crate) fn field(&self, name: &str) -> Self {
        // Field `a.b` is not field `b` of struct `a`.
        let name = if name.contains('.') { format!("{name:?}") } else { name.to_owned() };
        let path = if self.path.is_empty() { name } else { format!("{}.{name}", self.path) };
        Self { path }
    }

    pub(crate) fn element(&self, index: usize) -> Self {
        self.inside(&format!("[{index}]"))
    }

    /// Paths do not distinguish elements of counted fields.
    pub(crate) fn counted(&self) -> Self {
        self.inside("[]")
    }

    pub(crate) fn inside(&self, what: &str) -> Self {
        Self { path: self.path.clone() + what }
    }
}

/// An integer on the wire, or a value with the form of one.
pub(crate) struct Integer {
    pub(crate) width: u64,
    pub(crate) signed: bool,
    pub(crate) limit: Option<Limit>,
    /// False for a dump that does not state the type.
    pub(crate) is_known: bool,
}

impl Integer {
    pub(crate) fn of(kind: &Kind) -> Option<Self> {
        let known = |width, signed| Some(Self { width, signed, limit: None, is_known: true });
        match kind {
            Kind::Bool => Some(Self { width: 1, signed: false, limit: Some(Limit::Within(0, 1)), is_known: true }),
            Kind::Unsigned(width) => known(u64::from(*width), false),
            Kind::Signed(width) => known(u64::from(*width), true),
            Kind::Limited(inner, limit) => Some(Self { limit: Some(limit.clone()), ..Self::of(inner)? }),
            Kind::Timer => known(8, true),
            Kind::Double => known(8, false),
            Kind::Custom(name) => {
                let width = name.strip_prefix("size ")?.parse().ok()?;
                Some(Self { width, signed: false, limit: None, is_known: false })
            }
            _ => None,
        }
    }

    /// The number whose bytes are all `value`.
    pub(crate) fn repeated(&self, value: u8) -> i128 {
        self.number((0..self.width).map(|_| value))
    }

    pub(crate) fn number(&self, bytes: impl Iterator<Item = u8>) -> i128 {
        let number = bytes.fold(0_i128, |number, byte| number << 8 | i128::from(byte));
        if self.signed && number >> (8 * self.width - 1) == 1 { number - (1 << (8 * self.width)) } else { number }
    }

    /// The bytes of a number.
    pub(crate) fn bytes(&self, number: i128) -> Vec<u8> {
        let all = number.to_be_bytes();
        all[all.len() - usize::try_from(self.width).unwrap()..].to_vec()
    }

    /// True if a writer may send the number: no `at_most_current` field is saved below 0.
    pub(crate) fn sends(&self, number: i128) -> bool {
        self.takes(number) && (self.limit != Some(Limit::AtMostCurrent) || number >= 0)
    }

    /// True if the limit accepts the number; a machine's configuration always does.
    pub(crate) fn takes(&self, number: i128) -> bool {
        match &self.limit {
            Some(Limit::NotZero) => number != 0,
            Some(Limit::Scalar) => u32::try_from(number).is_ok_and(|number| char::from_u32(number).is_some()),
            Some(Limit::Within(first, last)) => (*first..=*last).contains(&number),
            Some(Limit::OneOf(values)) => values.contains(&number),
            _ => true,
        }
    }
}

/// Outcomes of the reader that a verdict identifies with the writer's of another name.
pub(crate) type Same = BTreeMap<String, String>;

/// The pairs that `relies_on` names.
pub(crate) fn same(relies_on: &[Assumption]) -> Same {
    let names = relies_on.iter().filter_map(|assumption| match assumption {
        Assumption::Outcomes(names) => Some(names),
        _ => None,
    });
    let pairs = names.flatten().filter_map(|name| name.split_once(" and "));
    pairs.map(|(written, read)| (read.to_owned(), written.to_owned())).collect()
}

/// The fields of a description, with a name that distinguishes those of equal name.
pub(crate) fn fields<'a>(description: &'a Description, place: &Place) -> Vec<(&'a Field, Place)> {
    let mut before: Vec<&str> = Vec::new();
    let mut named = Vec::new();
    for field in description.fields.iter() {
        let earlier = before.iter().filter(|name| **name == &*field.name).count();
        before.push(&field.name);
        let name = if earlier == 0 { field.name.to_string() } else { format!("{}#{}", &*field.name, earlier + 1) };
        named.push((field, place.field(&name)));
    }
    named
}

/// True if the field at `place` is present at a version of the innermost struct or subsection in `parts`, whose earlier fields
/// are known. A predicate belongs to the innermost struct.
pub(crate) fn is_there(
    (field, place): (&Field, &Place),
    parts: &[Scope<'_>],
    version: u32,
    outcomes: Outcomes,
    same: &Same,
) -> bool {
    let holder = parts.iter().rfind(|part| !part.is_subsection).map_or("", |part| &part.place.path);
    match &field.presence {
        Presence::Since(since) => *since <= version,
        Presence::If(name) if !name.is_empty() => {
            let asked = if holder.is_empty() { name.to_string() } else { format!("{} of {holder}", &**name) };
            outcomes.holds("predicate", same.get(&asked).unwrap_or(&asked))
        }
        Presence::Tag(number) if let Some(tag) = parts.last().and_then(|part| part.tag(version)) => tag == *number,
        _ => outcomes.holds("unnamed", &place.path),
    }
}

/// A struct or subsection that is being written or read, with its integers so far: the value of each, and its item of the writer,
/// if it has one.
pub(crate) struct Scope<'a> {
    pub(crate) description: &'a Description,
    pub(crate) place: Place,
    pub(crate) is_subsection: bool,
    pub(crate) integers: BTreeMap<String, (Option<usize>, i128)>,
    /// The value of the first integer field.
    pub(crate) first: Option<i128>,
}

impl<'a> Scope<'a> {
    pub(crate) fn new(description: &'a Description, place: &Place, is_subsection: bool) -> Self {
        Self { description, place: place.clone(), is_subsection, integers: BTreeMap::new(), first: None }
    }

    pub(crate) fn note(&mut self, field: &Field, item: Option<usize>, number: i128) {
        if self.description.fields.first().is_some_and(|first| std::ptr::eq(first, field)) {
            self.first = Some(number);
        }
        self.integers.insert(field.name.to_string(), (item, number));
    }

    /// The number of the first field, if that is an integer that is always present.
    fn tag(&self, version: u32) -> Option<i128> {
        let first = self.description.fields.first()?;
        let is_always = matches!(first.presence, Presence::Since(since) if since <= version);
        let plain = if let Kind::Limited(inner, _) = &first.kind { inner } else { &first.kind };
        let is_integer = matches!(plain, Kind::Bool | Kind::Unsigned(_) | Kind::Signed(_));
        self.first.filter(|_| is_always && is_integer)
    }
}

/// The source of the number of elements.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// The bytes of the elements themselves.
    Itself,
    /// A number on the wire, with its item and its field.
    Number(i128, Option<usize>, String),
    /// A field that is not in the stream.
    Absent(String),
    /// The machine's configuration.
    Machine(String),
}

/// A limit on the number of elements.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    pub(crate) source: Source,
    pub(crate) factor: u64,
    pub(crate) most: u64,
}

impl Bound {
    /// The bound of `count` in the scopes `parts`, the innermost last; `None` if it is unclear which field is meant.
    pub(crate) fn of(count: Option<&Count>, parts: &[Scope<'_>]) -> Option<Self> {
        let count = count?;
        let (factor, most) = (count.factor as u64, count.most as u64);
        let name = match &count.length {
            None => return Some(Self { source: Source::Itself, factor, most }),
            Some(Length::Machine(name)) => {
                let path = parts.last()?.place.field(name).path;
                return Some(Self { source: Source::Machine(path), factor, most });
            }
            Some(Length::Field(name)) => &**name,
            Some(_) => return None,
        };
        let mut known = Vec::new();
        for part in parts.iter().rev() {
            let named = part.description.fields.iter().filter(|field| *field.name == *name);
            known.extend(named.map(|field| (part, field)));
            if !part.is_subsection {
                break;
            }
        }
        let [(part, field)] = known.as_slice() else { return None };
        let path = part.place.field(name).path;
        let integer = Integer::of(&field.kind)?;
        // A machine has no value that its own field refuses.
        let fits = |number: i128| number >> (8 * integer.width - u64::from(integer.signed)) == 0;
        let highest = (0..=1000_u64)
            .chain([0x0101_0101])
            .rev()
            .find(|number| fits((*number).into()) && integer.takes((*number).into()));
        let most = most.min(highest.unwrap_or(0) * factor);
        let source = match part.integers.get(name) {
            Some((item, number)) => Source::Number(*number, *item, path),
            None => Source::Absent(path),
        };
        Some(Self { source, factor, most })
    }
}

/// True if a field of the kind can have a count.
pub(crate) fn is_counted(kind: &Kind) -> bool {
    matches!(kind, Kind::CountedArray(_) | Kind::CountedBuffer | Kind::CountedBitmap | Kind::List(_) | Kind::Map(..))
}

/// Numbers of elements that fields had, by path.
pub(crate) type Counts = BTreeMap<String, Vec<u64>>;

/// An array of numbers is one item, nested arrays included.
pub(crate) fn is_plain(kind: &Kind) -> bool {
    match kind {
        Kind::Buffer(_) | Kind::Unused(_) => true,
        Kind::Bitmap(bits) => bits.is_multiple_of(64),
        Kind::Array(element, _) => is_plain(element),
        _ => Integer::of(kind).is_some(),
    }
}

/// Numbers by field: as written, or as read from another kind.
pub(crate) type Numbers = BTreeMap<String, Vec<i128>>;

/// True if the verdict says that a stream with these properties loads.
pub(crate) fn predicted(verdict: &Verdict, outcomes: Outcomes, numbers: &[&Numbers], counts: &[&Counts]) -> bool {
    // The writer's number, if the writer has the field.
    let counts = |path: &str| counts.iter().find_map(|counts| counts.get(path)).cloned();
    let holds = |subject: &Subject| match subject {
        Subject::Predicate(name) => outcomes.holds("predicate", name),
        Subject::Unnamed(path) => outcomes.holds("unnamed", path),
        Subject::Subsection(path) => outcomes.holds("subsection", path),
        // Only one section is compared, and it is sent.
        Subject::Section(_) => true,
        Subject::Elements(path) => match counts(path) {
            Some(counts) => counts.iter().any(|count| *count > 0),
            None => outcomes.count(path) > 0,
        },
        Subject::Count { field, most } => counts(field).unwrap_or_default().iter().all(|count| count <= most),
        Subject::Null(path) => outcomes.holds("null", path),
        Subject::Configuration(field) => outcomes.holds("alike", field),
        Subject::Value { field, taken, refused } => {
            let mut known = numbers.iter().filter_map(|numbers| numbers.get(field)).flatten();
            known.all(|number| {
                assert!(taken.contains(*number) || refused.contains(*number), "{number} of {field} was not foreseen");
                taken.contains(*number)
            })
        }
    };
    let happens = |case: &Case| case.when.iter().all(|condition| condition.holds == holds(&condition.subject));
    match verdict {
        Verdict::Loads => true,
        Verdict::LoadsIf(cases) => !cases.iter().any(happens),
        Verdict::Breaks(_) | Verdict::NotCompared(_) => false,
    }
}

/// The words of a bitmap; bits beyond the last one are 0, and readers accept only that.
pub(crate) fn words(bits: usize, place: &Place) -> Vec<(Integer, Place)> {
    let word = |limit| Integer { width: 8, signed: false, limit, is_known: true };
    let mut words: Vec<_> = (0..bits / 64).map(|_| (word(None), place.clone())).collect();
    if !bits.is_multiple_of(64) {
        let place = if words.is_empty() { place.clone() } else { place.element(words.len()) };
        words.push((word(Some(Limit::Within(0, (1 << (bits % 64)) - 1))), place));
    }
    words
}
