//! The reader.

use std::collections::VecDeque;

use vmstate::schema::{Description, Kind, Limit};

use crate::encode::{Count, Encoder};
use crate::model::{Byte, Integer, Numbers, Outcomes, Place, Tag, fields, is_plain, words};

pub(crate) struct Loader<'a> {
    outcomes: Outcomes,
    bytes: &'a [Byte],
    at: usize,
    counted: Option<usize>,
    counts: VecDeque<Count>,
    pointers: VecDeque<(usize, bool)>,
    /// What was read into integers from what is none, by the fields of both sides.
    pub(crate) numbers: Numbers,
}

type Loaded = Result<(), String>;

impl<'a> Loader<'a> {
    pub(crate) fn new(encoded: &'a Encoder) -> Self {
        let (outcomes, bytes) = (encoded.outcomes, encoded.bytes.as_slice());
        let (counts, pointers) = (encoded.counts.clone(), encoded.pointers.clone());
        Loader { outcomes, bytes, at: 0, counted: None, counts, pointers, numbers: Numbers::new() }
    }

    pub(crate) fn load(&mut self, reader: &Description, version: u32) -> Loaded {
        if version > reader.version || version < reader.minimum_version {
            return Err("version".into());
        }
        self.description(reader, version, &Place::default())?;
        // Elements count also if they have no bytes.
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

    fn description(&mut self, description: &Description, version: u32, place: &Place) -> Loaded {
        for (field, place) in fields(description, version, place, self.outcomes) {
            self.kind(&field.kind, &place)?;
        }
        while let Some((name, version, length)) = self.peek_subsection(&description.name) {
            let known =
                description.subsections.iter().find(|known| *known.name == *name).ok_or("unknown subsection")?;
            if version > known.version || version < known.minimum_version {
                return Err("version of a subsection".into());
            }
            self.at += length;
            self.description(known, version, &place.field(&known.name))?;
        }
        Ok(())
    }

    /// QEMU's look ahead: 5, a length, and a name that is longer than the parent's and begins with it.
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

    fn kind(&mut self, kind: &Kind, place: &Place) -> Loaded {
        if let Some(integer) = Integer::of(kind) {
            return self.integer(&integer, place);
        }
        match kind {
            Kind::Bitmap(bits) => words(*bits, place).iter().try_for_each(|(word, place)| self.integer(word, place)),
            Kind::Buffer(bytes) | Kind::Unused(bytes) => (0..*bytes).try_for_each(|_| match self.take()?.tag {
                Tag::Raw | Tag::Integer(..) => Ok(()),
                other => Err(format!("{other:?} for raw bytes")),
            }),
            Kind::Struct(nested) | Kind::Temporary(nested) => self.description(nested, nested.version, place),
            Kind::StructAt(nested, version) => match (nested.minimum_version..=nested.version).contains(version) {
                true => self.description(nested, *version, place),
                false => Err("version of a struct".into()),
            },
            Kind::Array(element, count) => (0..*count).try_for_each(|index| {
                let inside = if is_plain(element) { place.clone() } else { place.element(index) };
                self.kind(element, &inside)
            }),
            Kind::CountedBuffer => self.counted(&Kind::Buffer(1), place, false),
            Kind::CountedArray(element) => self.counted(element, place, false),
            Kind::CountedBitmap => self.counted(&Kind::Bitmap(64), place, true),
            Kind::Nullable(inner) => self.pointer(inner, place),
            Kind::List(element) => self.list(&Tag::List, place, |loader, inside| loader.kind(element, inside)),
            Kind::Map(key, value) => self.list(&Tag::Map, place, |loader, inside| {
                loader.kind(key, &inside.field("key"))?;
                loader.kind(value, inside)
            }),
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

    fn pointer(&mut self, inner: &Kind, place: &Place) -> Loaded {
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

    fn counted(&mut self, element: &Kind, place: &Place, is_bitmap: bool) -> Loaded {
        let is_empty_here = self.outcomes.count(&place.path) == 0;
        loop {
            let Some(count) = self.counts.front().copied().filter(|count| count.at <= self.at) else {
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
            let outer = self.counted.replace(count.which);
            (0..count.elements).try_for_each(|_| self.kind(element, &place.counted()))?;
            self.counted = outer;
            return Ok(());
        }
    }

    fn list(&mut self, tag: &Tag, place: &Place, element: impl Fn(&mut Self, &Place) -> Loaded) -> Loaded {
        let outer = self.counted;
        self.counted = match self.bytes.get(self.at) {
            Some(byte) if byte.tag == *tag => byte.counted,
            _ => return Err("no list".into()),
        };
        if *tag == Tag::Map {
            (0..4).try_for_each(|_| self.mark(tag).map(drop))?;
        }
        while self.mark(tag)? == 1 {
            element(self, &place.counted())?;
        }
        self.counted = outer;
        Ok(())
    }
}
