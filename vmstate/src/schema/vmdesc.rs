//! The self-description of one device's section, as QEMU 10.0 writes it into a stream's VMDESCRIPTION.
//!
//! A [`Description`] says what may be on the wire, and the outcomes of a save say what was sent. Rules and quirks are those of
//! QEMU's migration/vmstate.c (`vmsd_desc_field_start`, `vmsd_can_compress`, `vmfield_name_num`).

use serde_json::{Map, Value};

use super::program::{Encoding, Form, Framing, Item, Meaning, Member, Program, Step, bitmap_size};
use super::{Description, Presence};
use crate::error::{Error, ErrorKind, Result};

/// The keys `vmsd_name`, `version`, `fields` and (if any was sent) `subsections` for a save of `description` with these
/// `outcomes`.
///
/// # Errors
/// `Misuse` if the outcomes belong to another description.
pub fn vmdesc(description: &Description, outcomes: &[u32]) -> Result<Map<String, Value>> {
    let mut walk = Walk { outcomes: outcomes.iter() };
    let mut into = Map::new();
    walk.program(&Program::of(description), description.version, &mut into)?;
    match walk.outcomes.next() {
        None => Ok(into),
        Some(_) => Err(Error::new(ErrorKind::Misuse, format!("more outcomes than {:?} makes", &*description.name))),
    }
}

/// A walk along the wire; each step returns the number of bytes that it covers.
struct Walk<'a> {
    outcomes: std::slice::Iter<'a, u32>,
}

impl Walk<'_> {
    fn outcome(&mut self) -> Result<u64> {
        match self.outcomes.next() {
            Some(outcome) => Ok(u64::from(*outcome)),
            None => Err(Error::new(ErrorKind::Misuse, "fewer outcomes than the description makes")),
        }
    }

    fn program(&mut self, program: &Program<'_>, version: u32, into: &mut Map<String, Value>) -> Result<u64> {
        into.insert("vmsd_name".into(), program.name.into());
        into.insert("version".into(), version.into());
        let mut size = 0;
        let mut fields = Vec::new();
        let mut subsections: Vec<Value> = Vec::new();
        for step in &program.steps {
            match step {
                Step::Member(member) if matches!(member.presence, Presence::Since(since) if *since > version) => {}
                Step::Member(member) => size += self.member(member, program, &mut fields)?,
                Step::Check { .. } => {}
                Step::Subsections(all) => {
                    for subsection in all {
                        if self.outcome()? != 0 {
                            size += self.subsection(subsection, subsection.newest, &mut subsections)?;
                        }
                    }
                }
                Step::Sent(version, subsection) => {
                    size += self.subsection(subsection, version.unwrap_or_default(), &mut subsections)?;
                }
                Step::Refuse(why) => return refuse(why),
            }
        }
        into.insert("fields".into(), fields.into());
        if !subsections.is_empty() {
            into.insert("subsections".into(), subsections.into());
        }
        Ok(size)
    }

    fn subsection(&mut self, program: &Program<'_>, version: u32, into: &mut Vec<Value>) -> Result<u64> {
        let mut object = Map::new();
        // 05, name length, name, version.
        let header = 1 + 1 + program.name.len() as u64 + 4;
        let size = self.program(program, version, &mut object)?;
        into.push(object.into());
        Ok(header + size)
    }

    fn member(&mut self, member: &Member<'_>, of: &Program<'_>, into: &mut Vec<Value>) -> Result<u64> {
        if member.presence.is_decided() && self.outcome()? == 0 {
            return Ok(0);
        }
        let (element, count) = self.elements(&member.encoding)?;
        let together = can_compress(member);
        if let Encoding::Nullable(pointee) = element {
            return self.pointers(member, pointee, count, of, into);
        }
        let mut size = 0;
        for index in 0..count {
            let mut object = Map::new();
            object.insert("name".into(), numbered_name(of, member).into());
            // QEMU recognises an array by the number of elements left, so the last of many has no index.
            if count - index > 1 {
                let (key, value) = if together { ("array_len", count) } else { ("index", index) };
                object.insert(key.into(), value.into());
            }
            object.insert("type".into(), (*member.type_name).into());
            let bytes = self.element(element, &mut object)?;
            object.insert("size".into(), bytes.into());
            size += bytes;
            if index == 0 || !together {
                into.push(object.into());
            }
        }
        Ok(size)
    }

    /// An array of pointers is shown as runs of null and non-null pointers; the first run, unless it is of nulls, is shown as if
    /// it were the whole array (`vmstate_save_state_v`, `is_prev_null`).
    fn pointers(
        &mut self,
        member: &Member<'_>,
        pointee: &Encoding<'_>,
        count: u64,
        of: &Program<'_>,
        into: &mut Vec<Value>,
    ) -> Result<u64> {
        let mut pointers = Vec::new();
        for _ in 0..count {
            let is_null = self.outcome()? == 0;
            let mut inner = Map::new();
            let bytes = if is_null { 1 } else { self.element(pointee, &mut inner)? };
            pointers.push((is_null, inner, bytes));
        }
        let together = can_compress(member);
        let nulls: Vec<bool> = pointers.iter().map(|(is_null, ..)| *is_null).collect();
        let (mut size, mut shown, mut before) = (0, true, false);
        for (index, (is_null, inner, bytes)) in pointers.into_iter().enumerate() {
            let rest = nulls.get(index..).unwrap_or_default();
            let mut length = rest.len();
            if is_null != before {
                (before, shown) = (is_null, true);
                length = rest.iter().take_while(|other| **other == is_null).count();
            }
            size += bytes;
            if !shown {
                continue;
            }
            shown = !together;
            let mut object = Map::new();
            object.insert("name".into(), numbered_name(of, member).into());
            if length > 1 {
                // The entry of a null pointer can always stand for many (`vmsd_create_fake_nullptr_field`).
                let (key, value) = if together || is_null { ("array_len", length) } else { ("index", index) };
                object.insert(key.into(), value.into());
            }
            let kind = if is_null { "nullptr" } else { &*member.type_name };
            object.insert("type".into(), kind.into());
            object.extend(inner);
            object.insert("size".into(), bytes.into());
            into.push(object.into());
        }
        Ok(size)
    }

    /// The element of an array, and the number of elements; to QEMU, nested arrays are one array.
    fn elements<'p, 'a>(&mut self, encoding: &'p Encoding<'a>) -> Result<(&'p Encoding<'a>, u64)> {
        let (inner, count) = match encoding {
            Encoding::Repeat(Framing::Fixed(count), inner) => (inner, *count),
            Encoding::Repeat(Framing::Counted, inner) => (inner, self.outcome()?),
            _ => return Ok((encoding, 1)),
        };
        let (element, inner_count) = self.elements(inner)?;
        Ok((element, count.saturating_mul(inner_count)))
    }

    fn element(&mut self, encoding: &Encoding<'_>, into: &mut Map<String, Value>) -> Result<u64> {
        Ok(match encoding {
            // The size of a codec's bytes is recorded when they are written; a size in a dump is that in memory.
            Encoding::Item(Item { meaning: Meaning::Codec(_) | Meaning::Opaque(_), .. }) => self.outcome()?,
            Encoding::Item(Item { size: Some(size), .. }) => *size,
            Encoding::Item(Item { meaning: Meaning::Bitmap(_), .. }) => bitmap_size(self.outcome()?),
            Encoding::Item(_) => self.outcome()?,
            Encoding::Struct(nested) if nested.form == Form::Object => {
                let mut object = Map::new();
                let size = self.program(&nested.program, nested.version, &mut object)?;
                into.insert("struct".into(), object.into());
                size
            }
            Encoding::Struct(_) => self.inlined(encoding, into)?,
            Encoding::Repeat(Framing::List, element) => 1 + self.marked(element, into)?,
            Encoding::Repeat(Framing::Map, element) => 4 + 1 + self.marked(element, into)?,
            // Inside of other values, QEMU shows neither of these, so only their bytes count.
            Encoding::Nullable(inner) if self.outcome()? != 0 => self.element(inner, into)?,
            Encoding::Nullable(_) => 1,
            Encoding::Repeat(Framing::Fixed(_) | Framing::Counted, _) => {
                let (element, count) = self.elements(encoding)?;
                let mut size = 0;
                for _ in 0..count {
                    size += self.element(element, &mut Map::new())?;
                }
                size
            }
            Encoding::Refuse(why) => return refuse(why),
        })
    }

    /// Elements with a marker before each. All have the same keys, so those of the last element remain in the object.
    fn marked(&mut self, element: &Encoding<'_>, into: &mut Map<String, Value>) -> Result<u64> {
        let mut size = 0;
        for _ in 0..self.outcome()? {
            size += 1 + self.inlined(element, into)?;
        }
        Ok(size)
    }

    /// Encodings without an object of their own.
    fn inlined(&mut self, encoding: &Encoding<'_>, into: &mut Map<String, Value>) -> Result<u64> {
        match encoding {
            Encoding::Struct(entry) if entry.form == Form::Entry => {
                entry.program.members().try_fold(0, |size, member| Ok(size + self.inlined(&member.encoding, into)?))
            }
            Encoding::Struct(nested) => self.program(&nested.program, nested.version, into),
            other => self.element(other, into),
        }
    }
}

