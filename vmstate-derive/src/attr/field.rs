//! Attributes of a field.

use proc_macro2::Ident;
use syn::parse::{Parse, ParseStream};
use syn::{Attribute, BinOp, Expr, ExprRange, Path, Token, Type, bracketed, parenthesized, token};

use super::{Once, Spanned, all_items};
use crate::ctxt::Ctxt;
use crate::symbol;

/// The value of `len`: a field, or a field times a constant number of elements.
pub(crate) struct Len {
    pub(crate) field: Ident,
    pub(crate) factor: Option<Expr>,
}

impl Parse for Len {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let field = input.parse()?;
        let Some(times) = input.parse::<Option<Token![*]>>()? else { return Ok(Self { field, factor: None }) };
        let factor = input.parse()?;
        match is_factor(&factor) {
            true => Ok(Self { field, factor: Some(factor) }),
            false => Err(syn::Error::new(times.span, "not a product")),
        }
    }
}

/// True if the expression after `*` is a single factor; `2 + 1` is not, because `*` binds tighter.
fn is_factor(expr: &Expr) -> bool {
    match expr {
        Expr::Binary(binary) => matches!(binary.op, BinOp::Mul(_)) && is_factor(&binary.left),
        Expr::Lit(_) | Expr::Path(_) | Expr::Paren(_) | Expr::Group(_) | Expr::Block(_) | Expr::Cast(_) => true,
        Expr::Call(_) | Expr::MethodCall(_) | Expr::Field(_) | Expr::Index(_) | Expr::Macro(_) => true,
        _ => false,
    }
}

/// The value of `with`.
pub(crate) enum With {
    /// A module, for the whole field or for each element of a collection.
    One(Path),
    /// `[module; N]`, for each element of an array.
    Array(Path),
    /// `(module, module)`, for keys and values of a map; `_` keeps their own type.
    Entries(Option<Path>, Option<Path>),
}

impl Parse for With {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let inside;
        if input.peek(token::Bracket) {
            bracketed!(inside in input);
            let module = inside.parse()?;
            inside.parse::<Token![;]>()?;
            inside.parse::<Expr>()?;
            return Ok(Self::Array(module));
        }
        if !input.peek(token::Paren) {
            return Ok(Self::One(input.parse()?));
        }
        parenthesized!(inside in input);
        let module = || match inside.peek(Token![_]) {
            true => inside.parse::<Token![_]>().map(|_| None),
            false => inside.parse().map(Some),
        };
        let key = module()?;
        inside.parse::<Token![,]>()?;
        let value = module()?;
        inside.parse::<Option<Token![,]>>()?;
        Ok(Self::Entries(key, value))
    }
}

/// Attributes of a field.
pub(crate) struct FieldAttrs {
    pub(crate) skip: Option<Spanned<()>>,
    pub(crate) name: Option<Spanned<String>>,
    pub(crate) since: Option<Spanned<u32>>,
    pub(crate) exists: Option<Spanned<Path>>,
    pub(crate) must_exist: Option<Spanned<Path>>,
    pub(crate) validate: Option<Spanned<Path>>,
    pub(crate) range: Option<Spanned<ExprRange>>,
    pub(crate) equal: Option<Spanned<()>>,
    pub(crate) at_most_current: Option<Spanned<()>>,
    pub(crate) counted: Option<Spanned<Type>>,
    pub(crate) len: Option<Spanned<Len>>,
    /// True if a length, list or map is declared, even if the attribute's value could not be parsed.
    pub(crate) is_counted: bool,
    pub(crate) max: Option<Spanned<Expr>>,
    pub(crate) list: Option<Spanned<()>>,
    pub(crate) map: Option<Spanned<()>>,
    pub(crate) slice: Option<Spanned<ExprRange>>,
    pub(crate) buffer: Option<Spanned<()>>,
    pub(crate) bitmap: Option<Spanned<()>>,
    pub(crate) wire: Option<Spanned<Type>>,
    pub(crate) with: Option<Spanned<With>>,
    pub(crate) via: Option<Spanned<Type>>,
    pub(crate) tmp: Option<Spanned<Type>>,
    pub(crate) struct_version: Option<Spanned<u32>>,
    pub(crate) subsection: Option<Spanned<String>>,
    pub(crate) unframed: Option<Spanned<()>>,
}

