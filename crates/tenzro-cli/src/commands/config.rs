//! `config show`.

use serde_json::json;
use tenzro_node::config::Config;

use crate::output::Output;

pub(super) fn show(config: &Config, output: &Output) {
    let rows = config.explain();
    if output.json {
        let rows: Vec<_> = rows
            .into_iter()
            .map(|(key, value, origin)| {
                json!({"key": key, "value": value, "origin": origin.to_string()})
            })
            .collect();
        return output.json(&rows);
    }
    let rows = rows
        .into_iter()
        .map(|(key, value, origin)| {
            vec![
                key,
                value.unwrap_or_else(|| "-".to_owned()),
                origin.to_string(),
            ]
        })
        .collect();
    output.table(&["setting", "value", "from"], rows);
}
