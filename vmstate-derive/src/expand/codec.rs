//! One field's bytes: for each way to make them, its kind, its save, its load and its undo.

use proc_macro2::{TokenStream, TokenTree};
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::{Expr, ExprRange, Generics, RangeLimits, Type, TypeArray, parse_quote};

use crate::ast::{Codec, Container, Field, Length};

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
        Codec::List(_) => quote!(<#ty as __v::List>::KIND),
        Codec::Map(_) => quote!(<#ty as __v::Map>::KIND),
        Codec::Optional => quote!(<#ty as __v::Optional>::KIND),
        Codec::Equal => quote!(<#ty as __v::Current>::EQUAL),
        Codec::AtMostCurrent => quote!(<#ty as __v::Current>::AT_MOST),
        Codec::Via(wire) => quote!(<#wire as __v::Wire>::KIND),
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

/// Appends the field to `out`.
pub(super) fn save(field: &Field<'_>) -> TokenStream {
    let Field { member, ty, name, .. } = field;
    match &field.codec {
        Codec::Equal | Codec::AtMostCurrent => {
            quote!(__v::within(<#ty as __v::Wire>::save(&mut self.#member, out), #name)?;)
        }
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
        let ranged = field.attrs.range.as_ref().map(|_| quote!(__v::Ranged));
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
        Codec::List(_) => Some(quote!(__v::List)),
        Codec::Map(_) => Some(quote!(__v::Map)),
        Codec::Optional => Some(quote!(__v::Optional)),
        Codec::Equal | Codec::AtMostCurrent => Some(quote!(__v::Current)),
        Codec::Via(_) | Codec::With(_) | Codec::Proxy(_) | Codec::ProxyEach(_) | Codec::Temporary(_) => None,
    }
}

/// The trait that makes the undo; the other ways keep a clone.
pub(super) fn keeper(codec: &Codec) -> Option<TokenStream> {
    match codec {
        Codec::Plain | Codec::At(_) | Codec::Buffer(None) | Codec::Bitmap(None) => Some(quote!(__v::Wire)),
        Codec::Slice(_) | Codec::BufferSlice(_) => Some(quote!(__v::Wire)),
        Codec::Counted(_) | Codec::Buffer(Some(_)) | Codec::Bitmap(Some(_)) => Some(quote!(__v::Counted)),
        Codec::List(_) | Codec::Map(_) | Codec::Optional => by_trait(codec),
        Codec::Equal | Codec::AtMostCurrent | Codec::Via(_) | Codec::With(_) => None,
        Codec::Proxy(_) | Codec::ProxyEach(_) | Codec::Temporary(_) => None,
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

pub(super) fn mentions(tokens: TokenStream, parameters: &[syn::Ident]) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => parameters.contains(&ident),
        TokenTree::Group(group) => mentions(group.stream(), parameters),
        _ => false,
    })
}
