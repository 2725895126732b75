//! The syntax of `#[vmstate(…)]`: a list of `word`, `word = value` and `word(…)` entries, parsed into `Item`s.

pub(crate) mod container;
pub(crate) mod field;
pub(crate) mod section;

use proc_macro2::{Ident, TokenStream, TokenTree};
use quote::ToTokens;
use syn::ext::IdentExt;
use syn::parse::discouraged::Speculative as _;
use syn::parse::{Parse, ParseStream, Parser};
use syn::punctuated::Punctuated;
use syn::{Attribute, Expr, LitInt, LitStr, Path, Token, Type, parenthesized};

use crate::ctxt::Ctxt;
use crate::symbol;

/// One entry of the list.
pub(crate) struct Item {
    pub(crate) word: Ident,
    value: Value,
}

enum Value {
    None,
    Is(TokenStream),
    List(TokenStream),
}

impl Parse for Item {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let word = input.call(Ident::parse_any)?;
        let value = if input.peek(Token![=]) {
            input.parse::<Token![=]>()?;
            Value::Is(value_tokens(input, symbol::TYPES.contains(&word.to_string().as_str()))?)
        } else if input.peek(syn::token::Paren) {
            let list;
            parenthesized!(list in input);
            Value::List(list.parse()?)
        } else {
            Value::None
        };
        Ok(Self { word, value })
    }
}

/// The tokens of a value. A value that parses may contain commas (`Pair<u8, u16>`); one that does not parse ends at the first
/// comma.
fn value_tokens(input: ParseStream<'_>, is_type: bool) -> syn::Result<TokenStream> {
    let ahead = input.fork();
    let parsed = match is_type {
        true => ahead.parse::<Type>().map(|value| value.into_token_stream()),
        false => ahead.parse::<Expr>().map(|value| value.into_token_stream()),
    };
    if let Ok(value) = parsed
        && (ahead.is_empty() || ahead.peek(Token![,]))
    {
        input.advance_to(&ahead);
        return Ok(value);
    }
    let mut value = TokenStream::new();
    while !input.is_empty() && !input.peek(Token![,]) {
        value.extend([input.parse::<TokenTree>()?]);
    }
    Ok(value)
}

impl Item {
    /// True if the entry has a value or a list after its word.
    pub(crate) fn has_value(&self) -> bool {
        !matches!(self.value, Value::None)
    }

    /// Accepts an entry without a value.
    pub(crate) fn flag(&self, ctxt: &Ctxt) -> Option<Spanned<()>> {
        match self.value {
            Value::None => Some(Spanned { value: (), tokens: self.word.to_token_stream() }),
            _ => self.expected(ctxt, format!("`{}` takes no value", self.word)),
        }
    }

    /// Parses `word = "text"`.
    pub(crate) fn text(&self, ctxt: &Ctxt) -> Option<Spanned<String>> {
        self.is::<LitStr>(ctxt, "\"text\"").map(|spanned| spanned.map(|literal| literal.value()))
    }

    /// Parses `word = 3`.
    pub(crate) fn number(&self, ctxt: &Ctxt) -> Option<Spanned<u32>> {
        self.is::<LitInt>(ctxt, "a number").and_then(|spanned| match spanned.value.base10_parse() {
            Ok(value) => Some(Spanned { value, tokens: spanned.tokens }),
            Err(_) => {
                ctxt.error(&spanned.tokens, format!("expected `{} = a number` from 0 to {}", self.word, u32::MAX));
                None
            }
        })
    }

    /// Parses `word = path::to::it`.
    pub(crate) fn path(&self, ctxt: &Ctxt) -> Option<Spanned<Path>> {
        self.is::<Path>(ctxt, "a path")
    }

