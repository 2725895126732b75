//! `vmstate check`: whether streams of one release load in another, from their schemas alone; as text, Markdown or JSON.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use vmstate::compat::{Comparison, Direction, RegistryReport, SectionReport, Verdict, check_schemas};
use vmstate::error::Printable;
use vmstate::schema::json::Schema;

use crate::text::{json, put_line};
use crate::{Outcome, TaskResult};

/// Options of `check`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The schema of the old release: JSON of this library, or of QEMU's -dump-vmstate.
    old: PathBuf,
    /// The schema of the new release.
    new: PathBuf,
    /// Demand that streams of the new release load in the old one, too.
    #[arg(long)]
    both: bool,
    /// A condition that is known to hold, in the words of the report, as 'has_fifo is true'. May come many times.
    #[arg(long, value_name = "CONDITION")]
    assume: Vec<String>,
    /// Print JSON.
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Print Markdown, for a pull request.
    #[arg(long)]
    markdown: bool,
}

pub(crate) fn run(options: &Options) -> TaskResult {
    let (old, new) = (read_schema(&options.old)?, read_schema(&options.new)?);
    let report = check_schemas(&old, &new);
    let checked = Checked { options, machines: [old.machine(), new.machine()], report };
    let text = match (options.json, options.markdown) {
        (true, _) => checked.json(),
        (_, true) => checked.markdown(),
        _ => checked.text(),
    };
    Ok((text, if checked.is_compatible() { Outcome::Fine } else { Outcome::Wrong }))
}

/// A schema in a file.
pub(crate) fn read_schema(file: &Path) -> Result<Schema, String> {
    let wrong = |what: &dyn std::fmt::Display| format!("{}: {what}", file.display());
    let bytes = std::fs::read(file).map_err(|error| wrong(&error))?;
    if bytes.starts_with(b"QEVM") {
        return Err(wrong(
            &"a migration stream; a schema is JSON, as Sections::schema or QEMU's -dump-vmstate write it",
        ));
    }
    let text = std::str::from_utf8(&bytes).map_err(|error| wrong(&error))?;
    let schema = Schema::from_dump(text).map_err(|error| wrong(&error))?;
    // An empty file would be compatible with everything.
    if schema.sections().is_empty() { Err(wrong(&"no sections in it")) } else { Ok(schema) }
}

/// The comparison of two releases.
struct Checked<'a> {
    options: &'a Options,
    machines: [Option<&'a str>; 2],
    report: RegistryReport,
}

