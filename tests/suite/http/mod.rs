//! `patchhost serve`, from outside: the binary on a free port, and a client.

mod answers;
mod chat;
mod errors;
mod life;
pub mod server;
mod slow;
mod stream;
