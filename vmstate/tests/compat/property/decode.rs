//! A naive reader.

use std::collections::VecDeque;

use vmstate::schema::{Count as Allowed, Description, Field, Kind, Limit};

use super::encode::{BYTE, Count, Encoder, WORD};
use super::model::{Bound, Byte, Counts, Integer, Numbers, Outcomes, Place, Same, Scope, Source, Tag};
use super::model::{fields, is_plain, is_there, words};

pub(crate) struct Loader<'a> {
    outcomes: Outcomes,
    same: &'a Same,
    bytes: &'a [Byte],
    at: usize,
    counted: Option<usize>,
    counts: VecDeque<Count>,
    pointers: VecDeque<(usize, bool)>,
    /// Numbers that were read as integers from bytes of other kinds, by the fields of both sides.
    pub(crate) numbers: Numbers,
    parts: Vec<Scope<'a>>,
    /// Lists and maps whose largest number of sent elements is known.
    bounded: &'a [usize],
    /// The enclosing elements, in the writer's numbering.
    inside: Vec<(usize, u64)>,
    /// Numbers of elements that the reader counts itself.
    pub(crate) elements: Counts,
    /// The integer that was read last, and its item of the writer.
    last: (Option<usize>, i128),
}

type Loaded = Result<(), String>;

impl<'a> Loader<'a> {
    pub(crate) fn new(encoded: &'a Encoder<'_>, same: &'a Same) -> Self {
        let (outcomes, bytes) = (encoded.outcomes, encoded.bytes.as_slice());
        let (counts, pointers) = (encoded.counts.clone(), encoded.pointers.clone());
        let (parts, numbers, elements) = (Vec::new(), Numbers::new(), Counts::new());
        let bounded = encoded.bounded.as_slice();
        Loader {
            outcomes,
            same,
            bytes,
            at: 0,
            counted: None,
            counts,
            pointers,
            numbers,
            parts,
            bounded,
            inside: Vec::new(),
            elements,
            last: (None, 0),
        }
    }

    pub(crate) fn load(&mut self, reader: &'a Description, version: u32) -> Loaded {
        if version > reader.version || version < reader.minimum_version {
            return Err("version".into());
        }
        self.description(reader, version, &Place::default(), false)?;
        // Elements count even if they have no bytes.
        match self.at < self.bytes.len() || self.counts.iter().any(|count| count.elements > 0) {
            true => Err("bytes or elements are left".into()),
            false => Ok(()),
        }
    }

    fn take(&mut self) -> Result<Byte, String> {
        let byte = self.bytes.get(self.at).ok_or("too short")?;
        if byte.tag == Tag::Header || byte.counted != self.counted {
            return Err(format!("{byte:?} at {}", self.at));
        }
        self.at += 1;
        Ok(byte.clone())
    }

    fn mark(&mut self, tag: &Tag) -> Result<u8, String> {
        let byte = self.take()?;
        if byte.tag == *tag { Ok(byte.value) } else { Err(format!("{byte:?} for {tag:?}")) }
    }

    fn description(
        &mut self,
        description: &'a Description,
        version: u32,
        place: &Place,
        is_subsection: bool,
    ) -> Loaded {
        self.parts.push(Scope::new(description, place, is_subsection));
        for (field, place) in fields(description, place) {
            if is_there((field, &place), &self.parts, version, self.outcomes, self.same) {
                self.field(field, &place)?;
            }
        }
        while let Some((name, version, length)) = self.peek_subsection(&description.name) {
            let known =
                description.subsections.iter().find(|known| *known.name == *name).ok_or("unknown subsection")?;
            if version > known.version || version < known.minimum_version {
                return Err("version of a subsection".into());
            }
            self.at += length;
            self.description(known, version, &place.field(&known.name), true)?;
        }
        self.parts.pop();
        Ok(())
    }

    fn field(&mut self, field: &'a Field, place: &Place) -> Loaded {
        self.counted_kind(&field.kind, field.count.as_ref(), place)?;
        if let (Some(_), Some(part)) = (Integer::of(&field.kind), self.parts.last_mut()) {
            let (item, number) = self.last;
            part.note(field, item, number);
        }
        Ok(())
    }

    /// QEMU's look-ahead: 5, a length, and a name that is longer than the parent's and begins with it.
    fn peek_subsection(&self, parent: &str) -> Option<(String, u32, usize)> {
        let rest: Vec<u8> = self.bytes[self.at..].iter().map(|byte| byte.value).collect();
        let [5, length, rest @ ..] = rest.as_slice() else { return None };
        let name = std::str::from_utf8(rest.get(..usize::from(*length))?).ok()?;
        if name.len() <= parent.len() || !name.starts_with(parent) {
            return None;
        }
        let version = rest[name.len()..].first_chunk().map(|bytes| u32::from_be_bytes(*bytes))?;
        Some((name.to_owned(), version, 2 + name.len() + 4))
    }

