//! The forms of input: a struct with a description, a transparent struct, or an enum.

use proc_macro2::{Ident, TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Data, DeriveInput, Path};

use crate::ast::Container;
use crate::attr::container::ContainerAttrs;
use crate::attr::{Item, Once, Spanned, all_items};
use crate::ctxt::Ctxt;
use crate::enumeration::Enumeration;
use crate::transparent::Transparent;
use crate::variants::Variants;
use crate::{check, expand, symbol};

/// The input, parsed and checked.
pub(crate) enum Shape<'a> {
    Described(Box<Container<'a>>),
    Transparent(Transparent<'a>),
    Enumeration(Enumeration<'a>),
    Variants(Variants<'a>),
}

impl<'a> Shape<'a> {
    /// The shape, and the path of the `vmstate` crate. Errors go to `ctxt`; the shape is `None` if the input cannot be expanded.
    pub(crate) fn from_input(ctxt: &Ctxt, input: &'a DeriveInput) -> (Option<Self>, TokenStream) {
        let items = all_items(ctxt, &input.attrs);
        let transparent = items.iter().any(|item| item.word == symbol::TRANSPARENT);
        if let (Data::Struct(_), Some(packed)) = (&input.data, packed(input)) {
            ctxt.error(packed, "fields of a packed struct cannot be borrowed: derive it for a struct that is not, as a `remote` of this one");
        }
        match &input.data {
            Data::Struct(data) if transparent => {
                let krate = only_crate(ctxt, &items, "`transparent`: the struct is its field");
                (Transparent::new(ctxt, input, data).map(Self::Transparent), krate)
            }
            Data::Struct(data) => {
                let attrs = ContainerAttrs::from_items(ctxt, items);
                let krate = crate_path(attrs.krate.clone());
                let container = Container::new(ctxt, input, data, attrs);
                check::check(ctxt, &container);
                (Some(Self::Described(Box::new(container))), krate)
            }
            Data::Enum(data) if data.variants.iter().any(|variant| !variant.fields.is_empty()) => {
                let krate = only_crate(ctxt, &items, "an enum: it is a number and the fields of a variant");
                (Variants::new(ctxt, input, data).map(Self::Variants), krate)
            }
            Data::Enum(data) => {
                let krate = only_crate(ctxt, &items, "an enum: it is an integer");
                (Enumeration::new(ctxt, input, data).map(Self::Enumeration), krate)
            }
            Data::Union(data) => {
                ctxt.error(data.union_token, "VmState can be derived for structs and enums");
                (None, crate_path(None))
            }
        }
    }

    /// Generates all impls.
    pub(crate) fn expand(&self, krate: &TokenStream) -> TokenStream {
        match self {
            Self::Described(container) => expand::expand(container, krate),
            Self::Transparent(transparent) => transparent.expand(krate),
            Self::Enumeration(enumeration) => enumeration.expand(krate),
            Self::Variants(variants) => variants.expand(krate),
        }
    }
}

/// Reads `crate`, the only attribute of a type without a description, and reports all others.
fn only_crate(ctxt: &Ctxt, items: &[Item], place: &str) -> TokenStream {
    let mut krate = Once::default();
    for item in items {
        match item.word.to_string().as_str() {
            symbol::CRATE => krate.set(ctxt, item, item.path(ctxt)),
            symbol::TRANSPARENT if place.contains(symbol::TRANSPARENT) => {}
            word => ctxt.error(&item.word, format!("`{word}` does not go with {place} on the wire")),
        }
    }
    crate_path(krate.get())
}

/// The `repr` that makes fields unaligned.
fn packed(input: &DeriveInput) -> Option<Ident> {
    let reprs = input.attrs.iter().filter(|attr| attr.path().is_ident("repr"));
    let words = reprs.filter_map(|attr| attr.meta.require_list().ok()).flat_map(|list| list.tokens.clone());
    words
        .filter_map(|word| if let TokenTree::Ident(word) = word { Some(word) } else { None })
        .find(|word| word == "packed")
}

fn crate_path(path: Option<Spanned<Path>>) -> TokenStream {
    path.map_or_else(|| quote::quote!(::vmstate), |path| path.value.to_token_stream())
}
