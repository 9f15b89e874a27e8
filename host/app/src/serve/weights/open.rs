//! Whose update is open: what a request says about the update that it means, and whether it means the open one.
//!
//! Two trainers that use one server by accident must not mix tensors, and most trainers say nothing about who they are. The
//! rules (`docs/rl-endpoints.md` has them for users):
//! - Every update has an id. A request that names one (`X-Update-Id`, or `update_id`) means that update and no other.
//! - A request without one means the open update if that was begun in the same dialect, and if the request is no whole
//!   update by itself.
//! - Where a `begin` was refused because another update was open, there is a second sender, who may not have noticed. When
//!   the first then brings its update to an end, updates of anybody but the refused sender have to be named by each of their
//!   requests, for as long as an update can be open without a sign of life.
//! - A `begin` that brings an id of its own asks for the same.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, StatusCode, Uri};
use patchhost_runtime::error::RuntimeError;
use patchhost_runtime::refit::Begin;
use patchhost_runtime::rename::Renames;

use super::Piece;
use crate::base::text::clean;
use crate::live::Update;
use crate::serve::error::{ApiError, ApiResult};
use crate::serve::json::UrlQuery;
use crate::serve::metrics::WeightUpdate;

/// After so long without a sign of life, whoever begins anew takes the place of an open update: its sender is gone.
pub(super) const ABANDONED: Duration = Duration::from_secs(600);
/// Most bytes of an id.
const ID: usize = 128;
/// The header that names an update.
const HEADER: &str = "x-update-id";

/// In whose words an update is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `/start_weight_update`, `/update_weights`, `/finish_weight_update`.
    Vllm,
    /// `/begin_weight_update`, `/update_weights_from_tensor`, `/end_weight_update`.
    Sglang,
    /// `/update_named_param/` until `/reset_prefix_cache/`.
    Trl,
}

impl Dialect {
    fn begin(self) -> &'static str {
        match self {
            Self::Vllm => "POST /start_weight_update",
            Self::Sglang => "POST /begin_weight_update",
            Self::Trl => "the first POST /update_named_param/",
        }
    }

    /// The call that ends an update.
    pub fn end(self) -> &'static str {
        match self {
            Self::Vllm => "POST /finish_weight_update",
            Self::Sglang => "POST /end_weight_update",
            Self::Trl => "POST /reset_prefix_cache/",
        }
    }
}

/// What a request says about the update that it belongs to.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Whose endpoint it came to.
    pub dialect: Dialect,
    /// The id that it names.
    pub id: Option<String>,
}

impl Claim {
    /// What the URL and the headers say.
    pub fn of(dialect: Dialect, uri: &Uri, headers: &HeaderMap) -> ApiResult<Self> {
        #[derive(serde::Deserialize)]
        struct Named {
            update_id: Option<String>,
        }
        let mut claim = Self { dialect, id: None };
        if let Some(id) = headers.get(HEADER) {
            claim = claim.or(Some(String::from_utf8_lossy(id.as_bytes()).into_owned()))?;
        }
        claim.or(UrlQuery::<Named>::of(uri)?.0.update_id)
    }

    /// The same with what the body says.
    pub fn or(self, id: Option<String>) -> ApiResult<Self> {
        let Some(id) = id.filter(|id| !id.is_empty()) else { return Ok(self) };
        let bad = |why: String| {
            ApiError::bad(format!("update id `{}`", clean(&id, 80)), why, "send the `update_id` that begin answered")
                .param("update_id")
        };
        if id.len() > ID || !id.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(bad(format!("an id is 1 to {ID} printable ASCII characters without spaces")));
        }
        match &self.id {
            Some(said) if *said != id => Err(bad("header, URL and body name different updates".to_string())),
            _ => Ok(Self { id: Some(id), ..self }),
        }
    }
}

/// An update that has begun and not ended.
pub(super) struct Open {
    pub update: Update,
    pub dialect: Dialect,
    pub id: String,
    /// Each of its requests has to name it.
    pub named: bool,
    /// What it was called when it began.
    pub version: Option<String>,
    /// The renames that its sender began it with.
    pub renames: Renames,
    pub begun: Instant,
    pub last: Instant,
    /// The parameter that opened it, and its first byte: TRL has no call for that. When it comes again, its sender has
    /// started over.
    pub first: Option<(String, usize)>,
    /// In the metrics for as long as it is open.
    pub _in_flight: WeightUpdate,
}

