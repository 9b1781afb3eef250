//! What nobody counts and is looked up when somebody asks: this process as proc(5) and the kernel's clocks have it, by the names
//! that Prometheus' own libraries use, and the bytes that sessions have carried.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::stdio::Tally;

/// Looks things up.
#[derive(Debug)]
pub(super) struct Lookup {
    bytes_in: Arc<Tally>,
    bytes_out: Arc<Tally>,
    start: SystemTime,
}

impl Lookup {
    pub(super) fn new(bytes_in: Arc<Tally>, bytes_out: Arc<Tally>) -> Lookup {
        Lookup { bytes_in, bytes_out, start: SystemTime::now() }
    }
}

impl Collector for Lookup {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Payload bytes of sessions, by direction as the server sees it.";
        let mut family = encoder.encode_descriptor("tstunnel_bytes", help, None, MetricType::Counter)?;
        for (direction, tally) in [("in", &self.bytes_in), ("out", &self.bytes_out)] {
            ConstCounter::new(tally.bytes()).encode(family.encode_family(&[("direction", direction)])?)?;
        }
        let start = self.start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let help = "When the server was started.";
        gauge(&mut encoder, "process_start_time_seconds", help, start.as_secs_f64())?;
        let help = "Processor time of the server itself, in user and system mode.";
        ConstCounter::new(cpu_time().as_secs_f64()).encode(encoder.encode_descriptor(
            "process_cpu_seconds",
            help,
            None,
            MetricType::Counter,
        )?)?;
        // What proc(5) does not tell is left out.
        if let Some(bytes) = resident_bytes() {
            gauge(&mut encoder, "process_resident_memory_bytes", "Resident memory.", bytes as f64)?;
        }
        if let Some(count) = open_descriptors() {
            gauge(&mut encoder, "process_open_fds", "Open file descriptors.", count as f64)?;
        }
        let max = getrlimit(Resource::Nofile).current.map_or(f64::INFINITY, |max| max as f64);
        gauge(&mut encoder, "process_max_fds", "How many file descriptors may be open.", max)
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> Result<(), fmt::Error> {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let size = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = size.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// Without the one that looks.
fn open_descriptors() -> Option<usize> {
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1))
}
