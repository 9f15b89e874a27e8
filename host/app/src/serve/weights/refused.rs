//! Why weights were not taken, as answers over HTTP: 400 where the request is wrong, 409 where it does not fit what is
//! live or open, 422 where its form was right and the weights (or the patches that read them) were refused.

use axum::http::StatusCode;
use patchhost_runtime::error::RuntimeError;

use super::BodyError;
use super::roots::RootError;
use crate::base::text::clean;
use crate::checkpoint::versions::VersionError;
use crate::live::LiveError;
use crate::patch::{StageError, SwapErrorKind};
use crate::serve::error::ApiError;

impl From<BodyError> for ApiError {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Pickle(r) => Self::new(StatusCode::BAD_REQUEST, "pickle_refused", r.what, r.why, r.next),
            BodyError::Malformed(r) => Self::bad(r.what, r.why, r.next),
            BodyError::Runtime(e) => e.into(),
        }
    }
}

impl From<RootError> for ApiError {
    fn from(error: RootError) -> Self {
        let (status, code, r) = match error {
            RootError::NoRoots(r) => (StatusCode::FORBIDDEN, "no_roots", r),
            RootError::Outside(r) => (StatusCode::FORBIDDEN, "outside_roots", r),
            RootError::NotFound(r) => (StatusCode::NOT_FOUND, "not_found", r),
            RootError::Unusable(r) => (StatusCode::BAD_REQUEST, "invalid_value", r),
        };
        Self::new(status, code, r.what, r.why, r.next)
    }
}

impl From<LiveError> for ApiError {
    fn from(error: LiveError) -> Self {
        let unprocessable = StatusCode::UNPROCESSABLE_ENTITY;
        match error {
            LiveError::Runtime(error) => refit(error),
            LiveError::Stage(e) => {
                let status = match e {
                    StageError::NotFound { .. } => StatusCode::NOT_FOUND,
                    _ => unprocessable,
                };
                Self::new(status, "patch_refused", e.what(), e.why(), e.next())
            }
            LiveError::Swap(e) => {
                let (status, code) = match e.kind {
                    SwapErrorKind::Conflict => (StatusCode::CONFLICT, "conflict"),
                    SwapErrorKind::NotFound => (StatusCode::NOT_FOUND, "not_found"),
                    SwapErrorKind::Invalid => (StatusCode::BAD_REQUEST, "invalid_value"),
                    SwapErrorKind::Forbidden => (StatusCode::FORBIDDEN, "forbidden"),
                    SwapErrorKind::Ledger => (StatusCode::SERVICE_UNAVAILABLE, "ledger"),
                };
                Self::new(status, code, e.what, e.why, e.next)
            }
            LiveError::Probe(r) => Self::new(unprocessable, "patch_refused", r.what, r.why, r.next),
            LiveError::Busy(r) => Self::new(StatusCode::CONFLICT, "conflict", r.what, r.why, r.next),
        }
    }
}

/// Why a refit did not take weights.
fn refit(error: RuntimeError) -> ApiError {
    let (code, refusal) = match error {
        RuntimeError::Refit(r) => ("refit_refused", r),
        RuntimeError::Checkpoint(r) => ("checkpoint_refused", r),
        RuntimeError::NonFinite(r) => ("non_finite", r),
        RuntimeError::Contract(r) => ("scale_contract", r),
        RuntimeError::Hook(e) => {
            let what = format!("patch `{}`, call `{}`", clean(&e.patch, 100), clean(&e.call, 100));
            return ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "patch_failed", what, e.why, e.next);
        }
        other => return other.into(),
    };
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, code, refusal.what, refusal.why, refusal.next)
}

/// Why a version of weights was not read; `plain` takes private paths out of messages.
pub(super) fn version_error(error: VersionError, plain: impl Fn(&str) -> String) -> ApiError {
    let (status, code, r) = match error {
        VersionError::Runtime(RuntimeError::Checkpoint(r)) | VersionError::Source(r) | VersionError::Format(r) => {
            (StatusCode::BAD_REQUEST, "invalid_value", r)
        }
        VersionError::Base(r) => (StatusCode::CONFLICT, "wrong_base", r),
        VersionError::Incomplete(r) => (StatusCode::CONFLICT, "incomplete", r),
        VersionError::Corrupt(r) => (StatusCode::UNPROCESSABLE_ENTITY, "corrupt", r),
        VersionError::Runtime(e) => return refit(e),
        e @ (VersionError::Unwritable(_) | VersionError::Write(_)) => return ApiError::internal(&e),
    };
    ApiError::new(status, code, plain(&r.what), plain(&r.why), plain(&r.next))
}
