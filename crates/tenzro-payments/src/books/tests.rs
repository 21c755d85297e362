//! What was answered is there after a crash, and nothing is counted down.

use super::*;
use crate::escrow::EscrowChannel;

fn channel(id: u8, deposit: u128) -> Channel {
    let payer = Address::repeat_byte(id);
    let found = EscrowChannel {
        payer,
        payee: Address::ZERO,
        signer: payer,
        deposit,
        settled: 0,
        is_closing: false,
        is_final: false,
    };
    Channel::new(B256::repeat_byte(id), &found)
}

fn served(channel: u8, request_id: &str, output_tokens: u32) -> Box<Served> {
    Box::new(Served {
        key: alloy::primitives::keccak256(request_id),
        request_id: request_id.to_owned(),
        channel_id: B256::repeat_byte(channel),
        model: "m".to_owned(),
        at: 1_764_115_200,
        input_tokens: 3,
        output_tokens,
        charged: u128::from(output_tokens) * 10,
        finish: String::new(),
        ttft_ms: 5,
        duration_ms: 9,
    })
}

fn signature(byte: u8) -> Signature {
    Signature([byte; 65])
}

fn voucher(channel: u8, amount: u128) -> Change {
    Change::Voucher {
        channel_id: B256::repeat_byte(channel),
        amount,
        signature: signature(u8::try_from(amount % 251).expect("small")),
        binds_requests: amount == 70,
    }
}

fn file() -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("books/payee.sqlite");
    (directory, path)
}

fn nobody(_: &str) -> bool {
    false
}

#[tokio::test]
async fn m12_what_was_written_is_there_again_and_counters_only_grow() {
    let (_directory, path) = file();
    let (books, none) = Books::open(&path, "a", nobody).expect("new");
    assert_eq!(none, Vec::new());
    books
        .write(Change::Channel(Box::new(channel(1, 500))))
        .await
        .expect("written");
    for amount in [70, 40, 90] {
        books.write(voucher(1, amount)).await.expect("written");
    }
    for (spent, output) in [(60, 6), (50, 5)] {
        let change = Change::Spent {
            spent,
            served: served(1, "r1", output),
        };
        books.write(change).await.expect("written");
    }
    drop(books);
    let (_, mut again) = Books::open(&path, "a", nobody).expect("there");
    let kept = again.pop().expect("a channel");
    assert_eq!((kept.spent, kept.accepted(), kept.held()), (60, 90, 0));
    assert!(kept.binds_requests);
    let highest = kept.state().voucher.expect("a voucher");
    assert_eq!((highest.amount.0, highest.signature), (90, signature(90)));
    let earned = kept.settleable(u128::MAX).expect("earned");
    assert_eq!((earned.amount.0, earned.signature), (40, signature(40)));
    let found = earnings(&path).expect("readable");
    assert_eq!(
        (found.unsettled, found.requests, found.channels),
        (60, 1, 1)
    );
    assert_eq!(found.days[0].output_tokens, 6);
    assert_eq!(
        (found.days[0].charged, found.days[0].day.as_str()),
        (60, "2025-11-26")
    );
}

#[tokio::test]
async fn vouchers_that_are_replaced_are_forgotten_but_never_the_highest() {
    let (_directory, path) = file();
    let (books, _) = Books::open(&path, "a", nobody).expect("new");
    books
        .write(Change::Channel(Box::new(channel(1, 500))))
        .await
        .expect("written");
    for amount in [40, 70, 90] {
        books.write(voucher(1, amount)).await.expect("written");
    }
    let mut done = served(1, "r1", 8);
    done.finish = "stop".to_owned();
    books
        .write(Change::Spent {
            spent: 80,
            served: done,
        })
        .await
        .expect("written");
    drop(books);
    let conn = Connection::open(&path).expect("a file");
    let kept: Vec<u128> = conn
        .prepare("SELECT amount FROM voucher ORDER BY amount")
        .expect("a table")
        .query_map([], |row| amount(row, 0))
        .expect("rows")
        .collect::<Result<_, _>>()
        .expect("amounts");
    assert_eq!(kept, [70, 90]);
}

