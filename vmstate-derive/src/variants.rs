//! Enums with fields: on the wire a number as wide as their `repr` says, then the fields of the variant that has it.

use proc_macro2::{Ident, TokenStream, TokenTree};
use quote::{ToTokens as _, format_ident, quote, quote_spanned};
use syn::ext::IdentExt as _;
use syn::spanned::Spanned as _;
use syn::{
    DataEnum, DeriveInput, Expr, ExprLit, ExprUnary, Field, Generics, Lit, Member, Type, UnOp, Variant, parse_quote,
};

use crate::attr::all_items;
use crate::ctxt::Ctxt;
use crate::enumeration::integer_repr;

/// The enum.
pub(crate) struct Variants<'a> {
    input: &'a DeriveInput,
    /// Its `repr`.
    integer: Ident,
    variants: Vec<One<'a>>,
}

/// A variant.
struct One<'a> {
    ident: &'a Ident,
    /// The number on the wire, as it was written.
    number: &'a Expr,
    fields: Vec<Part<'a>>,
}

/// A field of a variant.
struct Part<'a> {
    member: Member,
    ty: &'a Type,
    name: String,
}

impl<'a> Variants<'a> {
    /// Reads the enum; mistakes go to `ctxt`.
    pub(crate) fn new(ctxt: &Ctxt, input: &'a DeriveInput, data: &'a DataEnum) -> Option<Self> {
        let variants: Vec<_> = data.variants.iter().filter_map(|variant| One::new(ctxt, variant)).collect();
        let integer = input.attrs.iter().find_map(integer_repr);
        if integer.is_none() {
            ctxt.error(&input.ident, crate::enumeration::NO_REPR);
        }
        Some(Self { input, integer: integer?, variants })
    }

