//! A dump as JSON: offsets and sizes in bytes, values by name.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::{Dump, Entry, Part, SectionDump};
use crate::error::Error;

impl Dump {
    fn to_json(&self) -> Value {
        let entries: Vec<Value> = self.entries.iter().map(Entry::to_json).collect();
        let blocks: Vec<Value> = self
            .ram
            .blocks()
            .iter()
            .map(|block| {
                json!({"name": block.name, "length": block.len, "address": block.address,
                "normal": block.pages.normal, "zero": block.pages.zero})
            })
            .collect();
        json!({
            "machine": self.configuration.as_ref().map(|configuration| &configuration.machine),
            "capabilities": self.configuration.as_ref().map(|configuration| &configuration.capabilities),
            "entries": entries,
            "ram": blocks,
            "damage": self.damage.as_ref().map(place),
        })
    }
}

/// The whole dump.
impl Serialize for Dump {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

fn place(error: &Error) -> Value {
    json!({"offset": error.offset(), "section": error.section(), "field": error.path(), "message": error.message()})
}

impl Entry {
    fn to_json(&self) -> Value {
        match self {
            Self::Command { offset, command } => {
                json!({"kind": "command", "offset": offset, "command": format!("{command:?}")})
            }
            Self::Section(section) => section.to_json(),
            Self::Eof { offset } => json!({"kind": "eof", "offset": offset}),
        }
    }
}

/// `kind`, `offset`, and the entry's own fields.
impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

impl SectionDump {
    fn to_json(&self) -> Value {
        let mut object = Map::new();
        object.insert("kind".into(), self.part.name().into());
        object.insert("offset".into(), self.offset.into());
        object.insert("id".into(), self.header.id.into());
        object.insert("name".into(), (*self.header.idstr).into());
        object.insert("instance".into(), self.header.instance.into());
        object.insert("version".into(), self.header.version.into());
        object.insert("body".into(), self.body.into());
        object.insert("size".into(), self.size.into());
        if let Some(fields) = &self.fields {
            object.insert("fields".into(), fields.to_json());
        }
        if let Some(error) = &self.unread {
            object.insert("unread".into(), place(error));
        }
        object.into()
    }
}

/// `fields` is present if stream or schema describe the section, `unread` if the schema does not reach the section's end.
impl Serialize for SectionDump {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

impl Part {
    /// `start`, `part`, `end` or `full`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Part => "part",
            Self::End => "end",
            Self::Full => "full",
        }
    }
}
