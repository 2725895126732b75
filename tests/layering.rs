//! A module imports only modules of lower rank: the table of docs/architecture.md, checked in the source text. Other
//! rules of the source text are checked as well: head comments, file length, the places of `unsafe`, no private paths.

#[path = "layering/methods.rs"]
mod methods;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Longest source file, in lines.
const LINES_MAX: usize = 500;

/// Ranks of one crate's top-level modules.
type Ranks = BTreeMap<String, u32>;

/// A violation of a rule, with its place.
#[derive(Debug, PartialEq)]
struct Offence {
    file: PathBuf,
    line: usize,
    what: String,
}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.what)
    }
}

#[test]
fn modules_import_only_lower_ranks() {
    let mut offences = Vec::new();
    for name in ["vmstate", "minivmm"] {
        let ranks = ranks(&read("docs/architecture.md"), name);
        assert!(ranks.len() > 4, "docs/architecture.md lacks the rank table of `{name}`: found {ranks:?}");
        for file in sources(&format!("{name}/src")) {
            offences.extend(upward_edges(&file, &read(&file), &format!("{name}/src"), &ranks));
        }
    }
    report(&offences);
}

#[test]
fn unsafe_is_only_in_its_places() {
    let allowed = |file: &Path| {
        let text = file.to_string_lossy();
        let rooms = [
            "minivmm/src/memory",
            "minivmm/src/kvm/",
            "minivmm/src/sandbox/heap.rs",
            "minivmm/src/sandbox/violation.rs",
        ];
        rooms.iter().any(|room| text.starts_with(room)) || text.ends_with("/tap.rs")
    };
    let offences: Vec<_> = sources("").iter().filter(|file| !allowed(file)).flat_map(|file| unsafes(file)).collect();
    report(&offences);
    let taps: Vec<_> = sources("minivmm").into_iter().filter(|file| file.ends_with("tap.rs")).collect();
    assert!(taps.len() <= 1, "one file may hold the tap's ioctls: {taps:?}");
}

/// A thread that is started in another way has no seccomp filter.
#[test]
fn minivmm_starts_its_threads_in_the_sandbox() {
    let mut offences = Vec::new();
    let exempt = |file: &Path| file.starts_with("minivmm/src/sandbox") || file.iter().any(|part| part == "tests");
    for file in sources("minivmm/src").into_iter().filter(|file| !exempt(&file.with_extension(""))) {
        let text = read(&file);
        let code = code_only(text.split("#[cfg(test)]").next().unwrap_or_default());
        let words = words(&code);
        for window in words.windows(3) {
            if let [(line, "thread"), (_, "::"), (_, "spawn" | "Builder")] = *window {
                let what = "starts a thread without `sandbox::spawn`".into();
                offences.push(Offence { file: file.clone(), line, what });
            }
        }
    }
    report(&offences);
}

#[test]
fn files_have_a_head_comment_and_stay_short() {
    let mut offences = Vec::new();
    for file in sources("") {
        let text = read(&file);
        let offence = |line, what: &str| Offence { file: file.clone(), line, what: what.into() };
        if !text.starts_with("//! ") {
            offences.push(offence(1, "does not begin with a `//!` comment that says what the file does"));
        }
        if text.lines().count() > LINES_MAX {
            offences.push(offence(LINES_MAX + 1, "is longer than 500 lines; split it by subject"));
        }
    }
    report(&offences);
}

#[test]
fn no_path_of_a_private_machine_appears() {
    // Written in two parts, because this file is checked as well.
    let forbidden = [concat!("/", "work"), concat!("../", "shared"), concat!("/tmp/", "prep")];
    let mut offences = Vec::new();
    for file in files("").into_iter().filter(|file| is_text(file)) {
        for (index, line) in read(&file).lines().enumerate() {
            for name in forbidden {
                let hit = line.match_indices(name).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    let after = line[at + name.len()..].chars().next();
                    // Part of a longer word, which is a different word.
                    !before.is_some_and(char::is_alphanumeric)
                        && !after.is_some_and(|c| c.is_alphanumeric() || c == '_')
                });
                if hit {
                    offences.push(Offence { file: file.clone(), line: index + 1, what: format!("names {name}") });
                }
            }
        }
    }
    report(&offences);
}

