//! The sandbox: what a thread of each kind may not do ends the process, what it needs goes on, and all threads of a machine
//! are confined.

mod calls;
mod machine;
