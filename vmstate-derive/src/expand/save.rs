//! `save`: writes the fields in declaration order, then the subsections that are needed.

use proc_macro2::TokenStream;
use quote::quote;

use super::run;
use super::{call, codec, desc, in_range, or_return, save_fn, within};
use crate::ast::{Container, Field};

/// One `save` method for each part.
pub(super) fn parts(container: &Container<'_>) -> TokenStream {
    (0..container.parts.len()).map(|part| method(container, part)).collect()
}

fn method(container: &Container<'_>, index: usize) -> TokenStream {
    let part = &container.parts[index];
    let name = save_fn(index);
    let fields = run::grouped(
        desc::placed(container, index),
        |field| field.attrs.exists.is_none(),
        |run| run.save(index, part.minimum_version),
        |field| field_code(field, part.minimum_version),
    );
    let subsections = subsections(container, index);
    let validate = part.attrs.validate.as_ref().map(|path| {
        let call = call(&path.value, &quote!(&*self));
        or_return(&quote!(__v::hook(#call, "validate")))
    });
    let pre_save = part.attrs.pre_save.as_ref().map(|path| {
        let call = call(&path.value, &quote!(self));
        or_return(&quote!(__v::hook(#call, "pre_save")))
    });
    let body = quote! {
        #fields
        #subsections
        #validate
        ::core::result::Result::Ok(())
    };
    let body = match &part.attrs.post_save {
        None => body,
        // QEMU calls post_save also after a failed save, but not if pre_save itself refused.
        Some(path) => {
            let call = call(&path.value, &quote!(self));
            quote! {
                let saved = (|| -> __v::Result<()> { #body })();
                let () = #call;
                saved
            }
        }
    };
    quote! {
        fn #name(&mut self, out: &mut __v::Writer, version: u32) -> __v::Result<()> {
            #pre_save
            #body
        }
    }
}

fn field_code(field: &Field<'_>, oldest: u32) -> TokenStream {
    let name = &field.name;
    let before = field.attrs.must_exist.as_ref().map(|path| {
        let text = desc::text(&path.value);
        let call = call(&path.value, &quote!(&*self, version));
        let verdict = within(&quote!(__v::hook(__v::must_exist(#call, #text), "must_exist")), name);
        quote!(#verdict;)
    });
    let after = field.attrs.validate.as_ref().map(|path| {
        let call = call(&path.value, &quote!(&*self));
        let verdict = within(&quote!(__v::hook(#call, "validate")), name);
        quote!(#verdict;)
    });
    let save = checked(field);
    let save = match (&field.attrs.since, &field.attrs.exists) {
        (_, Some(exists)) => {
            let call = call(&exists.value, &quote!(&*self, version));
            quote! {
                if #call {
                    out.outcome(1);
                    #save
                } else {
                    out.outcome(0);
                }
            }
        }
        (Some(since), None) if !run::is_always_there(field, oldest) => {
            let since = since.value;
            quote!(if version >= #since { #save })
        }
        _ => save,
    };
    quote!(#before #save #after)
}

/// Checks the field's range and saves the field.
pub(crate) fn checked(field: &Field<'_>) -> TokenStream {
    let name = &field.name;
    let in_range = field.attrs.range.as_ref().map(|range| {
        let verdict = in_range(field, &range.value);
        let verdict = within(&quote!(__v::hook(#verdict, "range")), name);
        quote!(#verdict;)
    });
    let save = codec::save(field);
    quote!(#in_range #save)
}

fn subsections(container: &Container<'_>, parent: usize) -> TokenStream {
    let subsections = container.subsections_of(parent).map(|(index, part)| {
        let (name, newest, oldest) = (&part.name, part.version, part.minimum_version);
        let length = name.len() + 6;
        let save_part = save_fn(index);
        let saved = within(&quote!(<Self as __Parts>::#save_part(self, out, version)), name);
        let save = quote! {
            let version = __v::begin(const { &__v::header::<#length>(#name, #newest) }, #name, #newest, #oldest, out);
            #saved;
        };
        let needed = part.attrs.needed.as_ref().map(|needed| call(&needed.value, &quote!(&*self)));
        let needed = needed.or_else(|| {
            let field @ Field { member, .. } = container.whole_of(index)?;
            let is_there = codec::of(field, &quote!(__v::Wire), &quote!(is_there));
            Some(quote!(#is_there(&self.#member)))
        });
        match needed {
            // A block: its `version` must not shadow the one that later fields use.
            None => quote!({ #save }),
            Some(needed) => {
                quote! {
                    if #needed {
                        #save
                    } else {
                        out.outcome(0);
                    }
                }
            }
        }
    });
    subsections.collect()
}