/// The end of a path is enough, as `vm/driver.rs`; a folder ends with a slash.
#[test]
fn files_named_in_the_maps_of_the_code_exist() {
    let here = files("");
    let folders: Vec<PathBuf> = here.iter().flat_map(|file| file.ancestors().skip(1)).map(Into::into).collect();
    let mut offences = Vec::new();
    for page in ["docs/architecture.md", "docs/contributing.md"] {
        for (index, line) in read(page).lines().enumerate() {
            for name in line.split('`').skip(1).step_by(2) {
                let candidates = match name.ends_with('/') {
                    true => &folders,
                    false if name.ends_with(".rs") && !name.contains('*') => &here,
                    false => continue,
                };
                if !candidates.iter().any(|path| path.ends_with(name)) {
                    offences.push(Offence {
                        file: page.into(),
                        line: index + 1,
                        what: format!("{name} does not exist"),
                    });
                }
            }
        }
    }
    report(&offences);
}

/// Parses the rows `| 2 | `kvm`, `devices` | … |` below the heading that names the crate.
fn ranks(document: &str, name: &str) -> Ranks {
    let mut ranks = Ranks::new();
    let section = document.lines().skip_while(|line| !(line.starts_with('#') && line.ends_with(&format!("`{name}`"))));
    for row in section.skip(1).take_while(|line| !line.starts_with('#')) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        if let [_, rank, modules, ..] = cells[..]
            && let Ok(rank) = rank.parse()
        {
            ranks.extend(modules.split('`').skip(1).step_by(2).map(|module| (module.to_string(), rank)));
        }
    }
    ranks
}

/// Imports in one file of modules with the same or a higher rank, or through the crate's root.
fn upward_edges(file: &Path, text: &str, root: &str, ranks: &Ranks) -> Vec<Offence> {
    let inside = file.strip_prefix(root).expect("a file of the crate");
    let mut path: Vec<String> =
        inside.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if path.last().is_some_and(|last| last == "mod") {
        path.pop();
    }
    let own = path[0].clone();
    // The root only declares and re-exports; binaries are above all ranks.
    if own == "lib" || own == "main" || own == "bin" {
        return Vec::new();
    }
    let Some(&rank) = ranks.get(&own) else {
        let what = format!("module `{own}` has no rank; add it to the table in docs/architecture.md");
        return vec![Offence { file: file.into(), line: 1, what }];
    };
    let mut offences = Vec::new();
    for (line, target) in root_paths(&code_only(text), path.len()) {
        let what = match ranks.get(&target) {
            _ if target == own => continue,
            Some(&below) if below < rank => continue,
            Some(&other) => format!("`{own}` (rank {rank}) imports `{target}` (rank {other}): only lower ranks"),
            None => format!("`{own}` imports `crate::{target}`: name the module that defines it, not the root"),
        };
        offences.push(Offence { file: file.into(), line, what });
    }
    offences
}

