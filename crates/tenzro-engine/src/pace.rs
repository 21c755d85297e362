//! How many prompt tokens a step may take, from what steps cost lately.
//!
//! A step is modelled as `decode + per_token * prompt tokens`. While answers are running a step is
//! kept near [`DECODING_STEP_MS`], so that a long prompt slows them down but never stops them; when
//! nothing is decoded the step only has to end soon enough for new arrivals to be taken in.

use std::time::Duration;

/// Aim for a step that holds up running answers.
const DECODING_STEP_MS: f64 = 145.0;

/// Aim for a step that holds up nobody.
const PREFILL_STEP_MS: f64 = 1000.0;

/// Before anything was measured.
const PREFILL_TOKENS_FIRST: usize = 64;

/// A smaller chunk wastes more than it saves: below this the kernels work vector by vector.
const PREFILL_TOKENS_MIN: usize = 32;

/// Weight of the newest measurement.
const SMOOTHING: f64 = 0.3;

/// Running estimates of the cost of a step.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    decode_ms: Option<f64>,
    per_prompt_token_ms: Option<f64>,
}

impl Pace {
    /// Prompt tokens for the next step, with `decoding` answers in it, at most `batch_tokens`.
    pub(crate) fn prefill_tokens(&self, decoding: usize, batch_tokens: usize) -> usize {
        let Some(per_token_ms) = self.per_prompt_token_ms else {
            return PREFILL_TOKENS_FIRST.min(batch_tokens);
        };
        let spare_ms = if decoding == 0 {
            PREFILL_STEP_MS
        } else {
            DECODING_STEP_MS - self.decode_ms.unwrap_or(0.0)
        };
        let tokens = (spare_ms / per_token_ms.max(1e-6)).max(0.0) as usize;
        tokens.clamp(PREFILL_TOKENS_MIN, batch_tokens.max(PREFILL_TOKENS_MIN))
    }

    /// A step with these numbers of tokens took that long.
    pub(crate) fn record(&mut self, decoding: usize, prompt_tokens: usize, took: Duration) {
        let took_ms = took.as_secs_f64() * 1000.0;
        if prompt_tokens == 0 {
            smooth(&mut self.decode_ms, took_ms);
        } else {
            let decode_ms = if decoding == 0 {
                0.0
            } else {
                self.decode_ms.unwrap_or(0.0)
            };
            let prompt_ms = (took_ms - decode_ms).max(took_ms * 0.2);
            smooth(
                &mut self.per_prompt_token_ms,
                prompt_ms / prompt_tokens as f64,
            );
        }
    }
}

fn smooth(estimate: &mut Option<f64>, measured: f64) {
    *estimate = Some(match *estimate {
        Some(before) => before + SMOOTHING * (measured - before),
        None => measured,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chunk_follows_the_measured_cost() {
        let mut pace = Pace::default();
        assert_eq!(pace.prefill_tokens(3, 512), PREFILL_TOKENS_FIRST);
        for _ in 0..30 {
            pace.record(3, 0, Duration::from_millis(20));
            pace.record(3, 40, Duration::from_millis(120));
        }
        // 2.5 ms a token: what fits beside the decode, and what fits alone.
        let beside_answers = pace.prefill_tokens(3, 512);
        let expected = ((DECODING_STEP_MS - 20.0) / 2.5) as usize;
        assert!(beside_answers.abs_diff(expected) <= 1, "{beside_answers}");
        let alone = pace.prefill_tokens(0, 512);
        assert!(
            alone.abs_diff((PREFILL_STEP_MS / 2.5) as usize) <= 4,
            "{alone}"
        );
    }

    #[test]
    fn a_slow_or_fast_machine_stays_within_the_limits() {
        let mut slow = Pace::default();
        slow.record(1, 10, Duration::from_secs(60));
        assert_eq!(slow.prefill_tokens(1, 512), PREFILL_TOKENS_MIN);
        let mut fast = Pace::default();
        fast.record(0, 512, Duration::from_micros(10));
        assert_eq!(fast.prefill_tokens(0, 512), 512);
    }
}