impl Open {
    /// Whether its sender is gone.
    pub fn is_abandoned(&self) -> bool {
        self.last.elapsed() >= ABANDONED
    }

    /// Takes in what one of its requests says of all of it.
    pub fn told(&mut self, said: &Begin) {
        if said.allow_narrowing {
            self.update.allow_narrowing();
        }
        if let Some(complete) = said.complete {
            self.update.complete(complete);
        }
    }

    /// The tensors of a request that has renames of its own, which go before those of the update.
    pub fn renamed<'p>(&self, renames: &Renames, pieces: &'p [Piece]) -> ApiResult<Cow<'p, [Piece]>> {
        if renames.is_empty() || *renames == self.renames {
            return Ok(Cow::Borrowed(pieces));
        }
        let one = |piece: &Piece| {
            let name = renames.apply(&piece.name).map_err(RuntimeError::Request)?.into_owned();
            Ok(Piece { name, ..piece.clone() })
        };
        pieces.iter().map(one).collect::<ApiResult<Vec<_>>>().map(Cow::Owned)
    }

    /// Whether a request means it, as far as is known before its body.
    pub fn is_meant(&self, claim: &Claim) -> ApiResult<()> {
        let what = || "this part of an update".to_string();
        match &claim.id {
            Some(id) if *id == self.id => Ok(()),
            Some(id) => Err(self.other(format!("update `{id}`"))),
            None if claim.dialect != self.dialect => Err(self.conflict(what(), "it is another's: ")),
            None if self.named => Err(self.unnamed(what())),
            None => Ok(()),
        }
    }

    /// The refusal of a request that names another update.
    pub fn other(&self, what: String) -> ApiError {
        self.conflict(what, "it is not the one that is open: ")
    }

    /// The refusal of a request that has to say which update it means.
    pub fn unnamed(&self, what: String) -> ApiError {
        let why = "its update has to be named by each of its requests: it was begun with an id, or after another sender's \
                   begin was refused";
        let next = "send the `update_id` that begin answered, as the header X-Update-Id or as update_id in the URL; POST \
                    /abort_weight_update gives all up";
        ApiError::new(StatusCode::CONFLICT, "unnamed_update", what, why, next)
    }

    /// The refusal of what cannot be while this is open: who holds the place, and how it is cleared.
    pub fn conflict(&self, what: String, why: &str) -> ApiError {
        let name = self.version.as_deref().map_or_else(String::new, |name| format!(" `{}`", clean(name, 80)));
        let why = format!(
            "{why}another update{name} is open: {} tensors came, the last {} s ago; it was begun by {} {} s ago; one at a time",
            self.update.arrivals().tensors(),
            self.last.elapsed().as_secs(),
            self.dialect.begin(),
            self.begun.elapsed().as_secs(),
        );
        let next = format!(
            "wait for its end ({}), or give it up with POST /abort_weight_update; it gives way by itself after {} s without a \
             request",
            self.dialect.end(),
            ABANDONED.as_secs()
        );
        ApiError::new(StatusCode::CONFLICT, "conflict", what, why, next)
    }
}

/// A sender whose `begin` was refused, and who may not have noticed.
pub(super) struct Refused {
    dialect: Dialect,
    /// What it said of itself: its id, or what it called the weights.
    name: Option<String>,
    at: Instant,
}

impl Refused {
    pub fn new(claim: &Claim, version: Option<&str>) -> Self {
        let name = claim.id.as_deref().or(version).map(str::to_string);
        Self { dialect: claim.dialect, name, at: Instant::now() }
    }

    /// Whether this begin is that sender's next try.
    pub fn is(&self, claim: &Claim, version: Option<&str>) -> bool {
        self.dialect == claim.dialect && self.name.as_deref() == claim.id.as_deref().or(version)
    }

    /// Whether it may still be there.
    pub fn counts(&self) -> bool {
        self.at.elapsed() < ABANDONED
    }
}

/// A fresh id.
pub(super) fn fresh_id() -> String {
    format!("u-{:016x}", rand::random::<u64>())
}
