//! Integration tests: everything that a user can see, tried from outside.
#![allow(clippy::unwrap_used, clippy::result_large_err, clippy::single_range_in_vec_init, missing_docs)]

mod audit;
mod cli;
mod compare;
mod crash;
mod delta;
mod export;
mod fp8;
mod generated;
mod hostile;
mod http;
mod http_admin;
mod http_client;
mod http_rl;
mod isolate;
mod ledger;
mod list;
mod live;
mod lora;
mod malformed;
mod oracle;
mod probe;
mod quantize;
mod record;
mod refit;
mod scheduler;
mod serving;
mod soak;
mod state;
mod support;
mod train;
mod transaction;
mod trial;
mod trust;
mod wasi;
mod wit;
