//! A provider and a consumer in homes of their own on one ledger, and what both have in their books.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use tenzro_ledger::{Account, Address, B256, Keystore, Ledger, Operations, PrivateKeySigner};
use tenzro_node::config::Config;
use tenzro_node::{Network, NodeClient, Servers, operator_token};
use tokio::runtime::Runtime;

use super::http::{Answer, post};
use crate::{Home, kill};

pub(super) const MODEL: &str = "smollm2-135m";
/// Wei for a token of the prompt and of the answer.
pub(super) const INPUT: u128 = 50_000_000_000_000;
pub(super) const OUTPUT: u128 = 200_000_000_000_000;
/// Output tokens that are paid ahead at most.
pub(super) const WINDOW: u128 = 32;
pub(super) const TNZO: u128 = 1_000_000_000_000_000_000;
/// What the faucet gives.
pub(super) const WEALTH: u128 = 20_000 * TNZO;
pub(super) const STAKE: u128 = 1_000 * TNZO;

/// Whose node has the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChainOf {
    Consumer,
    Provider,
}

/// Both homes: the provider is registered, has stake and a price. Fields are dropped in this order.
pub(super) struct Market {
    pub(super) provider: Home,
    pub(super) consumer: Home,
    /// The consumer's node.
    pub(super) node: String,
    pub(super) payer: PrivateKeySigner,
    pub(super) payee: PrivateKeySigner,
    pub(super) ledger: Ledger,
    pub(super) runtime: Runtime,
}

/// A model server.
#[derive(Debug, Clone)]
pub(super) struct Serving {
    pub(super) pid: String,
    pub(super) port: u16,
    /// Ends in `/v1`.
    pub(super) url: String,
}

/// A channel in the provider's books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PayeeChannel {
    pub(super) id: B256,
    pub(super) deposit: u128,
    pub(super) settled: u128,
    pub(super) spent: u128,
    /// Of the highest voucher.
    pub(super) accepted: u128,
}

/// A channel in the consumer's books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PayerChannel {
    pub(super) id: B256,
    pub(super) deposit: u128,
    pub(super) signed: u128,
    pub(super) due: u128,
    pub(super) doubt: u128,
}

pub(super) fn cost(input: u128, output: u128) -> u128 {
    input * INPUT + output * OUTPUT
}

/// Of a usage: its tokens at the registered price, which its `cost` has to be.
pub(super) fn cost_of(usage: &Value) -> u128 {
    // Embeddings have a prompt only.
    let number = |name: &str| u128::from(usage[name].as_u64().unwrap_or(0));
    let expected = cost(number("prompt_tokens"), number("completion_tokens"));
    assert!(expected > 0, "{usage}");
    assert_eq!(usage["cost"], json!(expected.to_string()), "{usage}");
    expected
}

/// The key of a home's wallet.
pub(super) fn key(home: &Home) -> PrivateKeySigner {
    let keystore = Keystore::new(home.paths().keystore());
    let wallet = keystore.default_wallet().expect("a wallet");
    keystore.unlock(&wallet, None).expect("a key")
}

/// Takes the steps up to an endpoint; `home` has a wallet with money.
pub(super) fn become_provider(home: &Home) {
    for step in [
        "provider register --role model-provider",
        "stake deposit --amount 1000 --role model-provider",
        "provider pricing set --model smollm2-135m --input 0.00005 --output 0.0002",
    ] {
        home.ok(&step.split(' ').collect::<Vec<_>>());
    }
}

impl Market {
    pub(super) fn new(chain: ChainOf) -> Self {
        let (mut provider, mut consumer) = (Home::with_model(), Home::new());
        match chain {
            ChainOf::Consumer => {
                provider.rpc = Some(consumer.start_node(&[]));
                provider.ok(&["wallet", "create"]);
            }
            ChainOf::Provider => {
                let url = provider.start_node(&[]);
                consumer.start_node(&["--chain", &url]);
            }
        }
        consumer.ok(&["wallet", "faucet"]);
        provider.ok(&["wallet", "faucet"]);
        Self::of(provider, consumer)
    }

