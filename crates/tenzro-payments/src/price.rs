//! What tokens cost: whole wei, checked.

use serde::{Deserialize, Serialize};
use tenzro_protocol::amount::Wei;

/// Output tokens that a payer pays ahead at most, where the provider does not say otherwise.
/// Source: design, payments.
pub const WINDOW_TOKENS: u32 = 32;

/// The prices of one request, locked by the challenge that they came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pricing {
    /// Wei for a token of the prompt.
    pub input_per_token: Wei,
    /// Wei for a token of the answer.
    pub output_per_token: Wei,
    /// Which of the provider's prices on the ledger this is.
    pub price_version: u64,
    /// Output tokens that are paid ahead.
    pub window_tokens: u32,
}

/// Tokens of one request, or of a part of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tokens {
    /// Of the prompt.
    pub input: u32,
    /// Of the answers.
    pub output: u32,
}

impl Pricing {
    /// input × input price + output × output price; `None` above 2^128 - 1 wei.
    pub fn cost(&self, tokens: Tokens) -> Option<u128> {
        let input = u128::from(tokens.input).checked_mul(self.input_per_token.0)?;
        let output = u128::from(tokens.output).checked_mul(self.output_per_token.0)?;
        input.checked_add(output)
    }

    /// Output tokens that an amount pays for.
    pub fn output_tokens(&self, amount: u128) -> u64 {
        let tokens = amount.checked_div(self.output_per_token.0);
        tokens.map_or(u64::MAX, |tokens| u64::try_from(tokens).unwrap_or(u64::MAX))
    }
}

impl Tokens {
    /// Only tokens of an answer.
    pub fn output(output: u32) -> Self {
        Self { input: 0, output }
    }
}

#[cfg(test)]
mod tests {
    use alloy::primitives::U256;
    use proptest::prelude::*;

    use super::*;

    fn pricing(input: u128, output: u128) -> Pricing {
        Pricing {
            input_per_token: Wei(input),
            output_per_token: Wei(output),
            price_version: 1,
            window_tokens: WINDOW_TOKENS,
        }
    }

    proptest! {
        #[test]
        fn m32_costs_equal_those_of_wide_integers_or_are_refused(
            input_price: u128, output_price: u128, input: u32, output: u32,
        ) {
            let wide = U256::from(input_price) * U256::from(input)
                + U256::from(output_price) * U256::from(output);
            let cost = pricing(input_price, output_price).cost(Tokens { input, output });
            prop_assert_eq!(cost, u128::try_from(wide).ok());
        }

        #[test]
        fn an_amount_pays_for_as_many_tokens_as_it_covers(price in 1u128.., amount: u128) {
            let tokens = pricing(0, price).output_tokens(amount);
            let wide = |tokens: u64| U256::from(tokens) * U256::from(price);
            prop_assert!(wide(tokens) <= U256::from(amount));
            prop_assert!(tokens == u64::MAX || wide(tokens + 1) > U256::from(amount));
        }
    }

    #[test]
    fn what_is_free_is_never_used_up() {
        assert_eq!(pricing(0, 0).output_tokens(0), u64::MAX);
    }
}