    /// The impl of `Wire`.
    pub(crate) fn expand(&self, krate: &TokenStream) -> TokenStream {
        let (ident, integer) = (&self.input.ident, &self.integer);
        let name = ident.unraw().to_string();
        let generics = self.with_bounds();
        let (impl_generics, ty_generics, where_clause) = generics.split_for_impl();
        let numbers: Vec<_> = self.variants.iter().map(|variant| variant.number).collect();
        let names = self.variants.iter().map(|variant| variant.ident.unraw().to_string());
        let known = quote!([#((#numbers, #names)),*]);
        let lists: Vec<_> = (0..self.variants.len()).map(|index| format_ident!("__FIELDS_{index}")).collect();
        let field_lists = self.variants.iter().map(One::descriptions);
        let ones: Vec<_> = (0..self.variants.len()).map(|index| format_ident!("__VARIANT_{index}")).collect();
        let one_values = self.variants.iter().zip(&lists).map(|(variant, list)| variant.description(list));
        let entries = self.variants.iter().zip(&ones).filter(|(variant, _)| variant.has_fields());
        let entries = entries.map(|(variant, one)| variant.entry(one));
        let undo_variants = self.variants.iter().map(One::undo_variant);
        let saves = (0..self.variants.len()).map(|index| self.save(index));
        let loads = self.variants.iter().map(One::load);
        let remembers = self.variants.iter().map(One::remember);
        let undos = self.variants.iter().map(One::undo);
        quote! {
            #[allow(clippy::all, clippy::pedantic, clippy::nursery, clippy::restriction)]
            #[allow(dead_code, unused_qualifications, unused_variables, missing_docs, missing_debug_implementations)]
            #[allow(unreachable_pub, deprecated)]
            const _: () = {
                use #krate::__private as __v;
                use ::core::primitive::#integer as __Integer;

                #[doc(hidden)]
                pub enum __Undo #impl_generics #where_clause {
                    #(#undo_variants,)*
                    __Of(::core::marker::PhantomData<fn() -> #ident #ty_generics>),
                }

                trait __Parts: ::core::marker::Sized {
                    #(const #lists: &'static [__v::Field];)*
                    #(const #ones: &'static __v::Description;)*
                    const __ALL: &'static [__v::Field];
                    const __DESCRIPTION: &'static __v::Description;
                }

                #[automatically_derived]
                impl #impl_generics __Parts for #ident #ty_generics #where_clause {
                    #(const #lists: &'static [__v::Field] = &[#field_lists];)*
                    #(const #ones: &'static __v::Description = &#one_values;)*
                    const __ALL: &'static [__v::Field] = &[
                        __v::Field::new(
                            __v::Shared::Static("tag"),
                            __v::Kind::Limited(
                                __v::Shared::Static(__v::KindOf::<__Integer>::REF),
                                __v::Limit::OneOf(__v::Shared::Static(&[#(#numbers as i128),*])),
                            ),
                            __v::Presence::Since(0),
                        ),
                        #(#entries)*
                    ];
                    const __DESCRIPTION: &'static __v::Description = &__v::Description::new(
                        __v::Shared::Static(#name),
                        1,
                        1,
                        __v::Shared::Static(<Self as __Parts>::__ALL),
                        __v::Shared::Static(&[]),
                    );
                }

                #[automatically_derived]
                impl #impl_generics __v::Wire for #ident #ty_generics #where_clause {
                    type Undo = __Undo #ty_generics;
                    const KIND: __v::Kind = __v::Kind::Struct(__v::Shared::Static(<Self as __Parts>::__DESCRIPTION));

                    fn save(&mut self, out: &mut __v::Writer) -> __v::Result<()> {
                        match self {
                            #(#saves)*
                        }
                        ::core::result::Result::Ok(())
                    }

                    fn load(&mut self, input: &mut __v::Reader<'_>) -> __v::Result<()> {
                        let offset = input.offset();
                        let mut tag: __Integer = 0;
                        __v::within(<__Integer as __v::Wire>::load(&mut tag, input), "tag")?;
                        match tag {
                            #(#loads)*
                            _ => return ::core::result::Result::Err(__v::unknown_value(tag, #name, &#known, offset)),
                        }
                        ::core::result::Result::Ok(())
                    }

                    fn remember(&self) -> Self::Undo {
                        match self {
                            #(#remembers)*
                        }
                    }

                    fn undo(&mut self, undo: Self::Undo) {
                        match undo {
                            #(#undos)*
                            __Undo::__Of(_) => {}
                        }
                    }
                }
            };
        }
    }

    /// The arm of variant `index`: its number and fields, and for each variant with fields whether it is this one.
    fn save(&self, index: usize) -> TokenStream {
        let Some(variant) = self.variants.get(index) else { return TokenStream::new() };
        let absent = |variants: &[One<'_>]| {
            let count = variants.iter().filter(|variant| variant.has_fields()).count();
            (0..count).map(|_| quote!(out.outcome(0);)).collect::<TokenStream>()
        };
        let (before, behind) = self.variants.split_at(index);
        let (before, behind) = (absent(before), absent(behind.get(1..).unwrap_or_default()));
        let present = variant.has_fields().then(|| quote!(out.outcome(1);));
        let (pattern, number) = (variant.pattern(), variant.number);
        let fields = variant.each(|part, bound| {
            let save = part.of(&quote!(save));
            variant.within(part, &quote!(#save(#bound, out)))
        });
        quote! {
            #pattern => {
                let mut tag: __Integer = #number;
                <__Integer as __v::Wire>::save(&mut tag, out)?;
                #before
                #present
                #fields
                #behind
            }
        }
    }

    /// The enum's generics, with what its generic fields need.
    fn with_bounds(&self) -> Generics {
        let mut generics = self.input.generics.clone();
        let parameters: Vec<_> = generics.type_params().map(|parameter| parameter.ident.clone()).collect();
        for part in self.variants.iter().flat_map(|variant| &variant.fields) {
            if mentions(part.ty.to_token_stream(), &parameters) {
                let ty = part.ty;
                generics.make_where_clause().predicates.push(parse_quote!(#ty: __v::Wire + ::core::default::Default));
            }
        }
        generics
    }
}

impl<'a> One<'a> {
    fn new(ctxt: &Ctxt, variant: &'a Variant) -> Option<Self> {
        for item in all_items(ctxt, &variant.attrs) {
            ctxt.error(&item.word, "a variant takes no attributes");
        }
        let fields = variant.fields.members().zip(&variant.fields);
        let fields = fields.map(|(member, field)| Part::new(ctxt, member, field)).collect();
        match &variant.discriminant {
            Some((_, number)) if is_number(number) => Some(Self { ident: &variant.ident, number, fields }),
            Some((_, number)) => {
                ctxt.error(number, "the number of a variant is part of the description: write it as digits");
                None
            }
            None => {
                let message = format!(
                    "its number is on the wire: write it out, as `{}{} = …`",
                    variant.ident,
                    match variant.fields {
                        syn::Fields::Unit => "",
                        syn::Fields::Unnamed(_) => "(…)",
                        syn::Fields::Named(_) => " { … }",
                    }
                );
                ctxt.error(&variant.ident, message);
                None
            }
        }
    }

    fn has_fields(&self) -> bool {
        !self.fields.is_empty()
    }

    /// `Self::Variant { 0: field_0, … }`.
    fn pattern(&self) -> TokenStream {
        let ident = self.ident;
        let members = self.fields.iter().map(|part| &part.member);
        let bound = self.bound();
        quote!(Self::#ident { #(#members: #bound),* })
    }

    fn bound(&self) -> Vec<Ident> {
        let fields = self.fields.iter().enumerate();
        fields.map(|(index, part)| format_ident!("field_{index}", span = part.ty.span())).collect()
    }

    /// The code of all fields.
    fn each(&self, code: impl Fn(&Part<'_>, &Ident) -> TokenStream) -> TokenStream {
        self.fields.iter().zip(self.bound()).map(|(part, bound)| code(part, &bound)).collect()
    }

    /// A result of the field's, with its place.
    fn within(&self, part: &Part<'_>, result: &TokenStream) -> TokenStream {
        let (variant, name) = (self.ident.unraw().to_string(), &part.name);
        quote!(__v::within(__v::within(#result, #name), #variant)?;)
    }

    /// The descriptions of the fields.
    fn descriptions(&self) -> TokenStream {
        self.each(|part, _| {
            let (name, kind) = (&part.name, part.of(&quote!(KIND)));
            quote!(__v::Field::new(__v::Shared::Static(#name), #kind, __v::Presence::Since(0)),)
        })
    }

    /// The variant as a struct.
    fn description(&self, list: &Ident) -> TokenStream {
        let name = self.ident.unraw().to_string();
        quote! {
            __v::Description::new(
                __v::Shared::Static(#name),
                1,
                1,
                __v::Shared::Static(<Self as __Parts>::#list),
                __v::Shared::Static(&[]),
            )
        }
    }

    /// The field of the enum's description that the variant is: called by the number that the tag has then.
    fn entry(&self, one: &Ident) -> TokenStream {
        let (number, name) = (self.number, digits(self.number));
        quote! {
            __v::Field::new(
                __v::Shared::Static(#name),
                __v::Kind::Struct(__v::Shared::Static(<Self as __Parts>::#one)),
                __v::Presence::Tag(#number as i128),
            ),
        }
    }

    fn undo_variant(&self) -> TokenStream {
        let ident = self.ident;
        let undos = self.fields.iter().map(|part| part.of(&quote!(Undo)));
        quote!(#ident(#(#undos),*))
    }

    /// Makes this variant of the value, if it is another; then `code`, with the fields at hand.
    fn become_this(&self, code: &TokenStream) -> TokenStream {
        let (ident, pattern) = (self.ident, self.pattern());
        let members = self.fields.iter().map(|part| &part.member);
        let defaults = self.fields.iter().map(|part| {
            let ty = part.ty;
            quote_spanned!(ty.span()=> <#ty as ::core::default::Default>::default())
        });
        quote! {
            if !::core::matches!(self, Self::#ident { .. }) {
                *self = Self::#ident { #(#members: #defaults),* };
            }
            if let #pattern = self {
                #code
            }
        }
    }

    fn load(&self) -> TokenStream {
        let number = self.number;
        let fields = self.each(|part, bound| {
            let load = part.of(&quote!(load));
            self.within(part, &quote!(#load(#bound, input)))
        });
        let load = self.become_this(&fields);
        quote!(#number => { #load })
    }

    fn remember(&self) -> TokenStream {
        let (ident, pattern) = (self.ident, self.pattern());
        let values = self.each(|part, bound| {
            let remember = part.of(&quote!(remember));
            quote!(#remember(#bound),)
        });
        quote!(#pattern => __Undo::#ident(#values),)
    }

    fn undo(&self) -> TokenStream {
        let ident = self.ident;
        let kept: Vec<_> = (0..self.fields.len()).map(|index| format_ident!("kept_{index}")).collect();
        let fields = self.fields.iter().zip(self.bound()).zip(&kept).map(|((part, bound), kept)| {
            let undo = part.of(&quote!(undo));
            quote!(#undo(#bound, #kept);)
        });
        let undo = self.become_this(&fields.collect());
        quote!(__Undo::#ident(#(#kept),*) => { #undo })
    }
}

impl<'a> Part<'a> {
    fn new(ctxt: &Ctxt, member: Member, field: &'a Field) -> Self {
        for item in all_items(ctxt, &field.attrs) {
            ctxt.error(&item.word, "a variant's field takes no attributes: put them on a struct that is the field");
        }
        let name = match &member {
            Member::Named(ident) => ident.unraw().to_string(),
            Member::Unnamed(index) => index.index.to_string(),
        };
        Self { member, ty: &field.ty, name }
    }

    /// `item` of the type, shown there.
    fn of(&self, item: &TokenStream) -> TokenStream {
        let ty = self.ty;
        quote_spanned!(ty.span()=> <#ty as __v::Wire>::#item)
    }
}

/// True for digits, with or without a sign.
fn is_number(expr: &Expr) -> bool {
    match expr {
        Expr::Lit(ExprLit { lit: Lit::Int(_), .. }) => true,
        Expr::Unary(ExprUnary { op: UnOp::Neg(_), expr, .. }) => is_number(expr),
        Expr::Group(group) => is_number(&group.expr),
        _ => false,
    }
}

/// The number in decimal digits.
fn digits(expr: &Expr) -> String {
    match expr {
        Expr::Lit(ExprLit { lit: Lit::Int(literal), .. }) => literal.base10_digits().to_owned(),
        Expr::Unary(ExprUnary { expr, .. }) => format!("-{}", digits(expr)),
        Expr::Group(group) => digits(&group.expr),
        _ => String::new(),
    }
}

fn mentions(tokens: TokenStream, parameters: &[Ident]) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => parameters.contains(&ident),
        TokenTree::Group(group) => mentions(group.stream(), parameters),
        _ => false,
    })
}