/// The error for an invalid self-description, which no save has.
fn refuse<T>(why: &str) -> Result<T> {
    Err(Error::new(ErrorKind::Misuse, why))
}

/// The member's name, with a number if several members share it, absent ones included.
fn numbered_name(of: &Program<'_>, member: &Member<'_>) -> String {
    let name = wire_name(member);
    let same = || of.members().filter(|other| wire_name(other) == name);
    if same().count() == 1 {
        return name.to_owned();
    }
    let ordinal = same().take_while(|other| !std::ptr::eq(*other, member)).count();
    format!("{name}[{ordinal}]")
}

fn wire_name<'p>(member: &'p Member<'_>) -> &'p str {
    match member.encoding.element() {
        Encoding::Item(Item { meaning: Meaning::Unused, .. }) => "unused",
        _ => &member.name,
    }
}

/// True if one entry can stand for all elements of an array: no part may differ between them.
fn can_compress(member: &Member<'_>) -> bool {
    let mut encoding = member.encoding.element();
    while let Encoding::Nullable(inner) = encoding {
        encoding = inner.element();
    }
    let is_uniform = match encoding {
        Encoding::Struct(nested) if nested.form == Form::Object => nested.program.steps.iter().all(|step| match step {
            Step::Member(member) => can_compress(member),
            Step::Check { is_predicate, .. } => !is_predicate,
            Step::Subsections(all) => all.is_empty(),
            Step::Sent(..) => false,
            Step::Refuse(_) => true,
        }),
        _ => true,
    };
    is_uniform && !member.presence.is_decided()
}
