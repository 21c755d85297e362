//! Wallets: secp256k1 keys in Ethereum keystore v3 files (scrypt), readable by their owner only.
//!
//! ```text
//! keystore/NAME.json       the encrypted key, with its address
//! keystore/NAME.password   the password, where a wallet was made without asking for one
//! keystore/default         the name of the wallet that is used when none is named
//! ```

mod keystore_v3;

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use alloy::primitives::{Address, B256, hex};
use alloy::signers::local::PrivateKeySigner;
use serde_json::Value;

/// Longest name of a wallet in bytes.
const NAME_MAX: usize = 64;

/// The wallets of one home.
#[derive(Debug, Clone)]
pub struct Keystore {
    directory: PathBuf,
}

/// What can be told of a wallet without its password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wallet {
    /// File name without its extension.
    pub name: String,
    /// Whose money it is.
    pub address: Address,
    /// Used when no wallet is named.
    pub is_default: bool,
    /// Its password lies beside it.
    pub has_password_file: bool,
}

/// Why a wallet cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum WalletError {
    /// No wallet has that name or address.
    #[error("there is no wallet '{0}'")]
    Unknown(String),
    /// There is none at all.
    #[error("there is no wallet yet")]
    None,
    /// The name is taken.
    #[error("there is a wallet '{0}' already")]
    Exists(String),
    /// The name cannot be a file's.
    #[error("'{0}' is no name for a wallet: use letters, digits, '-' and '_', at most 64")]
    Name(String),
    /// The key is no secp256k1 key.
    #[error("that is no private key: it must be 64 hexadecimal digits and not zero")]
    Key,
    /// The password does not decrypt the key.
    #[error("wrong password for wallet '{0}'")]
    Password(String),
    /// A password is needed and there is none.
    #[error("wallet '{0}' needs its password")]
    PasswordNeeded(String),
    /// The file is damaged.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file system refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
}

impl Keystore {
    /// Creates nothing yet.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// All wallets, by name.
    pub fn list(&self) -> Result<Vec<Wallet>, WalletError> {
        let names = self.names()?;
        let mut wallets: Vec<Wallet> = names
            .iter()
            .map(|name| self.wallet(name))
            .collect::<Result<_, _>>()?;
        // Where the default was removed, or never chosen, the first one is it.
        if let Some(first) = wallets.first_mut()
            && self.default_name().is_none()
        {
            first.is_default = true;
        }
        Ok(wallets)
    }

    /// The wallet of that name or address.
    pub fn find(&self, name: &str) -> Result<Wallet, WalletError> {
        // By its name even where another file is damaged.
        if is_name(name) && self.key_file(name).is_file() {
            return self.wallet(name);
        }
        let address = name.parse::<Address>().ok();
        self.list()?
            .into_iter()
            .find(|wallet| Some(wallet.address) == address)
            .ok_or_else(|| WalletError::Unknown(name.to_owned()))
    }

    /// The wallet that is used when none is named.
    pub fn default_wallet(&self) -> Result<Wallet, WalletError> {
        match self.default_name() {
            Some(name) => self.wallet(&name),
            None => self.list()?.into_iter().next().ok_or(WalletError::None),
        }
    }

    /// A wallet with a new random key. Without a password a random one is made and kept beside it.
    pub fn create(
        &self,
        name: Option<&str>,
        password: Option<&str>,
    ) -> Result<Wallet, WalletError> {
        self.add(name, PrivateKeySigner::random().to_bytes(), password)
    }

    /// A wallet with that key: 64 hexadecimal digits, with or without 0x.
    pub fn import(
        &self,
        name: Option<&str>,
        key: &str,
        password: Option<&str>,
    ) -> Result<Wallet, WalletError> {
        let key: B256 = key.trim().parse().map_err(|_| WalletError::Key)?;
        self.add(name, key, password)
    }

