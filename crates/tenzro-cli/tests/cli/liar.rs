//! m34: a provider that says it closed a channel, and did not.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use super::Home;
use super::channels::{QUESTION, market_with};

/// Passes everything on to a model server but the last voucher, which it takes and only says thanks for.
fn start_liar(server: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let server = server.clone();
            thread::spawn(move || pass_on(client, &server));
        }
    });
    address
}

fn pass_on(mut client: TcpStream, server: &str) {
    let mut first = [0; 4096];
    let count = client.read(&mut first).unwrap_or(0);
    if first.starts_with(b"POST /v1/payments/voucher") {
        let _ =
            client.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        return;
    }
    let Ok(mut server) = TcpStream::connect(server) else {
        return;
    };
    if server.write_all(&first[..count]).is_err() {
        return;
    }
    let again = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
    let (mut asked, mut asks) = (again(&client), again(&server));
    let upwards = thread::spawn(move || {
        let _ = std::io::copy(&mut asked, &mut asks);
        let _ = asks.shutdown(Shutdown::Write);
    });
    let _ = std::io::copy(&mut server, &mut client);
    let _ = client.shutdown(Shutdown::Both);
    let _ = upwards.join();
}

#[test]
fn m34_a_channel_is_closed_when_the_ledger_says_so_and_not_the_provider() {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    let port = port.expect("a free port").port();
    let liar = start_liar(format!("127.0.0.1:{port}"));
    let url = format!("http://{liar}/v1");
    let (_provider, consumer): (Home, Home) =
        market_with(&["--port", &port.to_string(), "--public-url", &url]);
    consumer.ok(&[&QUESTION[..], &["What is the capital of France?"]].concat());
    let channel = consumer.json(&["channel", "list"])[0].clone();
    let id = channel["channel_id"].as_str().expect("an id");
    let refused = consumer.run(&["channel", "close", id]);
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""));
    assert!(
        refused
            .stderr
            .contains("it says that it closed it, but on the ledger it is open")
            && refused.stderr.contains("--force"),
        "{}",
        refused.stderr
    );
    // The channel goes on paying, and can be left without the provider.
    assert_eq!(consumer.json(&["channel", "list"])[0], channel);
    consumer.ok(&[&QUESTION[..], &["What is the capital of France?"]].concat());
    let left = consumer.json(&["channel", "close", id, "--force"]);
    assert_eq!(left["status"], "closing", "{left}");
}
