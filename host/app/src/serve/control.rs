//! Stopping and going on, by whatever name a trainer asks for it: requests end, prefixes are forgotten, memory is given
//! back between rollouts.

use std::sync::Arc;

use axum::http::StatusCode;
use patchhost_runtime::scheduler::PauseMode;

use super::error::{ApiError, ApiResult};
use super::state::{App, Memory, blocking};
use crate::base::text::clean;

/// Lets requests run again after a pause.
pub async fn resume(app: &Arc<App>) -> ApiResult<()> {
    blocking(app, |app| {
        app.scheduler.resume();
        Ok(())
    })
    .await
}

/// Forgets all prefixes, and gives their memory back.
pub async fn forget_prefixes(app: &Arc<App>) -> ApiResult<()> {
    blocking(app, |app| {
        app.scheduler.reset_prefix_cache();
        Ok(())
    })
    .await
}

/// Ends the requests of these ids, or all, with what they have; how many sequences ended.
pub fn abort(app: &App, ids: Option<&[String]>) -> usize {
    let Some(ids) = ids else { return app.scheduler.abort_all() };
    // A request of several prompts has a job for each.
    let parts = |id: &String| (0..app.options.max_choices).map(move |k| format!("{id}-{k}")).collect::<Vec<_>>();
    ids.iter().map(|id| app.scheduler.abort(std::slice::from_ref(id)) + app.scheduler.abort(&parts(id))).sum()
}

/// Puts parts of the memory to sleep; `mode` says what becomes of the requests that run.
pub fn release(app: &App, what: &[Memory], mode: PauseMode, level: u8) -> ApiResult<()> {
    app.scheduler.pause(mode);
    if what.contains(&Memory::KvCache) {
        app.scheduler.sleep(level).map_err(|e| {
            let r = ApiError::from(e);
            let refusal = r.refusal().clone();
            ApiError::new(StatusCode::CONFLICT, "conflict", refusal.what, refusal.why, refusal.next)
        })?;
    }
    app.asleep().extend(what);
    app.set_sleeping(true);
    Ok(())
}

/// Wakes parts of the memory; requests run again when all of it is awake.
pub fn restore(app: &App, what: &[Memory]) {
    let mut asleep = app.asleep();
    asleep.retain(|m| !what.contains(m));
    if asleep.is_empty() && app.is_sleeping() {
        app.set_sleeping(false);
        app.scheduler.wake();
        app.scheduler.resume();
    }
}

/// The parts of the memory that a tag of vLLM or SGLang names.
pub fn tagged(tag: &str) -> ApiResult<&'static [Memory]> {
    match tag {
        "weights" => Ok(&[Memory::Weights]),
        "kv_cache" => Ok(&[Memory::KvCache]),
        // SGLang's; CPUs have none.
        "cuda_graph" => Ok(&[]),
        other => Err(ApiError::bad(
            format!("tag `{}`", clean(other, 40)),
            "known are weights and kv_cache",
            "give one of them, or none for all",
        )
        .param("tags")),
    }
}
