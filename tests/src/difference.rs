//! Finds the first difference of two streams, by section and field.

use crate::stream_parser::{Fields, ParseError, Section, SectionKind, Stream, Value, parse};

/// Device sections whose bodies differ, each with the field of its first difference.
///
/// # Errors
/// When one of the streams is damaged.
pub fn sections(ours: &[u8], theirs: &[u8]) -> Result<Vec<String>, ParseError> {
    let (our, their) = (parse(ours)?, parse(theirs)?);
    let full = |stream: &Stream| -> Vec<_> {
        stream.sections.iter().filter(|section| section.kind == SectionKind::Full).cloned().collect()
    };
    let (our, full_their) = (full(&our), full(&their));
    let names = |sections: &[Section]| -> Vec<_> {
        sections.iter().map(|section| (section.name.clone(), section.instance)).collect()
    };
    if names(&our) != names(&full_their) {
        return Ok(vec![format!("sections {:?} for {:?}", names(&our), names(&full_their))]);
    }
    let mut differences = Vec::new();
    for ((our, section), device) in our.iter().zip(&full_their).zip(&their.devices) {
        let (our, body) = (&ours[our.body.clone()], &theirs[section.body.clone()]);
        if let Some(at) = first(our, body) {
            let path = path(&device.fields, section.body.start + at);
            let bytes = (around(our, at, 8), around(body, at, 8));
            let place = format!("{}/{} at {at:#x}, {path}", section.name, section.instance);
            differences.push(format!("{place}: {:02x?} for {:02x?}", bytes.0, bytes.1));
        }
    }
    Ok(differences)
}

/// The offset of the first difference of two byte strings.
pub fn first(ours: &[u8], theirs: &[u8]) -> Option<usize> {
    let common = ours.iter().zip(theirs).position(|(our, their)| our != their);
    common.or((ours.len() != theirs.len()).then_some(ours.len().min(theirs.len())))
}

/// The part of `bytes` from `reach` before `at` to `reach` after it.
pub fn around(bytes: &[u8], at: usize, reach: usize) -> &[u8] {
    &bytes[at.saturating_sub(reach).min(bytes.len())..(at + reach).min(bytes.len())]
}

/// The field that holds the byte at `offset` of the stream.
fn path(fields: &Fields, offset: usize) -> String {
    match fields.fields.iter().find(|field| field.bytes.contains(&offset)) {
        Some(field) => match &field.value {
            Value::Struct(nested) => format!("{}.{}", field.name, path(nested, offset)),
            _ => field.name.clone(),
        },
        None => fields.subsections.iter().map(|subsection| path(&subsection.fields, offset)).collect(),
    }
}