    /// Decrypts the key; without a password the one beside it is used. Takes about 0.1 s: scrypt.
    pub fn unlock(
        &self,
        wallet: &Wallet,
        password: Option<&str>,
    ) -> Result<PrivateKeySigner, WalletError> {
        let file = self.password_file(&wallet.name);
        let password = match password {
            Some(password) => password.to_owned(),
            None => fs::read_to_string(&file)
                .map_err(|_| WalletError::PasswordNeeded(wallet.name.clone()))?
                .trim_end_matches('\n')
                .to_owned(),
        };
        let path = self.key_file(&wallet.name);
        let damaged = |reason| WalletError::Damaged {
            path: path.clone(),
            reason,
        };
        let text = fs::read(&path).map_err(|source| io_error(&path, source))?;
        let content = keystore_v3::checked(&text).map_err(damaged)?;
        // As it was checked, which is how this library reads it too.
        let copy = self.temporary(&content)?;
        let signer = PrivateKeySigner::decrypt_keystore(copy.path(), password)
            .map_err(|_| WalletError::Password(wallet.name.clone()))?;
        if signer.address() != wallet.address {
            let reason = "the key is not that of the address in the file".to_owned();
            return Err(damaged(reason));
        }
        Ok(signer)
    }

    /// The keystore JSON, still encrypted.
    pub fn export(&self, wallet: &Wallet) -> Result<String, WalletError> {
        let path = self.key_file(&wallet.name);
        fs::read_to_string(&path).map_err(|source| io_error(&path, source))
    }

    /// Makes it the wallet that is used when none is named.
    pub fn set_default(&self, wallet: &Wallet) -> Result<(), WalletError> {
        self.write(&self.default_file(), wallet.name.as_bytes())
    }

    fn add(
        &self,
        name: Option<&str>,
        key: B256,
        password: Option<&str>,
    ) -> Result<Wallet, WalletError> {
        let signer = PrivateKeySigner::from_bytes(&key).map_err(|_| WalletError::Key)?;
        self.create_directory()?;
        let names = self.names()?;
        let name = match name {
            Some(name) => name.to_owned(),
            None => free_name(&names),
        };
        if !is_name(&name) {
            return Err(WalletError::Name(name));
        }
        if names.contains(&name) {
            return Err(WalletError::Exists(name));
        }
        let kept = password
            .is_none()
            .then(|| hex::encode(PrivateKeySigner::random().to_bytes()));
        let password = kept.as_deref().or(password).unwrap_or_default();
        let content = self.encrypt(&signer, password)?;
        // The password first: a key that nobody can decrypt must never be the only trace of money.
        if let Some(kept) = &kept {
            self.write(&self.password_file(&name), kept.as_bytes())?;
        }
        self.write(&self.key_file(&name), &content)?;
        if names.is_empty() {
            self.write(&self.default_file(), name.as_bytes())?;
        }
        self.find(&name)
    }

    /// The keystore file's content. The address is added, which the format leaves optional and other
    /// programs (geth) need.
    fn encrypt(&self, signer: &PrivateKeySigner, password: &str) -> Result<Vec<u8>, WalletError> {
        let directory = tempfile::tempdir_in(&self.directory)
            .map_err(|source| io_error(&self.directory, source))?;
        let failed = |reason: String| WalletError::Damaged {
            path: self.directory.clone(),
            reason,
        };
        PrivateKeySigner::encrypt_keystore(
            directory.path(),
            &mut alloy::signers::k256::elliptic_curve::rand_core::OsRng,
            signer.to_bytes(),
            password,
            Some("key"),
        )
        .map_err(|error| failed(error.to_string()))?;
        let path = directory.path().join("key");
        let text = fs::read(&path).map_err(|source| io_error(&path, source))?;
        let mut content: Value =
            serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
        content["address"] = hex::encode(signer.address()).into();
        Ok(content.to_string().into_bytes())
    }

