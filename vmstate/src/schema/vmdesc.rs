//! The self-description of one device's section, as QEMU 10.0 writes it into a stream's VMDESCRIPTION.
//!
//! A [`Description`] says what may be on the wire, the outcomes of a save say what was. Rules and quirks are those of
//! QEMU's migration/vmstate.c (`vmsd_desc_field_start`, `vmsd_can_compress`, `vmfield_name_num`).

use serde_json::{Map, Value};

use super::{Description, Field, Kind, Limit, Presence};
use crate::error::{Error, ErrorKind, Result};

/// The keys `vmsd_name`, `version`, `fields` and (if any was sent) `subsections` of a save of `description` that made
/// these `outcomes`.
///
/// # Errors
/// `Misuse` if the outcomes are of another description.
pub fn vmdesc(description: &Description, outcomes: &[u32]) -> Result<Map<String, Value>> {
    let mut walk = Walk { outcomes: outcomes.iter() };
    let mut into = Map::new();
    walk.description(description, &mut into)?;
    match walk.outcomes.next() {
        None => Ok(into),
        Some(_) => Err(Error::new(ErrorKind::Misuse, format!("more outcomes than {:?} makes", &*description.name))),
    }
}

/// A walk along the wire; each step returns the bytes that it stands for.
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

    fn description(&mut self, description: &Description, into: &mut Map<String, Value>) -> Result<u64> {
        self.description_at(description, description.version, into)
    }

    fn description_at(
        &mut self,
        description: &Description,
        version: u32,
        into: &mut Map<String, Value>,
    ) -> Result<u64> {
        into.insert("vmsd_name".into(), (*description.name).into());
        into.insert("version".into(), version.into());
        let mut size = 0;
        let mut fields = Vec::new();
        for (index, field) in description.fields.iter().enumerate() {
            if matches!(field.presence, Presence::Since(since) if since > version) {
                continue;
            }
            size += self.field(field, || numbered_name(&description.fields, index), &mut fields)?;
        }
        into.insert("fields".into(), fields.into());
        let mut subsections: Vec<Value> = Vec::new();
        for subsection in description.subsections.iter() {
            if self.outcome()? != 0 {
                let mut object = Map::new();
                // 05, name length, name, version.
                size += 1 + 1 + subsection.name.len() as u64 + 4;
                size += self.description(subsection, &mut object)?;
                subsections.push(object.into());
            }
        }
        if !subsections.is_empty() {
            into.insert("subsections".into(), subsections.into());
        }
        Ok(size)
    }

    fn field(&mut self, field: &Field, name: impl Fn() -> String, into: &mut Vec<Value>) -> Result<u64> {
        if field.kind == Kind::Check || (matches!(field.presence, Presence::If(_)) && self.outcome()? == 0) {
            return Ok(0);
        }
        let (element, count) = self.elements(&field.kind)?;
        let together = can_compress(field);
        if let Kind::Nullable(pointee) = element {
            return self.pointers(pointee, count, together, name, into);
        }
        let mut size = 0;
        for index in 0..count {
            let mut object = Map::new();
            object.insert("name".into(), name().into());
            // QEMU tells an array by the number of elements left, so the last of many carries no index.
            if count - index > 1 {
                let (key, value) = if together { ("array_len", count) } else { ("index", index) };
                object.insert(key.into(), value.into());
            }
            object.insert("type".into(), type_name(element).into());
            let bytes = self.element(element, &mut object)?;
            object.insert("size".into(), bytes.into());
            size += bytes;
            if index == 0 || !together {
                into.push(object.into());
            }
        }
        Ok(size)
    }

    /// An array of pointers is shown in runs of null and of others, but the first run, unless it is of nulls, as if it were
    /// the whole array (`vmstate_save_state_v`, `is_prev_null`).
    fn pointers(
        &mut self,
        pointee: &Kind,
        count: u64,
        together: bool,
        name: impl Fn() -> String,
        into: &mut Vec<Value>,
    ) -> Result<u64> {
        let mut pointers = Vec::new();
        for _ in 0..count {
            let is_null = self.outcome()? == 0;
            let mut inner = Map::new();
            let bytes = if is_null { 1 } else { self.element(pointee, &mut inner)? };
            pointers.push((is_null, inner, bytes));
        }
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
            object.insert("name".into(), name().into());
            if length > 1 {
                // The entry of a null is always one that can stand for many (`vmsd_create_fake_nullptr_field`).
                let (key, value) = if together || is_null { ("array_len", length) } else { ("index", index) };
                object.insert(key.into(), value.into());
            }
            let kind = if is_null { "nullptr".into() } else { type_name(pointee) };
            object.insert("type".into(), kind.into());
            object.extend(inner);
            object.insert("size".into(), bytes.into());
            into.push(object.into());
        }
        Ok(size)
    }

    /// What an array repeats, and how often; arrays of arrays are one array to QEMU.
    fn elements<'k>(&mut self, kind: &'k Kind) -> Result<(&'k Kind, u64)> {
        let (inner, count) = match kind {
            Kind::Array(inner, count) => (inner, *count as u64),
            Kind::CountedArray(inner) => (inner, self.outcome()?),
            _ => return Ok((kind, 1)),
        };
        let (element, inner_count) = self.elements(inner)?;
        Ok((element, count.saturating_mul(inner_count)))
    }

    fn element(&mut self, kind: &Kind, into: &mut Map<String, Value>) -> Result<u64> {
        Ok(match kind {
            Kind::Bool => 1,
            Kind::Unsigned(bytes) | Kind::Signed(bytes) => u64::from(*bytes),
            Kind::Limited(inner, _) => self.element(inner, into)?,
            Kind::Timer | Kind::Double => 8,
            Kind::Buffer(bytes) | Kind::Unused(bytes) => *bytes as u64,
            Kind::Bitmap(bits) => bitmap_size(*bits as u64),
            Kind::CountedBitmap => bitmap_size(self.outcome()?),
            Kind::CountedBuffer | Kind::Custom(_) => self.outcome()?,
            Kind::Struct(nested) => {
                let mut object = Map::new();
                let size = self.description(nested, &mut object)?;
                into.insert("struct".into(), object.into());
                size
            }
            // QEMU puts what is inside of these right into the field's object (`vmsd_desc_field_start`).
            Kind::StructAt(nested, version) => self.description_at(nested, *version, into)?,
            Kind::Temporary(nested) => self.description(nested, into)?,
            Kind::List(element) => {
                let mut size = 1;
                for _ in 0..self.outcome()? {
                    size += 1 + self.inlined(element, into)?;
                }
                size
            }
            Kind::Map(key, value) => {
                let mut size = 4 + 1;
                for _ in 0..self.outcome()? {
                    size += 1 + self.inlined(key, into)? + self.inlined(value, into)?;
                }
                size
            }
            // Inside of something else QEMU has neither of these, so they only count.
            Kind::Nullable(inner) if self.outcome()? != 0 => self.element(inner, into)?,
            Kind::Nullable(_) => 1,
            Kind::Array(..) | Kind::CountedArray(_) => {
                let (element, count) = self.elements(kind)?;
                let mut size = 0;
                for _ in 0..count {
                    size += self.element(element, &mut Map::new())?;
                }
                size
            }
            Kind::Check => 0,
        })
    }

    /// An element of a list: what QEMU says of the last one is what stays, as the keys of all are the same.
    fn inlined(&mut self, kind: &Kind, into: &mut Map<String, Value>) -> Result<u64> {
        match kind {
            Kind::Struct(nested) => self.description(nested, into),
            other => self.element(other, into),
        }
    }
}

