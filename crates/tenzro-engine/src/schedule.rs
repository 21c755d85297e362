//! What is computed next: a state machine over plain values, without a model, a clock or a thread.
//!
//! ```text
//! submit -> waiting -> admitted -> started (holds a sequence) -> prefill -> decode -> finish
//!            queue      a slot is    its cached prefix is                              the sequence is
//!                       free         shared with it                                    kept as cache
//! ```
//!
//! Each [`Step`] decodes one token of every answering job and fills the rest of a token budget with
//! prompt tokens. An admitted job whose prompt begins like one that is being prefilled waits for it
//! and then shares its cells, so a common prefix is computed once. Cached sequences are evicted
//! least recently used first, and only when cells or sequence ids are needed; a running job is
//! never evicted, because the buffer holds `parallel` full contexts.
//!
//! A job whose next token is not paid for is paused: it keeps its place and its cells, gets no items,
//! and nobody waits for it.

use std::collections::VecDeque;

use crate::llama::{SeqId, Token};
use crate::prefix_tree::{Match, PrefixTree, common_prefix};

/// Numbers jobs in their order of arrival.
pub(crate) type JobId = u64;

/// A shorter common prefix is computed again rather than waited for.
const SHARE_TOKENS_MIN: usize = 32;

/// What may be shared between sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Any prefix: each token has a KV cell of its own.
    Prefix,
    /// A finished sequence can only be continued at its end (recurrent and hybrid models).
    WholeSequence,
}

/// Fixed sizes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Jobs that run at the same time.
    pub(crate) parallel: usize,
    /// Sequence ids, running and cached ones together; more than `parallel`.
    pub(crate) sequences: usize,
    /// Cells of the KV buffer; at least `parallel` times the longest job.
    pub(crate) cells: usize,
    /// Most tokens of one step.
    pub(crate) batch_tokens: usize,
    /// What may be shared.
    pub(crate) sharing: Sharing,
}

/// A change of the KV buffer, to be done in order before the items of the step are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KvOp {
    /// `to` shares the first `length` cells of `from`.
    Copy {
        /// Source.
        from: SeqId,
        /// A sequence without cells.
        to: SeqId,
        /// In tokens.
        length: usize,
    },
    /// All cells of the sequence are given up.
    Remove {
        /// The sequence.
        seq: SeqId,
    },
}

/// Consecutive tokens of one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Item {
    /// Whose tokens.
    pub(crate) job: JobId,
    /// Where they go.
    pub(crate) seq: SeqId,
    /// Position of the first one.
    pub(crate) start: usize,
    /// How many.
    pub(crate) count: usize,
    /// Whether the last one is the job's newest token, so that the next can be sampled.
    pub(crate) is_last: bool,
    /// Whether they belong to a prompt.
    pub(crate) is_prompt: bool,
}

/// What to compute next.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// To be done first, in order.
    pub(crate) ops: Vec<KvOp>,
    /// The batch.
    pub(crate) items: Vec<Item>,
}

#[derive(Debug)]
struct Running {
    job: JobId,
    /// `None` until the job starts.
    seq: Option<SeqId>,
    tokens: Vec<Token>,
    prompt: usize,
    /// Leading tokens that are in the KV buffer.
    computed: usize,
    cached: usize,
    is_paused: bool,
}

impl Running {
    fn is_decoding(&self) -> bool {
        self.seq.is_some() && !self.is_prefilling()
    }

    fn is_prefilling(&self) -> bool {
        self.computed < self.prompt
    }
}

#[derive(Debug)]
struct Retained {
    seq: SeqId,
    last_used: u64,
}

/// See the module header.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    tree: PrefixTree,
    waiting: VecDeque<(JobId, Vec<Token>)>,
    /// In order of admission.
    running: Vec<Running>,
    retained: Vec<Retained>,
    free: Vec<SeqId>,
    ops: Vec<KvOp>,
    uses: u64,
}

