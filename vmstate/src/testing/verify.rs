//! The checks of a lock: do all earlier streams still load, and is the present format the newest entry?

use std::collections::BTreeSet;
use std::fmt::Write;

use super::store::{Entry, SCHEMA, add, read, stream_name};
use super::{Lock, golden};
use crate::compat::{Assumption, Comparison, Direction, SectionReport, check_schemas};
use crate::schema::json::Schema;
use crate::section::Sections;

/// How often an example is created again to check that its bytes stay the same: two entries of a hash map are in the same order
/// half of the time.
const OTHERS: u32 = 7;

/// A file that does not exist yet.
struct Missing {
    entry: u32,
    name: String,
    bytes: Vec<u8>,
}

impl Lock<'_> {
    /// Runs all checks and returns the faults as paragraphs.
    pub(super) fn verify(&self) -> Result<(), String> {
        let Some((_, first)) = self.states.first() else {
            return Err("an example of the state is needed\n".to_owned());
        };
        let today = first().schema(None).map_err(|error| format!("{error}\n"))?;
        let entries = read(&self.folder)?;
        let layouts: String = entries.iter().filter_map(|entry| self.layout_problem(entry, &today)).collect();
        if !layouts.is_empty() {
            // Creating examples from bytes would panic before this message could be read.
            return Err(layouts);
        }
        let mut problems: String = entries.iter().map(|entry| self.load_problems(entry)).collect();
        let newest = entries.last();
        let kept = newest.filter(|entry| is_same(&entry.schema, &today));
        let mut missing = Vec::new();
        let number = kept.map_or_else(|| newest.map_or(1, |entry| entry.number + 1), |entry| entry.number);
        if kept.is_none() {
            missing.push(Missing { entry: number, name: SCHEMA.to_owned(), bytes: today.to_json().into_bytes() });
        }
        for (name, make) in &self.states {
            let mut sections = make();
            if sections.schema(None).ok().as_ref() != Some(&today) {
                return Err(format!("`{name}` has other sections than the first example: lock it in another folder\n"));
            }
            let bytes = saved(name, &mut sections)?;
            same_again(name, &bytes, &saved(name, &mut sections)?)?;
            for _ in 0..OTHERS {
                same_again(name, &bytes, &saved(name, &mut make())?)?;
            }
            match kept.and_then(|entry| entry.streams.get(*name)) {
                None => missing.push(Missing { entry: number, name: stream_name(name), bytes }),
                Some(then) => problems.push_str(&byte_problem(number, name, then, &bytes)),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        if self.bless {
            return missing.iter().try_for_each(|file| add(&self.folder, file.entry, &file.name, &file.bytes));
        }
        match missing.is_empty() {
            true => Ok(()),
            false => Err(not_kept(&missing, newest, &today)),
        }
    }

    /// The streams of an entry that would not load according to the descriptions alone.
    fn layout_problem(&self, entry: &Entry, today: &Schema) -> Option<String> {
        let mut problem = String::new();
        // Several versions may have the same condition.
        let mut conditions = BTreeSet::new();
        for section in check_schemas(&entry.schema, today).sections {
            let broken = section.broken(Direction::OldToNew, &self.assumed);
            if broken.is_empty() {
                continue;
            }
            let _ = writeln!(problem, "{}", section.section);
            let back = section.comparisons.iter().filter(|comparison| comparison.direction == Direction::NewToOld);
            for comparison in broken.into_iter().chain(back) {
                let _ = write!(problem, "{comparison}");
                if comparison.direction == Direction::OldToNew {
                    conditions.extend(comparison.verdict.assumptions());
                }
            }
        }
        if problem.is_empty() {
            return None;
        }
        let number = entry.number;
        let mut text = format!("{number}/{SCHEMA}: streams of this layout do not load any more\n{problem}");
        text.push_str("Do what is said behind \"->\".");
        for condition in conditions {
            let _ = write!(text, " Or, if you know that it holds, lock with `; assume {condition:?}`.");
        }
        let _ = writeln!(
            text,
            " If nobody has such streams, because this was never released or is dropped on purpose, \
             delete {number} and run again with BLESS=1.\n"
        );
        Some(text)
    }

    /// The streams of an entry that fail to load.
    fn load_problems(&self, entry: &Entry) -> String {
        let mut problems = String::new();
        for (name, stream) in &entry.streams {
            let made = self.states.iter().find(|(known, _)| known == name).or(self.states.first());
            let Some((into, make)) = made else { continue };
            if let Err(error) = golden::load(stream, make()) {
                let _ = writeln!(
                    problems,
                    "{}/{}: does not load any more, into `{into}`: {error}\n\
                     By its layout it would: a check or a hook refuses it, or it lacks what is required now. \
                     Take what was sent then.\n",
                    entry.number,
                    stream_name(name)
                );
            }
        }
        problems
    }
}

/// True if both schemas describe the same bytes, with the same meaning, at the same versions, and `kept` has all limits of
/// today's schema. Names may differ.
fn is_same(kept: &Schema, today: &Schema) -> bool {
    let versions = |schema: &Schema| -> Vec<_> {
        let sections = schema.sections().iter();
        let mut all: Vec<_> = sections.map(|(name, of)| (name.clone(), of.version, of.minimum_version)).collect();
        all.sort();
        all
    };
    kept == today
        || (versions(kept) == versions(today)
            && check_schemas(kept, today).sections.iter().all(SectionReport::is_plain)
            && !lacks_limit(kept, today))
}

/// True if `kept` lacks a limit on elements that today's schema has, as in the first releases of this library: a lowered limit
/// would go unnoticed.
fn lacks_limit(kept: &Schema, today: &Schema) -> bool {
    let report = check_schemas(kept, today);
    let mut comparisons = report.sections.iter().flat_map(|section| &section.comparisons);
    let is_unknown =
        |comparison: &Comparison| comparison.relies_on.iter().any(|of| matches!(of, Assumption::Counts(_)));
    kept.sections().iter().any(|(_, description)| description.hooks.is_none())
        && comparisons.any(|comparison| comparison.direction == Direction::OldToNew && is_unknown(comparison))
}

fn saved(state: &str, sections: &mut Sections<'_>) -> Result<Vec<u8>, String> {
    golden::save(sections).map_err(|error| format!("`{state}` is not saved: {error}\n"))
}

/// Refuses an example whose bytes differ each time: it locks nothing.
fn same_again(state: &str, first: &[u8], again: &[u8]) -> Result<(), String> {
    let Some(difference) = golden::difference(first, again, ["at first", "when saved again"]) else { return Ok(()) };
    Err(format!(
        "`{state}` is sent as other bytes each time\n  {difference}\n\
         Save what does not depend on the moment or on the order of a hash map, and make the example from fixed values; \
         a save does not change the device.\n"
    ))
}

/// The fault of an example whose bytes changed without a change of the layout.
fn byte_problem(entry: u32, state: &str, then: &[u8], now: &[u8]) -> String {
    let Some(difference) = golden::difference(then, now, ["then", "now"]) else { return String::new() };
    let file = stream_name(state);
    format!(
        "{entry}/{file}: `{state}` is sent as other bytes now\n  {difference}\n\
         The layout is the same, so such a stream loads, but its values mean something else: put order and meaning \
         back, or raise the version and read the old one as it was meant. If only the example was changed, \
         delete {entry}/{file} and run again with BLESS=1.\n\n"
    )
}

/// Names the files to add where nothing breaks and the present layout is new.
fn not_kept(missing: &[Missing], newest: Option<&Entry>, today: &Schema) -> String {
    let mut text = String::new();
    let schema = missing.iter().any(|file| file.name == SCHEMA);
    match newest {
        None => text.push_str("nothing is kept yet\n"),
        Some(entry) if schema && lacks_limit(&entry.schema, today) => {
            let number = entry.number;
            let _ = writeln!(
                text,
                "{number}/{SCHEMA} is of a release of vmstate that did not say how many elements a field may have: \
                 keep a schema that does, so that a lower limit is seen; all that was sent before loads"
            );
        }
        Some(entry) if schema => {
            let _ =
                writeln!(text, "the layout is not that of {} any more; all that was sent before loads", entry.number);
            let remarkable = |section: &&SectionReport| !section.is_plain();
            let report = check_schemas(&entry.schema, today);
            text.extend(report.sections.iter().filter(remarkable).map(SectionReport::to_string));
        }
        Some(_) => text.push_str("an example is new\n"),
    }
    let files: Vec<_> = missing.iter().map(|file| format!("{}/{}", file.entry, file.name)).collect();
    let _ = writeln!(text, "If this is what you want, run again with BLESS=1, and commit {}.", files.join(", "));
    text
}
