//! Compares the public interface of `vmstate` with a kept list, so that an added, removed or changed name appears in
//! review.
//!
//! The list is made from the source text, because rustdoc's JSON needs a nightly compiler. Items that a `macro_rules!`
//! of the crate generates are not listed. `BLESS=1` renews `tests/fixtures/public-interface.txt`.

mod render;
mod source;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use source::{Found, Id, Source};
use syn::Item;

/// Most names at the crate's root; a longer list would not be read.
const FRONT_DOOR: usize = 28;

fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[test]
fn the_public_interface_is_the_kept_one() {
    let now = interface(&Source::read(&workspace().join("vmstate/src")));
    let path = workspace().join("tests/fixtures/public-interface.txt");
    if std::env::var_os("BLESS").is_some_and(|value| value == "1") {
        fs::write(&path, &now).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    let gone = kept.lines().filter(|line| !now.lines().any(|other| other == *line)).map(|line| format!("- {line}"));
    let new = now.lines().filter(|line| !kept.lines().any(|other| other == *line)).map(|line| format!("+ {line}"));
    let changes: Vec<String> = gone.chain(new).collect();
    let help = "If the change is intended, describe it in CHANGELOG.md and run again with BLESS=1.";
    assert!(kept == now, "the public interface has changed\n\n{}\n\n{help}\n", changes.join("\n"));
}

#[test]
fn the_front_door_is_small() {
    let source = Source::read(&workspace().join("vmstate/src"));
    let public = source.public();
    let root: Vec<&String> = public.values().flatten().filter(|path| path.matches("::").count() == 1).collect();
    assert!(root.len() <= FRONT_DOOR, "{} names at the root: {root:?}", root.len());
}

/// An embedder should not have to follow the versions of a crate that only the library uses.
#[test]
fn no_signature_names_serde_json() {
    let source = Source::read(&workspace().join("vmstate/src"));
    let mut named = Vec::new();
    for id in source.public().keys() {
        let names = source.names_of("serde_json", id);
        let lines = lines(&source, id);
        let is_name = |word: &str| names.iter().any(|name| name == word);
        named.extend(
            lines.into_iter().filter(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(is_name)),
        );
    }
    assert!(named.is_empty(), "{named:#?}");
}

/// The lines for an item and its members.
fn lines(source: &Source, id: &Id) -> Vec<String> {
    let item = source.item(id);
    let members = render::members(item).into_iter().chain(source.implemented(id));
    [render::item(item, &source.features(id))].into_iter().chain(members).collect()
}

/// The lines of all public items: each item once, under its shortest public path, with all of its public members.
fn interface(source: &Source) -> String {
    let mut list = Vec::new();
    for (id, paths) in source.public() {
        let (path, others) = paths.split_first().expect("a public item has a path");
        let also = if others.is_empty() { String::new() } else { format!("  (also {})", others.join(", ")) };
        let of_item = lines(source, &id);
        let (item, members) = of_item.split_first().expect("an item is a line");
        let members = members.iter().map(|member| format!("{path}    {member}\n"));
        list.push((path.clone(), format!("{path}: {item}{also}\n") + &members.collect::<String>()));
    }
    list.sort();
    list.into_iter().map(|(_, lines)| lines).collect()
}

/// The list is complete for a made-up crate.
#[test]
fn re_exports_hidden_items_and_members_are_handled() {
    let files = BTreeMap::from([
        (
            "lib.rs",
            "pub mod a; mod b; pub use b::{Inner as Outer, deep::*}; #[doc(hidden)] pub mod raw { pub struct Raw; }
             #[macro_export] macro_rules! shout { () => {} } pub(crate) struct Closed;",
        ),
        (
            "a.rs",
            "#[derive(Clone)] #[non_exhaustive] pub struct A<'x> { pub open: &'x str, closed: u8 } pub use crate::b::Inner;",
        ),
        (
            "b/mod.rs",
            "pub mod deep; pub struct Inner(pub u8, u16); impl Inner { pub fn get(&self) -> u8 { 0 } fn no() {} }",
        ),
        (
            "b/deep.rs",
            "#[cfg(feature = \"tools\")] pub trait T { fn f(&self); } use super::Inner; impl T for Inner { fn f(&self) {} }",
        ),
    ]);
    let source = Source::of(|file| files.get(file).map(|text| (*text).to_owned()));
    assert_eq!(
        interface(&source).lines().collect::<Vec<_>>(),
        [
            "vmstate::Outer: struct Inner  (also vmstate::a::Inner)",
            "vmstate::Outer    pub 0: u8",
            "vmstate::Outer    and private fields",
            "vmstate::Outer    pub fn get(&self) -> u8",
            "vmstate::Outer    impl T for Inner",
            "vmstate::T: trait T [tools]",
            "vmstate::T    fn f(&self)",
            "vmstate::a::A: #[derive(Clone)] #[non_exhaustive] struct A<'x>",
            "vmstate::a::A    pub open: &'x str",
            "vmstate::a::A    and private fields",
            "vmstate::shout: macro shout!",
        ]
    );
    assert!(matches!(source.find(&[], &["Closed".into()]), Some(Found::Item(Id { .. }))));
    assert!(matches!(source.item(&Id { module: vec![], name: "Closed".into() }), Item::Struct(_)));
}
