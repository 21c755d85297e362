//! A consumer that leaves without its provider's help.

use serde_json::json;

use super::market::{
    ChainOf, Market, STAKE, WEALTH, WINDOW, chat, cost, cost_of, pass_time, wait_until,
};

/// Seconds before the end of the grace period at which the provider comes back.
const LATE: u64 = 120;

/// Tokens that "Tell me a story." can have at most: its bytes, its role's, and a template's.
const PROMPT_MOST: u128 = 16 + 4 + 16 + 512;

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

    // The consumer needs nobody: its own node's wallet asks on the ledger.
    let id = channel.id.to_string();
    let leave = || market.consumer.json(&["channel", "close", &id, "--force"]);
    assert_eq!(leave()["status"], "closing");
    assert_eq!(leave()["refunded"], json!(null), "m09: too early");
    assert_eq!(
        market.balances(),
        (WEALTH - channel.deposit, WEALTH - STAKE, channel.deposit)
    );

    // The provider comes back late in the grace period, and settles at once.
    let rules = market
        .runtime
        .block_on(market.ledger.channel_rules())
        .expect("rules");
    pass_time(&market, rules.close_grace_seconds - LATE);
    market.serve(serving.port);
    wait_until("the settlement", || {
        market.balance(market.payee.address()) > WEALTH - STAKE
    });
    let taken = market.balance(market.payee.address()) - (WEALTH - STAKE);
    assert!(
        (total..=channel.accepted).contains(&taken),
        "{taken} of {channel:?}"
    );
    let rest = channel.deposit - taken;
    assert_eq!(
        market.balances(),
        (WEALTH - channel.deposit, WEALTH - STAKE + taken, rest)
    );
    assert_eq!(leave()["refunded"], json!(null), "m09: still too early");

    pass_time(&market, LATE);
    let left = leave();
    assert_eq!(
        (&left["status"], &left["refunded"]),
        (&json!("closed"), &json!(rest.to_string()))
    );
    assert_eq!(
        market.balances(),
        (WEALTH - taken, WEALTH - STAKE + taken, 0)
    );
    assert_eq!(leave()["transaction_hash"], json!(null), "m09: twice");
    market.assert_conserved();
}
