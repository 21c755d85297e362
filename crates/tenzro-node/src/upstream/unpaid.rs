//! Why a request was not paid for, in words for its client.

use tenzro_payments::payer::PayError;
use tenzro_payments::payer::budget::{Bound, DepositRefused};
use tenzro_protocol::amount::Wei;
use tenzro_protocol::inference::GenerateError;

/// Why a provider was not paid: the wallet or its owner's limits, the ledger, or the provider itself.
pub(super) fn not_paid(error: &PayError) -> GenerateError {
    let payment = |code, message| GenerateError::Payment { code, message };
    let tnzo = |wei: u128| Wei(wei).tnzo();
    match error {
        PayError::Budget { period, left } => payment(
            "spending_limit",
            format!(
                "the spending limit of the {period} is reached: {} TNZO are left; the setting is \
                 payments.max_per_{period}",
                tnzo(*left)
            ),
        ),
        PayError::Deposit(DepositRefused::Limit { needed, left }) => payment(
            "spending_limit",
            format!(
                "{} TNZO are needed in the channel, but only {} more may be put in; the setting is \
                 payments.max_deposit",
                tnzo(*needed),
                tnzo(*left)
            ),
        ),
        PayError::Deposit(DepositRefused::Funds { needed, balance }) => payment(
            "insufficient_funds",
            format!(
                "{} TNZO are missing in the wallet: {} are needed in the channel to the provider, but \
                 the wallet has {}",
                tnzo(needed.saturating_sub(*balance)),
                tnzo(*needed),
                tnzo(*balance)
            ),
        ),
        PayError::Deposit(DepositRefused::Small {
            offered,
            suggested,
            bound: bound @ (Bound::Channel | Bound::Budget | Bound::Funds),
        }) => {
            let (code, why) = match bound {
                Bound::Channel => (
                    "spending_limit",
                    "more is not allowed; the setting is payments.max_deposit",
                ),
                Bound::Budget => (
                    "spending_limit",
                    "the spending limits leave no more; the settings are payments.max_per_hour and \
                     payments.max_per_day",
                ),
                _ => ("insufficient_funds", "the wallet has no more"),
            };
            payment(
                code,
                format!(
                    "the provider takes no deposit of {} TNZO, and suggests {}: {why}",
                    tnzo(*offered),
                    tnzo(*suggested)
                ),
            )
        }
        PayError::DepositPending | PayError::Ledger(_) | PayError::Stopped => {
            GenerateError::Unavailable {
                message: error.to_string(),
            }
        }
        _ => GenerateError::Upstream {
            status: Some(402),
            message: error.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use tenzro_payments::payer::budget::Period;

    use super::*;

    #[test]
    fn what_is_missing_is_said_in_tnzo_with_the_setting_that_limits_it() {
        let tnzo = 10u128.pow(18);
        let funds = PayError::Deposit(DepositRefused::Funds {
            needed: 3 * tnzo,
            balance: tnzo / 2,
        });
        let limit = PayError::Deposit(DepositRefused::Limit {
            needed: tnzo,
            left: 0,
        });
        let budget = PayError::Budget {
            period: Period::Hour,
            left: tnzo / 4,
        };
        let small = PayError::Deposit(DepositRefused::Small {
            offered: tnzo / 10,
            suggested: 2 * tnzo,
            bound: Bound::Channel,
        });
        let cases = [
            (
                small,
                "the provider takes no deposit of 0.1 TNZO, and suggests 2: more is not allowed; the \
                 setting is payments.max_deposit",
            ),
            (
                funds,
                "2.5 TNZO are missing in the wallet: 3 are needed in the channel to the provider, but the \
                 wallet has 0.5",
            ),
            (
                limit,
                "1 TNZO are needed in the channel, but only 0 more may be put in; the setting is \
                 payments.max_deposit",
            ),
            (
                budget,
                "the spending limit of the hour is reached: 0.25 TNZO are left; the setting is \
                 payments.max_per_hour",
            ),
        ];
        for (error, text) in cases {
            assert_eq!(not_paid(&error).to_string(), text);
        }
        let provider = not_paid(&PayError::NoDeposits);
        assert!(matches!(provider, GenerateError::Upstream { .. }));
    }
}
