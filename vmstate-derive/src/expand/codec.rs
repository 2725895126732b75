//! One field's bytes: for each way to make them, its kind, its save, its load and its undo.

use proc_macro2::{TokenStream, TokenTree};
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::{Expr, ExprRange, Generics, RangeLimits, Type, TypeArray, parse_quote};

use super::each;
use crate::ast::{By, Codec, Container, Field, Framing, Length};

/// The schema's `Kind`.
pub(super) fn kind(field: &Field<'_>) -> TokenStream {
    let ty = field.ty;
    if let (Some(wire), Some(range)) = (limited(field), &field.attrs.range) {
        let (first, last) = limits(ty, &range.value);
        return quote! {
            __v::Kind::Limited(__v::Shared::Static(__v::KindOf::<#wire>::REF), __v::Limit::Within(#first, #last))
        };
    }
    match &field.codec {
        Codec::Plain => quote!(<#ty as __v::Wire>::KIND),
        Codec::Buffer(None) => quote!(<#ty as __v::Buffer>::KIND),
        Codec::Buffer(Some(_)) => quote!(__v::Kind::CountedBuffer),
        Codec::Bitmap(None) => quote!(<#ty as __v::Bitmap>::BITS),
        Codec::Bitmap(Some(_)) => quote!(__v::Kind::CountedBitmap),
        Codec::Counted(_) => quote!(<#ty as __v::Counted>::KIND),
        Codec::Slice(range) => {
            let (first, end) = bounds(ty, range);
            quote!(__v::slice::<#ty>(#first, #end))
        }
        Codec::BufferSlice(range) => {
            let (first, end) = bounds(ty, range);
            quote!(__v::buffer_slice::<#ty>(#first, #end))
        }
        Codec::Prefixed(prefix, max) => quote!(__v::prefixed::<__v::Own<#ty>, #prefix, { #max }>()),
        Codec::Each(framing, by) => each::kind(framing, by, field),
        Codec::List(_) => quote!(<#ty as __v::List>::KIND),
        Codec::Map(_) => quote!(<#ty as __v::Map>::KIND),
        Codec::Optional => quote!(<#ty as __v::Optional>::KIND),
        Codec::Equal => quote!(<#ty as __v::Current>::EQUAL),
        Codec::AtMostCurrent => quote!(<#ty as __v::Current>::AT_MOST),
        Codec::Via(wire) => quote!(__v::sent_as::<#ty, #wire>()),
        Codec::With(module) => quote!(#module::KIND),
        Codec::Proxy(proxy) => quote!(<#proxy as __v::Wire>::KIND),
        Codec::ProxyEach(proxies) => quote!(<#proxies as __v::Wire>::KIND),
        Codec::Temporary(temporary) => {
            quote!(__v::Kind::Temporary(__v::Shared::Static(<#temporary as __v::VmState>::DESCRIPTION)))
        }
        Codec::At(version) => {
            quote!(__v::Kind::StructAt(__v::Shared::Static(<#ty as __v::VmState>::DESCRIPTION), #version))
        }
    }
}

/// How many elements the field may have, if it has any.
pub(super) fn count(container: &Container<'_>, field: &Field<'_>) -> Option<TokenStream> {
    let ty = field.ty;
    let max = match &field.codec {
        Codec::List(max) | Codec::Map(max) => Some(max),
        Codec::Each(framing, _) => match framing.as_ref() {
            Framing::List(max) => Some(max),
            _ => None,
        },
        _ => None,
    };
    if let Some(max) = max {
        return Some(quote!(__v::Count::new(::core::option::Option::None, 1, #max, false)));
    }
    let Length { member, name, factor, max } = field.codec.length()?;
    let length = match container.migrated().find(|(_, other)| other.member == *member) {
        Some((_, Field { name, .. })) => quote!(__v::Length::Field(__v::Shared::Static(#name))),
        None => quote!(__v::Length::Machine(__v::Shared::Static(#name))),
    };
    let counted = match &field.codec {
        Codec::Bitmap(_) => quote!(__v::counted_bits::<#ty>),
        Codec::Each(..) => {
            return Some(quote!(__v::Count::new(::core::option::Option::Some(#length), #factor, #max, false)));
        }
        _ => quote!(__v::counted::<#ty>),
    };
    Some(quote!(#counted(::core::option::Option::Some(#length), #factor, #max)))
}

/// What makes the field's value of its bytes, in the user's words, if that is the user's own code.
pub(super) fn conversion(field: &Field<'_>) -> Option<String> {
    let (word, what) = match &field.codec {
        Codec::With(module) | Codec::Each(_, By::With(module)) => ("with", module.to_token_stream()),
        Codec::Proxy(proxy) | Codec::Each(_, By::Via(proxy)) => ("via", proxy.to_token_stream()),
        Codec::ProxyEach(proxies) => ("via", proxies.to_token_stream()),
        Codec::Temporary(temporary) => ("tmp", temporary.to_token_stream()),
        _ => return None,
    };
    Some(format!("{word} = {}", super::desc::text(&what)))
}

/// Appends the field to `out`.
pub(super) fn save(field: &Field<'_>) -> TokenStream {
    let Field { member, ty, name, .. } = field;
    match &field.codec {
        Codec::Prefixed(prefix, max) => {
            quote!(__v::within(__v::save_prefixed::<#ty, #prefix>(&mut self.#member, #max, out), #name)?;)
        }
        Codec::Each(framing, by) => each::save(framing, by, field),
        Codec::Equal => quote!(__v::within(<#ty as __v::Wire>::save(&mut self.#member, out), #name)?;),
        Codec::AtMostCurrent => quote!(__v::within(__v::save_at_most::<#ty>(&mut self.#member, out), #name)?;),
        Codec::Via(wire) => quote!(__v::within(__v::save_as::<#ty, #wire>(self.#member, out), #name)?;),
        Codec::With(module) => quote! {
            let before = out.len();
            __v::within(#module::save(&self.#member, out), #name)?;
            __v::within(__v::custom_size(&#module::KIND, before, out), #name)?;
        },
        Codec::Proxy(proxy) => quote!(__v::within(__v::save_via::<#ty, #proxy>(&self.#member, out), #name)?;),
        Codec::ProxyEach(TypeArray { elem, len, .. }) => {
            quote!(__v::within(__v::save_via_each::<_, #elem, { #len }>(&self.#member, out), #name)?;)
        }
        Codec::Temporary(temporary) => {
            // At the type: what is on the wire is not in this field, so it can only be nothing.
            let this = super::this(ty.span());
            let nothing = quote_spanned!(ty.span()=> let () = #this.#member;);
            quote! {
                #nothing
                __v::within(__v::save_via::<Self, #temporary>(&*self, out), #name)?;
            }
        }
        Codec::At(version) => {
            quote!(__v::within(<#ty as __v::VmState>::save_version(&mut self.#member, out, #version), #name)?;)
        }
        codec => {
            let by = by_trait(codec);
            let told = told(
                field,
                |Length { member, name: length, factor, max }| quote!(__v::within(__v::count_to_save(self.#member, #length, #factor, #max), #name)?),
            );
            quote!(__v::within(<#ty as #by>::save(&mut self.#member, #told out), #name)?;)
        }
    }
}

/// Replaces the field by the next bytes of `input`.
pub(super) fn load(field: &Field<'_>) -> TokenStream {
    let Field { member, ty, name, .. } = field;
    match &field.codec {
        Codec::Equal => quote!(__v::within(__v::load_equal::<#ty>(&self.#member, input), #name)?;),
        Codec::AtMostCurrent => quote!(__v::within(__v::load_at_most::<#ty>(&mut self.#member, input), #name)?;),
        Codec::Prefixed(prefix, max) => {
            quote!(__v::within(__v::load_prefixed::<#ty, #prefix>(&mut self.#member, #max, input), #name)?;)
        }
        Codec::Each(framing, by) => each::load(framing, by, field),
        Codec::Via(wire) => quote!(__v::within(__v::load_as::<#ty, #wire>(&mut self.#member, input), #name)?;),
        Codec::With(module) => quote!(self.#member = __v::within(#module::load(input), #name)?;),
        Codec::Proxy(proxy) => quote!(__v::within(__v::load_via::<#ty, #proxy>(&mut self.#member, input), #name)?;),
        Codec::ProxyEach(TypeArray { elem, len, .. }) => {
            quote!(__v::within(__v::load_via_each::<_, #elem, { #len }>(&mut self.#member, input), #name)?;)
        }
        Codec::Temporary(temporary) => {
            quote!(__v::within(__v::load_temporary::<Self, #temporary>(self, input), #name)?;)
        }
        Codec::At(version) => {
            quote!(__v::within(<#ty as __v::VmState>::load_version(&mut self.#member, input, #version), #name)?;)
        }
        codec => {
            let by = by_trait(codec);
            let told = told(
                field,
                |Length { member, name: length, factor, max }| quote!(__v::within(__v::count_to_load(self.#member, #length, #factor, #max, input), #name)?),
            );
            quote!(__v::within(<#ty as #by>::load(&mut self.#member, #told input), #name)?;)
        }
    }
}

/// What the functions of [`by_trait`] are told besides the bytes; `count` makes a number of elements of a length.
fn told(field: &Field<'_>, count: impl Fn(&Length) -> TokenStream) -> TokenStream {
    match &field.codec {
        Codec::Slice(range) | Codec::BufferSlice(range) => {
            let (first, end) = bounds(field.ty, range);
            quote!(#first, #end,)
        }
        Codec::List(max) | Codec::Map(max) => quote!(#max,),
        codec => codec.length().map(count).map_or_else(TokenStream::new, |count| quote!(#count,)),
    }
}

/// The type that keeps the field's value for an undo.
pub(super) fn undo_type(field: &Field<'_>) -> TokenStream {
    let ty = field.ty;
    if let Codec::Temporary(temporary) = &field.codec {
        return temporary.to_token_stream();
    }
    match keeper(&field.codec) {
        // At the type: a field that cannot be migrated is pointed at there.
        Some(keeper) => quote_spanned!(ty.span()=> <#ty as #keeper>::Undo),
        None => ty.to_token_stream(),
    }
}

/// The field's value, for an undo.
pub(super) fn remember(field: &Field<'_>) -> TokenStream {
    let Field { member, ty, .. } = field;
    if let Codec::Temporary(temporary) = &field.codec {
        return quote!(<#temporary as ::core::convert::From<&Self>>::from(self));
    }
    match keeper(&field.codec) {
        Some(keeper) => quote!(<#ty as #keeper>::remember(&self.#member)),
        None => quote!(<#ty as ::core::clone::Clone>::clone(&self.#member)),
    }
}

/// Puts back `kept`.
pub(super) fn undo(field: &Field<'_>, kept: &TokenStream) -> TokenStream {
    let Field { member, ty, .. } = field;
    if let Codec::Temporary(temporary) = &field.codec {
        return quote!(__v::undo_temporary::<Self, #temporary>(self, #kept););
    }
    match keeper(&field.codec) {
        Some(keeper) => quote!(<#ty as #keeper>::undo(&mut self.#member, #kept);),
        None => quote!(self.#member = #kept;),
    }
}

/// The struct's generics, with what its generic fields need.
pub(super) fn with_bounds(container: &Container<'_>) -> Generics {
    let mut generics = container.input.generics.clone();
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
        let is_ranged = field.attrs.range.is_some() || matches!(field.codec, Codec::Via(_));
        let ranged = is_ranged.then(|| quote!(__v::Ranged));
        let maker = by_trait(&field.codec).filter(|maker| {
            // Most traits make both.
            keeper.as_ref().is_none_or(|keeper| keeper.to_string() != maker.to_string())
        });
        for bound in [maker, keeper, ranged].into_iter().flatten() {
            generics.make_where_clause().predicates.push(parse_quote!(#ty: #bound));
        }
    }
    generics
}

/// The trait of the library that makes the bytes.
fn by_trait(codec: &Codec) -> Option<TokenStream> {
    match codec {
        Codec::At(_) => Some(quote!(__v::VmState)),
        Codec::Plain | Codec::Bitmap(None) => Some(quote!(__v::Wire)),
        Codec::Buffer(None) => Some(quote!(__v::Buffer)),
        Codec::Buffer(Some(_)) => Some(quote!(__v::CountedBuffer)),
        Codec::Bitmap(Some(_)) => Some(quote!(__v::CountedBitmap)),
        Codec::Counted(_) => Some(quote!(__v::Counted)),
        Codec::Slice(_) | Codec::BufferSlice(_) => Some(quote!(__v::Sliced)),
        Codec::Prefixed(..) => Some(quote!(__v::Prefixed)),
        Codec::List(_) => Some(quote!(__v::List)),
        Codec::Map(_) => Some(quote!(__v::Map)),
        Codec::Optional => Some(quote!(__v::Optional)),
        Codec::Equal | Codec::AtMostCurrent => Some(quote!(__v::Current)),
        Codec::Via(_) | Codec::With(_) | Codec::Proxy(_) | Codec::ProxyEach(_) | Codec::Temporary(_) => None,
        Codec::Each(..) => None,
    }
}

/// The trait that makes the undo; the other ways keep a clone.
fn keeper(codec: &Codec) -> Option<TokenStream> {
    match codec {
        Codec::Plain | Codec::At(_) | Codec::Bitmap(None) | Codec::Slice(_) | Codec::BufferSlice(_) => {
            Some(quote!(__v::Wire))
        }
        Codec::Counted(_) | Codec::Buffer(Some(_)) | Codec::Bitmap(Some(_)) => Some(quote!(__v::Counted)),
        Codec::List(_) | Codec::Map(_) | Codec::Prefixed(..) | Codec::Optional => by_trait(codec),
        Codec::Buffer(None) | Codec::Equal | Codec::AtMostCurrent | Codec::Via(_) | Codec::With(_) => None,
        Codec::Proxy(_) | Codec::ProxyEach(_) | Codec::Temporary(_) | Codec::Each(..) => None,
    }
}

/// The first element of a slice and the one behind its last, with the array's own ends where the user gave none.
pub(super) fn bounds(ty: &Type, slice: &ExprRange) -> (TokenStream, TokenStream) {
    let first = slice.start.as_ref().map_or_else(|| quote!(0), |first| quote!(#first));
    let end = match (&slice.end, slice.limits) {
        (None, _) => quote!(<#ty as __v::Sliced>::LENGTH),
        (Some(end), RangeLimits::HalfOpen(_)) => quote!(#end),
        (Some(last), RangeLimits::Closed(_)) => quote!((#last) + 1),
    };
    (first, end)
}

/// The type on the wire, if that is an integer of which a reader takes what the field's `range` says.
pub(super) fn limited<'a>(field: &'a Field<'_>) -> Option<&'a Type> {
    match &field.codec {
        Codec::Plain => Some(field.ty),
        Codec::Via(wire) => Some(wire),
        _ => None,
    }
}

/// The lowest and the highest integer of a `range`. Its bounds are constants: they are part of the description.
fn limits(ty: &Type, range: &ExprRange) -> (TokenStream, TokenStream) {
    let value = |bound: &Expr| quote_spanned!(bound.span()=> ((#bound) as i128));
    let first = range.start.as_deref().map_or_else(|| quote!(<#ty as __v::Ranged>::LOWEST), value);
    let last = match (range.end.as_deref(), range.limits) {
        (None, _) => quote!(<#ty as __v::Ranged>::HIGHEST),
        (Some(last), RangeLimits::Closed(_)) => value(last),
        (Some(end), RangeLimits::HalfOpen(_)) => {
            let end = value(end);
            quote!((#end - 1))
        }
    };
    (first, last)
}

fn mentions(tokens: TokenStream, parameters: &[syn::Ident]) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => parameters.contains(&ident),
        TokenTree::Group(group) => mentions(group.stream(), parameters),
        _ => false,
    })
}
