//! `wallet`: keys in this home.

use super::Home;

/// The first key of the mnemonic "test test … junk", which development chains fund.
const KEY: &str = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
const ADDRESS: &str = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";

#[test]
fn wallets_are_made_imported_chosen_and_exported_without_a_node() {
    let home = Home::new();
    let none = home.run(&["wallet", "show"]);
    assert_eq!(none.code, Some(1));
    assert!(
        none.stderr.contains("hint: tenzro-cli wallet create"),
        "{}",
        none.stderr
    );
    let made = home.json(&["wallet", "create"]);
    assert_eq!(
        (&made["name"], &made["is_default"]),
        (&"wallet-1".into(), &true.into())
    );
    let imported = home.run_with_input(&["--json", "wallet", "import", "--name", "dev"], KEY);
    let imported: serde_json::Value = serde_json::from_str(&imported.stdout).expect("JSON");
    assert_eq!(imported["address"], ADDRESS);
    let wrong = home.run_with_input(&["wallet", "import"], "0x1234");
    assert!(
        wrong.stderr.contains("64 hexadecimal digits"),
        "{}",
        wrong.stderr
    );

    home.ok(&["wallet", "use", ADDRESS]);
    assert_eq!(home.ok(&["wallet", "show"]), format!("dev {ADDRESS}\n"));
    let list = home.ok(&["wallet", "list"]);
    assert!(
        list.contains("wallet-1") && list.contains(ADDRESS),
        "{list}"
    );
    let keystore: serde_json::Value =
        serde_json::from_str(&home.ok(&["wallet", "export"])).expect("keystore JSON");
    assert_eq!(keystore["version"], 3);
    let refused = home.run(&["wallet", "export", "--private-key"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""));
    let shown = home.ok(&["--yes", "wallet", "export", "--private-key"]);
    assert_eq!(shown.trim(), KEY);
}
