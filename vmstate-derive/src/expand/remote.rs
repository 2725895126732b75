//! `remote`: the conversions between this struct and one of another crate, field by field.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned as _;

use crate::ast::Container;

/// Both conversions. They name every field of the other struct, so that a field added in a new release of its crate is a compile
/// error and not lost state.
pub(super) fn conversions(container: &Container<'_>) -> Option<TokenStream> {
    let remote = &container.remote.as_ref()?.value;
    let ident = &container.input.ident;
    let members: Vec<_> = container.fields.iter().map(|field| &field.member).collect();
    let spans: Vec<_> = container.fields.iter().map(|field| field.ty.span()).collect();
    // Type errors are shown at the field's type; a missing or surplus field is shown at the path.
    let theirs: Vec<_> = (0..members.len()).map(|index| format_ident!("theirs_{index}")).collect();
    let ours: Vec<_> =
        spans.iter().enumerate().map(|(index, span)| format_ident!("ours_{index}", span = *span)).collect();
    let cloned = theirs.iter().zip(&spans);
    let cloned = cloned.map(|(name, span)| quote_spanned!(*span=> ::core::clone::Clone::clone(&*#name)));
    let pattern = quote_spanned!(remote.span()=> #remote { #(#members: #theirs),* });
    let value = quote_spanned!(remote.span()=> #remote { #(#members: #ours),* });
    Some(quote! {
        #[automatically_derived]
        impl ::core::convert::From<&#remote> for #ident {
            fn from(#pattern: &#remote) -> Self {
                Self { #(#members: #cloned),* }
            }
        }

        #[automatically_derived]
        impl ::core::convert::From<#ident> for #remote {
            fn from(#ident { #(#members: #ours),* }: #ident) -> Self {
                #value
            }
        }
    })
}
