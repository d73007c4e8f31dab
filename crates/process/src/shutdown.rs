//! SIGTERM and SIGINT: the first asks the process to finish what it does and stop, the second ends it.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit status of a process that a second signal ended, as of one that SIGTERM killed.
const ABORTED: i32 = 128 + 15;

/// A token that SIGTERM or SIGINT cancels. After that, another signal ends the process at once, with status 143.
///
/// Call it once, within a tokio runtime. It fails when the signals' handlers cannot be installed.
pub fn on_signal() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        either(&mut terminate, &mut interrupt).await;
        tracing::info!("stopping; a second signal stops at once");
        stop.cancel();
        either(&mut terminate, &mut interrupt).await;
        tracing::warn!("stopped by a second signal");
        std::process::exit(ABORTED);
    });
    Ok(token)
}

async fn either(a: &mut Signal, b: &mut Signal) {
    tokio::select! {
        _ = a.recv() => {}
        _ = b.recv() => {}
    }
}
