//! The tables in the manual are generated from the command table.

use std::path::Path;

use crate::control::tables;

/// `BLESS=1` rewrites the manual.
#[test]
fn the_tables_in_the_manual_are_those_of_the_commands() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/control.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let mut renewed = page.clone();
    for (name, table) in tables() {
        let (begin, end) = (format!("<!-- table: {name} -->\n"), "<!-- end -->");
        let from = renewed.find(&begin).unwrap_or_else(|| panic!("docs/control.md lacks {begin}")) + begin.len();
        let to = from + renewed[from..].find(end).unwrap();
        renewed.replace_range(from..to, &table);
    }
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &renewed).unwrap();
        return;
    }
    assert!(page == renewed, "docs/control.md is not the table: BLESS=1 cargo test -p minivmm --lib manual");
}
