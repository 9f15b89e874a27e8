//! Integration tests: everything that a user can see, tried from outside.
#![allow(clippy::unwrap_used, missing_docs)]

mod cli;
mod compare;
mod delta;
mod export;
mod fp8;
mod hostile;
mod http_admin;
mod http_client;
mod http_rl;
mod ledger;
mod list;
mod live;
mod lora;
mod malformed;
mod oracle;
mod quantize;
mod refit;
mod support;
mod transaction;
mod wit;
