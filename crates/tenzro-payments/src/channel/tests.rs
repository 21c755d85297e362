//! Random lives of a channel against a reference model that is too simple to be wrong.

use proptest::prelude::*;

use super::*;

const SIGNER: Address = Address::repeat_byte(1);

fn found(deposit: u128, settled: u128) -> EscrowChannel {
    EscrowChannel {
        payer: SIGNER,
        payee: Address::repeat_byte(2),
        signer: SIGNER,
        deposit,
        settled,
        is_closing: false,
        is_final: false,
    }
}

fn voucher(amount: u128) -> Voucher {
    let mut signature = [0; 65];
    signature[..16].copy_from_slice(&amount.to_be_bytes());
    Voucher {
        channel_id: B256::ZERO,
        amount: Wei(amount),
        signature: Signature(signature),
    }
}

#[derive(Debug, Clone)]
enum Step {
    Voucher(u128),
    Hold(u128),
    Spend(u128),
    Release(u128),
    TopUp(u128),
    /// With so much at most that waits to be earned in full.
    Settle(u128),
    RequestClose,
    CancelClose,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u128..1_200).prop_map(Step::Voucher),
        4 => (0u128..200).prop_map(Step::Hold),
        4 => (0u128..200).prop_map(Step::Spend),
        2 => (0u128..200).prop_map(Step::Release),
        1 => (1u128..300).prop_map(Step::TopUp),
        2 => (0u128..300).prop_map(Step::Settle),
        1 => Just(Step::RequestClose),
        1 => Just(Step::CancelClose),
        1 => Just(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn m05_money_is_never_counted_twice(steps in proptest::collection::vec(step(), 1..80)) {
        let mut channel = Channel::new(B256::ZERO, &found(500, 0));
        // The reference: all vouchers that were taken, all spending, what the ledger holds.
        let mut ledger = found(500, 0);
        let mut taken: Vec<u128> = Vec::new();
        let (mut spent, mut held) = (0u128, 0u128);
        for step in steps {
            let before = channel.clone();
            match step {
                Step::Voucher(amount) => {
                    let checked = channel.check(amount, SIGNER);
                    let highest = taken.iter().copied().max().unwrap_or(0).max(ledger.settled);
                    prop_assert_eq!(
                        checked == Ok(true),
                        !ledger.is_closing && amount > highest && amount <= ledger.deposit
                    );
                    if checked == Ok(true) {
                        channel.accept(&voucher(amount));
                        taken.push(amount);
                    }
                }
                Step::Hold(amount) => {
                    let highest = taken.iter().copied().max().unwrap_or(0).max(ledger.settled);
                    let fits = !ledger.is_closing && spent + held + amount <= highest;
                    prop_assert_eq!(channel.hold(amount), fits || amount == 0);
                    if fits {
                        held += amount;
                    }
                }
                Step::Spend(amount) => {
                    channel.spend(amount);
                    spent += amount.min(held);
                    held -= amount.min(held);
                }
                Step::Release(amount) => {
                    channel.release(amount);
                    held -= amount.min(held);
                }
                Step::TopUp(amount) => ledger.deposit += amount,
                Step::Settle(unearned_max) => {
                    let lowest = |owed: u128| taken.iter().copied().filter(|one| *one >= owed).min();
                    let earned = taken.iter().copied().filter(|one| *one <= spent).max();
                    let earned = earned.unwrap_or(0).max(ledger.settled);
                    let expected = match ledger.is_closing {
                        true => lowest(spent + held).filter(|_| spent + held > ledger.settled),
                        false if spent - earned.min(spent) >= unearned_max => lowest(spent),
                        false => Some(earned),
                    };
                    let expected = expected.filter(|amount| *amount > ledger.settled);
                    let due = channel.settleable(unearned_max);
                    prop_assert_eq!(due.map(|due| due.amount.0), expected);
                    if let Some(due) = due {
                        prop_assert_eq!(due.signature, voucher(due.amount.0).signature);
                        ledger.settled = due.amount.0;
                    }
                }
                Step::RequestClose => ledger.is_closing = true,
                Step::CancelClose => ledger.is_closing = false,
                Step::Crash => {
                    let kept: Vec<_> = channel.vouchers.iter().copied().collect();
                    channel = channel.clone().restore(kept);
                    held = 0;
                }
            }
            channel.sync(Some(&ledger));
            prop_assert_eq!((channel.spent, channel.held), (spent, held));
            prop_assert!(channel.spent >= before.spent && channel.accepted() >= before.accepted());
            prop_assert!(channel.spent + channel.held <= channel.accepted());
            prop_assert!(channel.accepted() <= channel.deposit);
            prop_assert!(channel.settled <= channel.accepted());
            // The highest voucher is never forgotten.
            let highest = taken.iter().copied().max();
            prop_assert_eq!(channel.vouchers.back().map(|(amount, _)| *amount), highest);
        }
    }
}

