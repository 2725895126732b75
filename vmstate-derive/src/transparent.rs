//! `#[vmstate(transparent)]`: a struct of one field that has the field's bytes on the wire.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::{DataStruct, DeriveInput, Field, Index, Member, parse_quote};

use crate::attr::all_items;
use crate::ctxt::Ctxt;
use crate::expand::{array, of_elements};

/// The struct and its field.
pub(crate) struct Transparent<'a> {
    input: &'a DeriveInput,
    field: &'a Field,
}

impl<'a> Transparent<'a> {
    pub(crate) fn new(ctxt: &Ctxt, input: &'a DeriveInput, data: &'a DataStruct) -> Option<Self> {
        let mut fields = data.fields.iter();
        let (Some(field), None) = (fields.next(), fields.next()) else {
            let message = format!("`transparent` is for one field, this struct has {}", data.fields.len());
            ctxt.error(&input.ident, message);
            return None;
        };
        for item in all_items(ctxt, &field.attrs) {
            ctxt.error(&item.word, "the field of a `transparent` struct takes no attributes");
        }
        Some(Self { input, field })
    }

    /// Generates the impl of `Wire`, which forwards to the field.
    pub(crate) fn expand(&self, krate: &TokenStream) -> TokenStream {
        let ident = &self.input.ident;
        let ty = &self.field.ty;
        let index = Index { index: 0, span: ty.span() };
        let member = self.field.ident.clone().map_or(Member::Unnamed(index), Member::Named);
        let mut generics = self.input.generics.clone();
        if generics.type_params().next().is_some() {
            generics.make_where_clause().predicates.push(parse_quote!(#ty: __v::Wire));
        }
        let (impl_generics, ty_generics, where_clause) = generics.split_for_impl();
        // With the type's span: a field that cannot be migrated is reported at its type.
        let keeper = self.keeper();
        // With the type's span: a field that cannot be migrated is reported at its type.
        let (kept, remember, undo) = match &keeper {
            None => (
                quote_spanned!(ty.span()=> <#ty as __v::Wire>::Undo),
                quote!(<#ty as __v::Wire>::remember),
                quote!(<#ty as __v::Wire>::undo),
            ),
            Some(keeper) => (
                quote_spanned!(ty.span()=> <#keeper as __v::Keeps<#ty>>::Kept),
                quote!(<#keeper as __v::Keeps<#ty>>::remember),
                quote!(<#keeper as __v::Keeps<#ty>>::undo),
            ),
        };
        quote! {
            #[allow(unused_qualifications)]
            const _: () = {
                use #krate::__private as __v;

                #[automatically_derived]
                impl #impl_generics __v::Wire for #ident #ty_generics #where_clause {
                    type Undo = #kept;
                    const KIND: __v::Kind = <#ty as __v::Wire>::KIND;
                    const IS_OPTION: bool = <#ty as __v::Wire>::IS_OPTION;
                    const IS_POINTER: bool = <#ty as __v::Wire>::IS_POINTER;
                    const WHOLE: __v::Kind = <#ty as __v::Wire>::WHOLE;

                    fn save(&mut self, out: &mut __v::Writer) -> __v::Result<()> {
                        <#ty as __v::Wire>::save(&mut self.#member, out)
                    }

                    fn load(&mut self, input: &mut __v::Reader<'_>) -> __v::Result<()> {
                        <#ty as __v::Wire>::load(&mut self.#member, input)
                    }

                    fn is_there(&self) -> bool {
                        <#ty as __v::Wire>::is_there(&self.#member)
                    }

                    fn make_absent(&mut self) {
                        <#ty as __v::Wire>::make_absent(&mut self.#member);
                    }

                    fn save_whole(&mut self, out: &mut __v::Writer) -> __v::Result<()> {
                        <#ty as __v::Wire>::save_whole(&mut self.#member, out)
                    }

                    fn load_whole(&mut self, input: &mut __v::Reader<'_>) -> __v::Result<()> {
                        <#ty as __v::Wire>::load_whole(&mut self.#member, input)
                    }

                    fn remember(&self) -> Self::Undo {
                        #remember(&self.#member)
                    }

                    fn undo(&mut self, undo: Self::Undo) {
                        #undo(&mut self.#member, undo);
                    }
                }
            };
        }
    }

    /// The library's type that keeps an array for an undo, in place if it is small.
    fn keeper(&self) -> Option<TokenStream> {
        let array = array(&self.field.ty).filter(|_| self.input.generics.params.is_empty())?;
        let [in_place, on_heap] = of_elements(array);
        let kept = quote!(<#in_place as __v::Keeps<#array>>::Kept);
        Some(quote!(__v::Either<{ __v::tiny(::core::mem::size_of::<#kept>()) }, #in_place, #on_heap>))
    }
}