/// Names that follow the crate's root, with their lines: `crate::a`, `crate::{a, b}`, and `super::a` where `depth`
/// times `super` reaches the root.
fn root_paths(code: &str, depth: usize) -> Vec<(usize, String)> {
    let words = words(code);
    let at = |index: usize| words.get(index).map_or("", |&(_, word)| word);
    let mut found = Vec::new();
    // Each inner module (`mod tests {`) adds one level to the root.
    let mut inner: Vec<usize> = Vec::new();
    let mut braces = 0;
    let mut index = 0;
    while index < words.len() {
        match at(index) {
            "{" => {
                braces += 1;
                if index >= 2 && at(index - 2) == "mod" {
                    inner.push(braces);
                }
            }
            "}" => {
                inner.retain(|&opened| opened != braces);
                braces -= 1;
            }
            "crate" if at(index + 1) == "::" && at(index.wrapping_sub(1)) != "::" => {
                found.extend(names_after(&words, index + 2));
            }
            "super" if at(index.wrapping_sub(1)) != "::" => {
                let steps = (0..).take_while(|step| at(index + 2 * step) == "super").count();
                if steps == depth + inner.len() && at(index + 2 * steps - 1) == "::" {
                    found.extend(names_after(&words, index + 2 * steps));
                }
                index += 2 * steps - 1;
            }
            _ => {}
        }
        index += 1;
    }
    found
}

