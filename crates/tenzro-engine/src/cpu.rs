//! How many threads the machine really has for us.
//!
//! The threads of one matrix product wait for each other in a spin loop. When another process takes
//! one of their cores, each wait lasts a scheduler time slice, and two threads get less done than
//! one. So the number of threads follows the cores that others leave free.

use std::time::{Duration, Instant};

/// Shortest window for a reading: the kernel counts in ticks of 10 ms.
const WINDOW: Duration = Duration::from_millis(250);

/// Threads for a machine of our own: its physical cores, as far as this process may use them.
pub(crate) fn threads_default() -> u32 {
    let allowed = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cores = physical_cores().unwrap_or(allowed).min(allowed);
    u32::try_from(cores).unwrap_or(1).max(1)
}

/// Free memory for new allocations, in bytes, where the system tells.
pub(crate) fn available_memory_bytes() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info
        .lines()
        .find(|line| line.starts_with("MemAvailable:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Cores that are not just a second thread of another one. Source: Linux, `Documentation/admin-guide/cputopology.rst`.
fn physical_cores() -> Option<usize> {
    let mut cores = std::collections::HashSet::new();
    for entry in std::fs::read_dir("/sys/devices/system/cpu").ok()?.flatten() {
        let siblings = entry.path().join("topology/thread_siblings_list");
        if let Ok(siblings) = std::fs::read_to_string(siblings) {
            cores.insert(siblings);
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

/// Watches what other processes use. Where the system does not tell, it always answers the maximum.
#[derive(Debug)]
pub(crate) struct CpuShare {
    threads_max: u32,
    threads: u32,
    last: Option<(Instant, Usage)>,
}

/// Clock ticks since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Usage {
    all_cores: u64,
    busy: u64,
    own: u64,
    cores: u64,
}

impl CpuShare {
    pub(crate) fn new(threads_max: u32) -> Self {
        Self {
            threads_max,
            threads: threads_max,
            last: read_usage().map(|usage| (Instant::now(), usage)),
        }
    }

    /// Threads to use from `now` on. Cheap enough for every step.
    pub(crate) fn threads(&mut self, now: Instant) -> u32 {
        if self.threads_max == 1 {
            return 1;
        }
        if let Some((at, before)) = self.last
            && now.duration_since(at) >= WINDOW
            && let Some(usage) = read_usage()
        {
            self.threads = threads_for(before, usage, self.threads_max);
            self.last = Some((now, usage));
        }
        self.threads
    }
}

/// Cores that others left free between two readings, rounded, at least one.
fn threads_for(before: Usage, after: Usage, threads_max: u32) -> u32 {
    let elapsed = after.all_cores.saturating_sub(before.all_cores);
    if elapsed == 0 {
        return threads_max;
    }
    let busy = after.busy.saturating_sub(before.busy);
    let own = after.own.saturating_sub(before.own);
    let others = busy.saturating_sub(own);
    let free = after.cores as f64 * (1.0 - others as f64 / elapsed as f64);
    (free.round() as u32).clamp(1, threads_max)
}

/// Source: proc_stat(5) and proc_pid_stat(5), fields utime and stime.
fn read_usage() -> Option<Usage> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let own = std::fs::read_to_string("/proc/self/stat").ok()?;
    parse_usage(&stat, &own)
}

fn parse_usage(stat: &str, own: &str) -> Option<Usage> {
    let mut lines = stat.lines();
    let fields: Vec<u64> = lines
        .next()?
        .strip_prefix("cpu ")?
        .split_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; guest times are part of user.
    let all_cores: u64 = fields.iter().take(8).sum();
    let idle = fields.get(3)? + fields.get(4)?;
    let cores = lines.take_while(|line| line.starts_with("cpu")).count();
    // The command name may contain spaces and brackets; fields are counted after its last bracket.
    let after_name = own.rsplit_once(')')?.1;
    let mut times = after_name.split_whitespace().skip(11);
    let utime: u64 = times.next()?.parse().ok()?;
    let stime: u64 = times.next()?.parse().ok()?;
    Some(Usage {
        all_cores,
        busy: all_cores - idle,
        own: utime + stime,
        cores: u64::try_from(cores).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_are_parsed_whatever_the_process_is_called() {
        let stat = "cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 0 0\ncpu1 1 0 0\nintr 5\n";
        let own = "77 (a) b c) S 1 2 3 4 5 6 7 8 9 10 60 40 0 0";
        let usage = parse_usage(stat, own).unwrap();
        assert_eq!(
            usage,
            Usage {
                all_cores: 1000,
                busy: 150,
                own: 100,
                cores: 2
            }
        );
        assert_eq!(parse_usage("", own), None);
        assert_eq!(parse_usage(stat, "77"), None);
    }

    #[test]
    fn threads_follow_what_others_leave() {
        let start = Usage {
            all_cores: 0,
            busy: 0,
            own: 0,
            cores: 2,
        };
        let after = |busy, own| {
            threads_for(
                start,
                Usage {
                    all_cores: 200,
                    busy,
                    own,
                    cores: 2,
                },
                2,
            )
        };
        assert_eq!(after(200, 195), 2, "alone on the machine");
        assert_eq!(after(200, 100), 1, "another process fights for a core");
        assert_eq!(after(200, 5), 1, "never less than one");
        assert_eq!(after(40, 0), 2, "light load elsewhere");
    }
}
