//! Rules that concern more than one attribute, one function for each rule.

use std::collections::{HashMap, HashSet};

use proc_macro2::{Ident, TokenStream, TokenTree};
use quote::ToTokens as _;
use syn::{Expr, ExprLit, Lit};

use crate::ast::{Container, Length, pair};
use crate::attr::field::{FieldAttrs, With};
use crate::ctxt::Ctxt;
use crate::expand::codec;
use crate::symbol;

/// Reports every broken rule.
pub(crate) fn check(ctxt: &Ctxt, container: &Container<'_>) {
    minimum_not_above_version(ctxt, container);
    since_within_version(ctxt, container);
    subsection_versions_fit_a_byte(ctxt, container);
    names_fit_their_length_byte(ctxt, container);
    names_have_no_nul(ctxt, container);
    names_are_unique(ctxt, container);
    subsections_carry_the_prefix(ctxt, container);
    subsections_are_unique_and_have_fields(ctxt, container);
    subsections_are_not_taken_for_inner_ones(ctxt, container);
    nothing_contains_itself(ctxt, container);
    skip_stands_alone(ctxt, container);
    one_presence(ctxt, container);
    one_codec(ctxt, container);
    entries_are_keys_and_values(ctxt, container);
    max_bounds_what_the_peer_says(ctxt, container);
    length_comes_first(ctxt, container);
    remote_has_no_parameters(ctxt, container);
}

/// `minimum_version = 4` with `version = 3` would let no stream load.
fn minimum_not_above_version(ctxt: &Ctxt, container: &Container<'_>) {
    for part in &container.parts {
        if let Some(minimum) = &part.attrs.minimum_version
            && minimum.value > part.version
        {
            ctxt.error(&minimum.tokens, format!("minimum_version {} is above version {}", minimum.value, part.version));
        }
    }
}

/// A field with `since = 4` in a struct with `version = 3` would never be sent.
fn since_within_version(ctxt: &Ctxt, container: &Container<'_>) {
    for field in &container.fields {
        if let (Some(since), Some(part)) = (&field.attrs.since, field.part) {
            let part = &container.parts[part];
            if since.value > part.version {
                let message = format!("since {} is beyond version {}", since.value, part.version);
                ctxt.error(&since.tokens, message);
            }
        }
    }
}

/// QEMU's readers take a subsection's version from one byte (`vmstate_subsection_load`, migration/vmstate.c).
fn subsection_versions_fit_a_byte(ctxt: &Ctxt, container: &Container<'_>) {
    for part in container.parts.iter().skip(1) {
        if let Some(version) = &part.attrs.version
            && version.value > 255
        {
            let message = format!("a subsection's version is from 0 to 255, {} is too high", version.value);
            ctxt.error(&version.tokens, message);
        }
    }
}

/// QEMU's names are C strings, which end at a NUL.
fn names_have_no_nul(ctxt: &Ctxt, container: &Container<'_>) {
    let parts = container.parts.iter().filter_map(|part| part.attrs.name.as_ref());
    let fields = container.fields.iter().filter_map(|field| field.attrs.name.as_ref());
    for name in parts.chain(fields).filter(|name| name.value.contains('\0')) {
        ctxt.error(&name.tokens, "a name has no NUL byte: readers take it for the end of the name");
    }
}

/// Section and subsection names have one byte for their length.
fn names_fit_their_length_byte(ctxt: &Ctxt, container: &Container<'_>) {
    for part in &container.parts {
        if part.name.len() > 255 {
            let message = format!("this name has {} bytes, the wire has room for 255", part.name.len());
            ctxt.error(&part.tokens, message);
        }
        if part.attrs.name.is_some() && part.name.is_empty() {
            ctxt.error(&part.tokens, "the name is empty");
        }
    }
}

/// Two fields of one name are nearly always a mistake. QEMU has some on purpose and numbers them in its self-description: those
/// are declared with an explicit `name = "…"` on each of them.
fn names_are_unique(ctxt: &Ctxt, container: &Container<'_>) {
    let mut by_name: HashMap<_, Vec<_>> = HashMap::new();
    for (_, field) in container.migrated() {
        by_name.entry((field.part, field.name.as_str())).or_default().push(field);
    }
    for (_, field) in container.migrated() {
        let Some(same) = by_name.get(&(field.part, field.name.as_str())) else { continue };
        let accident = same.len() > 1 && same.iter().any(|field| field.attrs.name.is_none());
        if let (true, Some(name)) = (accident, &field.attrs.name) {
            let message = format!(
                "another field is called {:?} too; if that is meant, give each of them this `name = …`",
                field.name
            );
            ctxt.error(&name.tokens, message);
        }
    }
}

