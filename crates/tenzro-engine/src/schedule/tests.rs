//! The scheduler against a simulated KV buffer that checks every write.

use std::collections::{BTreeMap, HashMap, HashSet};

use proptest::prelude::*;

use super::*;

/// A KV buffer in which every cell has an identity.
#[derive(Default)]
struct Buffer {
    sequences: HashMap<SeqId, Vec<(usize, Token)>>,
    next_cell: usize,
}

impl Buffer {
    fn apply(&mut self, op: KvOp) {
        match op {
            KvOp::Copy { from, to, length } => {
                let cells = self.sequences[&from][..length].to_vec();
                let before = self.sequences.insert(to, cells);
                assert!(before.is_none_or(|cells| cells.is_empty()));
            }
            KvOp::Remove { seq } => {
                self.sequences.remove(&seq);
            }
        }
    }

    fn write(&mut self, item: &Item, tokens: &[Token]) {
        let cells = self.sequences.entry(item.seq).or_default();
        assert_eq!(cells.len(), item.start, "positions are consecutive");
        for &token in tokens {
            cells.push((self.next_cell, token));
            self.next_cell += 1;
        }
    }

    fn used(&self) -> usize {
        let unique: HashSet<usize> = self
            .sequences
            .values()
            .flat_map(|cells| cells.iter().map(|cell| cell.0))
            .collect();
        unique.len()
    }
}

/// The "model": the next token depends on all tokens before it.
fn next_token(context: &[Token]) -> Token {
    context.iter().fold(7, |hash: Token, token| {
        hash.wrapping_mul(31).wrapping_add(*token) & 0xffff
    })
}

#[derive(Debug, Clone)]
struct Arrival {
    step: usize,
    family: Token,
    shared: usize,
    own: usize,
    answer: usize,
    leaves_after: Option<usize>,
    /// After how many steps its money ends, and for how many.
    pause: Option<(usize, usize)>,
}

impl Arrival {
    fn is_paused(&self, step: usize) -> bool {
        self.pause.is_some_and(|(after, steps)| {
            (self.step + after..self.step + after + steps).contains(&step)
        })
    }
}

fn arrival() -> impl Strategy<Value = Arrival> {
    (
        0..40usize,
        0..3i32,
        0..90usize,
        1..30usize,
        1..12usize,
        prop::option::weighted(0.3, 0..25usize),
        prop::option::weighted(0.4, (0..20usize, 1..60usize)),
    )
        .prop_map(
            |(step, family, shared, own, answer, leaves_after, pause)| Arrival {
                step,
                family,
                shared,
                own,
                answer,
                leaves_after,
                pause,
            },
        )
}

const JOB_TOKENS_MAX: usize = 90 + 30 + 12;

fn limits(parallel: usize, sharing: Sharing) -> Limits {
    Limits {
        parallel,
        sequences: parallel + 3,
        cells: parallel * JOB_TOKENS_MAX,
        batch_tokens: 64,
        sharing,
    }
}

fn prompt_of(job: usize, arrival: &Arrival) -> Vec<Token> {
    let shared = (0..arrival.shared).map(|at| arrival.family * 1000 + Token::try_from(at).unwrap());
    let own = (0..arrival.own).map(|at| 10_000 + Token::try_from(job * 100 + at).unwrap());
    shared.chain(own).collect()
}

/// What a simulation came to.
#[derive(Debug)]
struct Outcome {
    computed_prompt_tokens: usize,
    /// Of the jobs that did not leave.
    answers: BTreeMap<JobId, Vec<Token>>,
}

