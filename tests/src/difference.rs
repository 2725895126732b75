//! Where two streams part, told by section and field.

use crate::stream_parser::{Field, Fields, Stream, Value};

/// Sections whose bodies differ: each with the place of its first difference. Sections are told by name and instance;
/// one that only one of the streams has differs.
pub fn sections(ours: (&[u8], &Stream), theirs: (&[u8], &Stream)) -> Vec<String> {
    let bodies = |(bytes, stream): (&[u8], &Stream)| -> Vec<_> {
        let devices = stream.sections.iter().filter(|section| stream.device(&section.name, section.instance).is_some());
        let body = |range: std::ops::Range<usize>| bytes[range].to_vec();
        devices
            .map(|section| (section.name.clone(), section.instance, section.body.clone(), body(section.body.clone())))
            .collect()
    };
    let (our, their) = (bodies(ours), bodies(theirs));
    let mut differences = Vec::new();
    for (name, instance, place, body) in &their {
        let same = our.iter().find(|(other, number, ..)| (other, number) == (name, instance));
        let Some((_, _, _, other)) = same else {
            differences.push(format!("{name}/{instance} is missing"));
            continue;
        };
        let Some(at) = first(other, body) else { continue };
        let fields = theirs.1.device(name, *instance).map(|device| field(&device.fields, place.start + at));
        let around = |bytes: &[u8]| bytes[at.saturating_sub(8).min(bytes.len())..(at + 8).min(bytes.len())].to_vec();
        differences.push(format!(
            "{name}/{instance} at {at:#x} of {}, {}: {:02x?} for {:02x?}",
            body.len(),
            fields.unwrap_or_default(),
            around(other),
            around(body)
        ));
    }
    let more = our
        .iter()
        .filter(|(name, instance, ..)| !their.iter().any(|(other, number, ..)| (other, number) == (name, instance)));
    differences.extend(more.map(|(name, instance, ..)| format!("{name}/{instance} is one too many")));
    differences
}

/// The first place at which two byte strings differ.
pub fn first(ours: &[u8], theirs: &[u8]) -> Option<usize> {
    let common = ours.iter().zip(theirs).position(|(our, their)| our != their);
    common.or((ours.len() != theirs.len()).then_some(ours.len().min(theirs.len())))
}

/// Path of the field that holds the byte at `offset` of the stream.
fn field(fields: &Fields, offset: usize) -> String {
    let nested = |field: &Field| match &field.value {
        Value::Struct(nested) => format!(".{}", self::field(nested, offset)),
        _ => String::new(),
    };
    if let Some(found) = fields.fields.iter().find(|field| field.bytes.contains(&offset)) {
        return format!("{}{}", found.name, nested(found));
    }
    fields
        .subsections
        .iter()
        .map(|subsection| self::field(&subsection.fields, offset))
        .find(|path| !path.is_empty())
        .unwrap_or_default()
}
