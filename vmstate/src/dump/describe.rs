//! The self-description of a stream, found from its end, since it is needed before the walk gets there; a schema in its
//! place; and where sections end that have neither.

use std::collections::HashMap;

use serde_json::Value as Json;

use crate::error::{Error, ErrorKind, Result};
use crate::schema::Description;
use crate::schema::json::Schema;
use crate::stream::{MAX_DESCRIPTION, SectionHeader};

/// All that is known of what sections hold.
pub(super) struct Described<'a> {
    pub(super) stream: SelfDescribed,
    pub(super) schema: &'a Schema,
}

impl Described<'_> {
    /// The description that a schema has for a section: by its name, or by that of the description. QEMU's dumps list
    /// devices by type, and its streams put the device's path before the name (`vmstate_register_with_alias_id`).
    pub(super) fn in_schema(&self, header: &SectionHeader<'_>) -> Option<&Description> {
        let idstr: &str = &header.idstr;
        let last = idstr.rsplit_once('/').map_or(idstr, |(_, name)| name);
        let named = |name: &str| {
            let mut sections = self.schema.sections().iter();
            sections.find(|(_, description)| *description.name == *name).map(|(_, description)| description)
        };
        self.schema.section(idstr).or_else(|| named(idstr)).or_else(|| named(last))
    }
}

/// Descriptions by name and instance.
#[derive(Debug, Default)]
pub(super) struct SelfDescribed {
    devices: HashMap<(String, u32), Json>,
}

impl SelfDescribed {
    /// Looks from the end for EOF (`00`), `06`, and a length that reaches to the last byte, before an object in JSON.
    pub(super) fn find(stream: &[u8]) -> Option<Self> {
        let nearest = stream.len().saturating_sub(MAX_DESCRIPTION as usize + 6);
        let tail = stream.get(nearest..)?;
        tail.windows(7).enumerate().rev().find_map(|(at, window)| {
            let [0x00, 0x06, length @ .., b'{'] = window else { return None };
            let text = tail.get(at + 6..)?;
            let claimed = u32::from_be_bytes(length.try_into().ok()?);
            if usize::try_from(claimed) != Ok(text.len()) {
                return None;
            }
            Self::parse(serde_json::from_slice(text).ok()?)
        })
    }

    fn parse(mut description: Json) -> Option<Self> {
        let Some(Json::Array(listed)) = description.get_mut("devices").map(Json::take) else { return None };
        let mut devices = HashMap::new();
        for device in listed {
            let name = device.get("name").and_then(Json::as_str).map(str::to_owned);
            let instance = device.get("instance_id").and_then(Json::as_u64).and_then(|id| u32::try_from(id).ok());
            if let (Some(name), Some(instance)) = (name, instance) {
                devices.insert((name, instance), device);
            }
        }
        Some(Self { devices })
    }

    /// The description of a section. Devices that QEMU saves without a description (`save_state`) have no version.
    pub(super) fn of(&self, header: &SectionHeader<'_>) -> Result<Option<&Json>> {
        let Some(description) = self.devices.get(&(header.idstr.to_string(), header.instance)) else { return Ok(None) };
        match description.get("version") {
            Some(version) if version.as_u64() != Some(header.version.into()) => {
                let message = format!("the section has version {}, the description {version}", header.version);
                Err(Error::new(ErrorKind::Malformed, message))
            }
            _ => Ok(Some(description)),
        }
    }
}

/// Bytes of a body of unknown layout: up to the footer, `7e` and the section's number, behind which the stream goes on.
/// Bytes of the body that look the same are mistaken for it.
pub(super) fn undescribed_body(rest: &[u8], id: u32) -> Option<usize> {
    let id = id.to_be_bytes();
    rest.windows(6).position(|window| matches!(window, [0x7e, found @ .., 0..=4 | 8] if found == id))
}
