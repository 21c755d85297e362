//! Amounts of TNZO: whole wei inside and on wires, exact decimals where people read and type them.

use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Decimals of TNZO: 1 TNZO = 10^18 wei.
pub const DECIMALS: usize = 18;

const WEI_PER_TNZO: u128 = 10u128.pow(DECIMALS as u32);

/// An amount in wei. On wires a decimal string; a JSON integer is understood too. 128 bits hold
/// 3.4 × 10^20 TNZO, many times the supply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wei(pub u128);

/// Why a text is no amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// Nothing was given.
    #[error("an amount is needed, such as 1000 or 0.0001")]
    Empty,
    /// Less than nothing.
    #[error("'{0}' is negative")]
    Negative(String),
    /// Not digits with at most one point.
    #[error("'{0}' is no decimal number such as 1000 or 0.0001")]
    NotANumber(String),
    /// Finer than a wei.
    #[error("'{0}' has more than 18 decimals, and 1 wei is the 18th")]
    TooFine(String),
    /// More than fits.
    #[error("'{0}' is more than there can be")]
    TooLarge(String),
}

impl Wei {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// Whole TNZO.
    pub const fn from_whole_tnzo(tnzo: u64) -> Self {
        Self(tnzo as u128 * WEI_PER_TNZO)
    }

    /// Reads TNZO as people type them: digits, with a point if wanted. No signs, exponents or
    /// separators, and nothing is rounded.
    pub fn parse_tnzo(text: &str) -> Result<Self, AmountError> {
        let shown = || text.chars().take(60).collect::<String>();
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Err(AmountError::Empty);
        }
        if trimmed.starts_with('-') {
            return Err(AmountError::Negative(shown()));
        }
        let (whole, fraction) = trimmed.split_once('.').unwrap_or((trimmed, ""));
        let is_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if !is_digits(whole) || !is_digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
            return Err(AmountError::NotANumber(shown()));
        }
        let fraction = fraction.trim_end_matches('0');
        if fraction.len() > DECIMALS {
            return Err(AmountError::TooFine(shown()));
        }
        let digits = format!("{whole}{fraction:0<DECIMALS$}");
        digits
            .parse()
            .map(Self)
            .map_err(|_| AmountError::TooLarge(shown()))
    }

    /// Reads wei: digits only.
    pub fn parse_wei(text: &str) -> Result<Self, AmountError> {
        let shown = || text.chars().take(60).collect::<String>();
        match text.bytes().next() {
            None => Err(AmountError::Empty),
            Some(b'-') => Err(AmountError::Negative(shown())),
            _ if !text.bytes().all(|byte| byte.is_ascii_digit()) => {
                Err(AmountError::NotANumber(shown()))
            }
            _ => text
                .parse()
                .map(Self)
                .map_err(|_| AmountError::TooLarge(shown())),
        }
    }

    /// TNZO as people read them: all digits that count, no more.
    pub fn tnzo(self) -> String {
        let (whole, fraction) = (self.0 / WEI_PER_TNZO, self.0 % WEI_PER_TNZO);
        let text = format!("{whole}.{fraction:0DECIMALS$}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

/// Wei in decimal digits.
impl fmt::Display for Wei {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl Serialize for Wei {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Wei {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WeiVisitor;
        impl Visitor<'_> for WeiVisitor {
            type Value = Wei;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an amount in wei: decimal digits in a string, or an integer")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Wei, E> {
                Wei::parse_wei(text).map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Wei, E> {
                Ok(Wei(number.into()))
            }
        }
        deserializer.deserialize_any(WeiVisitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn decimals_are_exact() {
        let cases = [
            ("1", 10u128.pow(18)),
            ("0.0001", 10u128.pow(14)),
            ("1000", 10u128.pow(21)),
            ("0.000000000000000001", 1),
            (".5", 5 * 10u128.pow(17)),
            ("5.", 5 * 10u128.pow(18)),
            ("0", 0),
            ("007.10", 71 * 10u128.pow(17)),
            ("1.0000000000000000000", 10u128.pow(18)),
        ];
        for (text, wei) in cases {
            assert_eq!(Wei::parse_tnzo(text), Ok(Wei(wei)), "{text}");
        }
        assert_eq!(Wei(71 * 10u128.pow(17)).tnzo(), "7.1");
        assert_eq!(Wei::ZERO.tnzo(), "0");
        assert_eq!(Wei(1).tnzo(), "0.000000000000000001");
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        let error = |text| Wei::parse_tnzo(text).expect_err(text);
        assert_eq!(error(" "), AmountError::Empty);
        assert!(matches!(error("-1"), AmountError::Negative(_)));
        for text in ["0.0001x", "1e3", "1,5", "0x10", "+1", "1 000", ".", "١"] {
            assert!(matches!(error(text), AmountError::NotANumber(_)), "{text}");
        }
        let fine = "0.0000000000000000001";
        assert!(matches!(error(fine), AmountError::TooFine(_)));
        let large = "9".repeat(30);
        assert!(matches!(error(&large), AmountError::TooLarge(_)));
    }

    #[test]
    fn wires_carry_wei_in_strings() {
        assert_eq!(serde_json::to_string(&Wei(5)).expect("plain"), "\"5\"");
        let read = |text: &str| serde_json::from_str::<Wei>(text);
        assert_eq!(read("\"5\"").expect("a string"), Wei(5));
        assert_eq!(read("5").expect("an integer"), Wei(5));
        for text in ["\"0x5\"", "\"5.0\"", "5.5", "-5", "\"\"", "null", "\"+5\""] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_amount_survives_being_shown(wei: u128) {
            prop_assert_eq!(Wei::parse_tnzo(&Wei(wei).tnzo()), Ok(Wei(wei)));
            prop_assert_eq!(Wei::parse_wei(&Wei(wei).to_string()), Ok(Wei(wei)));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = (Wei::parse_tnzo(&text), Wei::parse_wei(&text));
        }
    }
}
