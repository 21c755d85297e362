//! Turns token bytes into text that may be shown: whole UTF-8 characters, and nothing that might
//! turn out to be the beginning of a stop string.

/// What became ready after a token.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ready {
    /// To be shown now; may be empty.
    pub(crate) text: String,
    /// A stop string was completed; nothing may follow.
    pub(crate) stopped: bool,
}

/// The part of an answer that is not shown yet.
#[derive(Debug)]
pub(crate) struct AnswerText {
    /// Bytes that are not a whole character yet; at most 3.
    incomplete: Vec<u8>,
    /// Text that may be the beginning of a stop string.
    held: String,
    stop: Vec<String>,
}

impl AnswerText {
    /// No stop string is empty.
    pub(crate) fn new(stop: Vec<String>) -> Self {
        Self {
            incomplete: Vec::new(),
            held: String::new(),
            stop,
        }
    }

    /// Adds the bytes of a token. Bytes that can never become UTF-8 are shown as U+FFFD.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Ready {
        self.incomplete.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut self.incomplete);
        let mut rest = &bytes[..];
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.held.push_str(text);
                    break;
                }
                Err(error) => {
                    let (valid, invalid) = rest.split_at(error.valid_up_to());
                    self.held.push_str(&String::from_utf8_lossy(valid));
                    match error.error_len() {
                        Some(length) => {
                            self.held.push(char::REPLACEMENT_CHARACTER);
                            rest = &invalid[length..];
                        }
                        None => {
                            self.incomplete = invalid.to_vec();
                            break;
                        }
                    }
                }
            }
        }
        self.release()
    }

    /// The answer is over: all that was held back.
    pub(crate) fn finish(mut self) -> String {
        if !self.incomplete.is_empty() {
            self.held.push(char::REPLACEMENT_CHARACTER);
        }
        self.held
    }

    fn release(&mut self) -> Ready {
        let first_stop = self
            .stop
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()))
            .min();
        if let Some(at) = first_stop {
            self.held.truncate(at);
            return Ready {
                text: std::mem::take(&mut self.held),
                stopped: true,
            };
        }
        let hold_from = self.hold_from();
        let held = self.held.split_off(hold_from);
        Ready {
            text: std::mem::replace(&mut self.held, held),
            stopped: false,
        }
    }

    /// Where the longest tail begins that some stop string begins with.
    fn hold_from(&self) -> usize {
        let longest = self.stop.iter().map(String::len).max().unwrap_or(0);
        let earliest = self.held.len().saturating_sub(longest.saturating_sub(1));
        (earliest..self.held.len())
            .filter(|&at| self.held.is_char_boundary(at))
            .find(|&at| {
                self.stop
                    .iter()
                    .any(|stop| stop.starts_with(&self.held[at..]))
            })
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Shows `answer` cut into pieces and returns what was visible, and whether it was stopped.
    fn show(answer: &[u8], cuts: &[usize], stop: &[&str]) -> (String, bool) {
        let mut text = AnswerText::new(stop.iter().map(|&stop| stop.to_owned()).collect());
        let mut shown = String::new();
        let mut start = 0;
        let mut borders: Vec<usize> = cuts.iter().map(|cut| cut % (answer.len() + 1)).collect();
        borders.push(answer.len());
        borders.sort_unstable();
        for border in borders {
            let ready = text.push(&answer[start..border]);
            shown.push_str(&ready.text);
            start = border;
            if ready.stopped {
                return (shown, true);
            }
        }
        shown.push_str(&text.finish());
        (shown, false)
    }

    #[test]
    fn a_character_split_over_tokens_is_shown_once_whole() {
        let mut text = AnswerText::new(Vec::new());
        assert_eq!(text.push(&"é".as_bytes()[..1]).text, "");
        assert_eq!(text.push(&"é".as_bytes()[1..]).text, "é");
        assert_eq!(text.push(b"\xff!").text, "\u{fffd}!");
        assert_eq!(text.push(b"\xe2\x82").text, "");
        assert_eq!(text.finish(), "\u{fffd}");
    }

    #[test]
    fn a_possible_stop_is_held_back_and_released_when_it_was_none() {
        let mut text = AnswerText::new(vec!["\nUser:".to_owned()]);
        assert_eq!(text.push(b"Hi\nUs").text, "Hi");
        assert_eq!(text.push(b"ual").text, "\nUsual");
        let ready = text.push(b"\nUser: x");
        assert_eq!((ready.text.as_str(), ready.stopped), ("", true));
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_cut_never_matters(
            answer in "[abé€🙂]{0,24}",
            cuts in prop::collection::vec(any::<usize>(), 0..12),
            stop in prop::collection::vec("[abé]{1,4}", 0..3),
        ) {
            let stop: Vec<&str> = stop.iter().map(String::as_str).collect();
            let first = stop.iter().filter_map(|stop| answer.find(stop)).min();
            let (shown, stopped) = show(answer.as_bytes(), &cuts, &stop);
            prop_assert_eq!(stopped, first.is_some());
            // A stop string that is complete before a longer one that began earlier ends the answer
            // at its own beginning, so what is shown never goes past the first possible place.
            match first {
                None => prop_assert_eq!(shown, answer),
                Some(_) => {
                    prop_assert!(answer.starts_with(&shown));
                    let at = shown.len();
                    prop_assert!(stop.iter().any(|stop| answer[at..].starts_with(stop)));
                    prop_assert!(!stop.iter().any(|stop| shown.contains(stop)));
                }
            }
        }
    }
}
