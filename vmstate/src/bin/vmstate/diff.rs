//! `vmstate diff`: compares the values of two streams field by field; for RAM, the page counts.

use std::collections::BTreeMap;
use std::path::Path;

use vmstate::dump::{Dump, Part};
use vmstate::inspect::{Fields, Value};

use crate::text::{put_line, shown};
use crate::{Outcome, TaskResult, read};

/// The values to compare, each under its path.
type Values = BTreeMap<String, Value>;

pub(crate) fn run(old: &Path, new: &Path) -> TaskResult {
    let ((old_machine, old), (new_machine, new)) = (values(old)?, values(new)?);
    let mut out = String::new();
    if old_machine != new_machine {
        put_line(&mut out, format_args!("~ machine: {old_machine} → {new_machine}"));
    }
    for (path, value) in &old {
        match new.get(path) {
            None => put_line(&mut out, format_args!("- {path} = {}", shown(value))),
            Some(other) if other != value => {
                put_line(&mut out, format_args!("~ {path}: {} → {}", shown(value), shown(other)));
            }
            Some(_) => {}
        }
    }
    for (path, value) in new.iter().filter(|(path, _)| !old.contains_key(*path)) {
        put_line(&mut out, format_args!("+ {path} = {}", shown(value)));
    }
    let outcome = if out.is_empty() { Outcome::Fine } else { Outcome::Wrong };
    Ok((out, outcome))
}

/// The machine type and the values of a stream.
fn values(file: &Path) -> Result<(String, Values), String> {
    let stream = read(file)?;
    let dump = Dump::read(&stream);
    // A truncated stream would show differences that do not exist.
    if let Some(damage) = &dump.damage {
        return Err(format!("{}: damaged: {damage}", file.display()));
    }
    let mut values = Values::new();
    for section in dump.sections().filter(|section| section.part == Part::Full) {
        let path = format!("{}/{}", section.header.idstr, section.header.instance);
        values.insert(format!("{path} version"), Value::Unsigned(section.header.version.into()));
        match &section.fields {
            Some(fields) => flatten(fields, &path, &mut values),
            None => {
                let range = usize::try_from(section.body).ok().zip(usize::try_from(section.body + section.size).ok());
                let bytes = range.and_then(|(start, end)| stream.get(start..end)).unwrap_or_default();
                values.insert(path, Value::Bytes(bytes.to_vec()));
            }
        }
    }
    for block in dump.ram.blocks() {
        values.insert(format!("RAM {} length", block.name), Value::Unsigned(block.len));
        values.insert(format!("RAM {} normal pages", block.name), Value::Unsigned(block.pages.normal));
        values.insert(format!("RAM {} zero pages", block.name), Value::Unsigned(block.pages.zero));
    }
    let machine = dump.configuration.map(|configuration| configuration.machine).unwrap_or_default();
    Ok((machine, values))
}

fn flatten(fields: &Fields, path: &str, into: &mut Values) {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for field in &fields.fields {
        let times = seen.entry(&field.name).or_default();
        let again = if *times > 0 { format!("#{times}") } else { String::new() };
        *times += 1;
        flatten_value(&field.value, format!("{path} › {}{again}", field.name), into);
    }
    for subsection in &fields.subsections {
        let path = format!("{path} › {}", subsection.name);
        into.insert(format!("{path} version"), Value::Unsigned(subsection.version.into()));
        flatten(&subsection.fields, &path, into);
    }
}

fn flatten_value(value: &Value, path: String, into: &mut Values) {
    match value {
        Value::Struct(fields) => flatten(fields, &path, into),
        Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                flatten_value(value, format!("{path}[{index}]"), into);
            }
        }
        value => drop(into.insert(path, value.clone())),
    }
}
