//! Enums without fields: on the wire they are their discriminant, with the width of their `repr`.

use proc_macro2::{Ident, TokenStream, TokenTree};
use quote::quote;
use syn::ext::IdentExt as _;
use syn::{Attribute, DataEnum, DeriveInput, Meta, Variant};

use crate::attr::all_items;
use crate::ctxt::Ctxt;

/// The integer types that can be on the wire.
const INTEGERS: [&str; 8] = ["u8", "u16", "u32", "u64", "i8", "i16", "i32", "i64"];

/// The error for an enum without an integer `repr`.
pub(crate) const NO_REPR: &str =
    "the width on the wire is missing: add `#[repr(u8)]` or another integer of 1 to 8 bytes";

/// An enum without fields.
pub(crate) struct Enumeration<'a> {
    input: &'a DeriveInput,
    data: &'a DataEnum,
    /// The integer type of the enum's `repr`.
    integer: Ident,
}

impl<'a> Enumeration<'a> {
    pub(crate) fn new(ctxt: &Ctxt, input: &'a DeriveInput, data: &'a DataEnum) -> Option<Self> {
        for variant in &data.variants {
            check_variant(ctxt, variant);
        }
        if data.variants.is_empty() {
            ctxt.error(&input.ident, "an enum without variants has no value to migrate");
        }
        let integer = input.attrs.iter().find_map(integer_repr);
        if integer.is_none() {
            ctxt.error(&input.ident, NO_REPR);
        }
        Some(Self { input, data, integer: integer? })
    }

    /// Generates the impl of `Wire`.
    pub(crate) fn expand(&self, krate: &TokenStream) -> TokenStream {
        let (ident, integer) = (&self.input.ident, &self.integer);
        let name = ident.unraw().to_string();
        let (impl_generics, ty_generics, where_clause) = self.input.generics.split_for_impl();
        let variants: Vec<_> = self.data.variants.iter().map(|variant| &variant.ident).collect();
        let names = variants.iter().map(|variant| variant.unraw().to_string());
        quote! {
            #[allow(clippy::all, clippy::pedantic, clippy::nursery, clippy::restriction)]
            #[allow(unused_qualifications)]
            const _: () = {
                use #krate::__private as __v;
                use ::core::primitive::#integer as __Integer;

                #[automatically_derived]
                impl #impl_generics __v::Wire for #ident #ty_generics #where_clause {
                    type Undo = Self;
                    const KIND: __v::Kind = __v::Kind::Limited(
                        __v::MaybeStatic::Static(__v::KindOf::<__Integer>::REF),
                        __v::Limit::OneOf(__v::MaybeStatic::Static(&[#(Self::#variants as __Integer as i128),*])),
                    );

                    fn save(&mut self, out: &mut __v::Writer) -> __v::Result<()> {
                        let mut value = match *self {
                            #(Self::#variants => Self::#variants as __Integer,)*
                        };
                        <__Integer as __v::Wire>::save(&mut value, out)
                    }

                    fn load(&mut self, input: &mut __v::Reader<'_>) -> __v::Result<()> {
                        let offset = input.offset();
                        let mut value: __Integer = 0;
                        <__Integer as __v::Wire>::load(&mut value, input)?;
                        *self = match value {
                            #(value if value == Self::#variants as __Integer => Self::#variants,)*
                            _ => {
                                let known = [#((Self::#variants as __Integer, #names)),*];
                                return ::core::result::Result::Err(__v::unknown_value(value, #name, &known, offset));
                            }
                        };
                        ::core::result::Result::Ok(())
                    }

                    fn remember(&self) -> Self {
                        match *self {
                            #(Self::#variants => Self::#variants,)*
                        }
                    }

                    fn undo(&mut self, undo: Self) {
                        *self = undo;
                    }
                }
            };
        }
    }
}

fn check_variant(ctxt: &Ctxt, variant: &Variant) {
    if variant.discriminant.is_none() {
        let message = format!("the variant's number is on the wire: write the number out, as `{} = …`", variant.ident);
        ctxt.error(&variant.ident, message);
    }
    for item in all_items(ctxt, &variant.attrs) {
        ctxt.error(&item.word, "a variant takes no attributes");
    }
}

pub(crate) fn integer_repr(attr: &Attribute) -> Option<Ident> {
    let Meta::List(list) = &attr.meta else { return None };
    if !list.path.is_ident("repr") {
        return None;
    }
    list.tokens.clone().into_iter().find_map(|token| match token {
        TokenTree::Ident(ident) if INTEGERS.contains(&ident.to_string().as_str()) => Some(ident),
        _ => None,
    })
}