/// A reader recognises a subsection by its parent's name: `parent/…`.
fn subsections_carry_the_prefix(ctxt: &Ctxt, container: &Container<'_>) {
    let [main, subsections @ ..] = container.parts.as_slice() else { return };
    let prefix = format!("{}/", main.name);
    for part in subsections {
        let named = part.attrs.name.is_some() && main.attrs.name.is_some();
        if named && part.name.strip_prefix(&prefix).is_none_or(str::is_empty) {
            ctxt.error(&part.tokens, format!("a subsection of {:?} must be called \"{prefix}…\"", main.name));
        }
    }
}

/// A reader that has loaded `p/x` takes the next name for a subsection of `p/x` if it begins with `p/x`. So `p/x2` is lost if it
/// comes after `p/x`, and not if it comes before (`vmstate_subsection_load`, migration/vmstate.c).
fn subsections_are_not_taken_for_inner_ones(ctxt: &Ctxt, container: &Container<'_>) {
    for (index, part) in container.parts.iter().enumerate() {
        let behind = container.parts.iter().skip(index + 1);
        for other in behind.filter(|other| part.parent.is_some() && other.parent == part.parent) {
            if other.name.len() > part.name.len() && other.name.starts_with(&part.name) {
                let message = format!(
                    "behind {:?} a reader takes {:?} for a subsection of it: declare it first, or rename it",
                    part.name, other.name
                );
                ctxt.error(&other.tokens, message);
            }
        }
    }
}

/// A subsection without fields carries nothing; two subsections of one name cannot be distinguished.
fn subsections_are_unique_and_have_fields(ctxt: &Ctxt, container: &Container<'_>) {
    let mut names = HashSet::new();
    for (index, part) in container.parts.iter().enumerate().skip(1) {
        if part.attrs.name.is_none() {
            continue;
        }
        if !names.insert(&part.name) {
            ctxt.error(&part.tokens, format!("subsection {:?} is declared twice", part.name));
        } else if container.fields_of(index).next().is_none() && container.subsections_of(index).next().is_none() {
            let message = format!("no field has `subsection = {:?}`", part.name);
            ctxt.error(&part.tokens, message);
        }
    }
}

/// A layout is finite: a value cannot contain a value of its own type.
fn nothing_contains_itself(ctxt: &Ctxt, container: &Container<'_>) {
    for (_, field) in container.migrated() {
        if codec::is_by_type(&field.codec) && names_itself(field.ty.to_token_stream(), &container.input.ident) {
            let message = format!(
                "`{}` contains itself, and the wire has no layout without an end: give the field `with = module`, or `skip`",
                container.input.ident
            );
            ctxt.error(field.ty, message);
        }
    }
}

/// True if the type contains the struct; `<Dev as Trait>::Type` and `Dev::CONSTANT` mention the struct without containing it.
fn names_itself(tokens: TokenStream, ident: &Ident) -> bool {
    let tokens: Vec<_> = tokens.into_iter().collect();
    let mut place = 0;
    while let Some(token) = tokens.get(place) {
        let before = place.checked_sub(1).and_then(|before| tokens.get(before));
        match token {
            TokenTree::Group(group) if names_itself(group.stream(), ident) => return true,
            TokenTree::Ident(word)
                if word == ident && !is_punct(before, ':') && !is_punct(tokens.get(place + 1), ':') =>
            {
                return true;
            }
            // After a name, `<` begins generic arguments, which are searched; anywhere else it begins a qualified path, which is
            // skipped.
            TokenTree::Punct(punct) if punct.as_char() == '<' && !matches!(before, Some(TokenTree::Ident(_))) => {
                place = end_of_brackets(&tokens, place);
            }
            _ => {}
        }
        place += 1;
    }
    false
}

/// Index of the `>` that closes the `<` at `place`.
fn end_of_brackets(tokens: &[TokenTree], mut place: usize) -> usize {
    let mut depth = 0_usize;
    loop {
        match tokens.get(place) {
            token if is_punct(token, '<') => depth += 1,
            token if is_punct(token, '>') => depth = depth.saturating_sub(1),
            None => return place,
            _ => {}
        }
        if depth == 0 {
            return place;
        }
        place += 1;
    }
}

fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

