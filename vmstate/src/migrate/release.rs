//! Checks before anything is sent whether the machine can be represented in the release for which it is saved.

use std::collections::BTreeSet;

use crate::codec::Writer;
use crate::compat::{Direction, Verdict, check};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Description;
use crate::section::Sections;

/// Checks each section that would be sent now, by saving it to a buffer.
///
/// # Errors
/// `Rejected`, with everything that the release cannot represent.
pub(super) fn check_release(sections: &mut Sections<'_>) -> Result<()> {
    let Some(release) = sections.release() else { return Ok(()) };
    let (mut problems, mut sent) = (Vec::new(), BTreeSet::new());
    for section in sections.in_order() {
        if !section.is_needed() {
            continue;
        }
        // A device that refuses for another reason, such as a running guest, may accept when the time comes.
        if let Err(error) = section.save(&mut Writer::recording())
            && error.kind() == ErrorKind::Incompatible
        {
            problems.push(error.to_string());
        }
        sent.insert(section.name_there().to_owned());
        let Ok((idstr, version, description)) = section.sent_as() else { continue };
        if let Some(there) = release.section(idstr)
            && let Some(problem) = other_layout(description, version, there)
        {
            problems.push(format!("{idstr}/{}: {problem}", section.instance()));
        }
    }
    for index in sections.iterative() {
        let Some(section) = sections.at(index).filter(|section| section.is_needed()) else { continue };
        problems.extend(section.sent_in_parts_as().err().map(|error| error.to_string()));
        sent.insert(section.name_there().to_owned());
    }
    let missing = release.sections().iter().filter(|(name, _)| release.requires(name) && !sent.contains(name));
    problems.extend(missing.map(|(name, _)| {
        format!("{name}: a load there is refused without this section, and this machine does not send it")
    }));
    refused(&problems)
}

/// The error of all problems, if there are any.
pub(super) fn refused(problems: &[String]) -> Result<()> {
    match problems {
        [] => Ok(()),
        problems => {
            let message =
                format!("the release for which it is saved cannot have this machine: {}", problems.join("; "));
            Err(Error::new(ErrorKind::Rejected, message))
        }
    }
}

/// Why data sent at `version` does not load there, whatever the device contains.
fn other_layout(here: &Description, version: u32, there: &Description) -> Option<String> {
    // A subsection that is unknown there is a problem only if it is sent.
    let known = there.all_subsections();
    let mut written = here.older(version, &known, false);
    written.minimum_version = version;
    let report = check(&written, there);
    let there = report.comparisons.into_iter().find(|comparison| comparison.direction == Direction::OldToNew)?;
    match there.verdict {
        Verdict::Breaks(broken) | Verdict::NotCompared(broken) => {
            Some(format!("at version {version} it breaks there at {} because {}", broken.field, broken.reason))
        }
        Verdict::Loads | Verdict::LoadsIf(_) => None,
    }
}
