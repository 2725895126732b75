//! The sandbox: a forbidden call of a thread ends the process, the calls that each kind needs work, and all threads of a
//! machine are confined.

mod calls;
mod machine;
