//! What commands on the network share: the node, this home's wallet, and errors in words.

use std::io::{IsTerminal, Read};

use jiff::Timestamp;
use tenzro_ledger::{
    Account, Address, Keystore, LedgerError, Operations, PrivateKeySigner, SendError, Wallet,
    WalletError,
};
use tenzro_node::config::Config;
use tenzro_node::{Network, NetworkError, NodeClient, NodeError, provider_info, running_node};
use tenzro_protocol::network::{Missing, ProviderInfo};

use crate::output::Output;
use crate::report::Failure;

/// What to do when there is no node.
pub(super) const START_NODE: &str = "tenzro-cli node start --detach";

/// The node of the settings; where they name none, the one of this home, whatever its port.
pub(super) fn node(config: &Config) -> anyhow::Result<NodeClient> {
    if config.is_default("rpc")
        && let Some(node) = own_node(config)?
    {
        return Ok(node);
    }
    let url: String = config.get("rpc").unwrap_or_default();
    NodeClient::new(&url, &config.home).map_err(explain_node)
}

/// The node of this home, when it runs, whatever the settings say.
pub(super) fn own_node(config: &Config) -> anyhow::Result<Option<NodeClient>> {
    let Some(node) = running_node(&config.home) else {
        return Ok(None);
    };
    let client = NodeClient::new(&node.rpc_url, &config.home);
    client.map(Some).map_err(explain_node)
}

/// The node and its ledger.
pub(super) async fn connect(config: &Config) -> anyhow::Result<Network> {
    let network = Network::connect(node(config)?, config).await;
    network.map_err(|error| match error {
        NetworkError::Node(error) => explain_node(error),
        NetworkError::Ledger(error) => explain_ledger(error),
        error => Failure::new(error.to_string()).into(),
    })
}

pub(super) fn explain_node(error: NodeError) -> anyhow::Error {
    let hint = match &error {
        NodeError::Unreachable { .. } => Some(START_NODE.to_owned()),
        NodeError::Url(_) => Some("--rpc http://127.0.0.1:8545".to_owned()),
        NodeError::Protocol { .. } => {
            Some("is --rpc the address of a node of Tenzro Model Serving?".to_owned())
        }
        NodeError::Rpc(error) => error.hint_text().map(str::to_owned),
    };
    Failure::new(error.to_string()).maybe_hint(hint).into()
}

pub(super) fn explain_ledger(error: LedgerError) -> anyhow::Error {
    Failure::new(error.to_string()).into()
}

/// A refused transaction, with the next step where there is a usual one.
pub(super) fn explain_send(error: SendError, network: &Network) -> anyhow::Error {
    let text = error.to_string();
    let hint = match &error {
        error if error.lacks_tnzo() => Some(if network.info.is_development {
            "tenzro-cli wallet faucet".to_owned()
        } else {
            "send TNZO to this wallet: tenzro-cli wallet show".to_owned()
        }),
        error if error.lacks_registration() => {
            Some("tenzro-cli provider register --role model-provider".to_owned())
        }
        SendError::Gas { account, .. } => {
            Some(format!("send some of the chain's gas coin to {account}"))
        }
        _ => None,
    };
    Failure::new(text).maybe_hint(hint).into()
}

pub(super) fn explain_wallet(error: WalletError) -> anyhow::Error {
    let hint = match &error {
        WalletError::None => Some("tenzro-cli wallet create"),
        WalletError::Unknown(_) => Some("tenzro-cli wallet list"),
        WalletError::Exists(_) => Some("choose another --name"),
        WalletError::PasswordNeeded(_) | WalletError::Password(_) => {
            Some("set TENZRO_WALLET_PASSWORD, or run this in a terminal to be asked")
        }
        _ => None,
    };
    Failure::new(error.to_string())
        .maybe_hint(hint.map(str::to_owned))
        .into()
}

/// The wallets of this home.
pub(super) fn keystore(config: &Config) -> Keystore {
    Keystore::new(config.home.keystore())
}

/// The wallet of that name or address, or the one in use.
pub(super) fn wallet(config: &Config, name: Option<&str>) -> anyhow::Result<Wallet> {
    let keystore = keystore(config);
    let found = match name {
        Some(name) => keystore.find(name),
        None => keystore.default_wallet(),
    };
    found.map_err(explain_wallet)
}

/// A wallet in use with its key, and the password where one was typed.
pub(super) struct Unlocked {
    pub(super) signer: PrivateKeySigner,
    pub(super) typed_password: Option<String>,
}

