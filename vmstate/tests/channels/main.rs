//! The real transports: outboxes, sockets, TLS.
#![cfg(feature = "engine")]

mod ends;
mod outbox;
mod sockets;
#[cfg(feature = "tls")]
mod tls;
