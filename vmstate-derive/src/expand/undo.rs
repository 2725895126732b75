//! The undo: a struct that keeps the value of every migrated field.

use proc_macro2::TokenStream;
use quote::{ToTokens as _, format_ident, quote};
use syn::spanned::Spanned as _;
use syn::{Generics, Ident};

use super::codec;
use crate::ast::{Container, Field};

/// `struct __Undo`.
pub(super) fn definition(container: &Container<'_>, generics: &Generics) -> TokenStream {
    let ident = &container.input.ident;
    let (impl_generics, ty_generics, where_clause) = generics.split_for_impl();
    let fields = container.migrated().map(|(index, field)| {
        let name = kept(index, field);
        let ty = codec::undo_type(field);
        quote!(#name: #ty,)
    });
    quote! {
        #[doc(hidden)]
        pub struct __Undo #impl_generics #where_clause {
            #(#fields)*
            of: ::core::marker::PhantomData<fn() -> #ident #ty_generics>,
        }
    }
}

/// The body of `remember`.
pub(super) fn remember(container: &Container<'_>) -> TokenStream {
    let names: Vec<_> = container.migrated().map(|(index, field)| kept(index, field)).collect();
    let values = container.migrated().map(|(_, field)| codec::remember(field));
    quote! {
        #(let #names = #values;)*
        __Undo { #(#names,)* of: ::core::marker::PhantomData }
    }
}

/// The body of `undo`.
pub(super) fn undo(container: &Container<'_>) -> TokenStream {
    let names: Vec<_> = container.migrated().map(|(index, field)| kept(index, field)).collect();
    let fields = container.migrated().zip(&names).map(|((_, field), name)| codec::undo(field, &name.to_token_stream()));
    quote! {
        let __Undo { #(#names,)* of: _ } = undo;
        #(#fields)*
    }
}

/// At the type, as all that the compiler may say of it.
fn kept(index: usize, field: &Field<'_>) -> Ident {
    format_ident!("field_{index}", span = field.ty.span())
}
