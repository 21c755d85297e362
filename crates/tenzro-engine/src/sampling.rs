//! Chooses the next token from raw logits.
//!
//! Order of the steps as in llama.cpp's default chain, so that equal settings mean equal
//! distributions: bias and penalties, top-k, top-p, min-p, temperature, draw. Greedy (temperature
//! 0) is the largest logit after bias and penalties. Defaults for values that a request leaves open
//! are llama.cpp's: temperature 0.8, top-k 40, top-p 0.95, min-p 0.05.

use std::collections::{HashMap, VecDeque};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use tenzro_protocol::inference::Sampling;

use crate::llama::Token;

/// How many of the newest tokens the repeat penalty looks at. Source: llama.cpp `penalty_last_n`.
const REPEAT_WINDOW_TOKENS: usize = 64;

/// Candidates that are sorted first when top-k is off; more follow only when top-p needs them.
const NUCLEUS_FIRST: usize = 256;

/// The sampler of one generation.
#[derive(Debug)]
pub(crate) struct Sampler {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    repeat_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    bias: Vec<(Token, f32)>,
    /// Times each token was generated (not those of the prompt).
    generated: HashMap<Token, u32>,
    recent: VecDeque<Token>,
    random: Pcg64Mcg,
    candidates: Vec<Candidate>,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    logit: f32,
    token: Token,
}

impl Sampler {
    /// `bias` holds the request's logit bias with checked ids, `prompt` the tokens that the repeat
    /// penalty also sees, `seed` is used when the request has none.
    pub(crate) fn new(
        request: &Sampling,
        bias: Vec<(Token, f32)>,
        prompt: &[Token],
        seed: u64,
    ) -> Self {
        let recent = prompt[prompt.len().saturating_sub(REPEAT_WINDOW_TOKENS)..].to_vec();
        Self {
            temperature: request.temperature.unwrap_or(0.8),
            top_k: request
                .top_k
                .map_or(40, |k| usize::try_from(k).unwrap_or(usize::MAX)),
            top_p: request.top_p.unwrap_or(0.95),
            min_p: request.min_p.unwrap_or(0.05),
            repeat_penalty: request.repeat_penalty.unwrap_or(1.0),
            presence_penalty: request.presence_penalty.unwrap_or(0.0),
            frequency_penalty: request.frequency_penalty.unwrap_or(0.0),
            bias,
            generated: HashMap::new(),
            recent: recent.into(),
            random: Pcg64Mcg::seed_from_u64(request.seed.unwrap_or(seed)),
            candidates: Vec::new(),
        }
    }

    /// Chooses and remembers a token. Changes `logits` in place.
    pub(crate) fn sample(&mut self, logits: &mut [f32]) -> Token {
        self.adjust(logits);
        let token = if self.temperature <= 0.0 {
            argmax(logits)
        } else {
            self.draw(logits)
        };
        self.accept(token);
        token
    }

    fn adjust(&self, logits: &mut [f32]) {
        for &(token, bias) in &self.bias {
            if let Some(logit) = logit_of(logits, token) {
                *logit += bias;
            }
        }
        #[expect(clippy::float_cmp, reason = "exactly 1 is the value for off")]
        if self.repeat_penalty != 1.0 {
            let mut seen: Vec<Token> = self.recent.iter().copied().collect();
            seen.sort_unstable();
            seen.dedup();
            for token in seen {
                if let Some(logit) = logit_of(logits, token) {
                    *logit = if *logit > 0.0 {
                        *logit / self.repeat_penalty
                    } else {
                        *logit * self.repeat_penalty
                    };
                }
            }
        }
        if self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 {
            for (&token, &count) in &self.generated {
                if let Some(logit) = logit_of(logits, token) {
                    // Source: OpenAI API reference, "Frequency and presence penalties".
                    *logit -= self.presence_penalty + self.frequency_penalty * count as f32;
                }
            }
        }
    }

    fn accept(&mut self, token: Token) {
        *self.generated.entry(token).or_default() += 1;
        if self.recent.len() == REPEAT_WINDOW_TOKENS {
            self.recent.pop_front();
        }
        self.recent.push_back(token);
    }

    fn draw(&mut self, logits: &[f32]) -> Token {
        self.keep_likeliest(logits);
        let candidates = &mut self.candidates;
        let highest = candidates[0].logit;
        if self.min_p > 0.0 {
            let floor = highest + self.min_p.ln();
            let mut first = true;
            candidates.retain(|candidate| std::mem::take(&mut first) || candidate.logit >= floor);
        }
        let weight =
            |candidate: &Candidate| f64::from((candidate.logit - highest) / self.temperature).exp();
        let total: f64 = candidates.iter().map(weight).sum();
        let mut left = self.random.random::<f64>() * total;
        for candidate in candidates.iter() {
            left -= weight(candidate);
            if left < 0.0 {
                return candidate.token;
            }
        }
        // Only rounding (or a model that computes NaN) gets here.
        candidates[candidates.len() - 1].token
    }

