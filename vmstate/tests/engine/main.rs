//! Whole migrations on a virtual wire and clock, and plans of them. The oracle is the source guest's own memory, the wire's own
//! record, or a model calculated by hand.
#![cfg(feature = "engine")]

mod convergence;
mod cut;
mod forecast;
mod handle;
mod hostile;
mod iterative_live;
#[cfg(feature = "tools")]
mod iterative_peers;
mod iterative_stream;
mod live;
mod live_older;
mod live_xbzrle;
mod pair;
#[cfg(feature = "tools")]
mod plan;
mod postcopy;
mod rate_limit;
mod recovery;
mod rehearsal;
#[path = "../stream/toy.rs"]
mod toy;
