//! The descriptions of a stream's sections: from the self-description, which is at the end of the stream but needed from the
//! beginning; or from a schema. Also the search for the end of sections that have neither.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::rc::Rc;

use serde_json::Value as Json;

use crate::error::{Error, ErrorKind, Result};
use crate::schema::Description;
use crate::schema::json::Schema;
use crate::schema::program::Program;
use crate::stream::{MAX_DESCRIPTION, SectionHeader};

/// The descriptions of all sections.
pub(super) struct Descriptions<'a> {
    pub(super) stream: SelfDescribed<'a>,
    pub(super) schema: BySchema<'a>,
}

/// Programs for the sections of a schema, each compiled when it is first needed.
pub(super) struct BySchema<'a> {
    programs: Vec<(&'a Description, OnceCell<Rc<Program<'a>>>)>,
    /// Indices in `programs`, by the section's name and by the description's. If two share a name, the first one.
    by_name: HashMap<&'a str, usize>,
    by_description: HashMap<&'a str, usize>,
}

impl<'a> BySchema<'a> {
    /// Collects the descriptions of all sections of `schema`.
    pub(super) fn new(schema: &'a Schema) -> Self {
        let all = || schema.sections().iter().enumerate().rev();
        Self {
            programs: schema.sections().iter().map(|(_, description)| (description, OnceCell::new())).collect(),
            by_name: all().map(|(index, (name, _))| (name.as_str(), index)).collect(),
            by_description: all().map(|(index, (_, description))| (&*description.name, index)).collect(),
        }
    }

    /// The schema's program for a section, by the section's name or by the description's. QEMU's dumps list devices by type,
    /// while its streams put the device's path before the name (`vmstate_register_with_alias_id`).
    pub(super) fn of(&self, header: &SectionHeader<'_>) -> Option<&Program<'a>> {
        let idstr: &str = &header.idstr;
        let last = idstr.rsplit_once('/').map_or(idstr, |(_, name)| name);
        let described = |name: &str| self.by_description.get(name);
        let index = self.by_name.get(idstr).or_else(|| described(idstr)).or_else(|| described(last))?;
        let (description, program) = self.programs.get(*index)?;
        Some(program.get_or_init(|| Program::of(description)))
    }
}

/// Programs for the sections of a stream, by name and instance.
#[derive(Default)]
pub(super) struct SelfDescribed<'a> {
    devices: HashMap<&'a str, HashMap<u32, Device<'a>>>,
}

/// A device in the self-description.
struct Device<'a> {
    /// `None` for devices that QEMU saves without a description (`save_state`).
    version: Option<&'a Json>,
    program: Program<'a>,
}

/// Finds the self-description of a stream. Searches from the end for EOF (`00`), `06`, and a length that reaches the last byte,
/// followed by a JSON object with a list of devices.
pub(super) fn find(stream: &[u8]) -> Option<Json> {
    let nearest = stream.len().saturating_sub(MAX_DESCRIPTION as usize + 6);
    let tail = stream.get(nearest..)?;
    tail.windows(7).enumerate().rev().find_map(|(at, window)| {
        let [0x00, 0x06, length @ .., b'{'] = window else { return None };
        let text = tail.get(at + 6..)?;
        let claimed = u32::from_be_bytes(length.try_into().ok()?);
        if usize::try_from(claimed) != Ok(text.len()) {
            return None;
        }
        let description: Json = serde_json::from_slice(text).ok()?;
        description.get("devices")?.is_array().then_some(description)
    })
}

impl<'a> SelfDescribed<'a> {
    /// Indexes the devices that [`find`] returned.
    pub(super) fn new(description: &'a Json) -> Self {
        let listed = description.get("devices").and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();
        let mut devices: HashMap<&str, HashMap<u32, Device<'a>>> = HashMap::new();
        for device in listed {
            let name = device.get("name").and_then(Json::as_str);
            let instance = device.get("instance_id").and_then(Json::as_u64).and_then(|id| u32::try_from(id).ok());
            if let (Some(name), Some(instance)) = (name, instance) {
                let described = Device { version: device.get("version"), program: Program::described(device) };
                devices.entry(name).or_default().insert(instance, described);
            }
        }
        Self { devices }
    }

    /// The program for a section.
    pub(super) fn of(&self, header: &SectionHeader<'_>) -> Result<Option<&Program<'a>>> {
        let instances = self.devices.get(&*header.idstr);
        let Some(device) = instances.and_then(|instances| instances.get(&header.instance)) else { return Ok(None) };
        match device.version {
            Some(version) if version.as_u64() != Some(header.version.into()) => {
                let message = format!("the section has version {}, the description {version}", header.version);
                Err(Error::new(ErrorKind::Malformed, message))
            }
            _ => Ok(Some(&device.program)),
        }
    }
}

/// Length of a body of unknown layout: up to the footer, `7e` and the section's number, followed by a valid element of the
/// stream. Bytes of the body that look the same are mistaken for the footer.
pub(super) fn undescribed_body(rest: &[u8], id: u32) -> Option<usize> {
    let id = id.to_be_bytes();
    rest.windows(6).position(|window| matches!(window, [0x7e, found @ .., 0..=4 | 8] if found == id))
}
