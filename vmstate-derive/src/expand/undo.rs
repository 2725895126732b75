//! The undo: a struct that keeps the value of every migrated field.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Generics, Ident};

use super::codec;
use crate::ast::Container;

/// `struct __Undo`.
pub(super) fn definition(container: &Container<'_>, generics: &Generics) -> TokenStream {
    let ident = &container.input.ident;
    let (impl_generics, ty_generics, where_clause) = generics.split_for_impl();
    let fields = container.migrated().map(|(index, field)| {
        let name = kept(index);
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
    let fields = container.migrated().map(|(index, field)| {
        let name = kept(index);
        let value = codec::remember(field);
        quote!(#name: #value,)
    });
    quote!(__Undo { #(#fields)* of: ::core::marker::PhantomData })
}

/// The body of `undo`.
pub(super) fn undo(container: &Container<'_>) -> TokenStream {
    let fields = container.migrated().map(|(index, field)| {
        let name = kept(index);
        codec::undo(field, &quote!(undo.#name))
    });
    quote! {
        let _ = &undo;
        #(#fields)*
    }
}

fn kept(index: usize) -> Ident {
    format_ident!("field_{index}")
}
