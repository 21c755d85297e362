//! Settings: flags > environment (`TENZRO_…`) > `config.toml` in the home > defaults. Resolved once;
//! the only place that reads the environment.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tenzro_hub::HubConfig;
use tenzro_protocol::amount::Wei;
use tenzro_protocol::model_id::nearest;

use crate::home::Home;

/// Output tokens that are paid ahead at most: no node of ours pays a provider that wants more.
pub(crate) const WINDOW_TOKENS_MAX: u32 = 64;

/// One setting that a file or a variable may give.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// `section.name` or `name` in the file; the variable is `TENZRO_SECTION_NAME`.
    key: &'static str,
    kind: Kind,
    default: Option<&'static str>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Up to 32 bits.
    Number,
    /// Up to 64 bits, as chains count.
    Block,
    Port,
    Address,
    Flag,
    /// TNZO.
    Amount,
    /// Output tokens that are paid ahead.
    Window,
    Text,
}

const KNOWN: [Known; 32] = [
    known("rpc", Kind::Text, Some("http://127.0.0.1:8545")),
    known("node.host", Kind::Address, Some("127.0.0.1")),
    known("node.port", Kind::Port, Some("8545")),
    known("node.cors", Kind::Flag, Some("false")),
    known("node.allow_private_endpoints", Kind::Flag, None),
    known("chain.url", Kind::Text, Some("embedded")),
    known("chain.id", Kind::Block, None),
    known("chain.tnzo", Kind::Text, None),
    known("chain.faucet", Kind::Text, None),
    known("chain.provider_registry", Kind::Text, None),
    known("chain.payment_channels", Kind::Text, None),
    known("chain.first_block", Kind::Block, None),
    known("chain.confirmations", Kind::Block, None),
    known("serve.host", Kind::Address, Some("127.0.0.1")),
    known("serve.port", Kind::Port, Some("8080")),
    known("serve.ctx_size", Kind::Number, None),
    known("serve.parallel", Kind::Number, None),
    known("serve.threads", Kind::Number, None),
    known("serve.gpu_layers", Kind::Number, None),
    known("serve.queue_size", Kind::Number, Some("64")),
    known("serve.cors", Kind::Flag, Some("false")),
    known("payments.window_tokens", Kind::Window, Some("32")),
    known("payments.settle_amount", Kind::Amount, Some("10")),
    known("payments.settle_seconds", Kind::Number, Some("600")),
    known("payments.max_per_hour", Kind::Amount, None),
    known("payments.max_per_day", Kind::Amount, None),
    known("payments.max_deposit", Kind::Amount, Some("100")),
    known("payments.max_input_price", Kind::Amount, None),
    known("payments.max_output_price", Kind::Amount, None),
    known("chat.model", Kind::Text, None),
    known("chat.system", Kind::Text, None),
    known("chat.max_tokens", Kind::Number, None),
];

const fn known(key: &'static str, kind: Kind, default: Option<&'static str>) -> Known {
    Known { key, kind, default }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// `config.toml`.
    File,
    /// A variable of the environment.
    Environment(String),
    /// The command line.
    Flag,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => formatter.write_str("default"),
            Self::File => formatter.write_str("config.toml"),
            Self::Environment(name) => formatter.write_str(name),
            Self::Flag => formatter.write_str("flag"),
        }
    }
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// It is not TOML.
    #[error("{}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        reason: String,
    },
    /// Nobody knows that key.
    #[error("{}: there is no setting '{key}'; did you mean {nearest}?", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// What it says.
        key: String,
        /// What it may have meant.
        nearest: String,
    },
    /// The value has another type.
    #[error("{key} ({origin}) is '{value}', but must be {expected}")]
    Value {
        /// The setting.
        key: &'static str,
        /// Where the value is.
        origin: Origin,
        /// What it is.
        value: String,
        /// What it must be.
        expected: &'static str,
    },
}

impl ConfigError {
    /// What to do next. No command helps before the settings can be read.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { .. } => Some("choose another home with --home".to_owned()),
            Self::Syntax { path, .. } => Some(format!("correct {}", path.display())),
            Self::UnknownKey { .. } => {
                let keys: Vec<&str> = KNOWN.iter().map(|known| known.key).collect();
                Some(format!("the settings are {}", keys.join(", ")))
            }
            Self::Value { .. } => None,
        }
    }
}

/// All settings of this run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The home directory.
    pub home: Home,
    home_origin: Origin,
    /// How to reach the hub.
    pub hub: HubConfig,
    hub_cache_origin: Origin,
    hub_endpoint_origin: Origin,
    values: BTreeMap<&'static str, (String, Origin)>,
    wallet_password: Option<Secret>,
}

/// A text that is never shown.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Secret")
    }
}

