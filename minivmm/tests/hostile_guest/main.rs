//! What a guest or a client that means harm may cost the process around it, with the built command and bare machine code on a real
//! `/dev/kvm`. The bounds are those of docs/threat-model.md.

mod commands;
mod console;
mod floods;
mod hanging;
mod held;
mod process;
mod registers;
