//! What can be typed.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Serve GGUF models and chat with them.
#[derive(Debug, Parser)]
#[command(
    name = "tenzro-cli",
    version,
    arg_required_else_help = true,
    after_help = "Examples:\n  \
        tenzro-cli model download unsloth/gemma-3-270m-it-GGUF\n  \
        tenzro-cli model serve gemma3-270m --detach\n  \
        tenzro-cli chat --model gemma3-270m \"Why is the sky blue?\"\n  \
        tenzro-cli model stop gemma3-270m"
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
    /// Print one JSON document (or one per line) on stdout
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print no progress and no hints
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Log more; repeat for still more
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Do not ask before removing something
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
    /// Chat with a served model: one answer for a prompt, else a conversation
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
    /// List models
    #[command(after_help = "Example:\n  tenzro-cli model list --local")]
    List {
        /// Those of the library
        #[arg(long)]
        local: bool,
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
        tenzro-cli model serve my-model --upstream http://127.0.0.1:8000/v1")]
    Serve(Serve),
    /// List the running model servers of this home
    #[command(after_help = "Example:\n  tenzro-cli model ps")]
    Ps,
    /// Stop a model server: running answers finish, for at most 30 seconds
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