impl Config {
    /// Reads the process environment and the file. `home` is the flag, when given.
    pub fn load(home: Option<PathBuf>) -> Result<Self, ConfigError> {
        Self::from_parts(home, |name| std::env::var(name).ok())
    }

    fn from_parts(
        home: Option<PathBuf>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let (home, home_origin) = match (home, set("TENZRO_HOME")) {
            (Some(home), _) => (home, Origin::Flag),
            (None, Some(home)) => (home.into(), Origin::Environment("TENZRO_HOME".to_owned())),
            (None, None) => {
                let user = set("HOME").unwrap_or_else(|| ".".to_owned());
                (Path::new(&user).join(".tenzro"), Origin::Default)
            }
        };
        let home = Home::new(home);
        let mut file = read_file(&home.config_file())?;
        let mut values = BTreeMap::new();
        for known in KNOWN {
            let name = format!("TENZRO_{}", known.key.replace('.', "_").to_uppercase());
            let value = match (set(&name), file.remove(known.key)) {
                (Some(value), _) => Some((value, Origin::Environment(name))),
                (None, Some(value)) => Some((value, Origin::File)),
                (None, None) => known
                    .default
                    .map(|value| (value.to_owned(), Origin::Default)),
            };
            if let Some((value, origin)) = value {
                check(&known, &value, &origin)?;
                values.insert(known.key, (value, origin));
            }
        }
        if let Some((key, _)) = file.pop_first() {
            return Err(ConfigError::UnknownKey {
                path: home.config_file(),
                nearest: nearest(&key, KNOWN.iter().map(|known| known.key)).remove(0),
                key,
            });
        }
        let first_set = |names: &[&str]| {
            let name = names.iter().find(|name| set(name).is_some());
            name.map_or(Origin::Default, |name| {
                Origin::Environment((*name).to_owned())
            })
        };
        Ok(Self {
            home,
            home_origin,
            wallet_password: set("TENZRO_WALLET_PASSWORD").map(Secret),
            hub_cache_origin: first_set(&HubConfig::CACHE_VARIABLES),
            hub_endpoint_origin: first_set(&["HF_ENDPOINT"]),
            hub: HubConfig::from_variables(set),
            values,
        })
    }

    /// The value of a setting, when it has one. `key` is one of the known ones.
    pub fn get<T: FromStr>(&self, key: &str) -> Option<T> {
        debug_assert!(KNOWN.iter().any(|known| known.key == key), "{key}");
        self.values
            .get(key)
            .and_then(|(value, _)| value.parse().ok())
    }

    /// `TENZRO_WALLET_PASSWORD`: only from the environment, so that it lies in no file.
    pub fn wallet_password(&self) -> Option<&Secret> {
        self.wallet_password.as_ref()
    }

    /// What somebody typed.
    pub fn set_wallet_password(&mut self, password: String) {
        self.wallet_password = Some(Secret(password));
    }

    /// A flag of the command line, which comes before everything else.
    pub fn set(&mut self, key: &'static str, value: impl Into<String>) {
        debug_assert!(KNOWN.iter().any(|known| known.key == key), "{key}");
        self.values.insert(key, (value.into(), Origin::Flag));
    }

    /// Whether nobody has given a value for a setting.
    pub fn is_default(&self, key: &str) -> bool {
        let value = self.values.get(key);
        value.is_none_or(|(_, origin)| *origin == Origin::Default)
    }

    /// Every setting with its value and where it came from.
    pub fn explain(&self) -> Vec<(String, Option<String>, Origin)> {
        let home = self.home.root().display().to_string();
        let mut rows = vec![("home".to_owned(), Some(home), self.home_origin.clone())];
        let cache = self.hub.cache_dir.display().to_string();
        rows.push((
            "hub.cache".to_owned(),
            Some(cache),
            self.hub_cache_origin.clone(),
        ));
        let endpoint = self.hub.endpoint.clone();
        rows.push((
            "hub.endpoint".to_owned(),
            Some(endpoint),
            self.hub_endpoint_origin.clone(),
        ));
        for known in KNOWN {
            let (value, origin) = match self.values.get(known.key) {
                Some((value, origin)) => (Some(value.clone()), origin.clone()),
                None => (None, Origin::Default),
            };
            rows.push((known.key.to_owned(), value, origin));
        }
        rows
    }
}

