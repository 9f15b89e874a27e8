//! The life of a patch, without a model: from bytes to something that answers, and everything that decides about it.
//! `public` means here: for the sibling packages. What is for everybody is listed by the package `patchhost`.
#![allow(missing_docs)]

pub mod abi;
pub mod audit;
pub mod base;
pub mod call;
pub mod isolate;
pub mod native;
pub mod patch;
pub mod record;
pub mod sandbox;
pub mod trust;
