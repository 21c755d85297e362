//! The one thread that owns the llama.cpp context: takes jobs in, computes step after step, samples
//! and sends events.

mod admission;
mod answer;
mod bell;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::task::{Context as TaskContext, Waker};
use std::time::Instant;

use tenzro_protocol::inference::{Embeddings, GenerateError};
use tokio::sync::oneshot;

use crate::cpu::CpuShare;
use crate::embedder::Embedder;
use crate::llama::{Batch, Context, DecodeError, Model, Token};
use crate::pace::Pace;
use crate::schedule::{Item, JobId, KvOp, Limits, Scheduler, Sharing, Step};

pub(crate) use admission::{Admission, Counters, Permit};
pub(crate) use answer::GenerateJob;
use answer::{Answer, Outcome};
pub(crate) use bell::Bell;

/// A prompt chunk of fewer tokens is computed so soon that stopping it is not worth repeating what
/// else is in the batch.
const ABORT_TOKENS_MIN: usize = 16;

/// What the handle asks for.
#[derive(Debug)]
pub(crate) enum Command {
    Generate(Box<GenerateJob>),
    Embed(EmbedJob),
    /// Only wakes the thread: flags and budgets say the rest.
    Look,
}

/// An admitted embedding request.
#[derive(Debug)]
pub(crate) struct EmbedJob {
    /// None longer than [`crate::embedder::input_tokens_max`].
    pub(crate) inputs: Vec<Vec<Token>>,
    pub(crate) reply: oneshot::Sender<Result<Embeddings, GenerateError>>,
    /// Held until the answer is sent.
    pub(crate) _permit: Permit,
}

/// What the handle sees of the worker.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) counters: Arc<Counters>,
    /// Ends the worker; also breaks a running computation off.
    pub(crate) stop: Arc<AtomicBool>,
    /// Rung by whoever changes something that an idle worker has to look at.
    pub(crate) bell: Arc<Bell>,
}

/// See the module header.
pub(crate) struct Worker {
    model: Arc<Model>,
    context: Context,
    batch: Batch,
    scheduler: Scheduler,
    limits: Limits,
    pace: Pace,
    cpu: CpuShare,
    answers: BTreeMap<JobId, Answer>,
    embedder: Embedder,
    next_job: JobId,
    end_tokens: Vec<Token>,
    checks_intact: bool,
    counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
    bell: Arc<Bell>,
    /// Rings the bell.
    waker: Waker,
}

impl Worker {
    pub(crate) fn new(
        model: Arc<Model>,
        context: Context,
        limits: Limits,
        threads: u32,
        ctx_size: u32,
        shared: Shared,
    ) -> Self {
        let vocab = Token::try_from(model.vocab_size()).unwrap_or(Token::MAX);
        Self {
            context,
            batch: Batch::default(),
            scheduler: Scheduler::new(limits),
            limits,
            pace: Pace::default(),
            cpu: CpuShare::new(threads),
            answers: BTreeMap::new(),
            embedder: Embedder::new(Arc::clone(&model), ctx_size, threads),
            next_job: 0,
            end_tokens: (0..vocab).filter(|&token| model.is_end(token)).collect(),
            checks_intact: model.has_sliding_window(),
            model,
            counters: shared.counters,
            stop: shared.stop,
            waker: Waker::from(Arc::clone(&shared.bell)),
            bell: shared.bell,
        }
    }

    /// Runs until the stop flag is raised.
    pub(crate) fn run(mut self, commands: &Receiver<Command>) {
        self.counters.set_cells_total(self.limits.cells);
        // All jobs that there are, if any, are paused: nothing to do before the next command.
        let mut is_idle = true;
        while !self.stop.load(Ordering::Relaxed) {
            if is_idle {
                match commands.recv() {
                    Ok(command) => self.accept(command),
                    Err(_) => break,
                }
            }
            while let Ok(command) = commands.try_recv() {
                self.accept(command);
            }
            self.let_go();
            let has_computed = self.step();
            let chunk = self
                .pace
                .prefill_tokens(self.scheduler.active(), self.limits.batch_tokens);
            self.embedder.work(chunk);
            is_idle = !has_computed && self.embedder.is_idle();
            self.publish();
        }
        let bye = GenerateError::Unavailable {
            message: "the model server was stopped".to_owned(),
        };
        for (_, answer) in std::mem::take(&mut self.answers) {
            answer.fail(bye.clone());
        }
        self.embedder.fail_all(&bye);
    }

    fn accept(&mut self, command: Command) {
        match command {
            Command::Generate(job) => {
                let id = self.next_job;
                self.next_job += 1;
                let (prompt, answer) = Answer::new(*job);
                self.scheduler.submit(id, prompt);
                self.answers.insert(id, answer);
            }
            Command::Embed(job) => self.embedder.push(job),
            Command::Look => self.bell.quiet(),
        }
    }

    /// Jobs whose client left are out before the next step.
    fn let_go(&mut self) {
        let gone: Vec<JobId> = self
            .answers
            .iter()
            .filter(|(_, answer)| answer.is_cancelled())
            .map(|(&id, _)| id)
            .collect();
        for &id in &gone {
            self.answers.remove(&id);
            self.scheduler.finish(id);
        }
        if !gone.is_empty() {
            // Who sees that they left sees that their places are free.
            self.publish();
            let count = gone.len() as u64;
            self.counters.cancelled.fetch_add(count, Ordering::Release);
        }
    }