#[tokio::test]
async fn m17_of_too_many_vouchers_those_that_are_needed_are_kept() {
    let (_directory, path) = file();
    let (books, _) = Books::open(&path, "a", nobody).expect("new");
    for id in [1, 2] {
        books
            .write(Change::Channel(Box::new(channel(id, 1_000))))
            .await
            .expect("written");
        let vouchers = (1..=400).map(|amount| books.write(voucher(id, amount)));
        for result in futures::future::join_all(vouchers).await {
            result.expect("written");
        }
    }
    let change = Change::Crowded {
        channel_id: B256::repeat_byte(1),
    };
    books.write(change).await.expect("written");
    drop(books);
    let conn = Connection::open(&path).expect("a file");
    let kept = |id: u8| -> Vec<u128> {
        conn.prepare("SELECT amount FROM voucher WHERE channel = ?1 ORDER BY amount")
            .expect("a table")
            .query_map([B256::repeat_byte(id).as_slice()], |row| amount(row, 0))
            .expect("rows")
            .collect::<Result<_, _>>()
            .expect("amounts")
    };
    let expected: Vec<u128> = (1..=255).chain([400]).collect();
    assert_eq!((kept(1), kept(2).len()), (expected, 400));
}

#[tokio::test]
async fn a_channel_belongs_to_one_server_until_that_one_is_gone() {
    let (_directory, path) = file();
    let (first, _) = Books::open(&path, "a", nobody).expect("new");
    first
        .write(Change::Channel(Box::new(channel(1, 500))))
        .await
        .expect("written");
    let (second, mine) = Books::open(&path, "b", |owner| owner == "a").expect("beside");
    assert_eq!(mine, Vec::new());
    let refused = second.claim(channel(1, 500)).await;
    assert_eq!(refused, Err(BooksError::Elsewhere));
    first.write(voucher(1, 70)).await.expect("written");
    let own = first.claim(channel(1, 600)).await.expect("its own");
    assert_eq!((own.accepted(), own.deposit), (70, 600));
    let unknown = second.inherit(channel(2, 10)).await;
    assert_eq!(unknown, Err(BooksError::Elsewhere));
    let new = second.claim(channel(2, 10)).await.expect("a new one");
    assert_eq!(new, channel(2, 10));
    drop((first, second));
    // Another one that starts first leaves them alone, and has what its payers turn to it with.
    let (third, adopted) = Books::open(&path, "c", nobody).expect("after it");
    assert_eq!(adopted, []);
    let taken = third
        .claim(channel(2, 10))
        .await
        .expect("its owner is gone");
    assert_eq!(taken, channel(2, 10));
    let left = third.inherit(channel(1, 600)).await;
    assert_eq!(left.expect("its owner is gone").accepted(), 70);
    drop(third);
    let (_, again) = Books::open(&path, "c", nobody).expect("again");
    assert_eq!(again.len(), 2);
}

#[tokio::test]
async fn many_changes_at_once_are_all_there() {
    let (_directory, path) = file();
    let (books, _) = Books::open(&path, "a", nobody).expect("new");
    for id in 1..=8 {
        books
            .write(Change::Channel(Box::new(channel(id, 100_000))))
            .await
            .expect("written");
    }
    let writes = (1u32..=1_600).map(|number| {
        let id = u8::try_from(number % 8 + 1).expect("small");
        books.write(voucher(id, u128::from(number)))
    });
    for result in futures::future::join_all(writes).await {
        result.expect("written");
    }
    drop(books);
    let (_, channels) = Books::open(&path, "a", nobody).expect("there");
    let highest: u128 = channels.iter().map(Channel::accepted).sum();
    assert_eq!(highest, (1_593..=1_600).sum());
}

#[test]
fn m31_nobody_else_reads_the_books_and_foreign_files_are_refused() {
    use std::os::unix::fs::PermissionsExt;
    let (_directory, path) = file();
    drop(Books::open(&path, "a", nobody).expect("new"));
    let mode = std::fs::metadata(&path)
        .expect("a file")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let other = path.with_file_name("other.sqlite");
    let conn = Connection::open(&other).expect("a file");
    conn.execute_batch("CREATE TABLE x (y)").expect("a table");
    conn.pragma_update(None, "user_version", 9).expect("set");
    drop(conn);
    let refused = Books::open(&other, "a", nobody).map(|_| ());
    assert!(
        matches!(refused, Err(BooksError::Foreign(_))),
        "{refused:?}"
    );
}
