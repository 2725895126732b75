//! The encoding of one field: the schema kind, save, load and undo of each `Codec`.

use proc_macro2::{Delimiter, Group, Span, TokenStream, TokenTree};
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::{Expr, ExprRange, Generics, RangeLimits, Type, TypeArray, parse_quote};

use super::{each, within};
use crate::ast::{By, Codec, Container, Field, Framing, Length};

/// The schema's `Kind` of the field.
pub(super) fn kind(field: &Field<'_>) -> TokenStream {
    let ty = field.ty;
    if let (Some(wire), Some(range)) = (limited(field), &field.attrs.range) {
        let (first, last) = limits(ty, &range.value);
        return quote! {
            __v::Kind::Limited(__v::MaybeStatic::Static(__v::KindOf::<#wire>::REF), __v::Limit::Within(#first, #last))
        };
    }
    match &field.codec {
        Codec::Plain => of(field, &quote!(__v::Wire), &quote!(KIND)),
        Codec::Whole => of(field, &quote!(__v::Wire), &quote!(WHOLE)),
        Codec::Each(framing, by) => each::kind(framing, by, field),
        Codec::Entries(_, by) => each::kind_of_entries(by, field),
        Codec::Equal => by_current(ty, &quote!(Equal)),
        Codec::AtMostCurrent => by_current(ty, &quote!(AtMostCurrent)),
        Codec::Via(wire) => quote!(__v::sent_as::<#ty, #wire>()),
        Codec::With(module) => quote!(#module::KIND),
        Codec::Proxy(proxy) => quote!(<#proxy as __v::Wire>::KIND),
        Codec::ProxyEach(proxies) => quote!(<#proxies as __v::Wire>::KIND),
        Codec::Temporary(temporary) => {
            quote!(__v::Kind::Temporary(__v::MaybeStatic::Static(<#temporary as __v::VmState>::DESCRIPTION)))
        }
        Codec::At(version) => {
            quote!(__v::Kind::StructAt(__v::MaybeStatic::Static(<#ty as __v::VmState>::DESCRIPTION), #version))
        }
        codec => {
            let kind = of(field, &by_trait(codec).unwrap_or_default(), &quote!(KIND));
            match part(field) {
                Some((first, end)) => quote!(__v::slice(#kind, #first, #end)),
                None => kind,
            }
        }
    }
}

/// The kind of an integer that a load compares with the device's current value.
fn by_current(ty: &Type, limit: &TokenStream) -> TokenStream {
    quote!(__v::Kind::Limited(__v::MaybeStatic::Static(__v::KindOf::<#ty>::REF), __v::Limit::#limit))
}

/// The schema's limit on the number of elements, if the field has a variable number of them.
pub(super) fn count(container: &Container<'_>, field: &Field<'_>) -> Option<TokenStream> {
    let framing = match &field.codec {
        Codec::Each(framing, _) => Some(framing.as_ref()),
        _ => None,
    };
    if let (Codec::List(max) | Codec::Map(max) | Codec::Entries(max, ..), _) | (_, Some(Framing::List(max))) =
        (&field.codec, framing)
    {
        return Some(quote!(__v::Count::new(::core::option::Option::None, 1, #max, false)));
    }
    let Length { member, name, factor, max, .. } = field.codec.length()?;
    let length = match container.migrated().find(|(_, other)| other.member == *member) {
        Some((_, Field { name, .. })) => quote!(__v::Length::Field(__v::MaybeStatic::Static(#name))),
        None => quote!(__v::Length::Machine(__v::MaybeStatic::Static(#name))),
    };
    let length = quote!(::core::option::Option::Some(#length));
    Some(match &field.codec {
        // The elements are created by the load, so the type's memory sets no limit.
        Codec::Each(..) => quote!(__v::Count::new(#length, #factor, #max, false)),
        _ => {
            let room = room(field);
            quote!(#room.count(#length, #factor, #max))
        }
    })
}

/// The number of elements that the field's type has memory for.
pub(super) fn room(field: &Field<'_>) -> TokenStream {
    of(field, &by_trait(&field.codec).unwrap_or_default(), &quote!(ROOM))
}

/// The attribute that makes the field's value from its bytes, as the user wrote it, if the conversion is the user's own code.
pub(super) fn conversion(field: &Field<'_>) -> Option<String> {
    if matches!(field.codec, Codec::Entries(..)) {
        let via = field.attrs.via.as_ref().map(|via| ("via", &via.tokens));
        let with = field.attrs.with.as_ref().map(|with| ("with", &with.tokens));
        let said = via.into_iter().chain(with).map(|(word, what)| format!("{word} = {}", super::desc::text(what)));
        return Some(said.collect::<Vec<_>>().join(", "));
    }
    let (word, what) = match &field.codec {
        Codec::With(module) => ("with", module.to_token_stream()),
        Codec::Proxy(proxy) => ("via", proxy.to_token_stream()),
        Codec::ProxyEach(proxies) => ("via", proxies.to_token_stream()),
        Codec::Each(_, By::Via(proxy)) => ("via", proxy.to_token_stream()),
        Codec::Each(_, By::With(module)) => ("with", module.to_token_stream()),
        Codec::Temporary(temporary) => ("tmp", temporary.to_token_stream()),
        _ => return None,
    };
    Some(format!("{word} = {}", super::desc::text(&what)))
}

/// `item` of the trait `by` that the field's type implements, with the span of the type, so that the compiler reports a type that
/// cannot be migrated once and at the type.
pub(super) fn of(field: &Field<'_>, by: &TokenStream, item: &TokenStream) -> TokenStream {
    let ty = field.ty;
    let place = ty.span();
    let (ty, by, item) = (ends_at(place, ty), shown_at(place, by.clone()), shown_at(place, item.clone()));
    quote_spanned!(place=> <#ty as #by>::#item)
}

/// The arguments of a call, in parentheses with the span `place`.
pub(super) fn in_brackets(place: Span, arguments: TokenStream) -> Group {
    let mut group = Group::new(Delimiter::Parenthesis, arguments);
    group.set_span(place);
    group
}

/// The type, with the last `>` of its arguments at `place`: an error about the whole type is then shown at the same place as one
/// about a use of it.
pub(super) fn ends_at(place: Span, ty: &Type) -> TokenStream {
    let mut tokens: Vec<_> = ty.to_token_stream().into_iter().collect();
    if let Some(TokenTree::Punct(last)) = tokens.last_mut() {
        last.set_span(place);
    }
    tokens.into_iter().collect()
}

/// Gives the derive's own tokens the span `place`. For paths only: hygiene would make a local variable with a span outside of the
/// macro another variable.
pub(super) fn shown_at(place: Span, tokens: TokenStream) -> TokenStream {
    let shown = tokens.into_iter().map(|mut token| {
        token.set_span(place);
        token
    });
    shown.collect()
}

/// Appends the field to `out`.
pub(super) fn save(field: &Field<'_>) -> TokenStream {
    let Field { member, place, ty, name, .. } = field;
    let saved = match &field.codec {
        Codec::Equal => quote!(<#ty as __v::Wire>::save(&mut #place, out)),
        Codec::AtMostCurrent => quote!(__v::save_at_most::<#ty>(&mut #place, out)),
        Codec::Each(framing, by) => each::save(framing, by, field),
        Codec::Entries(max, by) => each::save_entries(max, by, field),
        Codec::Via(wire) => quote!(__v::save_as::<#ty, #wire>(#place, out)),
        Codec::With(module) => {
            let saved = within(&quote!(#module::save(&#place, out)), name);
            quote!({
                let before = out.len();
                #saved;
                __v::custom_size(&#module::KIND, before, out)
            })
        }
        Codec::Proxy(proxy) => quote!(__v::save_via::<#ty, #proxy>(&#place, out)),
        Codec::ProxyEach(TypeArray { elem, len, .. }) => {
            let one = each::save_one(&By::Via((**elem).clone()));
            quote!(__v::save_array_of::<_, { #len }>(&mut #place, out, #one))
        }
        Codec::Temporary(temporary) => {
            // With the type's span: the bytes do not come from this field, so the field's type must be `()`.
            let this = super::this(ty.span());
            let nothing = quote_spanned!(ty.span()=> let () = #this.#member;);
            quote!({
                #nothing
                __v::save_via::<Self, #temporary>(&*self, out)
            })
        }
        Codec::At(version) => quote!(<#ty as __v::VmState>::save_version(&mut #place, out, #version)),
        codec => {
            let item = if matches!(codec, Codec::Whole) { quote!(save_whole) } else { quote!(save) };
            let save = of(field, &by_trait(codec).unwrap_or_default(), &item);
            let form = form(field, |Length { place, name: length, factor, max, .. }| {
                within(&quote!(__v::count_to_save(#place, #length, #factor, #max)), name)
            });
            quote!(#save(&mut #place, #form out))
        }
    };
    let saved = within(&saved, name);
    quote!(#saved;)
}

/// Replaces the field by the next bytes of `input`.
pub(super) fn load(field: &Field<'_>) -> TokenStream {
    let Field { place, ty, name, .. } = field;
    let loaded = match &field.codec {
        Codec::Equal => quote!(__v::load_equal::<#ty>(&#place, input)),
        Codec::AtMostCurrent => quote!(__v::load_at_most::<#ty>(&mut #place, input)),
        Codec::Each(framing, by) => each::load(framing, by, field),
        Codec::Entries(max, by) => each::load_entries(max, by, field),
        Codec::Via(wire) => quote!(__v::load_as::<#ty, #wire>(&mut #place, input)),
        Codec::With(module) => {
            let loaded = within(&quote!(#module::load(input)), name);
            return quote!(#place = #loaded;);
        }
        Codec::Proxy(proxy) => quote!(__v::load_via::<#ty, #proxy>(&mut #place, input)),
        Codec::ProxyEach(TypeArray { elem, len, .. }) => {
            quote!(__v::load_array_of::<_, { #len }>(&mut #place, input, __v::load_via::<_, #elem>))
        }
        Codec::Temporary(temporary) => quote!(__v::load_temporary::<Self, #temporary>(self, input)),
        Codec::At(version) => quote!(<#ty as __v::VmState>::load_version(&mut #place, input, #version)),
        codec => {
            let item = if matches!(codec, Codec::Whole) { quote!(load_whole) } else { quote!(load) };
            let load = of(field, &by_trait(codec).unwrap_or_default(), &item);
            let form = form(field, |Length { place, name: length, factor, max, .. }| {
                within(&quote!(__v::count_to_load(#place, #length, #factor, #max, input)), name)
            });
            quote!(#load(&mut #place, #form input))
        }
    };
    let loaded = within(&loaded, name);
    quote!(#loaded;)
}

/// The argument that the trait of [`by_trait`] takes from the field's attribute; `count` gives the number of elements for a
/// length.
fn form(field: &Field<'_>, count: impl Fn(&Length) -> TokenStream) -> Option<TokenStream> {
    let packing = packing(&field.codec);
    Some(match (&field.codec, part(field), field.codec.length().map(count)) {
        (Codec::Counted(..), ..) => quote!(__v::Counted::FORM,),
        (Codec::List(max), ..) => quote!(__v::List(#max),),
        (Codec::Map(max), ..) => quote!(__v::Map(#max),),
        (_, Some((first, end)), _) => quote!(__v::Slice(#first, #end, #packing),),
        (.., Some(count)) => quote!(__v::Len(#count, #packing),),
        _ => return None,
    })
}

/// How the elements of the field are packed.
fn packing(codec: &Codec) -> TokenStream {
    match codec {
        Codec::Buffer(_) | Codec::BufferSlice(_) => quote!(__v::Buffer),
        Codec::Bitmap(_) => quote!(__v::Bitmap),
        _ => quote!(__v::Own),
    }
}

/// True if the field's own type makes the bytes, or the undo value.
pub(crate) fn is_by_type(codec: &Codec) -> bool {
    keeper(codec).is_some()
}

/// The struct's generics, with the bounds that its generic fields need.
pub(super) fn with_bounds(container: &Container<'_>) -> Generics {
    let mut generics = container.input.generics.clone();
    add_bounds(container, &mut generics);
    generics
}

/// Adds the bounds that the generic fields need.
pub(crate) fn add_bounds(container: &Container<'_>, generics: &mut Generics) {
    let parameters: Vec<_> = generics.type_params().map(|parameter| parameter.ident.clone()).collect();
    for (_, field) in container.migrated() {
        let ty = field.ty;
        if !mentions(ty.to_token_stream(), &parameters) {
            continue;
        }
        let keeper = match (&field.codec, keeper(&field.codec)) {
            (Codec::Via(_) | Codec::Temporary(_) | Codec::Equal | Codec::AtMostCurrent, _) => None,
            (_, keeper) => keeper.or_else(|| Some(quote!(::core::clone::Clone))),
        };
        let is_integer = matches!(field.codec, Codec::Via(_) | Codec::Equal | Codec::AtMostCurrent);
        let integer = (is_integer || field.attrs.range.is_some()).then(|| quote!(__v::Integer));
        let maker = by_trait(&field.codec).filter(|maker| {
            // Most traits make both the bytes and the undo, and are listed once.
            keeper.as_ref().is_none_or(|keeper| keeper.to_string() != maker.to_string())
        });
        for bound in [maker, keeper, integer].into_iter().flatten() {
            generics.make_where_clause().predicates.push(parse_quote!(#ty: #bound));
        }
    }
}

/// The library's trait that encodes the field.
fn by_trait(codec: &Codec) -> Option<TokenStream> {
    let packing = packing(codec);
    match codec {
        Codec::At(_) => Some(quote!(__v::VmState)),
        Codec::Plain | Codec::Whole | Codec::Equal | Codec::AtMostCurrent => Some(quote!(__v::Wire)),
        Codec::Buffer(None) | Codec::Bitmap(None) | Codec::Slice(_) | Codec::BufferSlice(_) => {
            Some(quote!(__v::Coded<__v::Slice<#packing>>))
        }
        Codec::Len(_) | Codec::Buffer(Some(_)) | Codec::Bitmap(Some(_)) => Some(quote!(__v::Coded<__v::Len<#packing>>)),
        Codec::Counted(prefix, max) => Some(quote!(__v::Coded<__v::Counted<#prefix, { #max }>>)),
        Codec::List(_) => Some(quote!(__v::Coded<__v::List>)),
        Codec::Map(_) => Some(quote!(__v::Coded<__v::Map>)),
        Codec::Via(_) | Codec::With(_) | Codec::Proxy(_) | Codec::ProxyEach(_) | Codec::Temporary(_) => None,
        Codec::Each(..) | Codec::Entries(..) => None,
    }
}

/// The library's trait that makes the undo value; the other codecs keep a clone.
pub(super) fn keeper(codec: &Codec) -> Option<TokenStream> {
    match codec {
        Codec::At(_) => Some(quote!(__v::Wire)),
        Codec::Equal | Codec::AtMostCurrent => None,
        codec => by_trait(codec),
    }
}

/// The bounds of the range of an array's elements that is on the wire, if the field's trait needs them.
fn part(field: &Field<'_>) -> Option<(TokenStream, TokenStream)> {
    match &field.codec {
        Codec::Slice(range) | Codec::BufferSlice(range) => Some(bounds(field, range)),
        Codec::Buffer(None) | Codec::Bitmap(None) => Some((quote!(0), end(field))),
        _ => None,
    }
}

/// The first element of a slice and the end of it (exclusive), with the array's own ends where the user gave none.
pub(super) fn bounds(field: &Field<'_>, slice: &ExprRange) -> (TokenStream, TokenStream) {
    let first = slice.start.as_ref().map_or_else(|| quote!(0), |first| quote!(#first));
    let end = match (&slice.end, slice.limits) {
        (None, _) => end(field),
        (Some(end), RangeLimits::HalfOpen(_)) => quote!(#end),
        (Some(last), RangeLimits::Closed(_)) => quote!((#last) + 1),
    };
    (first, end)
}

/// The number of elements of an array.
fn end(field: &Field<'_>) -> TokenStream {
    let room = room(field);
    quote!(#room.elements())
}

/// The type on the wire, if it is an integer that the field's `range` limits.
pub(super) fn limited<'a>(field: &'a Field<'_>) -> Option<&'a Type> {
    match &field.codec {
        Codec::Plain | Codec::Whole => Some(field.ty),
        Codec::Via(wire) => Some(wire),
        _ => None,
    }
}

/// The lowest and the highest integer of a `range`. The bounds of a `range` are constants, because they are part of the
/// description.
pub(super) fn limits(ty: &Type, range: &ExprRange) -> (TokenStream, TokenStream) {
    let value = |bound: &Expr| quote_spanned!(bound.span()=> ((#bound) as i128));
    let first = range.start.as_deref().map_or_else(|| quote!(<#ty as __v::Integer>::LOWEST), value);
    let last = match (range.end.as_deref(), range.limits) {
        (None, _) => quote!(<#ty as __v::Integer>::HIGHEST),
        (Some(last), RangeLimits::Closed(_)) => value(last),
        (Some(end), RangeLimits::HalfOpen(_)) => {
            let end = value(end);
            quote!((#end - 1))
        }
    };
    (first, last)
}

pub(crate) fn mentions(tokens: TokenStream, parameters: &[syn::Ident]) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => parameters.contains(&ident),
        TokenTree::Group(group) => mentions(group.stream(), parameters),
        _ => false,
    })
}