    /// Fills `candidates` with what top-k and top-p leave; never empty, a likeliest one first.
    fn keep_likeliest(&mut self, logits: &[f32]) {
        let candidates = &mut self.candidates;
        candidates.clear();
        let limited = self.top_k > 0 && self.top_k < logits.len();
        let mut sorted = if limited {
            append_likeliest(logits, self.top_k, candidates);
            candidates.len()
        } else {
            candidates.extend(
                (0..)
                    .zip(logits)
                    .filter(|(_, logit)| !logit.is_nan())
                    .map(|(token, &logit)| Candidate { logit, token }),
            );
            sort_first(candidates, if self.top_p < 1.0 { NUCLEUS_FIRST } else { 1 })
        };
        if candidates.is_empty() {
            candidates.push(Candidate {
                logit: 0.0,
                token: 0,
            });
            return;
        }
        if self.top_p >= 1.0 {
            return;
        }
        let highest = candidates[0].logit;
        let total: f64 = candidates
            .iter()
            .map(|candidate| f64::from(candidate.logit - highest).exp())
            .sum();
        let enough = f64::from(self.top_p) * total;
        loop {
            let mut sum = 0.0;
            let reached = candidates[..sorted].iter().position(|candidate| {
                sum += f64::from(candidate.logit - highest).exp();
                sum >= enough
            });
            match reached {
                Some(last) => return candidates.truncate(last + 1),
                None if sorted == candidates.len() => return,
                None => sorted = sort_first(candidates, sorted.saturating_mul(8)),
            }
        }
    }
}

/// Sorts the `count` likeliest candidates to the front; returns how many are sorted.
fn sort_first(candidates: &mut [Candidate], count: usize) -> usize {
    let order = |left: &Candidate, right: &Candidate| {
        right
            .logit
            .total_cmp(&left.logit)
            .then(left.token.cmp(&right.token))
    };
    let count = count.min(candidates.len());
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count, order);
    }
    candidates[..count].sort_unstable_by(order);
    count
}

fn logit_of(logits: &mut [f32], token: Token) -> Option<&mut f32> {
    logits.get_mut(usize::try_from(token).ok()?)
}

/// The token with the largest logit; the lowest id among equals.
pub(crate) fn argmax(logits: &[f32]) -> Token {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, &logit) in (0..).zip(logits) {
        if logit > best.1 {
            best = (token, logit);
        }
    }
    best.0
}

/// Log probabilities of single tokens under a row of logits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogSoftmax {
    log_total: f32,
}

impl LogSoftmax {
    /// Of unmodified logits.
    pub(crate) fn new(logits: &[f32]) -> Self {
        let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = logits
            .iter()
            .map(|&logit| f64::from(logit - highest).exp())
            .sum();
        Self {
            log_total: highest + total.ln() as f32,
        }
    }

    /// Natural logarithm of the probability of a token with this logit.
    pub(crate) fn of(&self, logit: f32) -> f32 {
        logit - self.log_total
    }
}

/// The `count` tokens with the largest logits, largest first.
pub(crate) fn likeliest(logits: &[f32], count: usize) -> Vec<(Token, f32)> {
    let mut best = Vec::new();
    append_likeliest(logits, count, &mut best);
    best.into_iter()
        .map(|candidate| (candidate.token, candidate.logit))
        .collect()
}

