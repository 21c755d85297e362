//! A consumer that leaves without its provider's help.

use super::market::{
    ChainOf, Market, STAKE, WEALTH, WINDOW, chat, cost, cost_of, pass_time, wait_until,
};

/// Tokens that "Tell me a story." can have at most: its bytes, its role's, and a template's.
const PROMPT_MOST: u128 = 16 + 4 + 16 + 256;

#[test]
fn m07_a_consumer_leaves_while_the_provider_is_down_and_both_get_what_is_theirs() {
    let market = Market::new(ChainOf::Consumer);
    let serving = market.serve(0);
    let streamed = market
        .ask("v1/chat/completions", &chat(70, true))
        .streamed();
    let total = cost_of(&streamed.usage) + market.buy();
    market.kill(&serving);
    let channel = market.payee_channel();
    assert_eq!((channel.spent, channel.settled), (total, 0));
    // What is paid ahead is all that a provider could take beyond what it delivered.
    assert!(
        channel.accepted - total <= cost(PROMPT_MOST, WINDOW),
        "m08: {channel:?}"
    );

    let leave = async |operations: tenzro_ledger::Operations<'_>| {
        operations.request_channel_close(channel.id).await
    };
    market.as_payer(leave).expect("asked");
    let withdraw = async |operations: tenzro_ledger::Operations<'_>| {
        operations.withdraw_channel(channel.id).await
    };
    market.as_payer(withdraw).expect_err("m09: too early");
    assert_eq!(
        market.balances(),
        (WEALTH - channel.deposit, WEALTH - STAKE, channel.deposit)
    );

    // The provider comes back within the grace period, and settles at once.
    market.serve(serving.port);
    let earned = WEALTH - STAKE + channel.accepted;
    wait_until("the settlement", || {
        market.balance(market.payee.address()) > WEALTH - STAKE
    });
    let rest = channel.deposit - channel.accepted;
    assert_eq!(market.balances(), (WEALTH - channel.deposit, earned, rest));
    market.as_payer(withdraw).expect_err("m09: still too early");

    let rules = market
        .runtime
        .block_on(market.ledger.channel_rules())
        .expect("rules");
    pass_time(&market, rules.close_grace_seconds);
    market.as_payer(withdraw).expect("its money");
    assert_eq!(market.balances(), (WEALTH - channel.accepted, earned, 0));
    market.as_payer(withdraw).expect_err("m09: twice");
    market.assert_conserved();
}
