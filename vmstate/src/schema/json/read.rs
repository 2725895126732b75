//! Parses descriptions from JSON, this library's own or QEMU's dumps. The text is not trusted.

use serde_json::{Map, Value};

use super::{MACHINE, Schema};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Count, Description, Field, Kind, Length, Limit, MaybeStatic, Presence};

/// Key of the older names of a section.
pub(super) const ALIASES: &str = "aliases";
/// Longest text in bytes; QEMU's dump of all devices of an x86 build has a few million.
const MAX_TEXT: usize = 16 << 20;
/// The deepest nesting of structs and subsections; QEMU's have up to 5 levels.
const MAX_DEPTH: usize = 32;
/// The most dimensions of an array.
const MAX_DIMENSIONS: usize = 8;
/// The beginning of the type name of a field of which only the size is known.
pub(super) const OPAQUE: &str = "size ";
/// The values of `limit`: one of these words, a list of values, or an object of two.
pub(super) const EQUAL: &str = "equal";
pub(super) const AT_MOST_CURRENT: &str = "at_most_current";
pub(super) const NOT_ZERO: &str = "not_zero";
pub(super) const SCALAR: &str = "scalar";
pub(super) const FIRST: &str = "first";
pub(super) const LAST: &str = "last";

type Object = Map<String, Value>;

impl Schema {
    /// Parses a text that [`to_json`](Self::to_json) or QEMU's `-dump-vmstate` wrote.
    ///
    /// # Errors
    /// `Malformed`, with the path of keys to the place: not JSON, too long or too deep, a key that is missing, unknown or of the
    /// wrong type, numbers that contradict each other.
    pub fn from_json(text: &str) -> Result<Self> {
        let schema = Self::from_dump(text)?;
        match schema.contradictions.keys().next() {
            Some(name) => malformed("the versions are not those of \"Description\"".into())
                .map_err(|error| error.in_field(name.as_str())),
            None => Ok(schema),
        }
    }

    /// As for [`from_json`](Self::from_json), but a section may state other versions than its description:
    /// [`check_schemas`](crate::compat::check_schemas) then gives no verdict on that section, and compares the others.
    ///
    /// # Errors
    /// As for [`from_json`](Self::from_json).
    pub fn from_dump(text: &str) -> Result<Self> {
        if text.len() > MAX_TEXT {
            return malformed(format!("a schema of {} bytes is too long, at most {MAX_TEXT} are read", text.len()));
        }
        let root: Value = serde_json::from_str(text)
            .map_err(|error| Error::new(ErrorKind::Malformed, format!("the schema is no JSON: {error}")))?;
        let mut schema = Self::default();
        for (key, value) in object(&root)? {
            schema.read_entry(key, value).map_err(|error| error.in_field(key.as_str()))?;
        }
        // A later section in the text may have the name.
        for (key, value) in object(&root)? {
            schema.read_aliases(key, value).map_err(|error| error.in_field(key.as_str()))?;
        }
        Ok(schema)
    }

    fn read_entry(&mut self, key: &str, value: &Value) -> Result<()> {
        let entry = object(value)?;
        if text(entry, "Name")? != key && key != MACHINE {
            return malformed("\"Name\" is not the key".into());
        }
        if key == MACHINE {
            only(entry, &["Name"])?;
            self.machine = Some(text(entry, "Name")?.to_owned());
            return Ok(());
        }
        only(entry, &["Name", "version_id", "minimum_version_id", "required", ALIASES, "Description"])?;
        let section = inside("Description", entry, |value| description(value, 0))?;
        let versions = (version(entry, "version_id")?, version(entry, "minimum_version_id")?);
        if versions != (section.version, section.minimum_version) {
            self.contradictions.insert(key.to_owned(), versions);
        }
        match entry.get("required").map(Value::as_bool) {
            None | Some(Some(false)) => {}
            Some(Some(true)) => self.require(key),
            Some(None) => return wrong("required", "true or false"),
        }
        self.sections.push((key.to_owned(), section));
        Ok(())
    }