    /// Of homes that have nodes, wallets and money.
    pub(super) fn of(provider: Home, consumer: Home) -> Self {
        become_provider(&provider);
        let node = consumer.rpc.clone().expect("a node");
        let runtime = Runtime::new().expect("a runtime");
        let config = Config::load(Some(consumer.paths().root().to_owned())).expect("settings");
        let client = NodeClient::new(&node, &consumer.paths()).expect("an address");
        let network = runtime
            .block_on(Network::connect(client, &config))
            .expect("a network");
        Self {
            payer: key(&consumer),
            payee: key(&provider),
            ledger: network.ledger,
            runtime,
            node,
            provider,
            consumer,
        }
    }

    /// Serves on the ledger, on that port or, for 0, a free one, and waits until the consumer sees it.
    pub(super) fn serve(&self, port: u16) -> Serving {
        self.serve_with(port, &[])
    }

    /// [`Self::serve`] with more options.
    pub(super) fn serve_with(&self, port: u16, options: &[&str]) -> Serving {
        let port = port.to_string();
        let more = "--ctx-size 1024 --threads 1 --remote --detach";
        let mut arguments = vec!["--json", "model", "serve", MODEL, "--port", &port];
        arguments.extend(more.split(' '));
        arguments.extend(options);
        let events = self.provider.ok(&arguments);
        let ready: Value =
            serde_json::from_str(events.lines().last().expect("events")).expect("JSON");
        let server = &ready["server"];
        self.wait_for_endpoint();
        Serving {
            pid: server["pid"].to_string(),
            port: server["port"]
                .as_u64()
                .and_then(|port| port.try_into().ok())
                .expect("a port"),
            url: server["base_url"].as_str().expect("an address").to_owned(),
        }
    }

    pub(super) fn wait_for_endpoint(&self) {
        let status = || {
            self.consumer
                .run(&["--json", "model", "endpoint", "--model", MODEL])
                .stdout
        };
        wait_until("the endpoint", || status().contains("\"online\""));
    }

    /// kill -9.
    pub(super) fn kill(&self, serving: &Serving) {
        let servers = Servers::new(&self.provider.paths());
        kill(&serving.pid, || servers.is_running(serving.port));
    }

    /// Posts to the consumer's node.
    pub(super) fn ask(&self, path: &str, body: &Value) -> Answer {
        post(&format!("{}/{path}", self.node), &[], &body.to_string())
    }

    /// A short answer of the network in one piece; returns what it cost.
    pub(super) fn buy(&self) -> u128 {
        let answer = self.ask("v1/chat/completions", &chat(4, false)).json();
        cost_of(&answer["usage"])
    }

    /// Wei of an account, by the consumer's node.
    pub(super) fn balance(&self, address: Address) -> u128 {
        let answer = rpc(&self.node, "tenzro_getBalance", &json!([address]));
        answer["balance"]
            .as_str()
            .and_then(|text| text.parse().ok())
            .expect("wei")
    }

    /// Wei of the payer, of the payee and in the escrow.
    pub(super) fn balances(&self) -> (u128, u128, u128) {
        let escrow = self.ledger.escrow().address;
        let all = [self.payer.address(), self.payee.address(), escrow];
        let [payer, payee, escrow] = all.map(|address| self.balance(address));
        (payer, payee, escrow)
    }

    /// Nothing is made or lost.
    pub(super) fn assert_conserved(&self) {
        let (payer, payee, escrow) = self.balances();
        assert_eq!(payer + payee + escrow + STAKE, 2 * WEALTH, "m01");
    }