    /// Parses `word = value`, where the value has the syntax of `T`.
    pub(crate) fn is<T: Parse>(&self, ctxt: &Ctxt, what: &str) -> Option<Spanned<T>> {
        let expected = || format!("expected `{} = {what}`", self.word);
        match &self.value {
            Value::Is(tokens) => match syn::parse2(tokens.clone()) {
                Ok(value) => Some(Spanned { value, tokens: tokens.clone() }),
                Err(_) if tokens.is_empty() => self.expected(ctxt, expected()),
                Err(_) => {
                    ctxt.error(tokens, expected());
                    None
                }
            },
            _ => self.expected(ctxt, expected()),
        }
    }

    /// Parses `word(entries)`.
    pub(crate) fn list(&self, ctxt: &Ctxt) -> Option<Vec<Item>> {
        match &self.value {
            Value::List(tokens) => items(ctxt, tokens.clone()),
            _ => self.expected(ctxt, format!("expected `{}(…)`", self.word)),
        }
    }

    /// Reports that the word is not allowed in this place.
    pub(crate) fn unknown(&self, ctxt: &Ctxt, place: &str, allowed: &[&str]) {
        let word = self.word.to_string();
        let elsewhere = [
            ("a struct", symbol::ON_CONTAINER),
            ("a field", symbol::ON_FIELD),
            ("`subsection(…)`", symbol::IN_SUBSECTION),
        ];
        let help = match symbol::nearest(&word, allowed) {
            Some(nearest) => format!("did you mean `{nearest}`?"),
            None => match elsewhere.iter().find(|(_, words)| words.contains(&word.as_str())) {
                Some((there, _)) => format!("it belongs on {there}"),
                None => format!("known are {}", allowed.join(", ")),
            },
        };
        ctxt.error(&self.word, format!("unknown attribute `{word}` on {place}; {help}"));
    }

    fn expected<T>(&self, ctxt: &Ctxt, message: String) -> Option<T> {
        ctxt.error(&self.word, message);
        None
    }
}

/// A value with the user's tokens, where errors about the value are shown.
#[derive(Clone)]
pub(crate) struct Spanned<T> {
    pub(crate) value: T,
    pub(crate) tokens: TokenStream,
}

impl<T> Spanned<T> {
    fn map<U>(self, f: impl FnOnce(T) -> U) -> Spanned<U> {
        Spanned { value: f(self.value), tokens: self.tokens }
    }
}

/// An attribute that may be given once.
pub(crate) struct Once<T>(Option<Spanned<T>>);

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Once<T> {
    /// Sets the attribute to the parsed value (`None` if the value was wrong and is already reported).
    pub(crate) fn set(&mut self, ctxt: &Ctxt, item: &Item, value: Option<Spanned<T>>) {
        if self.0.is_some() {
            ctxt.error(&item.word, format!("`{}` is given twice", item.word));
        } else {
            self.0 = value;
        }
    }

    pub(crate) fn get(self) -> Option<Spanned<T>> {
        self.0
    }

    /// The value, if the attribute was given.
    pub(crate) fn value(&self) -> Option<&T> {
        self.0.as_ref().map(|given| &given.value)
    }
}

/// All entries of all `#[vmstate(…)]` among `attrs`.
pub(crate) fn all_items(ctxt: &Ctxt, attrs: &[Attribute]) -> Vec<Item> {
    let ours = attrs.iter().filter(|attr| attr.path().is_ident(symbol::VMSTATE));
    ours.filter_map(|attr| match attr.meta.require_list() {
        Ok(list) => items(ctxt, list.tokens.clone()),
        Err(error) => {
            ctxt.syn_error(error);
            None
        }
    })
    .flatten()
    .collect()
}

fn items(ctxt: &Ctxt, tokens: TokenStream) -> Option<Vec<Item>> {
    match Punctuated::<Item, Token![,]>::parse_terminated.parse2(tokens) {
        Ok(items) => Some(items.into_iter().collect()),
        Err(error) => {
            ctxt.syn_error(error);
            None
        }
    }
}
