//! `patchhost serve`, from outside: the binary on a free port, and a client.

mod agents;
mod answers;
mod chat;
mod ends;
mod errors;
mod fields;
mod life;
pub mod server;
mod slow;
mod stream;
mod structured;
