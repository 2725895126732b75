//! Attributes of a struct that is a section.

use super::{Item, Once, Spanned};
use crate::ctxt::Ctxt;
use crate::symbol;

/// Attributes of the struct as a section, except `needed`.
#[derive(Default)]
pub(crate) struct SectionAttrs {
    pub(crate) priority: Once<u32>,
    pub(crate) instance_id: Once<u32>,
    pub(crate) alias_id: Once<u32>,
    pub(crate) early_setup: Once<()>,
    /// Why the section cannot be migrated.
    pub(crate) unmigratable: Once<String>,
}

impl SectionAttrs {
    /// Stores `item` if it is an attribute of a section, and returns whether it is.
    pub(crate) fn take(&mut self, ctxt: &Ctxt, item: &Item) -> bool {
        match item.word.to_string().as_str() {
            symbol::PRIORITY => self.priority.set(ctxt, item, item.number(ctxt)),
            symbol::INSTANCE_ID => self.instance_id.set(ctxt, item, item.number(ctxt)),
            symbol::ALIAS_ID => self.alias_id.set(ctxt, item, item.number(ctxt)),
            symbol::EARLY_SETUP => self.early_setup.set(ctxt, item, item.flag(ctxt)),
            symbol::UNMIGRATABLE => self.unmigratable.set(ctxt, item, reason(ctxt, item)),
            _ => return false,
        }
        true
    }
}

/// Parses `unmigratable`, or `unmigratable = "reason"`.
fn reason(ctxt: &Ctxt, item: &Item) -> Option<Spanned<String>> {
    if item.has_value() {
        return item.text(ctxt);
    }
    item.flag(ctxt).map(|flag| Spanned { value: "its state cannot be sent".to_owned(), tokens: flag.tokens })
}
