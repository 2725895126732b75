//! Replaces `Self` by the type's name, because part of the derive's output is outside of the user's impl.

use proc_macro2::{TokenStream, TokenTree};
use quote::{ToTokens as _, quote, quote_spanned};
use syn::{Attribute, Data, DeriveInput, Field, Meta};

use crate::symbol;

/// The same input with the type's name for `Self` in the types of its fields, and in the attributes that are used outside of an
/// impl. Tokens that no longer parse stay as they are, and the compiler reports them.
pub(crate) fn written_out(mut input: DeriveInput) -> DeriveInput {
    let ident = &input.ident;
    let (_, generics, _) = input.generics.split_for_impl();
    let name = quote!(#ident #generics);
    match &mut input.data {
        Data::Struct(data) => data.fields.iter_mut().for_each(|field| write_out(field, &name)),
        Data::Enum(data) => {
            let fields = data.variants.iter_mut().flat_map(|variant| variant.fields.iter_mut());
            fields.for_each(|field| write_out(field, &name));
        }
        Data::Union(_) => {}
    }
    input
}

fn write_out(field: &mut Field, name: &TokenStream) {
    let ty = field.ty.to_token_stream();
    if mentions_self(ty.clone())
        && let Ok(ty) = syn::parse2(replaced(ty, name))
    {
        field.ty = ty;
    }
    for attr in &mut field.attrs {
        write_out_attribute(attr, name);
    }
}

fn write_out_attribute(attr: &mut Attribute, name: &TokenStream) {
    let Meta::List(list) = &mut attr.meta else { return };
    if !list.path.is_ident(symbol::VMSTATE) || !mentions_self(list.tokens.clone()) {
        return;
    }
    let tokens: Vec<_> = list.tokens.clone().into_iter().collect();
    let mut is_inside = false;
    let mut written = TokenStream::new();
    let is_punct = |place: Option<usize>, wanted: char| {
        let token = place.and_then(|place| tokens.get(place));
        matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
    };
    for (place, token) in tokens.iter().enumerate() {
        let begins = place == 0 || is_punct(place.checked_sub(1), ',');
        if let (TokenTree::Ident(word), true, true) = (token, begins, is_punct(Some(place + 1), '=')) {
            let word = word.to_string();
            is_inside = word == symbol::SLICE || symbol::TYPES.contains(&word.as_str());
        }
        match is_inside {
            true => written.extend(replaced_token(token, tokens.get(place + 1), name)),
            false => written.extend([token.clone()]),
        }
    }
    list.tokens = written;
}

/// The tokens, with `name` for `Self`.
pub(crate) fn replaced(tokens: TokenStream, name: &TokenStream) -> TokenStream {
    let tokens: Vec<_> = tokens.into_iter().collect();
    let next = tokens.iter().skip(1).map(Some).chain([None]);
    tokens.iter().zip(next).map(|(token, next)| replaced_token(token, next, name)).collect()
}

fn replaced_token(token: &TokenTree, next: Option<&TokenTree>, name: &TokenStream) -> TokenStream {
    match token {
        TokenTree::Ident(word) if word == "Self" => match next {
            // `Self::CONSTANT`: a type with parameters needs `<…>::` instead.
            Some(TokenTree::Punct(colon)) if colon.as_char() == ':' => quote_spanned!(word.span()=> <#name>),
            _ => quote_spanned!(word.span()=> #name),
        },
        TokenTree::Group(group) => {
            let mut inner = proc_macro2::Group::new(group.delimiter(), replaced(group.stream(), name));
            inner.set_span(group.span());
            TokenTree::Group(inner).into()
        }
        other => other.clone().into(),
    }
}

fn mentions_self(tokens: TokenStream) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(word) => word == "Self",
        TokenTree::Group(group) => mentions_self(group.stream()),
        _ => false,
    })
}
