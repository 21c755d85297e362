//! The process dies after each of its writes, and whatever it wrote is all that the next one has.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use tenzro_payments::payer::audit::PromptTokens;
use tenzro_payments::payer::budget::Limits;
use tenzro_payments::payer::{Channel, PaidRequest, Payer};

use super::ledger::Ledger;
use super::losses::crash;
use super::payee::{Payee, WINDOW, cost};
use super::{agree, chat, open, order, start, update};

const PROMPT: u32 = 20;
const WEALTH: u128 = 1_000_000;

/// A wallet, a payee, and how many moments have passed at which the process could have died.
struct Life {
    home: TempDir,
    ledger: Arc<Ledger>,
    payee: Payee,
    payer: Payer,
    moments: usize,
    /// When it dies; never where it is to live on.
    dies_at: Option<usize>,
    /// The file as it was at each moment.
    copies: Vec<PathBuf>,
}

/// The process is dead.
struct Dead;

impl Life {
    fn new(dies_at: Option<usize>) -> Self {
        let home = tempfile::tempdir().expect("a folder");
        let ledger = Arc::new(Ledger::new(WEALTH));
        Self {
            payer: open(&home.path().join("first.db"), &ledger, Limits::default()),
            // A deposit lasts for two requests.
            payee: Payee::new(&ledger, 2 * cost(PROMPT, WINDOW)),
            home,
            ledger,
            moments: 0,
            dies_at,
            copies: Vec::new(),
        }
    }

    /// Something was written, or has reached the payee.
    fn moment(&mut self) -> Result<(), Dead> {
        let copy = self.home.path().join(format!("{}.db", self.moments));
        crash(&self.home.path().join("first.db"), &copy);
        self.copies.push(copy);
        self.moments += 1;
        match self.dies_at {
            Some(moment) if moment < self.moments => Err(Dead),
            _ => Ok(()),
        }
    }

    /// Begins a request whose prompt the payee counts higher at first than the payer.
    async fn begin(&mut self, stream: u32) -> Result<PaidRequest, Dead> {
        let prompt = PromptTokens {
            likely: PROMPT / 2,
            most: PROMPT,
        };
        let prepared = self
            .payer
            .prepare(self.payee.terms(), order(prompt, None))
            .await;
        let (request, mut credential) = prepared.expect("signed");
        loop {
            self.moment()?;
            self.payee.take(&credential, chat());
            self.moment()?;
            let Err(problem) = self.payee.begin(request.channel(), stream, PROMPT) else {
                break;
            };
            drop(credential);
            let paid = request.retry(self.payee.terms(), &problem).await;
            credential = paid.expect("signed");
        }
        credential.accepted().await.expect("written");
        self.moment()?;
        Ok(request)
    }

    /// A stream of so many tokens, each demand answered.
    async fn deliver(
        &mut self,
        request: &PaidRequest,
        stream: u32,
        tokens: u32,
    ) -> Result<u32, Dead> {
        let (id, mut sent) = (request.channel(), 0);
        loop {
            let part = self.payee.deliver(id, stream, PROMPT, tokens - sent);
            request.on_text(&"x".repeat(part as usize));
            sent += part;
            if sent == tokens {
                return Ok(sent);
            }
            let need = self.payee.need(id, stream, PROMPT);
            let answer = request.on_need_voucher(&need, update()).await;
            let credential = answer.expect("decided").credential.expect("due");
            self.moment()?;
            self.payee.take(&credential, update());
            self.moment()?;
            credential.accepted().await.expect("written");
            self.moment()?;
        }
    }

    async fn finish(
        &mut self,
        request: &PaidRequest,
        stream: u32,
        output: u32,
    ) -> Result<(), Dead> {
        agree(&mut self.payee, request, stream, (PROMPT, output)).await;
        self.moment()
    }

    /// An answer, one that breaks off, one that is refused, and another answer.
    async fn live(&mut self) -> Result<(), Dead> {
        let request = self.begin(1).await?;
        let sent = self.deliver(&request, 1, 3 * WINDOW).await?;
        self.finish(&request, 1, sent).await?;
        let lost = self.begin(2).await?;
        self.deliver(&lost, 2, 5).await?;
        self.payee.end(lost.channel(), 2);
        drop(lost);
        // Written once the next call has its answer.
        self.payer.channels().await.expect("read");
        self.moment()?;
        let refused = self.begin(3).await?;
        self.payee.end(refused.channel(), 3);
        refused.not_served().await.expect("written");
        self.moment()?;
        let request = self.begin(4).await?;
        let sent = self.deliver(&request, 4, WINDOW + 1).await?;
        self.finish(&request, 4, sent).await
    }

    /// The next process, with that file, buys on: both sides agree in the end, and nothing was deposited twice.
    async fn go_on(&mut self, copy: &Path) {
        for books in self.payee.books.values_mut() {
            let streams = std::mem::take(&mut books.streams);
            books.spent += streams.values().map(|(charged, _)| charged).sum::<u128>();
        }
        let payer = open(copy, &self.ledger, Limits::default());
        payer.recover().await.expect("compared");
        let counted = (PromptTokens::counted(PROMPT), PROMPT);
        let bought = start(&payer, &mut self.payee, 9, counted).await;
        let request = bought.expect("an honest payee is paid on");
        let id = request.channel();
        let output = self.payee.deliver(id, 9, PROMPT, 3);
        request.on_text("abc");
        agree(&mut self.payee, &request, 9, (PROMPT, output)).await;
        let channels = payer.channels().await.expect("read");
        let [
            Channel {
                deposit,
                signed,
                due,
                doubt,
                ..
            },
        ] = channels[..]
        else {
            panic!("{channels:?}")
        };
        let books = &self.payee.books[&id];
        assert_eq!((signed, due, doubt), (books.amount(), books.charged(), 0));
        assert_eq!(self.ledger.ids(), [id], "one channel was opened");
        assert_eq!(WEALTH - self.ledger.balance_now(), deposit);
        drop(request);
        payer.shutdown().await;
    }
}

#[tokio::test]
async fn m12_after_a_crash_at_any_write_the_payer_goes_on_where_it_was() {
    let mut whole = Life::new(None);
    assert!(whole.live().await.is_ok());
    assert!(whole.moments > 20, "{}", whole.moments);
    for moment in 0..whole.moments {
        let mut life = Life::new(Some(moment));
        assert!(life.live().await.is_err());
        let copy = life.copies[moment].clone();
        life.go_on(&copy).await;
    }
}

#[tokio::test]
async fn m13_with_any_older_file_the_payer_learns_what_it_signed_and_goes_on() {
    let mut life = Life::new(None);
    assert!(life.live().await.is_ok());
    for copy in life.copies.clone() {
        life.go_on(&copy).await;
    }
}