impl FieldAttrs {
    pub(crate) fn from_attrs(ctxt: &Ctxt, attrs: &[Attribute]) -> Self {
        let mut skip = Once::default();
        let mut name = Once::default();
        let mut since = Once::default();
        let mut exists = Once::default();
        let mut must_exist = Once::default();
        let mut validate = Once::default();
        let mut range = Once::default();
        let mut equal = Once::default();
        let mut at_most_current = Once::default();
        let mut counted = Once::default();
        let mut len = Once::default();
        let mut max = Once::default();
        let mut list = Once::default();
        let mut map = Once::default();
        let mut slice = Once::default();
        let mut buffer = Once::default();
        let mut bitmap = Once::default();
        let mut wire = Once::default();
        let mut with = Once::default();
        let mut via = Once::default();
        let mut tmp = Once::default();
        let mut struct_version = Once::default();
        let mut subsection = Once::default();
        let mut unframed = Once::default();
        let items = all_items(ctxt, attrs);
        let is_counted = items
            .iter()
            .any(|item| [symbol::LEN, symbol::COUNTED, symbol::LIST, symbol::MAP].iter().any(|word| item.word == word));
        for item in &items {
            match item.word.to_string().as_str() {
                symbol::SKIP => skip.set(ctxt, item, item.flag(ctxt)),
                symbol::NAME => name.set(ctxt, item, item.text(ctxt)),
                symbol::SINCE => since.set(ctxt, item, item.number(ctxt)),
                symbol::EXISTS => exists.set(ctxt, item, item.path(ctxt)),
                symbol::MUST_EXIST => must_exist.set(ctxt, item, item.path(ctxt)),
                symbol::VALIDATE => validate.set(ctxt, item, item.path(ctxt)),
                symbol::RANGE => range.set(ctxt, item, item.is(ctxt, "a..=b")),
                symbol::EQUAL => equal.set(ctxt, item, item.flag(ctxt)),
                symbol::AT_MOST_CURRENT => at_most_current.set(ctxt, item, item.flag(ctxt)),
                symbol::COUNTED => counted.set(ctxt, item, item.is(ctxt, "an unsigned integer type")),
                symbol::LEN => len.set(ctxt, item, item.is(ctxt, "field` or `field * constant")),
                symbol::MAX => max.set(ctxt, item, item.is(ctxt, "a number of elements")),
                symbol::LIST => list.set(ctxt, item, item.flag(ctxt)),
                symbol::MAP => map.set(ctxt, item, item.flag(ctxt)),
                symbol::SLICE => slice.set(ctxt, item, item.is(ctxt, "a..b")),
                symbol::BUFFER => buffer.set(ctxt, item, item.flag(ctxt)),
                symbol::BITMAP => bitmap.set(ctxt, item, item.flag(ctxt)),
                symbol::WIRE => wire.set(ctxt, item, item.is(ctxt, "an integer type")),
                symbol::WITH => with.set(ctxt, item, item.is(ctxt, "a path")),
                symbol::VIA => via.set(ctxt, item, item.is(ctxt, "a type")),
                symbol::TMP => tmp.set(ctxt, item, item.is(ctxt, "a type")),
                symbol::STRUCT_VERSION => struct_version.set(ctxt, item, item.number(ctxt)),
                symbol::SUBSECTION => subsection.set(ctxt, item, item.text(ctxt)),
                symbol::UNFRAMED => unframed.set(ctxt, item, item.flag(ctxt)),
                _ => item.unknown(ctxt, "a field", symbol::ON_FIELD),
            }
        }
        Self {
            skip: skip.get(),
            name: name.get(),
            since: since.get(),
            exists: exists.get(),
            must_exist: must_exist.get(),
            validate: validate.get(),
            range: range.get(),
            equal: equal.get(),
            at_most_current: at_most_current.get(),
            counted: counted.get(),
            len: len.get(),
            is_counted,
            max: max.get(),
            list: list.get(),
            map: map.get(),
            slice: slice.get(),
            buffer: buffer.get(),
            bitmap: bitmap.get(),
            wire: wire.get(),
            with: with.get(),
            via: via.get(),
            tmp: tmp.get(),
            struct_version: struct_version.get(),
            subsection: subsection.get(),
            unframed: unframed.get(),
        }
    }
}
