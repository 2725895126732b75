//! Descriptions as JSON, in the shape of QEMU's `-dump-vmstate` (migration/savevm.c, `dump_vmstate_json_to_file`).
//!
//! ```text
//! { "vmschkmachine": {"Name": MACHINE},
//!   SECTION: {"Name": SECTION, "version_id": N, "minimum_version_id": N[, "required": true]
//!             [, "aliases": [NAME …]], "Description": DESCRIPTION}, … }
//! DESCRIPTION  {"name", "version_id", "minimum_version_id"[, "hooks": [TEXT …]][, "Fields": […]]
//!              [, "Subsections": [DESCRIPTION …]]}
//! FIELD        {"field", "version_id", "field_exists", KIND[, "exists" | "tag"][, "unframed"][, "count": COUNT][, "conversion"]}
//! COUNT        {["length" | "configuration",] ["factor",] "most"[, "room"]}
//! KIND         [ "num",] "size"[, "type"][, "dimensions"]
//!              [, "custom" | "limit" | "bits" | ["struct_version",] "Description" | ["key": {KIND},] "element": {KIND}]
//! ```
//!
//! Of a KIND, QEMU writes only `num`, `size` and `Description`, and never `exists`, `required` or `aliases`: its dumps do not
//! define the encoding of a field. Such a field is read as [`Kind::Custom`](super::Kind::Custom) called `size N`, since nothing
//! more is known, and is written in the same way.
//!
//! | key | meaning |
//! | --- | --- |
//! | `required` of a section | a load is refused if the section is missing |
//! | `aliases` of a section | names in earlier releases under which the section still loads |
//! | `version_id` of a field | first version that has the field |
//! | `num` | elements, if the number is fixed |
//! | `size` | bytes of one element on the wire, 0 if they vary; QEMU: in the host's memory |
//! | `type` | `bool`, `uint8` to `uint64`, `int8` to `int64`, `timer`, `double`, `buffer`, `counted_buffer`, `unused_buffer`, `bitmap`, `counted_bitmap`, `struct`, `nullable`, `list`, `map`, `custom`, `check` |
//! | `custom` | type name of a hand-written codec |
//! | `limit` | values of an integer that a reader accepts: `equal`, `at_most_current`, `not_zero`, `scalar`, a list, or `{"first", "last"}` |
//! | `bits` | of a bitmap |
//! | `struct_version` | version of the nested struct, if it is not its newest |
//! | `key`, `element` | contents of a map, a list or a pointer |
//! | `dimensions` | of an array, outermost first; `null` if the number varies |
//! | `exists` | name of the predicate, if `field_exists` |
//! | `tag` | if `field_exists`: the field is present if the description's first field has this number |
//! | `hooks` | the functions of the device that a load calls, as its attributes name them; without this key, neither hooks nor counts are known |
//! | `conversion` | the conversion from the bytes to the field's value, as its attribute names it |
//! | `count` | of an array that a length counts, a list or a map: at most `most` elements are sent or accepted, fewer if the machine's memory has no `room`; their number is `factor` (1) times the field `length`, or times the machine's `configuration` |
//! | `unframed` | the layout is kept although a reader may mistake the following bytes for a subsection |
//!
//! Where `field_exists` is true, QEMU ignores the field's version (`vmstate_field_exists`), and this library does the same.

mod read;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use super::Description;
use crate::error::{Error, ErrorKind, Result};

pub(crate) use write::opaque_size;

/// The key that names the machine among the sections.
const MACHINE: &str = "vmschkmachine";

/// The schema of a whole machine: the descriptions of its sections by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Schema {
    machine: Option<String>,
    sections: Vec<(String, Description)>,
    required: BTreeSet<String>,
    /// Older names, each with the present name of the section.
    aliases: BTreeMap<String, String>,
    /// Newest and oldest version stated for a section whose description states others.
    contradictions: BTreeMap<String, (u32, u32)>,
}

impl Schema {
    /// Creates a schema without sections, for a machine type or without one.
    pub fn new(machine: Option<&str>) -> Self {
        Self { machine: machine.map(str::to_owned), ..Self::default() }
    }

    /// The machine type, if the schema names one.
    pub fn machine(&self) -> Option<&str> {
        self.machine.as_deref()
    }

    /// Names and descriptions, in the order in which they were added.
    pub fn sections(&self) -> &[(String, Description)] {
        &self.sections
    }

    /// The description of the section called `name`.
    pub fn section(&self, name: &str) -> Option<&Description> {
        self.sections.iter().find(|(known, _)| known == name).map(|(_, description)| description)
    }

    /// Declares that a load is refused if the section called `name` is missing.
    pub fn require(&mut self, name: &str) {
        self.required.insert(name.to_owned());
    }

    /// True if a load is refused without the section called `name`. Never true for a dump of QEMU.
    pub fn requires(&self, name: &str) -> bool {
        self.required.contains(name)
    }

    /// Names in earlier releases under which the section called `name` still loads.
    pub fn aliases<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s str> {
        self.aliases.iter().filter(move |(_, section)| *section == name).map(|(older, _)| older.as_str())
    }

    /// Declares that the section called `name` also loads under `older`.
    ///
    /// # Errors
    /// `Misuse` if there is no such section, or if `older` is the name or an older name of another section.
    pub fn add_alias(&mut self, name: &str, older: &str) -> Result<()> {
        let misuse = |message: String| Err(Error::new(ErrorKind::Misuse, message).in_field(name));
        match self.aliases.get(older) {
            _ if self.section(name).is_none() => misuse("no section has this name".to_owned()),
            _ if self.section(older).is_some() => misuse(format!("its older name {older:?} is another section's name")),
            Some(known) if known != name => misuse(format!("its older name {older:?} is also that of {known}")),
            _ => {
                self.aliases.insert(older.to_owned(), name.to_owned());
                Ok(())
            }
        }
    }

    /// The newest and the oldest version stated for the section called `name`, if its description states others.
    pub(crate) fn contradiction(&self, name: &str) -> Option<(u32, u32)> {
        self.contradictions.get(name).copied()
    }

    /// Adds a section. Several devices of one kind share a name and a description, which is one entry.
    ///
    /// # Errors
    /// `Misuse` if the name already has another description, is an older name of another section, or is the key of the machine
    /// type.
    pub fn add(&mut self, name: &str, description: &Description) -> Result<()> {
        let misuse = |message: &str| Err(Error::new(ErrorKind::Misuse, message).in_field(name));
        match self.section(name) {
            _ if name == MACHINE => misuse("this name is the key of the machine type"),
            Some(known) if known == description => Ok(()),
            Some(_) => misuse("two sections of this name have different descriptions"),
            None if self.aliases.contains_key(name) => misuse("this is an older name of another section"),
            None => {
                self.sections.push((name.to_owned(), description.clone()));
                Ok(())
            }
        }
    }
}