    fn kind(&mut self, kind: &'a Kind, place: &Place) -> Loaded {
        self.counted_kind(kind, None, place)
    }

    fn counted_kind(&mut self, kind: &'a Kind, allowed: Option<&Allowed>, place: &Place) -> Loaded {
        if let Some(integer) = Integer::of(kind) {
            return self.integer(&integer, place);
        }
        match kind {
            Kind::Bitmap(bits) => words(*bits, place).iter().try_for_each(|(word, place)| self.integer(word, place)),
            Kind::Buffer(bytes) | Kind::Unused(bytes) => (0..*bytes).try_for_each(|_| match self.take()?.tag {
                Tag::Raw | Tag::Integer(..) => Ok(()),
                other => Err(format!("{other:?} for raw bytes")),
            }),
            Kind::Struct(nested) | Kind::Temporary(nested) => self.description(nested, nested.version, place, false),
            Kind::StructAt(nested, version) => match (nested.minimum_version..=nested.version).contains(version) {
                true => self.description(nested, *version, place, false),
                false => Err("version of a struct".into()),
            },
            Kind::Array(element, count) => (0..*count).try_for_each(|index| {
                let inside = if is_plain(element) { place.clone() } else { place.element(index) };
                self.kind(element, &inside)
            }),
            Kind::CountedBuffer => self.counted(&BYTE, allowed, place, false),
            Kind::CountedArray(element) => self.counted(element, allowed, place, false),
            Kind::CountedBitmap => self.counted(&WORD, allowed, place, true),
            Kind::Nullable(inner) => self.pointer(inner, place),
            Kind::List(element) => self.list(&Tag::List, allowed, place, |loader, inside| loader.kind(element, inside)),
            Kind::Map(key, value) => {
                let mut before = None;
                self.list(&Tag::Map, allowed, place, |loader, inside| {
                    loader.kind(key, &inside.field("key"))?;
                    if Integer::of(key).is_some() {
                        let number = loader.last.1;
                        if before.replace(number).is_some_and(|before| number <= before) {
                            return Err(format!("key {number} is not in order"));
                        }
                    }
                    loader.kind(value, &inside.field("value"))
                })
            }
            Kind::Custom(codec) => (0..2).try_for_each(|_| match self.take()?.tag {
                Tag::Custom(other) if other == **codec => Ok(()),
                _ => Err("another codec".to_owned()),
            }),
            _ => Ok(()),
        }
    }

    fn integer(&mut self, integer: &Integer, place: &Place) -> Loaded {
        let mut first = None;
        let mut bytes = Vec::new();
        for place in 0..integer.width {
            let byte = self.take()?;
            match byte.tag {
                Tag::Raw => {}
                Tag::Integer(item, at, of)
                    if at == place && of == integer.width && *first.get_or_insert(item) == item => {}
                other => return Err(format!("{other:?}")),
            }
            bytes.push(byte);
        }
        let number = integer.number(bytes.iter().map(|byte| byte.value));
        self.last = (first, number);
        for byte in &bytes {
            let origin = &byte.origin;
            let field = match origin.is_integer {
                true => origin.path.clone(),
                false => format!("{} (from {})", place.path, origin.path),
            };
            if !origin.is_integer && integer.limit.is_some() {
                self.numbers.entry(field.clone()).or_default().push(number);
            }
            let is_alike = match (&integer.limit, &origin.limit) {
                (Some(Limit::Equal), Some(Limit::Equal)) => true,
                (Some(Limit::AtMostCurrent), Some(Limit::AtMostCurrent)) if number < 0 => {
                    return Err(format!("{number} of {field} is below 0"));
                }
                (Some(Limit::AtMostCurrent), Some(Limit::AtMostCurrent)) => true,
                (Some(Limit::AtMostCurrent), Some(Limit::Equal)) if !integer.signed => true,
                (Some(Limit::Equal | Limit::AtMostCurrent), _) => self.outcomes.holds("alike", &field),
                _ => true,
            };
            if !is_alike {
                return Err(format!("another machine has another {field}"));
            }
        }
        if integer.takes(number) { Ok(()) } else { Err(format!("{number} at {}", place.path)) }
    }