    /// False when there was nothing to compute.
    fn step(&mut self) -> bool {
        let task = TaskContext::from_waker(&self.waker);
        let answers = &mut self.answers;
        self.scheduler.admit(&mut |job| {
            answers
                .get_mut(&job)
                .is_some_and(|answer| answer.is_paid(&task))
        });
        let decoding = self.scheduler.decoding();
        let budget = self.pace.prefill_tokens(decoding, self.limits.batch_tokens);
        let (context, checks) = (&self.context, self.checks_intact);
        let step = self
            .scheduler
            .next_step(budget, &|seq| !checks || context.is_intact(seq));
        for &op in &step.ops {
            match op {
                KvOp::Copy { from, to, length } => {
                    let length = u32::try_from(length).expect("contexts are far below 2^32 tokens");
                    self.context.copy_prefix(from, to, length);
                }
                KvOp::Remove { seq } => {
                    self.context.remove_from(seq, 0);
                }
            }
        }
        if step.items.is_empty() {
            return false;
        }
        self.compute(&step);
        true
    }

    fn compute(&mut self, step: &Step) {
        let outputs = self.fill_batch(step);
        self.watch(step);
        let started = Instant::now();
        self.context.set_threads(self.cpu.threads(started));
        for item in &step.items {
            if let Some(answer) = self.answers.get_mut(&item.job) {
                answer.note_scheduled(started);
            }
        }
        match self.context.decode(&mut self.batch) {
            Ok(()) => {
                self.scheduler.commit(&step.items);
                self.count(step, started);
                for (item, output) in step.items.iter().zip(outputs) {
                    if let Some(output) = output {
                        self.sample(item, output);
                    }
                }
            }
            Err(DecodeError::Aborted) => self.roll_back(step),
            Err(DecodeError::NoRoom) if self.scheduler.evict() => {}
            Err(error) => {
                tracing::error!(?error, tokens = self.batch.len(), "a batch failed");
                self.roll_back(step);
                for item in &step.items {
                    self.fail(item.job, &format!("llama.cpp failed on a batch: {error:?}"));
                }
            }
        }
    }

    /// Returns for each item the batch index of its output, when it has one.
    fn fill_batch(&mut self, step: &Step) -> Vec<Option<usize>> {
        self.batch.clear();
        let mut outputs = Vec::with_capacity(step.items.len());
        for item in &step.items {
            let tokens = self.scheduler.tokens(item);
            let mut last = None;
            for (offset, &token) in tokens.iter().enumerate() {
                let position =
                    u32::try_from(item.start + offset).expect("contexts are far below 2^32 tokens");
                let output = item.is_last && offset + 1 == item.count;
                let index = self.batch.push(token, position, item.seq, output);
                last = output.then_some(index);
            }
            outputs.push(last);
        }
        outputs
    }

    /// Lets clients that leave stop the computation of their own long prompt.
    fn watch(&mut self, step: &Step) {
        // Where a prefix cannot be cut off again, an abort must not touch anybody else.
        let may_abort = self.limits.sharing == Sharing::Prefix || step.items.len() == 1;
        let flags: Vec<Arc<AtomicBool>> = step
            .items
            .iter()
            .filter(|item| may_abort && item.is_prompt && item.count >= ABORT_TOKENS_MIN)
            .filter_map(|item| self.answers.get(&item.job).map(Answer::cancel_flag))
            .chain(may_abort.then(|| Arc::clone(&self.stop)))
            .collect();
        self.context.watch(flags);
    }

    /// Takes back whatever part of the step reached the KV buffer; the tokens come again.
    fn roll_back(&mut self, step: &Step) {
        for item in &step.items {
            let from = u32::try_from(item.start).expect("contexts are far below 2^32 tokens");
            if !self.context.remove_from(item.seq, from) {
                self.scheduler.discard(item.job);
                self.fail(item.job, "the model's state cannot be rolled back");
            }
        }
    }

    fn sample(&mut self, item: &Item, output: usize) {
        let Some(answer) = self.answers.get_mut(&item.job) else {
            return;
        };
        let cached = self.scheduler.cached_tokens(item.job);
        // Before the client hears of it.
        self.counters.generated.fetch_add(1, Ordering::Relaxed);
        if item.is_prompt {
            let cached = u64::try_from(cached).unwrap_or(0);
            self.counters.cached.fetch_add(cached, Ordering::Relaxed);
        }
        answer.start(cached);
        let logits = self.context.logits(output);
        match answer.advance(&self.model, logits, &self.end_tokens) {
            Outcome::Continue(token) => self.scheduler.push_token(item.job, token),
            Outcome::Finished => {
                self.answers.remove(&item.job);
                self.scheduler.finish(item.job);
            }
        }
    }

    fn fail(&mut self, job: JobId, message: &str) {
        self.scheduler.finish(job);
        if let Some(answer) = self.answers.remove(&job) {
            answer.fail(GenerateError::Internal {
                message: message.to_owned(),
            });
        }
    }

    fn count(&mut self, step: &Step, started: Instant) {
        let prompt: usize = step
            .items
            .iter()
            .filter(|item| item.is_prompt)
            .map(|item| item.count)
            .sum();
        let decoding = step.items.iter().filter(|item| !item.is_prompt).count();
        self.pace.record(decoding, prompt, started.elapsed());
        self.counters.steps.fetch_add(1, Ordering::Relaxed);
        let prompt = u64::try_from(prompt).unwrap_or(0);
        self.counters.prefill.fetch_add(prompt, Ordering::Relaxed);
    }

    fn publish(&self) {
        self.counters.set_now(
            self.scheduler.running(),
            self.scheduler.waiting(),
            self.scheduler.cells(),
        );
    }
}
