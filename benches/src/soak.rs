//! Many short requests: memory must stay flat, and health checks quick.

use std::time::Instant;

use crate::Servers;
use crate::load::{self, Ask};
use crate::server::{Kind, Server, Sizes};

const CLIENTS: usize = 8;

/// Prints the memory of our server as it goes.
pub(crate) async fn run(servers: &Servers, requests: usize) -> anyhow::Result<()> {
    let sizes = Sizes {
        context: 512,
        parallel: CLIENTS as u32,
    };
    let server = Server::start(Kind::Ours, servers, sizes).await?;
    let started = Instant::now();
    let steps = 10;
    for step in 0..=steps {
        println!(
            "{:>6} requests, {:>6.1} s, {:>7.1} MB",
            requests * step / steps,
            started.elapsed().as_secs_f64(),
            server.memory_bytes()? as f64 / 1e6
        );
        if step == steps {
            break;
        }
        let rounds = requests / steps / CLIENTS;
        let clients = (0..CLIENTS).map(|client| {
            let server = &server;
            async move {
                for round in 0..rounds {
                    let number = (step * rounds + round) * CLIENTS + client;
                    let ask = Ask {
                        messages: vec![("user", format!("{number}: name a colour."))],
                        tokens: 4,
                    };
                    load::send(server, &ask).await?;
                }
                anyhow::Ok(())
            }
        });
        futures::future::try_join_all(clients).await?;
    }
    Ok(())
}