    fn read_aliases(&mut self, key: &str, value: &Value) -> Result<()> {
        let aliases = list(object(value)?, ALIASES, |name| match name.as_str() {
            Some(name) => Ok(name.to_owned()),
            None => malformed("a name expected".into()),
        })?;
        let mut aliases = aliases.into_iter();
        aliases.try_for_each(|older| self.add_alias(key, &older)).or_else(|error| malformed(error.message().to_owned()))
    }
}

fn description(value: &Value, depth: usize) -> Result<Description> {
    if depth > MAX_DEPTH {
        return malformed(format!("more than {MAX_DEPTH} descriptions inside one another"));
    }
    let of = object(value)?;
    only(of, &["name", "version_id", "minimum_version_id", "hooks", "Fields", "Subsections"])?;
    let fields = list(of, "Fields", |value| field(value, depth))?;
    let subsections = list(of, "Subsections", |value| description(value, depth + 1))?;
    let (newest, oldest) = (version(of, "version_id")?, version(of, "minimum_version_id")?);
    let hooks = match of.contains_key("hooks") {
        true => Some(list(of, "hooks", hook)?.into()),
        false => None,
    };
    let (name, fields, subsections) = (text(of, "name")?.into(), fields.into(), subsections.into());
    Ok(Description::with_hooks(name, newest, oldest, fields, subsections, hooks))
}

fn hook(value: &Value) -> Result<MaybeStatic<str>> {
    value.as_str().map_or_else(|| malformed("a string expected".into()), |hook| Ok(hook.into()))
}

fn field(value: &Value, depth: usize) -> Result<Field> {
    let of = object(value)?;
    let known = ["field", "version_id", "field_exists", "exists", "tag", "unframed", "count", "conversion"];
    only(of, &[&known[..], KIND].concat())?;
    let name = text(of, "field")?;
    let since = version(of, "version_id")?;
    let presence = match need(of, "field_exists")?.as_bool() {
        Some(true) => decided(of)?,
        Some(false) => Presence::Since(since),
        None => return wrong("field_exists", "true or false"),
    };
    // QEMU's name for ignored bytes (`VMSTATE_UNUSED`).
    let kind = match name == "unused" && !of.contains_key("type") && !of.contains_key("Description") {
        true => repeated(of, Kind::Unused(number(of, "size")?))?,
        false => kind(of, depth)?,
    };
    let count = if of.contains_key("count") { Some(inside("count", of, count)?) } else { None };
    let conversion = if of.contains_key("conversion") { Some(text(of, "conversion")?.into()) } else { None };
    let is_unframed = flag(of, "unframed")?;
    Ok(Field { count, conversion, is_unframed, ..Field::new(name.into(), kind, presence) })
}

/// Parses the condition under which a field is present.
fn decided(of: &Object) -> Result<Presence> {
    match (of.get("exists"), of.get("tag")) {
        (Some(_), Some(_)) => malformed("\"exists\" does not go with \"tag\"".into()),
        (_, Some(value)) => {
            number_of(value).map_or_else(|| wrong("tag", "a number"), |number| Ok(Presence::Tag(number)))
        }
        (Some(_), None) => Ok(Presence::If(text(of, "exists")?.into())),
        (None, None) => Ok(Presence::If("".into())),
    }
}

fn count(value: &Value) -> Result<Count> {
    let of = object(value)?;
    only(of, &["length", "configuration", "factor", "most", "room"])?;
    let length = match (of.contains_key("length"), of.contains_key("configuration")) {
        (true, true) => return malformed("\"length\" does not go with \"configuration\"".into()),
        (true, _) => Some(Length::Field(text(of, "length")?.into())),
        (_, true) => Some(Length::Machine(text(of, "configuration")?.into())),
        _ => None,
    };
    let factor = if of.contains_key("factor") { number(of, "factor")? } else { 1 };
    Ok(Count::new(length, factor, number(of, "most")?, flag(of, "room")?))
}

/// Parses a flag; false if the key is missing.
fn flag(of: &Object, key: &str) -> Result<bool> {
    match of.get(key).map(Value::as_bool) {
        None => Ok(false),
        Some(Some(flag)) => Ok(flag),
        Some(None) => wrong(key, "true or false"),
    }
}

/// The keys of a KIND.
const KIND: &[&str] = &[
    "num",
    "size",
    "type",
    "custom",
    "limit",
    "bits",
    "dimensions",
    "struct_version",
    "Description",
    "key",
    "element",
];

