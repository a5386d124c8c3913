//! Timestamps from a tsoracle server: each connection asks for one after the other.
//!
//!     tsoracle-load ENDPOINT CONNECTIONS SECONDS
//!
//! Prints what bench/csrc/load.c prints: how many timestamps came, each of which must be greater than the one before it on
//! its connection, and unique over all; how many per second; how long they took.

use std::time::{Duration, Instant};

use tsoracle_client::{Client, ClientBuilder};

const WARM_UP: Duration = Duration::from_millis(100);
const SHARES: [&str; 10] = ["0", "0.01", "0.1", "0.25", "0.5", "0.75", "0.9", "0.99", "0.999", "1"];

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

#[derive(Default)]
struct Taken {
    ids: Vec<u64>,
    nanoseconds: Vec<u64>,
}

async fn ask(client: Client, start: Instant, end: Instant) -> Result<Taken, String> {
    let mut taken = Taken::default();
    let mut before = Instant::now();
    while before < end {
        let id = client.get_ts().await.map_err(|error| error.to_string())?.0;
        let after = Instant::now();
        if taken.ids.last().is_some_and(|last| id <= *last) {
            return Err("a timestamp is not greater than the one before it on its connection".into());
        }
        taken.ids.push(id);
        if after >= start && after < end {
            taken.nanoseconds.push((after - before).as_nanos() as u64);
        }
        before = after;
    }
    Ok(taken)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, endpoint, connections, seconds] = arguments.as_slice() else {
        return Err("usage: tsoracle-load ENDPOINT CONNECTIONS SECONDS".into());
    };
    let (connections, seconds): (usize, f64) = (connections.parse()?, seconds.parse()?);
    let mut clients = Vec::new();
    for _ in 0..connections {
        // By default it waits a millisecond for others to ask along: there are none on a connection of its own.
        let builder = ClientBuilder::endpoints(vec![endpoint.clone()]).batch_flush_interval(Duration::ZERO);
        clients.push(builder.build().await?);
    }
    let start = Instant::now() + WARM_UP;
    let end = start + Duration::from_secs_f64(seconds);
    let tasks: Vec<_> = clients.into_iter().map(|client| tokio::spawn(ask(client, start, end))).collect();
    let mut all = Taken::default();
    for task in tasks {
        let mut taken = task.await??;
        all.ids.append(&mut taken.ids);
        all.nanoseconds.append(&mut taken.nanoseconds);
    }
    report(all, seconds)
}

fn report(mut all: Taken, seconds: f64) -> Outcome<()> {
    all.ids.sort_unstable();
    all.nanoseconds.sort_unstable();
    if all.ids.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err("a timestamp came twice".into());
    }
    let (Some(first), Some(last), false) = (all.ids.first(), all.ids.last(), all.nanoseconds.is_empty()) else {
        return Err("no timestamp came".into());
    };
    let greatest = all.nanoseconds.len() - 1;
    let latency: Vec<String> = SHARES
        .iter()
        .map(|share| format!("\"{share}\": {}", all.nanoseconds[(share.parse::<f64>().unwrap() * greatest as f64) as usize]))
        .collect();
    println!(
        "{{\"ids\": {}, \"first\": {first}, \"last\": {last}, \"per_second\": {:.1}, \"latency_ns\": {{{}}}}}",
        all.ids.len(),
        all.nanoseconds.len() as f64 / seconds,
        latency.join(", ")
    );
    Ok(())
}
