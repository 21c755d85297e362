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
    Settle,
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
        2 => Just(Step::Settle),
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
                    let checked = channel.check(amount, SIGNER, 1);
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
                Step::Settle => {
                    if let Some(due) = channel.settleable() {
                        prop_assert!(taken.contains(&due.amount.0), "made up");
                        prop_assert!(due.amount.0 > ledger.settled);
                        prop_assert!(due.amount.0 <= ledger.deposit);
                        prop_assert!(ledger.is_closing || due.amount.0 <= spent, "only what is earned");
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
        assert_eq!(
            channel.check(amount, stranger, 1),
            Err(VoucherRefusal::Signer)
        );
    }
    assert_eq!(channel.check(100, SIGNER, 1), Ok(false));
    assert_eq!(channel.check(99, SIGNER, 1), Ok(false));
    assert_eq!(
        channel.check(104, SIGNER, 5),
        Err(VoucherRefusal::DeltaTooSmall { minimum: 5 })
    );
    assert_eq!(
        channel.check(501, SIGNER, 1),
        Err(VoucherRefusal::AboveDeposit { deposit: 500 })
    );
}

#[test]
fn m06_nobody_signs_as_nobody() {
    let mut nobody = found(500, 0);
    nobody.signer = Address::ZERO;
    let channel = Channel::new(B256::ZERO, &nobody);
    assert_eq!(
        channel.check(1, Address::ZERO, 1),
        Err(VoucherRefusal::Signer)
    );
}

#[test]
fn m11_a_deposit_that_a_reorganisation_took_back_pays_for_nothing_more() {
    let mut channel = Channel::new(B256::ZERO, &found(500, 0));
    channel.accept(&voucher(300));
    assert!(channel.hold(100));
    channel.spend(60);
    channel.sync(None);
    assert_eq!((channel.available(), channel.status), (0, Status::Final));
    assert_eq!(channel.settleable(), None);
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
