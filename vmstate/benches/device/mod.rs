//! Kinds of state that the machine's devices lack: state that threads share, and state that is one of several variants. Every
//! codec gets the same structs and values.

mod shared;
mod variants;

pub(crate) use shared::Ports;
pub(crate) use variants::Requests;
