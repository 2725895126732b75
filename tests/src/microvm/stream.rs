//! Loads a whole stream of QEMU into types, and writes it again from them.

use std::io;

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use serde_json::{Map, Value, json};
use vmstate::codec::{Limits, Reader, Strictness, Writer};
use vmstate::dump::{Dump, Entry, Part, SectionDump};
use vmstate::raw::stream::{Element, put_footer, put_header};
use vmstate::raw::vmdesc;
use vmstate::{Error, ErrorKind, Result, VmState};

use super::Microvm;
use super::configuration::Configuration;

/// Section type bytes (`QEMU_VM_CONFIGURATION`, `QEMU_VM_VMDESCRIPTION`, migration/savevm.h).
const CONFIGURATION: u8 = 0x07;
const DESCRIPTION: u8 = 0x06;

/// The section of QEMU's user-mode network, which has no description; libslirp's bytes are passed through.
const SLIRP: &str = "slirp";

impl Microvm {
    /// Loads every device section of `stream` into its type.
    ///
    /// # Errors
    /// When the stream is damaged, a section has no type, or a type refuses its section or does not read all of it.
    pub fn load(&mut self, stream: &[u8]) -> Result<()> {
        self.sections.begin_load();
        for section in devices(&dump(stream)?) {
            // A footer always follows, so the end of the body is the end of the section.
            let bytes = body(stream, section);
            let mut input = Reader::new(bytes, section.body, Strictness::Strict, Limits::default()).complete();
            let header = &section.header;
            self.sections.load(&header.idstr, header.instance, header.version, &mut input)?;
            if !input.rest().is_empty() {
                let left = format!("{} bytes left over", input.rest().len());
                return Err(Error::new(ErrorKind::Malformed, left).in_section(&header.idstr, header.instance));
            }
        }
        Ok(())
    }

    /// A stream like `like`, with its configuration, commands, memory and order of sections, but with the state of this
    /// machine's devices and a matching self-description.
    ///
    /// # Errors
    /// When `like` is damaged, or a device cannot be saved.
    pub fn save(&mut self, like: &[u8]) -> Result<Vec<u8>> {
        let dump = dump(like)?;
        let mut out = Vec::new();
        put_header(&mut out);
        out.push(CONFIGURATION);
        let mut configuration = Configuration::default();
        let mut input = Reader::strict(&like[out.len()..]);
        configuration.load_version(&mut input, Configuration::DESCRIPTION.version)?;
        let mut body = Writer::recording();
        vmstate::Section::save(&mut configuration, &mut body)?;
        let (bytes, outcomes) = body.into_parts();
        out.extend(bytes);
        let configuration = vmdesc(Configuration::DESCRIPTION, &outcomes)?;
        let mut described = Vec::new();
        for entry in &dump.entries {
            match entry {
                Entry::Command { command, .. } => Element::Command(command.clone()).write(&mut out),
                Entry::Section(section) => self.put_section(section, like, &mut out, &mut described)?,
                Entry::Eof { .. } => Element::Eof.write(&mut out),
            }
        }
        let text = text(&json!({"configuration": configuration, "page_size": 4096, "devices": described}));
        out.push(DESCRIPTION);
        out.extend((text.len() as u32).to_be_bytes());
        out.extend(text);
        Ok(out)
    }

    fn put_section(
        &mut self,
        section: &SectionDump,
        like: &[u8],
        out: &mut Vec<u8>,
        described: &mut Vec<Value>,
    ) -> Result<()> {
        let header = &section.header;
        let element = match section.part {
            Part::Start => Element::Start(header.clone()),
            Part::Part => Element::Part(header.id),
            Part::End => Element::End(header.id),
            Part::Full => Element::Full(header.clone()),
        };
        element.write(out);
        let mut device = Map::new();
        device.insert("name".into(), (*header.idstr).into());
        device.insert("instance_id".into(), header.instance.into());
        if section.part != Part::Full || header.idstr == SLIRP {
            out.extend(body(like, section));
            // Described as QEMU describes a section that only its own code can read (`vmstate_save_old_style`,
            // migration/savevm.c).
            device.insert("size".into(), section.size.into());
            device.insert("fields".into(), json!([{"name": "data", "size": section.size, "type": "buffer"}]));
        } else {
            let mut body = Writer::recording();
            let registered = self.sections.in_order();
            let found = |entry: &&mut vmstate::section::Registration<'_>| {
                entry.idstr() == header.idstr && entry.instance() == header.instance
            };
            let registration = registered.into_iter().find(found).ok_or_else(|| {
                Error::new(ErrorKind::Incompatible, "there is no type for it")
                    .in_section(&header.idstr, header.instance)
            })?;
            registration.save(&mut body)?;
            let (bytes, outcomes) = body.into_parts();
            out.extend(bytes);
            device.extend(vmdesc(registration.description(), &outcomes)?);
        }
        put_footer(out, header.id);
        if section.part == Part::Full {
            described.push(device.into());
        }
        Ok(())
    }
}

fn dump(stream: &[u8]) -> Result<Dump> {
    let mut dump = Dump::read(stream);
    dump.damage.take().map_or(Ok(dump), Err)
}

fn devices(dump: &Dump) -> impl Iterator<Item = &SectionDump> {
    dump.sections().filter(|section| section.part == Part::Full && section.header.idstr != SLIRP)
}

fn body<'a>(stream: &'a [u8], section: &SectionDump) -> &'a [u8] {
    &stream[section.body as usize..][..section.size as usize]
}

/// JSON on one line as QEMU writes it: `", "` between items, `": "` after names.
fn text(value: &Value) -> Vec<u8> {
    struct OneLine;

    impl Formatter for OneLine {
        fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
            if first { Ok(()) } else { out.write_all(b", ") }
        }

        fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
            self.begin_array_value(out, first)
        }

        fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
            out.write_all(b": ")
        }
    }

    let mut text = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut text, OneLine)).expect("values go into memory");
    text
}
