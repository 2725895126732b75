//! Runs: integers that stand one after the other on the wire are written and read as one piece of known length.

use proc_macro2::{Literal, TokenStream};
use quote::{ToTokens, quote};
use syn::Type;

use crate::ast::{Codec, Field};

/// The integers, with their bytes on the wire.
const INTEGERS: [(&str, usize); 8] =
    [("u8", 1), ("u16", 2), ("u32", 4), ("u64", 8), ("i8", 1), ("i16", 2), ("i32", 4), ("i64", 8)];

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
        match integer(field) {
            Some(size) if joins(field) => {
                run.parts.push(Part { field, start: run.size, size });
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

/// Fields without a gap.
pub(super) struct Run<'a, 'f> {
    parts: Vec<Part<'a, 'f>>,
    /// Bytes in all.
    size: usize,
}

struct Part<'a, 'f> {
    field: &'a Field<'f>,
    /// Its place in the run, in bytes.
    start: usize,
    size: usize,
}

impl Run<'_, '_> {
    /// Appends all to `out`.
    pub(super) fn save(&self) -> TokenStream {
        let size = Literal::usize_unsuffixed(self.size);
        let parts = self.parts.iter().map(|Part { field: Field { member, .. }, start, .. }| {
            let start = Literal::usize_unsuffixed(*start);
            quote!(__v::put_at(&mut run, #start, self.#member.to_be_bytes());)
        });
        quote!({
            let mut run = [0; #size];
            #(#parts)*
            out.bytes(&run);
        })
    }

    /// Replaces all by the next bytes of `input`.
    pub(super) fn load(&self) -> TokenStream {
        let size = Literal::usize_unsuffixed(self.size);
        let parts = self.parts.iter().map(|Part { field: Field { member, ty, .. }, start, .. }| {
            let start = Literal::usize_unsuffixed(*start);
            quote!(self.#member = <#ty>::from_be_bytes(__v::get_at(run, #start));)
        });
        let names = self.parts.iter().map(|Part { field: Field { name, .. }, size, .. }| {
            let size = Literal::usize_unsuffixed(*size);
            quote!((#name, #size))
        });
        quote!({
            let run: &[_; #size] = __v::run(input, &[#(#names),*])?;
            #(#parts)*
        })
    }
}

/// Bytes of a field that is an integer and nothing more: no check has its place before or behind it. By the type's
/// name, as there is nothing else to tell it by; another type of that name does not compile.
fn integer(field: &Field<'_>) -> Option<usize> {
    let attrs = &field.attrs;
    let checks = attrs.must_exist.is_some() || attrs.validate.is_some() || attrs.range.is_some();
    let (Codec::Plain, Type::Path(_), false) = (&field.codec, field.ty, checks) else { return None };
    let name = field.ty.to_token_stream().to_string();
    INTEGERS.iter().find(|(integer, _)| *integer == name).map(|(_, size)| *size)
}
