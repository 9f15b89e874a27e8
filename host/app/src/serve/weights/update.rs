//! An update of the weights, whatever the endpoint is called:
//! pause → begin → chunks → finish → publish → forget prefixes → resume.
//!
//! One update is open at a time, and `open.rs` says whose requests belong to it. Nothing of it touches the live weights
//! before all of it came and was proved; whatever goes wrong, the old weights serve on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use axum::http::StatusCode;
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::error::RuntimeError;
use patchhost_runtime::refit::Begin;
use patchhost_runtime::rename::Renames;
use patchhost_runtime::scheduler::Scheduler;
use serde::Serialize;
use utoipa::ToSchema;

use super::Piece;
use super::held::{Renamed, version_name};
use super::open::{Claim, Dialect, Open, Refused, fresh_id};
use super::published::Published;
use super::pull::Pulls;
use crate::base::text::clean;
use crate::live::{LiveModel, Update};
use crate::patch::Actor;
use crate::serve::auth::RlAuth;
use crate::serve::error::{ApiError, ApiResult};
use crate::serve::intake::Room;
use crate::serve::metrics::Metrics;

/// Largest body of the endpoints that take weights, unless told otherwise.
const MAX_BODY: usize = 2 << 30;
/// Bytes of an update beside the model's: headers, scales, tensors that it does not know.
const SLACK: usize = 4 << 20;

/// What the endpoints for trainers share: who may use them, the update that is open, what the live weights are called.
pub struct RlState {
    /// Who may use them.
    pub auth: RlAuth,
    /// Largest body in bytes that holds weights or adapters.
    pub max_body: usize,
    /// The memory for such bodies.
    pub uploads: Room,
    /// What names of tensors become, whoever sends them; a sender's own renames come before.
    pub renames: Renames,
    pub(super) live: Arc<LiveModel>,
    scheduler: Scheduler,
    metrics: Arc<Metrics>,
    place: Mutex<Place>,
    /// What an update can take in memory; known once weights were loaded.
    bound: OnceLock<usize>,
    /// Another name of weights than they were published with.
    pub(super) renamed: Mutex<Option<Renamed>>,
    /// Checksums that `compare` compares with.
    pub(super) baseline: Mutex<Option<BTreeMap<String, String>>>,
    /// What was pulled and is not live yet.
    pub(super) pulls: Mutex<Pulls>,
}

/// The one update that can be open.
#[derive(Default)]
struct Place {
    open: Option<Open>,
    /// Who wanted to begin meanwhile, and may not have noticed that it was refused.
    refused: Option<Refused>,
}

/// An update that began.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Begun {
    /// What requests can name it by: as the header `X-Update-Id`, or as `update_id` in the URL or body.
    pub update_id: String,
    /// Whether each of its requests has to: another sender was refused a moment ago, or the id is the client's own.
    pub must_be_named: bool,
}

/// What has come so far.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Received {
    /// Tensors (or parts) of this request.
    pub tensors: usize,
    /// Tensors of the update of which anything came.
    pub tensors_total: usize,
    /// Bytes of the update.
    pub bytes_total: u64,
    /// The update that they are a part of.
    pub update_id: String,
    /// The call that ends it: nothing is live before.
    pub ends_with: &'static str,
}

