//! Wallets as files: those that other programs made, and those that are damaged.

use std::fs;

use alloy::primitives::{Address, address};
use serde_json::{Value, json};
use tempfile::TempDir;
use tenzro_ledger::{Keystore, WalletError};

/// Whose key all files in `keystores/` hold. Source: Ethereum wiki, "Web3 Secret Storage Definition".
const OWNER: Address = address!("008aeeda4d805471df9b2a5b0f38a0c3bcba786b");
const KEY: &str = "7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d";
const PASSWORD: &str = "testpassword";
/// A test vector of the wiki, and what eth-account 0.14 and ethers 6.17 make of the same key. The
/// wiki's scrypt vector is not here: RFC 7914 forbids its parameters (n = 2^18 with r = 1).
const FOREIGN: [(&str, &str); 3] = [
    ("wiki-pbkdf2", include_str!("keystores/wiki-pbkdf2.json")),
    ("eth-account", include_str!("keystores/eth-account.json")),
    ("ethers", include_str!("keystores/ethers.json")),
];

fn keystore_with(files: &[(&str, &str)]) -> (TempDir, Keystore) {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(directory.path().join(format!("{name}.json")), content).unwrap();
    }
    let keystore = Keystore::new(directory.path().to_owned());
    (directory, keystore)
}

#[test]
fn files_that_other_programs_made_open_with_their_password() {
    let (_directory, keystore) = keystore_with(&FOREIGN);
    assert_eq!(keystore.list().unwrap().len(), FOREIGN.len());
    for (name, _) in FOREIGN {
        let wallet = keystore.find(name).unwrap();
        assert_eq!(wallet.address, OWNER, "{name}");
        let signer = keystore.unlock(&wallet, Some(PASSWORD)).unwrap();
        assert_eq!(
            signer.to_bytes(),
            KEY.parse::<alloy::primitives::B256>().unwrap()
        );
        let wrong = keystore.unlock(&wallet, Some("testPassword"));
        assert!(matches!(wrong, Err(WalletError::Password(_))), "{name}");
    }
}

#[test]
fn what_is_made_here_has_the_form_that_others_read() {
    let (_directory, keystore) = keystore_with(&[]);
    let wallet = keystore.import(None, KEY, Some(PASSWORD)).unwrap();
    let text = keystore.export(&wallet).unwrap();
    let content: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(content["version"], 3);
    assert_eq!(
        content["address"],
        "008aeeda4d805471df9b2a5b0f38a0c3bcba786b"
    );
    let crypto = &content["crypto"];
    assert_eq!(crypto["cipher"], "aes-128-ctr");
    assert_eq!(crypto["kdf"], "scrypt");
    assert_eq!(crypto["kdfparams"]["dklen"], 32);
}

#[cfg(unix)]
#[test]
fn every_file_is_its_owners_only() {
    use std::os::unix::fs::PermissionsExt;

    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("keystore");
    let keystore = Keystore::new(directory.clone());
    keystore.create(None, None).unwrap();
    let other = keystore.import(None, KEY, Some(PASSWORD)).unwrap();
    keystore.set_default(&other).unwrap();
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(directory.clone()), 0o700);
    let files: Vec<_> = fs::read_dir(directory).unwrap().flatten().collect();
    assert_eq!(files.len(), 4, "{files:?}");
    for file in files {
        assert_eq!(mode(file.path()), 0o600, "{file:?}");
    }
}

#[test]
fn damaged_files_are_named_with_what_is_wrong() {
    let sound: Value = serde_json::from_str(FOREIGN[1].1).unwrap();
    let with = |pointer: &str, value: Value| {
        let mut content = sound.clone();
        *content.pointer_mut(pointer).unwrap() = value;
        content.to_string()
    };
    let other = "0000000000000000000000000000000000000001";
    let cases = [
        ("empty", String::new()),
        ("no JSON", sound.to_string().split_off(1)),
        ("cut off", sound.to_string()[..300].to_owned()),
        ("a list", "[]".to_owned()),
        ("no address", with("/address", Value::Null)),
        ("no key", with("/crypto", json!({}))),
        ("version 1", with("/version", json!(1))),
        (
            "another cipher",
            with("/crypto/cipher", json!("aes-128-cbc")),
        ),
        ("another derivation", with("/crypto/kdf", json!("argon2"))),
        ("a short key", with("/crypto/kdfparams/dklen", json!(8))),
        (
            "endless scrypt",
            with("/crypto/kdfparams/n", json!(1_u64 << 31)),
        ),
        (
            "scrypt that RFC 7914 forbids",
            with("/crypto/kdfparams/r", json!(1)),
        ),
        ("scrypt of 0", with("/crypto/kdfparams/n", json!(0))),
        (
            "a short vector",
            with("/crypto/cipherparams/iv", json!("83")),
        ),
        ("a short text", with("/crypto/ciphertext", json!("d1"))),
        ("no digits", with("/crypto/mac", json!("zz"))),
        ("no salt", with("/crypto/kdfparams/salt", Value::Null)),
        ("of another address", with("/address", json!(other))),
    ];
    for (name, content) in cases {
        let (directory, keystore) = keystore_with(&[("mine", &content)]);
        let found = keystore.find("mine");
        let result = found.and_then(|wallet| keystore.unlock(&wallet, Some(PASSWORD)));
        let error = result.err().unwrap_or_else(|| panic!("{name}: opened"));
        let WalletError::Damaged { path, reason } = error else {
            panic!("{name}: {error:?}");
        };
        assert_eq!(path, directory.path().join("mine.json"), "{name}");
        assert!(!reason.is_empty());
    }
}

#[test]
fn a_damaged_file_does_not_lock_the_other_wallets() {
    let (_directory, keystore) = keystore_with(&[("aaa-damaged", "{"), FOREIGN[0]]);
    let wallet = keystore.find(FOREIGN[0].0).unwrap();
    assert_eq!(wallet.address, OWNER);
    keystore.set_default(&wallet).unwrap();
    assert_eq!(keystore.default_wallet().unwrap().name, wallet.name);
    let made = keystore.create(Some("new"), Some("p")).unwrap();
    assert_eq!(keystore.find("new").unwrap().address, made.address);
    // A list names what is wrong.
    let error = keystore.list().unwrap_err();
    assert!(error.to_string().contains("aaa-damaged.json"), "{error}");
    // Its file is not written over.
    let taken = keystore.create(Some("aaa-damaged"), Some("p"));
    assert!(matches!(taken, Err(WalletError::Exists(_))));
}