fn check(known: &Known, value: &str, origin: &Origin) -> Result<(), ConfigError> {
    let (is_valid, expected) = match known.kind {
        Kind::Number => (value.parse::<u32>().is_ok(), "a whole number"),
        Kind::Port => (value.parse::<u16>().is_ok(), "a port from 0 to 65535"),
        Kind::Address => (value.parse::<IpAddr>().is_ok(), "an IP address"),
        Kind::Block => (value.parse::<u64>().is_ok(), "a whole number"),
        Kind::Flag => (value.parse::<bool>().is_ok(), "true or false"),
        Kind::Window => (
            value
                .parse()
                .is_ok_and(|tokens| (1..=WINDOW_TOKENS_MAX).contains(&tokens)),
            "a whole number from 1 to 64",
        ),
        Kind::Amount => (Wei::parse_tnzo(value).is_ok(), "an amount of TNZO"),
        Kind::Text => (true, "text"),
    };
    if is_valid {
        return Ok(());
    }
    Err(ConfigError::Value {
        key: known.key,
        origin: origin.clone(),
        value: value.to_owned(),
        expected,
    })
}

/// Keys as `section.name`. A missing file is an empty one.
fn read_file(path: &Path) -> Result<BTreeMap<String, String>, ConfigError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(source) => {
            return Err(ConfigError::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    let table: toml::Table = toml::from_str(&text).map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        reason: error.to_string().trim_end().to_owned(),
    })?;
    let mut values = BTreeMap::new();
    for (section, content) in table {
        match content {
            toml::Value::Table(content) => {
                for (name, value) in content {
                    values.insert(format!("{section}.{name}"), text_of(&value));
                }
            }
            value => {
                values.insert(section, text_of(&value));
            }
        }
    }
    Ok(values)
}

fn text_of(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(file: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let home = tempfile::tempdir().expect("a directory");
        std::fs::write(home.path().join("config.toml"), file).expect("written");
        Config::from_parts(Some(home.path().to_owned()), |name| {
            let variable = variables.iter().find(|(known, _)| *known == name);
            variable.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_comes_before_the_file_before_defaults() {
        let file = "[serve]\nport = 9000\nctx_size = 2048\n";
        let config = config(file, &[("TENZRO_SERVE_PORT", "9001")]).expect("valid");
        assert_eq!(config.get::<u16>("serve.port"), Some(9001));
        assert_eq!(config.get::<u32>("serve.ctx_size"), Some(2048));
        assert_eq!(
            config.get::<String>("serve.host").as_deref(),
            Some("127.0.0.1")
        );
        assert_eq!(config.get::<u32>("serve.threads"), None);
        let rows = config.explain();
        let port = rows
            .iter()
            .find(|row| row.0 == "serve.port")
            .expect("listed");
        assert_eq!(port.2.to_string(), "TENZRO_SERVE_PORT");
    }

    #[test]
    fn every_setting_is_described_with_its_default() {
        let page = include_str!("../../../docs/settings.md");
        for known in KNOWN {
            let named = format!("`{}`", known.key);
            let mut rows = page.lines().filter(|line| line.starts_with('|'));
            let line = rows.find(|line| line.contains(&named));
            let line = line.unwrap_or_else(|| panic!("{} is not described", known.key));
            let default = known
                .default
                .map_or("–".to_owned(), |value| format!("`{value}`"));
            assert!(line.contains(&format!("| {default} |")), "{line}");
        }
    }

    #[test]
    fn the_hubs_settings_name_the_variables_they_came_from() {
        let origin = |config: &Config, key: &str| {
            let rows = config.explain();
            let row = rows.iter().find(|row| row.0 == key).expect("listed");
            row.2.to_string()
        };
        let plain = config("", &[]).expect("valid");
        assert_eq!(origin(&plain, "hub.endpoint"), "default");
        assert_eq!(origin(&plain, "hub.cache"), "default");
        let set = config("", &[("HF_ENDPOINT", "http://x"), ("HF_HOME", "/x")]).expect("valid");
        assert_eq!(origin(&set, "hub.endpoint"), "HF_ENDPOINT");
        assert_eq!(origin(&set, "hub.cache"), "HF_HOME");
    }

    #[test]
    fn wrong_keys_and_values_are_named() {
        let error = config("[serve]\nprot = 1\n", &[]).expect_err("unknown");
        assert!(
            error.to_string().contains("did you mean serve.port"),
            "{error}"
        );
        let error = config("[serve]\nport = \"high\"\n", &[]).expect_err("no number");
        assert!(
            error
                .to_string()
                .contains("serve.port (config.toml) is 'high'"),
            "{error}"
        );
        for file in [
            "[serve]\nport = 70000\n",
            "[serve]\nhost = \"localhost\"\n",
            "[serve]\nport = []\n",
            "[payments]\nwindow_tokens = 0\n",
            "[payments]\nwindow_tokens = 65\n",
            "[payments]\nmax_input_price = \"-1\"\n",
        ] {
            let error = config(file, &[]).expect_err("not used silently");
            assert!(matches!(error, ConfigError::Value { .. }), "{error}");
        }
        assert!(matches!(
            config("[serve", &[]),
            Err(ConfigError::Syntax { .. })
        ));
    }
}
