//! Checks of the layout that need the types: constants whose evaluation fails if a reader could misread the layout.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::{ExprRange, Type};

use super::{codec, desc, fields_const};
use crate::ast::{Codec, Container, Field, written};
use crate::itself::replaced;

/// For a struct without parameters: one constant for each rule, so that each broken rule is shown, at the field's type or at the
/// struct's name.
pub(super) fn constants(container: &Container<'_>) -> Option<TokenStream> {
    let ident = &container.input.ident;
    let plain = container.input.generics.params.is_empty();
    plain.then(|| rules(container, ident).map(|rule| quote!(const _: () = { #rule };)).collect())
}

/// For a generic struct: the value of `__FRAMED`, which `load` uses, so that the rules are checked once the parameters are known.
pub(super) fn value(container: &Container<'_>) -> TokenStream {
    if container.input.generics.params.is_empty() {
        return quote!(());
    }
    let this = format_ident!("Self");
    let rules = rules(container, &this);
    quote!({ #(#rules;)* })
}

fn rules<'a>(container: &'a Container<'_>, this: &'a Ident) -> impl Iterator<Item = TokenStream> + 'a {
    let fields = (0..container.parts.len()).flat_map(move |part| fields_of(container, part, &fields_const(part), this));
    let stolen = (container.parts.len() > 1).then(|| {
        let fault = quote!(<#this as __v::VmState>::DESCRIPTION.fault_of_names());
        none(&fault, container.parts[0].tokens.span())
    });
    fields.chain(stolen).chain(struct_versions(container)).chain(options(container)).chain(ranges(container))
}

/// The stream marks presence only by a subsection's name, so an `Option` must be the only thing that decides whether its
/// subsection is sent.
fn options<'a>(container: &'a Container<'_>) -> impl Iterator<Item = TokenStream> + 'a {
    let wholes = container.migrated().map(|(_, field)| field).filter(|field| matches!(field.codec, Codec::Whole));
    wholes.flat_map(|field| {
        let exists = field.attrs.exists.as_ref().map(|given| given.tokens.span());
        let since = field.attrs.since.as_ref().map(|given| given.tokens.span());
        let part = field.part.and_then(|part| container.parts.get(part));
        let needed = part.and_then(|part| part.attrs.needed.as_ref()).map(|given| given.tokens.span());
        let places = [exists, since, needed].into_iter().flatten();
        places.map(|place| no_option(field, place, "an `Option` is sent if it is `Some`: nothing else decides it"))
    })
}

/// The rule that the field is not an `Option`, shown at `place`.
fn no_option(field: &Field<'_>, place: Span, text: &str) -> TokenStream {
    let is_option = codec::of(field, &quote!(__v::Wire), &quote!(IS_OPTION));
    quote_spanned!(place=> ::core::assert!(!#is_option, #text))
}

/// A range without a value would let no stream load.
fn ranges<'a>(container: &'a Container<'_>) -> impl Iterator<Item = TokenStream> + 'a {
    container.migrated().filter_map(|(_, field)| {
        let range = field.attrs.range.as_ref()?;
        let ident = &container.input.ident;
        let (_, generics, _) = container.input.generics.split_for_impl();
        // The constant is outside of the impl, where `Self` is not available.
        let written_out = syn::parse2(replaced(range.tokens.clone(), &quote!(#ident #generics))).ok()?;
        let (first, last) = codec::limits(field.ty, &written_out);
        let text = "this range is empty: no value could be saved or loaded";
        Some(quote_spanned!(range.tokens.span()=> ::core::assert!(#first <= #last, #text)))
    })
}

/// A `struct_version` that the struct never had can be neither saved nor loaded.
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

/// The rules for a variant whose fields are described in the constant `list` of `this`.
pub(crate) fn rules_of_variant<'a>(
    variant: &'a Container<'_>,
    list: &Ident,
    this: &Ident,
) -> impl Iterator<Item = TokenStream> + 'a {
    let fields = fields_of(variant, 0, list, this).into_iter();
    fields.chain(struct_versions(variant)).chain(ranges(variant))
}

fn fields_of(container: &Container<'_>, part: usize, list: &Ident, this: &Ident) -> Vec<TokenStream> {
    let mut rules = Vec::new();
    for (own, field) in desc::placed(container, part) {
        if let Codec::Slice(slice) | Codec::BufferSlice(slice) = &field.codec {
            rules.push(within_the_array(field, slice));
        }
        let is_proxy = matches!(field.codec, Codec::Proxy(_) | Codec::ProxyEach(_) | Codec::With(_));
        if is_proxy || !is_of_integers(field.ty) {
            let fault = quote!(__v::fault_of_field(<#this as __Parts>::#list, #own));
            let none = none(&fault, field.ty.span());
            let alone = (part > 0 && matches!(field.codec, Codec::Plain)).then(|| {
                no_option(field, field.ty.span(), "an `Option` is a whole subsection: no other field can be in it")
            });
            rules.push(match alone {
                Some(alone) => quote!(#alone; #none),
                None => none,
            });
        }
    }
    rules
}

/// True for integers by name, whose rules are left out to save compile time. A struct that the user calls `u8` is still checked,
/// with the bytes of the whole section, by `load_or_keep`.
pub(super) fn is_of_integers(ty: &Type) -> bool {
    const INTEGERS: [&str; 9] = ["bool", "u8", "u16", "u32", "u64", "i8", "i16", "i32", "i64"];
    match written(ty) {
        Type::Path(path) => path.path.get_ident().is_some_and(|word| INTEGERS.contains(&word.to_string().as_str())),
        Type::Array(array) => is_of_integers(&array.elem),
        _ => false,
    }
}

/// The rule that the expression `fault` is `None`, shown at `place`.
fn none(fault: &TokenStream, place: Span) -> TokenStream {
    quote_spanned! {place=>
        if let ::core::option::Option::Some(fault) = #fault {
            ::core::panic!("{}", fault.text())
        }
    }
}

/// The rule that a slice with constant bounds is within the array.
fn within_the_array(field: &Field<'_>, slice: &ExprRange) -> TokenStream {
    let (room, (first, end)) = (codec::room(field), codec::bounds(field, slice));
    quote_spanned!(slice.span()=> ::core::assert!(#room.has(#first, #end), "this slice is not within the array"))
}
