//! `load`: checks the version, calls pre_load, loads fields in order and subsections in any order, runs the checks, calls
//! post_load.

use proc_macro2::TokenStream;
use quote::quote;

use super::run;
use super::{call, codec, desc, in_range, load_fn, or_return, within};
use crate::ast::{Container, DescriptionPart, Field};

/// One `load` method for each part.
pub(super) fn parts(container: &Container<'_>) -> TokenStream {
    (0..container.parts.len()).map(|part| method(container, part)).collect()
}

fn method(container: &Container<'_>, index: usize) -> TokenStream {
    let part = &container.parts[index];
    let DescriptionPart { version: newest, minimum_version: oldest, .. } = part;
    let name = load_fn(index);
    let fields = run::grouped(
        desc::placed(container, index),
        |field| run::is_always_there(field, *oldest),
        |run| run.load(index),
        |field| field_code(field, *oldest),
    );
    let subsections = subsections(container, index);
    let pre_load = part.attrs.pre_load.as_ref().map(|path| {
        let call = call(&path.value, &quote!(self));
        or_return(&quote!(__v::load_hook(#call, "pre_load", input)))
    });
    let validate = part.attrs.validate.as_ref().map(|path| {
        let call = call(&path.value, &quote!(&*self));
        or_return(&quote!(__v::load_hook(#call, "validate", input)))
    });
    let post_load = part.attrs.post_load.as_ref().map(|path| {
        let call = call(&path.value, &quote!(self, version));
        or_return(&quote!(__v::load_hook(#call, "post_load", input)))
    });
    // A generic struct is checked here, once its parameters are known.
    let framed = (index == 0).then(|| quote!(let () = <Self as __Parts>::__FRAMED;));
    let window = or_return(&quote!(__v::window(version, #newest, #oldest, input)));
    quote! {
        fn #name(&mut self, input: &mut __v::Reader<'_>, version: u32) -> __v::Result<()> {
            #framed
            #window
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
        let verdict = within(&quote!(__v::load_hook(__v::must_exist(#call, #text), "must_exist", input)), name);
        quote!(#verdict;)
    });
    let after = field.attrs.validate.as_ref().map(|path| {
        let call = call(&path.value, &quote!(&*self));
        let verdict = within(&quote!(__v::load_hook(#call, "validate", input)), name);
        quote!(#verdict;)
    });
    let load = checked(field);
    let load = match (&field.attrs.since, &field.attrs.exists) {
        (_, Some(exists)) => {
            let call = call(&exists.value, &quote!(&*self, version));
            quote!(if #call { #load })
        }
        (Some(since), None) if !run::is_always_there(field, oldest) => {
            let since = since.value;
            quote!(if version >= #since { #load })
        }
        _ => load,
    };
    quote!(#before #load #after)
}

/// Loads the field and checks its range.
pub(crate) fn checked(field: &Field<'_>) -> TokenStream {
    let name = &field.name;
    let in_range = field.attrs.range.as_ref().map(|range| {
        let verdict = in_range(field, &range.value);
        let verdict = within(&quote!(__v::load_hook(#verdict, "range", input)), name);
        quote!(#verdict;)
    });
    let load = codec::load(field);
    quote!(#load #in_range)
}

fn subsections(container: &Container<'_>, parent: usize) -> TokenStream {
    let count = container.subsections_of(parent).count();
    if count == 0 {
        return TokenStream::new();
    }
    let description = desc::reference(container, parent);
    let arms = container.subsections_of(parent).enumerate().map(|(place, (index, part))| {
        let name = &part.name;
        let load_part = load_fn(index);
        let loaded = within(&quote!(<Self as __Parts>::#load_part(self, input, version)), name);
        quote!(#place => #loaded,)
    });
    let absent = container.subsections_of(parent).enumerate().filter_map(|(place, (index, _))| {
        let absent = absent(container, index);
        (!absent.is_empty()).then(|| quote!(if !seen[#place] { #absent }))
    });
    quote! {
        let mut seen = [false; #count];
        while let ::core::option::Option::Some((place, version)) =
            __v::next(input, #description, &mut seen)?
        {
            match place {
                #(#arms)*
                _ => {}
            }
        }
        #(#absent)*
    }
}

/// Resets the fields of an absent subsection, and of the subsections inside of it.
fn absent(container: &Container<'_>, part: usize) -> TokenStream {
    let own = container
        .whole_of(part)
        .map(|field| (&field.member, codec::of(field, &quote!(__v::Wire), &quote!(make_absent))))
        .map(|(member, make_absent)| quote!(#make_absent(&mut self.#member);));
    let inside = container.subsections_of(part).map(|(index, _)| absent(container, index));
    quote!(#own #(#inside)*)
}
