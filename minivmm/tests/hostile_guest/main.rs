//! Costs that a hostile guest or client can cause in its process, with the built command and bare machine code on a real
//! `/dev/kvm`. The limits are those of docs/threat-model.md.

mod commands;
mod console;
mod floods;
mod hanging;
mod process;
mod registers;
