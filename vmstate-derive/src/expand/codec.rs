//! One field's bytes: for each way to make them, its kind, its save, its load and its undo.

use proc_macro2::{TokenStream, TokenTree};
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::{Generics, TypeArray, parse_quote};

use crate::ast::{Codec, Container, Field, Length};

/// The schema's `Kind`.
pub(super) fn kind(field: &Field<'_>) -> TokenStream {
    let ty = field.ty;
    match &field.codec {
        Codec::Plain => quote!(<#ty as __v::Wire>::KIND),
        Codec::Buffer(None) => quote!(<#ty as __v::Buffer>::KIND),
        Codec::Buffer(Some(_)) => quote!(__v::Kind::CountedBuffer),
        Codec::Counted(_) => quote!(<#ty as __v::Counted>::KIND),
        Codec::Optional => quote!(<#ty as __v::Optional>::KIND),
        Codec::Equal => quote!(<#ty as __v::Current>::EQUAL),
        Codec::AtMostCurrent => quote!(<#ty as __v::Current>::AT_MOST),
        Codec::Via(wire) => quote!(<#wire as __v::Wire>::KIND),
        Codec::With(module) => quote!(#module::KIND),
        Codec::Proxy(proxy) => quote!(<#proxy as __v::Wire>::KIND),
        Codec::ProxyEach(proxies) => quote!(<#proxies as __v::Wire>::KIND),
        Codec::Temporary(temporary) => {
            quote!(__v::Kind::Temporary(__v::Shared::Static(<#temporary as __v::VmState>::DESCRIPTION)))
        }
        Codec::At(version) => {
            quote!(__v::Kind::StructAt(__v::Shared::Static(<#ty as __v::VmState>::DESCRIPTION), #version))
        }
    }
}

/// Appends the field to `out`.
pub(super) fn save(field: &Field<'_>) -> TokenStream {
    let Field { member, ty, name, .. } = field;
    match &field.codec {
        Codec::Plain | Codec::Equal | Codec::AtMostCurrent => {
            quote!(__v::within(<#ty as __v::Wire>::save(&mut self.#member, out), #name)?;)
        }
        Codec::Buffer(None) => quote!(out.bytes(<#ty as __v::Buffer>::bytes(&self.#member));),
        Codec::Buffer(Some(length)) => {
            let count = count_to_save(length, name);
            quote!(__v::within(__v::bytes::save(&self.#member, #count, out), #name)?;)
        }
        Codec::Counted(length) => {
            let count = count_to_save(length, name);
            quote!(__v::within(<#ty as __v::Counted>::save(&mut self.#member, #count, out), #name)?;)
        }
        Codec::Optional => quote!(__v::within(<#ty as __v::Optional>::save(&mut self.#member, out), #name)?;),
        Codec::Via(wire) => quote!(__v::within(__v::save_as::<#ty, #wire>(self.#member, out), #name)?;),
        Codec::With(module) => quote! {
            let before = out.len();
            __v::within(#module::save(&self.#member, out), #name)?;
            __v::within(__v::custom_size(&#module::KIND, before, out), #name)?;
        },
        Codec::Proxy(proxy) => quote!(__v::within(__v::save_via::<#ty, #proxy>(&self.#member, out), #name)?;),
        Codec::ProxyEach(TypeArray { elem, len, .. }) => {
            quote!(__v::within(__v::save_via_each::<_, #elem, { #len }>(&self.#member, out), #name)?;)
        }
        Codec::Temporary(temporary) => {
            // At the type: what is on the wire is not in this field, so it can only be nothing.
            let nothing = quote_spanned!(ty.span()=> let () = self.#member;);
            quote! {
                #nothing
                __v::within(__v::save_via::<Self, #temporary>(&*self, out), #name)?;
            }
        }
        Codec::At(version) => {
            quote!(__v::within(<#ty as __v::VmState>::save_version(&mut self.#member, out, #version), #name)?;)
        }
    }
}

/// Replaces the field by the next bytes of `input`.
pub(super) fn load(field: &Field<'_>) -> TokenStream {
    let Field { member, ty, name, .. } = field;
    match &field.codec {
        Codec::Plain => quote!(__v::within(<#ty as __v::Wire>::load(&mut self.#member, input), #name)?;),
        Codec::Buffer(None) => quote!(__v::within(<#ty as __v::Buffer>::load(&mut self.#member, input), #name)?;),
        Codec::Buffer(Some(length)) => {
            let count = count_to_load(length, name);
            quote!(__v::within(__v::bytes::load(&mut self.#member, #count, input), #name)?;)
        }
        Codec::Counted(length) => {
            let count = count_to_load(length, name);
            quote!(__v::within(<#ty as __v::Counted>::load(&mut self.#member, #count, input), #name)?;)
        }
        Codec::Optional => quote!(__v::within(<#ty as __v::Optional>::load(&mut self.#member, input), #name)?;),
        Codec::Equal => quote!(__v::within(__v::load_equal::<#ty>(&self.#member, input), #name)?;),
        Codec::AtMostCurrent => quote!(__v::within(__v::load_at_most::<#ty>(&mut self.#member, input), #name)?;),
        Codec::Via(wire) => quote!(__v::within(__v::load_as::<#ty, #wire>(&mut self.#member, input), #name)?;),
        Codec::With(module) => quote!(self.#member = __v::within(#module::load(input), #name)?;),
        Codec::Proxy(proxy) => quote!(__v::within(__v::load_via::<#ty, #proxy>(&mut self.#member, input), #name)?;),
        Codec::ProxyEach(TypeArray { elem, len, .. }) => {
            quote!(__v::within(__v::load_via_each::<_, #elem, { #len }>(&mut self.#member, input), #name)?;)
        }
        Codec::Temporary(temporary) => {
            quote!(__v::within(__v::load_temporary::<Self, #temporary>(self, input), #name)?;)
        }
        Codec::At(version) => {
            quote!(__v::within(<#ty as __v::VmState>::load_version(&mut self.#member, input, #version), #name)?;)
        }
    }
}

/// The type that keeps the field's value for an undo.
pub(super) fn undo_type(field: &Field<'_>) -> TokenStream {
    let ty = field.ty;
    if let Codec::Temporary(temporary) = &field.codec {
        return temporary.to_token_stream();
    }
    match by_trait(&field.codec) {
        // At the type: a field that cannot be migrated is pointed at there.
        Some(keeper) => quote_spanned!(ty.span()=> <#ty as #keeper>::Undo),
        None => ty.to_token_stream(),
    }
}

/// The field's value, for an undo.
pub(super) fn remember(field: &Field<'_>) -> TokenStream {
    let Field { member, ty, .. } = field;
    if let Codec::Temporary(temporary) = &field.codec {
        return quote!(<#temporary as ::core::convert::From<&Self>>::from(self));
    }
    match by_trait(&field.codec) {
        Some(keeper) => quote!(<#ty as #keeper>::remember(&self.#member)),
        None => quote!(<#ty as ::core::clone::Clone>::clone(&self.#member)),
    }
}

/// Puts back `kept`.
pub(super) fn undo(field: &Field<'_>, kept: &TokenStream) -> TokenStream {
    let Field { member, ty, .. } = field;
    if let Codec::Temporary(temporary) = &field.codec {
        return quote!(__v::undo_temporary::<Self, #temporary>(self, #kept););
    }
    match by_trait(&field.codec) {
        Some(keeper) => quote!(<#ty as #keeper>::undo(&mut self.#member, #kept);),
        None => quote!(self.#member = #kept;),
    }
}

/// The struct's generics, with what its generic fields need.
pub(super) fn with_bounds(container: &Container<'_>) -> Generics {
    let mut generics = container.input.generics.clone();
    let parameters: Vec<_> = generics.type_params().map(|parameter| parameter.ident.clone()).collect();
    for (_, field) in container.migrated() {
        let ty = field.ty;
        let generic = mentions(ty.to_token_stream(), &parameters);
        let bound = match (&field.codec, by_trait(&field.codec)) {
            _ if !generic => continue,
            (Codec::Via(_) | Codec::Temporary(_), _) => continue,
            (Codec::At(_), _) => parse_quote!(#ty: __v::VmState),
            (Codec::Equal | Codec::AtMostCurrent, _) => parse_quote!(#ty: __v::Current),
            (_, Some(keeper)) => parse_quote!(#ty: #keeper),
            (_, None) => parse_quote!(#ty: ::core::clone::Clone),
        };
        generics.make_where_clause().predicates.push(bound);
    }
    generics
}

/// The trait that makes the undo; the other ways keep a clone.
fn by_trait(codec: &Codec) -> Option<TokenStream> {
    match codec {
        Codec::Plain | Codec::At(_) => Some(quote!(__v::Wire)),
        Codec::Counted(_) => Some(quote!(__v::Counted)),
        Codec::Optional => Some(quote!(__v::Optional)),
        Codec::Buffer(_) | Codec::Equal | Codec::AtMostCurrent | Codec::Via(_) | Codec::With(_) => None,
        Codec::Proxy(_) | Codec::ProxyEach(_) | Codec::Temporary(_) => None,
    }
}

fn count_to_save(length: &Length, name: &str) -> TokenStream {
    let Length { member, name: length, max } = length;
    quote!(__v::within(__v::count_to_save(self.#member, #length, #max), #name)?)
}

fn count_to_load(length: &Length, name: &str) -> TokenStream {
    let Length { member, name: length, max } = length;
    quote!(__v::within(__v::count_to_load(self.#member, #length, #max, input), #name)?)
}

fn mentions(tokens: TokenStream, parameters: &[syn::Ident]) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => parameters.contains(&ident),
        TokenTree::Group(group) => mentions(group.stream(), parameters),
        _ => false,
    })
}
