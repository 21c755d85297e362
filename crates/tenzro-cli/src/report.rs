//! Errors as the user sees them: what happened, why, what to do next.

use std::fmt;
use std::process::ExitCode;

use crate::output::{Output, eprint_line};

/// An error with a next step.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// Something that the user can fix.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
        }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn maybe_hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Marks an error as ours: exit code 3.
#[derive(Debug)]
pub(crate) struct OurFault;

impl fmt::Display for OurFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("this is a fault of tenzro-cli")
    }
}

/// Prints an error and returns the exit code: 1 where the user can fix it, 3 where it is our fault
/// (2 is for wrong usage, which the argument parser reports).
pub(crate) fn print(error: &anyhow::Error, output: &Output) -> ExitCode {
    let hint = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Failure>()?.hint.clone());
    if output.json {
        let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
        let body = serde_json::json!({
            "error": {"message": error.to_string(), "causes": causes, "hint": hint},
        });
        output.json(&body);
    } else {
        eprint_line(&format!("{} {error}", output.bold("error:")));
        for cause in error.chain().skip(1) {
            eprint_line(&format!("  caused by: {cause}"));
        }
        if let Some(hint) = hint {
            eprint_line(&format!("{} {hint}", output.dim("hint:")));
        }
    }
    if error.downcast_ref::<OurFault>().is_some() {
        ExitCode::from(3)
    } else {
        ExitCode::from(1)
    }
}
