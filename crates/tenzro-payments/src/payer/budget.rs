//! How much may be spent and locked up: limits over rolling windows, as functions of what was spent.

use std::fmt;

/// Seconds of the rolling windows.
const HOUR: u64 = 3_600;
pub(super) const DAY: u64 = 24 * HOUR;

/// What the owner of the wallet allows. None is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Wei spent in any hour.
    pub hour: Option<u128>,
    /// Wei spent in any 24 hours.
    pub day: Option<u128>,
    /// Wei of one channel that are not due yet.
    pub deposit: Option<u128>,
}

/// Wei that were spent at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spend {
    /// Unix seconds.
    pub at: u64,
    /// Wei.
    pub amount: u128,
}

/// Which limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// Of any hour.
    Hour,
    /// Of any 24 hours.
    Day,
}

impl fmt::Display for Period {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Hour => "hour",
            Self::Day => "day",
        })
    }
}

/// Wei that may still be spent at `now`, and the limit that says so; none where there is no limit.
/// `reserved` is what is signed and not spent: it can be taken at any time.
pub fn left<'a>(
    limits: &Limits,
    spends: impl IntoIterator<Item = &'a Spend> + Clone,
    reserved: u128,
    now: u64,
) -> Option<(u128, Period)> {
    let windows = [
        (limits.hour, HOUR, Period::Hour),
        (limits.day, DAY, Period::Day),
    ];
    let lefts = windows.into_iter().filter_map(|(limit, seconds, period)| {
        // A clock that went back makes spends of the future, which count as those of now.
        let recent = spends
            .clone()
            .into_iter()
            .filter(|spend| spend.at.saturating_add(seconds) > now);
        let spent = recent.fold(reserved, |sum, spend| sum.saturating_add(spend.amount));
        Some((limit?.saturating_sub(spent), period))
    });
    lefts.min_by_key(|(left, _)| *left)
}

/// Whether any window reaches it.
pub fn counts(spend: &Spend, now: u64) -> bool {
    spend.at.saturating_add(DAY) > now
}

/// What a deposit is decided by, all in wei.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DepositRequest {
    /// Without that much it is of no use.
    pub needed: u128,
    /// What the payee would like to see.
    pub suggested: u128,
    /// What of the channel's money is not due yet.
    pub idle: u128,
    /// What may still be spent; none is no limit.
    pub budget: Option<u128>,
    /// In the wallet.
    pub balance: u128,
}

/// Why nothing is deposited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DepositRefused {
    /// The limit of a channel.
    #[error("{needed} wei are needed in the channel, but only {left} more may be put in")]
    Limit {
        /// Wei.
        needed: u128,
        /// Wei.
        left: u128,
    },
    /// The wallet.
    #[error("{needed} wei are needed in the channel, but the wallet holds {balance} wei")]
    Funds {
        /// Wei.
        needed: u128,
        /// Wei.
        balance: u128,
    },
    /// The payee.
    #[error(
        "the provider takes no deposit as small as {offered} wei, which is what {bound}; it suggests \
         {suggested}"
    )]
    Small {
        /// Wei.
        offered: u128,
        /// Wei.
        suggested: u128,
        /// Why it is not more.
        bound: Bound,
    },
}

/// What keeps a deposit below what the payee suggests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The limit of a channel.
    Channel,
    /// A limit for a time.
    Budget,
    /// The wallet.
    Funds,
    /// Nothing: it is what the payee suggests.
    Payee,
}

impl fmt::Display for Bound {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Channel => "the limit of a channel allows",
            Self::Budget => "the spending limits leave",
            Self::Funds => "the wallet holds",
            Self::Payee => "it suggests",
        })
    }
}

/// Why a deposit of `offered` wei, which the payee refused, is not higher.
pub fn too_small(limits: &Limits, request: &DepositRequest, offered: u128) -> DepositRefused {
    let left = limits
        .deposit
        .map(|limit| limit.saturating_sub(request.idle));
    let bound = if offered >= request.suggested {
        Bound::Payee
    } else if left == Some(offered) {
        Bound::Channel
    } else if offered == request.balance {
        Bound::Funds
    } else {
        Bound::Budget
    };
    DepositRefused::Small {
        offered,
        suggested: request.suggested,
        bound,
    }
}

