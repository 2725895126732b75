//! Formats a dump for people, with one line for each section and field, its offset first; and as JSON for programs. Names from
//! the file are escaped in both, so that they cannot control a terminal.

use std::fmt::{Display, Write};

use serde::Serialize;
use vmstate::dump::{Dump, Entry, Part, SectionDump};
use vmstate::error::{Error, ErrorKind, Printable};
use vmstate::inspect::{Fields, Subsection, Value};
use vmstate::raw::hex;

/// Number of bytes of a value that are shown on its line.
const SHOWN: usize = 16;

/// The text, while it is made from a stream.
pub(crate) struct Text<'a> {
    out: String,
    stream: &'a [u8],
    hex: bool,
}

impl<'a> Text<'a> {
    pub(crate) fn new(stream: &'a [u8], hex: bool) -> Self {
        Self { out: String::new(), stream, hex }
    }

    pub(crate) fn into_string(self) -> String {
        self.out
    }

    pub(crate) fn dump(&mut self, dump: &Dump) {
        if let Some(configuration) = &dump.configuration {
            self.line(0, "header QEVM, version 3");
            self.line(8, &format!("configuration of machine {}", configuration.machine));
            for capability in &configuration.capabilities {
                self.line(8, &format!("  capability {capability}"));
            }
        }
        for entry in &dump.entries {
            match entry {
                Entry::Command { offset, command } => self.line(*offset, &format!("command {command:?}")),
                Entry::Section(section) => self.section(section),
                Entry::Eof { offset } => self.line(*offset, "end of sections"),
            }
        }
        self.ram(dump);
        self.damage(dump);
    }

    pub(crate) fn section(&mut self, section: &SectionDump) {
        let header = &section.header;
        let name = &header.idstr;
        let part = section.part.name();
        let version = match section.part {
            Part::Start | Part::Full => format!(", version {}", header.version),
            Part::Part | Part::End => String::new(),
        };
        let head = format!("section {name}/{}, {part}{version}, {} bytes", header.instance, section.size);
        self.line(section.offset, &head);
        match &section.fields {
            Some(fields) => self.fields(fields, 1),
            None if matches!(section.part, Part::Full) => self.line(section.body, "  not described"),
            None => {}
        }
        if let Some(error) = &section.unread {
            self.unread(section, error);
        }
        // A section in parts is RAM, whose pages are not worth a hex dump.
        if self.hex && matches!(section.part, Part::Full) {
            let bytes = self.bytes(section.body, section.body + section.size);
            for (offset, line) in (section.body..).step_by(SHOWN).zip(bytes.chunks(SHOWN)) {
                self.line(offset, &format!("  | {}", hex(line)));
            }
        }
    }

    /// Shows where reading by the schema stopped, and the bytes that remain.
    fn unread(&mut self, section: &SectionDump, error: &Error) {
        let offset = error.offset().unwrap_or(section.body);
        let path = error.path();
        let place = if path.is_empty() { String::new() } else { format!("{path}: ") };
        // If the schema does not fit, the values read before the fault may be wrong, too.
        let (what, from) = match error.kind() {
            ErrorKind::Incompatible => ("not read from here", offset),
            _ => ("the schema does not fit", section.body),
        };
        self.line(offset, &format!("  {what}: {place}{}", error.message()));
        let bytes = Value::Bytes(self.bytes(from, section.body + section.size).to_vec());
        self.line(from, &format!("  bytes: {}", shown(&bytes)));
    }

    fn bytes(&self, start: u64, end: u64) -> &'a [u8] {
        let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
        range.and_then(|(start, end)| self.stream.get(start..end)).unwrap_or_default()
    }

    pub(crate) fn damage(&mut self, dump: &Dump) {
        if let Some(damage) = &dump.damage {
            put_line(&mut self.out, format_args!("damaged: {damage}"));
        }
    }

    fn fields(&mut self, fields: &Fields, level: usize) {
        let indent = "  ".repeat(level);
        for field in &fields.fields {
            let (name, kind) = (&field.name, &field.type_name);
            match &field.value {
                Value::Struct(nested) => {
                    self.line(field.offset, &format!("{indent}{name}: {kind} of {} bytes", field.size));
                    self.fields(nested, level + 1);
                }
                Value::Array(values) if values.iter().any(|value| matches!(value, Value::Struct(_))) => {
                    for (index, value) in values.iter().enumerate() {
                        self.line(
                            offset_of(value).unwrap_or(field.offset),
                            &format!("{indent}{name}[{index}]: {kind}"),
                        );
                        if let Value::Struct(nested) = value {
                            self.fields(nested, level + 1);
                        }
                    }
                }
                value => self.line(field.offset, &format!("{indent}{name}: {kind} = {}", shown(value))),
            }
        }
        for subsection in &fields.subsections {
            let Subsection { name, version, .. } = subsection;
            put_line(&mut self.out, format_args!("          {indent}subsection {name}, version {version}"));
            self.fields(&subsection.fields, level + 1);
        }
    }

    fn ram(&mut self, dump: &Dump) {
        for block in dump.ram.blocks() {
            let (normal, zero) = (block.pages.normal, block.pages.zero);
            let line = format_args!(
                "RAM block {}: {} bytes; {} pages sent, {normal} normal ({} bytes), {zero} zero",
                block.name,
                block.len,
                normal + zero,
                normal * vmstate::ram::PAGE_SIZE
            );
            put_line(&mut self.out, line);
        }
    }

    fn line(&mut self, offset: u64, text: &str) {
        put_line(&mut self.out, format_args!("{offset:08x}  {text}"));
    }
}

/// Appends one line of text, which may contain names from a file.
pub(crate) fn put_line(out: &mut String, line: impl Display) {
    let _ = writeln!(out, "{}", Printable(line));
}

/// JSON in ASCII without DEL. JSON's own syntax is ASCII, so every escaped character is inside of a string.
pub(crate) fn json(value: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(value).unwrap_or_else(|error| error.to_string());
    let mut out = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        match c {
            ' '..='~' | '\n' => out.push(c),
            _ => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}"))),
        }
    }
    out + "\n"
}

/// The offset of a struct's first field, if the struct has fields.
fn offset_of(value: &Value) -> Option<u64> {
    let Value::Struct(fields) = value else { return None };
    fields.fields.first().map(|field| field.offset)
}

/// A value on one line; only the beginning of a long one.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Bool(value) => value.to_string(),
        Value::Unsigned(value) if *value > 9 => format!("{value} ({value:#x})"),
        Value::Unsigned(value) => value.to_string(),
        Value::Signed(value) => value.to_string(),
        Value::Bytes(bytes) if bytes.len() > SHOWN => {
            format!("{}… ({} bytes)", hex(bytes.get(..SHOWN).unwrap_or_default()), bytes.len())
        }
        Value::Bytes(bytes) => hex(bytes),
        Value::Struct(_) => "struct".to_owned(),
        Value::Array(values) => {
            let all: Vec<String> = values.iter().take(SHOWN).map(shown).collect();
            let more = if values.len() > SHOWN { format!(", … ({} elements)", values.len()) } else { String::new() };
            format!("[{}{more}]", all.join(", "))
        }
    }
}