/// Runs all jobs to their end and checks each step.
fn simulate(
    arrivals: &[Arrival],
    limits: Limits,
    prefill_tokens: usize,
    fail_every: usize,
) -> Outcome {
    let mut scheduler = Scheduler::new(limits);
    let mut buffer = Buffer::default();
    let mut answers: BTreeMap<JobId, Vec<Token>> = BTreeMap::new();
    let mut gone: HashSet<JobId> = HashSet::new();
    let mut finished: HashSet<JobId> = HashSet::new();
    let mut computed_prompt_tokens = 0;
    let mut was_decoding: HashSet<JobId> = HashSet::new();
    let deadline = 2000 + arrivals.len() * 200;
    for step in 0.. {
        assert!(step < deadline, "some job starves");
        for (job, arrival) in arrivals.iter().enumerate() {
            let id = job as JobId;
            if arrival.step == step {
                scheduler.submit(id, prompt_of(job, arrival));
                answers.insert(id, Vec::new());
            }
            if arrival
                .leaves_after
                .is_some_and(|after| arrival.step + after == step)
                && !finished.contains(&id)
            {
                scheduler.finish(id);
                gone.insert(id);
                was_decoding.remove(&id);
            }
        }
        let paused: HashSet<JobId> = (0..)
            .zip(arrivals)
            .filter(|(_, arrival)| arrival.is_paused(step))
            .map(|(job, _)| job)
            .collect();
        scheduler.admit(&mut |job| !paused.contains(&job));
        let has_unpaid_running = scheduler.active() < scheduler.running();
        let decoding_now: HashSet<JobId> = was_decoding.difference(&paused).copied().collect();
        assert_eq!(scheduler.decoding(), decoding_now.len());
        let planned = scheduler.next_step(prefill_tokens, &|_| true);
        for &op in &planned.ops {
            buffer.apply(op);
        }
        let total: usize = planned.items.iter().map(|item| item.count).sum();
        let prompt: usize = planned
            .items
            .iter()
            .filter(|item| item.is_prompt)
            .map(|item| item.count)
            .sum();
        assert!(total <= limits.batch_tokens && prompt <= prefill_tokens);
        let in_step: HashSet<JobId> = planned.items.iter().map(|item| item.job).collect();
        assert_eq!(in_step.len(), planned.items.len(), "one item a job");
        assert!(
            in_step.is_disjoint(&gone),
            "a job that left is not computed"
        );
        assert!(
            in_step.is_disjoint(&paused),
            "nothing is computed that is not paid for"
        );
        assert!(
            decoding_now.is_subset(&in_step),
            "every answer that is paid for gets a token in every step"
        );
        if planned.items.is_empty() {
            // The worker sleeps now: no job may be left that could go on.
            assert_eq!(scheduler.active(), 0, "an idle worker would strand a job");
            let unpaid_waiting = answers
                .keys()
                .filter(|job| !finished.contains(job) && !gone.contains(job))
                .all(|job| paused.contains(job));
            assert!(
                has_unpaid_running || unpaid_waiting,
                "a free slot and a paid job were not brought together"
            );
        }
        if fail_every > 0 && step % fail_every == 0 {
            continue; // The computation failed: nothing was written, the same tokens must come again.
        }
        for item in &planned.items {
            buffer.write(item, scheduler.tokens(item));
        }
        assert!(buffer.used() <= limits.cells, "the buffer overflows");
        scheduler.commit(&planned.items);
        assert_eq!(scheduler.cells(), buffer.used());
        computed_prompt_tokens += prompt;
        for item in planned.items.iter().filter(|item| item.is_last) {
            let arrival = &arrivals[usize::try_from(item.job).unwrap()];
            let context: Vec<Token> = buffer.sequences[&item.seq]
                .iter()
                .map(|cell| cell.1)
                .collect();
            let mut expected = prompt_of(usize::try_from(item.job).unwrap(), arrival);
            let answer = answers.get_mut(&item.job).unwrap();
            expected.extend(answer.iter());
            assert_eq!(
                context, expected,
                "the buffer holds exactly the job's tokens"
            );
            let token = next_token(&context);
            answer.push(token);
            if answer.len() == arrival.answer {
                scheduler.finish(item.job);
                finished.insert(item.job);
                was_decoding.remove(&item.job);
            } else {
                scheduler.push_token(item.job, token);
                was_decoding.insert(item.job);
            }
        }
        if finished.len() + gone.len() == arrivals.len() {
            break;
        }
    }
    assert_eq!((scheduler.running(), scheduler.waiting()), (0, 0));
    answers.retain(|job, _| !gone.contains(job));
    Outcome {
        computed_prompt_tokens,
        answers,
    }
}

proptest! {
    #[test]
    fn no_token_is_lost_budgets_hold_and_nobody_starves(
        arrivals in prop::collection::vec(arrival(), 1..24),
        parallel in 1..6usize,
        prefill_tokens in 1..64usize,
        fail_every in prop_oneof![Just(0usize), 2..5usize],
        whole in any::<bool>(),
    ) {
        let sharing = if whole { Sharing::WholeSequence } else { Sharing::Prefix };
        simulate(&arrivals, limits(parallel, sharing), prefill_tokens, fail_every);
    }

    #[test]
    fn a_pause_changes_nobodys_answer(
        arrivals in prop::collection::vec(arrival(), 1..12),
        parallel in 1..6usize,
        prefill_tokens in 1..64usize,
        whole in any::<bool>(),
    ) {
        let stays = |arrival: &Arrival| Arrival { leaves_after: None, ..arrival.clone() };
        let paused: Vec<Arrival> = arrivals.iter().map(stays).collect();
        let unpaused: Vec<Arrival> =
            paused.iter().map(|arrival| Arrival { pause: None, ..arrival.clone() }).collect();
        let sharing = if whole { Sharing::WholeSequence } else { Sharing::Prefix };
        let limits = limits(parallel, sharing);
        let with = simulate(&paused, limits, prefill_tokens, 0);
        let without = simulate(&unpaused, limits, prefill_tokens, 0);
        prop_assert_eq!(with.answers, without.answers);
    }

    #[test]
    fn shares_are_within_what_is_pending_and_the_oldest_advances(
        pending in prop::collection::vec(
            prop_oneof![
                Just(Pending::Nothing),
                Just(Pending::Decode),
                (1..3000usize).prop_map(Pending::Prompt),
            ],
            1..16,
        ),
        prefill_tokens in 1..600usize,
    ) {
        let counts = share_out(&pending, prefill_tokens, 512);
        for (count, pending) in counts.iter().zip(&pending) {
            match pending {
                Pending::Nothing => prop_assert_eq!(*count, 0),
                Pending::Decode => prop_assert_eq!(*count, 1),
                Pending::Prompt(tokens) => prop_assert!(count <= tokens),
            }
        }
        let oldest = pending.iter().position(|pending| matches!(pending, Pending::Prompt(_)));
        if let Some(oldest) = oldest {
            let Pending::Prompt(tokens) = pending[oldest] else { unreachable!() };
            let decodes = pending.iter().filter(|pending| **pending == Pending::Decode).count();
            let budget = prefill_tokens.min(512 - decodes);
            prop_assert!(counts[oldest] >= tokens.min(budget.div_ceil(2)));
            let spent = counts.iter().sum::<usize>() - decodes;
            let wanted: usize = pending.iter().map(|pending| match pending {
                Pending::Prompt(tokens) => *tokens,
                _ => 0,
            }).sum();
            prop_assert_eq!(spent, wanted.min(budget), "no budget is wasted");
        }
    }
}

