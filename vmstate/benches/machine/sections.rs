//! Saves and loads all sections with their headers and footers, as a migration does.

use vmstate::Result;
use vmstate::codec::{Reader, Writer};
use vmstate::raw::stream::{Element, SectionHeader, put_footer, read_footer};
use vmstate::section::Sections;

/// Appends all `sections`, and the end of the sections.
pub(crate) fn save(sections: &mut Sections<'_>, out: &mut Writer) -> Result<()> {
    for (id, section) in (2..).zip(sections.in_order()) {
        let (idstr, instance, version) = (section.idstr().into(), section.instance(), section.description().version);
        Element::Full(SectionHeader { id, idstr, instance, version }).write(out.buffer());
        section.save(out)?;
        put_footer(out.buffer(), id);
    }
    Element::Eof.write(out.buffer());
    Ok(())
}

/// Loads all `sections`; a section whose load fails is unchanged.
pub(crate) fn load(sections: &mut Sections<'_>, bytes: &[u8]) -> Result<()> {
    let mut input = Reader::strict(bytes);
    sections.begin_load();
    while let Element::Full(SectionHeader { id, idstr, instance, version }) = Element::read(&mut input)? {
        sections.load(&idstr, instance, version, &mut input)?;
        read_footer(&mut input, id)?;
    }
    sections.check_complete(input.strictness())
}
