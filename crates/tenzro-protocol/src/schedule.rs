//! When a provider serves: a daily window in a time zone, on some days of the week.

use std::fmt;

use jiff::tz::TimeZone;
use jiff::{Timestamp, civil::Weekday};
use serde::{Deserialize, Serialize};

/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// All days of the week.
const EVERY_DAY: u8 = 0b111_1111;

const DAY_NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// A daily window. What comes from the ledger is somebody else's text: an unknown time zone is never
/// open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// IANA name, such as `Europe/Berlin`.
    pub timezone: String,
    /// Minutes after midnight, 0–1439.
    pub start_minute: u16,
    /// Minutes after midnight, 1–1440, not the start; before it means on the next day.
    pub end_minute: u16,
    /// Days on which the window begins. Bit 0 is Monday; at least one is set.
    pub days_mask: u8,
}

/// Why something is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Not in the IANA database.
    #[error("timezone: there is no time zone '{0}'; use an IANA name such as UTC or Europe/Berlin")]
    Timezone(String),
    /// Not a window.
    #[error(
        "hours: '{0}' is no window such as 9-17, 22:30-6 or 0-24 (always); hours go from 0 to 24"
    )]
    Hours(String),
    /// Not days.
    #[error("days: '{0}' are no days such as mon-fri or sat,sun")]
    Days(String),
}

impl Schedule {
    /// Reads what people type: an IANA zone, `A-B` with hours or `hours:minutes`, and days such as
    /// `mon-fri` or `sat,sun` (every day where none are given).
    pub fn parse(timezone: &str, hours: &str, days: Option<&str>) -> Result<Self, ScheduleError> {
        let window = || ScheduleError::Hours(shown(hours));
        let (start, end) = hours.split_once('-').ok_or_else(window)?;
        let start_minute = minute(start).ok_or_else(window)?;
        let end_minute = minute(end).ok_or_else(window)?;
        let days_mask = days.map_or(Ok(EVERY_DAY), parse_days)?;
        Self::new(timezone, start_minute, end_minute, days_mask)
    }

    /// Checks every part.
    pub fn new(
        timezone: &str,
        start_minute: u16,
        end_minute: u16,
        days_mask: u8,
    ) -> Result<Self, ScheduleError> {
        let is_window = start_minute < DAY && (1..=DAY).contains(&end_minute);
        if !is_window || start_minute == end_minute {
            let hours = format!("{}-{}", clock(start_minute), clock(end_minute));
            return Err(ScheduleError::Hours(hours));
        }
        if days_mask == 0 || days_mask > EVERY_DAY {
            return Err(ScheduleError::Days(days_mask.to_string()));
        }
        let zone = TimeZone::get(timezone).map_err(|_| ScheduleError::Timezone(shown(timezone)))?;
        Ok(Self {
            // The database knows names without case; write them as it does.
            timezone: zone.iana_name().unwrap_or(timezone).to_owned(),
            start_minute,
            end_minute,
            days_mask,
        })
    }

    /// Whether the provider serves at that moment.
    pub fn is_open(&self, at: Timestamp) -> bool {
        let Ok(zone) = TimeZone::get(&self.timezone) else {
            return false;
        };
        let local = zone.to_datetime(at);
        let now = i32::from(local.hour()) * 60 + i32::from(local.minute());
        let (start, end) = (i32::from(self.start_minute), i32::from(self.end_minute));
        if start < end {
            return self.begins_on(local.weekday()) && (start..end).contains(&now);
        }
        (now >= start && self.begins_on(local.weekday()))
            || (now < end && self.begins_on(local.weekday().previous()))
    }

    /// `00:00-24:00`.
    pub fn hours(&self) -> String {
        format!("{}-{}", clock(self.start_minute), clock(self.end_minute))
    }

    /// Names of the days, Monday first.
    pub fn days(&self) -> Vec<&'static str> {
        let names = DAY_NAMES.iter().enumerate();
        names
            .filter(|(day, _)| self.days_mask >> day & 1 == 1)
            .map(|(_, name)| *name)
            .collect()
    }

    fn begins_on(&self, day: Weekday) -> bool {
        self.days_mask >> day.to_monday_zero_offset() & 1 == 1
    }
}