impl Scheduler {
    pub(crate) fn new(limits: Limits) -> Self {
        assert!(limits.sequences > limits.parallel && limits.batch_tokens >= limits.parallel);
        let ids = SeqId::try_from(limits.sequences).expect("at most 256 sequences");
        Self {
            limits,
            tree: PrefixTree::new(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            retained: Vec::new(),
            free: (0..ids).rev().collect(),
            ops: Vec::new(),
            uses: 0,
        }
    }

    /// Adds a job at the end of the queue. `prompt` is not empty.
    pub(crate) fn submit(&mut self, job: JobId, prompt: Vec<Token>) {
        debug_assert!(!prompt.is_empty());
        self.waiting.push_back((job, prompt));
    }

    /// Ends a job, wherever it is. What it computed stays as cache.
    pub(crate) fn finish(&mut self, job: JobId) {
        self.waiting.retain(|(waiting, _)| *waiting != job);
        let Some(index) = self.running.iter().position(|running| running.job == job) else {
            return;
        };
        if let Some(seq) = self.running.remove(index).seq {
            if self.tree.is_redundant(seq) || self.tree.length(seq) == 0 {
                self.drop_sequence(seq);
            } else {
                let last_used = self.tick();
                self.retained.push(Retained { seq, last_used });
            }
        }
    }

    /// Ends a job and gives up what it computed.
    pub(crate) fn discard(&mut self, job: JobId) {
        let Some(index) = self.running.iter().position(|running| running.job == job) else {
            return;
        };
        if let Some(seq) = self.running.remove(index).seq {
            self.drop_sequence(seq);
        }
    }

    /// Adds the token that was sampled for a job.
    pub(crate) fn push_token(&mut self, job: JobId, token: Token) {
        if let Some(running) = self.running.iter_mut().find(|running| running.job == job) {
            running.tokens.push(token);
        }
    }

    /// Fills free slots from the queue and notes which jobs may compute in the next step. `is_paid`
    /// is asked once for each running job and then, while a slot is free, for the waiting ones in
    /// their order. One that is not paid for stays where it is, and those behind it may pass.
    pub(crate) fn admit(&mut self, is_paid: &mut dyn FnMut(JobId) -> bool) {
        for running in &mut self.running {
            running.is_paused = !is_paid(running.job);
        }
        let mut place = 0;
        while self.running.len() < self.limits.parallel && place < self.waiting.len() {
            if !is_paid(self.waiting[place].0) {
                place += 1;
                continue;
            }
            let (job, tokens) = self.waiting.remove(place).expect("within the queue");
            self.running.push(Running {
                job,
                seq: None,
                prompt: tokens.len(),
                tokens,
                computed: 0,
                cached: 0,
                is_paused: false,
            });
        }
    }

    /// Jobs that get one token in the next step.
    pub(crate) fn decoding(&self) -> usize {
        self.running
            .iter()
            .filter(|running| running.is_decoding() && !running.is_paused)
            .count()
    }

    /// Jobs with a slot that may compute.
    pub(crate) fn active(&self) -> usize {
        self.running
            .iter()
            .filter(|running| !running.is_paused)
            .count()
    }

    /// Jobs with a slot.
    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    /// Jobs in the queue.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Cells in use, cached ones included.
    pub(crate) fn cells(&self) -> usize {
        self.tree.cells()
    }

    /// Tokens of a job that were found in the cache when it started.
    pub(crate) fn cached_tokens(&self, job: JobId) -> usize {
        self.running
            .iter()
            .find(|running| running.job == job)
            .map_or(0, |running| running.cached)
    }

    /// The tokens of an item.
    pub(crate) fn tokens(&self, item: &Item) -> &[Token] {
        self.running
            .iter()
            .find(|running| running.job == item.job)
            .map_or(&[], |running| {
                &running.tokens[item.start..item.start + item.count]
            })
    }

    /// The next step of the jobs that [`Self::admit`] let compute; without items when there is
    /// nothing to compute before something is submitted, paid for or finished. At most
    /// `prefill_tokens` prompt tokens are in it. `is_intact` tells whether the first cell of a
    /// sequence is still in the buffer.
    ///
    /// The caller does the ops, computes the items and then calls [`Self::commit`]; a step whose
    /// computation failed is not committed and its tokens come again.
    pub(crate) fn next_step(
        &mut self,
        prefill_tokens: usize,
        is_intact: &dyn Fn(SeqId) -> bool,
    ) -> Step {
        for index in 0..self.running.len() {
            if self.running[index].seq.is_none() && !self.running[index].is_paused {
                self.try_start(index, is_intact);
            }
        }

        let pending: Vec<Pending> = self
            .running
            .iter()
            .map(|running| match running.seq {
                None => Pending::Nothing,
                Some(_) if running.is_paused => Pending::Nothing,
                Some(_) if running.is_prefilling() => {
                    Pending::Prompt(running.prompt - running.computed)
                }
                Some(_) => Pending::Decode,
            })
            .collect();
        let counts = share_out(&pending, prefill_tokens, self.limits.batch_tokens);
        self.make_room(counts.iter().sum());
        let items = self
            .running
            .iter()
            .zip(&counts)
            .filter(|(_, count)| **count > 0)
            .map(|(running, &count)| Item {
                job: running.job,
                seq: running.seq.expect("only started jobs get tokens"),
                start: running.computed,
                count,
                is_last: running.computed + count == running.tokens.len(),
                is_prompt: running.is_prefilling(),
            })
            .collect();
        Step {
            ops: std::mem::take(&mut self.ops),
            items,
        }
    }

    /// The items of a step are in the KV buffer.
    pub(crate) fn commit(&mut self, items: &[Item]) {
        for item in items {
            let Some(running) = self
                .running
                .iter_mut()
                .find(|running| running.job == item.job)
            else {
                continue;
            };
            running.computed += item.count;
            self.tree.append(
                item.seq,
                &running.tokens[item.start..item.start + item.count],
            );
        }
    }

    /// Gives up the least recently used cached sequence. False when there is none.
    pub(crate) fn evict(&mut self) -> bool {
        let oldest = self
            .retained
            .iter()
            .enumerate()
            .min_by_key(|(_, retained)| retained.last_used)
            .map(|(index, _)| index);
        let Some(index) = oldest else {
            return false;
        };
        let seq = self.retained.swap_remove(index).seq;
        self.drop_sequence(seq);
        true
    }

    fn try_start(&mut self, index: usize, is_intact: &dyn Fn(SeqId) -> bool) {
        // The last token is always computed: its logits choose the first token of the answer.
        let reusable = self.running[index].prompt - 1;
        let cached = self.find_cached(index, reusable, is_intact);
        let have = cached.map_or(0, |found| found.length);
        if self.limits.sharing == Sharing::Prefix && self.is_worth_waiting(index, reusable, have) {
            return;
        }
        let seq = match cached {
            Some(found) if self.take_over(found) => found.seq,
            Some(found) => {
                // Before an id is freed by eviction, so that the source cannot be the victim.
                self.touch(found.seq);
                let seq = self.allocate_sequence();
                self.ops.push(KvOp::Copy {
                    from: found.seq,
                    to: seq,
                    length: found.length,
                });
                self.tree.fork(found.seq, found.length, seq);
                seq
            }
            None => {
                let seq = self.allocate_sequence();
                self.tree.insert(seq);
                seq
            }
        };
        let running = &mut self.running[index];
        running.seq = Some(seq);
        running.computed = have;
        running.cached = have;
    }

    fn find_cached(
        &mut self,
        index: usize,
        reusable: usize,
        is_intact: &dyn Fn(SeqId) -> bool,
    ) -> Option<Match> {
        if self.limits.sharing == Sharing::WholeSequence {
            let prompt = &self.running[index].tokens[..reusable];
            return self
                .retained
                .iter()
                .filter(|retained| prompt.starts_with(&self.tree.tokens(retained.seq)))
                .map(|retained| Match {
                    seq: retained.seq,
                    length: self.tree.length(retained.seq),
                })
                .max_by_key(|found| found.length);
        }
        loop {
            let prompt = &self.running[index].tokens[..reusable];
            let found = self.tree.longest_prefix(prompt)?;
            if is_intact(found.seq) {
                return Some(found);
            }
            // Cells of its sliding window were given to others: as a cache it is worthless.
            let retained = self
                .retained
                .iter()
                .position(|retained| retained.seq == found.seq)?;
            self.retained.swap_remove(retained);
            self.drop_sequence(found.seq);
        }
    }

    /// Whether a job in prefill will soon have a much longer common prefix than is cached now.
    fn is_worth_waiting(&self, index: usize, reusable: usize, have: usize) -> bool {
        let prompt = &self.running[index].tokens[..reusable];
        self.running
            .iter()
            .filter(|other| other.seq.is_some() && other.is_prefilling() && !other.is_paused)
            .any(|other| {
                let common = common_prefix(&other.tokens[..other.prompt], prompt);
                // What is cached may be what the other one has computed so far: then the rest
                // follows soon, however little it is.
                let follows = have > 0 && have == other.computed;
                common > other.computed && (follows || common >= have + SHARE_TOKENS_MIN)
            })
    }

    /// Continues a cached sequence in place when all of it is wanted.
    fn take_over(&mut self, found: Match) -> bool {
        let position = self
            .retained
            .iter()
            .position(|retained| retained.seq == found.seq);
        match position {
            Some(position) if self.tree.length(found.seq) == found.length => {
                self.retained.swap_remove(position);
                true
            }
            _ => false,
        }
    }

    fn touch(&mut self, seq: SeqId) {
        let now = self.tick();
        if let Some(retained) = self.retained.iter_mut().find(|other| other.seq == seq) {
            retained.last_used = now;
        }
    }

    fn tick(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }

    fn allocate_sequence(&mut self) -> SeqId {
        if self.free.is_empty() {
            self.evict();
        }
        self.free
            .pop()
            .expect("there are more sequence ids than running jobs")
    }

    fn drop_sequence(&mut self, seq: SeqId) {
        self.tree.remove(seq);
        self.ops.push(KvOp::Remove { seq });
        self.free.push(seq);
    }

    fn make_room(&mut self, tokens: usize) {
        while self.tree.cells() + tokens > self.limits.cells {
            if !self.evict() {
                return;
            }
        }
    }
}

/// What a job could compute now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pending {
    Nothing,
    Prompt(usize),
    Decode,
}

