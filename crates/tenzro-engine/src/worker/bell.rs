//! Wakes a worker that has nothing to compute: a client left, tokens were paid for, or it shall stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::task::Wake;

use super::Command;

/// At most one [`Command::Look`] is under way, however often it rings: the queue needs one place
/// for it.
#[derive(Debug)]
pub(crate) struct Bell {
    commands: SyncSender<Command>,
    is_rung: AtomicBool,
}

impl Bell {
    pub(crate) fn new(commands: SyncSender<Command>) -> Self {
        Self {
            commands,
            is_rung: AtomicBool::new(false),
        }
    }

    /// The worker will look at what was written before this call.
    pub(crate) fn ring(&self) {
        if !self.is_rung.swap(true, Ordering::AcqRel) {
            // Fails only when the worker has ended.
            let _ = self.commands.try_send(Command::Look);
        }
    }

    /// The worker took the command out of the queue and will look now. A swap and not a store: it
    /// also has to see what those wrote who found the bell rung.
    pub(super) fn quiet(&self) {
        self.is_rung.swap(false, Ordering::AcqRel);
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}
