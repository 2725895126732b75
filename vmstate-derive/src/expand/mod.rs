//! The derive's output: `const _: () = { … }` with absolute paths only, so that it does not depend on names in the user's scope.

pub(crate) mod codec;
pub(crate) mod desc;
mod each;
pub(crate) mod framing;
pub(crate) mod load;
mod remote;
mod run;
pub(crate) mod save;
mod section;
pub(crate) mod undo;

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::{ExprRange, Ident, Path};

use crate::ast::{Container, Field};

pub(crate) use undo::{array, of_elements};

/// Generates all impls.
pub(crate) fn expand(container: &Container<'_>, krate: &TokenStream) -> TokenStream {
    let ident = &container.input.ident;
    let generics = codec::with_bounds(container);
    let (impl_generics, ty_generics, where_clause) = generics.split_for_impl();

    let descriptions = desc::parts(container);
    let description = desc::main(container);
    let framed = framing::value(container);
    let framed_now = framing::constants(container);
    let saves = save::parts(container);
    let loads = load::parts(container);
    let undo_struct = undo::definition(container, &generics);
    let remember = undo::remember(container);
    let undo = undo::undo(container);
    let remote = remote::conversions(container);
    let section = section::items(container);
    let section_impl = section::implementation(container, &generics);
    let (save_main, load_main) = (save_fn(0), load_fn(0));
    let version = container.parts[0].version;
    let window = or_return(&quote!(__v::window_to_save(version, <Self as __v::VmState>::DESCRIPTION)));
    let declared_saves = (0..container.parts.len()).map(save_fn);
    let declared_loads = (0..container.parts.len()).map(load_fn);
    let declared_fields = (0..container.parts.len()).map(fields_const);
    let declared_subsections = (0..container.parts.len()).map(subsections_const);
    let declared_hooks = (0..container.parts.len()).map(hooks_const);

    quote! {
        #[allow(clippy::all, clippy::pedantic, clippy::nursery, clippy::restriction)]
        #[allow(unused_qualifications, unused_variables, unused_parens, unused_braces)]
        #[allow(missing_docs, missing_debug_implementations, unreachable_pub, deprecated)]
        const _: () = {
            use #krate::__private as __v;

            #undo_struct
            #framed_now
            #remote

            trait __Parts: ::core::marker::Sized {
                #(const #declared_fields: &'static [__v::Field];)*
                #(const #declared_subsections: &'static [__v::Description];)*
                #(const #declared_hooks: &'static [__v::MaybeStatic<str>];)*
                const __FRAMED: ();
                #(fn #declared_saves(&mut self, out: &mut __v::Writer, version: u32) -> __v::Result<()>;)*
                #(fn #declared_loads(&mut self, input: &mut __v::Reader<'_>, version: u32) -> __v::Result<()>;)*
            }

            #[automatically_derived]
            impl #impl_generics __Parts for #ident #ty_generics #where_clause {
                #descriptions
                const __FRAMED: () = #framed;
                #saves
                #loads
            }

            #[automatically_derived]
            impl #impl_generics __v::Wire for #ident #ty_generics #where_clause {
                type Undo = __Undo #ty_generics;
                const KIND: __v::Kind = __v::Kind::Struct(__v::MaybeStatic::Static(<Self as __v::VmState>::DESCRIPTION));

                fn save(&mut self, out: &mut __v::Writer) -> __v::Result<()> {
                    <Self as __Parts>::#save_main(self, out, #version)
                }

                fn load(&mut self, input: &mut __v::Reader<'_>) -> __v::Result<()> {
                    <Self as __Parts>::#load_main(self, input, #version)
                }

                fn remember(&self) -> Self::Undo {
                    #remember
                }

                fn undo(&mut self, undo: Self::Undo) {
                    #undo
                }
            }

            #[automatically_derived]
            impl #impl_generics __v::VmState for #ident #ty_generics #where_clause {
                #description
                #section

                fn save_version(&mut self, out: &mut __v::Writer, version: u32) -> __v::Result<()> {
                    #window
                    <Self as __Parts>::#save_main(self, out, version)
                }

                fn load_version(&mut self, input: &mut __v::Reader<'_>, version: u32) -> __v::Result<()> {
                    <Self as __Parts>::#load_main(self, input, version)
                }
            }

            #section_impl
        };
    }
}

/// A call of the user's function, with spans such that a wrong signature is shown where the user named the function.
pub(crate) fn call(path: &Path, arguments: &TokenStream) -> TokenStream {
    quote_spanned!(path.span()=> #path(#arguments))
}

/// Unwraps `result`, adding the name to the path of an error before it is returned. The code is inline: a call of a helper for
/// each field would take most of the time of an optimised build.
pub(crate) fn within(result: &TokenStream, name: &impl ToTokens) -> TokenStream {
    quote! {
        match #result {
            ::core::result::Result::Ok(value) => value,
            ::core::result::Result::Err(error) => {
                return ::core::result::Result::Err(__v::named(error, #name));
            }
        }
    }
}

/// Returns from the function if `result` is an error.
pub(crate) fn or_return(result: &TokenStream) -> TokenStream {
    quote! {
        if let ::core::result::Result::Err(error) = #result {
            return ::core::result::Result::Err(error);
        }
    }
}

/// An expression of type `Result` that checks the field's `range`.
fn in_range(field: &Field<'_>, range: &ExprRange) -> TokenStream {
    let place = &field.place;
    // In a struct that a macro declares, a `self` with the span of the range would be another variable (hygiene).
    let value = Ident::new("__value", range.span());
    let verdict = quote_spanned!(range.span()=> __v::in_range(#value, &(#range)));
    quote!({
        let #value = &#place;
        #verdict
    })
}

/// `self`, shown at `place`, with the hygiene of the derive: in a struct that a macro declares, a `self` with the span of the
/// macro's arguments would be another variable.
fn this(place: Span) -> Ident {
    Ident::new("self", Span::call_site().located_at(place))
}

fn save_fn(part: usize) -> Ident {
    format_ident!("__save_{part}")
}

fn load_fn(part: usize) -> Ident {
    format_ident!("__load_{part}")
}

fn fields_const(part: usize) -> Ident {
    format_ident!("__FIELDS_{part}")
}

fn subsections_const(part: usize) -> Ident {
    format_ident!("__SUBSECTIONS_{part}")
}

fn hooks_const(part: usize) -> Ident {
    format_ident!("__HOOKS_{part}")
}