#[test]
fn m05_the_signature_comes_before_everything_else() {
    let mut channel = Channel::new(B256::ZERO, &found(500, 0));
    channel.accept(&voucher(100));
    let stranger = Address::repeat_byte(9);
    for amount in [0, 100, 101, 1_000] {
        assert_eq!(channel.check(amount, stranger), Err(VoucherRefusal::Signer));
    }
    assert_eq!(channel.check(100, SIGNER), Ok(false));
    assert_eq!(channel.check(99, SIGNER), Ok(false));
    assert_eq!(channel.check(101, SIGNER), Ok(true));
    assert_eq!(
        channel.check(501, SIGNER),
        Err(VoucherRefusal::AboveDeposit { deposit: 500 })
    );
}

#[test]
fn m06_nobody_signs_as_nobody() {
    let mut nobody = found(500, 0);
    nobody.signer = Address::ZERO;
    let channel = Channel::new(B256::ZERO, &nobody);
    assert_eq!(channel.check(1, Address::ZERO), Err(VoucherRefusal::Signer));
}

#[test]
fn m11_a_deposit_that_a_reorganisation_took_back_pays_for_nothing_more() {
    let mut channel = Channel::new(B256::ZERO, &found(500, 0));
    channel.accept(&voucher(300));
    assert!(channel.hold(100));
    channel.spend(60);
    channel.sync(None);
    assert_eq!((channel.available(), channel.status), (0, Status::Final));
    assert_eq!(channel.settleable(0), None);
    // It comes back with the next block.
    channel.sync(Some(&found(500, 0)));
    assert_eq!(channel.available(), 300 - 100);
}

#[test]
fn m12_a_payee_without_books_neither_owes_nor_is_owed() {
    let channel = Channel::new(B256::ZERO, &found(500, 200));
    assert_eq!((channel.spent, channel.accepted()), (200, 200));
    assert_eq!((channel.available(), channel.unsettled()), (0, 0));
}

#[test]
fn m34_only_the_ledger_or_a_failure_ends_a_closing() {
    let mut channel = Channel::new(B256::ZERO, &found(500, 0));
    channel.accept(&voucher(300));
    assert!(channel.hold(100));
    channel.spend(100);
    channel.status = Status::Ending;
    let mut leaving = found(500, 0);
    leaving.is_closing = true;
    for now in [found(500, 0), leaving, found(900, 0)] {
        channel.sync(Some(&now));
        assert_eq!((channel.status, channel.available()), (Status::Ending, 0));
        assert_eq!(channel.settleable(0), None);
        assert_eq!(channel.check(400, SIGNER), Err(VoucherRefusal::Closing));
    }
    let mut failed = channel.clone();
    failed.resume(Some(&leaving));
    assert_eq!(failed.status, Status::Closing);
    failed.resume(Some(&found(500, 0)));
    assert_eq!((failed.status, failed.available()), (Status::Open, 200));
    let mut closed = found(500, 100);
    closed.is_final = true;
    channel.resume(Some(&closed));
    assert_eq!(channel.status, Status::Final);
}

#[test]
fn m05_the_payee_takes_no_more_than_it_has_to_when_a_payer_leaves() {
    let mut channel = Channel::new(B256::ZERO, &found(500, 0));
    for amount in [100, 200, 300, 400] {
        channel.accept(&voucher(amount));
    }
    assert_eq!(channel.last(), None, "nothing is owed");
    assert!(channel.hold(150));
    channel.spend(50);
    let amount = |last: Option<Voucher>| last.map(|last| last.amount.0);
    assert_eq!(amount(channel.last()), Some(200), "with what is held");
    channel.release(100);
    assert_eq!(amount(channel.last()), Some(100));
    assert_eq!(amount(channel.settleable(51)), None, "not earned in full");
    assert_eq!(amount(channel.settleable(50)), Some(100), "too much waits");
}

#[test]
fn m17_of_too_many_vouchers_those_that_are_needed_last_are_forgotten() {
    let mut channel = Channel::new(B256::ZERO, &found(1_000, 0));
    for amount in 1..=600 {
        channel.accept(&voucher(amount));
    }
    assert_eq!((channel.vouchers.len(), channel.accepted()), (256, 600));
    for spent in 1..=255 {
        assert!(channel.hold(1));
        channel.spend(1);
        let last = channel.last().expect("owed");
        assert_eq!(last.amount.0, spent, "exactly what was delivered");
    }
    assert!(channel.hold(1));
    channel.spend(1);
    assert_eq!(channel.last().expect("owed").amount.0, 600);
    let all = (1..=600).map(|amount| (amount, voucher(amount).signature));
    let restored = Channel::new(B256::ZERO, &found(1_000, 0)).restore(all);
    assert_eq!((restored.vouchers.len(), restored.accepted()), (256, 600));
}