/// How many tokens of each job go into a step. Every decode gets its token. Of the prompt budget
/// the job that has waited longest may use half, so that it cannot starve; what is left goes to the
/// prompts that need least, so that a short question is not held up by a long document.
fn share_out(pending: &[Pending], prefill_tokens: usize, batch_tokens: usize) -> Vec<usize> {
    let mut counts: Vec<usize> = pending
        .iter()
        .map(|pending| usize::from(*pending == Pending::Decode))
        .collect();
    let decodes: usize = counts.iter().sum();
    let mut left = prefill_tokens.min(batch_tokens.saturating_sub(decodes));
    let mut prompts: Vec<(usize, usize)> = pending
        .iter()
        .enumerate()
        .filter_map(|(index, pending)| match pending {
            Pending::Prompt(tokens) => Some((index, *tokens)),
            _ => None,
        })
        .collect();
    if let Some(&(oldest, tokens)) = prompts.first() {
        let share = tokens.min(left.div_ceil(2));
        counts[oldest] = share;
        left -= share;
    }
    prompts.sort_by_key(|&(index, tokens)| (tokens, index));
    for (index, tokens) in prompts {
        let share = (tokens - counts[index]).min(left);
        counts[index] += share;
        left -= share;
    }
    counts
}

#[cfg(test)]
mod tests;
