//! Passed descriptors instead of files, taps, sockets and `/dev/kvm`: the units of docs/systemd, started as systemd would, and
//! descriptors that do not fit.

mod machine;
mod refusals;
mod service;
mod units;
