//! The struct as a section: its attributes as a whole, and the impl of `Section`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Generics, parse_quote};

use super::call;
use crate::ast::Container;

/// `SECTION` and `is_needed` of the impl of `VmState`, where they differ from the defaults.
pub(super) fn items(container: &Container<'_>) -> TokenStream {
    let needed = &container.parts[0].attrs.needed;
    let set = rules(container);
    let rules = (!set.is_empty()).then(|| {
        quote! {
            const SECTION: __v::SectionRules =
                __v::SectionRules { #(#set,)* ..__v::SectionRules::DEFAULT };
        }
    });
    let is_needed = needed.as_ref().map(|needed| {
        let call = call(&needed.value, &quote!(self));
        quote! {
            fn is_needed(&self) -> bool {
                #call
            }
        }
    });
    quote!(#rules #is_needed)
}

/// The impl of `Section`, for a struct that is `Send`. The bound has a lifetime parameter because the compiler rejects a false
/// bound without one right at the impl, and not only where the struct is used as a section.
pub(super) fn implementation(container: &Container<'_>, generics: &Generics) -> TokenStream {
    let ident = &container.input.ident;
    let (impl_generics, ty_generics, _) = generics.split_for_impl();
    let mut generics = generics.clone();
    generics.make_where_clause().predicates.push(parse_quote!(for<'__any> Self: ::core::marker::Send));
    let where_clause = &generics.where_clause;
    let rules = (!rules(container).is_empty()).then(|| {
        quote! {
            fn rules(&self) -> __v::SectionRules {
                <Self as __v::VmState>::SECTION
            }
        }
    });
    let is_needed = container.parts[0].attrs.needed.as_ref().map(|_| {
        quote! {
            fn is_needed(&self) -> bool {
                <Self as __v::VmState>::is_needed(self)
            }
        }
    });
    quote! {
        #[automatically_derived]
        impl #impl_generics __v::Section for #ident #ty_generics #where_clause {
            fn description(&self) -> &'static __v::Description {
                <Self as __v::VmState>::DESCRIPTION
            }

            #rules
            #is_needed

            fn save(&mut self, out: &mut __v::Writer) -> __v::Result<()> {
                <Self as __v::Wire>::save(self, out)
            }

            fn save_at(&mut self, out: &mut __v::Writer, version: u32) -> __v::Result<()> {
                <Self as __v::VmState>::save_version(self, out, version)
            }

            fn load(&mut self, input: &mut __v::Reader<'_>, version: u32) -> __v::Result<()> {
                <Self as __v::VmState>::load_or_keep(self, input, version)
            }
        }
    }
}

/// The section's rules that differ from the default.
fn rules(container: &Container<'_>) -> Vec<TokenStream> {
    let section = &container.section;
    let set = [
        section.priority.value().map(|priority| quote!(priority: #priority)),
        section.instance_id.value().map(|id| quote!(instance_id: ::core::option::Option::Some(#id))),
        section.alias_id.value().map(|id| quote!(alias_id: ::core::option::Option::Some(#id))),
        section.early_setup.value().map(|()| quote!(early_setup: true)),
        section.unmigratable.value().map(|reason| quote!(unmigratable: ::core::option::Option::Some(#reason))),
        container.parts[0].attrs.needed.as_ref().map(|_| quote!(conditional: true)),
    ];
    set.into_iter().flatten().collect()
}
