//! Enums with fields: on the wire, a number with the width of their `repr`, then the fields of the variant with that number.

use proc_macro2::{Ident, TokenStream};
use quote::{ToTokens as _, format_ident, quote, quote_spanned};
use syn::ext::IdentExt as _;
use syn::spanned::Spanned as _;
use syn::{DataEnum, DeriveInput, Expr, ExprLit, ExprUnary, Generics, Lit, UnOp, Variant, parse_quote};

use crate::ast::{Container, Field, bound};
use crate::attr::all_items;
use crate::attr::field::FieldAttrs;
use crate::check;
use crate::ctxt::Ctxt;
use crate::enumeration::integer_repr;
use crate::expand::{call, codec, desc, framing, load, or_return, save, undo, within};
use crate::symbol;

/// An enum with fields.
pub(crate) struct Variants<'a> {
    input: &'a DeriveInput,
    /// The integer type of the enum's `repr`.
    integer: Ident,
    variants: Vec<One<'a>>,
}

/// A variant.
struct One<'a> {
    ident: &'a Ident,
    /// The number on the wire, as the user wrote it.
    number: &'a Expr,
    fields: Container<'a>,
}

impl<'a> Variants<'a> {
    /// Reads the enum; errors go to `ctxt`.
    pub(crate) fn new(ctxt: &Ctxt, input: &'a DeriveInput, data: &'a DataEnum) -> Option<Self> {
        let variants: Vec<_> = data.variants.iter().filter_map(|variant| One::new(ctxt, input, variant)).collect();
        let integer = input.attrs.iter().find_map(integer_repr);
        if integer.is_none() {
            ctxt.error(&input.ident, crate::enumeration::NO_REPR);
        }
        Some(Self { input, integer: integer?, variants })
    }