/// Bytes of a bitmap: whole words of 64 bits.
const fn bitmap_size(bits: u64) -> u64 {
    bits.div_ceil(64) * 8
}

/// The field's name, with its number if several are called the same, absent ones counted too.
fn numbered_name(fields: &[Field], index: usize) -> String {
    let same = |field: &Field, of: &Field| field.kind != Kind::Check && wire_name(field) == wire_name(of);
    let Some(field) = fields.get(index) else { return String::new() };
    let name = wire_name(field);
    if fields.iter().filter(|other| same(other, field)).count() == 1 {
        return name.to_owned();
    }
    let ordinal = fields.iter().take(index).filter(|other| same(other, field)).count();
    format!("{name}[{ordinal}]")
}

fn wire_name(field: &Field) -> &str {
    let mut kind = &field.kind;
    while let Kind::Array(inner, _) | Kind::CountedArray(inner) = kind {
        kind = inner;
    }
    match kind {
        Kind::Unused(_) => "unused",
        _ => &field.name,
    }
}

/// True if one entry can stand for all elements of an array: nothing inside may differ between them.
fn can_compress(field: &Field) -> bool {
    if let Presence::If(_) = field.presence {
        return false;
    }
    let mut kind = &field.kind;
    while let Kind::Array(inner, _) | Kind::CountedArray(inner) | Kind::Nullable(inner) = kind {
        kind = inner;
    }
    match kind {
        Kind::Struct(nested) => nested.subsections.is_empty() && nested.fields.iter().all(can_compress),
        _ => true,
    }
}

/// A kind in the self-description's words.
pub(crate) fn type_name(kind: &Kind) -> String {
    match kind {
        Kind::Bool => "bool".into(),
        Kind::Unsigned(bytes) => format!("uint{}", u32::from(*bytes) * 8),
        Kind::Signed(bytes) => format!("int{}", u32::from(*bytes) * 8),
        Kind::Buffer(_) | Kind::CountedBuffer => "buffer".into(),
        Kind::Unused(_) => "unused_buffer".into(),
        Kind::Struct(_) => "struct".into(),
        Kind::StructAt(..) => "vstruct".into(),
        Kind::Temporary(_) => "tmp".into(),
        Kind::Limited(inner, limit) => limited_name(inner, limit),
        Kind::Timer => "timer".into(),
        Kind::Double => "CPU_Double_U".into(),
        Kind::Bitmap(_) | Kind::CountedBitmap => "bitmap".into(),
        Kind::List(_) => "qtailq".into(),
        Kind::Map(..) => "gtree".into(),
        Kind::Nullable(inner) => type_name(inner),
        Kind::Custom(name) => name.to_string(),
        Kind::Array(inner, _) | Kind::CountedArray(inner) => type_name(inner),
        Kind::Check => String::new(),
    }
}

/// QEMU's names (migration/vmstate-types.c); what it has no name for goes by the name of the integer.
fn limited_name(inner: &Kind, limit: &Limit) -> String {
    match (inner, limit) {
        // So QEMU calls its `VMSTATE_UINT64_EQUAL` (`vmstate_info_uint64_equal`).
        (Kind::Unsigned(8), Limit::Equal) => "int64 equal".into(),
        (_, Limit::Equal) => format!("{} equal", type_name(inner)),
        (_, Limit::AtMostCurrent) => format!("{} le", type_name(inner)),
        (_, Limit::NotZero | Limit::Scalar | Limit::Within(..) | Limit::OneOf(_)) => type_name(inner),
    }
}
