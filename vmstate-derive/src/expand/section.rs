//! How a section of the struct is treated as a whole: `SECTION` and `is_needed`.

use proc_macro2::TokenStream;
use quote::quote;

use super::call;
use crate::ast::Container;

/// Both, as far as they are not what they are by default.
pub(super) fn items(container: &Container<'_>) -> TokenStream {
    let section = &container.section;
    let needed = &container.parts[0].attrs.needed;
    let set = [
        section.priority.value().map(|priority| quote!(priority: #priority)),
        section.instance_id.value().map(|id| quote!(instance_id: ::core::option::Option::Some(#id))),
        section.alias_id.value().map(|id| quote!(alias_id: ::core::option::Option::Some(#id))),
        section.early_setup.value().map(|()| quote!(early_setup: true)),
        section.unmigratable.value().map(|reason| quote!(unmigratable: ::core::option::Option::Some(#reason))),
        needed.as_ref().map(|_| quote!(conditional: true)),
    ];
    let set: Vec<_> = set.into_iter().flatten().collect();
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