    /// Of all files that should be wallets.
    fn names(&self) -> Result<Vec<String>, WalletError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(io_error(&self.directory, source)),
        };
        let mut names = Vec::new();
        for entry in entries.flatten() {
            let path = entry.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
                && let Some(name) = path.file_stem().and_then(|name| name.to_str())
            {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn wallet(&self, name: &str) -> Result<Wallet, WalletError> {
        Ok(Wallet {
            address: read_address(&self.key_file(name))?,
            is_default: self.default_name().as_deref() == Some(name),
            has_password_file: self.password_file(name).is_file(),
            name: name.to_owned(),
        })
    }

    fn default_name(&self) -> Option<String> {
        let name = fs::read_to_string(self.default_file()).ok()?;
        self.key_file(&name).is_file().then_some(name)
    }

    fn create_directory(&self) -> Result<(), WalletError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder
            .create(&self.directory)
            .map_err(|source| io_error(&self.directory, source))
    }

    /// Readable by the owner only; a crash leaves the old or the new content.
    fn write(&self, path: &Path, content: &[u8]) -> Result<(), WalletError> {
        let file = self.temporary(content)?;
        let write = || {
            file.as_file().sync_all()?;
            file.persist(path)?;
            fs::File::open(&self.directory)?.sync_all()
        };
        write().map_err(|source| io_error(path, source))
    }

    /// Mode 0600; gone with the value.
    fn temporary(&self, content: &[u8]) -> Result<tempfile::NamedTempFile, WalletError> {
        let write = || {
            let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
            file.write_all(content)?;
            Ok(file)
        };
        write().map_err(|source| io_error(&self.directory, source))
    }

    fn key_file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.json"))
    }

    fn password_file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.password"))
    }

    fn default_file(&self) -> PathBuf {
        self.directory.join("default")
    }
}

fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(is_plain)
}

fn free_name(names: &[String]) -> String {
    (1..)
        .map(|number| format!("wallet-{number}"))
        .find(|name| !names.contains(name))
        .expect("there are fewer wallets than numbers")
}

fn read_address(path: &Path) -> Result<Address, WalletError> {
    let text = fs::read(path).map_err(|source| io_error(path, source))?;
    let content: Value = serde_json::from_slice(&text).unwrap_or_default();
    let address = content["address"]
        .as_str()
        .and_then(|text| text.parse().ok());
    address.ok_or_else(|| WalletError::Damaged {
        path: path.to_owned(),
        reason: "no keystore v3 file with an address".to_owned(),
    })
}

fn io_error(path: &Path, source: io::Error) -> WalletError {
    WalletError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keystore() -> (tempfile::TempDir, Keystore) {
        let home = tempfile::tempdir().expect("a directory");
        let keystore = Keystore::new(home.path().join("keystore"));
        (home, keystore)
    }

    #[test]
    fn a_wallet_opens_with_its_password_only() {
        let (_home, keystore) = keystore();
        assert!(matches!(keystore.default_wallet(), Err(WalletError::None)));
        let made = keystore.create(None, Some("secret")).expect("made");
        assert_eq!((made.name.as_str(), made.is_default), ("wallet-1", true));
        let signer = keystore.unlock(&made, Some("secret")).expect("unlocked");
        assert_eq!(signer.address(), made.address);
        let wrong = keystore.unlock(&made, Some("Secret"));
        assert!(matches!(wrong, Err(WalletError::Password(_))));
        let none = keystore.unlock(&made, None);
        assert!(matches!(none, Err(WalletError::PasswordNeeded(_))));
    }

    #[test]
    fn a_wallet_made_without_a_password_keeps_one_beside_it_for_its_owner_only() {
        let (home, keystore) = keystore();
        let made = keystore.create(Some("mine"), None).expect("made");
        assert!(made.has_password_file);
        keystore.unlock(&made, None).expect("unlocked");
        #[cfg(unix)]
        for entry in fs::read_dir(home.path().join("keystore")).expect("there") {
            use std::os::unix::fs::PermissionsExt;
            let entry = entry.expect("an entry");
            let mode = entry.metadata().expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{:?}", entry.path());
        }
    }

    #[test]
    fn wallets_are_imported_found_and_chosen() {
        let (_home, keystore) = keystore();
        // The first key of the mnemonic "test test … junk", which development chains fund.
        let key = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
        let address = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";
        keystore.create(Some("first"), None).expect("made");
        let made = keystore.import(Some("dev"), key, Some("p")).expect("made");
        assert_eq!(made.address.to_string(), address);
        assert!(!made.is_default);
        keystore.set_default(&made).expect("chosen");
        assert_eq!(keystore.default_wallet().expect("one").name, "dev");
        assert_eq!(keystore.find(address).expect("found").name, "dev");
        for (name, key) in [
            ("dev", key),
            ("../x", key),
            ("", key),
            ("ok", "0x12"),
            ("ok", &"0".repeat(64)),
        ] {
            assert!(
                keystore.import(Some(name), key, Some("p")).is_err(),
                "{name} {key}"
            );
        }
        assert_eq!(keystore.list().expect("readable").len(), 2);
    }
}