/// A skipped field is not on the wire, so no other attribute applies to it.
fn skip_stands_alone(ctxt: &Ctxt, container: &Container<'_>) {
    for field in &container.fields {
        let attrs = &field.attrs;
        let Some(skip) = &attrs.skip else { continue };
        let others = [
            attrs.name.is_some(),
            attrs.since.is_some(),
            attrs.exists.is_some(),
            attrs.must_exist.is_some(),
            attrs.validate.is_some(),
            attrs.range.is_some(),
            attrs.equal.is_some(),
            attrs.at_most_current.is_some(),
            attrs.counted.is_some(),
            attrs.len.is_some(),
            attrs.max.is_some(),
            attrs.list.is_some(),
            attrs.map.is_some(),
            attrs.slice.is_some(),
            attrs.buffer.is_some(),
            attrs.bitmap.is_some(),
            attrs.wire.is_some(),
            attrs.with.is_some(),
            attrs.via.is_some(),
            attrs.tmp.is_some(),
            attrs.struct_version.is_some(),
            attrs.subsection.is_some(),
            attrs.unframed.is_some(),
        ];
        if others.contains(&true) {
            ctxt.error(&skip.tokens, "a field with `skip` is not migrated, its other attributes mean nothing");
        }
    }
}

/// QEMU ignores a field's version if the field has a predicate; here only one of the two can be given.
fn one_presence(ctxt: &Ctxt, container: &Container<'_>) {
    for field in &container.fields {
        if let (Some(since), Some(_)) = (&field.attrs.since, &field.attrs.exists) {
            ctxt.error(&since.tokens, "give `since` or `exists`: the predicate of `exists` gets the version");
        }
    }
}

/// Of the attributes that define a field's encoding, only certain pairs can be combined.
fn one_codec(ctxt: &Ctxt, container: &Container<'_>) {
    // The pairs with `with` or `via` concern each element, or keys and values.
    const TOGETHER: [(&str, &str); 11] = [
        (symbol::BUFFER, symbol::LEN),
        (symbol::BUFFER, symbol::SLICE),
        (symbol::BITMAP, symbol::LEN),
        (symbol::COUNTED, symbol::WITH),
        (symbol::COUNTED, symbol::VIA),
        (symbol::LEN, symbol::WITH),
        (symbol::LEN, symbol::VIA),
        (symbol::LIST, symbol::WITH),
        (symbol::LIST, symbol::VIA),
        (symbol::MAP, symbol::WITH),
        (symbol::MAP, symbol::VIA),
    ];
    for field in &container.fields {
        let attrs = &field.attrs;
        let words = [
            (symbol::BUFFER, attrs.buffer.as_ref().map(|given| &given.tokens)),
            (symbol::BITMAP, attrs.bitmap.as_ref().map(|given| &given.tokens)),
            (symbol::COUNTED, attrs.counted.as_ref().map(|given| &given.tokens)),
            (symbol::LEN, attrs.len.as_ref().map(|given| &given.tokens)),
            (symbol::SLICE, attrs.slice.as_ref().map(|given| &given.tokens)),
            (symbol::LIST, attrs.list.as_ref().map(|given| &given.tokens)),
            (symbol::MAP, attrs.map.as_ref().map(|given| &given.tokens)),
            (symbol::EQUAL, attrs.equal.as_ref().map(|given| &given.tokens)),
            (symbol::AT_MOST_CURRENT, attrs.at_most_current.as_ref().map(|given| &given.tokens)),
            (symbol::WIRE, attrs.wire.as_ref().map(|given| &given.tokens)),
            (symbol::WITH, attrs.with.as_ref().map(|given| &given.tokens)),
            (symbol::VIA, attrs.via.as_ref().map(|given| &given.tokens)),
            (symbol::TMP, attrs.tmp.as_ref().map(|given| &given.tokens)),
            (symbol::STRUCT_VERSION, attrs.struct_version.as_ref().map(|given| &given.tokens)),
        ];
        let given: Vec<_> = words.iter().filter_map(|(word, tokens)| Some((*word, (*tokens)?))).collect();
        for (index, (word, tokens)) in given.iter().enumerate() {
            let before = given.iter().take(index).map(|(other, _)| *other);
            // For a map, `via` can be about the keys and `with` about the values.
            let is_map = attrs.map.is_some() && *word == symbol::VIA;
            let others: Vec<_> = before
                .filter(|other| !(TOGETHER.contains(&(*other, *word)) || is_map && *other == symbol::WITH))
                .collect();
            if !others.is_empty() {
                let others = others.join("` and `");
                ctxt.error(tokens, format!("`{word}` does not go with `{others}`: each says what the bytes are"));
            }
        }
    }
}

