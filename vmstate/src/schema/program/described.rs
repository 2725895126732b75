//! Compiles an entry of a stream's self-description into its program. The text is not trusted: an invalid entry becomes a step
//! that stops the reader, so that all before it can still be decoded.

use std::borrow::Cow;

use serde_json::Value;

use super::compile::ALWAYS;
use super::{Encoding, Form, Framing, Item, Meaning, Member, Nested, Program, Step};

impl<'a> Program<'a> {
    /// The program of the state that was sent: of an entry of `devices`, a `struct` or one of its `subsections`.
    pub(crate) fn described(by: &'a Value) -> Self {
        let fields = list(by, "fields").map(|fields| fields.iter().map(member));
        let subsections = list(by, "subsections").unwrap_or_default().iter().map(sent);
        let all = match fields {
            Some(fields) => steps(fields.chain(subsections)),
            None => vec![Step::Refuse(unusable("fields"))],
        };
        let name = by.get("vmsd_name").and_then(Value::as_str).unwrap_or_default();
        Self { name, oldest: 0, newest: 0, hooks: None, steps: all }
    }
}

/// The steps up to the first invalid one, which becomes a `Refuse`.
fn steps<'a>(all: impl Iterator<Item = Result<Step<'a>, String>>) -> Vec<Step<'a>> {
    let mut steps = Vec::new();
    for step in all {
        match step {
            Ok(step) => steps.push(step),
            Err(why) => {
                steps.push(Step::Refuse(why));
                break;
            }
        }
    }
    steps
}

fn sent(subsection: &Value) -> Result<Step<'_>, String> {
    text(subsection, "vmsd_name")?;
    let version = subsection.get("version").and_then(Value::as_u64).and_then(|version| u32::try_from(version).ok());
    Ok(Step::Sent(version, Program::described(subsection).into()))
}

fn member(field: &Value) -> Result<Step<'_>, String> {
    let name = text(field, "name")?;
    let type_name = text(field, "type")?;
    let name = match field.get("index").and_then(Value::as_u64) {
        Some(index) => Cow::Owned(format!("{name}[{index}]")),
        None => name.into(),
    };
    let element = element(field, type_name).unwrap_or_else(Encoding::Refuse);
    let encoding = match field.get("array_len").and_then(Value::as_u64) {
        Some(count) => Encoding::Repeat(Framing::Fixed(count), element.into()),
        None => element,
    };
    Ok(Step::Member(Member {
        name,
        type_name: type_name.into(),
        presence: &ALWAYS,
        count: None,
        conversion: None,
        encoding,
    }))
}

fn element<'a>(field: &'a Value, type_name: &str) -> Result<Encoding<'a>, String> {
    let size = field.get("size").and_then(Value::as_u64).ok_or_else(|| unusable("size"))?;
    if let Some(nested) = field.get("struct") {
        let program = Program::described(nested).into();
        return Ok(Encoding::Struct(Nested { program, version: 0, form: Form::Object, size: Some(size) }));
    }
    // After a space comes the value's limit: `uint32 equal`.
    let (meaning, width) = match type_name.split(' ').next().unwrap_or_default() {
        "bool" if type_name == "bool" => (Meaning::Bool, 1),
        "bool" | "uint8" => (Meaning::Unsigned, 1),
        "uint16" => (Meaning::Unsigned, 2),
        "uint32" => (Meaning::Unsigned, 4),
        "uint64" => (Meaning::Unsigned, 8),
        "int8" => (Meaning::Signed, 1),
        "int16" => (Meaning::Signed, 2),
        "int32" => (Meaning::Signed, 4),
        "int64" => (Meaning::Signed, 8),
        "timer" => (Meaning::Timer, 8),
        _ => (Meaning::Raw, size),
    };
    match width == size {
        true => Ok(Encoding::Item(Item { meaning, size: Some(size), limit: None })),
        false => Err(format!("a {type_name} has {width} bytes, the description says {size}")),
    }
}

fn list<'a>(of: &'a Value, key: &str) -> Option<&'a [Value]> {
    of.get(key)?.as_array().map(Vec::as_slice)
}

fn text<'a>(of: &'a Value, key: &str) -> Result<&'a str, String> {
    of.get(key).and_then(Value::as_str).ok_or_else(|| unusable(key))
}

fn unusable(key: &str) -> String {
    format!("the self-description has no usable {key:?} for what is here")
}
