//! Memory goes back to the system after requests: bursts of them come and go, and what they needed must not stay resident.

use std::sync::Arc;
use std::time::Duration;

use patchhost_kernels::pages;

use super::state::App;

/// How long after a request, and how often at most.
const REST: Duration = Duration::from_secs(3);

/// Gives freed memory back while requests come, and once after the last of them. Never ends.
pub async fn keep_small(app: Arc<App>) {
    loop {
        app.answered.notified().await;
        tokio::time::sleep(REST).await;
        // An answer that comes meanwhile leads to one more round.
        if let Err(error) = tokio::task::spawn_blocking(pages::give_back).await {
            tracing::debug!(%error, "freed memory was not given back");
        }
    }
}
