//! A collection whose elements are encoded by `via` or `with`.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::{Expr, Type};

use super::{codec, within};
use crate::ast::{By, Field, Framing, Length};

/// The schema's `Kind`.
pub(super) fn kind(framing: &Framing, by: &By, field: &Field<'_>) -> TokenStream {
    // An item of its own, because a kind inside of another kind is a reference to a constant.
    let (items, element, many) = match by {
        By::Via(proxy) => (None, quote!(__v::KindOf::<#proxy>::REF), quote!(__v::ManyOf<#proxy>)),
        By::With(module) => {
            let items = quote! {
                struct __Element;
                impl __Element {
                    const REF: &'static __v::Kind = &#module::KIND;
                }
                impl __v::Elements for __Element {
                    const KIND: __v::Kind = __v::Kind::CountedArray(__v::MaybeStatic::Static(Self::REF));
                }
            };
            (Some(items), quote!(__Element::REF), quote!(__Element))
        }
    };
    let kind = match framing {
        Framing::Array => {
            let count = match field.ty {
                Type::Array(array) => &array.len,
                // The type is not an array: the code of the save reports that.
                _ => return quote!(__v::Kind::Unused(0)),
            };
            quote!(__v::Kind::Array(__v::MaybeStatic::Static(#element), #count))
        }
        Framing::Len(_) => quote!(__v::Kind::CountedArray(__v::MaybeStatic::Static(#element))),
        Framing::Counted(prefix, max) => quote!(__v::counted::<#many, #prefix, { #max }>()),
        Framing::List(_) => quote!(__v::Kind::List(__v::MaybeStatic::Static(#element))),
    };
    quote!({ #items #kind })
}

/// An expression of type `Result` that appends the elements to `out`.
pub(super) fn save(framing: &Framing, by: &By, field: &Field<'_>) -> TokenStream {
    let Field { place, name, .. } = field;
    let one = save_one(by);
    let item = |item| codec::of(field, &quote!(__v::Sequence), &item);
    match framing {
        Framing::Array => quote!(__v::save_array_of(&mut #place, out, #one)),
        Framing::Len(Length { place: length, name: called, factor, max, .. }) => {
            let save = item(quote!(save_len));
            let count = within(&quote!(__v::count_to_save(#length, #called, #factor, #max)), name);
            quote!({
                let count = #count;
                #save(&mut #place, count, out, #one)
            })
        }
        Framing::Counted(prefix, max) => {
            let save = item(quote!(save_counted));
            quote!(#save::<#prefix>(&mut #place, #max, out, #one))
        }
        Framing::List(max) => {
            let save = item(quote!(save_list));
            quote!(#save(&mut #place, #max, out, #one))
        }
    }
}

/// An expression of type `Result` that replaces the elements by those of `input`.
pub(super) fn load(framing: &Framing, by: &By, field: &Field<'_>) -> TokenStream {
    let Field { place, name, .. } = field;
    let one = match by {
        By::Via(proxy) => quote!(__v::made(__v::make_via::<_, #proxy>)),
        By::With(module) => quote!(__v::made(|_, input| #module::load(input))),
    };
    let item = |item| codec::of(field, &quote!(__v::Sequence), &item);
    match framing {
        Framing::Array => {
            let one = match by {
                By::Via(proxy) => quote!(__v::load_via::<_, #proxy>),
                By::With(module) => quote!(|value, input| {
                    *value = #module::load(input)?;
                    ::core::result::Result::Ok(())
                }),
            };
            quote!(__v::load_array_of(&mut #place, input, #one))
        }
        Framing::Len(Length { place: length, name: called, factor, max, .. }) => {
            let load = item(quote!(load_len));
            let count = within(&quote!(__v::count_to_load(#length, #called, #factor, #max, input)), name);
            quote!({
                let count = #count;
                #load(&mut #place, count, input, #one)
            })
        }
        Framing::Counted(prefix, max) => {
            let load = item(quote!(load_counted));
            quote!(#load::<#prefix>(&mut #place, #max, input, #one))
        }
        Framing::List(max) => {
            let load = item(quote!(load_list));
            quote!(#load(&mut #place, #max, input, #one))
        }
    }
}

/// Appends one element to `out`.
pub(super) fn save_one(by: &By) -> TokenStream {
    match by {
        By::Via(proxy) => quote!(|value, out| __v::save_via::<_, #proxy>(&*value, out)),
        By::With(module) => quote!(|value, out| {
            let before = out.len();
            #module::save(value, out)?;
            __v::custom_size(&#module::KIND, before, out)
        }),
    }
}

/// The schema's `Kind` of a map.
pub(super) fn kind_of_entries([key, value]: &[Option<By>; 2], field: &Field<'_>) -> TokenStream {
    let part = |by: &Option<By>, item: &TokenStream| match by {
        None => {
            let own = codec::of(field, &quote!(__v::Entries), item);
            quote_spanned!(field.ty.span()=> __v::KindOf::<#own>::REF)
        }
        Some(By::Via(proxy)) => quote!(__v::KindOf::<#proxy>::REF),
        // An item of its own, because a kind inside of another kind is a reference to a constant.
        Some(By::With(module)) => quote!({
            const REF: &'static __v::Kind = &#module::KIND;
            REF
        }),
    };
    let (key, value) = (part(key, &quote!(Key)), part(value, &quote!(Value)));
    quote!(__v::Kind::Map(__v::MaybeStatic::Static(#key), __v::MaybeStatic::Static(#value)))
}

/// An expression of type `Result` that appends keys and values to `out`.
pub(super) fn save_entries(max: &Expr, [key, value]: &[Option<By>; 2], field: &Field<'_>) -> TokenStream {
    let place = &field.place;
    let key = key.as_ref().map_or_else(|| quote!(__v::save_key), save_one);
    let value = match value {
        None => quote!(__v::Wire::save),
        Some(by) => save_one(by),
    };
    let save = codec::of(field, &quote!(__v::Entries), &quote!(save));
    let arguments = codec::in_brackets(field.ty.span(), quote!(&mut #place, #max, out, #key, #value));
    quote!(#save #arguments)
}

/// An expression of type `Result` that replaces keys and values by those of `input`.
pub(super) fn load_entries(max: &Expr, [key, value]: &[Option<By>; 2], field: &Field<'_>) -> TokenStream {
    let place = &field.place;
    let key = match key {
        None => quote!(__v::load_key),
        Some(By::Via(proxy)) => quote!(|input| __v::make_via::<_, #proxy>(::core::option::Option::None, input)),
        Some(By::With(module)) => quote!(|input| #module::load(input)),
    };
    let value = match value {
        None => quote!(__v::load_value),
        Some(By::Via(proxy)) => quote!(__v::load_value_via::<_, #proxy>),
        Some(By::With(module)) => quote!(|held, input| {
            *held = ::core::option::Option::Some(#module::load(input)?);
            ::core::result::Result::Ok(())
        }),
    };
    let load = codec::of(field, &quote!(__v::Entries), &quote!(load));
    let arguments = codec::in_brackets(field.ty.span(), quote!(&mut #place, #max, input, #key, #value));
    quote!(#load #arguments)
}
