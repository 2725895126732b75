//! The description: constants that list the fields and subsections.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote};

use syn::ExprRange;

use super::{codec, fields_const, hooks_const, subsections_const};
use crate::ast::{Container, DescriptionPart, Field};
use crate::attr::container::PartAttrs;

/// `DESCRIPTION` of the struct itself.
pub(super) fn main(container: &Container<'_>) -> TokenStream {
    let value = description(container, 0);
    quote!(const DESCRIPTION: &'static __v::Description = &#value;)
}

/// The lists of each part: its fields, its subsections, its hooks.
pub(super) fn parts(container: &Container<'_>) -> TokenStream {
    let lists = (0..container.parts.len()).map(|part| {
        let list = fields_const(part);
        let fields = container.fields_of(part).map(|(_, field)| entries(container, field));
        quote!(const #list: &'static [__v::Field] = &[#(#fields)*];)
    });
    let subsections = (0..container.parts.len()).map(|part| {
        let list = subsections_const(part);
        let subsections = container.subsections_of(part).map(|(index, _)| description(container, index));
        quote!(const #list: &'static [__v::Description] = &[#(#subsections),*];)
    });
    let hooks = (0..container.parts.len()).map(|part| {
        let list = hooks_const(part);
        let hooks = hooks(&container.parts[part]);
        quote!(const #list: &'static [__v::MaybeStatic<str>] = &[#(__v::MaybeStatic::Static(#hooks)),*];)
    });
    quote! {
        #(#lists)*
        #(#subsections)*
        #(#hooks)*
    }
}

/// The hooks that run during a load of the part, as the user wrote them.
fn hooks(part: &DescriptionPart) -> impl Iterator<Item = String> {
    let PartAttrs { pre_load, validate, post_load, .. } = &part.attrs;
    let hooks = [("pre_load", pre_load), ("validate", validate), ("post_load", post_load)];
    hooks.into_iter().filter_map(|(word, path)| Some(format!("{word} = {}", text(&path.as_ref()?.value))))
}

/// An expression for the description of part `index`.
pub(super) fn reference(container: &Container<'_>, index: usize) -> TokenStream {
    let Some(parent) = container.parts[index].parent else { return quote!(<Self as __v::VmState>::DESCRIPTION) };
    let list = subsections_const(parent);
    let place = container.subsections_of(parent).position(|(other, _)| other == index);
    quote!(&<Self as __Parts>::#list[#place])
}

fn description(container: &Container<'_>, index: usize) -> TokenStream {
    let DescriptionPart { name, version, minimum_version, .. } = &container.parts[index];
    let fields = fields_const(index);
    let subsections = subsections_const(index);
    let hooks = hooks_const(index);
    quote! {
        __v::Description::with_hooks(
            __v::MaybeStatic::Static(#name),
            #version,
            #minimum_version,
            __v::MaybeStatic::Static(<Self as __Parts>::#fields),
            __v::MaybeStatic::Static(<Self as __Parts>::#subsections),
            ::core::option::Option::Some(__v::MaybeStatic::Static(<Self as __Parts>::#hooks)),
        )
    }
}

/// The description's entry of the field, and one entry for each check at its position.
pub(crate) fn entries(container: &Container<'_>, field: &Field<'_>) -> TokenStream {
    let name = &field.name;
    let kind = codec::kind(field);
    let before = field.attrs.must_exist.as_ref().map(|path| check(&path.value));
    let in_range = range_to_check(field).map(check);
    let after = field.attrs.validate.as_ref().map(|path| check(&path.value));
    let presence = match (&field.attrs.since, &field.attrs.exists) {
        (_, Some(exists)) => conditional(&exists.value),
        (since, None) => {
            let since = since.as_ref().map_or(0, |since| since.value);
            quote!(__v::Presence::Since(#since))
        }
    };
    let unframed = field.attrs.unframed.as_ref().map(|_| quote!(.unframed()));
    let name = quote!(__v::MaybeStatic::Static(#name));
    let entry = match (codec::count(container, field), codec::conversion(field)) {
        (None, None) => quote!(__v::Field::new(#name, #kind, #presence)),
        (count, said) => {
            let count = option(count);
            let said = option(said.map(|said| quote!(__v::MaybeStatic::Static(#said))));
            quote!(__v::Field::with(#name, #kind, #presence, #count, #said))
        }
    };
    quote! {
        #before
        #entry #unframed,
        #in_range
        #after
    }
}

fn option(value: Option<TokenStream>) -> TokenStream {
    match value {
        Some(value) => quote!(::core::option::Option::Some(#value)),
        None => quote!(::core::option::Option::None),
    }
}

/// The fields of part `part`, each with the index of its own entry in the part's list.
pub(super) fn placed<'a, 'c>(
    container: &'a Container<'c>,
    part: usize,
) -> impl Iterator<Item = (usize, &'a Field<'c>)> {
    container.fields_of(part).scan(0, |entry, (_, field)| {
        let checks_before = usize::from(field.attrs.must_exist.is_some());
        let checks_after = usize::from(range_to_check(field).is_some()) + usize::from(field.attrs.validate.is_some());
        let own = *entry + checks_before;
        *entry = own + 1 + checks_after;
        Some((own, field))
    })
}

/// The field's `range`, if the field's kind does not include it.
fn range_to_check<'a>(field: &'a Field<'_>) -> Option<&'a ExprRange> {
    let range = field.attrs.range.as_ref()?;
    codec::limited(field).is_none().then_some(&range.value)
}

fn check(path: &impl ToTokens) -> TokenStream {
    let name = text(path);
    let presence = conditional(path);
    quote!(__v::Field::new(__v::MaybeStatic::Static(#name), __v::Kind::Check, #presence),)
}

fn conditional(path: &impl ToTokens) -> TokenStream {
    let predicate = text(path);
    quote!(__v::Presence::If(__v::MaybeStatic::Static(#predicate)))
}

/// A path or range as the user wrote it: without `r#`, and without the spaces between printed tokens.
pub(super) fn text(path: &impl ToTokens) -> String {
    path.to_token_stream().to_string().replace(' ', "").replace("r#", "")
}