impl Checked<'_> {
    fn is_compatible(&self) -> bool {
        self.demanded().all(|direction| self.broken(direction).is_empty())
    }

    fn demanded(&self) -> impl Iterator<Item = Direction> {
        let back = self.options.both.then_some(Direction::NewToOld);
        std::iter::once(Direction::OldToNew).chain(back)
    }

    /// Sections that do not load from all streams in this direction.
    fn broken(&self, direction: Direction) -> Vec<&str> {
        let breaks = |section: &&SectionReport| !section.broken(direction, &self.options.assume).is_empty();
        self.report.sections.iter().filter(breaks).map(|section| section.section.as_str()).collect()
    }

    /// Sections whose report says more than that all streams load.
    fn remarkable(&self) -> Vec<&SectionReport> {
        self.report.sections.iter().filter(|section| !section.is_plain()).collect()
    }

    fn conclusion(&self) -> String {
        let mut out = String::new();
        for direction in self.demanded() {
            let way = match direction {
                Direction::OldToNew => "in the new release, streams of the old one",
                Direction::NewToOld => "in the old release, streams of the new one",
            };
            let broken = self.broken(direction);
            match broken.as_slice() {
                [] => put_line(&mut out, format_args!("compatible: {way} load")),
                names => {
                    let names = names.join(", ");
                    put_line(&mut out, format_args!("not compatible: {way} do not always load: {names}"));
                }
            }
        }
        out
    }

    /// The assumptions under which the required directions load, if any would suffice.
    fn assumptions(&self) -> Vec<String> {
        let broken = |direction| {
            let sections = self.report.sections.iter();
            sections.flat_map(move |section| section.broken(direction, &self.options.assume))
        };
        let mut missing = Vec::new();
        for comparison in self.demanded().flat_map(broken) {
            for text in comparison.verdict.assumptions() {
                if !missing.contains(&text) && !self.options.assume.contains(&text) {
                    missing.push(text);
                }
            }
        }
        missing
    }

    /// A line that counts the sections that are not remarkable, if there are any.
    fn others(&self, remarkable: usize) -> String {
        match self.report.sections.len() - remarkable {
            0 => String::new(),
            all if remarkable == 0 => format!("{all} sections load both ways\n"),
            others => format!("{others} other sections load both ways\n"),
        }
    }

    fn text(&self) -> String {
        let mut out = String::new();
        if let [Some(old), Some(new)] = self.machines
            && old != new
        {
            put_line(&mut out, format_args!("machine: {old} -> {new}"));
        }
        let remarkable = self.remarkable();
        out.extend(remarkable.iter().map(|section| section.to_string()));
        out.push_str(&self.others(remarkable.len()));
        out.push_str(&self.conclusion());
        for assumption in self.assumptions() {
            put_line(&mut out, format_args!("  if you know that this holds: --assume '{assumption}'"));
        }
        out
    }

    fn markdown(&self) -> String {
        let mut out = String::from("### Do migration streams still load?\n\n");
        for line in self.conclusion().lines() {
            let (verdict, rest) = line.split_once(':').unwrap_or((line, ""));
            let _ = writeln!(out, "- **{verdict}**:{}", escaped(rest));
        }
        let remarkable = self.remarkable();
        if !remarkable.is_empty() {
            out.push_str("\n| section | old → new | new → old |\n| --- | --- | --- |\n");
        }
        for section in &remarkable {
            let [there, back] = [Direction::OldToNew, Direction::NewToOld].map(|way| self.cell(section, way));
            let _ = writeln!(out, "| {} | {there} | {back} |", code(&section.section));
        }
        let others = self.others(remarkable.len());
        if !others.is_empty() {
            let _ = write!(out, "\n{others}");
        }
        for section in remarkable {
            let _ = writeln!(out, "\n#### {}\n", code(&section.section));
            for line in section.to_string().lines().skip(1) {
                let (indent, text) = line.split_at(line.len() - line.trim_start().len());
                let _ = writeln!(out, "{}- {}", " ".repeat(indent.len().saturating_sub(2)), escaped(text));
            }
        }
        out
    }

    /// The worst verdict on a section in one direction.
    fn cell(&self, section: &SectionReport, direction: Direction) -> &'static str {
        let broken = section.broken(direction, &self.options.assume);
        let of = |comparison: &&Comparison| comparison.direction == direction;
        let comparisons: Vec<&Comparison> = section.comparisons.iter().filter(of).collect();
        if comparisons.is_empty() {
            "–"
        } else if broken.iter().any(|comparison| matches!(comparison.verdict, Verdict::Breaks(_))) {
            "❌ breaks"
        } else if broken.iter().any(|comparison| matches!(comparison.verdict, Verdict::NotCompared(_))) {
            "❌ not compared"
        } else if !broken.is_empty() {
            "⚠️ loads under a condition"
        } else if comparisons.iter().all(|comparison| comparison.is_plain()) {
            "✅ loads"
        } else {
            "✅ loads, see below"
        }
    }

    fn json(&self) -> String {
        let mut root = serde_json::json!({"compatible": self.is_compatible(), "machines": self.machines});
        root["sections"] = serde_json::json!(self.report.sections);
        json(&root)
    }
}

fn code(name: &str) -> String {
    format!("`{}`", Printable(name.replace('`', "'").replace('|', "\\|")))
}

/// Escapes text so that Markdown shows it unchanged.
fn escaped(text: &str) -> String {
    text.chars().flat_map(|c| ("\\`*_<>[]|#".contains(c).then_some('\\')).into_iter().chain([c])).collect()
}