/// On a map, `via` and `with` concern the keys, the values or both.
fn entries_are_keys_and_values(ctxt: &Ctxt, container: &Container<'_>) {
    for field in &container.fields {
        let FieldAttrs { map, via, with, .. } = &field.attrs;
        let modules = with.as_ref().map(|with| match &with.value {
            With::Entries(key, value) => Some([key.is_some(), value.is_some()]),
            With::One(_) | With::Array(_) => None,
        });
        let types = via.as_ref().map(|via| pair(&via.value).map(|pair| pair.map(|ty| ty.is_some())));
        let given = [
            ("via", types, via.as_ref().map(|via| &via.tokens)),
            ("with", modules, with.as_ref().map(|with| &with.tokens)),
        ];
        for (word, entries, tokens) in given {
            let Some(tokens) = tokens else { continue };
            match (map, entries.flatten()) {
                (Some(_), None | Some([false, false])) => {
                    let message = format!(
                        "of a `map`, `{word} = (K, V)` says what keys and values are on the wire; `_` is as their type says"
                    );
                    ctxt.error(tokens, message);
                }
                (None, Some(_)) if word == "with" => {
                    ctxt.error(tokens, "`with = (…, …)` is for keys and values: it goes with `map`");
                }
                _ => {}
            }
        }
        if let (Some(Some([key, value])), Some(Some([key_too, value_too])), Some(with), Some(_)) =
            (types, modules, with, map)
            && (key && key_too || value && value_too)
        {
            ctxt.error(&with.tokens, "`via` converts this entry already: give `_` to one of the two attributes");
        }
    }
}

/// Where the stream says how many elements follow, the number is rejected above `max`.
fn max_bounds_what_the_peer_says(ctxt: &Ctxt, container: &Container<'_>) {
    for field in &container.fields {
        let attrs = &field.attrs;
        let counts = [
            (symbol::LEN, attrs.len.as_ref().map(|given| &given.tokens)),
            (symbol::COUNTED, attrs.counted.as_ref().map(|given| &given.tokens)),
            (symbol::LIST, attrs.list.as_ref().map(|given| &given.tokens)),
            (symbol::MAP, attrs.map.as_ref().map(|given| &given.tokens)),
        ];
        let mut counts = counts.iter().filter_map(|(word, tokens)| Some((word, (*tokens)?)));
        match (counts.next(), &attrs.max) {
            (Some((word, tokens)), None) => {
                ctxt.error(tokens, format!("`{word}` needs `max = …`: the most elements that a stream may ask for"));
            }
            (None, Some(max)) if !attrs.is_counted => {
                ctxt.error(&max.tokens, "`max` goes with `len = field`, `counted = type`, `list` or `map`");
            }
            (None, Some(_)) => {}
            (Some(_), Some(max)) => {
                if let Expr::Lit(ExprLit { lit: Lit::Int(literal), .. }) = &max.value
                    && literal.base10_digits() == "0"
                {
                    ctxt.error(&max.tokens, "`max = 0` would allow no element at all");
                }
            }
            (None, None) => {}
        }
    }
}

/// The length must be loaded before the elements that it counts; a skipped length is the machine's configuration and always
/// known.
fn length_comes_first(ctxt: &Ctxt, container: &Container<'_>) {
    for (index, field) in container.migrated() {
        let Some(Length { member, name, .. }) = field.codec.length() else { continue };
        let Some(len) = &field.attrs.len else { continue };
        let Some((place, length)) = container.fields.iter().enumerate().find(|(_, other)| other.member == *member)
        else {
            ctxt.error(&len.tokens, format!("there is no field `{name}`"));
            continue;
        };
        let loaded_before = match (length.part, field.part) {
            (None, _) => length.attrs.skip.is_some(),
            (Some(theirs), Some(ours)) if theirs == ours => place < index,
            // A part's own fields come before its subsections; each of two subsections may be absent.
            (Some(theirs), Some(ours)) => container.is_inside(ours, theirs),
            (Some(theirs), None) => theirs == 0,
        };
        if !loaded_before {
            ctxt.error(&len.tokens, format!("`{name}` must come before the array whose length it is"));
        }
    }
}

/// The conversions name all fields of the other struct, whose generic parameters are unknown here.
fn remote_has_no_parameters(ctxt: &Ctxt, container: &Container<'_>) {
    if let Some(remote) = &container.remote
        && !container.input.generics.params.is_empty()
    {
        ctxt.error(&remote.tokens, "`remote` is for a struct without parameters");
    }
}
