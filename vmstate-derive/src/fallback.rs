//! The output for a struct with errors: their messages, and an impl that does nothing.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{DeriveInput, parse_quote};

/// The impl keeps other code that uses the type from causing more errors; it never runs, since the crate does not compile.
pub(crate) fn expand(input: &DeriveInput, krate: &TokenStream, errors: Option<syn::Error>) -> TokenStream {
    let errors = errors.map(|errors| errors.to_compile_error());
    let ident = &input.ident;
    let (impl_generics, ty_generics, where_clause) = input.generics.split_for_impl();
    let section = section(input);
    quote! {
        #errors
        #[allow(unused_qualifications)]
        const _: () = {
            use #krate::__private as __v;
            #[automatically_derived]
            impl #impl_generics __v::Wire for #ident #ty_generics #where_clause {
                type Undo = ();
                const KIND: __v::Kind = __v::Kind::Unused(0);
                fn save(&mut self, _: &mut __v::Writer) -> __v::Result<()> {
                    ::core::result::Result::Ok(())
                }
                fn load(&mut self, _: &mut __v::Reader<'_>) -> __v::Result<()> {
                    ::core::result::Result::Ok(())
                }
                fn remember(&self) {}
                fn undo(&mut self, (): ()) {}
            }
            #[automatically_derived]
            impl #impl_generics __v::VmState for #ident #ty_generics #where_clause {
                const DESCRIPTION: &'static __v::Description = &__v::Description::new(
                    __v::MaybeStatic::Static(""),
                    0,
                    0,
                    __v::MaybeStatic::Static(&[]),
                    __v::MaybeStatic::Static(&[]),
                );
                fn load_version(&mut self, _: &mut __v::Reader<'_>, _: u32) -> __v::Result<()> {
                    ::core::result::Result::Ok(())
                }
            }
            #section
        };
    }
}

fn section(input: &DeriveInput) -> TokenStream {
    let ident = &input.ident;
    let mut generics = input.generics.clone();
    generics.make_where_clause().predicates.push(parse_quote!(for<'__any> Self: ::core::marker::Send));
    let (impl_generics, ty_generics, where_clause) = generics.split_for_impl();
    quote! {
        #[automatically_derived]
        impl #impl_generics __v::Section for #ident #ty_generics #where_clause {
            fn description(&self) -> &'static __v::Description {
                <Self as __v::VmState>::DESCRIPTION
            }
            fn save(&mut self, _: &mut __v::Writer) -> __v::Result<()> {
                ::core::result::Result::Ok(())
            }
            fn load(&mut self, _: &mut __v::Reader<'_>, _: u32) -> __v::Result<()> {
                ::core::result::Result::Ok(())
            }
        }
    }
}
