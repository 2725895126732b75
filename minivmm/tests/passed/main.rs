//! Descriptors in the place of files, taps, sockets and `/dev/kvm`: the units of docs/systemd, started as systemd would, and
//! each descriptor that does not fit.

mod machine;
mod refusals;
mod service;
mod units;
