//! llama.cpp's log lines become `tracing` events; the last error is kept for [`super::Model::load`].

use std::ffi::{CStr, c_char, c_void};
use std::sync::{Mutex, Once, PoisonError};

use llama_cpp_sys_2 as sys;

static LAST_ERROR: Mutex<Option<String>> = Mutex::new(None);

/// Routes llama.cpp's and ggml's log to `tracing`. Idempotent.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the callback is a plain function that never unwinds; no user data.
        unsafe { sys::llama_log_set(Some(forward), std::ptr::null_mut()) };
    });
}

/// The newest error line since the last call.
pub(super) fn take_last_error() -> Option<String> {
    LAST_ERROR
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
}

unsafe extern "C" fn forward(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a NUL-terminated string that lives for the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let line = text.trim_end();
    if line.is_empty() {
        return;
    }
    match level {
        sys::GGML_LOG_LEVEL_ERROR => {
            *LAST_ERROR.lock().unwrap_or_else(PoisonError::into_inner) = Some(line.to_owned());
            tracing::error!(target: "llama.cpp", "{line}");
        }
        // Its warnings are about choices made here on purpose (full-size window cache, aborted
        // batches), so they are for someone who looks for them.
        sys::GGML_LOG_LEVEL_WARN => tracing::debug!(target: "llama.cpp", "{line}"),
        _ => tracing::trace!(target: "llama.cpp", "{line}"),
    }
}
