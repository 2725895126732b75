//! Checks of the layout that need the types: constants that do not evaluate if a reader could mistake some bytes.

use proc_macro2::{Ident, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::ExprRange;
use syn::spanned::Spanned as _;

use super::{codec, desc, fields_const};
use crate::ast::{By, Codec, Container, Field};

/// For a struct without parameters: one constant a rule, so that each broken one is shown, at the field's type or at
/// the struct's name.
pub(super) fn constants(container: &Container<'_>) -> Option<TokenStream> {
    let ident = &container.input.ident;
    let plain = container.input.generics.params.is_empty();
    plain.then(|| rules(container, ident).map(|rule| quote!(const _: () = #rule;)).collect())
}

/// For a generic struct: the value of `__FRAMED`, which a load needs, so that it is checked once the parameters are
/// known.
pub(super) fn value(container: &Container<'_>) -> TokenStream {
    if container.input.generics.params.is_empty() {
        return quote!(());
    }
    let this = format_ident!("Self");
    let rules = rules(container, &this);
    quote!({ #(#rules;)* })
}

fn rules<'a>(container: &'a Container<'_>, this: &'a Ident) -> impl Iterator<Item = TokenStream> + 'a {
    let fields = (0..container.parts.len()).flat_map(move |part| fields_of(container, part, this));
    let stolen = (container.parts.len() > 1).then(|| {
        quote_spanned! {container.parts[0].tokens.span()=>
            ::core::assert!(
                !<#this as __v::VmState>::DESCRIPTION.subsections_are_stolen(),
                "the names of these subsections begin with the name of a struct right before them, which would take \
                them for its own: rename one of them"
            )
        }
    });
    fields.chain(stolen).chain(struct_versions(container))
}

/// A `struct_version` that the struct never had could not be saved or loaded.
fn struct_versions<'a>(container: &'a Container<'_>) -> impl Iterator<Item = TokenStream> + 'a {
    container.migrated().filter_map(|(_, field)| {
        let version = field.attrs.struct_version.as_ref()?;
        let (ty, number) = (field.ty, version.value);
        Some(quote_spanned! {version.tokens.span()=>
            ::core::assert!(
                <#ty as __v::VmState>::DESCRIPTION.has_version(#number),
                "the struct has no such version: it is above its `version` or below its `minimum_version`"
            )
        })
    })
}

fn fields_of(container: &Container<'_>, part: usize, this: &Ident) -> Vec<TokenStream> {
    let list = fields_const(part);
    let last = container.fields_of(part).count().saturating_sub(1);
    let mut entry = 0;
    let mut rules = Vec::new();
    for (place, (_, field)) in container.fields_of(part).enumerate() {
        let own = entry + desc::entries_before(field);
        entry = own + 1 + desc::entries_after(field);
        if let Codec::Slice(slice) | Codec::BufferSlice(slice) = &field.codec {
            rules.push(within_the_array(field, slice));
        }
        if field.attrs.unframed.is_some() || !may_hold_structs(field) {
            continue;
        }
        let span = field.ty.span();
        let kind = quote!(<#this as __Parts>::#list[#own].kind);
        rules.push(if place < last {
            quote_spanned! {span=>
                ::core::assert!(
                    !#kind.ends_in_subsections(),
                    "this ends in subsections and more fields follow: a reader may take their first bytes for a \
                    subsection. Put it last or into a subsection, or say `unframed` if that layout is given"
                )
            }
        } else {
            quote_spanned! {span=>
                ::core::assert!(
                    !#kind.elements_run_together(),
                    "elements with subsections stand one after the other: a reader may take the next element's first \
                    bytes for a subsection. Say `unframed` if that layout is given"
                )
            }
        });
    }
    rules
}

/// A slice is known now, so it is now that it must fit.
fn within_the_array(field: &Field<'_>, slice: &ExprRange) -> TokenStream {
    let ty = field.ty;
    let (first, end) = codec::bounds(ty, slice);
    quote_spanned! {slice.span()=>
        ::core::assert!(
            __v::fits(#first, #end, <#ty as __v::Sliced>::LENGTH),
            "this slice is not within the array"
        )
    }
}

/// Spares the compiler the rules for integers and arrays of them.
fn may_hold_structs(field: &Field<'_>) -> bool {
    const PLAIN: [&str; 9] = ["bool", "u8", "u16", "u32", "u64", "i8", "i16", "i32", "i64"];
    fn other_words(tokens: TokenStream) -> bool {
        tokens.into_iter().any(|token| match token {
            TokenTree::Ident(ident) => !PLAIN.contains(&ident.to_string().as_str()),
            TokenTree::Group(group) => other_words(group.stream()),
            TokenTree::Punct(_) | TokenTree::Literal(_) => false,
        })
    }
    let represented = match &field.codec {
        Codec::Plain | Codec::Optional | Codec::Counted(_) | Codec::Slice(_) | Codec::List(_) | Codec::Map(_) => {
            field.ty
        }
        Codec::At(_) | Codec::Prefixed(..) => field.ty,
        Codec::Each(_, By::Via(represented)) => represented,
        Codec::Each(_, By::With(_)) => return true,
        Codec::Proxy(represented) | Codec::Temporary(represented) => represented,
        Codec::ProxyEach(represented) => &represented.elem,
        Codec::Buffer(_) | Codec::BufferSlice(_) | Codec::Bitmap(_) => return false,
        Codec::Equal | Codec::AtMostCurrent | Codec::Via(_) | Codec::With(_) => return false,
    };
    other_words(represented.to_token_stream())
}