/// Decrypts a wallet: with the environment's password, the file beside it, or what is typed.
pub(super) fn unlock(config: &Config, wallet: &Wallet) -> anyhow::Result<Unlocked> {
    let keystore = keystore(config);
    let known = config.wallet_password().map(|password| password.reveal());
    let known = known.filter(|_| !wallet.has_password_file);
    let typed_password = if known.is_none() && !wallet.has_password_file && can_ask() {
        Some(ask(&format!("Password of wallet {}: ", wallet.name))?)
    } else {
        None
    };
    let password = typed_password.as_deref().or(known);
    let signer = keystore.unlock(wallet, password).map_err(explain_wallet)?;
    Ok(Unlocked {
        signer,
        typed_password,
    })
}

/// Whether somebody can be asked.
pub(super) fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks for something that is not shown while it is typed.
pub(super) fn ask(prompt: &str) -> anyhow::Result<String> {
    Ok(rpassword::prompt_password(prompt)?)
}

/// A text from a terminal (not shown), or all of standard input.
pub(super) fn read_secret(prompt: &str) -> anyhow::Result<String> {
    if can_ask() {
        return ask(prompt);
    }
    let mut text = String::new();
    // A key is 64 digits: whatever is longer is none.
    std::io::stdin()
        .lock()
        .take(1024)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// This home's wallet in use. On a development ledger one is made at the first use.
pub(super) fn own_wallet(
    config: &Config,
    network: &Network,
    output: &Output,
) -> anyhow::Result<Wallet> {
    let keystore = keystore(config);
    match keystore.default_wallet() {
        Err(WalletError::None) if network.info.is_development => {
            let password = config.wallet_password().map(|password| password.reveal());
            let wallet = keystore.create(None, password).map_err(explain_wallet)?;
            output.note(format!("made wallet {} ({})", wallet.name, wallet.address));
            Ok(wallet)
        }
        found => found.map_err(explain_wallet),
    }
}

/// The network and a wallet that acts on it.
pub(super) struct Acting {
    pub(super) network: Network,
    pub(super) account: Account,
}

impl Acting {
    /// With this home's wallet.
    pub(super) async fn start(config: &Config, output: &Output) -> anyhow::Result<Self> {
        let network = connect(config).await?;
        let wallet = own_wallet(config, &network, output)?;
        let signer = unlock(config, &wallet)?.signer;
        let provider = network.ledger.provider().clone();
        let account = Account::new(provider, network.ledger.chain_id(), signer);
        Ok(Self { network, account })
    }

    pub(super) fn operations(&self) -> Operations<'_> {
        Operations {
            ledger: &self.network.ledger,
            account: &self.account,
        }
    }

    pub(super) fn address(&self) -> Address {
        self.account.address()
    }

    /// Words for a refused transaction.
    pub(super) fn explain(&self, error: SendError) -> anyhow::Error {
        explain_send(error, &self.network)
    }

    /// Where the wallet stands as a provider, with prices that its endpoints lack.
    pub(super) async fn standing(&self) -> anyhow::Result<ProviderInfo> {
        standing(&self.network, self.address()).await
    }
}

/// Where a wallet stands as a provider, read from the contracts, with prices that its endpoints lack.
pub(super) async fn standing(network: &Network, address: Address) -> anyhow::Result<ProviderInfo> {
    let ledger = &network.ledger;
    let provider = ledger.provider_now(address).await.map_err(explain_ledger)?;
    let endpoints = ledger
        .endpoints_now(address)
        .await
        .map_err(explain_ledger)?;
    let served = endpoints
        .into_iter()
        .filter(|endpoint| !endpoint.is_stopped);
    let served: Vec<String> = served.map(|endpoint| endpoint.model_id).collect();
    let minimum = network.info.minimum_stake;
    let mut info = provider_info(address, &provider, minimum, served, Timestamp::now());
    for model_id in info.served_models.clone() {
        let price = ledger.pricing_now(address, &model_id).await;
        if price.map_err(explain_ledger)?.is_none() {
            info.missing.push(Missing::Price { model_id });
        }
    }
    Ok(info)
}

/// What is missing, and the command that mends it.
pub(super) fn tell_missing(missing: &[Missing], output: &Output) {
    for one in missing {
        let command = match one {
            Missing::Registration => {
                "tenzro-cli provider register --role model-provider".to_owned()
            }
            Missing::Stake { amount } => format!(
                "tenzro-cli stake deposit --amount {} --role model-provider",
                amount.tnzo()
            ),
            Missing::Price { model_id } => {
                format!("tenzro-cli provider pricing set --model {model_id} --per-token 0.0001")
            }
            Missing::Serving => continue,
        };
        output.note(format!("inactive: {one}"));
        output.hint(command);
    }
}
