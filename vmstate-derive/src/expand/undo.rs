//! The undo: a struct that keeps the value of every migrated field, with large values on the heap.

use proc_macro2::TokenStream;
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::{GenericParam, Generics, Ident, Type, TypeArray};

use super::framing::is_of_integers;
use super::{codec, run};
use crate::ast::{Codec, Container, Field};

/// `struct __Undo`, and a constant that says whether its fields are few bytes in total.
pub(super) fn definition(container: &Container<'_>, generics: &Generics) -> TokenStream {
    let ident = &container.input.ident;
    let (impl_generics, ty_generics, where_clause) = generics.split_for_impl();
    let keepers: Vec<_> = keepers(container).collect();
    let fields = keepers.iter().map(|(index, field, keeper)| {
        let (name, ty) = (kept(*index, field), keeper.kept(field));
        quote!(#name: #ty,)
    });
    let mut sizes = keepers.iter().filter(|(_, _, keeper)| keeper.asks()).peekable();
    let few = sizes.peek().is_some().then(|| {
        let sizes = sizes.map(|(_, field, keeper)| {
            let ty = keeper.in_place(field);
            quote_spanned!(field.ty.span()=> ::core::mem::size_of::<#ty>())
        });
        quote!(const __FEW: bool = __v::few(#(#sizes)+*);)
    });
    quote! {
        #[doc(hidden)]
        pub struct __Undo #impl_generics #where_clause {
            #(#fields)*
            of: ::core::marker::PhantomData<fn() -> #ident #ty_generics>,
        }
        #few
    }
}

/// The body of `remember`.
pub(super) fn remember(container: &Container<'_>) -> TokenStream {
    let (names, values): (Vec<_>, Vec<_>) =
        keepers(container).map(|(index, field, keeper)| (kept(index, field), keeper.remember(field))).unzip();
    quote! {
        #(let #names = #values;)*
        __Undo { #(#names,)* of: ::core::marker::PhantomData }
    }
}

/// The body of `undo`.
pub(super) fn undo(container: &Container<'_>) -> TokenStream {
    let (names, fields): (Vec<_>, Vec<_>) = keepers(container)
        .map(|(index, field, keeper)| {
            let name = kept(index, field);
            let undo = keeper.undo(field, &name.to_token_stream());
            (name, undo)
        })
        .unzip();
    quote! {
        let __Undo { #(#names,)* of: _ } = undo;
        #(#fields)*
    }
}

/// What keeps the value of a variant's field, in place: its type, the value, and what puts it back.
pub(crate) fn of_variant(field: &Field<'_>, kept: &Ident) -> [TokenStream; 3] {
    let keeper = match field.part {
        Some(_) => codec::keeper(&field.codec).map_or(Keeper::Clone, Keeper::Trait),
        None => Keeper::Clone,
    };
    [keeper.in_place(field), keeper.remember(field), keeper.undo(field, &kept.to_token_stream())]
}

/// How a field's value is kept.
enum Keeper {
    /// A trait of the library that the field's type implements.
    Trait(TokenStream),
    /// A clone.
    Clone,
    /// The temporary struct that is made for the wire.
    Temporary(TokenStream),
    /// A trait of the library that the field's type implements; the value is on the heap if the struct's values are many bytes
    /// and this value is not tiny.
    Held(TokenStream),
    /// Types of the library for an array: the first keeps the array in place, the second on the heap.
    Elements { in_place: TokenStream, on_heap: TokenStream },
}

impl Keeper {
    fn of(container: &Container<'_>, field: &Field<'_>) -> Self {
        if let Codec::Temporary(temporary) = &field.codec {
            return Self::Temporary(temporary.to_token_stream());
        }
        let keeper = codec::keeper(&field.codec).map_or(Self::Clone, Self::Trait);
        if is_generic(container, field.ty) || run::is_plain(field) {
            return keeper;
        }
        match (&field.codec, array(field.ty), keeper) {
            (Codec::ProxyEach(_), ..) => Self::Elements {
                in_place: quote!(__v::InPlace<__v::Cloned>),
                on_heap: quote!(__v::OnHeap<__v::Cloned>),
            },
            // A clone is the same value and compiles faster than one undo for each element. Arrays of arrays are left out: they
            // may be too large for the stack.
            (_, Some(of), Self::Trait(_)) if is_of_integers(&of.elem) && array(&of.elem).is_none() => {
                Self::Elements { in_place: quote!(__v::Cloned), on_heap: quote!(__v::OnHeap<__v::Cloned>) }
            }
            (_, Some(array), Self::Trait(_)) => {
                let [in_place, on_heap] = of_elements(array);
                Self::Elements { in_place, on_heap }
            }
            (Codec::Plain | Codec::Whole | Codec::At(_), _, Self::Trait(by)) => Self::Held(by),
            (.., keeper) => keeper,
        }
    }

    /// True if the place of the value depends on the total size.
    fn asks(&self) -> bool {
        matches!(self, Self::Held(_) | Self::Elements { .. })
    }

    /// The type of the value if it is kept in place.
    fn in_place(&self, field: &Field<'_>) -> TokenStream {
        match self {
            Self::Trait(by) | Self::Held(by) => codec::of(field, by, &quote!(Undo)),
            Self::Clone => field.ty.to_token_stream(),
            Self::Temporary(made) => made.clone(),
            Self::Elements { in_place, .. } => by(field, in_place, &quote!(Kept)),
        }
    }

    /// The library's type that holds the value of [`Held`](Self::Held), in place or on the heap.
    fn holder(&self, field: &Field<'_>) -> TokenStream {
        let kept = self.in_place(field);
        quote_spanned! {field.ty.span()=>
            <__v::If<{ __FEW || __v::tiny(::core::mem::size_of::<#kept>()) }> as __v::Holds<#kept>>
        }
    }

    /// The type of the kept value.
    fn kept(&self, field: &Field<'_>) -> TokenStream {
        match self {
            Self::Held(_) => {
                let holder = self.holder(field);
                quote_spanned!(field.ty.span()=> #holder::Held)
            }
            Self::Elements { in_place, on_heap } => by(field, &either(in_place, on_heap), &quote!(Kept)),
            _ => self.in_place(field),
        }
    }

    /// An expression for the value to keep.
    fn remember(&self, field: &Field<'_>) -> TokenStream {
        let Field { place, ty, .. } = field;
        let remember = match self {
            Self::Trait(by) | Self::Held(by) => codec::of(field, by, &quote!(remember)),
            Self::Clone => return quote!(<#ty as ::core::clone::Clone>::clone(&#place)),
            Self::Temporary(made) => return quote!(<#made as ::core::convert::From<&Self>>::from(self)),
            Self::Elements { in_place, on_heap } => by(field, &either(in_place, on_heap), &quote!(remember)),
        };
        let arguments = codec::in_brackets(ty.span(), quote!(&#place));
        match self {
            Self::Held(_) => {
                let holder = self.holder(field);
                quote_spanned!(ty.span()=> #holder::hold(#remember #arguments))
            }
            _ => quote!(#remember #arguments),
        }
    }

    /// Puts the value `kept` back into the field.
    fn undo(&self, field: &Field<'_>, kept: &TokenStream) -> TokenStream {
        let Field { place, ty, .. } = field;
        let undo = match self {
            Self::Trait(by) | Self::Held(by) => codec::of(field, by, &quote!(undo)),
            Self::Clone => return quote!(#place = #kept;),
            Self::Temporary(made) => return quote!(__v::undo_temporary::<Self, #made>(self, #kept);),
            Self::Elements { in_place, on_heap } => by(field, &either(in_place, on_heap), &quote!(undo)),
        };
        let kept = match self {
            Self::Held(_) => {
                let holder = self.holder(field);
                quote_spanned!(ty.span()=> #holder::release(#kept))
            }
            _ => kept.clone(),
        };
        let arguments = codec::in_brackets(ty.span(), quote!(&mut #place, #kept));
        quote!(#undo #arguments;)
    }
}

/// The first of two types of the library if the struct's values are few bytes, else the second.
fn either(in_place: &TokenStream, on_heap: &TokenStream) -> TokenStream {
    quote!(__v::Either<__FEW, #in_place, #on_heap>)
}

/// `item` of the type `keeper` for the field, with the span of the field's type, as in [`codec::of`].
fn by(field: &Field<'_>, keeper: &TokenStream, item: &TokenStream) -> TokenStream {
    let ty = field.ty;
    let place = ty.span();
    let [keeper, keeps, item] =
        [keeper, &quote!(__v::Keeps), item].map(|tokens| codec::shown_at(place, tokens.clone()));
    let ty = codec::ends_at(place, ty);
    quote_spanned!(place=> <#keeper as #keeps<#ty>>::#item)
}

/// The types that keep the elements of an array, nested arrays included: in place, and on the heap.
pub(crate) fn of_elements(of: &TypeArray) -> [TokenStream; 2] {
    let inside = array(&of.elem).map_or_else(|| [quote!(__v::Whole), quote!(__v::Whole)], of_elements);
    let [in_place, on_heap] = inside;
    [quote!(__v::InPlace<#in_place>), quote!(__v::OnHeap<#on_heap>)]
}

/// The type if it is written as an array; an array behind a type alias is kept element by element, on the heap.
pub(crate) fn array(ty: &Type) -> Option<&TypeArray> {
    match ty {
        Type::Array(array) => Some(array),
        // A type that a macro passed on is in an invisible group.
        Type::Group(group) => array(&group.elem),
        Type::Paren(paren) => array(&paren.elem),
        _ => None,
    }
}

fn keepers<'a, 'c>(container: &'a Container<'c>) -> impl Iterator<Item = (usize, &'a Field<'c>, Keeper)> {
    container.migrated().map(|(index, field)| (index, field, Keeper::of(container, field)))
}

/// True if the size of the type may depend on the struct's generics, in which case no `const` condition on the size can be
/// written.
fn is_generic(container: &Container<'_>, ty: &Type) -> bool {
    let parameters = container.input.generics.params.iter().map(|parameter| match parameter {
        GenericParam::Type(parameter) => parameter.ident.clone(),
        GenericParam::Const(parameter) => parameter.ident.clone(),
        GenericParam::Lifetime(parameter) => parameter.lifetime.ident.clone(),
    });
    let parameters: Vec<_> = parameters.chain([format_ident!("Self")]).collect();
    codec::mentions(ty.to_token_stream(), &parameters)
}

/// The name of the kept value, with the span of the field's type, where all errors about the type are shown.
fn kept(index: usize, field: &Field<'_>) -> Ident {
    format_ident!("field_{index}", span = field.ty.span())
}
