//! Runs: integers and bools that stand one after the other on the wire are written and read as one piece.

use proc_macro2::{Literal, TokenStream};
use quote::{ToTokens, quote};
use syn::Type;

use crate::ast::{Codec, Field, written};

const BOOL: &str = "bool";

/// What can be in a run, with its bytes on the wire.
const PLAIN: [(&str, usize); 9] =
    [(BOOL, 1), ("u8", 1), ("u16", 2), ("u32", 4), ("u64", 8), ("i8", 1), ("i16", 2), ("i32", 4), ("i64", 8)];

/// The code of all `fields`: `together` for each run, `alone` for what stands between. `joins` tells fields that may
/// be in a run from those with conditions.
pub(super) fn grouped<'a, 'f: 'a>(
    fields: impl Iterator<Item = &'a Field<'f>>,
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
    for field in fields {
        match plain_size(field) {
            Some(size) if joins(field) => {
                run.parts.push(RunField { field, start: run.size, size });
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

/// Fields of which each begins where the one before it ends.
pub(super) struct Run<'a, 'f> {
    parts: Vec<RunField<'a, 'f>>,
    /// Bytes in all.
    size: usize,
}

struct RunField<'a, 'f> {
    field: &'a Field<'f>,
    /// Its place in the run, in bytes.
    start: usize,
    size: usize,
}

impl Run<'_, '_> {
    /// Appends all that version `version` has to `out`; every one from `oldest` on may be asked for.
    pub(super) fn save(&self, oldest: u32) -> TokenStream {
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
        let save = match self.parts.iter().all(|part| is_always_there(part.field, oldest)) {
            true => quote!(out.bytes(&run);),
            false => {
                let parts = self.parts.iter().map(|RunField { field, size, .. }| {
                    let size = Literal::usize_unsuffixed(*size);
                    let since = field.attrs.since.as_ref().map_or(0, |since| since.value);
                    quote!((#size, #since))
                });
                quote!(__v::save_run(&run, version, &[#(#parts),*], out);)
            }
        };
        quote!({
            let mut run = [0; #size];
            #(#parts)*
            #save
        })
    }

    /// Replaces all by the next bytes of `input`.
    pub(super) fn load(&self) -> TokenStream {
        let size = Literal::usize_unsuffixed(self.size);
        let parts = self.parts.iter().map(|RunField { field: Field { member, ty, .. }, start, .. }| {
            let (ty, start) = (written(ty), Literal::usize_unsuffixed(*start));
            quote!(self.#member = ::core::primitive::#ty::from_be_bytes(__v::get_at::<#start, _, _>(run));)
        });
        let names = self.parts.iter().map(|RunField { field: Field { name, .. }, size, .. }| {
            let size = Literal::usize_unsuffixed(*size);
            quote!((#name, #size))
        });
        quote!({
            let run: &[_; #size] = __v::run(input, &[#(#names),*])?;
            #(#parts)*
        })
    }
}

/// True if every version from the oldest on has the field.
pub(super) fn is_always_there(field: &Field<'_>, oldest: u32) -> bool {
    field.attrs.exists.is_none() && field.attrs.since.as_ref().is_none_or(|since| since.value <= oldest)
}

/// True if the field is an integer or bool as its type says.
pub(super) fn is_plain(field: &Field<'_>) -> bool {
    let name = written(field.ty).to_token_stream().to_string();
    matches!(field.codec, Codec::Plain) && PLAIN.iter().any(|(plain, _)| *plain == name)
}

/// True if the field is a bool.
pub(super) fn is_bool(field: &Field<'_>) -> bool {
    written(field.ty).to_token_stream().to_string() == BOOL
}

/// Bytes of a field that is an integer or bool and nothing more: no check has its place before or behind it. By the
/// type's name, for speed alone: an integer by another name has the same bytes, one by one. Another type of such a name makes
/// code that does not compile.
fn plain_size(field: &Field<'_>) -> Option<usize> {
    let attrs = &field.attrs;
    let checks = attrs.must_exist.is_some() || attrs.validate.is_some() || attrs.range.is_some();
    let (Codec::Plain, ty @ Type::Path(_), false) = (&field.codec, written(field.ty), checks) else { return None };
    let name = ty.to_token_stream().to_string();
    PLAIN.iter().find(|(plain, _)| *plain == name).map(|(_, size)| *size)
}
