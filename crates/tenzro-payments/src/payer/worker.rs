//! The thread that has the books. Calls that come while it writes share the next commit.

use std::sync::mpsc::{self, Receiver, Sender};

use tokio::sync::oneshot;

use super::PayError;
use super::books::Books;
use super::store::StoreError;

/// Calls in one commit at most.
const BATCH: usize = 64;

/// Answers a call once the commit is done, or has failed.
type Reply = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

enum Message {
    Call(Box<dyn FnOnce(&mut Books) -> Reply + Send>),
    Stop(oneshot::Sender<()>),
}

/// A handle; cheap to clone. Callers wait for their answers, so the queue holds no more than there are
/// callers and ended requests.
#[derive(Debug, Clone)]
pub(super) struct Worker {
    queue: Sender<Message>,
}

impl Worker {
    /// Starts the thread; it ends with the last handle, or by [`Worker::stop`].
    pub(super) fn start(books: Books, clock: fn() -> u64) -> std::io::Result<Self> {
        let (queue, calls) = mpsc::channel();
        std::thread::Builder::new()
            .name("payer".to_owned())
            .spawn(move || run(books, &calls, clock))?;
        Ok(Self { queue })
    }

    /// Calls the books; what the call wrote is in the file when it returns.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Books) -> Result<T, PayError> + Send + 'static,
    ) -> Result<T, PayError> {
        let (send, receive) = oneshot::channel();
        self.send(call, move |outcome| {
            // Whoever asked may have left.
            let _ = send.send(outcome);
        });
        receive.await.map_err(|_| PayError::Stopped)?
    }

    /// Calls the books without waiting.
    pub(super) fn tell(
        &self,
        call: impl FnOnce(&mut Books) -> Result<(), PayError> + Send + 'static,
    ) {
        self.send(call, |outcome| match outcome {
            Ok(()) | Err(PayError::Ended) => {}
            Err(error) => tracing::error!(%error, "the payer's books miss an entry"),
        });
    }

    fn send<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Books) -> Result<T, PayError> + Send + 'static,
        answer: impl FnOnce(Result<T, PayError>) + Send + 'static,
    ) {
        let call = Message::Call(Box::new(move |books| {
            let outcome = whole(books, call);
            Box::new(move |committed| answer(committed.map_err(PayError::from).and(outcome)))
        }));
        // A thread that is gone drops the call, and with it the answer's sender.
        let _ = self.queue.send(call);
    }

    /// Ends the thread after all calls before this one; the file is closed then.
    pub(super) async fn stop(&self) {
        let (send, receive) = oneshot::channel();
        if self.queue.send(Message::Stop(send)).is_ok() {
            let _ = receive.await;
        }
    }
}

/// A call that fails leaves nothing in the file; the others of its batch are kept.
fn whole<T>(
    books: &mut Books,
    call: impl FnOnce(&mut Books) -> Result<T, PayError>,
) -> Result<T, PayError> {
    books.store.mark()?;
    let outcome = call(books);
    books.store.end_mark(outcome.is_ok())?;
    outcome
}

fn run(mut books: Books, calls: &Receiver<Message>, clock: fn() -> u64) {
    let mut stop = None;
    while stop.is_none()
        && let Ok(message) = calls.recv()
    {
        let mut next = Some(message);
        if let Err(error) = books.store.begin() {
            tracing::error!(%error, "the payer's books are closed");
            return;
        }
        let mut replies = Vec::new();
        while let Some(message) = next.take() {
            match message {
                Message::Call(call) => replies.push(call(&mut books)),
                Message::Stop(done) => {
                    stop = Some(done);
                    break;
                }
            }
            if replies.len() < BATCH {
                next = calls.try_recv().ok();
            }
        }
        let committed = books.store.commit();
        if let Err(error) = &committed {
            tracing::error!(%error, "the payer's books could not be written");
            let reloaded = books.store.roll_back().and_then(|()| books.load(clock()));
            if let Err(error) = reloaded {
                // What is in memory may differ from the file: nothing more is signed.
                tracing::error!(%error, "the payer's books cannot be read again");
                stop.get_or_insert_with(|| oneshot::channel().0);
            }
        }
        for reply in replies {
            reply(committed.clone());
        }
    }
    drop(books);
    if let Some(done) = stop {
        let _ = done.send(());
    }
}