    /// Sends from the payer's wallet, without anybody's help.
    pub(super) fn as_payer<T>(&self, act: impl AsyncFnOnce(Operations<'_>) -> T) -> T {
        let provider = self.ledger.provider().clone();
        let account = Account::new(provider, self.ledger.chain_id(), self.payer.clone());
        let operations = Operations {
            ledger: &self.ledger,
            account: &account,
        };
        self.runtime.block_on(act(operations))
    }

    pub(super) fn payee_books(&self) -> PathBuf {
        books(&self.provider, self.payee.address()).join("payee.sqlite")
    }

    /// All channels in the provider's books, also while it serves.
    pub(super) fn payee_channels(&self) -> Vec<PayeeChannel> {
        let sql = "SELECT id, deposit, settled, spent,
            coalesce((SELECT max(amount) FROM voucher WHERE channel = id), settled) FROM channel";
        let rows = rows(&self.payee_books(), sql);
        let channels = rows
            .into_iter()
            .map(|(id, [deposit, settled, spent, accepted])| PayeeChannel {
                id,
                deposit,
                settled,
                spent,
                accepted: accepted.max(settled),
            });
        channels.collect()
    }

    /// The only channel, whose counters stand in the order that they have to.
    pub(super) fn payee_channel(&self) -> PayeeChannel {
        let channels = self.payee_channels();
        let [channel] = channels[..] else {
            panic!("{channels:?}")
        };
        let PayeeChannel {
            deposit,
            settled,
            spent,
            accepted,
            ..
        } = channel;
        assert!(
            spent <= accepted && settled <= accepted && accepted <= deposit,
            "{channel:?}"
        );
        channel
    }

    /// All requests in the provider's books: the sum of what they were charged.
    pub(super) fn charged(&self) -> (usize, u128) {
        let sql = "SELECT key, charged, charged, charged, charged FROM request";
        let requests = rows(&self.payee_books(), sql);
        (
            requests.len(),
            requests.iter().map(|(_, [charged, ..])| charged).sum(),
        )
    }

    /// All channels in the consumer's books, while its node does not run.
    pub(super) fn payer_channels(&self) -> Vec<PayerChannel> {
        let path = books(&self.consumer, self.payer.address()).join("payer.sqlite");
        let rows = rows(&path, "SELECT id, deposit, signed, due, doubt FROM channel");
        let channels = rows
            .into_iter()
            .map(|(id, [deposit, signed, due, doubt])| PayerChannel {
                id,
                deposit,
                signed,
                due,
                doubt,
            });
        channels.collect()
    }
}

fn books(home: &Home, wallet: Address) -> PathBuf {
    home.paths()
        .payments()
        .join(wallet.to_string().to_lowercase())
}

/// An id and four amounts each, read without the product's code.
fn rows(path: &Path, sql: &str) -> Vec<(B256, [u128; 4])> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).expect("books");
    conn.busy_timeout(Duration::from_secs(10)).expect("set");
    let mut statement = conn.prepare(sql).expect("the tables");
    let amount = |row: &rusqlite::Row<'_>, index| row.get(index).map(u128::from_be_bytes);
    let read = |row: &rusqlite::Row<'_>| {
        let amounts = [
            amount(row, 1)?,
            amount(row, 2)?,
            amount(row, 3)?,
            amount(row, 4)?,
        ];
        Ok((B256::from(row.get::<_, [u8; 32]>(0)?), amounts))
    };
    let rows = statement.query_map([], read).expect("rows");
    rows.collect::<Result<_, _>>().expect("amounts")
}

/// A chat of the test model.
pub(super) fn chat(max_tokens: u32, is_stream: bool) -> Value {
    json!({
        "model": MODEL, "stream": is_stream,
        "stream_options": is_stream.then(|| json!({"include_usage": true})),
        "ignore_eos": true, "max_tokens": max_tokens, "temperature": 0,
        "messages": [{"role": "user", "content": "Tell me a story."}],
    })
}

/// A call of a node; its result.
pub(super) fn rpc(node: &str, method: &str, params: &Value) -> Value {
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    let answer = post(node, &[], &call.to_string()).json();
    assert!(answer.get("error").is_none(), "{answer}");
    answer["result"].clone()
}

/// Changes the time of a development chain, as the operator of its node.
pub(super) fn pass_time(market: &Market, seconds: u64) {
    let token = operator_token(&market.consumer.paths()).expect("a token");
    let bearer = format!("Bearer {token}");
    for (method, params) in [
        ("evm_increaseTime", json!([seconds])),
        ("evm_mine", json!([])),
    ] {
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let answer = post(
            &market.node,
            &[("authorization", &bearer)],
            &call.to_string(),
        )
        .json();
        assert!(answer.get("error").is_none(), "{answer}");
    }
}

/// Looks again and again, with pauses that leave the cores to what is waited for.
pub(super) fn wait_until(what: &str, is_there: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(30);
    while !is_there() {
        assert!(Instant::now() < patience, "{what} does not come");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}
