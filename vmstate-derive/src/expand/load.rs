//! `load`: version window, pre_load, fields in order, subsections in whatever order they come, checks, post_load.

use proc_macro2::TokenStream;
use quote::quote;

use super::run::{self, Run};
use super::{call, codec, desc, in_range, load_fn};
use crate::ast::{Container, Field, Part};

/// One method for each part.
pub(super) fn parts(container: &Container<'_>) -> TokenStream {
    (0..container.parts.len()).map(|part| method(container, part)).collect()
}

fn method(container: &Container<'_>, index: usize) -> TokenStream {
    let part = &container.parts[index];
    let Part { version: newest, minimum_version: oldest, .. } = part;
    let name = load_fn(index);
    let fields = run::grouped(
        container.fields_of(index).map(|(_, field)| field),
        // A bool has values that do not load.
        |field| is_always_there(field, *oldest) && !run::is_bool(field),
        Run::load,
        |field| field_code(field, *oldest),
    );
    let subsections = if index == 0 { subsections(container) } else { TokenStream::new() };
    let pre_load = part.attrs.pre_load.as_ref().map(|path| {
        let call = call(&path.value, &quote!(self));
        quote!(__v::load_hook(#call, "pre_load", input)?;)
    });
    let validate = part.attrs.validate.as_ref().map(|path| {
        let call = call(&path.value, &quote!(&*self));
        quote!(__v::load_hook(#call, "validate", input)?;)
    });
    let post_load = part.attrs.post_load.as_ref().map(|path| {
        let call = call(&path.value, &quote!(self, version));
        quote!(__v::load_hook(#call, "post_load", input)?;)
    });
    // A generic struct is checked here, once its parameters are known.
    let framed = (index == 0).then(|| quote!(let () = <Self as __Parts>::__FRAMED;));
    quote! {
        fn #name(&mut self, input: &mut __v::Reader<'_>, version: u32) -> __v::Result<()> {
            #framed
            __v::window(version, #newest, #oldest, input)?;
            #pre_load
            #fields
            #subsections
            #validate
            #post_load
            ::core::result::Result::Ok(())
        }
    }
}

fn field_code(field: &Field<'_>, oldest: u32) -> TokenStream {
    let name = &field.name;
    let before = field.attrs.must_exist.as_ref().map(|path| {
        let text = desc::text(&path.value);
        let call = call(&path.value, &quote!(&*self, version));
        quote! {
            __v::within(
                __v::load_hook(__v::must_exist(#call, #text), "must_exist", input),
                #name,
            )?;
        }
    });
    let after = field.attrs.validate.as_ref().map(|path| {
        let call = call(&path.value, &quote!(&*self));
        quote!(__v::within(__v::load_hook(#call, "validate", input), #name)?;)
    });
    let in_range = field.attrs.range.as_ref().map(|range| {
        let verdict = in_range(field, &range.value);
        quote!(__v::within(__v::load_hook(#verdict, "range", input), #name)?;)
    });
    let load = codec::load(field);
    let load = quote!(#load #in_range);
    let load = match (&field.attrs.since, &field.attrs.exists) {
        (_, Some(exists)) => {
            let call = call(&exists.value, &quote!(&*self, version));
            quote!(if #call { #load })
        }
        (Some(since), None) if !is_always_there(field, oldest) => {
            let since = since.value;
            quote!(if version >= #since { #load })
        }
        _ => load,
    };
    quote!(#before #load #after)
}

/// True if every version that loads has the field.
fn is_always_there(field: &Field<'_>, oldest: u32) -> bool {
    field.attrs.exists.is_none() && field.attrs.since.as_ref().is_none_or(|since| since.value <= oldest)
}

fn subsections(container: &Container<'_>) -> TokenStream {
    let count = container.parts.len() - 1;
    if count == 0 {
        return TokenStream::new();
    }
    let arms = container.parts.iter().enumerate().skip(1).map(|(index, part)| {
        let name = &part.name;
        let load_part = load_fn(index);
        let place = index - 1;
        quote!(#place => __v::within(<Self as __Parts>::#load_part(self, input, version), #name)?,)
    });
    let absent = (1..container.parts.len()).filter_map(|index| {
        let Field { member, ty, .. } = container.option_of(index)?;
        let place = index - 1;
        Some(quote!(if !seen[#place] { <#ty as __v::Optional>::absent(&mut self.#member) }))
    });
    quote! {
        let mut seen = [false; #count];
        while let ::core::option::Option::Some((place, version)) =
            __v::next(input, <Self as __v::VmState>::DESCRIPTION, &mut seen)?
        {
            match place {
                #(#arms)*
                _ => {}
            }
        }
        #(#absent)*
    }
}
