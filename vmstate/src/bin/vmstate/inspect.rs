//! `vmstate inspect`: shows one stream as text or as JSON.

use std::path::PathBuf;

use vmstate::dump::{Dump, SectionDump};
use vmstate::error::ErrorKind;

use crate::check::read_schema;
use crate::text::{Text, json};
use crate::{Outcome, TaskResult, read};

/// Options of `inspect`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// A file with a migration stream.
    file: PathBuf,
    /// Print JSON.
    #[arg(long, conflicts_with = "hex")]
    json: bool,
    /// Only the sections of this name, or of this name and instance, as serial/0.
    #[arg(long, value_name = "NAME")]
    section: Option<String>,
    /// Read sections that the stream does not describe by this schema: JSON of this library, or of QEMU's -dump-vmstate.
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    /// Print the bytes of sections, too; not those of RAM.
    #[arg(long)]
    hex: bool,
}

pub(crate) fn run(options: &Options) -> TaskResult {
    let stream = read(&options.file)?;
    let schema = options.schema.as_deref().map(read_schema).transpose()?.unwrap_or_default();
    let dump = Dump::read_with(&stream, &schema);
    let text = match &options.section {
        None if options.json => json(&dump),
        None => {
            let mut text = Text::new(&stream, options.hex);
            text.dump(&dump);
            text.into_string()
        }
        Some(name) => {
            let wanted: Vec<&SectionDump> = dump.sections().filter(|section| is_called(section, name)).collect();
            if wanted.is_empty() && dump.damage.is_none() {
                return Err(format!("{}: no section {name}", options.file.display()));
            }
            if options.json {
                json(&wanted)
            } else {
                let mut text = Text::new(&stream, options.hex);
                wanted.iter().for_each(|section| text.section(section));
                text.damage(&dump);
                text.into_string()
            }
        }
    };
    let misfits =
        |section: &SectionDump| section.unread.as_ref().is_some_and(|error| error.kind() != ErrorKind::Incompatible);
    let wrong = dump.damage.is_some() || dump.sections().any(misfits);
    Ok((text, if wrong { Outcome::Wrong } else { Outcome::Fine }))
}

fn is_called(section: &SectionDump, name: &str) -> bool {
    let header = &section.header;
    header.idstr == name || format!("{}/{}", header.idstr, header.instance) == name
}
