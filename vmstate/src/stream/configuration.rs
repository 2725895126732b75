//! The configuration: the properties that must be equal on both sides before any device is loaded.
//!
//! `07 | u32 length | machine name | subsections`; the vmsd "configuration" of migration/savevm.c, which has no
//! version on the wire.

use super::element::kind;
use crate::codec::{Reader, Strictness, put_name};
use crate::error::{Error, ErrorKind, Result};
use crate::state::narrowed;

/// The longest machine name that is accepted; QEMU itself has no limit and aborts on a large one.
const MAX_MACHINE_NAME: u32 = 255;
/// The largest number of capabilities that is accepted; no QEMU has as many.
const MAX_CAPABILITIES: u32 = 64;
/// The capability of a source that does not send memory which both sides have mapped; each RAM block then has its address in the
/// stream.
pub(crate) const IGNORE_SHARED: &str = "x-ignore-shared";
/// The capability of a source that gives each page a fixed place in a file.
pub(crate) const MAPPED_RAM: &str = "mapped-ram";
/// log2 of the page size.
const PAGE_BITS: u32 = 12;

/// Properties of the migration that the destination requires, besides its machine type.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms {
    /// Both sides map shared memory, which is not sent.
    pub shares_memory: bool,
    /// The stream is read from a file.
    pub is_file: bool,
}

/// The source's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Machine type, as `microvm`.
    pub machine: String,
    /// log2 of the page size, if the source sends it.
    pub page_bits: Option<u32>,
    /// Capabilities that change the contents of the stream, if the source sends them.
    pub capabilities: Vec<String>,
    /// The machine's UUID, if the source sends it.
    pub uuid: Option<[u8; 16]>,
}

/// Appends the configuration of a machine type: the name, and QEMU's subsection of capabilities if there is one.
pub fn put_configuration(out: &mut Vec<u8>, machine: &str, capability: Option<&str>) {
    out.push(kind::CONFIGURATION);
    out.extend_from_slice(&u32::try_from(machine.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(machine.as_bytes());
    if let Some(capability) = capability {
        out.push(kind::SUBSECTION);
        put_name(out, "configuration/capabilities");
        // The subsection's version, then the number of capabilities.
        out.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1]);
        put_name(out, capability);
    }
}

impl Configuration {
    /// Reads the configuration, with its subsections in any order. The configuration ends where no subsection begins, so the byte
    /// after it must have arrived.
    ///
    /// # Errors
    /// `Malformed`, or `Incompatible` for a subsection of another name or version.
    pub fn read(input: &mut Reader<'_>) -> Result<Self> {
        let offset = input.offset();
        let mark = input.u8()?;
        if mark != kind::CONFIGURATION {
            let message = format!("the configuration {:#04x} expected, got {mark:#04x}", kind::CONFIGURATION);
            return Err(Error::new(ErrorKind::Malformed, message).at(offset));
        }
        let length = input.u32()?;
        if length > MAX_MACHINE_NAME {
            let message = format!("the machine's name has {length} bytes, at most {MAX_MACHINE_NAME} are allowed");
            return Err(input.malformed(message));
        }
        let name = input.take(usize::try_from(length).unwrap_or(usize::MAX))?;
        let machine = str::from_utf8(name).map_err(|_| input.malformed("the machine's name is not UTF-8"))?.to_owned();
        let mut configuration = Self { machine, ..Self::default() };
        let mut seen = Vec::new();
        loop {
            match input.peek(1) {
                Some(&[kind::SUBSECTION]) => configuration.read_subsection(input, &mut seen)?,
                Some(_) => return Ok(configuration),
                None => {
                    return Err(Error::new(ErrorKind::Incomplete, "the configuration has no end").at(input.offset()));
                }
            }
        }
    }

    fn read_subsection<'a>(&mut self, input: &mut Reader<'a>, seen: &mut Vec<&'a str>) -> Result<()> {
        let offset = input.offset();
        let (name, version) = input.subsection_header("of the configuration")?;
        let version = narrowed(version, input.strictness());
        let incompatible = |message: String| Err(Error::new(ErrorKind::Incompatible, message).at(offset));
        if version != 1 {
            return incompatible(format!("{name}: version {version} is not 1"));
        }
        match name {
            "configuration/target-page-bits" => self.page_bits = Some(input.u32()?),
            "configuration/capabilities" => self.capabilities = read_capabilities(input)?,
            "configuration/uuid" => self.uuid = Some(input.array()?),
            _ => return incompatible(format!("{name} is not known")),
        }
        if seen.contains(&name) && input.strictness() == Strictness::Strict {
            return Err(Error::new(ErrorKind::Malformed, format!("{name} comes twice")).at(offset));
        }
        seen.push(name);
        Ok(())
    }

    /// True if the source has this capability.
    pub fn has(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|name| name == capability)
    }

    /// Compares the configuration with the `machine` type of this side and with `terms`.
    ///
    /// A QEMU-compatible load also accepts a prefix of the name, and the name followed by a NUL and anything else, as QEMU's
    /// `strncmp` does (`configuration_post_load`, migration/savevm.c).
    ///
    /// # Errors
    /// `Incompatible`, with both sides named.
    pub fn check(&self, machine: &str, terms: Terms, strictness: Strictness) -> Result<()> {
        let incompatible = |message: String| Err(Error::new(ErrorKind::Incompatible, message));
        let same = match strictness {
            Strictness::Strict => self.machine == machine,
            Strictness::QemuCompatible => match self.machine.split_once('\0') {
                Some((name, _)) => machine == name,
                None => machine.starts_with(&self.machine),
            },
        };
        if !same {
            return incompatible(format!("the source is a machine of type {}, this one is {machine}", self.machine));
        }
        if let Some(bits) = self.page_bits.filter(|&bits| bits != PAGE_BITS) {
            return incompatible(format!("the source has pages of 2^{bits} bytes, this machine of 2^{PAGE_BITS}"));
        }
        let Terms { shares_memory, is_file } = terms;
        if shares_memory && !self.has(IGNORE_SHARED) {
            let what = "the source sends guest memory, which it shares with this machine: capability x-ignore-shared is missing";
            return incompatible(what.to_owned());
        }
        if self.has(MAPPED_RAM) && !is_file {
            let what = "each page has its place in the source's file (capability mapped-ram), and this is a connection or a pipe: name \
                        the file itself";
            return incompatible(what.to_owned());
        }
        let understood = match (shares_memory, is_file) {
            (true, _) => Some(IGNORE_SHARED),
            (false, true) => Some(MAPPED_RAM),
            (false, false) => None,
        };
        let mut unsupported = self.capabilities.iter().filter(|&name| understood != Some(name));
        if let Some(name) = unsupported.next() {
            return incompatible(format!("capability {name} is on at the source and not supported here: turn it off"));
        }
        Ok(())
    }
}

fn read_capabilities(input: &mut Reader<'_>) -> Result<Vec<String>> {
    let count = input.u32()?;
    if count > MAX_CAPABILITIES {
        return Err(input.malformed(format!("{count} capabilities, at most {MAX_CAPABILITIES} exist")));
    }
    (0..count).map(|_| input.name().map(str::to_owned)).collect()
}