fn at_once(count: usize, shared: usize, own: usize) -> Vec<Arrival> {
    vec![
        Arrival {
            step: 0,
            family: 1,
            shared,
            own,
            answer: 3,
            leaves_after: None,
            pause: None,
        };
        count
    ]
}

#[test]
fn simultaneous_arrivals_compute_their_common_prefix_once() {
    let computed =
        simulate(&at_once(8, 80, 5), limits(8, Sharing::Prefix), 16, 0).computed_prompt_tokens;
    assert_eq!(computed, 80 + 8 * 5);
}

#[test]
fn a_follower_starts_over_when_its_leader_leaves() {
    let mut arrivals = at_once(3, 80, 5);
    arrivals[0].leaves_after = Some(2);
    let computed = simulate(&arrivals, limits(3, Sharing::Prefix), 16, 0).computed_prompt_tokens;
    // The leader's two steps of 16 tokens are kept and used by those that follow.
    assert_eq!(computed, 80 + 2 * 5);
}

#[test]
fn a_later_job_reuses_what_a_finished_one_computed() {
    let mut arrivals = at_once(2, 80, 5);
    arrivals[1].step = 30;
    let computed = simulate(&arrivals, limits(1, Sharing::Prefix), 64, 0).computed_prompt_tokens;
    assert_eq!(computed, 80 + 2 * 5);
}

#[test]
fn damaged_cache_is_dropped_and_computed_again() {
    let mut scheduler = Scheduler::new(limits(1, Sharing::Prefix));
    let prompt: Vec<Token> = (0..50).collect();
    scheduler.submit(0, prompt.clone());
    scheduler.admit(&mut |_| true);
    let step = scheduler.next_step(64, &|_| true);
    scheduler.commit(&step.items);
    scheduler.finish(0);
    scheduler.submit(1, prompt);
    scheduler.admit(&mut |_| true);
    let step = scheduler.next_step(64, &|_| false);
    assert_eq!(
        step.ops,
        vec![KvOp::Remove {
            seq: step.items[0].seq
        }]
    );
    assert_eq!((step.items[0].start, step.items[0].count), (0, 50));
}

#[test]
fn nobody_waits_for_the_prefix_of_a_paused_job() {
    let mut arrivals = at_once(2, 80, 5);
    arrivals[0].pause = Some((2, 100));
    let outcome = simulate(&arrivals, limits(2, Sharing::Prefix), 16, 0);
    // The follower uses the 32 tokens that were computed before the pause, computes the rest of
    // the prefix itself, and the paused job then repeats its own 48.
    assert_eq!(outcome.computed_prompt_tokens, 80 + 2 * 5 + 48);
}

#[test]
fn an_unpaid_job_in_the_queue_is_passed_and_keeps_its_place() {
    let mut scheduler = Scheduler::new(limits(1, Sharing::Prefix));
    for job in 0..3 {
        scheduler.submit(job, vec![7; 5]);
    }
    let jobs = |scheduler: &mut Scheduler, unpaid: &[JobId]| -> Vec<JobId> {
        scheduler.admit(&mut |job| !unpaid.contains(&job));
        let step = scheduler.next_step(64, &|_| true);
        scheduler.commit(&step.items);
        step.items.iter().map(|item| item.job).collect()
    };
    assert_eq!(jobs(&mut scheduler, &[0]), [1]);
    scheduler.push_token(1, 9);
    assert_eq!(
        jobs(&mut scheduler, &[0, 1]),
        Vec::<JobId>::new(),
        "its slot is not given away"
    );
    assert_eq!((scheduler.running(), scheduler.waiting()), (1, 2));
    assert_eq!(jobs(&mut scheduler, &[]), [1]);
    scheduler.finish(1);
    assert_eq!(jobs(&mut scheduler, &[]), [0]);
}
