//! The undo: a struct that keeps the value of every migrated field, what is large on the heap.

use proc_macro2::TokenStream;
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::{GenericParam, Generics, Ident, Type, TypeArray};

use super::{codec, run};
use crate::ast::{Codec, Container, Field};

/// `struct __Undo`, and whether its fields are few bytes in all.
pub(super) fn definition(container: &Container<'_>, generics: &Generics) -> TokenStream {
    let ident = &container.input.ident;
    let (impl_generics, ty_generics, where_clause) = generics.split_for_impl();
    let keepers: Vec<_> = keepers(container).collect();
    let fields = keepers.iter().map(|(index, field, keeper)| {
        let (name, ty) = (kept(*index), keeper.kept(field));
        quote!(#name: #ty,)
    });
    let mut sizes = keepers.iter().filter(|(_, _, keeper)| matches!(keeper, Keeper::BySize { .. })).peekable();
    let few = sizes.peek().is_some().then(|| {
        let sizes = sizes.map(|(_, field, keeper)| {
            let ty = keeper.in_place(field);
            quote!(::core::mem::size_of::<#ty>())
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
    let fields = keepers(container).map(|(index, field, keeper)| {
        let (name, value) = (kept(index), keeper.remember(field));
        quote!(#name: #value,)
    });
    quote!(__Undo { #(#fields)* of: ::core::marker::PhantomData })
}

/// The body of `undo`.
pub(super) fn undo(container: &Container<'_>) -> TokenStream {
    let fields = keepers(container).map(|(index, field, keeper)| {
        let name = kept(index);
        keeper.undo(field, &quote!(undo.#name))
    });
    quote! {
        let _ = &undo;
        #(#fields)*
    }
}

/// What keeps a field's value.
enum Keeper {
    /// A trait of the library that the field's type has.
    Trait(TokenStream),
    /// A clone.
    Clone,
    /// The struct that is made for the wire.
    Temporary(TokenStream),
    /// Types of the library: the first keeps in place, the second on the heap. What is `tiny` is kept in place anyway.
    BySize { in_place: TokenStream, on_heap: TokenStream, or_tiny: bool },
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
        let by_type = quote!(__v::Whole);
        match (&field.codec, array(field.ty)) {
            (Codec::ProxyEach(_), _) => Self::BySize {
                in_place: quote!(__v::Each<__v::Cloned>),
                on_heap: quote!(__v::Many<__v::Cloned>),
                or_tiny: false,
            },
            (_, Some(array)) if matches!(keeper, Self::Trait(_)) => {
                let [in_place, on_heap] = of_elements(array);
                Self::BySize { in_place, on_heap, or_tiny: false }
            }
            (Codec::Plain | Codec::Whole | Codec::At(_), _) => {
                Self::BySize { in_place: by_type, on_heap: quote!(__v::Boxed), or_tiny: true }
            }
            _ => keeper,
        }
    }

    /// What is kept if that is in place.
    fn in_place(&self, field: &Field<'_>) -> TokenStream {
        let ty = field.ty;
        match self {
            // At the type: a field that cannot be migrated is pointed at there.
            Self::Trait(by) => quote_spanned!(ty.span()=> <#ty as #by>::Undo),
            Self::Clone => ty.to_token_stream(),
            Self::Temporary(made) => made.clone(),
            Self::BySize { in_place, .. } => quote_spanned!(ty.span()=> <#in_place as __v::Keeps<#ty>>::Kept),
        }
    }

    /// The type of the library that keeps the value.
    fn chosen(&self, field: &Field<'_>) -> Option<TokenStream> {
        let Self::BySize { in_place, on_heap, or_tiny } = self else { return None };
        let kept = self.in_place(field);
        let condition = match or_tiny {
            true => quote!({ __FEW || __v::tiny(::core::mem::size_of::<#kept>()) }),
            false => quote!(__FEW),
        };
        Some(quote!(__v::Either<#condition, #in_place, #on_heap>))
    }

    /// The type of what is kept.
    fn kept(&self, field: &Field<'_>) -> TokenStream {
        let ty = field.ty;
        match self.chosen(field) {
            Some(chosen) => quote_spanned!(ty.span()=> <#chosen as __v::Keeps<#ty>>::Kept),
            None => self.in_place(field),
        }
    }

    /// The field's value.
    fn remember(&self, field: &Field<'_>) -> TokenStream {
        let Field { member, ty, .. } = field;
        match self {
            Self::Trait(by) => quote!(<#ty as #by>::remember(&self.#member)),
            Self::Clone => quote!(<#ty as ::core::clone::Clone>::clone(&self.#member)),
            Self::Temporary(made) => quote!(<#made as ::core::convert::From<&Self>>::from(self)),
            Self::BySize { .. } => {
                let chosen = self.chosen(field);
                quote!(<#chosen as __v::Keeps<#ty>>::remember(&self.#member))
            }
        }
    }

    /// Puts back `kept`.
    fn undo(&self, field: &Field<'_>, kept: &TokenStream) -> TokenStream {
        let Field { member, ty, .. } = field;
        match self {
            Self::Trait(by) => quote!(<#ty as #by>::undo(&mut self.#member, #kept);),
            Self::Clone => quote!(self.#member = #kept;),
            Self::Temporary(made) => quote!(__v::undo_temporary::<Self, #made>(self, #kept);),
            Self::BySize { .. } => {
                let chosen = self.chosen(field);
                quote!(<#chosen as __v::Keeps<#ty>>::undo(&mut self.#member, #kept);)
            }
        }
    }
}

/// What keeps the elements of an array, and of arrays in it: in place, and on the heap.
pub(crate) fn of_elements(of: &TypeArray) -> [TokenStream; 2] {
    let inside = array(&of.elem).map_or_else(|| [quote!(__v::Whole), quote!(__v::Whole)], of_elements);
    let [in_place, on_heap] = inside;
    [quote!(__v::Each<#in_place>), quote!(__v::Many<#on_heap>)]
}

/// The type if it is an array as it is written here; by another name it is kept as its elements are, on the heap.
pub(crate) fn array(ty: &Type) -> Option<&TypeArray> {
    match ty {
        Type::Array(array) => Some(array),
        // What a macro was given as a type.
        Type::Group(group) => array(&group.elem),
        Type::Paren(paren) => array(&paren.elem),
        _ => None,
    }
}

fn keepers<'a, 'c>(container: &'a Container<'c>) -> impl Iterator<Item = (usize, &'a Field<'c>, Keeper)> {
    container.migrated().map(|(index, field)| (index, field, Keeper::of(container, field)))
}

/// True if the size of the type may depend on the struct's generics: a condition on it cannot be written down.
fn is_generic(container: &Container<'_>, ty: &Type) -> bool {
    let parameters = container.input.generics.params.iter().map(|parameter| match parameter {
        GenericParam::Type(parameter) => parameter.ident.clone(),
        GenericParam::Const(parameter) => parameter.ident.clone(),
        GenericParam::Lifetime(parameter) => parameter.lifetime.ident.clone(),
    });
    let parameters: Vec<_> = parameters.chain([format_ident!("Self")]).collect();
    codec::mentions(ty.to_token_stream(), &parameters)
}

fn kept(index: usize) -> Ident {
    format_ident!("field_{index}")
}