/// `09:00-17:00 Europe/Berlin, mon tue wed thu fri`.
impl fmt::Display for Schedule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days = if self.days_mask == EVERY_DAY {
            "every day".to_owned()
        } else {
            self.days().join(" ")
        };
        write!(formatter, "{} {}, {days}", self.hours(), self.timezone)
    }
}

fn shown(text: &str) -> String {
    text.chars().take(60).collect()
}

fn clock(minutes: u16) -> String {
    format!("{:02}:{:02}", minutes / 60, minutes % 60)
}

/// `9`, `09:30` or `24` as minutes after midnight.
fn minute(text: &str) -> Option<u16> {
    let (hours, minutes) = text.trim().split_once(':').unwrap_or((text.trim(), "0"));
    let number = |text: &str| {
        let is_digits = (1..=2).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        is_digits.then(|| text.parse::<u16>().ok()).flatten()
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let total = hours * 60 + minutes;
    (minutes < 60 && total <= DAY).then_some(total)
}

fn parse_days(text: &str) -> Result<u8, ScheduleError> {
    let invalid = || ScheduleError::Days(shown(text));
    let day = |name: &str| {
        let name = name.trim().to_ascii_lowercase();
        let short = name
            .get(..3)
            .filter(|_| name.len() == 3 || name.ends_with("day"));
        DAY_NAMES
            .iter()
            .position(|known| Some(*known) == short)
            .ok_or_else(invalid)
    };
    let mut mask = 0;
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first)?, day(last)?);
        let length = (last + 7 - first) % 7;
        for step in 0..=length {
            mask |= 1 << ((first + step) % 7);
        }
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(schedule: &Schedule, at: &str) -> bool {
        schedule.is_open(at.parse().expect("a time"))
    }

    #[test]
    fn windows_and_days_are_read() {
        let always = Schedule::parse("utc", "0-24", None).expect("valid");
        assert_eq!(always.to_string(), "00:00-24:00 UTC, every day");
        let work = Schedule::parse("Europe/Berlin", "9-17:30", Some("mon-fri")).expect("valid");
        assert_eq!(
            work.to_string(),
            "09:00-17:30 Europe/Berlin, mon tue wed thu fri"
        );
        let weekend = Schedule::parse("UTC", "22-6", Some("Friday-mon")).expect("valid");
        assert_eq!(weekend.days(), ["mon", "fri", "sat", "sun"]);
        for hours in [
            "0-25", "25-3", "9", "9-9", "a-b", "9-17:60", "-3-4", "24-3", "9-0", "", "1-2-3",
        ] {
            let error = Schedule::parse("UTC", hours, None).expect_err(hours);
            assert!(matches!(error, ScheduleError::Hours(_)), "{hours}");
        }
        for zone in ["Mars/Olympus", "", "../etc/passwd"] {
            let error = Schedule::parse(zone, "0-24", None).expect_err(zone);
            assert!(matches!(error, ScheduleError::Timezone(_)), "{zone}");
        }
        for days in ["", "mo", "mon-", "funday", "mon,,tue"] {
            let error = Schedule::parse("UTC", "0-24", Some(days)).expect_err(days);
            assert!(matches!(error, ScheduleError::Days(_)), "{days}");
        }
    }

    #[test]
    fn windows_open_and_close_in_their_time_zone() {
        // Wednesday; Berlin is two hours ahead of UTC in summer.
        let work = Schedule::parse("Europe/Berlin", "9-17", Some("mon-fri")).expect("valid");
        assert!(open(&work, "2026-07-01T07:00:00Z"));
        assert!(!open(&work, "2026-07-01T06:59:59Z"));
        assert!(!open(&work, "2026-07-01T15:00:00Z"));
        assert!(!open(&work, "2026-07-04T10:00:00Z"), "Saturday");
        // The night that begins on Friday ends on Saturday.
        let nights = Schedule::parse("UTC", "22-6", Some("fri")).expect("valid");
        assert!(open(&nights, "2026-07-03T22:00:00Z"));
        assert!(open(&nights, "2026-07-04T05:59:00Z"));
        assert!(!open(&nights, "2026-07-04T06:00:00Z"));
        assert!(!open(&nights, "2026-07-03T05:00:00Z"), "Thursday's night");
        assert!(!open(&nights, "2026-07-04T22:00:00Z"));
        let unknown = Schedule {
            timezone: "Mars/Olympus".to_owned(),
            ..nights
        };
        assert!(!open(&unknown, "2026-07-03T22:00:00Z"));
    }
}