    fn pointer(&mut self, inner: &'a Kind, place: &Place) -> Loaded {
        while self.pointers.front().is_some_and(|(at, _)| *at < self.at) {
            self.pointers.pop_front();
        }
        let is_null = match self.pointers.front() {
            Some((at, is_null)) if *at == self.at => {
                let is_null = *is_null;
                self.pointers.pop_front();
                is_null
            }
            _ => self.outcomes.holds("null", &place.path),
        };
        if is_null { self.mark(&Tag::Null).map(drop) } else { self.kind(inner, place) }
    }

    /// Skips the rest of a writer's element that the reader left unread.
    fn leave(&mut self) -> Loaded {
        let left = self.inside.clone();
        while let Some(count) = self.counts.front().filter(|count| count.inside.starts_with(&left)) {
            if count.elements > 0 {
                return Err("elements are left".into());
            }
            self.counts.pop_front();
        }
        self.inside.pop();
        Ok(())
    }

    fn counted(&mut self, element: &'a Kind, allowed: Option<&Allowed>, place: &Place, is_bitmap: bool) -> Loaded {
        let bound = Bound::of(allowed, &self.parts);
        let own = match &bound {
            Some(Bound { source: Source::Number(number, ..), factor, .. }) => {
                u64::try_from(*number).unwrap_or(0).saturating_mul(*factor)
            }
            _ => self.outcomes.count(&place.path),
        };
        self.elements.entry(place.path.clone()).or_default().push(own);
        let is_empty_here = own == 0;
        loop {
            let is_here = |count: &Count| count.at < self.at || (count.at == self.at && count.inside == self.inside);
            let Some(count) = self.counts.front().cloned().filter(is_here) else {
                return if is_empty_here { Ok(()) } else { Err("not counted".into()) };
            };
            if count.at == self.at && count.is_bitmap != is_bitmap {
                if is_empty_here {
                    return Ok(());
                }
                if count.elements > 0 {
                    return Err("counted otherwise".into());
                }
            }
            if count.at < self.at && count.elements > 0 {
                return Err("elements are left".into());
            }
            self.counts.pop_front();
            if count.at < self.at || count.is_bitmap != is_bitmap {
                continue;
            }
            if let (Some(ours), Some(theirs)) = (&count.bound, &bound) {
                self.compare(&count, ours, theirs)?;
            }
            let outer = self.counted.replace(count.which);
            for at in 0..count.elements {
                self.inside.push((count.which, at));
                self.kind(element, &place.counted())?;
                self.leave()?;
            }
            self.counted = outer;
            return Ok(());
        }
    }

    /// Checks whether the reader counts as many elements as the writer, with `ours`, has sent.
    fn compare(&self, count: &Count, ours: &Bound, theirs: &Bound) -> Loaded {
        if ours.factor != theirs.factor {
            return if count.elements == 0 { Ok(()) } else { Err("another factor".into()) };
        }
        let only_if_alike = |path: &str| match self.outcomes.holds("alike", path) {
            true => Ok(()),
            false => Err(format!("another machine has another {path}")),
        };
        match (&ours.source, &theirs.source) {
            (Source::Number(sent, item, _), Source::Number(number, from, _)) => {
                if item != from {
                    return Err("another length".into());
                }
                if number < &0 {
                    return Err("a negative length".into());
                }
                assert_eq!(sent, number, "the same bytes are the same number");
            }
            (Source::Machine(_), Source::Machine(_)) => {}
            (_, Source::Number(_, _, path) | Source::Absent(path) | Source::Machine(path)) => only_if_alike(path)?,
            (_, Source::Itself) => {}
        }
        let sent = if count.elements == 0 { 0 } else { count.number };
        if sent <= theirs.most { Ok(()) } else { Err(format!("{sent} elements are too many")) }
    }

    fn list(
        &mut self,
        tag: &Tag,
        allowed: Option<&Allowed>,
        place: &Place,
        mut element: impl FnMut(&mut Self, &Place) -> Loaded,
    ) -> Loaded {
        let outer = self.counted;
        self.counted = match self.bytes.get(self.at) {
            Some(byte) if byte.tag == *tag => byte.counted,
            _ => return Err("no list".into()),
        };
        let is_known = self.counted.is_some_and(|list| self.bounded.contains(&list));
        let most = allowed.filter(|_| is_known).map(|allowed| allowed.most as u64);
        if *tag == Tag::Map {
            (0..4).try_for_each(|_| self.mark(tag).map(drop))?;
        }
        let mut elements = 0;
        while self.mark(tag)? == 1 {
            elements += 1;
            if most.is_some_and(|most| elements > most) {
                return Err(format!("{elements} elements are too many"));
            }
            self.inside.extend(self.counted.map(|which| (which, elements - 1)));
            element(self, &place.counted())?;
            self.leave()?;
        }
        self.counted = outer;
        Ok(())
    }
}
