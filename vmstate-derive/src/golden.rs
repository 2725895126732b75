//! Golden expansions: what `tests/fixtures/NAME.rs` expands to is kept in `NAME.expanded.rs`, so that a change of the
//! derived code shows in review. `BLESS=1 cargo test -p vmstate-derive` writes it anew.

use std::path::Path;
use std::{env, fs};

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use syn::DeriveInput;

fn golden(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let source = fs::read_to_string(folder.join(name).with_extension("rs")).unwrap();
    let input: DeriveInput = syn::parse_str(&source).unwrap();
    let mut lines = Lines::default();
    lines.put(crate::derive(input));
    lines.end();
    let expanded = folder.join(name).with_extension("expanded.rs");
    if env::var_os("BLESS").is_some() {
        fs::write(&expanded, &lines.text).unwrap();
    }
    let kept = fs::read_to_string(&expanded).unwrap_or_default();
    assert!(kept == lines.text, "{name} expands differently: run with BLESS=1 and look at the diff");
}

/// Formats tokens as text: one line for each statement, indented by braces.
#[derive(Default)]
struct Lines {
    text: String,
    line: String,
    depth: usize,
}

impl Lines {
    fn put(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                    self.line.push('{');
                    self.end();
                    self.depth += 1;
                    self.put(group.stream());
                    self.end();
                    self.depth -= 1;
                    self.line.push('}');
                    self.end();
                }
                TokenTree::Punct(punct) if punct.as_char() == ';' => {
                    self.line.push(';');
                    self.end();
                }
                other => {
                    self.line.push_str(&other.to_string());
                    if !matches!(&other, TokenTree::Punct(punct) if punct.spacing() == Spacing::Joint) {
                        self.line.push(' ');
                    }
                }
            }
        }
    }

    fn end(&mut self) {
        let line = self.line.trim();
        if !line.is_empty() {
            self.text.push_str(&"    ".repeat(self.depth));
            self.text.push_str(line);
            self.text.push('\n');
        }
        self.line.clear();
    }
}

#[test]
fn plain() {
    golden("plain");
}

#[test]
fn every_attribute() {
    golden("every_attribute");
}

#[test]
fn generic() {
    golden("generic");
}

#[test]
fn remote() {
    golden("remote");
}

#[test]
fn variants() {
    golden("variants");
}

#[test]
fn with_mistakes() {
    golden("with_mistakes");
}
