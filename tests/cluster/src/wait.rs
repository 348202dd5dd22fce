//! Waiting for a condition with a deadline; what was seen last is part of the complaint.

use pgstead_types::Tick;
use std::time::Duration;

/// Between two looks.
pub const POLL: Duration = Duration::from_millis(50);

/// Asks until the answer is `Ok`. `Err` says what was seen instead; the last one is returned with the time that passed.
pub async fn until<T>(
    deadline: Duration,
    mut condition: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, (Duration, String)> {
    let begun = Tick::now();
    let mut seen = "nothing".to_string();
    loop {
        let left = deadline.saturating_sub(Tick::now().since(begun));
        match tokio::time::timeout(left, condition()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(now)) => seen = now,
            // Cut short: what was seen before it is better than nothing.
            Err(_) => {}
        }
        if Tick::now().since(begun) >= deadline {
            return Err((Tick::now().since(begun), seen));
        }
        tokio::time::sleep(POLL).await;
    }
}