    /// Generates the impl of `Wire`.
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
        let (framed_now, framed) = self.framed(&lists);
        let tag = within(&quote!(<__Integer as __v::Wire>::load(&mut tag, input)), &"tag");
        quote! {
            #[allow(clippy::all, clippy::pedantic, clippy::nursery, clippy::restriction)]
            #[allow(dead_code, unused_qualifications, unused_variables, unused_parens, unused_braces)]
            #[allow(missing_docs, missing_debug_implementations, unreachable_pub, deprecated)]
            const _: () = {
                use #krate::__private as __v;
                use ::core::primitive::#integer as __Integer;

                #framed_now

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
                    const __FRAMED: ();
                }

                #[automatically_derived]
                impl #impl_generics __Parts for #ident #ty_generics #where_clause {
                    #(const #lists: &'static [__v::Field] = &[#field_lists];)*
                    #(const #ones: &'static __v::Description = &#one_values;)*
                    const __ALL: &'static [__v::Field] = &[
                        __v::Field::new(
                            __v::MaybeStatic::Static("tag"),
                            __v::Kind::Limited(
                                __v::MaybeStatic::Static(__v::KindOf::<__Integer>::REF),
                                __v::Limit::OneOf(__v::MaybeStatic::Static(&[#(#numbers as i128),*])),
                            ),
                            __v::Presence::Since(0),
                        ),
                        #(#entries)*
                    ];
                    const __DESCRIPTION: &'static __v::Description = &__v::Description::new(
                        __v::MaybeStatic::Static(#name),
                        1,
                        1,
                        __v::MaybeStatic::Static(<Self as __Parts>::__ALL),
                        __v::MaybeStatic::Static(&[]),
                    );
                    const __FRAMED: () = #framed;
                }

                #[automatically_derived]
                impl #impl_generics __v::Wire for #ident #ty_generics #where_clause {
                    type Undo = __Undo #ty_generics;
                    const KIND: __v::Kind = __v::Kind::Struct(__v::MaybeStatic::Static(<Self as __Parts>::__DESCRIPTION));

                    fn save(&mut self, out: &mut __v::Writer) -> __v::Result<()> {
                        match self {
                            #(#saves)*
                        }
                        ::core::result::Result::Ok(())
                    }

                    fn load(&mut self, input: &mut __v::Reader<'_>) -> __v::Result<()> {
                        let () = <Self as __Parts>::__FRAMED;
                        let offset = input.offset();
                        let mut tag: __Integer = 0;
                        #tag;
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

    /// The match arm that saves variant `index`: its number and fields. For each variant with fields, the arm also records
    /// whether that variant is the present one (`outcome`).
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
        let fields = variant.with_path(variant.migrated().map(save::checked).collect());
        let validate = variant.validate(|verdict| quote!(__v::hook(#verdict, "validate")));
        let saved = or_return(&quote!(<__Integer as __v::Wire>::save(&mut tag, out)));
        quote! {
            #pattern => {
                let mut tag: __Integer = #number;
                #saved
                #before
                #present
                #fields
                #validate
                #behind
            }
        }
    }

    /// The checks of the layout. For an enum without parameters they are constants, each shown where it is broken; for a generic
    /// enum they are the value of `__FRAMED`, which `load` uses.
    fn framed(&self, lists: &[Ident]) -> (TokenStream, TokenStream) {
        let rules = |this: &Ident| {
            let variants = self.variants.iter().zip(lists);
            variants
                .flat_map(|(variant, list)| framing::rules_of_variant(&variant.fields, list, this).collect::<Vec<_>>())
                .collect::<Vec<_>>()
        };
        match self.input.generics.params.is_empty() {
            true => {
                let rules = rules(&self.input.ident);
                (quote!(#(const _: () = { #rules };)*), quote!(()))
            }
            false => {
                let rules = rules(&format_ident!("Self"));
                (TokenStream::new(), quote!({ #(#rules;)* }))
            }
        }
    }

    /// The enum's generics, with the bounds that its generic fields need.
    fn with_bounds(&self) -> Generics {
        let mut generics = self.input.generics.clone();
        let parameters: Vec<_> = generics.type_params().map(|parameter| parameter.ident.clone()).collect();
        for variant in &self.variants {
            codec::add_bounds(&variant.fields, &mut generics);
            for Field { ty, part, .. } in &variant.fields.fields {
                if codec::mentions(ty.to_token_stream(), &parameters) {
                    let clone = part.is_none().then(|| quote!(+ ::core::clone::Clone));
                    generics.make_where_clause().predicates.push(parse_quote!(#ty: ::core::default::Default #clone));
                }
            }
        }
        generics
    }
}

impl<'a> One<'a> {
    fn new(ctxt: &Ctxt, input: &'a DeriveInput, variant: &'a Variant) -> Option<Self> {
        for item in all_items(ctxt, &variant.attrs) {
            ctxt.error(&item.word, "a variant takes no attributes");
        }
        let mut fields = Container::of_variant(ctxt, input, variant);
        fields.fields.iter_mut().for_each(|field| fits_a_variant(ctxt, &mut field.attrs));
        check::check(ctxt, &fields);
        match &variant.discriminant {
            Some((_, number)) if is_number(number) => Some(Self { ident: &variant.ident, number, fields }),
            Some((_, number)) => {
                ctxt.error(number, "the number of a variant is part of the description: write it as digits");
                None
            }
            None => {
                let message = format!(
                    "the variant's number is on the wire: write the number out, as `{}{} = …`",
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

    /// The fields that are on the wire.
    fn migrated(&self) -> impl Iterator<Item = &Field<'a>> {
        self.fields.migrated().map(|(_, field)| field)
    }

    fn has_fields(&self) -> bool {
        self.migrated().next().is_some()
    }

    /// `Self::Variant { 0: field_0, … }`.
    fn pattern(&self) -> TokenStream {
        let ident = self.ident;
        let fields = self.fields.fields.iter().enumerate().map(|(index, Field { member, ty, .. })| {
            let bound = bound(index, ty);
            quote!(#member: #bound)
        });
        quote!(Self::#ident { #(#fields),* })
    }

    /// Adds the variant to the path of errors in `code`.
    fn with_path(&self, code: TokenStream) -> TokenStream {
        if code.is_empty() {
            return code;
        }
        let variant = self.ident.unraw().to_string();
        let fields = within(
            &quote! {
                (|| -> __v::Result<()> {
                    #code
                    ::core::result::Result::Ok(())
                })()
            },
            &variant,
        );
        quote!(#fields;)
    }

    /// Runs the checks of all fields after all of them are loaded.
    fn validate(&self, of: impl Fn(&TokenStream) -> TokenStream) -> TokenStream {
        let checks = self.migrated().filter_map(|Field { name, attrs, .. }| {
            let verdict = of(&call(&attrs.validate.as_ref()?.value, &quote!(&*self)));
            let verdict = within(&verdict, name);
            Some(quote!(#verdict;))
        });
        self.with_path(checks.collect())
    }

    /// The descriptions of the fields.
    fn descriptions(&self) -> TokenStream {
        self.migrated().map(|field| desc::entries(&self.fields, field)).collect()
    }

    /// The variant, described as a struct.
    fn description(&self, list: &Ident) -> TokenStream {
        let name = self.ident.unraw().to_string();
        quote! {
            __v::Description::new(
                __v::MaybeStatic::Static(#name),
                1,
                1,
                __v::MaybeStatic::Static(<Self as __Parts>::#list),
                __v::MaybeStatic::Static(&[]),
            )
        }
    }

    /// The enum's description has a field for each variant, with the variant's number as its name.
    fn entry(&self, one: &Ident) -> TokenStream {
        let (number, name) = (self.number, digits(self.number));
        quote! {
            __v::Field::new(
                __v::MaybeStatic::Static(#name),
                __v::Kind::Struct(__v::MaybeStatic::Static(<Self as __Parts>::#one)),
                __v::Presence::Tag(#number as i128),
            ),
        }
    }

    /// The undo values of all fields, including those that are not on the wire: a load of another variant drops the skipped
    /// fields, too.
    fn kept(&self) -> [Vec<TokenStream>; 4] {
        let mut all = [const { Vec::new() }; 4];
        for (index, field) in self.fields.fields.iter().enumerate() {
            let kept = format_ident!("kept_{index}", span = field.ty.span());
            let [ty, remember, undo] = undo::of_variant(field, &kept);
            all.iter_mut()
                .zip([kept.to_token_stream(), ty, remember, undo])
                .for_each(|(list, tokens)| list.push(tokens));
        }
        all
    }

    fn undo_variant(&self) -> TokenStream {
        let (ident, [kept, types, ..]) = (self.ident, self.kept());
        quote!(#ident { #(#kept: #types),* })
    }

    /// Changes the value to this variant if it is another, then runs `code` with the fields bound.
    fn become_this(&self, code: &TokenStream) -> TokenStream {
        let (ident, pattern) = (self.ident, self.pattern());
        let defaults = self.fields.fields.iter().map(|Field { member, ty, .. }| {
            let default = quote_spanned!(ty.span()=> <#ty as ::core::default::Default>::default());
            quote!(#member: #default)
        });
        quote! {
            if !::core::matches!(self, Self::#ident { .. }) {
                *self = Self::#ident { #(#defaults),* };
            }
            if let #pattern = self {
                #code
            }
        }
    }

    fn load(&self) -> TokenStream {
        let number = self.number;
        let load = self.become_this(&self.with_path(self.migrated().map(load::checked).collect()));
        let validate = self.validate(|verdict| quote!(__v::load_hook(#verdict, "validate", input)));
        quote! {
            #number => {
                #load
                #validate
            }
        }
    }

    fn remember(&self) -> TokenStream {
        let (ident, pattern, [kept, _, values, _]) = (self.ident, self.pattern(), self.kept());
        quote! {
            #pattern => {
                #(let #kept = #values;)*
                __Undo::#ident { #(#kept),* }
            }
        }
    }

    fn undo(&self) -> TokenStream {
        let (ident, [kept, _, _, undos]) = (self.ident, self.kept());
        let undo = self.become_this(&undos.into_iter().collect());
        quote!(__Undo::#ident { #(#kept),* } => { #undo })
    }
}

/// Rejects attributes that an enum cannot have: an enum has no versions and no subsections, and the variant's number decides
/// which fields are present.
fn fits_a_variant(ctxt: &Ctxt, attrs: &mut FieldAttrs) {
    let words = [
        (symbol::SINCE, attrs.since.take().map(|given| given.tokens)),
        (symbol::EXISTS, attrs.exists.take().map(|given| given.tokens)),
        (symbol::MUST_EXIST, attrs.must_exist.take().map(|given| given.tokens)),
        (symbol::SUBSECTION, attrs.subsection.take().map(|given| given.tokens)),
        (symbol::EQUAL, attrs.equal.take().map(|given| given.tokens)),
        (symbol::AT_MOST_CURRENT, attrs.at_most_current.take().map(|given| given.tokens)),
        (symbol::TMP, attrs.tmp.take().map(|given| given.tokens)),
    ];
    for (word, tokens) in words.into_iter().filter_map(|(word, tokens)| Some((word, tokens?))) {
        ctxt.error(
            tokens,
            format!("`{word}` does not go with a variant's field: put it on a struct that is the field"),
        );
    }
}

/// True for a literal number, with or without a sign.
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