/// Wei to deposit: what is needed or suggested, as far as the limits and the wallet allow.
pub fn deposit(limits: &Limits, request: &DepositRequest) -> Result<u128, DepositRefused> {
    let DepositRequest {
        needed, balance, ..
    } = *request;
    let limit = limits
        .deposit
        .map(|limit| limit.saturating_sub(request.idle));
    let left = limit.unwrap_or(u128::MAX);
    if needed > left {
        return Err(DepositRefused::Limit { needed, left });
    }
    if needed > balance {
        return Err(DepositRefused::Funds { needed, balance });
    }
    // Whoever may spend a little today needs no more locked up, but what is needed was allowed already.
    let wanted = needed.max(request.suggested.min(request.budget.unwrap_or(u128::MAX)));
    Ok(wanted.min(left).min(balance))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        hour: Some(100),
        day: Some(250),
        deposit: Some(1_000),
    };

    #[test]
    fn spends_leave_the_windows_as_time_passes() {
        let spend = |at, amount| Spend { at, amount };
        let spends = [spend(1_000, 90), spend(5_000, 60), spend(90_000, 5)];
        assert_eq!(
            left(&LIMITS, &spends[..2], 0, 5_000),
            Some((40, Period::Hour))
        );
        assert_eq!(
            left(&LIMITS, &spends[..2], 45, 5_000),
            Some((0, Period::Hour))
        );
        assert_eq!(
            left(&LIMITS, &spends[..2], 0, 8_599),
            Some((40, Period::Hour))
        );
        assert_eq!(
            left(&LIMITS, &spends[..2], 0, 8_600),
            Some((100, Period::Hour))
        );
        assert_eq!(left(&LIMITS, &spends, 0, 90_000), Some((95, Period::Hour)));
        assert_eq!(left(&Limits::default(), &spends, 0, 90_000), None);
        assert!(!counts(&spends[0], 90_000) && counts(&spends[1], 90_000));
    }

    #[test]
    fn deposits_keep_to_the_limits_and_the_wallet() {
        let request = DepositRequest {
            needed: 100,
            suggested: 600,
            idle: 0,
            budget: None,
            balance: 5_000,
        };
        let of = |request: DepositRequest| deposit(&LIMITS, &request);
        assert_eq!(of(request), Ok(600));
        assert_eq!(
            of(DepositRequest {
                idle: 500,
                ..request
            }),
            Ok(500)
        );
        assert_eq!(
            of(DepositRequest {
                balance: 200,
                ..request
            }),
            Ok(200)
        );
        assert_eq!(
            of(DepositRequest {
                budget: Some(150),
                ..request
            }),
            Ok(150)
        );
        assert_eq!(
            of(DepositRequest {
                needed: 800,
                ..request
            }),
            Ok(800)
        );
        let (needed, left) = (100, 50);
        let full = DepositRequest {
            idle: 950,
            ..request
        };
        assert_eq!(of(full), Err(DepositRefused::Limit { needed, left }));
        let balance = 99;
        let poor = DepositRequest { balance, ..request };
        assert_eq!(of(poor), Err(DepositRefused::Funds { needed, balance }));
    }

    proptest! {
        #[test]
        fn m32_what_is_left_and_spent_never_exceeds_a_limit(
            hour: u128, day: u128, reserved: u128, now: u64,
            spends in proptest::collection::vec((any::<u64>(), any::<u128>()), 0..8),
        ) {
            let limits = Limits { hour: Some(hour), day: Some(day), deposit: None };
            let spends: Vec<_> = spends.iter().map(|&(at, amount)| Spend { at, amount }).collect();
            let (left, _) = left(&limits, &spends, reserved, now).expect("limited");
            prop_assert!(left <= hour.min(day));
            if left > 0 {
                prop_assert!(reserved <= hour.min(day) - left);
            }
        }

        #[test]
        fn m32_a_deposit_is_what_is_needed_or_more_and_never_too_much(
            needed: u128, suggested: u128, idle: u128, budget: Option<u128>, balance: u128, limit: u128,
        ) {
            let limits = Limits { deposit: Some(limit), ..Limits::default() };
            let request = DepositRequest { needed, suggested, idle, budget, balance };
            if let Ok(amount) = deposit(&limits, &request) {
                prop_assert!(amount >= needed && amount <= balance && amount <= limit - idle);
                prop_assert!(amount <= needed.max(budget.unwrap_or(u128::MAX)));
            }
        }
    }
}