fn kind(of: &Object, depth: usize) -> Result<Kind> {
    let element = match (of.contains_key("type"), of.contains_key("Description")) {
        (true, _) => element(of, text(of, "type")?, number(of, "size")?, depth)?,
        (false, true) => nested(of, depth)?,
        (false, false) => Kind::Custom(format!("{OPAQUE}{}", number(of, "size")?).as_str().into()),
    };
    repeated(of, element)
}

/// Wraps `kind` in the arrays that `num` and `dimensions` state.
fn repeated(of: &Object, mut kind: Kind) -> Result<Kind> {
    for dimension in dimensions(of)?.into_iter().rev() {
        kind = match dimension {
            Some(count) => Kind::Array(MaybeStatic::from(kind), count),
            None => Kind::CountedArray(MaybeStatic::from(kind)),
        };
    }
    Ok(kind)
}

fn element(of: &Object, name: &str, size: usize, depth: usize) -> Result<Kind> {
    let (kind, bytes) = match name {
        "bool" => (Kind::Bool, 1),
        "uint8" => (Kind::Unsigned(1), 1),
        "uint16" => (Kind::Unsigned(2), 2),
        "uint32" => (Kind::Unsigned(4), 4),
        "uint64" => (Kind::Unsigned(8), 8),
        "int8" => (Kind::Signed(1), 1),
        "int16" => (Kind::Signed(2), 2),
        "int32" => (Kind::Signed(4), 4),
        "int64" => (Kind::Signed(8), 8),
        "timer" => (Kind::Timer, 8),
        "double" => (Kind::Double, 8),
        "bitmap" => {
            let bits = number(of, "bits")?;
            (Kind::Bitmap(bits), bits.div_ceil(64).saturating_mul(8))
        }
        "counted_bitmap" => (Kind::CountedBitmap, 0),
        "buffer" => (Kind::Buffer(size), size),
        "unused_buffer" => (Kind::Unused(size), size),
        "counted_buffer" => (Kind::CountedBuffer, 0),
        "check" => (Kind::Check, 0),
        "custom" => (Kind::Custom(text(of, "custom")?.into()), 0),
        "struct" => (nested(of, depth)?, size),
        "temporary" => {
            let nested = inside("Description", of, |value| description(value, depth + 1))?;
            (Kind::Temporary(nested.into()), 0)
        }
        "nullable" => (Kind::Nullable(alone("element", of, depth)?), 0),
        "list" => (Kind::List(alone("element", of, depth)?), 0),
        "map" => (Kind::Map(alone("key", of, depth)?, alone("element", of, depth)?), 0),
        _ => return malformed(format!("type {name:?} does not exist")),
    };
    if bytes != size {
        return malformed(format!("a {name} has {bytes} bytes, \"size\" says {size}"));
    }
    match (of.get("limit"), &kind) {
        (None, _) => Ok(kind),
        (Some(value), Kind::Unsigned(_) | Kind::Signed(_)) => Ok(Kind::Limited(kind.into(), limit(value)?)),
        (Some(_), _) => malformed(format!("a {name} has no \"limit\"")),
    }
}

/// Parses an element of a list or a map.
fn alone(key: &str, of: &Object, depth: usize) -> Result<MaybeStatic<Kind>> {
    inside(key, of, |value| {
        let of = object(value)?;
        only(of, KIND)?;
        match depth {
            MAX_DEPTH.. => malformed(format!("more than {MAX_DEPTH} descriptions inside one another")),
            _ => Ok(kind(of, depth + 1)?.into()),
        }
    })
}

fn number_of(value: &Value) -> Option<i128> {
    value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from))
}

