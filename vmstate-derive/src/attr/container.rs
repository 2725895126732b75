//! Attributes of the struct and of its subsections.

use syn::Path;

use super::section::SectionAttrs;
use super::{Item, Once, Spanned};
use crate::ctxt::Ctxt;
use crate::symbol;

/// Attributes of the struct.
pub(crate) struct ContainerAttrs {
    pub(crate) main: PartAttrs,
    pub(crate) section: SectionAttrs,
    pub(crate) subsections: Vec<(Item, PartAttrs)>,
    pub(crate) krate: Option<Spanned<Path>>,
    pub(crate) remote: Option<Spanned<Path>>,
}

/// Attributes of a part with fields and hooks of its own: the struct itself, or a subsection.
#[derive(Default)]
pub(crate) struct PartAttrs {
    pub(crate) name: Option<Spanned<String>>,
    pub(crate) version: Option<Spanned<u32>>,
    pub(crate) minimum_version: Option<Spanned<u32>>,
    pub(crate) needed: Option<Spanned<Path>>,
    pub(crate) pre_save: Option<Spanned<Path>>,
    pub(crate) post_save: Option<Spanned<Path>>,
    pub(crate) pre_load: Option<Spanned<Path>>,
    pub(crate) post_load: Option<Spanned<Path>>,
    pub(crate) validate: Option<Spanned<Path>>,
}

impl ContainerAttrs {
    pub(crate) fn from_items(ctxt: &Ctxt, items: Vec<Item>) -> Self {
        let mut krate = Once::default();
        let mut remote = Once::default();
        let mut subsections = Vec::new();
        let mut section = SectionAttrs::default();
        let mut own = Vec::new();
        for item in items {
            match item.word.to_string().as_str() {
                symbol::CRATE => krate.set(ctxt, &item, item.path(ctxt)),
                symbol::REMOTE => remote.set(ctxt, &item, item.path(ctxt)),
                symbol::SUBSECTION => {
                    if let Some(items) = item.list(ctxt) {
                        let part = PartAttrs::from_items(ctxt, &items, "`subsection(…)`", symbol::IN_SUBSECTION);
                        subsections.push((item, part));
                    }
                }
                _ if section.take(ctxt, &item) => {}
                _ => own.push(item),
            }
        }
        let main = PartAttrs::from_items(ctxt, &own, "a struct", symbol::ON_CONTAINER);
        Self { main, section, subsections, krate: krate.get(), remote: remote.get() }
    }
}

impl PartAttrs {
    fn from_items(ctxt: &Ctxt, items: &[Item], place: &str, allowed: &[&str]) -> Self {
        let mut name = Once::default();
        let mut version = Once::default();
        let mut minimum_version = Once::default();
        let mut needed = Once::default();
        let mut pre_save = Once::default();
        let mut post_save = Once::default();
        let mut pre_load = Once::default();
        let mut post_load = Once::default();
        let mut validate = Once::default();
        for item in items {
            let word = item.word.to_string();
            if !allowed.contains(&word.as_str()) {
                item.unknown(ctxt, place, allowed);
                continue;
            }
            match word.as_str() {
                symbol::NAME => name.set(ctxt, item, item.text(ctxt)),
                symbol::VERSION => version.set(ctxt, item, item.number(ctxt)),
                symbol::MINIMUM_VERSION => minimum_version.set(ctxt, item, item.number(ctxt)),
                symbol::NEEDED => needed.set(ctxt, item, item.path(ctxt)),
                symbol::PRE_SAVE => pre_save.set(ctxt, item, item.path(ctxt)),
                symbol::POST_SAVE => post_save.set(ctxt, item, item.path(ctxt)),
                symbol::PRE_LOAD => pre_load.set(ctxt, item, item.path(ctxt)),
                symbol::POST_LOAD => post_load.set(ctxt, item, item.path(ctxt)),
                symbol::VALIDATE => validate.set(ctxt, item, item.path(ctxt)),
                _ => item.unknown(ctxt, place, allowed),
            }
        }
        Self {
            name: name.get(),
            version: version.get(),
            minimum_version: minimum_version.get(),
            needed: needed.get(),
            pre_save: pre_save.get(),
            post_save: post_save.get(),
            pre_load: pre_load.get(),
            post_load: post_load.get(),
            validate: validate.get(),
        }
    }
}