/// The name at `start`, or the first names of each part of the group that begins there.
fn names_after(words: &[(usize, &str)], start: usize) -> Vec<(usize, String)> {
    let mut names = Vec::new();
    let mut depth = 0;
    let mut first = true;
    for &(line, word) in &words[start.min(words.len())..] {
        match word {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 1 => first = true,
            _ if depth <= 1 && first => {
                names.push((line, word.to_string()));
                first = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

/// Words and punctuation with their lines; `::` is one item.
fn words(code: &str) -> Vec<(usize, &str)> {
    let mut words = Vec::new();
    for (index, line) in code.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(c) = rest.chars().next() {
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            let end = match rest.find(|c| !is_word(c)) {
                Some(0) if rest.starts_with("::") => 2,
                Some(0) => c.len_utf8(),
                Some(end) => end,
                None => rest.len(),
            };
            words.push((index + 1, &rest[..end]));
            rest = rest[end..].trim_start();
        }
    }
    words
}

/// The text with comments and string contents replaced by spaces; lines are kept.
fn code_only(text: &str) -> String {
    let mut code = String::new();
    let mut chars = text.chars().peekable();
    let mut previous = ' ';
    while let Some(c) = chars.next() {
        match c {
            '/' if chars.peek() == Some(&'/') => while chars.next_if(|&c| c != '\n').is_some() {},
            '/' if chars.peek() == Some(&'*') => {
                let mut last = ' ';
                for c in chars.by_ref() {
                    code.extend((c == '\n').then_some(c));
                    if last == '*' && c == '/' {
                        break;
                    }
                    last = c;
                }
            }
            '"' | '#' if c == '"' || (previous == 'r' && matches!(chars.peek(), Some('"' | '#'))) => {
                let mut hashes = usize::from(c == '#');
                while hashes > 0 && chars.next_if_eq(&'#').is_some() {
                    hashes += 1;
                }
                if hashes > 0 && chars.next_if_eq(&'"').is_none() {
                    continue;
                }
                let raw = previous == 'r';
                let end = format!("\"{}", "#".repeat(hashes));
                let mut inside = String::new();
                while let Some(c) = chars.next() {
                    code.extend((c == '\n').then_some(c));
                    inside.push(c);
                    if !raw && c == '\\' {
                        code.extend(chars.next().filter(|&c| c == '\n'));
                        inside.clear();
                    } else if inside.ends_with(&end) {
                        break;
                    }
                }
            }
            // A quote as a character literal must not open a string.
            '\'' if chars.peek() == Some(&'"') => {
                chars.next();
            }
            '\'' if chars.peek() == Some(&'\\') => {
                chars.next();
                chars.next();
            }
            _ => code.push(c),
        }
        previous = c;
    }
    code
}

fn unsafes(file: &Path) -> Vec<Offence> {
    let code = code_only(&read(file));
    let found = words(&code).into_iter().filter(|&(_, word)| word == "unsafe");
    found.map(|(line, _)| Offence { file: file.into(), line, what: "`unsafe` outside its places".into() }).collect()
}

/// Rust sources below `folder`, except inputs of other tests.
fn sources(folder: &str) -> Vec<PathBuf> {
    let input = |file: &Path| file.iter().any(|part| part == "ui" || part == "golden" || part == "fixtures");
    files(folder).into_iter().filter(|file| file.extension().is_some_and(|end| end == "rs") && !input(file)).collect()
}

fn is_text(file: &Path) -> bool {
    let by_name =
        file.extension().is_none_or(|end| ["rs", "md", "toml", "sh", "json", "txt"].iter().any(|&e| end == e));
    by_name && fs::read(workspace().join(file)).is_ok_and(|bytes| std::str::from_utf8(&bytes).is_ok())
}

/// Files below `folder` of the workspace, relative to the workspace, without build results and version control.
fn files(folder: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(workspace().join(&folder)).expect("a folder of the workspace") {
            let entry = entry.expect("a folder that can be listed");
            let path = folder.join(entry.file_name());
            let kind = entry.file_type().expect("a file type");
            if kind.is_file() && entry.file_name() != ".git" {
                files.push(path);
            } else if kind.is_dir() && !["target", ".git"].iter().any(|&name| entry.file_name() == name) {
                folders.push(path);
            }
        }
    }
    files.sort();
    files
}

fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn read(file: impl AsRef<Path>) -> String {
    let path = workspace().join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn report(offences: &[Offence]) {
    let lines: Vec<String> = offences.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "\n{}\n", lines.join("\n"));
}

/// The checks find violations in made-up files.
#[test]
fn each_upward_import_is_found() {
    let table = "# Ranks\n## `x`\n| rank | module |\n| ---: | --- |\n| 0 | `error` |\n| 1 | `codec`, `schema` | data |\n| 2 | `state` |\n## `y`\n| 3 | `error` |\n";
    let ranks = ranks(table, "x");
    assert_eq!(
        ranks,
        [("codec", 1), ("error", 0), ("schema", 1), ("state", 2)].map(|(m, r)| (m.to_string(), r)).into()
    );
    let found = |file: &str, text: &str| -> Vec<(usize, String)> {
        upward_edges(Path::new(file), text, "x/src", &ranks).into_iter().map(|o| (o.line, o.what)).collect()
    };
    let up = "`codec` (rank 1) imports `state` (rank 2): only lower ranks".to_string();
    let side = "`codec` (rank 1) imports `schema` (rank 1): only lower ranks".to_string();
    let root = "`codec` imports `crate::Error`: name the module that defines it, not the root".to_string();
    let file = "x/src/codec/reader.rs";
    assert_eq!(found(file, "use crate::error::Error;\nuse crate::codec::writer;\nuse super::writer;\n"), []);
    assert_eq!(found(file, "\nuse crate::state::A;\n"), [(2, up.clone())]);
    assert_eq!(
        found(file, "use crate::{error::{Error, Kind},\n schema::B, state};"),
        [(2, side.clone()), (2, up.clone())]
    );
    assert_eq!(found(file, "fn f() -> crate::Error {}"), [(1, root)]);
    assert_eq!(found(file, "use super::super::state::A;"), [(1, up.clone())]);
    assert_eq!(found("x/src/codec.rs", "use super::state::A;"), [(1, up.clone())]);
    assert_eq!(found("x/src/codec/mod.rs", "mod tests { use super::super::schema; }"), [(1, side)]);
    assert_eq!(found("x/src/codec/mod.rs", "mod tests { use super::schema; }"), []);
    assert_eq!(
        found(file, "// crate::state\nlet a = \"crate::state\"; /* crate::state */ let q = '\"'; crate::state::f()"),
        [(2, up)]
    );
    assert_eq!(found(file, "let r = r#\"a \" crate::state\"#; let e = \"\\\" crate::state\";"), []);
    assert_eq!(found("x/src/odd.rs", "").len(), 1);
    assert_eq!(words(&code_only("let c = '\\''; unsafe {}")).iter().filter(|(_, w)| *w == "unsafe").count(), 1);
}
