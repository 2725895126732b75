//! `#[derive(VmState)]`: the one declaration of a device's migratable state. Use it through the `vmstate` crate.
//!
//! `shape` decides what the derive is applied to. A struct: parse (`attr`, `ast`) → `check` → `expand`. A `transparent` struct
//! and an enum (`enumeration`, with fields `variants`) have no description of their own. Errors are collected and reported
//! together, each at the user's token; an impl is emitted even then, so that the rest of the user's crate gets no follow-up
//! errors.
#![forbid(unsafe_code)]

mod ast;
mod attr;
mod check;
mod ctxt;
mod enumeration;
mod expand;
mod fallback;
#[cfg(test)]
mod golden;
mod itself;
mod shape;
mod symbol;
mod transparent;
mod variants;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Implements `vmstate::VmState` and `vmstate::Wire`; for a `transparent` struct and for an enum, only `Wire`. `docs/derive.md`
/// explains every attribute, with its bytes.
///
/// On the struct: `name`, `version`, `minimum_version`, `pre_save`, `post_save`, `pre_load`, `post_load`, `validate`,
/// `subsection(…)`, `transparent`, `remote`, `crate`; of a section, `priority`, `needed`, `early_setup`, `unmigratable`,
/// `instance_id`, `alias_id`. On a field: `skip`, `name`, `since`, `exists`, `must_exist`,
/// `validate`, `range`, `equal`, `at_most_current`, `len` with `max`, `counted`, `list`, `map`, `slice`, `buffer`, `bitmap`, `wire`,
/// `with`, `via`, `tmp`, `struct_version`, `subsection`, `unframed`.
#[proc_macro_derive(VmState, attributes(vmstate))]
pub fn derive_vm_state(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    derive(input).into()
}

fn derive(input: DeriveInput) -> proc_macro2::TokenStream {
    let input = &itself::written_out(input);
    let ctxt = ctxt::Ctxt::new();
    let (shape, krate) = shape::Shape::from_input(&ctxt, input);
    match (shape, ctxt.into_errors()) {
        (Some(shape), None) => shape.expand(&krate),
        (_, errors) => fallback::expand(input, &krate, errors),
    }
}