/// Appends them to an empty list. One pass without a copy of the vocabulary: most logits are below
/// the smallest one kept and cost one comparison.
fn append_likeliest(logits: &[f32], count: usize, best: &mut Vec<Candidate>) {
    for (token, &logit) in (0..).zip(logits) {
        let too_small = best.len() == count && best.last().is_none_or(|last| logit <= last.logit);
        if too_small || logit.is_nan() {
            continue;
        }
        let place = best.partition_point(|candidate| candidate.logit >= logit);
        best.insert(place, Candidate { logit, token });
        best.truncate(count);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sampler(request: &Sampling) -> Sampler {
        Sampler::new(request, Vec::new(), &[], 1)
    }

    /// Share of draws per token.
    fn shares(request: &Sampling, logits: &[f32]) -> Vec<f64> {
        let draws = 20_000;
        let mut counts = vec![0u32; logits.len()];
        let mut sampler = sampler(request);
        for _ in 0..draws {
            sampler.keep_likeliest(logits);
            let token = sampler.draw(logits);
            counts[usize::try_from(token).unwrap()] += 1;
        }
        counts
            .iter()
            .map(|&count| f64::from(count) / f64::from(draws))
            .collect()
    }

    fn open() -> Sampling {
        Sampling {
            temperature: Some(1.0),
            top_k: Some(0),
            top_p: Some(1.0),
            min_p: Some(0.0),
            seed: Some(3),
            ..Sampling::default()
        }
    }

    #[test]
    fn draws_follow_the_softmax() {
        let shares = shares(&open(), &[0.0, 1.0, 2.0]);
        let total = 1.0 + 1f64.exp() + 2f64.exp();
        for (share, weight) in shares.iter().zip([1.0, 1f64.exp(), 2f64.exp()]) {
            assert!((share - weight / total).abs() < 0.02, "{shares:?}");
        }
    }

    #[test]
    fn each_filter_removes_the_tail() {
        let logits = [3.0, 2.0, 1.0, -5.0];
        let top_k = shares(
            &Sampling {
                top_k: Some(2),
                ..open()
            },
            &logits,
        );
        assert!(top_k[2] == 0.0 && top_k[1] > 0.0);
        let top_p = shares(
            &Sampling {
                top_p: Some(0.6),
                ..open()
            },
            &logits,
        );
        assert!(top_p[1] == 0.0 && top_p[0] == 1.0);
        let min_p = shares(
            &Sampling {
                min_p: Some(0.2),
                ..open()
            },
            &logits,
        );
        assert!(min_p[2] == 0.0 && min_p[1] > 0.0);
    }

    #[test]
    fn penalties_and_bias_change_the_greedy_choice() {
        let greedy = Sampling {
            temperature: Some(0.0),
            ..Sampling::default()
        };
        assert_eq!(sampler(&greedy).sample(&mut [1.0, 1.5]), 1);
        let frequency = Sampling {
            frequency_penalty: Some(0.4),
            ..greedy.clone()
        };
        let mut sampler = sampler(&frequency);
        let drawn: Vec<Token> = (0..3).map(|_| sampler.sample(&mut [1.0, 1.5])).collect();
        assert_eq!(drawn, vec![1, 1, 0]);
        let repeat = Sampling {
            repeat_penalty: Some(2.0),
            ..greedy.clone()
        };
        let mut repeating = Sampler::new(&repeat, Vec::new(), &[1], 1);
        assert_eq!(repeating.sample(&mut [1.0, 1.5]), 0);
        let mut biased = Sampler::new(&greedy, vec![(0, 100.0), (7, 1.0)], &[], 1);
        assert_eq!(biased.sample(&mut [1.0, 1.5]), 0);
    }

    #[test]
    fn the_same_seed_repeats_the_choice() {
        let draw = |seed| {
            let mut sampler = Sampler::new(&Sampling { seed, ..open() }, Vec::new(), &[], 9);
            (0..50)
                .map(|_| sampler.sample(&mut [0.1; 100]))
                .collect::<Vec<Token>>()
        };
        assert_eq!(draw(Some(4)), draw(Some(4)));
        assert_eq!(draw(None), draw(Some(9)));
        assert_ne!(draw(Some(4)), draw(Some(5)));
    }

    proptest! {
        #[test]
        fn any_settings_choose_a_token_of_the_vocabulary(
            mut logits in prop::collection::vec(
                prop_oneof![-1e30f32..1e30, Just(f32::NEG_INFINITY), Just(f32::NAN)], 1..400),
            temperature in 0f32..2.0, top_k in 0u32..500, top_p in 0f32..1.0, min_p in 0f32..1.0,
        ) {
            let request = Sampling {
                temperature: Some(temperature), top_k: Some(top_k), top_p: Some(top_p),
                min_p: Some(min_p), ..Sampling::default()
            };
            let token = sampler(&request).sample(&mut logits);
            prop_assert!(usize::try_from(token).unwrap() < logits.len());
        }

        #[test]
        fn log_probabilities_sum_to_one_and_rank_as_the_logits(
            logits in prop::collection::vec(-20f32..20.0, 1..300),
        ) {
            let softmax = LogSoftmax::new(&logits);
            let sum: f64 = logits.iter().map(|&logit| f64::from(softmax.of(logit)).exp()).sum();
            prop_assert!((sum - 1.0).abs() < 1e-3);
            let mut sorted = logits.clone();
            sorted.sort_by(|left, right| right.total_cmp(left));
            let top = likeliest(&logits, 20);
            for ((_, logit), expected) in top.iter().zip(&sorted) {
                prop_assert_eq!(logit, expected);
            }
            prop_assert_eq!(top.len(), logits.len().min(20));
            prop_assert_eq!(top[0].0, argmax(&logits));
        }
    }
}
