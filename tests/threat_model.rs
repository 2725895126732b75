//! `docs/threat-model.md` names for each of its rows the code that enforces it and the test that shows it: all of these
//! must exist.

use std::fs;
use std::path::{Path, PathBuf};

/// A table's cell: each path in it, with the names that follow the path.
type Named<'a> = Vec<(&'a str, Vec<&'a str>)>;

#[test]
fn each_row_names_code_and_tests_that_exist() {
    let page = fs::read_to_string(workspace().join("docs/threat-model.md")).unwrap();
    let mut wrong = Vec::new();
    let mut rows = 0;
    for row in page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [what, _, enforced, shown] = cells[..] else {
            wrong.push(format!("{} cells: {row}", cells.len()));
            continue;
        };
        if enforced == "enforced in" {
            continue;
        }
        rows += 1;
        for (cell, is_there) in [(enforced, is_in as fn(&str, &str) -> bool), (shown, is_test)] {
            match named(cell) {
                Ok(named) => wrong.extend(named.iter().flat_map(|(path, names)| missing(path, names, is_there))),
                Err(error) => wrong.push(format!("{what}: {error}")),
            }
        }
    }
    assert!(wrong.is_empty(), "docs/threat-model.md:\n{}", wrong.join("\n"));
    assert!(rows > 60, "{rows} rows: has the form of the page changed?");
}

/// The parts of a cell in backticks: paths, which have a slash, each with the names after it.
fn named(cell: &str) -> Result<Named<'_>, String> {
    let mut named: Named = Vec::new();
    for text in cell.split('`').skip(1).step_by(2) {
        match (text.contains('/'), named.last_mut()) {
            (true, _) => named.push((text, Vec::new())),
            (false, Some((_, names))) => names.push(text),
            (false, None) => return Err(format!("{text} has no file before it")),
        }
    }
    if named.is_empty() { Err(format!("no file is named: {cell:?}")) } else { Ok(named) }
}

/// The names that do not exist at `path`.
fn missing(path: &str, names: &[&str], is_there: fn(&str, &str) -> bool) -> Vec<String> {
    let files = sources(&workspace().join(path));
    if files.is_empty() {
        return vec![format!("{path} does not exist, or has no code")];
    }
    let absent = names.iter().filter(|name| !files.iter().any(|file| is_there(file, name)));
    absent.map(|name| format!("{path} has no {name}")).collect()
}

/// The text of a file, or of all files in a folder.
fn sources(path: &Path) -> Vec<String> {
    if path.is_file() {
        return vec![fs::read_to_string(path).unwrap()];
    }
    let entries = fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().path());
    let code = |path: &PathBuf| path.is_dir() || path.extension().is_some_and(|extension| extension == "rs");
    entries.filter(code).flat_map(|path| sources(&path)).collect()
}

/// Whether the code has this name; for `Type::name` both parts.
fn is_in(text: &str, name: &str) -> bool {
    let is_word = |at: usize, part: &str| {
        let of_name = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
        !of_name(at.checked_sub(1).and_then(|before| text.as_bytes().get(before)))
            && !of_name(text.as_bytes().get(at + part.len()))
    };
    name.split("::").all(|part| text.match_indices(part).any(|(at, _)| is_word(at, part)))
}

/// Whether a test has this name, or a fuzz target, whose known inputs are tests.
fn is_test(text: &str, name: &str) -> bool {
    let attributes = |text: &str| {
        let lines = text.lines().rev().map(str::trim);
        lines.skip(1).take_while(|line| !line.is_empty() && *line != "}").any(|line| line == "#[test]")
    };
    let function = format!("fn {name}(");
    text.match_indices(&function).any(|(at, _)| attributes(&format!("{}.", &text[..at])))
        || text.contains(&format!("TARGET: Target = Target {{ name: \"{name}\","))
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

#[test]
fn missing_names_are_found() {
    let text = "    /// Why.\n    #[test]\n    fn holds() {}\n\n    fn helper() {}\n";
    assert!(is_test(text, "holds"));
    assert!(!is_test(text, "hold") && !is_test(text, "helper") && !is_test(text, "Why"));
    assert!(is_in("const PIECE: u64 = 1;", "PIECE") && !is_in("const RANGE_PIECE: u64 = 1;", "PIECE"));
    assert_eq!(named("`a/b.rs`: `one`, `two`; `c/d`"), Ok(vec![("a/b.rs", vec!["one", "two"]), ("c/d", vec![])]));
    assert!(named("`one`").is_err() && named("none of its own").is_err());
    assert_eq!(missing("docs/none", &[], is_in), ["docs/none does not exist, or has no code"]);
    assert_eq!(missing("tests/threat_model.rs", &["is_in", "what_there_is_not"], is_test).len(), 2);
}
