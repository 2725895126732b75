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
//! QEMU has of a KIND only `num`, `size` and `Description`, and no `exists`, `required` or `aliases`: its dumps do not say what a
//! field's bytes are. Such a field reads as [`Kind::Custom`](super::Kind::Custom) called `size N`, since nothing more is known, and is written the same way.
//!
//! | key | meaning |
//! | --- | --- |
//! | `required` of a section | a load is refused if it does not come |
//! | `aliases` of a section | names of earlier releases under which it loads, too |
//! | `version_id` of a field | version from which it is there |
//! | `num` | elements, if the number is fixed |
//! | `size` | bytes of one element on the wire, 0 if they vary; QEMU: in the host's memory |
//! | `type` | `bool`, `uint8` to `uint64`, `int8` to `int64`, `timer`, `double`, `buffer`, `counted_buffer`, `unused_buffer`, `bitmap`, `counted_bitmap`, `struct`, `nullable`, `list`, `map`, `custom`, `check` |
//! | `custom` | type name of a hand-written codec |
//! | `limit` | values that a reader takes of an integer: `equal`, `at_most_current`, `not_zero`, `scalar`, a list, or `{"first", "last"}` |
//! | `bits` | of a bitmap |
//! | `struct_version` | version of the nested struct, if it is not its newest |
//! | `key`, `element` | what a map, a list or a pointer holds |
//! | `dimensions` | of an array, outermost first; `null` if a count says how many |
//! | `exists` | name of the predicate, if `field_exists` |
//! | `tag` | if `field_exists`: the field is there when the first one of its description is this number |
//! | `hooks` | what a load asks the device, as its attributes say it; without this key nothing is known of that, nor of counts |
//! | `conversion` | what makes the field's value of its bytes, as its attribute says it |
//! | `count` | of an array that a length counts, a list or a map: `most` elements are sent or taken, and fewer if the machine's memory has no `room`; there are `factor` (1) for each that the field `length` counts, or that the machine's `configuration` does |
//! | `unframed` | the layout is given although a reader may take what follows for a subsection |
//!
//! Where `field_exists` is true, QEMU ignores the field's version (`vmstate_field_exists`), and so does a reader here.

mod read;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use super::Description;
use crate::error::{Error, ErrorKind, Result};

pub(crate) use write::opaque_size;

/// The key that names the machine among the sections.
const MACHINE: &str = "vmschkmachine";

/// What a whole machine sends: its sections' descriptions by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Schema {
    machine: Option<String>,
    sections: Vec<(String, Description)>,
    required: BTreeSet<String>,
    /// Older names, each with the section that loads under it.
    aliases: BTreeMap<String, String>,
    /// Newest and oldest version that a section says, where its description says others.
    contradictions: BTreeMap<String, (u32, u32)>,
}

impl Schema {
    /// No sections yet, of a machine type or of none.
    pub fn new(machine: Option<&str>) -> Self {
        Self { machine: machine.map(str::to_owned), ..Self::default() }
    }

    /// The machine type, if it is named.
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

    /// Says that a load is refused if the section called `name` does not come.
    pub fn require(&mut self, name: &str) {
        self.required.insert(name.to_owned());
    }

    /// True if a load is refused without the section called `name`. QEMU's do without any.
    pub fn requires(&self, name: &str) -> bool {
        self.required.contains(name)
    }

    /// Names of earlier releases under which the section called `name` loads, too.
    pub fn aliases<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s str> {
        self.aliases.iter().filter(move |(_, section)| *section == name).map(|(older, _)| older.as_str())
    }

    /// Says that the section called `name` also loads under `older`.
    ///
    /// # Errors
    /// `Misuse` if there is no such section, or if `older` is the name or the older name of another one.
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

    /// The newest and the oldest version that the section called `name` says for itself, if its description says others.
    pub(crate) fn contradiction(&self, name: &str) -> Option<(u32, u32)> {
        self.contradictions.get(name).copied()
    }

    /// Adds a section. Several devices of one kind share a name and a description: that is one entry.
    ///
    /// # Errors
    /// `Misuse` if the name has another description already, is an older name of another section, or is the key of the
    /// machine type.
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
