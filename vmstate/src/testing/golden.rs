//! Streams in memory: snapshots of machines without RAM, and the first difference between two of them.

use std::io;
use std::time::Duration;

use crate::channel::Channel;
use crate::codec::{Limits, Strictness};
use crate::dump::{Dump, Part, SectionDump};
use crate::error::{Error, ErrorKind, Result};
use crate::inspect::{Fields, Value};
use crate::migrate::snapshot;
use crate::ram::{GuestRam, RamBlock};
use crate::section::Sections;

/// The machine type in the configuration of such a stream.
const MACHINE: &str = "locked";

/// Saves `sections` as a whole stream with self-description, so that `vmstate inspect` can name each field.
pub(super) fn save(sections: &mut Sections<'_>) -> Result<Vec<u8>> {
    let mut memory = Memory { bytes: Vec::new(), read: 0 };
    snapshot::save(&mut memory, MACHINE, sections, &NoRam)?;
    Ok(memory.bytes)
}

/// Loads a stream that [`save`] wrote, as strictly as a destination does.
pub(super) fn load(stream: &[u8], mut sections: Sections<'_>) -> Result<()> {
    let mut memory = Memory { bytes: stream.to_vec(), read: 0 };
    snapshot::load(&mut memory, MACHINE, Strictness::Strict, Limits::default(), &mut sections, &NoRam)
}

/// The first byte that differs between `then` and `now`, with the name that it had in `then`; `None` if all sections are equal.
/// `words` name the two streams in the text, such as "then" and "now".
pub(super) fn difference(then: &[u8], now: &[u8], words: [&str; 2]) -> Option<String> {
    let [first, second] = words;
    let (old, new) = (Dump::read(then), Dump::read(now));
    let devices = |dump: &Dump| -> Vec<_> {
        let full = dump.sections().filter(|section| section.part == Part::Full);
        full.map(|section| (section.header.idstr.clone(), section.header.instance)).collect()
    };
    if devices(&old) != devices(&new) {
        let list =
            |dump| devices(dump).iter().map(|(idstr, instance)| format!("{idstr}/{instance}")).collect::<Vec<_>>();
        return Some(format!("sections {} {first}, {} {second}", list(&old).join(", "), list(&new).join(", ")));
    }
    let full = |section: &&SectionDump| section.part == Part::Full;
    old.sections().filter(full).zip(new.sections().filter(full)).find_map(|(old, new)| {
        let name = format!("{}/{}", old.header.idstr, old.header.instance);
        if old.header.version != new.header.version {
            return Some(format!("{name}, version {} {first}, {} {second}", old.header.version, new.header.version));
        }
        let (then, now) = (body(then, old), body(now, new));
        let length = then.len().max(now.len());
        let at = (0..length).find(|&at| then.get(at) != now.get(at))?;
        let path = old.fields.as_ref().and_then(|fields| path_at(fields, old.body + at as u64)).unwrap_or_default();
        let byte = |bytes: &[u8]| bytes.get(at).map_or("none".to_owned(), |byte| format!("{byte:#04x}"));
        Some(format!("{name}{path}, byte {at} of the section: {} {first}, {} {second}", byte(then), byte(now)))
    })
}

fn body<'a>(stream: &'a [u8], section: &SectionDump) -> &'a [u8] {
    let range = usize::try_from(section.body).ok().zip(usize::try_from(section.body + section.size).ok());
    range.and_then(|(start, end)| stream.get(start..end)).unwrap_or_default()
}

/// The path of the innermost field that contains the byte at `offset` of the stream.
fn path_at(fields: &Fields, offset: u64) -> Option<String> {
    let holds = |field: &&crate::inspect::Field| (field.offset..field.offset + field.size).contains(&offset);
    if let Some(field) = fields.fields.iter().find(holds) {
        let nested = match &field.value {
            Value::Struct(nested) => path_at(nested, offset),
            Value::Array(elements) => elements.iter().enumerate().find_map(|(index, element)| match element {
                Value::Struct(nested) => path_at(nested, offset).map(|path| format!("[{index}]{path}")),
                _ => None,
            }),
            _ => None,
        };
        return Some(format!(" › {}{}", field.name, nested.unwrap_or_default()));
    }
    let subsections = fields.subsections.iter();
    let mut inside = subsections.filter_map(|sub| Some(format!(" › {}{}", sub.name, path_at(&sub.fields, offset)?)));
    inside.next()
}

struct Memory {
    bytes: Vec<u8>,
    read: usize,
}

impl Channel for Memory {
    fn send(&mut self, bytes: &[u8], _timeout: Duration) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn receive(&mut self, into: &mut [u8], _timeout: Duration) -> io::Result<usize> {
        let mut rest = self.bytes.get(self.read..).unwrap_or_default();
        let count = io::Read::read(&mut rest, into)?;
        self.read += count;
        Ok(count)
    }
}

/// Guest memory without blocks, as a lock concerns only devices.
struct NoRam;

impl NoRam {
    fn outside() -> Result<()> {
        Err(Error::new(ErrorKind::Misuse, "there is no RAM"))
    }
}

impl GuestRam for NoRam {
    fn blocks(&self) -> &[RamBlock] {
        &[]
    }

    fn read(&self, _block: usize, _offset: u64, _into: &mut [u8]) -> Result<()> {
        Self::outside()
    }

    fn write(&self, _block: usize, _offset: u64, _from: &[u8]) -> Result<()> {
        Self::outside()
    }

    fn zero_page(&self, _block: usize, _offset: u64) -> Result<()> {
        Self::outside()
    }
}
