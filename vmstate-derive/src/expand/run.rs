//! Runs: integers and bools that are adjacent on the wire are written and read as one block.

use proc_macro2::{Literal, TokenStream};
use quote::{ToTokens, quote};
use syn::Type;

use super::{fields_const, within};
use crate::ast::{Codec, Field, written};

const BOOL: &str = "bool";

/// The types that can be in a run, with their sizes on the wire.
const PLAIN: [(&str, usize); 9] =
    [(BOOL, 1), ("u8", 1), ("u16", 2), ("u32", 4), ("u64", 8), ("i8", 1), ("i16", 2), ("i32", 4), ("i64", 8)];

/// The code for all `fields`: `together` for each run, `alone` for every other field. `joins` says whether a field may be in a
/// run, which a condition rules out.
pub(super) fn grouped<'a, 'f: 'a>(
    fields: impl Iterator<Item = (usize, &'a Field<'f>)>,
    joins: impl Fn(&Field<'_>) -> bool,
    together: impl Fn(&Run<'a, 'f>) -> TokenStream,
    alone: impl Fn(&Field<'_>) -> TokenStream,
) -> TokenStream {
    let mut code = TokenStream::new();
    let mut run = Run { parts: Vec::new(), size: 0 };
    let end = |run: &mut Run<'a, 'f>, code: &mut TokenStream| {
        match run.parts.as_slice() {
            [] => {}
            [only] => code.extend(alone(only.field)),
            _ => code.extend(together(run)),
        }
        *run = Run { parts: Vec::new(), size: 0 };
    };
    for (entry, field) in fields {
        match plain_size(field) {
            Some(size) if joins(field) => {
                run.parts.push(RunField { field, entry, start: run.size });
                run.size += size;
            }
            _ => {
                end(&mut run, &mut code);
                code.extend(alone(field));
            }
        }
    }
    end(&mut run, &mut code);
    code
}

/// Fields of which each begins where the previous one ends.
pub(super) struct Run<'a, 'f> {
    parts: Vec<RunField<'a, 'f>>,
    /// Size of the whole run in bytes.
    size: usize,
}

struct RunField<'a, 'f> {
    field: &'a Field<'f>,
    /// Index of the field's entry in the part's list.
    entry: usize,
    /// Offset of the field in the run, in bytes.
    start: usize,
}

impl Run<'_, '_> {
    /// Appends the fields that version `version` of part `part` has to `out`; the version can be any from `oldest` on.
    pub(super) fn save(&self, part: usize, oldest: u32) -> TokenStream {
        let size = Literal::usize_unsuffixed(self.size);
        let parts = self.parts.iter().map(|RunField { field, start, .. }| {
            let Field { member, ty, .. } = field;
            let ty = written(ty);
            let start = Literal::usize_unsuffixed(*start);
            match is_bool(field) {
                true => quote!(__v::put_bool_at::<#start, _>(&mut run, self.#member);),
                false => quote! {
                    __v::put_at::<#start, _, _>(&mut run, ::core::primitive::#ty::to_be_bytes(self.#member));
                },
            }
        });
        let newest = self.parts.iter().filter_map(|part| Some(part.field.attrs.since.as_ref()?.value)).max();
        let save = match newest.filter(|newest| *newest > oldest) {
            None => quote!(out.bytes(&run);),
            Some(newest) => {
                let entries = self.entries(part);
                quote! {
                    if version >= #newest {
                        out.bytes(&run);
                    } else {
                        __v::save_older(&run, version, #entries, out);
                    }
                }
            }
        };
        quote!({
            let mut run = [0; #size];
            #(#parts)*
            #save
        })
    }

    /// Replaces all fields by the next bytes of `input`.
    pub(super) fn load(&self, part: usize) -> TokenStream {
        let size = Literal::usize_unsuffixed(self.size);
        let parts = self.parts.iter().map(|RunField { field, start, .. }| {
            let Field { member, ty, name, .. } = field;
            let (ty, start) = (written(ty), Literal::usize_unsuffixed(*start));
            let value = match is_bool(field) {
                true => within(&quote!(__v::get_bool_at::<#start, _>(run, input)), name),
                false => quote!(::core::primitive::#ty::from_be_bytes(__v::get_at::<#start, _, _>(run))),
            };
            quote!(self.#member = #value;)
        });
        let entries = self.entries(part);
        quote!({
            let run: &[_; #size] = match __v::run(input) {
                ::core::option::Option::Some(run) => run,
                ::core::option::Option::None => {
                    return ::core::result::Result::Err(__v::cut(input, #entries));
                }
            };
            #(#parts)*
        })
    }

    /// The list of entries of part `part`, and the index of the run's first entry.
    fn entries(&self, part: usize) -> TokenStream {
        let list = fields_const(part);
        let first = self.parts.first().map_or(0, |first| first.entry);
        quote!(<Self as __Parts>::#list, #first)
    }
}

/// True if every version from the oldest on has the field.
pub(super) fn is_always_there(field: &Field<'_>, oldest: u32) -> bool {
    field.attrs.exists.is_none() && field.attrs.since.as_ref().is_none_or(|since| since.value <= oldest)
}

/// True if the field is an integer or bool in its type's own encoding.
pub(super) fn is_plain(field: &Field<'_>) -> bool {
    let name = written(field.ty).to_token_stream().to_string();
    matches!(field.codec, Codec::Plain) && PLAIN.iter().any(|(plain, _)| *plain == name)
}

/// True if the field is a bool.
fn is_bool(field: &Field<'_>) -> bool {
    written(field.ty).to_token_stream().to_string() == BOOL
}

/// Size of a field that is only an integer or bool, without a check before or after it. The type is recognised by its name, which
/// is an optimisation only: an integer under another name is encoded on its own to the same bytes, and a different type with such
/// a name does not compile.
fn plain_size(field: &Field<'_>) -> Option<usize> {
    let attrs = &field.attrs;
    let checks = attrs.must_exist.is_some() || attrs.validate.is_some() || attrs.range.is_some();
    let (Codec::Plain, ty @ Type::Path(_), false) = (&field.codec, written(field.ty), checks) else { return None };
    let name = ty.to_token_stream().to_string();
    PLAIN.iter().find(|(plain, _)| *plain == name).map(|(_, size)| *size)
}