/// What became of tensors.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
#[allow(clippy::large_enum_variant, reason = "there is one for each request")]
pub enum Updated {
    /// They are a part of an update that was begun. Nothing is live yet.
    Received(Received),
    /// They were a whole update, which is live.
    Published(Published),
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RlState {
    /// No update is open, and everybody on this machine may begin one.
    pub fn new(live: Arc<LiveModel>, scheduler: Scheduler, metrics: Arc<Metrics>) -> Self {
        Self {
            auth: RlAuth::default(),
            max_body: MAX_BODY,
            uploads: Room::default(),
            renames: Renames::default(),
            live,
            scheduler,
            metrics,
            place: Mutex::default(),
            bound: OnceLock::new(),
            renamed: Mutex::default(),
            baseline: Mutex::default(),
            pulls: Mutex::default(),
        }
    }

    /// Whether TRL's update is open, which its first parameter began.
    pub fn is_implicit(&self) -> bool {
        lock(&self.place).open.as_ref().is_some_and(|open| open.dialect == Dialect::Trl)
    }

    /// Refuses what cannot be a part of the open update, before its body is read.
    pub fn expects(&self, claim: &Claim) -> ApiResult<()> {
        let place = lock(&self.place);
        match (&place.open, &claim.id) {
            (Some(open), _) if !open.is_abandoned() => open.is_meant(claim),
            (None, _) if self.live.is_updating() => Err(ApiError::new(
                StatusCode::CONFLICT,
                "conflict",
                "this update",
                "another is being published; one at a time",
                "send it again in a moment",
            )),
            (_, _) if claim.dialect == Dialect::Trl => Ok(()),
            (Some(open), Some(_)) => open.is_meant(claim),
            (None, Some(id)) => Err(none_open(format!("a part of update `{id}`"))),
            (_, None) => Ok(()),
        }
    }

    /// Most bytes that the tensors of an update can have: those of the model in f32, which a sender may widen to, and a
    /// little for what only its sender knows.
    pub fn bound(&self) -> usize {
        let compute = |checkpoint: &Checkpoint| {
            let registry = self.live.engine().registry();
            let elements = |shape: &[usize]| shape.iter().fold(1usize, |n, d| n.saturating_mul(*d));
            let held = registry.params().iter().map(|p| elements(&p.shape()));
            // What the file has beside them, and a trainer may send along: another tower, names that a patch places.
            let known = |name: &str| registry.native(name).is_some() || registry.expert_names(name).is_some();
            let others = checkpoint.tensors().filter(|t| !known(&t.name));
            let all = held.chain(others.map(|t| elements(&t.shape))).fold(0usize, usize::saturating_add);
            all.saturating_mul(4).saturating_add(SLACK)
        };
        if let Some(bound) = self.bound.get() {
            return *bound;
        }
        match self.live.source() {
            Some((checkpoint, _)) => *self.bound.get_or_init(|| compute(&checkpoint)),
            None => SLACK,
        }
    }

    /// Opens an update.
    pub fn begin(&self, begin: Begin, claim: &Claim, actor: &Actor) -> ApiResult<Begun> {
        let mut place = lock(&self.place);
        let place = &mut *place;
        let version = begin.version.as_deref();
        if let Some(open) = &place.open {
            // A client that names its own update again has started over.
            let again = open.named && claim.id.as_ref() == Some(&open.id);
            if !(again || open.is_abandoned()) {
                place.refused = Some(Refused::new(claim, version));
                return Err(open.conflict(format!("update `{}`", version.unwrap_or("(unnamed)")), ""));
            }
            place.open = None;
        }
        if place.refused.as_ref().is_some_and(|refused| refused.is(claim, version) || !refused.counts()) {
            place.refused = None;
        }
        let named = claim.id.is_some() || place.refused.is_some();
        let open = self.opened(begin, claim, named, actor)?;
        let begun = Begun { update_id: open.id.clone(), must_be_named: named };
        place.open = Some(open);
        Ok(begun)
    }

    fn opened(&self, begin: Begin, claim: &Claim, named: bool, actor: &Actor) -> ApiResult<Open> {
        let (version, renames) = (begin.version.clone(), begin.renames.clone());
        Ok(Open {
            update: self.update(self.renaming(begin)?, actor)?,
            renames,
            dialect: claim.dialect,
            id: claim.id.clone().unwrap_or_else(fresh_id),
            named,
            version,
            begun: Instant::now(),
            last: Instant::now(),
            first: None,
            _in_flight: self.metrics.weight_update("update"),
        })
    }

    /// With the renames of this server after the sender's own, which the manifest's names go through too.
    fn renaming(&self, begin: Begin) -> ApiResult<Begin> {
        let renames = begin.renames.then(&self.renames).map_err(RuntimeError::Request)?;
        Ok(begin.renaming(renames)?)
    }

    fn update(&self, begin: Begin, actor: &Actor) -> ApiResult<Update> {
        let mut update = self.live.open_update(begin, actor)?;
        update.at_most(self.bound());
        Ok(update)
    }

    /// Tensors of a request that may be a part of the open update or a whole one. `begin` is how the whole one begins.
    pub fn take(&self, begin: Begin, claim: &Claim, pieces: &[Piece], actor: &Actor) -> ApiResult<Updated> {
        {
            let mut place = lock(&self.place);
            let place = &mut *place;
            if let Some(open) = &mut place.open {
                match is_whole(open, claim, &begin, pieces) {
                    false => {
                        open.is_meant(claim)?;
                        let pieces = open.renamed(&begin.renames, pieces)?;
                        open.told(&begin);
                        if let Some(version) = begin.version {
                            open.version = Some(version.clone());
                            open.update.rename(version);
                        }
                        return self.send(open, &pieces).map(Updated::Received);
                    }
                    true if open.is_abandoned() => place.open = None,
                    true => {
                        return Err(
                            open.conflict("this whole update".to_string(), "it is no part of the open one, and ")
                        );
                    }
                }
            } else if let Some(id) = &claim.id {
                return Err(none_open(format!("a part of update `{id}`")));
            }
        }
        self.whole(begin, pieces, actor).map(Updated::Published)
    }

    /// TRL's parameters: the first opens an update. When it comes again, its sender was started again, and so is the update.
    pub fn parameter(&self, begin: Begin, claim: &Claim, pieces: &[Piece], actor: &Actor) -> ApiResult<Received> {
        let mut place = lock(&self.place);
        let place = &mut *place;
        let first = pieces.first().map(|piece| (piece.name.clone(), piece.offset));
        if let Some(open) = &mut place.open {
            match open.is_meant(claim) {
                Err(error) if !open.is_abandoned() => return Err(error),
                // It gives way, or its sender starts over.
                Err(_) => {}
                Ok(()) if open.first.is_some() && open.first == first => {}
                Ok(()) => {
                    let pieces = open.renamed(&begin.renames, pieces)?;
                    open.told(&begin);
                    let again = pieces.iter().any(|piece| open.update.arrivals().has(&piece.name));
                    let sent = self.send(open, &pieces);
                    if sent.is_err() && again && open.dialect == Dialect::Trl {
                        place.open = None;
                        return Err(doubled(first));
                    }
                    return sent;
                }
            }
            place.open = None;
        }
        let mut open = self.opened(begin, claim, claim.id.is_some(), actor)?;
        open.first = first;
        let received = self.send(&mut open, pieces)?;
        place.open = Some(open);
        Ok(received)
    }

    /// Takes tensors into an update: all of the request, or none.
    fn send(&self, open: &mut Open, pieces: &[Piece]) -> ApiResult<Received> {
        let _time = self.metrics.weight_update("receive");
        take(&mut open.update, pieces)?;
        open.last = Instant::now();
        let arrivals = open.update.arrivals();
        Ok(Received {
            tensors: pieces.len(),
            tensors_total: arrivals.tensors(),
            bytes_total: arrivals.bytes(),
            update_id: open.id.clone(),
            ends_with: open.dialect.end(),
        })
    }

    /// Ends the open update: it is published, or refused and forgotten. `said`: what the end says about it.
    pub fn finish(&self, claim: &Claim, said: Begin) -> ApiResult<Published> {
        let version = version_name(said.version.clone())?;
        let mut open = {
            let mut place = lock(&self.place);
            let place = &mut *place;
            let Some(open) = &place.open else { return Err(none_open("the end of an update".to_string())) };
            let what = || "the end of an update".to_string();
            match &claim.id {
                Some(id) if *id != open.id => return Err(open.other(what())),
                None if claim.dialect != open.dialect => return Err(open.conflict(what(), "it is another's: ")),
                None if open.named => {
                    // Whoever it was, what came is no update that can be trusted, and its sender may be gone.
                    let error = open.unnamed(what());
                    place.open = None;
                    return Err(error);
                }
                _ => {}
            }
            let Some(open) = place.open.take() else { return Err(none_open(what())) };
            open
        };
        if let Some(version) = version {
            open.update.rename(version);
        }
        open.told(&said);
        let _time = self.metrics.weight_update("finish");
        let named = open.named;
        self.publish(open.update).inspect_err(|_| {
            // Its sender was gone, most likely, and who was refused has ended it.
            if !named {
                lock(&self.place).refused = None;
            }
        })
    }

    /// Forgets the open update; false if there was none. Everybody may begin then.
    pub fn abort(&self, claim: &Claim) -> ApiResult<bool> {
        let mut place = lock(&self.place);
        let place = &mut *place;
        if let (Some(id), Some(open)) = (&claim.id, &place.open)
            && *id != open.id
        {
            return Err(open.other(format!("giving up update `{id}`")));
        }
        place.refused = None;
        Ok(place.open.take().is_some())
    }

    /// A whole update at once, as one request brings it. It is never a part of one that is open.
    pub fn whole(&self, begin: Begin, pieces: &[Piece], actor: &Actor) -> ApiResult<Published> {
        self.at_once(self.renaming(begin)?, pieces, actor)
    }

    /// The same with tensors that have the model's names already, as [`RlState::load`] gives them.
    pub fn loaded(&self, begin: Begin, pieces: &[Piece], actor: &Actor) -> ApiResult<Published> {
        let begin = self.renaming(begin)?;
        self.at_once(Begin { renames: Renames::default(), ..begin }, pieces, actor)
    }

    fn at_once(&self, begin: Begin, pieces: &[Piece], actor: &Actor) -> ApiResult<Published> {
        let _time = self.metrics.weight_update("update");
        let mut update = {
            let mut place = lock(&self.place);
            let place = &mut *place;
            match &place.open {
                Some(open) if !open.is_abandoned() => {
                    return Err(
                        open.conflict(format!("update `{}`", begin.version.as_deref().unwrap_or("(unnamed)")), "")
                    );
                }
                _ => place.open = None,
            }
            self.update(begin, actor)?
        };
        take(&mut update, pieces)?;
        self.publish(update)
    }

    fn publish(&self, update: Update) -> ApiResult<Published> {
        let done = update.finish(&|_, _, _| {})?;
        // New weights are new keys of the prefix cache; this only gives the memory back at once.
        self.scheduler.reset_prefix_cache();
        Ok(Published::of(&done))
    }
}

/// Whether a request is an update by itself, and no part of the open one: it comes by another protocol, names the weights
/// otherwise, promises all of them, or brings again all that came and more.
fn is_whole(open: &Open, claim: &Claim, begin: &Begin, pieces: &[Piece]) -> bool {
    if claim.id.is_some() {
        return false;
    }
    let renames = match (&begin.version, &open.version) {
        (Some(given), Some(name)) => given != name,
        // SGLang's clients name the weights with each bucket.
        (Some(_), None) => claim.dialect != Dialect::Sglang,
        (None, _) => false,
    };
    let again = || {
        let names: BTreeSet<&str> = pieces.iter().map(|p| p.name.as_str()).collect();
        let came = open.update.arrivals();
        let twice = names.iter().filter(|name| came.has(name)).count();
        twice > 0 && twice == came.tensors() && names.len() > twice
    };
    claim.dialect != open.dialect || renames || begin.manifest.is_some() || again()
}

/// All pieces, or none of them.
fn take(update: &mut Update, pieces: &[Piece]) -> ApiResult<()> {
    let names = pieces.iter().map(|piece| piece.name.as_str());
    let taken = update.together(names, |arrivals| {
        pieces.iter().try_for_each(|piece| match piece.tensor() {
            Some(tensor) => arrivals.tensor(&tensor),
            None => arrivals.chunk(&piece.header(), &piece.data.load()?),
        })
    });
    Ok(taken?)
}

fn none_open(what: String) -> ApiError {
    let next =
        "begin one and send its tensors first: POST /start_weight_update (vLLM) or /begin_weight_update (SGLang)";
    ApiError::new(StatusCode::CONFLICT, "no_update", what, "no update is open", next)
}

/// A parameter came again that is not the first.
fn doubled(first: Option<(String, usize)>) -> ApiError {
    let name = first.map_or_else(String::new, |(name, _)| clean(&name, 200));
    ApiError::new(
        StatusCode::CONFLICT,
        "conflict",
        format!("parameter `{name}`"),
        "it came a second time, so two senders are at work or one began again in the middle; what came is given up",
        "let one trainer send all parameters, from the first on; POST /reset_prefix_cache/ ends the update",
    )
}