fn limit(value: &Value) -> Result<Limit> {
    let limit = match value {
        Value::String(word) => match word.as_str() {
            EQUAL => Some(Limit::Equal),
            AT_MOST_CURRENT => Some(Limit::AtMostCurrent),
            NOT_ZERO => Some(Limit::NotZero),
            SCALAR => Some(Limit::Scalar),
            _ => None,
        },
        Value::Array(values) => {
            values.iter().map(number_of).collect::<Option<Vec<_>>>().map(|values| Limit::OneOf(values.into()))
        }
        Value::Object(of) if of.len() == 2 => {
            let (first, last) = (of.get(FIRST).and_then(number_of), of.get(LAST).and_then(number_of));
            first.zip(last).map(|(first, last)| Limit::Within(first, last))
        }
        _ => None,
    };
    let expected =
        "\"equal\", \"at_most_current\", \"not_zero\", \"scalar\", a list of numbers, or {\"first\", \"last\"}";
    limit.map_or_else(|| wrong("limit", expected), Ok)
}

fn nested(of: &Object, depth: usize) -> Result<Kind> {
    let nested = inside("Description", of, |value| description(value, depth + 1))?;
    Ok(match of.contains_key("struct_version") {
        true => Kind::StructAt(nested.into(), version(of, "struct_version")?),
        false => Kind::Struct(nested.into()),
    })
}

/// Parses the lengths of an array, outermost first; QEMU states one number for all dimensions.
fn dimensions(of: &Object) -> Result<Vec<Option<usize>>> {
    let total = if of.contains_key("num") { Some(number(of, "num")?) } else { None };
    let Some(value) = of.get("dimensions") else { return Ok(total.map(Some).into_iter().collect()) };
    let wrong = || wrong("dimensions", "a list of 1 to 8 numbers or nulls");
    let Some(list) = value.as_array().filter(|list| (1..=MAX_DIMENSIONS).contains(&list.len())) else { return wrong() };
    let mut dimensions = Vec::new();
    for value in list {
        match value.as_u64().map(usize::try_from) {
            Some(Ok(count)) => dimensions.push(Some(count)),
            None if value.is_null() => dimensions.push(None),
            _ => return wrong(),
        }
    }
    let product = dimensions.iter().try_fold(1_usize, |product, dimension| Some(product.saturating_mul((*dimension)?)));
    match product == total {
        true => Ok(dimensions),
        false => malformed("\"num\" is not the product of \"dimensions\"".into()),
    }
}

fn object(value: &Value) -> Result<&Object> {
    value.as_object().ok_or_else(|| Error::new(ErrorKind::Malformed, "an object {…} expected"))
}

/// Refuses unknown keys: they could change the meaning of the others.
fn only(of: &Object, known: &[&str]) -> Result<()> {
    match of.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => malformed(format!("key {key:?} is not known")),
        None => Ok(()),
    }
}

fn need<'a>(of: &'a Object, key: &str) -> Result<&'a Value> {
    of.get(key).ok_or_else(|| Error::new(ErrorKind::Malformed, format!("key {key:?} is missing")))
}

fn text<'a>(of: &'a Object, key: &str) -> Result<&'a str> {
    need(of, key)?.as_str().map_or_else(|| wrong(key, "a string"), Ok)
}

fn number(of: &Object, key: &str) -> Result<usize> {
    let number = need(of, key)?.as_u64().and_then(|number| usize::try_from(number).ok());
    number.map_or_else(|| wrong(key, "a number of elements or bytes"), Ok)
}

fn version(of: &Object, key: &str) -> Result<u32> {
    let version = need(of, key)?.as_u64().and_then(|version| u32::try_from(version).ok());
    version.map_or_else(|| wrong(key, "a version from 0 to 4294967295"), Ok)
}

fn inside<T>(key: &str, of: &Object, read: impl Fn(&Value) -> Result<T>) -> Result<T> {
    read(need(of, key)?).map_err(|error| error.in_field(key))
}

fn list<T>(of: &Object, key: &str, read: impl Fn(&Value) -> Result<T>) -> Result<Vec<T>> {
    let Some(value) = of.get(key) else { return Ok(Vec::new()) };
    let Some(values) = value.as_array() else { return wrong(key, "a list") };
    let element = |(index, value)| read(value).map_err(|error| error.in_element(index).in_field(key));
    values.iter().enumerate().map(element).collect()
}

fn wrong<T>(key: &str, expected: &str) -> Result<T> {
    malformed(format!("{key:?} has to be {expected}"))
}

fn malformed<T>(message: String) -> Result<T> {
    Err(Error::new(ErrorKind::Malformed, message))
}
