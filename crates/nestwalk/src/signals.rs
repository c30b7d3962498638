//! Interruptions: the first ends a command with the results that there are, the second at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A flag that a signal sets. The second signal ends the program at once: a source may be waiting
/// for something that does not come.
pub fn stop_on_signals() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let on_signal = Arc::clone(&stop);
    let handler = move || {
        if on_signal.swap(true, Ordering::Relaxed) {
            crate::tell::tell(format_args!("nestwalk: interrupted twice: ended without results"));
            std::process::exit(2);
        }
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        crate::tell::tell(format_args!("nestwalk: an interruption will lose the results: {error}"));
    }
    stop
}
