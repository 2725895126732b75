//! Renders items as lines of text.

use std::collections::BTreeSet;

use quote::{ToTokens, quote};
use syn::{Attribute, Field, Fields, ImplItem, Item, ItemImpl, Meta, TraitItem, Visibility};

/// The line for an item, with its generics, derives, and the features that it needs.
pub(crate) fn item(item: &Item, features: &BTreeSet<String>) -> String {
    let (attributes, text) = match item {
        Item::Const(item) => (
            &item.attrs,
            one(&{
                let (ident, of) = (&item.ident, &item.ty);
                quote!(const #ident: #of)
            }),
        ),
        Item::Enum(item) => (
            &item.attrs,
            one(&{
                let (ident, generics) = (&item.ident, &item.generics);
                quote!(enum #ident #generics)
            }),
        ),
        Item::Fn(item) => (&item.attrs, one(&item.sig)),
        Item::Static(item) => (
            &item.attrs,
            one(&{
                let (ident, of) = (&item.ident, &item.ty);
                quote!(static #ident: #of)
            }),
        ),
        Item::Struct(item) => (
            &item.attrs,
            one(&{
                let (ident, generics) = (&item.ident, &item.generics);
                quote!(struct #ident #generics)
            }),
        ),
        Item::Trait(item) => (&item.attrs, {
            let (ident, generics) = (&item.ident, &item.generics);
            let above = &item.supertraits;
            let colon = item.colon_token.as_ref();
            one(&quote!(trait #ident #generics #colon #above))
        }),
        Item::Type(item) => (
            &item.attrs,
            one(&{
                let (ident, generics, of) = (&item.ident, &item.generics, &item.ty);
                quote!(type #ident #generics = #of)
            }),
        ),
        Item::Macro(item) => (&item.attrs, format!("macro {}!", item.ident.as_ref().expect("a name"))),
        _ => unreachable!("the item has a name"),
    };
    let kept = attributes.iter().filter(|one| one.path().is_ident("derive") || one.path().is_ident("non_exhaustive"));
    let mut line: String = kept.map(|attribute| one(attribute) + " ").collect();
    line += &text;
    if !features.is_empty() {
        line += &format!(" [{}]", features.iter().cloned().collect::<Vec<_>>().join(", "));
    }
    line
}

/// The lines for fields, variants, and items that a trait declares.
pub(crate) fn members(item: &Item) -> Vec<String> {
    match item {
        Item::Struct(item) => fields(&item.fields),
        Item::Enum(item) => item
            .variants
            .iter()
            .map(|variant| {
                let (ident, fields) = (&variant.ident, plain(&variant.fields));
                one(&quote!(#ident)) + &fields
            })
            .collect(),
        Item::Trait(item) => {
            let shown = item.items.iter().filter_map(|item| match item {
                TraitItem::Const(item) => (!is_hidden(&item.attrs)).then(|| {
                    let (ident, of) = (&item.ident, &item.ty);
                    one(&quote!(const #ident: #of)) + if item.default.is_some() { " (has a default)" } else { "" }
                }),
                TraitItem::Fn(item) => (!is_hidden(&item.attrs))
                    .then(|| one(&item.sig) + if item.default.is_some() { " (has a default)" } else { "" }),
                TraitItem::Type(item) => (!is_hidden(&item.attrs)).then(|| {
                    let (ident, bounds) = (&item.ident, &item.bounds);
                    let colon = item.colon_token.as_ref();
                    one(&quote!(type #ident #colon #bounds))
                }),
                _ => None,
            });
            shown.collect()
        }
        _ => Vec::new(),
    }
}

fn fields(fields: &Fields) -> Vec<String> {
    let is_open = |field: &&Field| matches!(field.vis, Visibility::Public(_)) && !is_hidden(&field.attrs);
    let named = fields.iter().enumerate().filter(|(_, field)| is_open(field)).map(|(index, field)| {
        let name = field.ident.as_ref().map_or_else(|| index.to_string(), ToString::to_string);
        format!("pub {name}: {}", one(&field.ty))
    });
    let closed = fields.iter().any(|field| !is_open(&field)).then(|| "and private fields".to_owned());
    named.chain(closed).collect()
}

/// The fields of a variant.
fn plain(fields: &Fields) -> String {
    let named = fields.iter().map(|field| match &field.ident {
        Some(name) => format!("{name}: {}", one(&field.ty)),
        None => one(&field.ty),
    });
    let list = named.collect::<Vec<_>>().join(", ");
    match fields {
        Fields::Named(_) => format!(" {{ {list} }}"),
        Fields::Unnamed(_) => format!("({list})"),
        Fields::Unit => String::new(),
    }
}

/// Public methods and constants of an `impl` without a trait.
pub(crate) fn methods(item: &ItemImpl) -> Vec<String> {
    let shown = item.items.iter().filter_map(|item| match item {
        ImplItem::Fn(item) if matches!(item.vis, Visibility::Public(_)) && !is_hidden(&item.attrs) => {
            Some(format!("pub {}", one(&item.sig)))
        }
        ImplItem::Const(item) if matches!(item.vis, Visibility::Public(_)) && !is_hidden(&item.attrs) => {
            let (ident, of) = (&item.ident, &item.ty);
            Some(format!("pub {}", one(&quote!(const #ident: #of))))
        }
        _ => None,
    });
    shown.collect()
}

/// `impl Trait for Type`.
pub(crate) fn header(item: &ItemImpl) -> String {
    let (generics, of) = (&item.generics, &item.self_ty);
    let (path, _) = item.trait_.as_ref().expect("an impl of a trait");
    let bounds = &item.generics.where_clause;
    one(&quote!(impl #generics #path for #of #bounds))
}

pub(crate) fn is_hidden(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("doc")
            && matches!(&attribute.meta, Meta::List(list) if list.tokens.to_string().contains("hidden"))
    })
}

/// The condition of a `#[cfg(…)]`.
pub(crate) fn cfg(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => Some(list.tokens.to_string()),
        _ => None,
    })
}

/// The features that a `#[cfg(…)]` requires.
pub(crate) fn features(attributes: &[Attribute]) -> Vec<String> {
    let Some(cfg) = cfg(attributes) else { return Vec::new() };
    let names = cfg.split("feature = \"").skip(1).filter_map(|rest| rest.split_once('"'));
    names.map(|(name, _)| name.to_owned()).collect()
}

/// The tokens on one line, spaced as in handwritten code.
fn one(tokens: &impl ToTokens) -> String {
    let mut line = spaced(tokens);
    for (odd, plain) in [(",)", ")"), (":? ", ": ?"), ("+? ", "+ ?")] {
        line = line.replace(odd, plain);
    }
    line
}

fn spaced(tokens: &impl ToTokens) -> String {
    let mut line = String::new();
    for word in tokens.to_token_stream().to_string().split_whitespace() {
        let glued = [")", "]", ">", ",", ";", ":", "::", "?", "("].iter().any(|end| word.starts_with(end))
            && !line.ends_with("->")
            && !line.ends_with('=')
            || word.starts_with('<') && !line.ends_with("->") && !line.ends_with("for")
            || ["(", "[", "<", "&", "::", "!", "#"].iter().any(|begin| line.ends_with(begin));
        if !line.is_empty() && !glued {
            line.push(' ');
        }
        line.push_str(word);
    }
    line
}
