//! What can be typed.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tenzro_protocol::amount::{AmountError, Wei};

/// Serve GGUF models, earn TNZO with them, and chat.
#[derive(Debug, Parser)]
#[command(
    name = "tenzro-cli",
    version,
    arg_required_else_help = true,
    after_help = "Examples:\n  \
        tenzro-cli model download unsloth/gemma-3-270m-it-GGUF\n  \
        tenzro-cli model serve gemma3-270m --detach\n  \
        tenzro-cli chat --model gemma3-270m \"Why is the sky blue?\"\n  \
        tenzro-cli model stop gemma3-270m\n  \
        tenzro-cli node start --detach"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Home directory [env: TENZRO_HOME] [default: ~/.tenzro]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// Address of the node [env: TENZRO_RPC] [default: http://127.0.0.1:8545]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) rpc: Option<String>,
    /// Print one JSON document (or one per line) on stdout
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print no progress and no hints
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Log more; repeat for still more
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Do not ask before removing or showing something
    #[arg(long, short, global = true)]
    pub(crate) yes: bool,
    /// When to use colours (NO_COLOR is honoured)
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto)]
    pub(crate) color: Color,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Download, describe and serve models
    #[command(subcommand)]
    Model(Model),
    /// Register as a provider, set prices and hours
    #[command(subcommand)]
    Provider(Provider),
    /// Stake TNZO, and take stake back
    #[command(subcommand)]
    Stake(Stake),
    /// Keys and TNZO
    #[command(subcommand)]
    Wallet(Wallet),
    /// TNZO set aside for providers, which pays for their answers
    #[command(subcommand)]
    Channel(Channel),
    /// The node: the ledger, and what the network offers
    #[command(subcommand)]
    Node(Node),
    /// The chain that the ledger runs on
    #[command(subcommand)]
    Chain(Chain),
    /// Chat with a model that this home serves, for free, else with one of the network, which the node pays
    #[command(after_help = "Examples:\n  \
        tenzro-cli chat --model gemma3-270m\n  \
        tenzro-cli chat --model gemma3-270m \"Why is the sky blue?\"\n  \
        git diff | tenzro-cli chat --model qwen3-4b \"Write a commit message\"")]
    Chat(Chat),
    /// Show the settings
    #[command(subcommand)]
    Config(Config),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  \
        tenzro-cli completions bash > /etc/bash_completion.d/tenzro-cli")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Model {
    /// Fetch a model from the Hugging Face hub, resume, verify its SHA-256
    #[command(after_help = "Examples:\n  \
        tenzro-cli model download unsloth/gemma-3-270m-it-GGUF\n  \
        tenzro-cli model download unsloth/gemma-3-270m-it-GGUF:Q8_0\n  \
        tenzro-cli model download TheBloke/Mistral-7B-Instruct-v0.2-GGUF \\\n    \
        --filename mistral-7b-instruct-v0.2.Q4_K_M.gguf")]
    Download(Download),
    /// Take a GGUF file that is on disk into the library
    #[command(after_help = "Example:\n  \
        tenzro-cli model import ./SmolLM2-135M-Instruct.Q4_1.gguf")]
    Import {
        /// The file
        file: PathBuf,
        /// Model id to give it
        #[arg(long, value_name = "ID")]
        name: Option<String>,
    },
    /// List the models that the network serves, or those of the library
    #[command(after_help = "Examples:\n  \
        tenzro-cli model list\n  tenzro-cli model list --local")]
    List {
        /// Those of the library
        #[arg(long)]
        local: bool,
    },
    /// List the endpoints that the network offers
    #[command(after_help = "Examples:\n  \
        tenzro-cli model endpoints\n  tenzro-cli model endpoints --model gemma3-270m")]
    Endpoints {
        /// Of this model only
        #[arg(long)]
        model: Option<String>,
    },
    /// Describe an endpoint: the best one of a model, or one by its id
    #[command(after_help = "Example:\n  tenzro-cli model endpoint --model gemma3-270m")]
    Endpoint {
        /// Id of an endpoint
        #[arg(required_unless_present = "model")]
        id: Option<String>,
        /// The best one of this model
        #[arg(long, conflicts_with = "id")]
        model: Option<String>,
    },
    /// Describe a model and verify its SHA-256 anew; exit 1 on a mismatch
    #[command(after_help = "Example:\n  \
        tenzro-cli model info unsloth/gemma-3-270m-it-GGUF")]
    Info {
        /// Model id, repository, repo:QUANT, file name or path
        model: String,
    },
    /// Remove a model from the library
    #[command(after_help = "Example:\n  tenzro-cli model remove gemma3-270m")]
    Remove {
        /// Model id, repository, repo:QUANT, file name or path
        model: String,
    },
    /// Serve a model over the OpenAI API
    #[command(after_help = "Examples:\n  \
        tenzro-cli model serve unsloth/gemma-3-270m-it-GGUF --port 8080 --ctx-size 4096\n  \
        tenzro-cli model serve gemma3-270m --detach\n  \
        tenzro-cli model serve gemma3-270m --remote --public-url https://gpu.example.com/v1\n  \
        tenzro-cli model serve my-model --upstream http://127.0.0.1:8000/v1")]
    Serve(Serve),
    /// List the running model servers of this home
    #[command(after_help = "Example:\n  tenzro-cli model ps")]
    Ps,
    /// Stop a model server: running answers finish, for at most 30 seconds, what it earned is settled, and it
    /// is unregistered
    #[command(after_help = "Examples:\n  \
        tenzro-cli model stop gemma3-270m\n  tenzro-cli model stop --all")]
    Stop {
        /// Which model
        #[arg(required_unless_present = "all")]
        model: Option<String>,
        /// All of this home
        #[arg(long, conflicts_with = "model")]
        all: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Download {
    /// Repository: owner/name, with :QUANT and @REVISION if wanted, or an address on the hub
    pub(crate) repo: String,
    /// One file of the repository
    #[arg(long, value_name = "FILE")]
    pub(crate) filename: Option<String>,
    /// Branch, tag or commit [default: main]
    #[arg(long)]
    pub(crate) revision: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Model of the library or path of a GGUF file; with --upstream the id to serve under
    pub(crate) model: String,
    /// Port; 0 chooses a free one [default: 8080]
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Address to listen on [default: 127.0.0.1]
    #[arg(long)]
    pub(crate) host: Option<IpAddr>,
    /// Most tokens of prompt and answer of one request [default: 4096 or what the model allows]
    #[arg(long, value_name = "TOKENS")]
    pub(crate) ctx_size: Option<u32>,
    /// Layers on the GPU, in builds with a GPU backend [default: all]
    #[arg(long, value_name = "N")]
    pub(crate) gpu_layers: Option<u32>,
    /// Requests computed at the same time [default: 4]
    #[arg(long, value_name = "N")]
    pub(crate) parallel: Option<u32>,
    /// Compute threads [default: one per physical core]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<u32>,
    /// Model id to serve under
    #[arg(long, value_name = "ID")]
    pub(crate) alias: Option<String>,
    /// Register the endpoint on the ledger with this home's wallet, and be paid per token by all but this home
    #[arg(long)]
    pub(crate) remote: bool,
    /// Address that others reach it at; ends in /v1 [default: the one it listens on]
    #[arg(long, value_name = "URL", requires = "remote")]
    pub(crate) public_url: Option<String>,
    /// Serve another OpenAI-compatible server (vLLM, llama-server, Ollama, …) instead
    #[arg(long, value_name = "URL")]
    pub(crate) upstream: Option<String>,
    /// The model's name at the upstream server
    #[arg(long, value_name = "NAME", requires = "upstream")]
    pub(crate) upstream_model: Option<String>,
    /// Serve in the background; return when it is ready
    #[arg(long)]
    pub(crate) detach: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Chat {
    /// Answer this and exit; piped input is put after it
    pub(crate) prompt: Option<String>,
    /// Model id, repository or file name [default: the only one that is served]
    #[arg(long, short)]
    pub(crate) model: Option<String>,
    /// System prompt
    #[arg(long)]
    pub(crate) system: Option<String>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<u32>,
    /// 0 always takes the likeliest token
    #[arg(long)]
    pub(crate) temperature: Option<f32>,
    /// Print the answer when it is complete
    #[arg(long)]
    pub(crate) no_stream: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Every setting with its value and where it came from
    #[command(after_help = "Example:\n  tenzro-cli config show")]
    Show,
}

/// A provider's role. There is one so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Serves models
    #[value(alias = "model_provider")]
    ModelProvider,
}

/// TNZO as exact decimals.
fn tnzo(text: &str) -> Result<Wei, AmountError> {
    Wei::parse_tnzo(text)
}

#[derive(Debug, Subcommand)]
pub(crate) enum Provider {
    /// Register this home's wallet as a provider, or rename it
    #[command(after_help = "Example:\n  tenzro-cli provider register --role model-provider")]
    Register {
        /// What the provider does
        #[arg(long, value_enum, default_value_t = Role::ModelProvider)]
        role: Role,
        /// What others see, at most 64 bytes
        #[arg(long, default_value = "")]
        name: String,
    },
    /// Take the registration back; stake and prices stay
    #[command(after_help = "Example:\n  tenzro-cli provider deregister")]
    Deregister,
    /// Role, stake, prices, hours and endpoints of this home's wallet
    #[command(after_help = "Example:\n  tenzro-cli provider status")]
    Status,
    /// What this home's wallet earned, by day and model
    #[command(after_help = "Example:\n  tenzro-cli provider earnings")]
    Earnings,
    /// Prices per token
    #[command(subcommand)]
    Pricing(Pricing),
    /// When the provider serves
    #[command(subcommand)]
    Schedule(Schedule),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Pricing {
    /// Set what a token of a model costs; a rise takes effect after a minute
    #[command(after_help = "Examples:\n  \
        tenzro-cli provider pricing set --model gemma3-270m --per-token 0.0001\n  \
        tenzro-cli provider pricing set --model gemma3-270m --input 0.00005 --output 0.0002")]
    Set {
        /// Model id, repository or file name
        #[arg(long)]
        model: String,
        /// TNZO per token of prompt and answer
        #[arg(long, value_name = "TNZO", value_parser = tnzo, allow_hyphen_values = true,
              required_unless_present_all = ["input", "output"],
              conflicts_with_all = ["input", "output"])]
        per_token: Option<Wei>,
        /// TNZO per token of the prompt
        #[arg(long, value_name = "TNZO", value_parser = tnzo, allow_hyphen_values = true,
              requires = "output")]
        input: Option<Wei>,
        /// TNZO per token of the answer
        #[arg(long, value_name = "TNZO", value_parser = tnzo, allow_hyphen_values = true,
              requires = "input")]
        output: Option<Wei>,
    },
    /// Show the prices
    #[command(after_help = "Example:\n  tenzro-cli provider pricing show")]
    Show {
        /// Of this model only
        #[arg(long)]
        model: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Schedule {
    /// Set the hours
    #[command(after_help = "Examples:\n  \
        tenzro-cli provider schedule set --timezone UTC --hours 0-24\n  \
        tenzro-cli provider schedule set --timezone Europe/Berlin --hours 22-6 --days mon-fri")]
    Set {
        /// IANA name such as Europe/Berlin
        #[arg(long)]
        timezone: String,
        /// Window such as 9-17, 22:30-6 (overnight) or 0-24 (always)
        #[arg(long, value_name = "A-B", allow_hyphen_values = true)]
        hours: String,
        /// Days on which it begins, such as mon-fri or sat,sun [default: every day]
        #[arg(long)]
        days: Option<String>,
    },
    /// Show the hours
    #[command(after_help = "Example:\n  tenzro-cli provider schedule show")]
    Show,
    /// Serve always
    #[command(after_help = "Example:\n  tenzro-cli provider schedule clear")]
    Clear,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Stake {
    /// Move TNZO from the wallet into its stake
    #[command(after_help = "Example:\n  \
        tenzro-cli stake deposit --amount 1000 --role model-provider")]
    Deposit {
        /// TNZO
        #[arg(long, value_name = "TNZO", value_parser = tnzo, allow_hyphen_values = true)]
        amount: Wei,
        /// What it is for
        #[arg(long, value_enum, default_value_t = Role::ModelProvider)]
        role: Role,
    },
    /// Ask for stake back; once the unbonding time is over, pay it out
    #[command(after_help = "Examples:\n  \
        tenzro-cli stake withdraw --amount 500\n  tenzro-cli stake withdraw")]
    Withdraw {
        /// TNZO [default: all]
        #[arg(long, value_name = "TNZO", value_parser = tnzo, allow_hyphen_values = true)]
        amount: Option<Wei>,
    },
    /// What is staked and what is leaving
    #[command(after_help = "Example:\n  tenzro-cli stake status")]
    Status,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Wallet {
    /// Make a wallet with a new key
    #[command(after_help = "Example:\n  tenzro-cli wallet create --name provider")]
    Create {
        /// Letters, digits, '-' and '_' [default: wallet-N]
        #[arg(long)]
        name: Option<String>,
    },
    /// Make a wallet of a private key, read from the terminal, from standard input or a file
    #[command(after_help = "Examples:\n  \
        tenzro-cli wallet import --name mine\n  tenzro-cli wallet import < key.txt")]
    Import {
        /// Letters, digits, '-' and '_' [default: wallet-N]
        #[arg(long)]
        name: Option<String>,
        /// File with 64 hexadecimal digits
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
    },
    /// List the wallets of this home
    #[command(after_help = "Example:\n  tenzro-cli wallet list")]
    List,
    /// Show one wallet
    #[command(after_help = "Example:\n  tenzro-cli wallet show")]
    Show {
        /// Name or address [default: the wallet in use]
        wallet: Option<String>,
    },
    /// Use a wallet where none is named
    #[command(after_help = "Example:\n  tenzro-cli wallet use provider")]
    Use {
        /// Name or address
        wallet: String,
    },
    /// How much TNZO a wallet or an address has
    #[command(after_help = "Example:\n  tenzro-cli wallet balance")]
    Balance {
        /// Name or address [default: the wallet in use]
        wallet: Option<String>,
    },
    /// Send TNZO
    #[command(after_help = "Example:\n  \
        tenzro-cli wallet send --to 0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266 --amount 5")]
    Send {
        /// Address, or a wallet of this home
        #[arg(long)]
        to: String,
        /// TNZO
        #[arg(long, value_name = "TNZO", value_parser = tnzo, allow_hyphen_values = true)]
        amount: Wei,
    },
    /// Get TNZO on a development ledger, once a day
    #[command(after_help = "Example:\n  tenzro-cli wallet faucet")]
    Faucet {
        /// Name or address [default: the wallet in use]
        wallet: Option<String>,
    },
    /// Print a wallet as keystore JSON, or its private key
    #[command(after_help = "Examples:\n  \
        tenzro-cli wallet export > backup.json\n  tenzro-cli wallet export --private-key")]
    Export {
        /// Name or address [default: the wallet in use]
        wallet: Option<String>,
        /// The key itself: whoever sees it owns the wallet
        #[arg(long)]
        private_key: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Channel {
    /// List the channels of this home's wallet, closed ones included
    #[command(after_help = "Example:\n  tenzro-cli channel list")]
    List,
    /// Open a channel to a provider; the first paid answer does it by itself
    #[command(after_help = "Example:\n  tenzro-cli channel open \\\n    \
        --provider 0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266 --amount 5")]
    Open {
        /// Address of the provider's wallet
        #[arg(long, value_name = "ADDRESS")]
        provider: tenzro_ledger::Address,
        /// TNZO
        #[arg(long, value_name = "TNZO", value_parser = tnzo, allow_hyphen_values = true)]
        amount: Wei,
    },
    /// Put more TNZO into a channel
    #[command(after_help = "Example:\n  tenzro-cli channel topup CHANNEL --amount 5")]
    Topup {
        /// Its id: 0x and 64 hexadecimal digits
        channel: tenzro_ledger::B256,
        /// TNZO
        #[arg(long, value_name = "TNZO", value_parser = tnzo, allow_hyphen_values = true)]
        amount: Wei,
    },
    /// Pay what is due and get the rest back, through the provider
    #[command(after_help = "Examples:\n  tenzro-cli channel close CHANNEL\n  \
        tenzro-cli channel close CHANNEL --force")]
    Close {
        /// Its id: 0x and 64 hexadecimal digits
        channel: tenzro_ledger::B256,
        /// Without the provider: once to ask for it, and once more when the grace period is over
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// Start the node
    #[command(after_help = "Examples:\n  \
        tenzro-cli node start --detach\n  \
        tenzro-cli node start --chain https://rpc.example.com\n  \
        tenzro-cli node start --port 9545 --chain http://127.0.0.1:8545")]
    Start(NodeStart),
    /// Whether the node runs, and how far it has followed the ledger
    #[command(after_help = "Example:\n  tenzro-cli node status")]
    Status,
    /// Stop the node of this home
    #[command(after_help = "Example:\n  tenzro-cli node stop")]
    Stop,
    /// Print the log of the detached node
    #[command(after_help = "Example:\n  tenzro-cli node logs --follow")]
    Logs {
        /// Only the last lines
        #[arg(long, short = 'n', default_value_t = 100)]
        lines: usize,
        /// Print what is added, until Ctrl-C
        #[arg(long, short)]
        follow: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct NodeStart {
    /// Address to listen on [default: 127.0.0.1]
    #[arg(long)]
    pub(crate) host: Option<IpAddr>,
    /// Port; 0 chooses a free one [default: 8545]
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// `embedded`, or the address of a chain or of a node that holds one [default: embedded]
    #[arg(long, value_name = "embedded|URL")]
    pub(crate) chain: Option<String>,
    /// Run in the background; return when it is ready
    #[arg(long)]
    pub(crate) detach: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Chain {
    /// Put the contracts on a chain and write their addresses to the settings
    #[command(after_help = "Examples:\n  \
        tenzro-cli chain deploy --rpc https://rpc.example.com\n  \
        tenzro-cli chain deploy --rpc http://127.0.0.1:9000 --development")]
    Deploy {
        /// With a faucet that gives TNZO away
        #[arg(long)]
        development: bool,
        /// Address that may slash [default: the deploying wallet]
        #[arg(long, value_name = "ADDRESS")]
        arbiter: Option<tenzro_ledger::Address>,
    },
    /// The node's chain, its contracts and its rules
    #[command(after_help = "Example:\n  tenzro-cli chain info")]
    Info,
}
