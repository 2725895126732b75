//! Checks of the layout that need the types: constants that do not evaluate if a reader could mistake some bytes.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::ExprRange;
use syn::spanned::Spanned as _;

use super::{codec, desc, fields_const};
use crate::ast::{Codec, Container, Field};

/// For a struct without parameters: one constant a rule, so that each broken one is shown, at the field's type or at
/// the struct's name.
pub(super) fn constants(container: &Container<'_>) -> Option<TokenStream> {
    let ident = &container.input.ident;
    let plain = container.input.generics.params.is_empty();
    plain.then(|| rules(container, ident).map(|rule| quote!(const _: () = { #rule };)).collect())
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
        let fault = quote!(<#this as __v::VmState>::DESCRIPTION.fault_of_names());
        none(&fault, container.parts[0].tokens.span())
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
    let mut entry = 0;
    let mut rules = Vec::new();
    for (_, field) in container.fields_of(part) {
        let own = entry + desc::entries_before(field);
        entry = own + 1 + desc::entries_after(field);
        if let Codec::Slice(slice) | Codec::BufferSlice(slice) = &field.codec {
            rules.push(within_the_array(field, slice));
        }
        let fault = quote!(__v::fault_of_field(<#this as __Parts>::#list, #own));
        rules.push(none(&fault, field.ty.span()));
    }
    rules
}

/// The rule that `fault` is none, shown at `place`.
fn none(fault: &TokenStream, place: Span) -> TokenStream {
    quote_spanned! {place=>
        if let ::core::option::Option::Some(fault) = #fault {
            ::core::panic!("{}", fault.text())
        }
    }
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
